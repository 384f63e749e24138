"""What other programs read as instructions, and a model reads as words: found in prompts, and said once."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WEIGHT = r"-?\d*\.?\d+"

_KINDS: dict[str, re.Pattern[str]] = {
    "comments (#, //)": re.compile(r"^(?:#(?!\d|[0-9a-fA-F]{6}\b)|//)"),
    "weights such as (cat:1.2) or ((cat))": re.compile(
        rf"\([^()]+:\s*{_WEIGHT}\s*\)|\(\([^()]*\)\)|\[\[[^\[\]]*\]\]|\)\+\+?(?!\w)|\)\d\.\d|\w::{_WEIGHT}"
    ),
    "changes such as [cat:dog:0.5] or [cat|dog]": re.compile(
        rf"\[[^\[\]]*:[^\[\]]*:\s*{_WEIGHT}\s*\]|\[[^\[\]|]+(?:\|[^\[\]|]+)+\]"
    ),
    "choices such as {a|b}": re.compile(r"\{[^{}]*\|[^{}]*\}"),
    "placeholders such as {animal}": re.compile(r"\{\s*\w+\s*\}|\$\{\w+\}"),
    "wildcards such as __animal__": re.compile(r"(?<!\w)__[\w*][\w*/. -]*?__(?!\w)"),
    "networks such as <lora:name:1>": re.compile(
        r"(?i)<\s*(?:lora|lyco|locon|hypernet|embedding)\b[^<>]*>|\bembedding:\w"
    ),
    "BREAK or AND": re.compile(r"(?=.*[a-z])(?:.*\s)?(?:BREAK|AND)(?:\s|,|$)"),
    "options such as --ar 16:9": re.compile(
        r"(?:^|\s)--(?:ar|aspect|v|version|style|stylize|s|q|quality|no|seed|chaos|c|niji|iw|tile|n|w|h|steps|cfg)\b"
    ),
    "Negative prompt: or Steps:": re.compile(r"^(?:negative prompt\s*:|steps\s*:\s*\d+\s*,)", re.IGNORECASE),
    "lost characters (U+FFFD)": re.compile("\ufffd"),
}
"""Syntax of other programs, by how a message calls it. Each has to be rare in plain text: (a cat), #1 and C++ are."""

_ANY = re.compile(r"[#(){}\[\]<\ufffd]|//|::|__|--|BREAK|AND|embedding:|^\w+(?: prompt)?\s*:")
"""What every one of them has, to pass over most prompts quickly."""

_HEADING = re.compile(r"(?i)[\"']?(?:prompts?|captions?|text)[\"']?")
_NUMBERED = re.compile(r"(\d+)[.):]\s")
_BULLET = re.compile(r"[-*\u2022]\s")
_QUOTED = re.compile(r"""(["']).*\1,?""")


def hint_for(prompts: Sequence[str], places: Sequence[str]) -> str | None:
    """One message about all of what is taken literally in ``prompts``, each with its first place; None for nothing.

    Parameters
    ----------
    places
        Where each prompt stands, for the message: "prompts.txt, line 3".
    """
    maybe = [(i, prompt) for i, prompt in enumerate(prompts) if _ANY.search(prompt)]
    found = [
        (kind, hits)
        for kind, pattern in _KINDS.items()
        if (hits := [i for i, prompt in maybe if pattern.search(prompt)])
    ]
    found += _of_all(prompts)
    if not found:
        return None
    parts = [f"{kind} in {len(hits):,} (first: {places[hits[0]]})" for kind, hits in found]
    expanded = any(kind.startswith(("choices", "placeholders", "wildcards")) for kind, _ in found)
    expand = ", or expand choices and wildcards with --template @FILE (hsd.expand_template)" if expanded else ""
    return (
        f"some prompts hold what models do not know, and read as plain words: {'; '.join(parts)}. Remove it if that is "
        f"not what you want{expand}"
    )


def _of_all(prompts: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Marks of a list, which only all prompts together show."""
    every, out = list(range(len(prompts))), []
    if _HEADING.fullmatch(prompts[0]) and len(prompts) > 1:
        out.append((f"the heading {prompts[0]}", [0]))
    if len(prompts) > 1:
        numbers = [found[1] for prompt in prompts if (found := _NUMBERED.match(prompt))]
        if numbers == [str(i + 1) for i in every]:
            out.append(("numbers (1.)", every))
        if all(map(_BULLET.match, prompts)):
            out.append(("marks (-)", every))
        if all(map(_QUOTED.fullmatch, prompts)):
            out.append(("quotes", every))
    return out
