r"""Units of measure after a value: they may be left out, but two known units must agree."""

from __future__ import annotations

import re
from functools import lru_cache

from verigym.verifiers._latex import _TEXT, fold_unicode

_FAMILIES = {
    "m": "m meter meters metre metres", "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yard yards", "mi": "mi mile miles",
    "g": "g gram grams", "kg": "kg kilogram kilograms", "mg": "mg milligram milligrams",
    "lb": "lb lbs pound pounds", "oz": "oz ounce ounces",
    "l": "l L liter liters litre litres", "ml": "ml mL milliliter milliliters", "gal": "gal gallon gallons",
    "s": "s sec secs second seconds", "min": "min mins minute minutes", "h": "h hr hrs hour hours",
    "day": "day days", "week": "week weeks", "month": "month months", "year": "yr yrs year years",
    "dollar": "dollar dollars USD usd", "cent": "cent cents", "degree": "degree degrees deg",
    "radian": "radian radians rad",
    "mph": "mph", "kmh": "kmh kph", "unit": "unit units", "percent": "percent percentage pct",
    "a.m.": "am a.m. AM A.M. a.m", "p.m.": "pm p.m. PM P.M. p.m",
}  # fmt: skip
_KNOWN = {word: family for family, words in _FAMILIES.items() for word in words.split()}
_POWER_WORDS = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_JOINING = {"per", "of", "the"}
# words with which a text takes its answer back or adds another one
_NOT_UNITS = {
    "and", "or", "not", "no", "is", "but", "if", "maybe", "perhaps", "any", "anything", "nothing", "none",
    "nan", "wrong", "false", "true", "either", "approximately", "about", "than", "less", "more", "zoo", "oo",
    "all",
}  # fmt: skip
_DEGREE_SIGN = re.compile(r"\$?(.*[\d}])\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*\$?", re.DOTALL)
_DOLLAR_SIGN = re.compile(r"\$?\\?\$\s*(\d[\d.,]*)")
_LATEX_UNIT = re.compile(rf"^(.*\S)\s*{_TEXT}\{{([^{{}}]*)\}}\s*(?:\^\s*\{{?\s*(\d)\s*\}}?)?$", re.DOTALL)
_COUNTED = re.compile(r"([-+]?[\d.,/]+) ([A-Za-z]+(?: [A-Za-z]+){0,3})")
_PLAIN_UNIT = re.compile(r"^(.*[\d})])\s*?(\s?)([A-Za-z][A-Za-z. /-]*?)\s*(?:\^\s*\{?\s*(\d)\s*\}?)?$", re.DOTALL)


@lru_cache(maxsize=4096)
def split_unit(text: str) -> tuple[str, str | None]:
    r"""The value and its unit (None without one): `5 \text{ cm}^2` is ("5", "cm^2"), `30%` ("30", "percent").

    In `\text{...}` any words are a unit but those that add or retract an answer ("or", "not"); in plain
    letters only known units are, so that `42abc` stays what it is.
    """
    if text.endswith("%"):
        return text[:-1].strip(), "percent"
    if match := _LATEX_UNIT.match(text):
        value, words, power = match.groups()
        if _is_value(value) and (unit := _unit_of(words, power, known_only=False)) is not None:
            return value, unit
    if match := _PLAIN_UNIT.match(text):
        value, gap, words, power = match.groups()
        known = all(len(word) > 1 for word in words.split()) or bool(gap)
        if known and _is_value(value) and (unit := _unit_of(words, power, known_only=True)):
            return value, unit
    return text, None


def drop_prompt_unit(answer: str, prompt: str) -> str:
    """`42 red apples` as 42, if the prompt speaks of red apples."""
    match = _COUNTED.fullmatch(answer.strip())
    if match is None or set(match[2].lower().split()) & _NOT_UNITS:
        return answer
    asked = prompt.lower()
    stems = [word.rstrip("s") for word in match[2].lower().split()]
    return match[1] if all(len(stem) > 1 and stem in asked for stem in stems) else answer


def spell_out_unit(text: str) -> str:
    r"""`90^\circ` as `90\text{ degrees}` and `\$5` as `5\text{ dollars}`, which `tidy` would take off."""
    text = fold_unicode(text).strip()
    if match := _DEGREE_SIGN.fullmatch(text):
        return rf"{match[1]}\text{{ degrees}}"
    if match := _DOLLAR_SIGN.fullmatch(text):
        return rf"{match[1]}\text{{ dollars}}"
    return text


def units_agree(gold: str | None, answer: str | None, *, required: bool = False) -> bool:
    """Whether the units are compatible: one is missing or unknown, or they are the same.

    If `required`, the answer must have the gold answer's unit, be it known or not; a percent sign is no unit.
    """
    if required and gold is not None and "percent" not in (gold, answer):
        return gold == answer
    if gold is None or answer is None or "?" in gold or "?" in answer:
        return True
    return gold == answer or "unit" in gold or "unit" in answer


def _is_value(text: str) -> bool:
    return bool(re.search(r"[\d}]$|\\pi$|\)$|[a-zA-Z]$", text.strip())) and bool(re.search(r"\d|\\", text))


def _unit_of(words: str, power: str | None, *, known_only: bool) -> str | None:
    """One name per unit, after a "?" if it is no known one; None if the words cannot be a unit."""
    parts = re.findall(r"[A-Za-z.]+|/", words)
    if not re.fullmatch(r"[A-Za-z.\s/,'()-]*", words) or {part.lower() for part in parts} & _NOT_UNITS:
        return None
    exponent, names = int(power or 1), []
    for part in parts:
        if part.lower() in _POWER_WORDS:
            exponent = _POWER_WORDS[part.lower()]
        elif part == "/" or part.lower() in _JOINING:
            names.append("/" if part in {"/", "per"} else "")
        else:
            known = _KNOWN.get(part) or _KNOWN.get(part.rstrip(".")) or _KNOWN.get(part.lower())
            names.append(known or f"?{part.lower().rstrip('s.')}")
    if not any(names):
        return None if known_only else "?"
    if known_only and (any("?" in name for name in names) or names == ["s"] or names == ["g"]):
        return None
    return "".join(names) + (f"^{exponent}" if exponent > 1 else "")
