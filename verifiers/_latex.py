r"""One spelling for each LaTeX answer: notation that carries no meaning is removed, structure is split off.

Everything here works on short strings (see `_guard`) and is linear or nearly so.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_SYMBOLS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/",
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "±": r"\pm ", "∓": r"\mp ",
    "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "°": r"^\circ ", "≈": r"\approx ", "∫": r"\int ",
    "∑": r"\sum ", "∏": r"\prod ", "′": "'", "’": "'", "⟨": r"\langle ", "⟩": r"\rangle ", "θ": r"\theta ",
    "∅": r"\emptyset ", "€": "", "£": "", "¥": "",
}  # fmt: skip
_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

_ROW_END = "\ue000"
TEXT = r"\\(?:text|mbox|textrm|textnormal|textbf|textit|textsf|mathrm|mathbf|mathit|rm|operatorname)\b\s*"
_REPLACEMENTS: list[tuple[re.Pattern[str], str]] = [
    (re.compile(r"\\(?:color|textcolor)\s*\{[a-zA-Z]*\}|\\underline(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:bf|it|rm|sf|tt|em)(?![a-zA-Z])\s*(?=[^{\s])"), ""),
    (re.compile(r"(?<=\d)\\text\s*\{,\}(?=\d{3}(?!\d))"), ","),
    (re.compile(r"\\(?:nicefrac|sfrac)(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"^\\text\s*\{\s*(?:the\s)?(?:final\s)?answer\s?(?:is|:)?\s*\}\s*(?=\S)", re.IGNORECASE), ""),
    (re.compile(r"(?<=\d)\s?\^\s?\{?\s?(?:\\text\s?\{)?(?:st|nd|rd|th)\}{0,2}$"), ""),
    (re.compile(r"\\log_\s*\{?\s*e\s*\}?(?![a-zA-Z])"), r"\\ln "),
    (re.compile(r"\\\{\s*\\\}"), r"\\emptyset"),
    (re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\s*\.?"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|,\\!)(?![a-zA-Z])"), ""),
    (re.compile(r"(?<=\d)(?:\\[,;: ]|~|\{,\})\s*(?=\d{3}(?!\d))"), ","),
    (re.compile(r"(?<=\d),\\[!,;]\s*(?=\d)"), ","),
    (re.compile(r"\\!"), ""),
    (re.compile(r"\\mathrm\{([ei])\}"), r"\1"),
    (re.compile(r"\\[,;:>]|\\ |~|\\q?quad(?![a-zA-Z])|\\hspace\{[^{}]*\}|\\thinspace"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\lbrack(?![a-zA-Z])"), "["),
    (re.compile(r"\\rbrack(?![a-zA-Z])"), "]"),
    (re.compile(r"\\langle(?![a-zA-Z])"), "("),
    (re.compile(r"\\rangle(?![a-zA-Z])"), ")"),
    (re.compile(r"\\(?:leq|leqslant)(?![a-zA-Z])|<="), r"\\le "),
    (re.compile(r"\\(?:geq|geqslant)(?![a-zA-Z])|>="), r"\\ge "),
    (re.compile(r"\\neq(?![a-zA-Z])|!="), r"\\ne "),
    (re.compile(r"\\varnothing(?![a-zA-Z])"), r"\\emptyset"),
    (re.compile(r"\\(?:mid|vert|lvert|rvert)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\^\s*\{\s*\\(?:circ|degree)\s*\}|(?:\^\s*\\circ|\^?\s*\\degree)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:dots|ldots|cdots)(?![a-zA-Z])"), r"\\ldots "),
    (re.compile(r"\$\s*,\s*\$"), ", "),
    (re.compile(r"\\\$|\$"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\begin\{(?:matrix|array|smallmatrix|[bB]matrix)\}(?:\{[^{}]*\})?"), r"\\begin{pmatrix}"),
    (re.compile(r"\\end\{(?:matrix|array|smallmatrix|[bB]matrix)\}"), r"\\end{pmatrix}"),
    (re.compile(r"\[\s*(\\begin\{pmatrix\}.*?\\end\{pmatrix\})\s*\]", re.DOTALL), r"\1"),
    (re.compile(r"\(\s*(\\begin\{pmatrix\}.*?\\end\{pmatrix\})\s*\)", re.DOTALL), r"\1"),
    (re.compile(r"\\frac\s*(\d)\s*(\d)"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*(\d)\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"\\frac\s*(\{[^{}]*\})\s*(\d)"), r"\\frac\1{\2}"),
    (re.compile(r"\\sqrt\s*(\w)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])sqrt\s*\(([^()]*)\)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<![\\a-zA-Z])pi(?![a-zA-Z])"), r"\\pi"),
    (re.compile(r"(?<![\\a-zA-Z])(?:infty|infinity)(?![a-zA-Z])"), r"\\infty"),
    (re.compile(r"\*\*"), "^"),
    (re.compile(r"\^\s*\(([^()]*)\)"), r"^{\1}"),
    (re.compile(r"(?<![\d.])\.(?=\d)"), "0."),
    (re.compile(r"\s+"), " "),
]  # fmt: skip

_END = re.compile(r"(?<![.,;:!])\s*[.,;:]$")  # one full stop, and not `5..`
_REVERSED = re.compile(r"([\[\]])([^\[\]]+,[^\[\]]+)([\[\]])")  # ]1,2[ is (1,2)
_OPEN, _CLOSE = "([{", ")]}"
_AND_OR = re.compile(rf"\s*,?\s*(?:{TEXT}\{{\s*(?:and|or)\s*,?\s*\}}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*,?\s*")
_PLAIN_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,])")


def fold_unicode(text: str) -> str:
    """ASCII for what has one: full-width forms (NFKC), digits of every script, superscripts, operators."""
    if text.isascii():
        return text
    text = _INVISIBLE.sub("", text)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda m: "^{" + m.group().translate(_SUPERSCRIPTS) + "}", text)
    text = re.sub(r"√\s*(\w+|(?=[({]))", lambda m: rf"\sqrt{{{m[1]}}}" if m[1] else "sqrt", text)
    text = re.sub(r"[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m.group()), text)
    text = "".join(_SYMBOLS.get(character, character) for character in text)
    text = unicodedata.normalize("NFKC", text)
    text = "".join(_SYMBOLS.get(character, character) for character in text)
    return "".join(str(unicodedata.decimal(c)) if unicodedata.category(c) == "Nd" else c for c in text)


@lru_cache(maxsize=4096)
def tidy(text: str) -> str:
    r"""`text` without dollar signs, spacing, sizing and degree signs, with one spelling of each command."""
    text = fold_unicode(text).strip()
    if _PLAIN_NUMBER.fullmatch(text):  # what most answers are
        return text
    if text.startswith("**") and text.endswith("**"):  # Markdown's bold
        text = text.strip("*")
    text = re.sub(r"\\\\(?=(?:frac|sqrt|pi|left|right|text|cdot|times|infty)\b)", lambda _: "\\", text)
    while text.endswith("\\\\") and r"\begin" not in text:
        text = text.removesuffix("\\\\").rstrip()
    text = text.replace("\\\\", _ROW_END)  # so that `\\\\ 0` is not read as the space `\\ `
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    text = text.replace(_ROW_END, r" \\ ")
    text = _END.sub("", text.strip())
    while text.startswith("{") and matching(text, 0) == len(text) - 1:
        text = text[1:-1].strip()
    if match := _REVERSED.fullmatch(text):
        text = {"]": "(", "[": "["}[match[1]] + match[2] + {"[": ")", "]": "]"}[match[3]]
    return join_thousands(text)


def join_thousands(text: str) -> str:
    """`1,234,567` and `1 234 567` as one number: outside brackets, where every comma can be such a comma."""
    if re.fullmatch(r"[+-]?\d{1,3}(?: \d{3})+(?:\.\d+)?", text):
        return text.replace(" ", "")
    if "," not in text or any(bracket in text for bracket in "([") or r"\{" in text:
        return text
    groups = _THOUSANDS.findall(text)
    if sum(group.count(",") for group in groups) != text.count(","):
        return text
    return _THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)


@lru_cache(maxsize=4096)
def canonical(text: str) -> str:
    """What two spellings of the same characters share: tidied, no white space but between two digits."""
    text = tidy(text)
    if _PLAIN_NUMBER.fullmatch(text):
        return text
    text = re.sub(rf"{TEXT}\{{([^{{}}]*)\}}", r"\1", text)
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", text).replace(r"\cdot", r"*").replace(r"\times", "*")


def matching(text: str, start: int) -> int | None:
    """The index of the bracket that closes the one at `start`; half-open intervals may mix ( and [."""
    depth = 0
    for index in range(start, len(text)):
        if text[index] in _OPEN:
            depth += 1
        elif text[index] in _CLOSE:
            depth -= 1
            if depth == 0:
                return index
    return None


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts of `text` between matches of `separator` that lie outside all brackets."""
    parts, depth, start, index = [], 0, 0, 0
    while index < len(text):
        if depth == 0 and (match := separator.match(text, index)) and match.end() > index:
            parts.append(text[start:index].strip())
            start = index = match.end()
            continue
        depth += (text[index] in _OPEN) - (text[index] in _CLOSE)
        index += 1
    return [*parts, text[start:].strip()]


COMMA, SEMICOLON = re.compile(","), re.compile(";")
EQUALS = re.compile(r"(?<![<>!:\\])=+")
CUP = re.compile(r"\\cup(?![a-zA-Z])")


def split_list(text: str) -> tuple[str, list[str]]:
    r"""The brackets (`""`, `()`, `[)`, `{}`, ...) and elements of a list, tuple, set or interval.

    A text that is none has no brackets and itself as only element. "and" and "or" separate like commas.
    """
    brackets, inner = "", text
    if text[:1] in {"(", "["} and matching(text, 0) == len(text) - 1 and text[-1] in ")]":
        brackets, inner = text[0] + text[-1], text[1:-1]
    elif text.startswith(r"\{") and text.endswith(r"\}") and matching(text, 1) == len(text) - 1:
        brackets, inner = "{}", text[2:-2]
    inner = _AND_OR.sub(", ", inner)
    separator = SEMICOLON if len(split_top(inner, SEMICOLON)) > 1 else COMMA
    elements = split_top(inner, separator)
    if len(elements) == 1 and brackets != "{}":
        return ("", [inner.strip()]) if brackets == "()" else ("", [text])
    return brackets, elements
