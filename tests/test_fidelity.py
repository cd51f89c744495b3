"""Scripted tool episodes tell faithful templates from others."""

import runpy
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast, Qwen3Config

from verigym.agents.agent import load_chat, save_checkpoint
from verigym.agents.chat import Chat
from verigym.agents.fidelity import check_chat
from verigym.agents.syntaxes import SYNTAXES, Piece
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.commands._check_model import check_model
from verigym.tasks.errors import ConfigError

TEMPLATES = runpy.run_path(str(Path(__file__).with_name("chat_templates.py")))
SHAPES, CHATML = TEMPLATES["SHAPES"], TEMPLATES["CHATML"]
WITH_TOOLS = sorted(name for name, shape in SHAPES.items() if shape.syntax != "none")


def checkpoint(folder: Path, tokenizer: PreTrainedTokenizerFast) -> str:
    """A folder with a tokenizer and a configuration, and no weights."""
    tokenizer.save_pretrained(folder)
    Qwen3Config(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, bos_token_id=None).save_pretrained(
        folder
    )
    return str(folder)


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_every_shape_with_tools_plays_the_scripts_faithfully(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert check_model(checkpoint(tmp_path, SHAPES[name].tokenizer())) == 0
    shown = capsys.readouterr().out
    assert f"tool syntax: {SHAPES[name].syntax}" in shown
    assert "\nfaithful: 8 episodes" in shown
    for episode in (
        "the user asks again",
        "one call",
        "two calls in one turn",
        "malformed call",
        "hostile tool result",
    ):
        assert f"\n{episode}: faithful\n" in shown


def test_a_tiny_checkpoint_is_faithful_and_its_weights_are_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer = tiny_tokenizer()
    save_checkpoint(tmp_path, tiny_model(len(tokenizer), layers=1), tokenizer)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    assert check_model(str(tmp_path)) == 0
    assert "stop tokens: <|im_end|>" in capsys.readouterr().out


def test_the_listing_shows_who_wrote_what_and_the_mask(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = checkpoint(tmp_path, SHAPES["mistral-v13"].tokenizer())
    check_model(path)
    lines = capsys.readouterr().out.split("one call: faithful\n")[1].splitlines()[:4]
    assert [line.split()[0] for line in lines] == ["prompt", "assistant", "tool", "assistant"]
    assert ["mask 1" in line for line in lines] == [False, True, False, True]
    assert '"[TOOL_CALLS]multiply[ARGS]{' in lines[1]
    assert '"[TOOL_RESULTS]42[/TOOL_RESULTS]"' in lines[2]
    _, chat = load_chat(path)
    parts = next(episode for episode in check_chat(chat).episodes if episode.name == "one call").parts
    assert [f"{len(part.ids)} ids" in line for part, line in zip(parts, lines, strict=True)] == [True] * 4
    assert parts[3].ids == tuple(chat.turn("42"))


NUMBERS_ITS_TURNS = CHATML.replace("'<|im_start|>user\\n'", "'<|im_start|>user ' + loop.index | string + '\\n'")
LEAVES_TOOL_TEXT_OUT = CHATML.replace("<tool_response>\\n' + message.content + '", "<tool_response>\\n' + '")
LEAVES_TOOLS_OUT = "{%- set tools = none %}" + CHATML


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (LEAVES_TOOLS_OUT, "the chat template leaves out the tools"),
        (LEAVES_TOOL_TEXT_OUT, "leaves out messages of role 'tool'"),
        (NUMBERS_ITS_TURNS, "another history"),
        (TEMPLATES["XML_CALLS"], "known syntaxes: hermes"),
        (None, "no chat template"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    template: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tokenizer = SHAPES["hermes-text"].tokenizer()
    assert template is None or template != CHATML
    tokenizer.chat_template = template
    assert check_model(checkpoint(tmp_path, tokenizer)) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("NOT FAITHFUL")
    assert sentence in last


class Deaf(type(Chat(tiny_tokenizer()).syntax)):
    """A syntax that reads every call as prose."""

    def to_canonical(self, pieces: list[Piece]) -> str:
        return "".join(piece.text for piece in pieces).replace("<", "(")


def test_a_syntax_that_loses_calls_is_found_out() -> None:
    chat = Chat(tiny_tokenizer(), syntax=Deaf())
    problems = {episode.name: episode.problem for episode in check_chat(chat).episodes}
    assert not problems.pop("direct answer")
    assert all(problems.values())
    assert "cannot be written in the model's tool syntax" in problems["one call"]


class OwnIds(type(SYNTAXES["mistral-ids"])):
    """Calls with ids of the model's own making."""

    def write_id(self, index: int) -> list[Piece]:
        return [Piece("[CALL_ID]", "marker"), Piece(f"mine0000{index}")]


def test_results_repeat_the_ids_that_the_model_gave() -> None:
    chat = Chat(SHAPES["mistral-v11"].tokenizer(), syntax=OwnIds())
    report = check_chat(chat)
    assert report.faithful
    parts = next(episode for episode in report.episodes if episode.name == "two calls in one turn").parts
    results = chat.tokenizer.decode(list(parts[2].ids))
    assert ["mine00000" in results, "mine00001" in results, "call0" in results] == [True, True, False]


class Repeating(Chat):
    """Ends each turn once more."""

    def suffix(self, messages, last_token=None, *, turn=()):  # type: ignore[no-untyped-def]
        return super().suffix(messages, None, turn=turn)


def test_a_doubled_end_mark_is_found_out() -> None:
    problems = [episode.problem for episode in check_chat(Repeating(tiny_tokenizer())).episodes]
    assert problems[0] == ""
    assert set(problems[1:]) == {"the mark that ends a turn stands there twice"}


def test_a_wrong_path_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model at"):
        check_model(str(tmp_path / "nowhere"))
