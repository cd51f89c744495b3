"""A chat template seen from outside: what it writes after a turn, for a tool call, for tools."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from verigym.agents.syntaxes.syntax import PROBE_ARGUMENTS, PROBE_NAME, call_id
from verigym.tasks.errors import TemplateError

Message = Mapping[str, Any]

_SENTINEL = "verigym-sentinel-turn"
PROBE = "verigym-probe-message"
_USER = {"role": "user", "content": "x"}
_TOOL = {
    "type": "function",
    "function": {
        "name": PROBE_NAME,
        "description": "A probe.",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
    },
}


@dataclass(frozen=True, slots=True)
class Suffix:
    """How the suffix for some roles is rendered: its text for probe messages, and whether the turn needs calls."""

    text: str
    with_calls: bool


class Template:
    """The template of a tokenizer. `ends` are the texts that may end a turn. Raises TemplateError if there is none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError("the tokenizer has no chat template; save one in its chat_template.jinja")
        self.tokenizer = tokenizer
        self.source = str(tokenizer.chat_template)
        self.ends: tuple[str, ...] = ()
        self._warned: set[str] = set()

    def render(self, messages: Sequence[Message], tools: Any = None, *, generation: bool = True) -> str:
        """The conversation as text, by default with the generation prompt."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=generation,
                )
            )
        except Exception as error:  # templates raise whatever they like
            roles = ", ".join(str(message["role"]) for message in messages)
            raise TemplateError(f"the chat template fails on messages of {roles}: {error}") from error

    def after_turn(
        self,
        messages: Sequence[Message],
        *,
        history: Sequence[Message] = (_USER,),
        tools: Any = None,
        with_calls: bool = False,
    ) -> str:
        """What is written after a turn of the agent that `messages` answer.

        Some templates take tool messages only after a turn with tool calls (`with_calls`); the text then begins
        with that turn's end.
        """
        turn = _calling_turn(messages) if with_calls else {"role": "assistant", "content": _SENTINEL}
        rendered = self.render([*history, turn, *messages], tools)
        if _SENTINEL not in rendered:
            raise TemplateError("the chat template leaves out what the assistant said before its last turn")
        after = rendered.split(_SENTINEL, 1)[1]
        if not with_calls:
            return after
        starts = [start for end in self.ends if (start := after.find(end)) >= 0]
        if not starts:
            raise TemplateError("the chat template ends a turn with tool calls by no token that ends a turn")
        return after[min(starts) :]

    def suffix(self, roles: tuple[str, ...]) -> Suffix:
        """How messages of these roles are rendered after a turn.

        Refuses a template that then depends on the history or leaves the messages out.
        """
        probes = [_named({"role": role, "content": f"{PROBE}-{index}."}, index) for index, role in enumerate(roles)]
        suffix = self._render_suffix(probes)
        for history in self._histories():
            if self.after_turn(probes, history=history, with_calls=suffix.with_calls) != suffix.text:
                raise TemplateError(
                    "the chat template renders a turn differently after another history; it cannot be used"
                )
        self._warn_of_changes(probes, suffix)
        return suffix

    def written_call(self) -> str:
        """What the template writes for a turn that is the probe call alone; "" if it leaves the call out."""
        said = [_USER, {"role": "assistant", "content": _SENTINEL}]
        for turn in _probe_turns():
            try:
                rendered = [self.render(given, [_TOOL], generation=False) for given in ([_USER, turn], said)]
            except TemplateError:
                continue
            written = _after_common_start(*rendered)
            if PROBE_NAME in written:
                return written
        return ""

    def renders_tools(self) -> bool:
        """Whether the prompt tells of the tools that are given."""
        try:
            return PROBE_NAME in self.render([_USER], [_TOOL])
        except TemplateError:
            return False

    def strips_reasoning(self, roles: Sequence[str] = ("user",)) -> bool:
        """Whether reasoning of earlier turns is left out."""
        probes = [_named({"role": role, "content": PROBE}, index) for index, role in enumerate(roles)]
        return "a thought" not in self.render([*_LONGER, {"role": "assistant", "content": "x"}, *probes])

    def _render_suffix(self, probes: Sequence[Message]) -> Suffix:
        """The probes after a turn of text or, where the template takes them only so, after a turn of calls."""
        failures: list[TemplateError] = []
        for with_calls in (False, True) if any(probe["role"] == "tool" for probe in probes) else (False,):
            try:
                text = self.after_turn(probes, with_calls=with_calls)
                for probe in probes:
                    if probe["content"] not in text:
                        role = probe["role"]
                        raise TemplateError(
                            f"the chat template leaves out messages of role '{role}'; it cannot be used"
                        )
                return Suffix(text, with_calls)
            except TemplateError as error:
                failures.append(error)
        raise failures[0]

    def _histories(self) -> list[Sequence[Message]]:
        """Conversations that a suffix must not depend on: a longer one and, if it renders, one with a tool call."""
        result = _named({"role": "tool", "content": "an earlier result"}, 0)
        for turn in _probe_turns():
            called = [_USER, turn, result]
            try:
                self.after_turn([_USER], history=called)
                return [_LONGER, called]
            except TemplateError:
                continue
        return [_LONGER]

    def _warn_of_changes(self, probes: Sequence[Message], suffix: Suffix) -> None:
        """Warns, once each, of what the template would write differently if it rendered the whole conversation."""
        system = {"role": "system", "content": "a rule"}
        try:
            instructed = self.after_turn(probes, history=[system, _USER], tools=[_TOOL], with_calls=suffix.with_calls)
        except TemplateError:  # no system role, or no tools
            instructed = suffix.text
        if instructed != suffix.text:
            self._warn(
                "the chat template moves the system message or the tools to the last user message; "
                "episodes keep them where they were first"
            )
        if not suffix.with_calls and self.strips_reasoning([str(probe["role"]) for probe in probes]):
            self._warn("the chat template strips reasoning from earlier turns; episodes keep the ids as sampled")

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            warnings.warn(sentence, stacklevel=6)


_LONGER: Sequence[Message] = (
    {"role": "user", "content": "a longer question"},
    {"role": "assistant", "content": "<think>a thought</think>an answer"},
    {"role": "user", "content": "why?"},
)


def with_call_ids(messages: Sequence[Message], ids: Sequence[str] = ()) -> list[Message]:
    """Messages whose tool messages say which call they answer: the one of `ids` at their place, or a made-up one."""
    named: list[Message] = []
    tools = 0
    for message in messages:
        if message["role"] == "tool":
            own = ids[tools] if tools < len(ids) else ""
            message = _named(message, tools, own)
            tools += 1
        named.append(message)
    return named


def _after_common_start(text: str, other: str) -> str:
    same = next((index for index, (one, two) in enumerate(zip(text, other, strict=False)) if one != two), len(other))
    return text[same:]


def _named(message: Message, index: int, own: str = "") -> dict[str, Any]:
    if message["role"] != "tool":
        return dict(message)
    return {"name": PROBE_NAME, "tool_call_id": own or call_id(index), **message}


def _calling_turn(messages: Sequence[Message]) -> Message:
    """A turn with the calls that `messages` answer; the sentinel is the last call's argument."""
    answers = [message for message in messages if message["role"] == "tool"]
    calls = [_call(answer["name"], {"text": "x"}, answer["tool_call_id"]) for answer in answers]
    calls[-1]["function"]["arguments"] = {"text": _SENTINEL}
    return {"role": "assistant", "content": "", "tool_calls": calls}


def _probe_turns() -> list[Message]:
    """A turn that is the probe call, in each of the forms that some template takes alone."""
    as_object = [_call(PROBE_NAME, PROBE_ARGUMENTS, call_id(0))]
    as_text = [_call(PROBE_NAME, '{"text": "x"}', call_id(0))]
    return [
        {"role": "assistant", "content": "", "tool_calls": as_object},
        {"role": "assistant", "content": None, "tool_calls": as_object},
        {"role": "assistant", "content": "", "tool_calls": as_text},
        {"role": "assistant", "content": None, "tool_calls": as_text},
    ]


def _call(name: str, arguments: Any, identity: str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}
