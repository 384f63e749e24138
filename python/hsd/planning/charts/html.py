"""A plan in a notebook: its summary as a table, and its picture."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from typing import Any

from ...errors import Error
from ...work.drawing import encoded, matplotlib_for, style
from .figure import draw
from .file import small
from .subject import Subject

_DPI = 110
"""Of the picture in a notebook: readable, and below 200 KB."""


def shown(plan: Any) -> str:
    """The HTML of an :class:`hsd.Plan`. Without matplotlib, the table alone."""
    rows = table(plan.cost([plan.program()]).rows_of_text())
    try:
        page = draw(Subject.of(plan))
    except Error:  # there is no matplotlib
        return rows
    with matplotlib_for("plot").rc_context(style()):
        data = base64.b64encode(small(encoded(page, "png", _DPI))).decode()
    text = escape(f"Savings over tau, clusters by step, and the tree of {plan.n_prompts:,} prompts")
    return f'{rows}<img alt="{text}" style="max-width:100%" src="data:image/png;base64,{data}">'


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values as an HTML table, in the colours of the page around it, light or dark."""
    cell = "text-align:left;vertical-align:top;padding:1px 12px 1px 0"
    lines = [
        f'<tr><th scope="row" style="{cell};font-weight:600;white-space:nowrap">{escape(name)}</th>'
        f'<td style="{cell};white-space:pre-wrap">{escape(value)}</td></tr>'
        for name, value in rows
    ]
    return f'<table style="background:none;color:inherit">{"".join(lines)}</table>'
