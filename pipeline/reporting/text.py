"""Text of models and data made inert: what a reader sees is what is there, and nothing in it acts."""

from __future__ import annotations

import re
import unicodedata

from markupsafe import Markup

KEPT = {"\n", "\t", "\u200d"}  # line breaks, tabs and the joiner inside emoji
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # Unicode categories: controls, format and bidi marks, lone surrogates
CONTROL_PICTURES = 0x2400
MARKDOWN = re.compile(
    r"([\\`*<>|~&$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|\](?=[(\[:])|:(?=//)|(?<=www)\.)", re.IGNORECASE
)


def inert(text: str) -> str:
    """Return ``text`` with every control, format, bidi and surrogate character shown as a visible name."""
    return "".join(_shown(char) for char in text.replace("\r\n", "\n"))


def _shown(char: str) -> str:
    if char in KEPT or unicodedata.category(char) not in HIDDEN:
        return char
    code = ord(char)
    return chr(CONTROL_PICTURES + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def markdown(value: object) -> str:
    """Return a value as Markdown text for a table cell or a line: inert, on one line, with no active character."""
    if isinstance(value, Markup):
        return str(value)
    escaped = MARKDOWN.sub(r"\\\1", inert(str(value)).strip())
    return re.sub(r"\s*\n\s*", "<br>", escaped).replace("\t", " ")


def code(value: object) -> Markup:
    """Return a name as a Markdown code span that fits a table cell."""
    name = " ".join(inert(str(value)).replace("`", "'").split())
    return Markup("`" + name.replace("|", "\\|") + "`")
