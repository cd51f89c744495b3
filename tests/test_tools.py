"""Tools: schemas and validation; the canonical syntax of a turn; the calculator's grammar."""

import json
import time
import typing
from typing import Any, Literal

import jsonschema
import pytest

from verigym.tasks.calculator import calculator
from verigym.tasks.canonical import (
    MAX_CALL_LENGTH,
    MAX_CALLS,
    MAX_DEPTH,
    ToolCall,
    Turn,
    escape,
    parse_turn,
    render_call,
)
from verigym.tasks.worlds import Tool

CALL = '<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'
F = ToolCall("f", {"x": 1})


def book(
    room: str,
    guests: int,
    price: float = 1.5,
    late: bool = False,
    kind: Literal["single", "double"] = "single",
    names: list[str] | None = None,
    extras: dict[str, int] | None = None,
) -> dict[str, Any]:
    """Book a room.

    Takes effect at once.

    Args:
        room: the room's number,
            guests: as they read it on its door
        kind: what beds: one or two
        late (bool): after 22:00

    Returns:
        room: not a parameter description
    """
    if guests > 9:
        raise ValueError("at most 9 guests")
    return {"room": room, "guests": guests, "late": late, "names": names, "extras": extras, "prix": "€"}


BOOK = Tool.from_function(book)


def test_a_schema_is_derived_from_hints_defaults_and_docstring() -> None:
    assert BOOK.schema == {
        "type": "function",
        "function": {
            "name": "book",
            "description": "Book a room.\n\nTakes effect at once.",
            "parameters": {
                "type": "object",
                "properties": {
                    "room": {
                        "type": "string",
                        "description": "the room's number, guests: as they read it on its door",
                    },
                    "guests": {"type": "integer"},
                    "price": {"type": "number", "default": 1.5},
                    "late": {"type": "boolean", "default": False, "description": "after 22:00"},
                    "kind": {
                        "type": "string",
                        "enum": ["single", "double"],
                        "default": "single",
                        "description": "what beds: one or two",
                    },
                    "names": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]},
                    "extras": {
                        "anyOf": [
                            {"type": "object", "additionalProperties": {"type": "integer"}},
                            {"type": "null"},
                        ]
                    },
                },
                "required": ["room", "guests"],
                "additionalProperties": False,
            },
        },
    }
    jsonschema.Draft202012Validator.check_schema(dict(BOOK.parameters))
    assert json.loads(json.dumps(BOOK.schema)) == BOOK.schema


def test_a_good_call_gives_its_result_as_text() -> None:
    answer = BOOK.call({"room": "12", "guests": 2, "price": 3, "names": ["A"], "extras": {"cot": 1}})
    assert json.loads(answer) == book("12", 2, names=["A"], extras={"cot": 1})
    assert "€" in answer
    assert Tool.from_function(calculator).call({"expression": "37 * 24"}) == "888"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"guests": 2}, "the argument 'room' of book is missing; expected string"),
        ({"room": "1", "guests": 2, "romm": 1}, "no argument of book named 'romm'; did you mean 'room'?"),
        ({"room": "1", "guests": True}, "the argument 'guests' of book must be integer, not True"),
        ({"room": "1", "guests": 1.0}, "the argument 'guests' of book must be integer, not 1.0"),
        ({"room": "1", "guests": "2"}, "the argument 'guests' of book must be integer, not '2'"),
        ({"room": 1, "guests": 2}, "the argument 'room' of book must be string, not 1"),
        ({"room": "1", "guests": 2, "price": True}, "the argument 'price' of book must be number, not True"),
        ({"room": "1", "guests": 2, "late": 1}, "the argument 'late' of book must be boolean, not 1"),
        (
            {"room": "1", "guests": 2, "kind": "twin"},
            "the argument 'kind' of book must be one of \"single\", \"double\", not 'twin'",
        ),
        (
            {"room": "1", "guests": 2, "names": ["a", 3]},
            "the argument 'names' of book must be array of string or null, not ['a', 3]",
        ),
        ({"room": "1", "guests": 10}, "at most 9 guests"),
        ([1], "the arguments of book must be an object, not [1]"),
        (None, "the arguments of book must be an object, not None"),
    ],
)
def test_a_bad_argument_is_answered_with_what_is_wrong(arguments: Any, message: str) -> None:
    assert BOOK.call(arguments) == f"error: {message}"


def test_a_huge_bad_argument_is_not_echoed_whole() -> None:
    assert len(BOOK.call({"room": "1", "guests": "9" * 10**6})) < 200
    assert len(BOOK.call({"room": "1", "guests": 1, "names": [[["x" * 999] * 99] * 99]})) < 500
    assert len(BOOK.call({"room": "1", "guests": 1, "n" * 10**5: 1})) < 500


def test_a_place_inside_an_argument_is_named() -> None:
    def add(numbers: list[list[int]]) -> int:
        """Add up."""
        return sum(map(sum, numbers))

    tool = Tool.from_function(add)
    assert tool.call({"numbers": [[1, 2], [3]]}) == "6"
    assert tool.call({"numbers": [[1], [2, "3"]]}) == (
        "error: the argument 'numbers'[1][1] of add must be integer, not '3'"
    )


@pytest.mark.parametrize(
    ("schema", "value", "message"),
    [
        ({"type": ["integer", "null"]}, "x", "must be integer or null, not 'x'"),
        ({"oneOf": [{"type": "integer"}, {"const": "all"}]}, 1.5, 'must be integer or "all", not 1.5'),
        ({"type": "integer", "minimum": 5}, 3, "must keep to minimum: 5, not be 3"),
        (
            {"type": "string", "pattern": "^a"},
            "b" * 999,
            "must keep to pattern: '^a', not be 'bbbbbbbbbbbb...bbbbbbbbbbbbb'",
        ),
    ],
)
def test_any_rule_of_a_schema_is_told_in_words(schema: dict[str, Any], value: Any, message: str) -> None:
    tool = Tool("f", "F.", {"type": "object", "properties": {"x": schema}, "required": []}, lambda x: x)
    assert tool.call({"x": value}) == f"error: the argument 'x' of f {message}"


def test_a_schema_of_ones_own_decides_on_arguments_that_it_does_not_name() -> None:
    open_, shut = (
        {"type": "object", "properties": {}, "required": ["q"], **more} for more in ({"additionalProperties": {}}, {})
    )
    assert Tool("f", "F.", open_, lambda **given: given).call({"q": 1, "z": 2}) == '{"q": 1, "z": 2}'
    assert Tool("f", "F.", shut, lambda: 0).call({"z": 2}) == "error: no argument of f named 'z'; known: none"
    assert Tool("f", "F.", open_, lambda: 0).call({}) == "error: the argument 'q' of f is missing; expected any value"
    few = {"type": "object", "properties": {}, "required": [], "minProperties": 1}
    assert (
        Tool("f", "F.", few, lambda: 0).call({}) == "error: the arguments of f must keep to minProperties: 1, not be {}"
    )


def test_a_bare_list_or_dict_of_typing_is_one_of_anything() -> None:
    def count(rows: typing.List, by: typing.Dict) -> int:  # type: ignore[type-arg]  # noqa: UP006
        """Count."""
        return len(rows) + len(by)

    assert Tool.from_function(count).call({"rows": [1, "a"], "by": {"b": None}}) == "3"


def test_a_bound_method_is_a_tool_of_its_other_parameters() -> None:
    class Lamp:
        lit = False

        def switch(self, on: bool) -> str:
            """Turn the lamp on or off."""
            self.lit = on
            return "done"

    lamp = Lamp()
    assert Tool.from_function(lamp.switch).call({"on": True}) == "done"
    assert lamp.lit


def test_an_error_of_the_tool_itself_propagates() -> None:
    def broken() -> str:
        """Fail."""
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        Tool.from_function(broken).call({})


def test_a_function_that_cannot_be_a_tool_is_refused_by_parameter() -> None:
    def bare(x):  # type: ignore[no-untyped-def]
        """Do."""

    def complex_(x: complex) -> None:
        """Do."""

    def keys(x: dict[int, str]) -> None:
        """Do."""

    def star(*x: int) -> None:
        """Do."""

    def positional(x: int, /) -> None:
        """Do."""

    def silent(x: int) -> None: ...

    refused = {
        bare: "bare: parameter 'x' has no type annotation",
        complex_: "complex_: parameter 'x' has the type .*complex.*; use str, int",
        keys: "keys: parameter 'x' has the type dict",
        star: "star: parameter 'x' cannot be given by name",
        positional: "positional: parameter 'x' cannot be given by name",
        silent: "silent: a tool needs a docstring",
        (lambda x: x): "has no name that a tool can have",
    }
    for function, message in refused.items():
        with pytest.raises(TypeError, match=message):
            Tool.from_function(function)


@pytest.mark.parametrize(
    ("text", "turn"),
    [
        ("", Turn("", "")),
        (" \\boxed{4} ", Turn("", "\\boxed{4}")),
        (CALL, Turn("", "", (F,))),
        (f"a {CALL} b {CALL} c", Turn("", "a  b  c", (F, F))),
        (f"<think>r</think>{CALL}ok", Turn("r", "ok", (F,))),
        (f"<think>{CALL}</think>ok", Turn(CALL, "ok")),
        (f"r {CALL}</think>{CALL}ok", Turn(f"r {CALL}", "ok", (F,))),
        (f"no {CALL} <think>{CALL}", Turn(CALL, "no", (F,))),
        ("<think>a<think>b</think>c", Turn("ab", "c")),
        ("<think>a</think>b<think>c</think>d", Turn("a\n\nc", "bd")),
        ("<think>a</think>b</think>c", Turn("ab", "c")),
        ("<think></think>\n\n4", Turn("", "4")),
        ("a < b </thin> <THINK>", Turn("", "a < b </thin> <THINK>")),
        (f"<tool_call>\n  {CALL[11:-12]}\r\n</tool_call>", Turn("", "", (F,))),
        (f"prose <tool_call> in reasoning</think>{CALL}", Turn("prose <tool_call> in reasoning", "", (F,))),
    ],
)
def test_a_turn_is_split_into_reasoning_content_and_calls(text: str, turn: Turn) -> None:
    assert parse_turn(text) == turn


def test_markup_inside_a_json_string_of_a_call_is_text() -> None:
    for inner in (CALL, "</think>", "<think>", "</tool_call>", "a</tool_call><tool_call>b"):
        call = render_call("say", {"text": inner})
        assert parse_turn(f"x{call}y") == Turn("", "xy", (ToolCall("say", {"text": inner}),))


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('{"name": "f", "arguments": {}} tail</tool_call>', "text between the JSON object and </tool_call>"),
        ('{"name": "f", "arguments": {}}', "not closed by </tool_call>"),
        ("</tool_call>", "must be followed by a JSON object"),
        ('["f", {}]</tool_call>', "must be followed by a JSON object"),
        ("{'name': 'f', 'arguments': {}}</tool_call>", "not valid JSON"),
        (
            '{"name": "f", "arguments": {"x": "a\nb"}}</tool_call>',
            "Invalid control character at character 36",
        ),
        ('{"name": "f"}</tool_call>', 'exactly the keys "name" and "arguments"; found: name'),
        ('{"name": "f", "arguments": {}, "id": 1}</tool_call>', "found: name, arguments, id"),
        ('{"name": 1, "arguments": {}}</tool_call>', '"name" must be the name of a tool'),
        ('{"name": "", "arguments": {}}</tool_call>', '"name" must be the name of a tool'),
        ('{"name": "f", "arguments": "{}"}</tool_call>', '"arguments" must be an object'),
        ('{"name": "f", "arguments": null}</tool_call>', '"arguments" must be an object'),
        ('{"name": "f", "name": "g", "arguments": {}}</tool_call>', "the key 'name' occurs twice"),
        ('{"name": "f", "arguments": {"x": 1, "x": 2}}</tool_call>', "the key 'x' occurs twice"),
        ('{"name": "f", "arguments": {"x": NaN}}</tool_call>', "NaN is not JSON"),
        ('{"name": "f", "arguments": {"x": -Infinity}}</tool_call>', "-Infinity is not JSON"),
        ('{"name": "f", "arguments": {"x": 1e999}}</tool_call>', "a number is too large"),
        ('{"name": "f", "arguments": {"x": ' + "9" * 5000 + "}}</tool_call>", "more than 1000 digits"),
        ('{"name": "f", "arguments": {"x": "\\ud800"}}</tool_call>', "half of a surrogate pair"),
        (
            '{"name": "f", "arguments": {"x": ' + "[" * MAX_DEPTH + "]" * MAX_DEPTH + "}}</tool_call>",
            "deeper",
        ),
        ('{"name": "f", "arguments": {"x": ' + "[" * 60_000 + "</tool_call>", "deeper"),
        ('{"name": "f", "arguments": {"x": ' + '{"a":' * 9_000 + "</tool_call>", "deeper"),
        (
            '{"name": "f", "arguments": {"x": "' + "x" * MAX_CALL_LENGTH + '"}}</tool_call>',
            "longer than 65536",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_a_malformed_call_is_an_error_and_no_call(body: str, problem: str) -> None:
    turn = parse_turn(f"before <tool_call>{body}")
    assert not turn.calls
    assert len(turn.errors) == 1
    assert problem in turn.errors[0]
    assert len(turn.errors[0]) < 300
    assert turn.content == "before"


def test_depth_and_length_just_inside_the_limits_are_accepted() -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH - 2):
        nested = [nested]
    long = "x" * (MAX_CALL_LENGTH - 100)
    turn = parse_turn(render_call("f", {"x": nested}) + render_call("f", {"x": long}))
    assert turn.calls == (ToolCall("f", {"x": nested}), ToolCall("f", {"x": long}))


def test_a_call_in_the_text_of_a_malformed_call_is_not_run_and_one_after_it_is() -> None:
    turn = parse_turn(f'<tool_call>{{"name": "f", "arguments": {{"x": "raw\n{CALL}')
    assert (turn.calls, len(turn.errors)) == ((), 1)
    assert parse_turn(f"<tool_call>{{oops}}</tool_call>{CALL}").calls == (F,)


def test_a_closing_tag_of_nothing_is_an_error() -> None:
    assert parse_turn("4 </tool_call>").errors == ("a </tool_call> has no <tool_call> before it",)


def test_at_most_so_many_calls_are_run_and_the_rest_is_said_to_be_left() -> None:
    assert len(parse_turn(CALL * MAX_CALLS).calls) == MAX_CALLS
    assert not parse_turn(CALL * MAX_CALLS).errors
    turn = parse_turn(CALL * 1000 + "end")
    assert (len(turn.calls), len(turn.errors), turn.content) == (MAX_CALLS, 1, "end")
    assert "at most 32 tool calls" in turn.errors[0]


HOSTILE = (
    "<tool_call>",
    "<think>",
    "</think>",
    "</tool_call>",
    "<think></think>",
    "<tool_call>{",
    '<tool_call>{"',
    "<tool_call>{</think>",
    "<tool_call>{</tool_call>",
    f"{CALL}</think>",
    CALL,
    CALL[:-12],
    "<tool_call>" + " " * 999,
    CALL[:-12] + " " * 9999,
    "<",
    "</",
)


@pytest.mark.parametrize("unit", HOSTILE, ids=lambda unit: unit[:24])
def test_hostile_turns_take_linear_time(unit: str) -> None:
    def seconds(length: int) -> float:
        start = time.process_time()
        parse_turn(unit * (length // len(unit)))
        return time.process_time() - start

    # linear is 16 times as long, quadratic 256 times; the constant is for the clock on a busy machine
    assert seconds(1_600_000) < 64 * seconds(100_000) + 0.5


def test_rendered_calls_parse_back() -> None:
    arguments = {"é": 'q" \\ \n \u2028 </tool_call>', "n": [1, 1.5, None, True, {"a": {}}]}
    assert parse_turn(render_call("f", arguments)) == Turn("", "", (ToolCall("f", arguments),))
    assert render_call("calculator", {"expression": "37 * 24"}) == (
        '<tool_call>{"name": "calculator", "arguments": {"expression": "37 * 24"}}</tool_call>'
    )
    with pytest.raises(ValueError, match="JSON compliant"):
        render_call("f", {"x": float("nan")})


def test_escaped_markup_is_inert_and_escaping_twice_changes_nothing() -> None:
    text = f"a < b <think>r</think> {CALL} <tool_response>x</tool_response> <b>"
    inert = escape(text)
    assert parse_turn(inert) == Turn("", inert)
    assert escape(inert) == inert
    assert inert.replace("&lt;", "<") == text
    assert "<tool_response>" not in inert
    assert "</tool_response>" not in inert
    assert "a < b" in inert
    assert "<b>" in inert


@pytest.mark.parametrize(
    ("expression", "result"),
    [
        ("37 * 24", "888"),
        ("2 + 3 * 4 - 5", "9"),
        ("2 - 3 - 4", "-5"),
        ("100 / 5 / 2", "10"),
        ("(2 + 3) * (4 - 5)", "-5"),
        ("-3 - -4", "1"),
        ("--3", "3"),
        ("2 * -(3 + 4)", "-14"),
        ("-2 * 3", "-6"),
        ("0.1 + 0.2", "0.3"),
        (".5 * 4", "2"),
        ("1 / 3", "0.333333333333"),
        ("2 / 3", "0.666666666667"),
        ("-1 / 8", "-0.125"),
        ("1 / 3 * 3", "1"),
        ("10 / 4", "2.5"),
        ("1 / 4000000", "0.00000025"),
        ("123456789012345678901234567890 * 10", "1234567890123456789012345678900"),
        ("6 × 7 ÷ 2 − 1", "20"),
        ("  7\n", "7"),
        ("007", "7"),
        ("-0", "0"),
        ("+".join(["(1)"] * 40), "40"),
    ],
)
def test_the_calculator_is_exact(expression: str, result: str) -> None:
    assert calculator(expression) == result


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("", "the expression is empty"),
        (" ", "the expression is empty"),
        ("1 / 0", "division by zero"),
        ("1 / (2 - 2)", "division by zero"),
        ("37 x 24", "unexpected 'x' at position 4"),
        ("2 ** 9", r"unexpected '\*' at position 4"),
        ("2 + + 3", r"unexpected '\+' at position 5"),
        ("1,000 * 2", "unexpected ',' at position 2; write numbers without thousands separators"),
        ("2 +", "ends too soon"),
        ("-", "ends too soon"),
        ("(2 + 3", r"the '\(' at position 1 is not closed"),
        ("2 + 3)", r"unexpected '\)' at position 6"),
        ("()", r"unexpected '\)' at position 2"),
        ("2 3", "unexpected '3' at position 3"),
        ("1.2.3", "unexpected '.' at position 4"),
        ("1e9", "unexpected 'e' at position 2"),
        ("__import__('os')", "unexpected '_' at position 1"),
        ("٣ + 1", "unexpected '٣' at position 1"),
        ("9" * 31, "more than 30 digits"),
        ("1+" * 200 + "1", "401 characters; at most 200"),
        ("(" * 90 + "1" + ")" * 90, "nested deeper than 20"),
        ("(" * 200, "nested deeper than 20"),
    ],
)
def test_the_calculator_says_what_is_wrong_and_where(expression: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        calculator(expression)


def test_the_calculators_results_are_bounded() -> None:
    longest = max(("9" * 30 + "*") * 6 + "9", "*".join(["9" * 24] * 8), key=len)
    assert len(calculator(longest)) <= 200
    assert len(calculator("1/" + "/".join(["9" * 24] * 7))) <= 250
    assert calculator("-" * 199 + "1") == "-1"
    assert Tool.from_function(calculator).call({"expression": "1 / 0"}) == "error: division by zero"
