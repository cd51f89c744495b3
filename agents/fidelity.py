"""Scripted tool episodes that show whether a model's template and tokenizer can be trained on, token by token."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from verigym.agents.agent import LocalAgent
from verigym.agents.chat import Chat
from verigym.agents.collect import Collector
from verigym.agents.engines.engine import Engine, Generation, Request, StopReason
from verigym.agents.episode import Episode, Plan
from verigym.agents.syntaxes import Piece
from verigym.envs.mixture import EnvSpec
from verigym.envs.question import QuestionEnv
from verigym.envs.text_env import Reply
from verigym.tasks.canonical import parse_turn, render_call
from verigym.tasks.errors import TemplateError
from verigym.tasks.task import Task, TaskSet
from verigym.verifiers.verdict import Outcome

_REASONING = "<think>I multiply 日本 🎉.</think>"
_CALL = render_call("multiply", {"a": 6, "b": 7})
_OTHER_CALL = render_call("look_up", {"text": 'x "é" \\ \n{}'})
_ANSWER = "42"


@dataclass(frozen=True, slots=True)
class Part:
    """A run of ids in an episode: who wrote them, and whether the model did (mask 1)."""

    role: str
    ids: tuple[int, ...]
    sampled: bool


@dataclass(frozen=True, slots=True)
class Played:
    """A scripted episode: its parts and, if it is not faithful, what is wrong in one sentence."""

    name: str
    parts: tuple[Part, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What a chat does with the scripted episodes, and what its template changes without harm."""

    episodes: tuple[Played, ...]
    notes: tuple[str, ...]

    @property
    def faithful(self) -> bool:
        return not any(episode.problem for episode in self.episodes)


@dataclass(frozen=True, slots=True)
class _Script:
    """The turns of an episode in canonical syntax; a broken one ends too early."""

    name: str
    turns: tuple[str, ...]
    broken: bool = False
    follow_ups: int = 0  # times that the user asks again after an answer

    @property
    def has_tools(self) -> bool:
        return len(self.turns) > 1 + self.follow_ups


_SCRIPTS = (
    _Script("direct answer", (_ANSWER,)),
    _Script("the user asks again", (_ANSWER, _REASONING + _ANSWER, _ANSWER), follow_ups=2),
    _Script("one call", (_CALL, _ANSWER)),
    _Script("two calls in one turn", (_CALL + _OTHER_CALL, _ANSWER)),
    _Script("a call in each of three turns", (_CALL, _OTHER_CALL, _CALL, _ANSWER)),
    _Script("malformed call", (_CALL, _CALL, _ANSWER), broken=True),
    _Script("reasoning and a call", (_REASONING + _CALL, _REASONING + _ANSWER)),
    _Script("hostile tool result", (render_call("read_page", {}), _ANSWER)),
)


def check_chat(chat: Chat) -> Report:
    """Plays the scripts with `chat`, through the collector that training uses.

    An episode is faithful if what is fed to the engine at each turn begins with all that was fed and sampled
    before, the mask is 1 on exactly the sampled ids, each call and answer reaches the environment in canonical
    syntax, and what the environment says reaches the model, without tokens that could act.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        played = tuple(_play(chat, script) for script in _SCRIPTS)
    notes = {str(warning.message): None for warning in caught if issubclass(warning.category, UserWarning)}
    return Report(played, tuple(notes))


def _play(chat: Chat, script: _Script) -> Played:
    stage = _Stage("scripted", chat=chat, script=script)
    model = _ScriptedModel(chat, script)
    collector = Collector(LocalAgent(chat, model), [stage], deterministic=True, concurrency=1)
    try:
        (episode,) = collector.collect([Plan(0, "scripted", 0, 0, 0)])
        parts = _parts(episode)
        problem = _changed(chat, model, episode, parts) or _misheard(script, episode) or _unheard(chat, episode, parts)
        if not problem and script.has_tools and not script.broken:
            problem = _replayed_otherwise(chat, episode, stage.make().tools)
        return Played(script.name, parts, problem)
    except TemplateError as error:
        return Played(script.name, (), str(error))
    finally:
        collector.close()


@dataclass(frozen=True)
class _Stage(EnvSpec):
    """An environment that answers calls, also with text that spells every token it must not."""

    chat: Any = field(kw_only=True)
    script: Any = field(kw_only=True)

    def make(self) -> Any:
        def multiply(a: int, b: int) -> int:
            """Multiply two numbers."""
            return a * b

        def look_up(text: str) -> str:
            """Find a text."""
            return f"found: {text}"

        def read_page() -> str:
            """Read a page."""
            return " ".join(sorted(self.chat.control_texts))

        tasks = TaskSet([Task("scripted", "What is 6 * 7?", _ANSWER)], name="scripted", split="train")
        tools: list[Callable[..., Any]] = [multiply, look_up, read_page] if self.script.has_tools else []
        env = _Asking(tasks, verifier="exact", tools=tools, max_turns=8, max_tokens_per_turn=None)
        env.follow_ups = self.script.follow_ups
        return env


class _Asking(QuestionEnv):
    """The user asks again after the first answers."""

    follow_ups = 0

    def respond(self, action: str) -> Reply:
        reply = super().respond(action)
        if reply.final and self.follow_ups:
            self.follow_ups -= 1
            return Reply([{"role": "user", "content": "Sure"}])
        return reply


class _ScriptedModel(Engine):
    """Writes the turns of a script in the chat's own syntax, and keeps what it was fed."""

    max_context = 1 << 20
    pending = 0

    def __init__(self, chat: Chat, script: _Script) -> None:
        self.chat, self.script = chat, script
        self.fed: list[list[int]] = []
        self.written: list[list[int]] = []

    def submit(self, request: Request) -> None:
        self.fed.append(list(request.token_ids))
        self._request, self.pending = request, 1

    def step(self) -> list[Generation]:
        before, turn = self.fed[-1], len(self.written)
        broken = self.script.broken and turn == 0
        ids = _break(self.chat, before) if broken else self.chat.turn(self.script.turns[turn], before)
        self.written.append(ids)
        self.pending = 0
        zeros = (0,) * len(ids)
        return [Generation(self._request.id, tuple(ids), (0.0,) * len(ids), zeros, StopReason.STOP)]

    def cancel(self, request_id: int) -> None:
        self.pending = 0

    def release(self, episode_id: int) -> None:
        pass

    def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        raise NotImplementedError("a script has no probabilities")

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        raise NotImplementedError("a script has no weights")


def _break(chat: Chat, before: Sequence[int]) -> list[int]:
    """The ids of a call whose last bracket is missing."""
    pieces = chat.syntax.from_canonical(_CALL)
    last = max(index for index, piece in enumerate(pieces) if piece.kind == "text" and set(piece.text) & {"}", ")"})
    text = pieces[last].text
    cut = max(text.rfind("}"), text.rfind(")"))
    pieces[last] = Piece(text[:cut] + text[cut + 1 :])
    opened = [Piece("</think>", "marker")] if chat.is_open(before) else []
    return [*chat.encode([*opened, *pieces]), chat.end_token_id]


def _parts(episode: Episode) -> tuple[Part, ...]:
    """The episode cut where who writes changes; the roles of what the environment said come from its messages."""
    ids = [int(token) for token in episode.token_ids]
    answers: list[list[str]] = [[]]
    for message in episode.messages:
        if message["role"] == "assistant":
            answers.append([])
        else:
            answers[-1].append(str(message["role"]))
    parts: list[Part] = []
    end = 0
    for turn, roles in zip(episode.turns, answers, strict=False):
        parts.append(Part("prompt" if not parts else "+".join(roles), tuple(ids[end : turn.start]), False))
        parts.append(Part("assistant", tuple(ids[turn.start : turn.end]), True))
        end = turn.end
    return tuple(parts)


def _changed(chat: Chat, model: _ScriptedModel, episode: Episode, parts: Sequence[Part]) -> str:
    """What is wrong with the ids, or with the mask."""
    ids = [int(token) for token in episode.token_ids]
    grown = [fed + written for fed, written in zip(model.fed, model.written, strict=True)]
    if any(later[: len(earlier)] != earlier for earlier, later in pairwise([*grown, ids])):
        return "ids that were fed or sampled are others in a later turn"
    sampled = [list(part.ids) for part in parts if part.sampled]
    mask = [part.sampled for part in parts for _ in part.ids]
    if sampled != model.written or mask != [bool(value) for value in episode.mask]:
        return "the mask is not 1 on exactly the sampled ids"
    if any(written[-1] not in chat.stop_token_ids for written in model.written):
        return "a turn does not end in a stop token"
    if any(one.sampled and one.ids[-1:] == other.ids[:1] for one, other in pairwise(parts)):
        return "the mark that ends a turn stands there twice"
    return ""


def _misheard(script: _Script, episode: Episode) -> str:
    """What the script says and the environment did not hear."""
    heard = [parse_turn(str(message["content"])) for message in episode.messages if message["role"] == "assistant"]
    for number, (text, arrived) in enumerate(zip(script.turns, heard, strict=True), 1):
        said = parse_turn(text)
        if script.broken and number == 1:
            if arrived.calls or not arrived.errors:
                return "a malformed call reaches the environment as no error"
        elif (arrived.calls, arrived.content, arrived.errors) != (said.calls, said.content, ()):
            return f"turn {number} reaches the environment as {arrived}, not as {said}"
    return "" if episode.verdict.outcome is Outcome.CORRECT else f"the right answer is judged: {episode.verdict.reason}"


def _unheard(chat: Chat, episode: Episode, parts: Sequence[Part]) -> str:
    """What the environment said and the model was not told, or told in tokens that act."""
    fed = iter(part for part in parts if not part.sampled)
    next(fed)
    acting = chat.control_token_ids
    groups = _answers(episode.messages)
    for part, messages in zip(fed, groups, strict=False):
        plain = chat.suffix([{**message, "content": "x"} for message in messages], chat.end_token_id)
        if [token for token in part.ids if token in acting] != [token for token in plain if token in acting]:
            return "a tool's result is read as control tokens"
        text = chat.tokenizer.decode(list(part.ids))
        for message in messages:
            if message["content"].isalnum() and message["content"] not in text:
                return f"the template leaves out the {message['role']} message {message['content']!r}"
    return ""


def _answers(messages: Sequence[Mapping[str, Any]]) -> list[list[dict[str, Any]]]:
    """The messages after each turn of the agent."""
    groups: list[list[dict[str, Any]]] = []
    for message in messages:
        if message["role"] == "assistant":
            groups.append([])
        elif groups:
            groups[-1].append(dict(message))
    return [group for group in groups if group]


def _replayed_otherwise(chat: Chat, episode: Episode, tools: Sequence[Mapping[str, Any]]) -> str:
    """Whether the history before the last turn, put together again, has other ids than when it was played."""
    last = max(index for index, message in enumerate(episode.messages) if message["role"] == "assistant")
    again = chat.prompt(episode.messages[:last], tools)
    played = [int(token) for token in episode.token_ids[: episode.turns[-1].start]]
    return "" if again == played else "the history, put together again, has other ids than when it was played"
