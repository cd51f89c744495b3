"""Any environment as TRL's `environment_factory`: TRL's GRPOTrainer plays its tools and trains on its rewards.

factory = environment_factory("verigym/Calculator-v0", level=1)
GRPOTrainer(model, reward_funcs=environment_reward, environment_factory=factory, train_dataset=factory.dataset())
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any, Literal, Union

from datasets import Dataset

from verigym.agents.episode import derive_seed
from verigym.envs.mixture import EnvSpec
from verigym.envs.question import QuestionEnv
from verigym.envs.text_env import TextEnv
from verigym.tasks._generate import whole_number
from verigym.tasks.canonical import escape, render_call
from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.verifiers.verdict import Outcome

_log = logging.getLogger(__name__)
_OVER = "The task is over."
_TAKEN = ("self", "reset", "get_reward", "say")
_TYPES: Mapping[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "object": dict}


def environment_factory(env_id: str, /, **kwargs: Any) -> EnvironmentFactory:
    """What TRL's `GRPOTrainer(environment_factory=...)` takes, of `gym.make(env_id, **kwargs)`.

    The model gets the environment's tools as tools. What it writes last, without a call, is its last turn. Where an
    episode may go on after a turn without a call (a game, a user), there is a tool `say(text)` for those turns.
    Budgets of tokens are TRL's (`max_completion_length`); each call is a turn of the environment.

    Raises ConfigError if the environment's tools cannot be methods, or it is no TextEnv, and what `gym.make` raises.
    """
    return EnvironmentFactory(EnvSpec(env_id, kwargs=kwargs))


def environment_reward(
    completions: Sequence[Sequence[Mapping[str, Any]]], environments: Sequence[Rollout], **others: Any
) -> list[float | None]:
    """The reward function for TRL's trainer: the return of each environment's episode, which it ends.

    None, which TRL leaves out of the loss and of the group's baseline, for an INFRA_ERROR; it is logged as a warning
    and counted in the metric `infra_errors`.
    """
    pairs = zip(environments, completions, strict=True)
    rewards = [environment._judge(completion) for environment, completion in pairs]
    if "log_metric" in others:
        others["log_metric"]("infra_errors", float(sum(reward is None for reward in rewards)))
    return rewards


class EnvironmentFactory:
    """Makes an environment for each rollout, and the data set of their tasks."""

    def __init__(self, spec: EnvSpec) -> None:
        self._spec, env = spec, spec.make()
        text = env.unwrapped
        if not isinstance(text, TextEnv):
            raise ConfigError(f"{spec.id} is no TextEnv: TRL's rollouts need its tasks and its verdict")
        self._task_ids = text.tasks.ids
        functions = [tool["function"] for tool in text.tools]
        methods = {function["name"]: _method(spec.id, function) for function in functions}
        base = TalkingRollout if _goes_on(text) else Rollout
        self._class = type("VerigymEnvironment", (base,), {"_schemas": text.tools, **methods})
        env.close()

    def __call__(self) -> Rollout:
        made: Rollout = self._class(self._spec)
        return made

    def dataset(self, size: int | None = None) -> Dataset:
        """A row for each of the first `size` tasks (default: all), which the members of a group share.

        `prompt` is empty, for the environment says what is asked; `task` and `seed` begin its episode.
        """
        if size is not None:
            size = whole_number("dataset", "size", size, 1, len(self._task_ids))
        rows = [
            {
                "prompt": [{"role": "user", "content": ""}],
                "task": task_id,
                "seed": derive_seed(0, task_id) % 2**31,
            }
            for task_id in self._task_ids[:size]
        ]
        return Dataset.from_list(rows)


class Rollout:
    """An environment as TRL sees it: its public methods, but for `reset`, are the model's tools."""

    _schemas: list[dict[str, Any]]

    def __init__(self, spec: EnvSpec) -> None:
        self._id = spec.id
        self._env: Any = spec.make().unwrapped
        self._return, self._verdict, self._failure = 0.0, None, ""

    def reset(self, **row: Any) -> str:
        """Begins the episode of a row of `EnvironmentFactory.dataset`; returns what is asked.

        One that cannot begin has no reward. Raises ConfigError or UnknownNameError for a row of another data set.
        """
        if "task" not in row or "seed" not in row:
            raise ConfigError("a row needs the columns task and seed: train_dataset=factory.dataset()")
        self._return, self._verdict, self._failure = 0.0, None, ""
        try:
            _, info = self._env.reset(seed=row["seed"], options={"task": row["task"]})
        except (ConfigError, UnknownNameError):
            raise
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            return _OVER
        if info["tools"] != self._schemas:
            raise ConfigError(f"{self._id} has other tools for the task '{row['task']}': TRL's are the same for all")
        roles = [message["role"] for message in info["messages"]]
        if set(roles) - {"system", "user"}:
            raise ConfigError(f"{self._id} begins with messages of {roles}: TRL's rollouts begin with the user's")
        return "\n\n".join(message["content"] for message in info["messages"])

    def _turn(self, action: str, *, cut: bool = False) -> str:
        """What the environment says to a turn. What it raises is kept for the verdict, as TRL tells it to the model."""
        if self._verdict is not None or self._failure:
            return _OVER
        self._env.announce(0, cut=cut)  # tokens are TRL's to count
        try:
            observation, reward, _, _, info = self._env.step(action)
        except Exception as error:
            self._failure = f"{type(error).__name__}: {error}"
            raise
        self._return += float(reward)
        self._verdict = info.get("verdict")
        return str(observation) or (_OVER if self._verdict is not None else "")

    def _judge(self, completion: Sequence[Mapping[str, Any]]) -> float | None:
        """The return of the episode, whose last turn is the completion's, if that is no call; None if it has none."""
        last = completion[-1] if completion else {"role": "assistant", "content": ""}
        try:
            if last["role"] == "assistant" and not last.get("tool_calls"):
                self._turn(str(last.get("content") or ""))
            self._turn("", cut=True)  # TRL ended it before the environment did
        except Exception as error:
            _log.debug("the last turn failed: %s", error)
        if self._failure or self._verdict is None or self._verdict.outcome is Outcome.INFRA_ERROR:
            why = self._failure or (self._verdict and self._verdict.reason)
            _log.warning("an episode of %s has no reward, and is left out: %s", self._id, why)
            return None
        return self._return


class TalkingRollout(Rollout):
    """One whose episode may go on after a turn without a call."""

    def say(self, text: str) -> str:
        """Say something and hear the answer: a move, words to whom you talk with, a try at an answer.

        Args:
            text: what you say
        """
        return self._turn(escape(text))


def _goes_on(env: TextEnv) -> bool:
    """Whether an episode may go on after a turn without a call."""
    answers_once = isinstance(env, QuestionEnv) and env.feedback == "none"
    return env.budget.turns > 1 and not answers_once


def _method(env_id: str, function: Mapping[str, Any]) -> FunctionType:
    """A method with the signature and the docstring from which transformers makes the tool's schema again."""
    name, parameters = function["name"], function.get("parameters", {})
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    for word in (name, *properties):
        if not word.isidentifier() or word.startswith("_") or word in _TAKEN:
            raise ConfigError(f"{env_id} cannot be played by TRL: '{word}' of its tool '{name}' is no name for it")

    def call(self: Rollout, **arguments: Any) -> str:
        return self._turn(render_call(name, arguments))

    hints = {word: _type(schema) for word, schema in properties.items()}
    keyword, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD),
            *(
                inspect.Parameter(word, keyword, annotation=hint, default=empty if word in required else None)
                for word, hint in hints.items()
            ),
        ]
    )
    call.__name__ = call.__qualname__ = name
    call.__annotations__ = hints
    lines = [f"    {word}: {_line(schema.get('description') or word)}" for word, schema in properties.items()]
    call.__doc__ = "\n".join([_line(function.get("description") or name), "", *(["Args:", *lines] if lines else [])])
    return call  # type: ignore[return-value]


def _line(text: str) -> str:
    return " ".join(str(text).split())


def _type(schema: Mapping[str, Any]) -> Any:
    """The type hint of which transformers makes about this schema."""
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    kind = schema.get("type")
    if isinstance(kind, list):
        return Union[tuple(_type({**schema, "type": one}) for one in kind)]  # noqa: UP007 - of a list of types
    if kind == "null":
        return type(None)
    if kind == "array":
        return list[_type(schema["items"])] if schema.get("items") else list  # type: ignore[misc]
    return _TYPES.get(str(kind), Any)
