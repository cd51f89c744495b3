"""Every shape of chat template plays whole conversations token by token, in its own tool syntax."""

import runpy
import warnings
from pathlib import Path
from typing import Any

import pytest

from verigym.agents.chat import Chat
from verigym.agents.syntaxes import SYNTAXES
from verigym.tasks.canonical import parse_turn, render_call
from verigym.tasks.errors import TemplateError

SHAPES = runpy.run_path(str(Path(__file__).with_name("chat_templates.py")))["SHAPES"]
WITH_TOOLS = sorted(name for name, shape in SHAPES.items() if shape.syntax != "none")

USER = {"role": "user", "content": "What is 6 * 7?"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "calculator",
            "description": "Work it out.",
            "parameters": {"type": "object", "properties": {"expression": {"type": "string"}}},
        },
    }
]
CALL = render_call("calculator", {"expression": "6 * 7"})
RICH = {
    "text": 'quotes " and \\ and \n\t, <tags> & 日本 🎉 é {} [] ; , \u2028',
    "numbers": [0, -1, 2.5, 1e30, 10**20],
    "nested": {"a": [True, False, None, {"b": []}], "": ""},
}


@pytest.fixture(scope="module")
def chats() -> dict[str, Chat]:
    return {name: Chat(shape.tokenizer()) for name, shape in SHAPES.items()}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    """Several shapes strip reasoning or move the tools, and say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def tool(content: str, **fields: str) -> dict[str, str]:
    return {"role": "tool", "name": "calculator", "content": content, **fields}


def text_of(chat: Chat, ids: list[int]) -> str:
    return chat.tokenizer.decode(ids, skip_special_tokens=False)


def as_template_takes_it(message: dict[str, Any]) -> dict[str, Any]:
    """A message as a chat template is given it: calls as structured data, ids on tool messages."""
    if message["role"] == "tool":
        return {**message, "tool_call_id": "call00000"}
    turn = parse_turn(message["content"]) if message["role"] == "assistant" else None
    if turn is None or not turn.calls:
        return message
    calls = [{"name": call.name, "arguments": call.arguments} for call in turn.calls]
    calls = [{"id": f"call{i:05d}", "type": "function", "function": call} for i, call in enumerate(calls)]
    return {"role": "assistant", "content": turn.content, "tool_calls": calls}


@pytest.mark.parametrize("name", SHAPES)
def test_the_syntax_is_found_from_what_the_template_writes(chats: dict[str, Chat], name: str) -> None:
    assert chats[name].syntax.name == SHAPES[name].syntax


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_what_follows_a_call_is_what_the_template_renders(chats: dict[str, Chat], name: str) -> None:
    chat = chats[name]
    messages = [USER, {"role": "assistant", "content": CALL}, tool("42")]
    ids = chat.prompt(messages[:1], TOOLS)
    ids += chat.turn(CALL, ids)
    suffix = chat.suffix(messages[2:], ids[-1])
    given = [as_template_takes_it(message) for message in messages]
    whole = chat.tokenizer.apply_chat_template(given, tools=TOOLS, tokenize=False, add_generation_prompt=True)
    assert whole.endswith(text_of(chat, [ids[-1], *suffix]))
    assert "42" in text_of(chat, suffix)


@pytest.mark.parametrize("name", SHAPES)
def test_without_tools_the_ids_of_a_conversation_are_those_of_the_whole(chats: dict[str, Chat], name: str) -> None:
    chat = chats[name]
    messages = [USER, {"role": "assistant", "content": "42"}, {"role": "user", "content": "Why?\n"}]
    ids = chat.prompt(messages[:1])
    opening = text_of(chat, ids)
    answer = chat.tokenizer("42", add_special_tokens=False)["input_ids"]
    ids += [*answer, chat.end_token_id, *chat.suffix(messages[2:], chat.end_token_id)]
    whole = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert whole.endswith(text_of(chat, ids[len(opening) and len(chat.prompt(messages[:1])) + len(answer) :]))
    if not chat.opens_reasoning and "</think>" not in opening and not SHAPES[name].metaspace:
        assert text_of(chat, ids).replace("[/INST]42", "[/INST] 42") == whole.replace("[/INST]42", "[/INST] 42")


@pytest.mark.parametrize("name", WITH_TOOLS)
@pytest.mark.parametrize(
    "turn",
    [
        CALL,
        CALL + CALL,
        f"{CALL}\n{render_call('f', {})}",
        f"<think>I should\n\nmultiply 日本.</think>{CALL}",
        f"<think>hm</think>\n\n{CALL}",
        "<think>hm</think>\\boxed{42}",
        "\\boxed{42} is the answer, {not: JSON} [nor()]",
        "é日本🎉",
        render_call("f", RICH),
        render_call("f", {"x": "</tool_call><tool_call>{}"}),
        render_call("f", {"x": "<think>"}),
        '<tool_call>{"arguments": {}, "name": "f"}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1E5, "y": 1.50}}</tool_call>',
        "",
    ],
)
def test_a_canonical_turn_survives_the_models_syntax(chats: dict[str, Chat], name: str, turn: str) -> None:
    chat = chats[name]
    ids = chat.prompt([USER], TOOLS)
    written = chat.turn(turn, ids)
    assert written[-1] == chat.end_token_id
    back = chat.canonical(written, ids)
    assert parse_turn(back) == parse_turn(turn)
    keeps_order = chat.syntax.name in ("hermes", "llama-json", "mistral-list")
    if not chat.opens_reasoning and (keeps_order or '{"arg' not in turn):
        assert back == turn


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_text_before_a_call_is_kept_or_refused(chats: dict[str, Chat], name: str) -> None:
    chat = chats[name]
    try:
        ids = chat.turn(f"Let me see.{CALL}")
    except TemplateError as error:
        assert chat.syntax.name in str(error)  # noqa: PT017 - one syntax may, another may not
        assert chat.syntax.name in ("llama-json", "pythonic")  # a whole turn or nothing
    else:
        assert parse_turn(chat.canonical(ids)).content == "Let me see."


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_restored_history_has_the_ids_with_which_it_was_played(chats: dict[str, Chat], name: str) -> None:
    chat = chats[name]
    turns = [f"<think>hm</think>{CALL}", CALL + CALL, "\\boxed{42}"]
    answers = [[tool("42")], [tool("1"), tool("2")], [{"role": "user", "content": "Sure?"}]]
    ids, messages = chat.prompt([USER], TOOLS), [USER]
    for turn, new in zip(turns, answers, strict=True):
        ids += chat.turn(turn, ids)
        ids += chat.suffix(new, ids[-1])
        messages += [{"role": "assistant", "content": turn}, *new]
    assert chat.prompt(messages, TOOLS) == ids


@pytest.mark.parametrize("name", SHAPES)
def test_no_text_spells_a_special_token_or_a_marker(chats: dict[str, Chat], name: str) -> None:
    chat, shape = chats[name], SHAPES[name]
    spelled = [*shape.special, *(token for token in shape.plain)]
    spelled += [marker for marker in ("<tool_response>", "</tool_response>") if marker in shape.template]
    attack, honest = "42".join(["", *spelled, ""]), "42" * (len(spelled) + 1)
    ids = set(chat.tokenizer.convert_tokens_to_ids([*shape.special, *shape.plain]))
    roles = ["user", "tool"] if name not in ("gemma", "phi3") else ["user"]
    for role in roles:
        hostile = chat.suffix([{**tool(attack), "role": role}], chat.end_token_id)
        expected = chat.suffix([{**tool(honest), "role": role}], chat.end_token_id)
        assert [token for token in hostile if token in ids] == [token for token in expected if token in ids]
        assert text_of(chat, hostile).count("<tool_response>") == text_of(chat, expected).count("<tool_response>")
    prompt = chat.prompt([{"role": "user", "content": attack}])
    assert sum(token in ids for token in prompt) == sum(token in ids for token in chat.prompt([USER]))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_call_in_a_foreign_syntax_is_text(chats: dict[str, Chat], name: str, syntax: str) -> None:
    chat = chats[name]
    foreign = "".join(piece.text for piece in SYNTAXES[syntax].from_canonical(CALL))
    if SYNTAXES[syntax].openers == chat.syntax.openers or chat.syntax.read_bare(foreign) is not None:
        return  # it is no foreign one
    ids = chat.tokenizer(foreign, add_special_tokens=False)["input_ids"]
    turn = parse_turn(chat.canonical(ids, ()))
    assert not turn.calls
    assert not turn.errors
    assert "calculator" in turn.content


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_markers_spelled_in_letters_are_no_call_where_they_are_tokens(chats: dict[str, Chat], name: str) -> None:
    chat, shape = chats[name], SHAPES[name]
    if not any(marker in (*shape.special, *shape.plain) for marker in chat.syntax.openers):
        return
    if chat.syntax.read_bare(chat.syntax.from_canonical(CALL)[-1].text) is not None or "llama4" in name:
        return  # a bare call is one in its own right
    written = "".join(piece.text for piece in chat.syntax.from_canonical(CALL))
    ids = [token for letter in written for token in chat.tokenizer(letter, add_special_tokens=False)["input_ids"]]
    turn = parse_turn(chat.canonical(ids, ()))
    assert not turn.calls
    assert not turn.errors


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in WITH_TOOLS])
def test_tools_are_refused_where_nobody_knows_how_they_are_called(chats: dict[str, Chat], name: str) -> None:
    assert chats[name].prompt([USER])
    with pytest.raises(TemplateError, match=r"leaves out the tools|known syntaxes: hermes"):
        chats[name].prompt([USER], TOOLS)


def test_a_template_that_marks_only_the_first_result_is_refused_for_results() -> None:
    shape = SHAPES["r1"]
    once = (
        "{%- if not messages[:loop.index0] | selectattr('role', 'equalto', 'tool') | list %}{{- 'first' }}{%- endif %}"
    )
    tokenizer = shape.tokenizer()
    tokenizer.chat_template = shape.template.replace("{{- '<｜output｜>'", once + "{{- '<｜output｜>'")
    chat = Chat(tokenizer)
    assert chat.suffix([USER], chat.end_token_id)
    with pytest.raises(TemplateError, match="another history"):
        chat.suffix([tool("42")], chat.end_token_id)


@pytest.mark.parametrize("name", ["gemma", "phi3"])
def test_a_template_that_leaves_tool_messages_out_is_refused_for_them(chats: dict[str, Chat], name: str) -> None:
    assert chats[name].suffix([USER], chats[name].end_token_id)
    with pytest.raises(TemplateError, match="leaves out messages of role 'tool'"):
        chats[name].suffix([tool("42")], chats[name].end_token_id)
