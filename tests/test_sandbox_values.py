"""Plain values as text: what crosses the border comes back as it was, and no text does harm."""

import contextlib
import json
import math
import random
import sys

import pytest

from verigym.verifiers.sandbox import values
from verigym.verifiers.sandbox.values import NotPlain, from_text, to_text


def draw(randomness, depth=0):
    """A random plain value; hashable at the second of its levels."""
    kinds = ["int", "big", "float", "text", "bytes", "complex", "constant"]
    kind = randomness.choice([*kinds, "list", "tuple", "dict", "set", "frozenset"] if depth < 3 else kinds)
    scalars = {
        "int": lambda: randomness.randint(-(2**63), 2**63 - 1),
        "big": lambda: randomness.choice((-1, 1)) * randomness.getrandbits(randomness.randint(60, 10_000)),
        "float": lambda: randomness.uniform(-1, 1) * 10 ** randomness.randint(-300, 300),
        "text": lambda: "".join(chr(randomness.choice((0, 34, 92, 97, 233, 0x1F600))) for _ in range(5)),
        "bytes": lambda: randomness.randbytes(5),
        "complex": lambda: complex(randomness.random(), -0.0),
        "constant": lambda: randomness.choice((None, True, False)),
    }
    if kind in scalars:
        return scalars[kind]()
    size = randomness.randint(0, 4)
    if kind == "list":
        return [draw(randomness, depth + 1) for _ in range(size)]
    if kind == "tuple":
        return tuple(draw(randomness, depth + 1) for _ in range(size))
    hashable = [draw(randomness, 3) for _ in range(size)]
    if kind == "dict":
        return {key: draw(randomness, depth + 1) for key in hashable}
    return (set if kind == "set" else frozenset)(hashable)


def shape(value):
    """The value with the type of every part written out."""
    name = type(value).__name__
    if name in ("list", "tuple"):
        return name, [shape(item) for item in value]
    if name == "dict":
        return name, [(shape(key), shape(item)) for key, item in value.items()]
    if name in ("set", "frozenset"):
        return name, sorted((shape(item) for item in value), key=str)
    return name, value if name in ("int", "bytes", "str") else repr(value)


def test_random_values_come_back_as_they_were():
    randomness = random.Random(7)
    for _ in range(500):
        value = draw(randomness)
        assert shape(from_text(to_text(value))) == shape(value)


def test_long_lists_keep_the_types_of_their_elements():
    for value in (
        [1] * 1000 + [True],
        [1.0] * 1000 + [1],
        [2**63 - 1, -(2**63)],
        [2**63],
        ["a", "\u00e9"],
        [None, True],
    ):
        assert shape(from_text(to_text(value))) == shape(value)


def test_infinite_numbers_are_decoded_only_where_they_are_allowed():
    text = to_text([math.inf, -math.inf, math.nan])
    assert [str(number) for number in from_text(text, allow_nonfinite=True)] == ["inf", "-inf", "nan"]
    with pytest.raises(NotPlain, match="not a finite number"):
        from_text(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "nan", "NaN", "[Infinity]", "1e999", "[1e999]", "{}", '{"a": 1}', '{"int": 1}', '{"int": "x"}'),
        *('{"int": "1", "int": "2"}', '{"tuple": {"list": []}}', '{"set": [[]]}', '{"dict": [1]}', '{"dict": [[1]]}'),
        *(
            '{"dict": [[1, 2], [true, 3]]}',
            '{"set": [1, 1.0]}',
            '{"complex": [1, 2]}',
            '{"complex": [1.0]}',
            '"\\ud800"',
        ),
        *('{"bytes": "0"}', '{"float": "1.5"}', "[1", '"', "1" * 5000, "[" * 500_000, '{"tuple": [' * 100_000),
        *("[" * 33 + "]" * 33, '{"tuple": [' * 33 + "]}" * 33, '["' + "[" * 900_000 + '"' + "]" * 200),
        *("x" * (1 << 20 | 1), "\u00e9", "\x00"),
    ],
    ids=lambda text: text[:20],
)
def test_a_text_that_is_no_value_is_refused(text):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000_000)  # a trainer may have raised it: the parser must not overflow its stack
    try:
        with pytest.raises(NotPlain):
            from_text(text)
        with pytest.raises(NotPlain):
            from_text(text.encode())
    finally:
        sys.setrecursionlimit(limit)


def test_random_bytes_and_broken_texts_raise_nothing_else():
    randomness, read = random.Random(3), 0
    for _ in range(2000):
        text = bytearray(to_text(draw(randomness)).encode())
        for _ in range(3):
            if text:
                text[randomness.randrange(len(text))] = randomness.choice(b'[]{}",:0e.\\x\xff')
        with contextlib.suppress(NotPlain):
            from_text(bytes(text))
            read += 1
    assert 0 < read < 1000  # most are broken, and some are still texts of values


@pytest.mark.parametrize("kind", [set, dict.fromkeys])
def test_keys_chosen_to_collide_are_refused(kind):
    prime = 2**61 - 1  # the hash of an integer is its remainder
    assert from_text(to_text(kind(range(20_000)))) == kind(range(20_000))
    with pytest.raises(NotPlain, match="colliding"):
        from_text(to_text(kind([number * prime for number in range(3000)])))


def test_nesting_up_to_the_limit_passes():
    value = []
    for _ in range(values.MAX_DEPTH - 1):
        value = [value]
    assert from_text(to_text(value)) == value
    with pytest.raises(NotPlain, match="deeper"):
        to_text([value])


def test_subclasses_are_named_and_refused():
    class Sly(int):
        __class__ = int

    with pytest.raises(NotPlain, match="Sly"):
        to_text({"a": [Sly(1)]})


def test_a_text_is_ascii_json():
    assert json.loads(to_text(("\u00e9", {1: b"\x00"}))) == {"tuple": ["\u00e9", {"dict": [[1, {"bytes": "00"}]]}]}
    assert to_text("\u00e9").isascii()
