"""Verdicts of reasoning-gym's own scorers, asked in a worker process."""

from __future__ import annotations

import threading
from typing import Any

from verigym.tasks import reasoning_gym
from verigym.tasks._pool import AnswerCrash, AnswerTimeout, Cancelled, PoolFailure
from verigym.tasks.errors import VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers.extract import Extraction, answer_block, answer_text, math_answer
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

MAX_LENGTH = 20_000
_NEEDED = ("dataset", "config", "seed", "index")


class ReasoningGymVerifier(Verifier):
    """What the scorer of the task's data set pays, from 0 to 1; correct is 1.

    The answer is what the `<answer>...</answer>` after the reasoning holds, or else the last `\\boxed{}`.
    Where a scorer pays for a text that has the right answer somewhere in it, only the full answer counts, and one
    that pays for anything counts only for the gold answer itself.
    Raises VerifierInputError from `verify` for a task that is not of `tasks.reasoning_gym`, ConfigError if
    reasoning-gym is not installed.
    """

    def __init__(self) -> None:
        self._closed = threading.Event()

    def verify(self, submission: Submission, task: Task) -> Verdict:
        if any(name not in task.metadata for name in _NEEDED):
            raise VerifierInputError(f"a task of reasoning-gym has {', '.join(_NEEDED)} in its metadata")
        found = _answer(submission.text)
        if found.answer is None:
            return Verdict(0.0, Outcome.UNPARSEABLE, found.reason)
        details = {"answer": found.answer, "gold": task.target}
        try:
            score = reasoning_gym.score(task, found.answer, self._closed)
        except AnswerTimeout:
            return Verdict(0.0, Outcome.TIMEOUT, "scoring the answer took too much CPU time", details=details)
        except AnswerCrash as error:
            return Verdict(0.0, Outcome.ERROR, str(error), details=details)
        except Cancelled:
            return Verdict.infra_error("the verifier was closed", **details)
        except (PoolFailure, OSError) as error:
            return Verdict.infra_error(f"no worker could score the answer: {error}", **details)
        return _verdict(score, task.metadata["dataset"], details)

    def golds(self, task: Task) -> list[str]:
        """The answer that the generator names; none for a data set that leaves it to the scorer."""
        return [] if task.target is None else [f"<answer>{task.target}</answer>"]

    def close(self) -> None:
        self._closed.set()


def _answer(text: str) -> Extraction:
    after = answer_text(text)
    if after is None:
        return Extraction(None, "the reasoning never ends: a <think> without its </think>")
    block = answer_block(after)
    found = math_answer(after) if block is None else Extraction(block.strip("\n"))
    if found.answer is not None and len(found.answer) > MAX_LENGTH:
        return Extraction(None, f"the answer is longer than {MAX_LENGTH} characters")
    if found.answer is not None and not found.answer.strip():
        return Extraction(None, "the answer is empty")
    return found


def _verdict(score: float, dataset: str, details: dict[str, Any]) -> Verdict:
    outcome = Outcome.CORRECT if score >= 1 else Outcome.WRONG
    return Verdict(score, outcome, f"the scorer of {dataset} gives {score:.3g}", {"score": score}, details)
