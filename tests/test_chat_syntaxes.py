"""What each tool syntax reads as a call, as a mistake and as prose, from token ids."""

import functools
import runpy
import warnings
from pathlib import Path

import pytest

from verigym.agents.chat import Chat
from verigym.agents.syntaxes import SYNTAXES, Call, Piece, ToolSyntax, call_markup
from verigym.agents.tiny import tiny_tokenizer
from verigym.tasks.canonical import Turn, parse_turn, render_call
from verigym.tasks.errors import TemplateError, UnknownNameError

SHAPES = runpy.run_path(str(Path(__file__).with_name("chat_templates.py")))["SHAPES"]
USER = {"role": "user", "content": "What is 6 * 7?"}
TOOL = {"role": "tool", "name": "f", "content": "42"}


@functools.cache
def chat_of(shape: str) -> Chat:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        chat = Chat(SHAPES[shape].tokenizer())
        chat.suffix([USER], chat.end_token_id)
    return chat


def read(shape: str, written: str, before: list[int] | None = None) -> Turn:
    """The turn that a model of this shape wrote; markers in `written` are its tokens."""
    chat = chat_of(shape)
    return parse_turn(chat.canonical(chat.tokenizer(written, add_special_tokens=False)["input_ids"], before))


def calls(turn: Turn) -> list[tuple[str, dict]]:
    assert not turn.errors
    return [(call.name, call.arguments) for call in turn.calls]


# Llama 3: JSON.


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('{"name": "f", "parameters": {"x": 1, "y": "1", "z": [true, 1.5]}}', [{"x": 1, "y": "1", "z": [True, 1.5]}]),
        ('{"name": "f", "arguments": {}}', [{}]),
        ('{"type": "function", "name": "f", "parameters": {}}', [{}]),
        ('<|python_tag|>{"name": "f", "parameters": {"x": 2}}', [{"x": 2}]),
        ('\n {"name": "f", "parameters": {"x": 1}} \n', [{"x": 1}]),
        ('{"name": "f", "parameters": {"x": 1}}; {"name": "f", "parameters": {"x": 2}}', [{"x": 1}, {"x": 2}]),
        ('{"name": "f", "parameters": {"x": 1}}\n{"name": "f", "parameters": {"x": 2}}', [{"x": 1}, {"x": 2}]),
        ('<think>hm</think>{"name": "f", "parameters": {"x": ";"}}', [{"x": ";"}]),
        ('{"name": "f", "parameters": {"x": 1}}<|eom_id|>', [{"x": 1}]),
        ('{"name": "f", "parameters": {"x": 1}}<|eot_id|>', [{"x": 1}]),
    ],
)  # fmt: skip
def test_llama_json_alone_is_a_call(written: str, expected: list[dict]) -> None:
    turn = read("llama3", written)
    assert calls(turn) == [("f", arguments) for arguments in expected]
    assert turn.content == ""


@pytest.mark.parametrize(
    "written",
    [
        'I call {"name": "f", "parameters": {}}',
        '{"name": "f", "parameters": {}} is how I would call it.',
        '{"answer": 42}',
        '{"name": "Ada", "age": 36}',
        '[{"name": "f", "parameters": {}}]',
        '```json\n{"name": "f", "parameters": {}}\n```',
        "{not JSON}",
        "42",
    ],
)
def test_json_that_is_no_call_or_stands_in_prose_is_prose(written: str) -> None:
    turn = read("llama3", written)
    assert (turn.calls, turn.errors, turn.content) == ((), (), written)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ('{"name": "f", "parameters": {"x": 1}', "not valid JSON"),
        ('{"name": "f", "parameters": {"x": 1, "x": 2}}', "twice"),
        ('{"name": "f", "name": "g", "parameters": {}}', "twice"),
        ('{"name": "f", "parameters": {}, "arguments": {}}', "twice"),
        ('{"name": "f", "parameters": {"x": NaN}}', "NaN"),
        ('{"name": "f", "parameters": {"x": 1e999}}', "too large"),
        ('{"name": "f", "parameters": []}', "must be an object"),
        ('{"name": "f", "parameters": {}, "id": 1}', "exactly the keys"),
        ('{"name": "f", "parameters": {"x": ' + "[" * 40 + "]" * 40 + "}}", "deeper"),
        ('{"name": "f", "parameters": {"x": ' + "[" * 3000 + "]" * 3000 + "}}", "deeper"),
        ('<|python_tag|>print("hello")', "JSON object"),
    ],
)
def test_a_llama_call_that_is_wrong_is_an_error_and_no_call(written: str, reason: str) -> None:
    turn = read("llama3", written)
    assert not turn.calls
    assert len(turn.errors) == 1
    assert reason in turn.errors[0]


def test_calls_beside_one_that_is_broken_are_made() -> None:
    turn = read("llama3", '{"name": "f", "parameters": {}}; {"name": "g"')
    assert [call.name for call in turn.calls] == ["f"]
    assert len(turn.errors) == 1


def test_both_ends_of_a_llama_turn_are_stop_tokens() -> None:
    chat = chat_of("llama3")
    stops = set(chat.tokenizer.convert_ids_to_tokens(sorted(chat.stop_token_ids)))
    assert stops == {"<|eot_id|>", "<|eom_id|>"}
    after_message, after_turn = (chat.tokenizer.convert_tokens_to_ids(text) for text in ("<|eom_id|>", "<|eot_id|>"))
    assert chat.suffix([TOOL], after_message) == chat.suffix([TOOL], after_turn)


# Mistral: markers that decoding drops.


@pytest.mark.parametrize("shape", ["mistral-v3", "mistral-v3-metaspace", "mistral-v11", "mistral-v13"])
@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}]', [("f", {"x": 1})]),
        ('[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abcdefghi"}]', [("f", {})]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]', [("f", {}), ("g", {})]),
    ],
)
def test_a_mistral_list_is_calls(shape: str, written: str, expected: list) -> None:
    assert calls(read(shape, written)) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('[TOOL_CALLS]f[ARGS]{"x": "]["}', [("f", {"x": "]["})]),
        ("[TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{}", [("f", {})]),
        ('[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[ARGS]{}', [("f", {"x": 1}), ("g", {})]),
        ('[THINK]I call it.[/THINK][TOOL_CALLS]f[ARGS]{"x": 1}', [("f", {"x": 1})]),
    ],
)
def test_mistral_names_and_arguments_are_calls(written: str, expected: list) -> None:
    assert calls(read("mistral-v13", written)) == expected


def test_mistral_text_before_a_call_is_content_and_its_reasoning_is_reasoning() -> None:
    turn = read("mistral-v13", "[THINK]hm[/THINK]Let me see.[TOOL_CALLS]f[ARGS]{}")
    assert (turn.reasoning, turn.content, len(turn.calls)) == ("hm", "Let me see.", 1)
    ids = chat_of("mistral-v13").turn("<think>hm</think>42")
    assert chat_of("mistral-v13").tokenizer.decode(ids) == "[THINK]hm[/THINK]42</s>"


@pytest.mark.parametrize(
    "written",
    [
        '[TOOL_CALLS]f[ARGS]{"x": 1',
        "[TOOL_CALLS]f[ARGS]42",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS]",
        "[TOOL_CALLS]f{}",
        "[TOOL_CALLS][ARGS]{}",
        '[TOOL_CALLS]f[ARGS]{}, "name": "g"',
        '[TOOL_CALLS]f[ARGS]{}}</tool_call><tool_call>{"name": "g", "arguments": {}}',
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}',
        '[TOOL_CALLS] [{"name": "f", "arguments": {}}] and more',
        '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1, "x": 2}}]',
    ],
)
def test_a_mistral_call_that_is_wrong_is_an_error_and_no_call(written: str) -> None:
    turn = read("mistral-v13", written)
    assert not turn.calls
    assert turn.errors


def test_a_tool_message_has_the_id_of_the_call_that_it_answers() -> None:
    chat = chat_of("mistral-v11")
    written = "[TOOL_CALLS]f[CALL_ID]abcDEF123[ARGS]{}[TOOL_CALLS]g[CALL_ID]bad id[ARGS]{}[TOOL_CALLS]h[ARGS]{}</s>"
    turn = chat.tokenizer(written, add_special_tokens=False)["input_ids"]
    text = chat.tokenizer.decode(chat.suffix([TOOL, TOOL, TOOL], turn[-1], turn=turn))
    ids = ["abcDEF123", "call00001", "call00002"]
    assert text == "".join(f"[TOOL_RESULTS]{identity}[TOOL_CONTENT]42[/TOOL_RESULTS]" for identity in ids)
    given = chat.suffix([{**TOOL, "tool_call_id": "given0001"}], turn[-1], turn=turn)
    assert "given0001" in chat.tokenizer.decode(given)


def test_a_template_that_asks_for_ids_gets_them_in_order() -> None:
    chat = chat_of("mistral-v3")
    text = chat.tokenizer.decode(chat.suffix([TOOL, TOOL], chat.end_token_id))
    assert [text.count(f'"call_id": "call0000{index}"') for index in (0, 1, 2)] == [1, 1, 0]


# Pythonic.


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ('[f(x="Paris")]', {"x": "Paris"}),
        ("[f(x='it\\'s')]", {"x": "it's"}),
        ('[f(x="日本 \\n \\u00e9 \\\\")]', {"x": "日本 \n é \\"}),
        ('[f(x="""two\nlines""")]', {"x": "two\nlines"}),
        ("[f(x=1, y=-2.5, z=1e3, w=.5)]", {"x": 1, "y": -2.5, "z": 1000.0, "w": 0.5}),
        ("[f(x=True, y=False, z=None)]", {"x": True, "y": False, "z": None}),
        ('[f(x=[1, ["a"], {"b": {"c": []}}],)]', {"x": [1, ["a"], {"b": {"c": []}}]}),
        ("[ f ( x = 1 ) ]", {"x": 1}),
        ('[f(from="A", class=2)]', {"from": "A", "class": 2}),
        ("[f()]", {}),
        ('[f(x="[g(y=1)]")]', {"x": "[g(y=1)]"}),
    ],
)
def test_pythonic_literals_by_keyword_are_arguments(written: str, expected: dict) -> None:
    assert calls(read("llama3-pythonic", written)) == [("f", expected)]


def test_pythonic_calls_stand_in_a_list_and_names_may_have_dots_and_dashes() -> None:
    turn = read("llama4", "<|python_start|>[math.sqrt(x=2), get-it()]<|python_end|><|eot|>")
    assert calls(turn) == [("math.sqrt", {"x": 2}), ("get-it", {})]


@pytest.mark.parametrize(
    "arguments",
    [
        "1",
        '"Paris"',
        "x=g()",
        "x=y",
        "x=1 + 1",
        "x=[i for i in y]",
        "x=lambda: 1",
        'x=f"{1}"',
        'x=__import__("os").system("touch /tmp/verigym-ran")',
        "*x",
        "**x",
        "x=1, x=2",
        'x={"a": 1, "a": 2}',
        "x={1: 2}",
        "x={1, 2}",
        "x=(1, 2)",
        "x=1j",
        "x=1e999",
        "x=007",
        "x=b'a'",
        "x='a' 'b'",
        "x='\\ud800'",
        "x=" + "[" * 40 + "]" * 40,
        "x=" + "[" * 5000 + "]" * 5000,
        "x=",
        "x==1",
    ],
)
def test_anything_but_literals_by_keyword_is_an_error_and_runs_nothing(arguments: str) -> None:
    turn = read("llama3-pythonic", f"[f({arguments})]")
    assert not turn.calls
    assert len(turn.errors) == 1
    assert not Path("/tmp/verigym-ran").exists()


@pytest.mark.parametrize(
    "written", ["I use [f(x=1)]", "[f(x=1)] is the call", "[1, 2]", "[a](b)", "f(x=1)", "[]", "\\boxed{[f]}"]
)
def test_pythonic_calls_in_prose_are_prose(written: str) -> None:
    turn = read("llama3-pythonic", written)
    assert (turn.calls, turn.errors, turn.content) == ((), (), written)


def test_a_list_of_calls_with_something_after_it_runs_nothing() -> None:
    turn = read("llama3-pythonic", "[f(x=1)] and [g(y=2)]")
    assert not turn.calls
    assert len(turn.errors) == 1


def test_text_may_stand_beside_calls_between_markers() -> None:
    turn = read("lfm2", "I look.<|tool_call_start|>[f(x=1)]<|tool_call_end|>Wait.")
    assert calls(turn) == [("f", {"x": 1})]
    assert turn.content == "I look.Wait."
    assert read("lfm2", "[f(x=1)]").content == "[f(x=1)]"


# Hermes, with tags as tokens and as text.


def test_hermes_tags_count_as_text_where_the_tokenizer_has_no_tokens_for_them() -> None:
    written = '<think>hm</think><tool_call>\n{"name": "f", "arguments": {"x": "</tool_call>"}}\n</tool_call>'
    for shape in ("hermes-text", "qwen3"):
        turn = read(shape, written)
        assert calls(turn) == [("f", {"x": "</tool_call>"})]
        assert turn.reasoning == "hm"


def test_a_tag_in_text_is_not_put_together_around_a_special_token() -> None:
    start, rest = "<tool", '_call>{"name": "f", "arguments": {}}</tool_call>'
    turn = read("hermes-text", f"{start}<|im_start|>{rest}")
    assert not turn.calls


# Reasoning.


def test_a_prompt_that_opens_reasoning_opens_it_only_where_it_does() -> None:
    chat = chat_of("r1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        asked, answered = chat.prompt([USER]), chat.suffix([TOOL], chat.end_token_id)
    hm = chat.tokenizer("hm", add_special_tokens=False)["input_ids"]
    assert chat.canonical(hm, asked) == chat.canonical(hm) == "<think>hm"
    assert chat.canonical(hm, [*asked, *hm, chat.end_token_id, *answered]) == "hm"
    assert chat.tokenizer.decode(chat.turn("<think>hm</think>42", asked)) == "hm</think>42<｜end｜>"
    assert chat.tokenizer.decode(chat.turn("<think>hm</think>42", answered)) == "<think>hm</think>42<｜end｜>"


def test_an_empty_block_of_reasoning_in_the_prompt_opens_nothing() -> None:
    chat = chat_of("qwen3-no-thinking")
    prompt = chat.prompt([USER])
    assert chat.tokenizer.decode(prompt).endswith("<think>\n\n</think>\n\n")
    assert not chat.opens_reasoning
    assert chat.canonical(chat.turn("42", prompt), prompt) == "42"


@pytest.mark.parametrize("shape", ["llama3", "llama3-pythonic", "mistral-v11"])
def test_reasoning_in_plain_text_is_a_block_at_the_start(shape: str) -> None:
    turn = read(shape, "\n<think>hm</think>The tag <think> opens it.")
    assert (turn.reasoning, turn.content) == ("hm", "The tag &lt;think> opens it.")
    assert read(shape, "<think>hm").reasoning == "hm"


@pytest.mark.parametrize("shape", ["qwen3", "mistral-v13"])
def test_a_call_in_reasoning_is_no_call(shape: str) -> None:
    chat = chat_of(shape)
    opening, closing = ("<think>", "</think>") if shape == "qwen3" else ("[THINK]", "[/THINK]")
    written = "".join(piece.text for piece in chat.syntax.from_canonical(render_call("f", {})))
    for text in (f"{opening}{written}{closing}42", f"{opening}{written}", f"{written}{closing}42"):
        turn = read(shape, text)
        assert not turn.calls
        assert not turn.errors
        assert "f" in turn.reasoning


# What a user of the class may set.


def test_an_unknown_syntax_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'hermes'"):
        Chat(tiny_tokenizer(), syntax="hermse")


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_syntax_can_be_set_by_name(name: str) -> None:
    chat = Chat(tiny_tokenizer(), syntax=name)
    call = render_call("f", {"x": [1, "a"]})
    assert chat.canonical(chat.turn(call)) == call


class Shouted(ToolSyntax):
    """`CALL name {...}` on a line of its own."""

    name = "shouted"
    openers = ("CALL ",)

    def read(self, region: list[Piece]) -> str:
        name, _, arguments = region[0].text.partition(" ")
        return call_markup(f'{{"name": "{name}", "arguments": {arguments}}}')

    def write(self, calls: list[Call]) -> list[Piece]:
        return [Piece("CALL ", "marker"), *(Piece("f {}") for _ in calls)]


def test_a_syntax_of_ones_own_can_be_given() -> None:
    chat = Chat(tiny_tokenizer(), syntax=Shouted())
    ids = chat.turn(f"now: {render_call('f', {})}")
    assert chat.tokenizer.decode(ids) == "now: CALL f {}<|im_end|>"


def test_a_turn_that_the_syntax_cannot_express_is_refused_not_changed() -> None:
    for shape, turn in [
        ("llama3", f"Look: {render_call('f', {})}"),
        ("llama3", '{"name": "f", "parameters": {}}'),
        ("llama3-pythonic", render_call("two words", {})),
        ("mistral-v13", f"{render_call('f', {})} and more"),
        ("gemma", render_call("f", {})),
    ]:
        with pytest.raises(TemplateError, match="cannot be written"):
            chat_of(shape).turn(turn)
