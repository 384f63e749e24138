"""What the characters of a prompt say about it: whether anything is to be seen, and what cannot be meant."""

from __future__ import annotations

import re
import unicodedata

_PLAIN = re.compile("[!-~]")
"""Any visible character of ASCII: most prompts have one, and this is quick."""

_BLANK_LETTERS = frozenset("\u115f\u1160\u3164\uffa0\u2800\u034f\u180e") | {
    chr(code) for block in (range(0xFE00, 0xFE10), range(0xE0100, 0xE01F0)) for code in block
}
"""Letters, symbols and marks that show nothing: Hangul fillers, Braille's blank, variation selectors."""

_UNUSABLE = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\ud800-\udfff]")
"""Control characters that are no white space, and halves of surrogate pairs."""

_SEPARATORS = re.compile("[\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")
"""White space that some editors show as the end of a line and others do not."""

MARK = "\ufeff"
"""The byte order mark, as a character."""


def is_blank(text: str) -> bool:
    """Whether nothing of ``text`` can be seen: it is empty, or has white space and invisible characters only."""
    return _PLAIN.search(text) is None and not any(map(_shows, text))


def _shows(character: str) -> bool:
    """Not a space, a separator, a control or format character (zero-width, soft hyphen, tags), or another blank."""
    return unicodedata.category(character) not in ("Cc", "Cf", "Zs", "Zl", "Zp") and character not in _BLANK_LETTERS


def unusable(text: str) -> str | None:
    """Why ``text`` cannot be meant as it is: "has ... at character i: what to do". None if there is nothing."""
    found = _UNUSABLE.search(text)
    if found is None:
        return None
    code, at = ord(found[0]), found.start()
    if 0xD800 <= code <= 0xDFFF:
        return f"has a lone surrogate at character {at}, which is not valid text: decode it again"
    if code == 0:
        return f"has a NUL at character {at}, which no text contains: decode it again, or remove it"
    return f"has the control character U+{code:04X} at character {at}: decode it again, or remove it"


def not_one_line(text: str) -> str | None:
    """Why ``text``, a line of a text file, may have been meant as several. None if it cannot have been."""
    if MARK in text:
        return (
            f"has a byte order mark at character {text.index(MARK)}: two files were joined there without a line break; "
            "put one in its place"
        )
    found = _SEPARATORS.search(text)
    if found is None:
        return None
    return (
        f"has the separator U+{ord(found[0]):04X} at character {found.start()}, which some editors show as a line "
        "break: put a line break or a space in its place"
    )
