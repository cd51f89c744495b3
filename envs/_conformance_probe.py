"""What the conformance checks share: the environment under test, the turns it is played with, and what it says."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator

from verigym.envs.null_policies import boxed, random_call
from verigym.envs.text_env import TextEnv
from verigym.verifiers.verdict import Verdict

TURNS = 12  # of the agent, in an episode that does not end by itself
ANSWER = "I do not know: \\boxed{1}"
MALFORMED = "<tool_call>{"
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_MAX_DETAIL = 300


class Broken(Exception):  # noqa: N818 - a finding, not a failure of ours
    """The rule does not hold; the message says what was seen."""


class Unchecked(Exception):  # noqa: N818
    """The rule cannot be checked on this environment; the message says why."""


@dataclass(frozen=True)
class Turn:
    """What an environment says to a reset or a step."""

    observation: str
    info: dict[str, Any]
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False

    @property
    def ended(self) -> bool:
        return bool(self.terminated or self.truncated)


@dataclass(eq=False)
class Subject:
    """The environment under test: makes instances, and closes them."""

    spec: EnvSpec
    modules: Sequence[str] = ()
    """What must be imported before it can be made."""
    _made: list[gym.Env[str, str]] = field(default_factory=list)

    def make(self, **overrides: Any) -> gym.Env[str, str]:
        """A new environment with Gymnasium's wrappers."""
        env = gym.make(self.spec, **overrides)
        self._made.append(env)
        return env

    def bare(self, **overrides: Any) -> Any:
        """A new environment without wrappers."""
        return self.make(**overrides).unwrapped

    def text(self, **overrides: Any) -> TextEnv:
        """A new environment without wrappers. Raises Unchecked if it is no TextEnv."""
        env = self.bare(**overrides)
        if not isinstance(env, TextEnv):
            raise Unchecked("it is no TextEnv")
        return env

    def unlimited(self) -> Any:
        """A new environment that lets a turn of any length through, and ends after the second one."""
        wanted = {"max_tokens_per_turn": None, "max_turns": 2}
        return self.bare(**{name: value for name, value in wanted.items() if name in self.parameters})

    @cached_property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword arguments that the environment names."""
        entry = self.spec.entry_point
        create: Any = load_env_creator(entry) if isinstance(entry, str) else entry
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        signature = inspect.signature(create).parameters
        return {name: parameter for name, parameter in signature.items() if parameter.kind in kinds}

    def close(self) -> None:
        """Closes what was made."""
        while self._made:
            with contextlib.suppress(Exception):  # that it can be closed is a rule of its own
                self._made.pop().close()


CheckFunction = Callable[[Subject], None]
RULES: dict[str, CheckFunction] = {}


def rule(text: str) -> Callable[[CheckFunction], CheckFunction]:
    """Names a check by what it checks. It raises Broken or Unchecked; another exception breaks the rule, too."""

    def add(function: CheckFunction) -> CheckFunction:
        RULES[text] = function
        return function

    return add


def expect(holds: bool, seen: str) -> None:
    """Raises Broken with what was seen if something does not hold."""
    if not holds:
        raise Broken(seen)


def expect_raises(kind: type[BaseException], call: Callable[[], Any], what: str) -> BaseException:
    """The exception of a call that must fail. Raises Broken if it returns or raises another kind."""
    try:
        call()
    except kind as error:
        return error
    except Exception as error:
        raise Broken(f"{what} raises {said_of(error)}, not {kind.__name__}") from error
    raise Broken(f"{what} raises nothing; it must raise {kind.__name__}")


def opening(env: Any, **reset: Any) -> Turn:
    """What a reset says."""
    observation, info = env.reset(**reset)
    return Turn(observation, info)


def answer(env: Any, action: Any) -> Turn:
    """What a step says."""
    observation, reward, terminated, truncated, info = env.step(action)
    return Turn(observation, info, reward, terminated, truncated)


def script(info: Mapping[str, Any], seed: int = 0) -> Iterator[str]:
    """Turns to play with: a call of a random tool, a malformed one, and then answers."""
    if info.get("tools"):
        yield random_call(np.random.default_rng(seed), "", info)
        yield MALFORMED
    yield ANSWER
    yield from [boxed(3)] * TURNS


def play(env: Any, **reset: Any) -> list[Turn]:
    """An episode of the script's turns, up to its end or `TURNS` turns."""
    turns = [opening(env, **reset)]
    for action in script(turns[0].info):
        if len(turns) > TURNS or turns[-1].ended:
            break
        turns.append(answer(env, action))
    return turns


def play_turns(env: Any, actions: Iterable[str]) -> list[Turn]:
    """What is said to these turns, up to the end of the episode that runs."""
    turns: list[Turn] = []
    for action in actions:
        turns.append(answer(env, action))
        if turns[-1].ended:
            break
    return turns


def finished(env: Any, **reset: Any) -> list[Turn]:
    """An episode to its end. Raises Unchecked if it has none within `TURNS` turns."""
    turns = play(env, **reset)
    if not turns[-1].ended and isinstance(env, TextEnv):
        env.announce(1, cut=True)
        turns.append(answer(env, ANSWER))
    if not turns[-1].ended:
        raise Unchecked(f"an episode does not end within {TURNS} turns")
    return turns


def started(env: Any, **reset: Any) -> tuple[list[Any], str, list[str]]:
    """An episode that is not over yet: its messages, its last observation, and turns to go on with.

    One turn of the script is played, if that does not end it.
    """
    turn = opening(env, **reset)
    first, *rest = script(turn.info)
    messages = list(turn.info["messages"])
    if turn.info.get("tools"):
        after = answer(env, first)
        if not after.ended:
            said = {"role": "assistant", "content": first}
            return [*messages, said, *after.info["messages"]], after.observation, rest
        opening(env, **reset)
    return messages, turn.observation, [ANSWER, *rest]


def plain(value: Any) -> Any:
    """What was said as JSON: equal in any process if the same was said."""
    if isinstance(value, Turn):
        return [
            plain(part) for part in (value.observation, value.reward, value.terminated, value.truncated, value.info)
        ]
    if isinstance(value, Verdict):
        return [repr(float(value.reward)), value.outcome.value, value.reason]
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(part) for part in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return repr(value)  # NaN equals itself
    if value is None or isinstance(value, str | bool | int):
        return value
    return _ADDRESS.sub("", repr(value))


def expect_same(one: Any, other: Any, what: str) -> None:
    """Raises Broken with the first difference if two things that were said differ."""
    left, right = plain(one), plain(other)
    if left != right:
        raise Broken(f"{what}: {_difference(left, right)}")


def _difference(left: Any, right: Any, path: str = "") -> str:
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        pairs: Sequence[tuple[Any, Any, Any]] = [(key, left[key], right[key]) for key in left]
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = [(index, *pair) for index, pair in enumerate(zip(left, right, strict=True))]
    else:
        return f"{_short(left)} and {_short(right)}"
    key, one, other = next(pair for pair in pairs if pair[1] != pair[2])
    return _difference(one, other, f"{path}[{key!r}]")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def said_of(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split()).encode("utf-8", "backslashreplace").decode()[:_MAX_DETAIL]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
