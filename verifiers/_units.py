r"""Units of measure after a value: they may be left out, but two known units must agree.

A tail in `\text{}` or `\mathrm{}` is a unit only if each word of it is a known unit, a common thing that one counts,
or a word of the prompt or of the gold answer. Never a unit: number words and scales (`5\text{ million}`), words of
arithmetic (`3\text{ squared}`), words that add or retract an answer, several clauses, single letters such as
`4\mathrm{i}`.
"""

from __future__ import annotations

import re
from functools import lru_cache

from verigym.verifiers._latex import TEXT, fold_unicode

_FAMILIES = {
    "m": "m meter meters metre metres", "cm": "cm centimeter centimeters centimetre centimetres",
    "mm": "mm millimeter millimeters millimetre millimetres", "nm": "nm nanometer nanometers",
    "km": "km kilometer kilometers kilometre kilometres",
    "in": "in inch inches", "ft": "ft foot feet", "yd": "yd yds yard yards", "mi": "mi mile miles",
    "g": "g gm gram grams", "kg": "kg kgs kilogram kilograms", "mg": "mg milligram milligrams",
    "t": "ton tons tonne tonnes", "lb": "lb lbs pound pounds", "oz": "oz ounce ounces",
    "l": "l L liter liters litre litres", "ml": "ml mL milliliter milliliters millilitre millilitres",
    "gal": "gal gallon gallons", "qt": "qt quart quarts", "pt": "pt pint pints", "cup": "cup cups",
    "tbsp": "tbsp tablespoon tablespoons", "tsp": "tsp teaspoon teaspoons", "acre": "acre acres",
    "ha": "ha hectare hectares", "s": "s sec secs second seconds", "ms": "ms millisecond milliseconds",
    "min": "min mins minute minutes", "h": "h hr hrs hour hours", "day": "d day days", "week": "wk week weeks",
    "month": "month months", "year": "yr yrs year years", "decade": "decade decades", "century": "century centuries",
    "dollar": "dollar dollars USD usd buck bucks", "cent": "cent cents", "euro": "euro euros EUR", "yen": "yen",
    "rupee": "rupee rupees Rs", "penny": "penny pennies pence", "nickel": "nickel nickels", "dime": "dime dimes",
    "degree": "degree degrees deg", "radian": "radian radians rad", "celsius": "celsius Celsius",
    "fahrenheit": "fahrenheit Fahrenheit", "mph": "mph", "kmh": "kmh kph", "rpm": "rpm", "unit": "unit units",
    "N": "N newton newtons", "J": "J joule joules", "kJ": "kJ", "W": "W watt watts", "kW": "kW kilowatt kilowatts",
    "V": "V volt volts", "Pa": "Pa pascal pascals", "Hz": "Hz hertz", "kHz": "kHz", "mol": "mol mole moles",
    "ohm": "ohm ohms", "amp": "amp amps ampere amperes", "cal": "calorie calories", "bit": "bit bits",
    "byte": "byte bytes", "percent": "percent percentage pct", "knot": "knots",
    "a.m.": "am a.m. AM A.M. a.m", "p.m.": "pm p.m. PM P.M. p.m",
}  # fmt: skip
_KNOWN = {word: family for family, words in _FAMILIES.items() for word in words.split()}
_COUNTED_THINGS = """
    angle apple arrangement bag ball banana book bottle box boy bus candy card cat chair chicken child children choice
    circle class coin color combination committee cookie cow cube cup diagonal digit divisor dog edge egg element error
    event face factor fish flower function game girl graph group handshake horse house integer intersection kid letter
    line man marble match meal member men method mouse multiple number orange outcome page pair path pattern peach pear
    pen pencil people permutation person phone piece pig player point pizza plane plate problem question rectangle root
    room route row seat segment sequence set shape sheet shirt side slice solution sock square state stone step sticker
    stick student subset team term ticket time toy train tree triangle trip turn value vertex vertices way woman women
    word worker zero
"""
_POWER_WORDS = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_JOINING = {"per", "of", "the"}
# words with which a text changes its number, takes its answer back or adds another one
_NUMBER_WORDS = """
    one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
    nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million billion trillion dozen gross
    score half halves third thirds fourth fifth sixth seventh eighth ninth tenth hundredth thousandth millionth quarter
    double triple twice thrice first nought nil couple pi
"""
_OTHER_WORDS = """
    and or not no is but if maybe perhaps any anything nothing none nan wrong false true either approximately about than
    less more zoo oo all plus minus over by divided multiplied squared cubed factorial choose mod modulo base power
    powered raise raised to root negative positive opposite reciprocal inverse prime ish so too many few much at least
    most minimum maximum min. max except unless without with through until between from below above under beyond up down
    only just also else instead rather other another different both neither nor because since when while was were are be
    been being has have had do does did will would could should can may might must it its this that these those there
    then thus hence therefore as in on for into off out a an log ln sin cos tan sqrt exp sum product remainder percent
    approx around nearly almost exactly roughly close infinity infinite undefined imaginary i e
"""
_COUNTABLE = frozenset(_COUNTED_THINGS.split())
_NOT_UNITS = frozenset((_NUMBER_WORDS + _OTHER_WORDS).split()) - {"in", "percent"}
MAX_WORDS, MAX_PROMPT_LENGTH = 6, 20_000

_DEGREE_SIGN = re.compile(r"\$?(.*[\d}])\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*\$?", re.DOTALL)
_DOLLAR_SIGN = re.compile(r"\$?\\?\$\s*(\d[\d.,]*)")
_LATEX_UNIT = re.compile(rf"^(.*\S)\s*{TEXT}\{{([^{{}}]*)\}}\s*(?:\^\s*\{{?\s*(\d)\s*\}}?)?$", re.DOTALL)
_QUOTIENT = re.compile(rf"\\frac\s*\{{\s*{TEXT}\{{([^{{}}]*)\}}\s*\}}\s*\{{\s*{TEXT}\{{([^{{}}]*)\}}([\d^]*)\s*\}}$")
_WORDS = re.compile(r"[A-Za-z.\s/'()^\d-]*")
_COUNTED = re.compile(r"([-+]?[\d.,/]+) ([A-Za-z]+(?: [A-Za-z]+){0,3})")
_PLAIN_UNIT = re.compile(r"^(.*[\d})])\s*?(\s?)([A-Za-z][A-Za-z. /-]*?)\s*(?:\^\s*\{?\s*(\d)\s*\}?)?$", re.DOTALL)


@lru_cache(maxsize=4096)
def split_unit(text: str) -> tuple[str, str | None]:
    r"""The value and its unit (None without one): `5 \text{ cm}^2` is ("5", "cm^2"), `30%` ("30", "percent").

    In plain letters only known units of measure are units, so that `42abc` stays what it is; in `\text{...}` a word
    that is no known unit has a "?" in front: `units_agree` looks for it in the prompt.
    """
    if text.endswith("%"):
        return text[:-1].strip(), "percent"
    text = _QUOTIENT.sub(r"\\text{\1/\2\3}", text)
    if match := _LATEX_UNIT.match(text):
        value, words, power = match.groups()
        if not words.strip(" ."):
            return value, None
        if _is_value(value) and (unit := _unit_of(words, power)) is not None:
            return value, unit
    if match := _PLAIN_UNIT.match(text):
        value, gap, words, power = match.groups()
        known = all(len(word) > 1 for word in words.split()) or bool(gap)
        if known and _is_value(value) and (unit := _unit_of(words, power)) and _is_measure(unit):
            return value, unit
    return text, None


def drop_prompt_unit(answer: str, prompt: str) -> str:
    """`42 red apples` as 42, if the prompt speaks of red apples."""
    match = _COUNTED.fullmatch(answer.strip())
    if match is None:
        return answer
    words = match[2].split()
    if any(len(word) < 3 or _is_no_unit(word) for word in words):
        return answer
    return match[1] if {_stem(word) for word in words} <= _stems(prompt) else answer


def spell_out_unit(text: str) -> str:
    r"""`90^\circ` as `90\text{ degrees}` and `\$5` as `5\text{ dollars}`, which `tidy` would take off."""
    text = fold_unicode(text).strip()
    if match := _DEGREE_SIGN.fullmatch(text):
        return rf"{match[1]}\text{{ degrees}}"
    if match := _DOLLAR_SIGN.fullmatch(text):
        return rf"{match[1]}\text{{ dollars}}"
    return text


def units_agree(gold: str | None, answer: str | None, prompt: str = "", *, required: bool = False) -> bool:
    """Whether the units are compatible: one is missing, or they are the same.

    A word of the answer's that is no known unit must be one of the gold answer's or the prompt's. If `required`, the
    answer must have the gold answer's unit, be it known or not; a percent sign is no unit.
    """
    if required and gold is not None and "percent" not in (gold, answer):
        return gold == answer
    if answer is None:
        return True
    strange = {name for name in answer.split() if name.startswith("?")}
    if strange and not {name[1:] for name in strange - set((gold or "").split())} <= _stems(prompt):
        return False
    return gold is None or "?" in gold or bool(strange) or gold == answer or "unit" in gold or "unit" in answer


def _is_value(text: str) -> bool:
    return bool(re.search(r"[\d}]$|\\pi$|\)$|[a-zA-Z]$", text.strip())) and bool(re.search(r"\d|\\", text))


def _is_measure(unit: str) -> bool:
    return not any(name[0] in "?#" for name in unit.split()) and unit not in {"s", "g", "N", "J", "W", "V", "day"}


def _is_no_unit(word: str) -> bool:
    return word.lower().strip(".") in _NOT_UNITS or word.lower().rstrip("s.") in _NOT_UNITS


def _unit_of(words: str, power: str | None) -> str | None:
    """One name per unit, after a "#" if it is a thing one counts, a "?" if it is not known; None if it is no unit."""
    words = words.strip().removeprefix("(").removesuffix(")")
    parts = re.findall(r"[A-Za-z.]+|/|\^\s*\d", words)
    if not _WORDS.fullmatch(words) or not 0 < len(parts) <= MAX_WORDS:
        return None
    exponent, names = int(power or 1), []
    for part in parts:
        if part.lower() in _POWER_WORDS and len(parts) > 1:
            exponent = _POWER_WORDS[part.lower()]
        elif part[0] == "^":
            exponent = int(part[1:])
        elif part == "/" or part.lower() in _JOINING:
            names += ["/"] if part in {"/", "per"} else []
        elif (name := _name(part)) is not None:
            names.append(name)
        else:
            return None
    return " ".join(names) + (f"^{exponent}" if exponent > 1 else "") if set(names) - {"/"} else None


def _name(word: str) -> str | None:
    known = _KNOWN.get(word) or _KNOWN.get(word.rstrip(".")) or _KNOWN.get(word.lower())
    if known and (len(word) > 1 or word in _KNOWN):
        return known
    if len(word.strip(".")) < 2 or _is_no_unit(word):
        return None
    stem = _stem(word)
    return f"#{stem}" if stem in _COUNTABLE_STEMS else f"?{stem}"


def _stem(word: str) -> str:
    """What singular and plural share."""
    stem = word.lower().strip(".").rstrip("s").rstrip("e")
    return stem[:-1] + "i" if stem.endswith("y") else stem


_COUNTABLE_STEMS = frozenset(map(_stem, _COUNTABLE))


@lru_cache(maxsize=512)
def _stems(prompt: str) -> frozenset[str]:
    return frozenset(map(_stem, re.findall(r"[A-Za-z]{2,}", prompt[:MAX_PROMPT_LENGTH])))
