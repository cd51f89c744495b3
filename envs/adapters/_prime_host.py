"""What a worker does for Prime Intellect's verifiers: runs an environment's rollouts, with the agent as their model.

A rollout is the environment's own; it waits where it asks its client for the next turn, which is the agent's. Imports
nothing of verigym.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import verifiers as vf

VERSION = version("verifiers")  # raises ImportError where only some folder has that name
if not hasattr(vf, "MultiTurnEnv"):
    raise ImportError(f"verifiers {VERSION} has only environments of its v1; those before it are in 0.3")

from verifiers.clients import Client  # noqa: E402 - only once the version is known
from verifiers.types import Response, ResponseMessage, ToolCall  # noqa: E402

logging.getLogger("verifiers").setLevel(logging.CRITICAL)  # what goes wrong is in the replies
_loop = asyncio.new_event_loop()
_failures: list[str] = []  # of reward functions, while one rollout is scored


def describe(spec: dict[str, Any]) -> dict[str, Any]:
    """The number of tasks, and the tools. Raises ValueError for an environment that cannot be played turn by turn."""
    env = _environment(json.dumps(spec))
    if not isinstance(env, vf.MultiTurnEnv):
        raise ValueError(f"a {type(env).__name__} is no MultiTurnEnv, so it cannot be played turn by turn")
    if env.rubric.has_group_rewards:
        raise ValueError("its rubric has rewards for a group of rollouts, and an episode is judged by itself")
    if not env.score_rollouts:
        raise ValueError("it does not score its rollouts (score_rollouts is false)")
    if not (size := len(_rows(json.dumps(spec)))):
        raise ValueError(f"its data set for {spec['split']} is empty")
    return {"size": size, "tools": [_schema(tool) for tool in env.tool_defs or []]}


@cache
def _environment(spec: str) -> Any:
    _watch_rewards()
    wanted = json.loads(spec)
    name, arguments = wanted["environment"], wanted["arguments"]
    if not name.endswith(".py"):
        return vf.load_environment(name, **arguments)
    path = Path(name)
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    if module_spec is None or module_spec.loader is None or not path.is_file():
        raise ValueError(f"there is no file {name}")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[path.stem] = module
    module_spec.loader.exec_module(module)
    return module.load_environment(**arguments)


@cache
def _rows(spec: str) -> Any:
    env = _environment(spec)
    return env.get_dataset() if json.loads(spec)["split"] == "train" else env.get_eval_dataset()


@cache
def _watch_rewards() -> None:
    """Notes what a reward function raises: a rubric makes a 0 of it."""
    module: Any = sys.modules[vf.Rubric.__module__]
    original = module.maybe_await

    async def watched(function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            value = await original(function, *args, **kwargs)
            float(value)
        except Exception as error:
            _failures.append(f"{getattr(function, '__name__', function)}: {type(error).__name__}: {error}")
            raise
        return value

    module.maybe_await = watched


class _Agent(Client):
    """The model of a rollout: it passes on what it is asked, and waits for the answer."""

    def __init__(self) -> None:
        super().__init__(None)
        self.asked: asyncio.Future[tuple[Any, Any]] = _loop.create_future()
        self.answer: asyncio.Future[Any] = _loop.create_future()

    def hear(self, message: Any) -> None:
        """Answers; None is that the budget is used up."""
        answer = self.answer
        self.asked, self.answer = _loop.create_future(), _loop.create_future()
        answer.set_result(message)

    async def get_response(
        self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **kwargs: Any
    ) -> Response:
        self.asked.set_result((prompt, tools))
        message = await self.answer
        if message is None:
            raise vf.OverlongPromptError("a budget ended the episode")
        return Response(id="agent", created=int(time.time()), model=model, usage=None, message=message)

    def setup_client(self, config: Any) -> Any:
        raise NotImplementedError

    to_native_tool = to_native_prompt = get_native_response = setup_client  # type: ignore[assignment]
    raise_from_native_response = from_native_response = setup_client  # type: ignore[assignment]

    async def close(self) -> None:
        """Nothing is held."""


class Session:
    """A rollout of the row `index`."""

    def __init__(self, spec: dict[str, Any], seed: int, index: int) -> None:
        key = json.dumps(spec)
        self._env, self._row = _environment(key), dict(_rows(key)[index])
        self._agent = _Agent()
        self._said: list[Any] = []  # messages of the conversation that were told, with the agent's own
        self._tools: list[Any] = []
        self._turns = 0
        self._rollout = _loop.create_task(self._run())

    async def _run(self) -> Any:
        state = await self._env.rollout(self._row, self._agent, "agent", {})
        await self._env.rubric.score_rollout(state)
        await self._env.rubric.cleanup(state)
        return state

    def opening(self) -> dict[str, Any]:
        reply = self._go_on()
        if "over" in reply:
            raise ValueError(f"the rollout is over before the first turn: {reply['reason']}")
        return {**reply, "prompt": _text(reply["messages"]), "tools": self._tools}

    def move(self, move: dict[str, Any]) -> dict[str, Any]:
        """Plays the agent's turn; one that is cut off ends the rollout, as does none."""
        message = None
        if move["content"] is not None:
            calls = [
                ToolCall(id=f"call-{self._turns}-{number}", name=call["name"], arguments=json.dumps(call["arguments"]))
                for number, call in enumerate(move["calls"])
            ]
            self._turns += 1
            reasoning, content = move["reasoning"], move["content"]
            if reasoning and isinstance(self._env.parser, vf.ThinkParser):  # which reads it in the text alone
                reasoning, content = "", f"<think>\n{reasoning}\n</think>\n\n{content}"
            message = ResponseMessage(
                content=content,
                reasoning_content=reasoning or None,
                tool_calls=calls or None,
                finish_reason="length" if move["last"] else "tool_calls" if calls else "stop",
                is_truncated=move["last"],
            )
            self._said.append(message)
        self._agent.hear(message)
        reply = self._go_on()
        return self.move({"content": None}) if move.get("last") and "over" not in reply else reply

    def close(self) -> None:
        """Gives the rollout up."""
        self._rollout.cancel()
        _loop.run_until_complete(asyncio.gather(self._rollout, return_exceptions=True))

    def _go_on(self) -> dict[str, Any]:
        """Runs the rollout up to the next question to the agent, or to its end."""
        _failures.clear()
        _loop.run_until_complete(asyncio.wait([self._rollout, self._agent.asked], return_when=asyncio.FIRST_COMPLETED))
        if self._rollout.done():
            return self._result(self._rollout.result())
        prompt, tools = self._agent.asked.result()
        schemas = [_schema(tool) for tool in tools or []]
        if self._turns and schemas != self._tools:
            raise ValueError("it changes its tools within an episode")
        self._tools = schemas
        return {"messages": self._new(prompt)}

    def _result(self, state: Any) -> dict[str, Any]:
        error = state.get("error")
        if error is not None and not isinstance(error, vf.ToolParseError):
            raise error
        if _failures:
            raise ValueError(f"its rubric failed at {_failures[0]}")
        stop = str(state.get("stop_condition") or "the end")
        return {
            "over": True,
            "messages": self._last([*state["prompt"], *state["completion"]]),
            "reward": float(state["reward"]),
            "reason": f"the rubric pays {float(state['reward']):.3g} after {stop.replace('_', ' ')}",
            "invalid": error is not None,
            "components": {name: float(value) for name, value in (state["metrics"] or {}).items()},
        }

    def _last(self, conversation: list[Any]) -> list[dict[str, str]]:
        """What is new at the end; where a budget ended the rollout, verifiers leaves out what nobody answered."""
        known = [_plain(message) for message in self._said]
        if [_plain(message) for message in conversation] == known[: len(conversation)]:
            return []
        return self._new(conversation)

    def _new(self, conversation: Any) -> list[dict[str, str]]:
        """The messages that the agent has not been told yet. Raises ValueError if those before were changed."""
        messages = list(conversation)
        count = len(self._said)
        if [_plain(message) for message in messages[:count]] != [_plain(message) for message in self._said]:
            raise ValueError("it rewrites what was said before, and an episode only goes on")
        self._said = messages
        return [_told(message) for message in messages[count:]]


def _plain(message: Any) -> tuple[str, Any]:
    return message.role, message.content or ""


def _told(message: Any) -> dict[str, str]:
    if not isinstance(message.content or "", str):
        raise ValueError("a message has other content than text")
    role = "user" if message.role == "text" else message.role  # the prompt of a completion
    return {"role": role, "content": message.content or ""}


def _text(messages: list[dict[str, str]]) -> str:
    return "\n\n".join(message["content"] for message in messages if message["role"] != "system")


def _schema(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}
