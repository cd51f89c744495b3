"""Environments of Prime Intellect's verifiers as verigym's (`verigym[verifiers]`).

Any environment that a module gives as verifiers has it, such as one of the Environments Hub:

    def load_environment(**arguments) -> vf.Environment:
        return vf.SingleTurnEnv(dataset=..., rubric=vf.Rubric(funcs=[...]))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from verigym.envs.adapters._sessions import Session
from verigym.envs.adapters.adapted import AdaptedEnv, Drawn, Ending, described
from verigym.envs.text_env import Budget, Message, Reply
from verigym.tasks.canonical import parse_turn
from verigym.tasks.errors import UnknownNameError


class PrimeVerifiersEnv(AdaptedEnv):
    """A MultiTurnEnv of verifiers: a SingleTurnEnv, a ToolEnv, or one of its own, and its rubric's reward at the end.

    The package runs its own rollout, in which the agent is the model. The verdict's components are the rubric's
    functions and metrics, unweighted. A reward function that raises is an INFRA_ERROR, not the 0 that verifiers makes
    of it. A budget ends the rollout as a prompt too long does, and the rubric judges what was said.

    Args:
        environment: the name of the module, as `verifiers.load_environment` takes it, or the path of its file (.py).
        arguments: those of its `load_environment`, as JSON.
        split: "train" for its data set, "test" for its data set for evaluation.
        instructions: a text put under the first question, after a blank line ("" for none).
        isolated: whether nothing that the agent says runs where it could do harm, which only you can know; training
            asks for that.
        python: the interpreter that has verifiers (None: this one).
        max_turns, max_tokens_per_turn, max_tokens_per_episode: the budgets; None is no limit on tokens.
        chance: the reward that a policy blind to the question can earn (None: measured when it is asked for).

    Raises ConfigError for an environment that cannot be made or played, with the reason, and if verifiers is not
    installed; TaskDataError from `reset` for a task that cannot begin.
    """

    adapter: ClassVar[str] = "prime"
    package: ClassVar[str] = "verifiers"
    extra: ClassVar[str] = "verifiers"

    def __init__(
        self,
        environment: str = "",
        *,
        arguments: Mapping[str, Any] | None = None,
        split: str = "train",
        instructions: str = "",
        isolated: bool = False,
        python: str | None = None,
        max_turns: int = 50,
        max_tokens_per_turn: int | None = 1024,
        max_tokens_per_episode: int | None = None,
        chance: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        if split not in ("train", "test"):
            raise UnknownNameError.of("split of 'prime' named", str(split), ["train", "test"])
        spec = {"environment": environment, "arguments": dict(arguments or {}), "split": split}
        found = described(PrimeVerifiersEnv, python, spec, environment)
        self._tools, self._isolated = found["tools"], isolated
        drawn = Drawn(PrimeVerifiersEnv, python, spec, split, f"{_module(environment)}-{split}", 0, 1)
        super().__init__(
            drawn.of_size(found["size"]),
            spec=spec,
            python=python,
            instructions=instructions,
            budget=Budget(max_turns, max_tokens_per_turn, max_tokens_per_episode),
            chance=chance,
            render_mode=render_mode,
        )

    @property
    def tools(self) -> list[dict[str, Any]]:
        return list(self._tools)

    @property
    def isolated(self) -> bool:
        return self._isolated

    def begin(self, session: Session, reply: Mapping[str, Any]) -> list[Message]:
        self._tools = reply["tools"]
        return [dict(message) for message in reply["messages"]]

    def play(self, session: Session, action: str) -> Reply:
        turn = parse_turn(action)
        errors = [{"role": "tool", "name": "error", "content": f"error: {error}"} for error in turn.errors]
        if self._tools and errors and not turn.calls:
            self._heard -= 1  # verifiers would take it for a turn without a call, and end
            return Reply(errors)
        return self._told(self._tell(session, action), [call.name for call in turn.calls], errors)

    def broken_off(self, session: Session, cut: str | None) -> Ending:
        reply = session.move(content=None) if cut is None else self._tell(session, cut, last=True)
        return _ending(reply)

    def _tell(self, session: Session, action: str, *, last: bool = False) -> Mapping[str, Any]:
        turn = parse_turn(action)
        heard = turn.calls if self._tools and not last else ()  # a call in a turn that was cut is not run
        calls = [{"name": call.name, "arguments": call.arguments} for call in heard]
        content = turn.content if calls or turn.reasoning else action
        return session.move(content=content, reasoning=turn.reasoning, calls=calls, last=last)

    def _told(self, reply: Mapping[str, Any], calls: list[str], errors: list[Message]) -> Reply:
        names = iter(calls)
        told = [
            {**message, "name": next(names, "tool")} if message["role"] == "tool" else dict(message)
            for message in reply["messages"]
        ]
        if "over" not in reply:
            return Reply([*told, *errors])
        self._end = _ending(reply)
        return Reply([*told, *errors], final=True)


def _ending(reply: Mapping[str, Any]) -> Ending:
    return Ending(reply["reward"], reply["reason"], reply["components"], reply["invalid"])


def _module(environment: str) -> str:
    return environment.rpartition("/")[2].removesuffix(".py")
