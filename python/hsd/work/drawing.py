"""Figures by matplotlib, without a display: no pyplot, so no window and no figure that stays in memory."""

from __future__ import annotations

import io
import warnings
from typing import Any, Literal

from ..errors import Error

FigureFormat = Literal["png", "svg", "pdf"]

STYLE: dict[str, Any] = {
    "font.size": 10.0,
    "axes.edgecolor": "#767676",
    "axes.facecolor": "white",
    "axes.labelcolor": "#222222",
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": "#111111",
    "axes.titlelocation": "left",
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "hsd",
    "text.color": "#222222",
    "text.parse_math": False,  # prompts may hold dollar signs
    "text.usetex": False,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
"""How our figures look, whatever style the user has chosen for their own."""


_FONTS = (
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Yu Gothic",
    "Microsoft YaHei",
    "Malgun Gothic",
    "WenQuanYi Micro Hei",
    "Arial Unicode MS",
    "Noto Sans",
)
"""The first has Latin, Greek and Cyrillic, and comes with matplotlib; the others are for the rest, where installed."""


def style() -> dict[str, Any]:
    """:data:`STYLE` with the fonts that this machine has, for ``matplotlib.rc_context``."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    return {**STYLE, "font.family": [name for name in _FONTS if name in there]}


def matplotlib_for(extra: str) -> Any:
    """The module ``matplotlib``.

    Parameters
    ----------
    extra
        The extra of HSD that installs it, for the message.

    Raises
    ------
    Error
        If it is missing.
    """
    try:
        import matplotlib  # here, because it takes long to import
        import matplotlib.figure
    except ImportError as error:
        raise Error(f'plots need matplotlib ({error}): pip install "hsd-diffusion[{extra}]"') from None
    return matplotlib


def figure(width: float, height: float, extra: str = "plot") -> Any:
    """An empty ``matplotlib.figure.Figure`` with a canvas; width and height in inches.

    Raises
    ------
    Error
        If matplotlib is missing, see :func:`matplotlib_for`.
    """
    drawing = matplotlib_for(extra).figure.Figure(figsize=(width, height), dpi=100, layout="constrained")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(drawing)
    return drawing


def encoded(drawing: Any, kind: FigureFormat = "png", dpi: float | None = None) -> bytes:
    """The file of a figure. The same figure gives the same bytes: no date is written."""
    out = io.BytesIO()
    nothing = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[kind]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box is drawn instead
        drawing.savefig(out, format=kind, metadata=nothing, dpi="figure" if dpi is None else dpi)
    return out.getvalue()
