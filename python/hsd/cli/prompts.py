"""``hsd prompts``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..prompts.files import PromptFile
from ..prompts.write import write_prompts
from ..work.text import shortened
from . import options as opt
from .console import print_result

_NAMED = 5
"""Prompts that a line of the report names."""


@opt.takes_prompts()
def prompts(
    source: opt.Source,
    model: Annotated[
        str | None,
        typer.Option(
            help="Also find prompts that this model cuts, and settings that it lacks.",
            show_default=False,
            autocompletion=opt.complete_model,
        ),
    ] = None,
    rows: Annotated[int, typer.Option(min=0, help="How many prompts to show.")] = 10,
    settings: opt.Settings = None,
    device: opt.Device = None,
    save: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the prompts to this file, as JSON lines.", show_default=False),
    ] = None,
    as_json: opt.Json = False,
) -> None:
    """Show which prompts would be used: how many, the first ones, what their columns are, repeats, and cut ones."""
    opt.check_of_model(settings, model)
    file = opt.read(source)
    adapter = None
    if model is not None:
        adapter = opt.load(model, device, settings)
        file = opt.fit(file, adapter)
    if save is not None:
        write_prompts(file, save)
    found = numbers(file, adapter)
    if not as_json:
        _print_table(file, rows)
    print_result("\n".join(report(file, found)), found)


def numbers(file: PromptFile, adapter: Any | None) -> dict[str, Any]:
    """What there is to know about the prompts, as JSON can hold it."""
    out: dict[str, Any] = {
        "prompts": len(file.prompts),
        "seeds": sum(seed is not None for seed in file.seeds),
        "settings": _named(Counter(name for own in file.settings for name in own)),
        "columns": {name: sum(value is not None for value in values) for name, values in file.columns.items()},
        "repeats": _repeats(file),
        "same_seeds": _same_seeds(file),
    }
    if adapter is not None:
        from ..models.truncation import cut_prompts  # here, because it imports torch

        cuts = cut_prompts(adapter, file.prompts)
        out["cut"] = [
            {
                "index": cut.index,
                "place": file.places[cut.index],
                "tokens": cut.tokens,
                "read": cut.limit,
                "lost": cut.lost,
            }
            for cut in cuts
        ]
    return out


def report(file: PromptFile, found: dict[str, Any]) -> list[str]:
    """The numbers as lines of text."""
    out = [f"{found['prompts']:,} prompts"]
    if found["seeds"]:
        out.append(f"seeds: {found['seeds']:,} given")
    for name, title in (("settings", "settings"), ("columns", "kept beside the images")):
        if found[name]:
            out.append(f"{title}: {', '.join(f'{column} ({count:,})' for column, count in found[name].items())}")
    repeats = found["repeats"]
    if repeats:
        more = sum(len(one["indices"]) - 1 for one in repeats)
        out.append(f"repeats of earlier prompts, each for one more image with its own seed: {more:,}")
        out += [_repeat(one, file) for one in repeats[:_NAMED]]
        out += [f"  and {len(repeats) - _NAMED:,} more"] if len(repeats) > _NAMED else []
    if same := found["same_seeds"]:
        has = "has" if same == 1 else "have"
        out.append(f"{same:,} of them {has} the seed of an earlier one too: without sharing they give its image again")
    if "cut" in found:
        cuts = found["cut"]
        out.append(f"{len(cuts):,} longer than the model reads" + (", which loses their end:" if cuts else ""))
        out += [
            f"  {cut['place']}: {cut['tokens']} tokens, {cut['read']} are read; lost: {shortened(cut['lost'])!r}"
            for cut in cuts[:_NAMED]
        ]
        out += [f"  and {len(cuts) - _NAMED:,} more"] if len(cuts) > _NAMED else []
    return out


def _repeat(one: dict[str, Any], file: PromptFile) -> str:
    places = "; ".join(file.places[i] for i in one["indices"][:3])
    more = ", ..." if len(one["indices"]) > 3 else ""
    return f"  {shortened(one['prompt'])!r}: {len(one['indices']):,} times ({places}{more})"


def _repeats(file: PromptFile) -> list[dict[str, Any]]:
    """Prompts that occur more than once, in the order of their first places."""
    places: dict[str, list[int]] = {}
    for i, prompt in enumerate(file.prompts):
        places.setdefault(prompt, []).append(i)
    return [{"prompt": prompt, "indices": found} for prompt, found in places.items() if len(found) > 1]


def _same_seeds(file: PromptFile) -> int:
    """How many prompts have the prompt, the given seed and the settings of an earlier one."""
    rows = zip(file.prompts, file.seeds, map(str, file.settings), strict=True)
    given = [row for row in rows if row[1] is not None]
    return len(given) - len(set(given))


def _named(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def _print_table(file: PromptFile, rows: int) -> None:
    """The first prompts with their seeds, settings and columns: as many of them as the terminal is wide."""
    from rich.console import Console  # here, because not all commands need it
    from rich.table import Table
    from rich.text import Text

    shown = range(min(rows, len(file.prompts)))
    if not shown:
        return
    console = Console(highlight=False)
    columns = {
        "": [str(i) for i in shown],
        "prompt": [" ".join(file.prompts[i].split()) for i in shown],
        **_cells(file, shown),
    }
    widths = {name: min(_WIDEST, max(map(len, (name, *cells)))) + _GAP for name, cells in columns.items()}
    room = console.width - widths.pop("") - min(_PROMPT, widths.pop("prompt"))
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for name, width in widths.items():
        room -= width
        if room < 0:
            columns.pop(name)
    for name in columns:
        most = console.width - sum(widths.get(other, 0) for other in columns) - len(columns[""][-1]) - 2 * _GAP
        table.add_column(
            Text(name),
            justify="left" if name else "right",
            max_width=most if name == "prompt" else _WIDEST,
            overflow="ellipsis",
            no_wrap=True,
        )
    for row in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, row))
    console.print(table)


_WIDEST, _PROMPT, _GAP = 20, 30, 2
"""Characters: of a column at most, of the prompts at least if there are more columns, and between columns."""


def _cells(file: PromptFile, shown: range) -> dict[str, list[str]]:
    """Seeds, settings and columns of some prompts, as text."""
    names = dict.fromkeys(name for i in shown for name in file.settings[i])
    values = {"seed": [file.seeds[i] for i in shown]} if any(file.seeds[i] is not None for i in shown) else {}
    values |= {name: [file.settings[i].get(name) for i in shown] for name in names}
    values |= {name: [own[i] for i in shown] for name, own in file.columns.items()}
    return {
        name: ["" if value is None else " ".join(str(value).split()) for value in own] for name, own in values.items()
    }
