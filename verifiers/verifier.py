"""The verifier contract and the table of registered verifiers."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.tasks.plugins import claim, look_up
from verigym.tasks.task import Task
from verigym.verifiers.verdict import Submission, Verdict


class Verifier(ABC):
    """Judges submissions. Safe to call from any thread; bad model output is a verdict, never an exception."""

    @abstractmethod
    def verify(self, submission: Submission, task: Task) -> Verdict:
        """The verdict on one submission to `task`. Raises VerifierInputError if the task itself cannot be judged."""

    def verify_many(self, pairs: Sequence[tuple[Submission, Task]]) -> list[Verdict]:
        """The verdicts in order. Pools and models override this; the default is a loop."""
        return [self.verify(submission, task) for submission, task in pairs]

    def golds(self, task: Task) -> list[str]:
        """Texts that must earn full reward, one for each accepted answer; a subclass gives them their form.

        None for a task that has right answers but names none of them.
        Raises VerifierInputError if the task itself cannot be judged.
        """
        targets = task.target if isinstance(task.target, list | tuple) else [task.target]
        return [str(target) for target in targets]

    def dress(self, gold: str) -> str:
        """The text `gold` in the form that this verifier asks for, whatever the answer; most ask for none."""
        return gold

    def feedback(self, submission: Submission, task: Task) -> str | None:
        """What the agent may be told of a submission that fails a public part of the task; None for nothing.

        Never says anything of what is hidden: the target.
        """
        return None

    @property
    def isolated(self) -> bool:
        """Whether nothing of a submission runs where it could reach the trainer; training asks for that."""
        return True

    def close(self) -> None:
        """Ends what `verify` waits for, from any thread, and frees what this verifier holds. Idempotent."""


_REGISTRY: dict[str, str | Callable[..., Verifier]] = {}


def register(name: str, factory: str | Callable[..., Verifier]) -> None:
    """Makes `make(name)` call `factory`, a callable or "module:attribute" that is imported on first use."""
    claim("verifier", name, _REGISTRY)
    _REGISTRY[name] = factory


def make(name: str, **options: Any) -> Verifier:
    """The verifier registered as `name`.

    Raises UnknownNameError for a wrong name or option, with a suggestion, and ConfigError for a missing one.
    """
    factory: Callable[..., Verifier] = look_up("verifier", name, _REGISTRY)
    accepted = inspect.signature(factory).parameters
    for option in options:
        if option not in accepted:
            raise UnknownNameError.of(f"option of verifier '{name}' named", option, accepted)
    for option, parameter in accepted.items():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty and option not in options:
            raise ConfigError(f"verifier '{name}' needs the option '{option}'; see docs/verifiers.md")
    return factory(**options)


def registered() -> list[str]:
    """The names that `make` takes."""
    return sorted(_REGISTRY)


register("math", "verigym.verifiers.math:MathVerifier")
register("exact", "verigym.verifiers.exact:ExactVerifier")
register("choice", "verigym.verifiers.choice:ChoiceVerifier")
register("numeric", "verigym.verifiers.numeric:NumericVerifier")
register("format", "verigym.verifiers.format:FormatVerifier")
register("composite", "verigym.verifiers.composite:CompositeVerifier")
register("countdown", "verigym.verifiers.countdown:CountdownVerifier")
register("reasoning_gym", "verigym.verifiers.reasoning_gym:ReasoningGymVerifier")
register("code", "verigym.verifiers.code:CodeVerifier")
register("state_match", "verigym.verifiers.state:StateMatchVerifier")
register("bfcl_turns", "verigym.verifiers.bfcl_turns:BFCLTurnsVerifier")
register("service", "verigym.verifiers.service:ServiceVerifier")
register("communication", "verigym.verifiers.communication:CommunicationVerifier")
register("call_match", "verigym.verifiers.call_match:CallMatchVerifier")
register("reward_model", "verigym.agents.reward_model:RewardModelVerifier")
register("rubric", "verigym.agents.rubric:RubricVerifier")
