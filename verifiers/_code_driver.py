"""Code that is appended to a submission, and runs in its process: calls a function and makes plain data of the result.

It decides nothing: whoever tampers with it gives another value, which is compared outside like any other.
"""

from __future__ import annotations

from typing import Any

from verigym.verifiers.sandbox import Call

VALUE, ITEMS, TRUTH = "_verigym_value", "_verigym_items", "_verigym_truth"
PRESENCE, NUMBER, TIMED = "_verigym_presence", "_verigym_number", "_verigym_timed"
MAX_SECONDS = 1.0
"""CPU time of a call by TIMED."""

# The submission may use names of Python's own for its variables, such as `list`: none is taken for granted.
SOURCE = f"""

import builtins as _verigym_python
import collections as _verigym_collections
import decimal as _verigym_decimal
import enum as _verigym_enum
import fractions as _verigym_fractions


def _verigym_is_plain(value):
    kind = _verigym_python.type(value)
    for name in ("bool", "int", "float", "complex", "str", "bytes", "list", "tuple", "set", "frozenset", "dict"):
        if kind is _verigym_python.getattr(_verigym_python, name):
            return True
    return value is None


def _verigym_is_number(value):
    kind = _verigym_python.type(value)
    return kind is _verigym_fractions.Fraction or (kind is _verigym_decimal.Decimal and value.is_finite())


def _verigym_plain(value):
    from builtins import dict, float, frozenset, int, isinstance, issubclass, list, map, set, str, tuple, type
    kind, library = type(value), _verigym_collections
    if kind is int or kind is str or kind is float:
        return value
    if kind is dict or kind is library.Counter or kind is library.OrderedDict or kind is library.defaultdict:
        return {{_verigym_plain(key): _verigym_plain(part) for key, part in value.items()}}
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        return kind(map(_verigym_plain, value))
    if issubclass(kind, tuple) and "_fields" in kind.__dict__:
        return tuple(map(_verigym_plain, value))
    if kind is type({{}}.keys()):
        return set(map(_verigym_plain, value))
    if _verigym_is_number(value) and -(10**300) < value < 10**300:
        return int(value) if int(value) == value else float(value) if float(value) == value else value
    if isinstance(kind, _verigym_enum.EnumMeta) and issubclass(kind, (int, str, float)):
        return value.value
    return value


def {VALUE}(_verigym_name, /, *args, **kwargs):
    return _verigym_plain(_verigym_python.eval(_verigym_name)(*args, **kwargs))


def {ITEMS}(_verigym_name, /, *args, **kwargs):
    value = _verigym_plain(_verigym_python.eval(_verigym_name)(*args, **kwargs))
    return value if _verigym_is_plain(value) else _verigym_plain(_verigym_python.list(value))


def {TRUTH}(_verigym_name, /, *args, **kwargs):
    value = _verigym_plain(_verigym_python.eval(_verigym_name)(*args, **kwargs))
    return value if _verigym_is_plain(value) else _verigym_python.bool(value)


def {NUMBER}(_verigym_name, /, *args, **kwargs):
    value = _verigym_plain(_verigym_python.eval(_verigym_name)(*args, **kwargs))
    return _verigym_python.float(value) if _verigym_is_number(value) else value


def {PRESENCE}(_verigym_name, /, *args, **kwargs):
    value = _verigym_python.eval(_verigym_name)(*args, **kwargs)
    return value if _verigym_python.type(value) is _verigym_python.bool else value is not None
"""

# For trusted code only: it could undo the alarm.
TIMED_SOURCE = f"""

def {TIMED}(_verigym_function, _verigym_name, /, *args, **kwargs):
    import signal
    def late(number, frame):
        raise TimeoutError("too slow")
    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, {MAX_SECONDS})
    try:
        return globals()[_verigym_function](_verigym_name, *args, **kwargs)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
"""


def call(function: str, args: tuple[Any, ...], kwargs: Any, driver: str = VALUE) -> Call:
    """The call of `function` (a name, or an expression that gives a function) by way of a driver."""
    return Call(driver, (function, *args), kwargs)
