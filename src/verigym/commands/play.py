"""`verigym play`: an episode at the terminal, played by a person or by a model."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast

import tyro

from verigym.commands._arguments import Options, Source, Split, key_values
from verigym.commands._environment import text_env
from verigym.envs.text_env import TextEnv
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import ConfigError
from verigym.verifiers.verdict import Verdict

_BLOCK = '"""'
_HELP = (
    f"A line is a turn; a turn of several lines stands between two lines {_BLOCK}. The end of input ends the episode."
)

Messages = Sequence[Mapping[str, Any]]
Player = Callable[[Messages, Sequence[Mapping[str, Any]]], str | None]
"""Answers the conversation, given the tools; None ends the episode."""


@dataclass(frozen=True)
class Play:
    """Play an environment by hand, or watch a model play it.

    By hand, a line is a turn; a turn of several lines stands between two lines of three double quotes; empty lines
    are skipped, and the end of input (Ctrl-D) ends the episode.
    """

    id: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ID")]
    """The environment, such as verigym/Calculator-v0."""
    source: Source = None
    """Where the data is read from: a hub id, a file or a folder."""
    split: Split = None
    """The split of the tasks."""
    seed: Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="(default: another one each time)")] = (
        None
    )
    """Seed of the episode, and of a model's sampling."""
    task: Annotated[str | None, tyro.conf.arg(metavar="TASK", help_behavior_hint="(default: drawn by the seed)")] = None
    """The id of the task."""
    option: Options = ()
    """A keyword argument of the environment, such as level=3."""
    model: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: by hand)")] = None
    """A checkpoint that plays in your place: a folder or a hub id."""

    def run(self) -> int:
        """Plays one episode on standard input and output."""
        _tolerate_any_text()
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"--seed must be at least 0, not {self.seed}")
        env = text_env(self.id, key_values(self.option), source=self.source, split=self.split)
        seed = secrets.randbelow(2**31) if self.seed is None else self.seed
        player = _by_hand if self.model is None else _model(self.model, env, seed)
        try:
            play(env, player, seed=seed, options={} if self.task is None else {"task": self.task})
        finally:
            env.close()
        return 0


def play(env: TextEnv, player: Player, *, seed: int, options: Mapping[str, Any]) -> None:
    """Plays an episode and prints it as it goes."""
    _, info = env.reset(seed=seed, options=options)
    tools = info["tools"]
    _say(f"task {info['task_id']}, seed {seed}")
    for tool in tools:
        _say(_describe(tool["function"]))
    if player is _by_hand:
        _say(_HELP)
    messages: list[Mapping[str, Any]] = list(info["messages"])
    _show(messages)
    while True:
        turn = player(messages, tools)
        if turn is None:
            _say("the input ended before the task did; no verdict")
            return
        messages.append({"role": "assistant", "content": turn})
        if player is not _by_hand:
            _show(messages[-1:])
        _, _, terminated, truncated, info = env.step(turn)
        messages += info["messages"]
        _show(info["messages"])
        if terminated or truncated:
            _say(_judgement(info["verdict"], truncated))
            return


def _by_hand(messages: Messages, tools: Sequence[Mapping[str, Any]]) -> str | None:
    """The next turn from standard input, None at its end."""
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line:
            return None
        if line.strip() == _BLOCK:
            return "".join(iter(_line_of_block, "")).removesuffix("\n")
        if line.strip():
            return line.removesuffix("\n")


def _line_of_block() -> str:
    """A line of a turn of several, "" at the block's end."""
    line = sys.stdin.readline()
    return "" if line.strip() == _BLOCK else line


def _model(path: str, env: TextEnv, seed: int) -> Player:
    import torch

    from verigym.agents.agent import LocalAgent, load_chat
    from verigym.agents.engines.config import EngineConfig
    from verigym.agents.engines.make import make_engine

    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, chat = load_chat(path)
    limit = env.budget.tokens_per_turn or 1024
    engine = make_engine(EngineConfig(), path, dtype=torch.float32, device=device, slots=1)
    return LocalAgent(chat, engine, max_new_tokens=limit, seed=seed).act


def _describe(function: Mapping[str, Any]) -> str:
    """A tool in two lines: its signature and purpose, and how a call is written."""
    properties = function["parameters"].get("properties", {})
    signature = ", ".join(f"{name}: {schema.get('type', 'any')}" for name, schema in properties.items())
    example = render_call(function["name"], dict.fromkeys(properties, "..."))
    return f"tool {function['name']}({signature}): {function['description']}\n  {example}"


def _judgement(verdict: Verdict, truncated: bool) -> str:
    ended = "the budget is used up" if truncated else "the task ended"
    parts = f" {json.dumps(dict(verdict.components))}" if verdict.components else ""
    return f"{ended}: {verdict.outcome.value}, reward {verdict.reward:g}{parts}: {verdict.reason}"


def _show(messages: Messages) -> None:
    for message in messages:
        print(f"[{message['role']}]\n{message['content']}\n", flush=True)


def _say(text: str) -> None:
    print(f"-- {text}", flush=True)


def _tolerate_any_text() -> None:
    """Lets standard input and output pass what is no valid text in the terminal's encoding."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            cast(Any, stream).reconfigure(errors=errors)
