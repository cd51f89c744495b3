"""What every registered verifier keeps to: verdicts, no exceptions, from any thread, the same every time."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from verigym import verifiers
from verigym.tasks.errors import UnknownNameError
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict


@dataclass(frozen=True)
class Sample:
    """A task of a verifier's kind, a submission that is right and one that is wrong."""

    task: Task
    right: Submission
    wrong: Submission


SAMPLES: dict[str, Sample] = {
    "math": Sample(
        Task("t", "What is the sum of one half and one third?", r"\frac{5}{6}"),
        Submission(r"<think>3/6 + 2/6</think> It is \boxed{\frac{10}{12}}."),
        Submission(r"It is \boxed{\frac{2}{5}}."),
    ),
    "exact": Sample(Task("t", "Say yes.", "yes"), Submission("<think>So I do.</think> yes"), Submission("yes and no")),
}
JUNK = [
    "",
    " ",
    "\x00",
    "\ud800",
    "{" * 5000,
    r"\boxed{",
    "<think>",
    "</think>",
    "9" * 100_000,
    "\\" * 5000,
    "🙂",
]

sampled = pytest.mark.parametrize("name", sorted(SAMPLES))


def test_samples_are_of_registered_verifiers():
    assert set(SAMPLES) <= set(verifiers.registered())


def outline(verdict: Verdict) -> tuple[Any, ...]:
    return verdict.outcome, verdict.reason, verdict.reward


@sampled
def test_right_submission_earns_full_reward_and_wrong_one_none(name):
    verifier, sample = verifiers.make(name), SAMPLES[name]
    assert verifier.verify(sample.right, sample.task).reward == 1.0
    wrong = verifier.verify(sample.wrong, sample.task)
    assert (wrong.reward, wrong.outcome) == (0.0, Outcome.WRONG)


@sampled
@pytest.mark.parametrize("text", JUNK, ids=lambda text: ascii(text[:8]))
def test_junk_is_a_verdict_without_reward(name, text):
    verdict = verifiers.make(name).verify(Submission(text), SAMPLES[name].task)
    assert verdict.reward == 0.0
    assert verdict.outcome in {Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.ERROR}
    assert verdict.reason.strip()


@sampled
def test_reason_of_a_wrong_submission_does_not_hold_the_target(name):
    sample = SAMPLES[name]
    verdict = verifiers.make(name).verify(Submission("nothing of the sort"), sample.task)
    assert str(sample.task.target) not in verdict.reason


@sampled
def test_many_verdicts_are_the_single_ones_in_order(name):
    verifier, sample = verifiers.make(name), SAMPLES[name]
    pairs = [(submission, sample.task) for submission in (sample.right, sample.wrong, Submission("")) * 3]
    one_by_one = [outline(verifier.verify(*pair)) for pair in pairs]
    assert [outline(verdict) for verdict in verifier.verify_many(pairs)] == one_by_one
    assert verifier.verify_many([]) == []


@sampled
def test_verdicts_are_the_same_from_any_thread(name):
    verifier, sample = verifiers.make(name), SAMPLES[name]
    submissions = [sample.right, sample.wrong] * 20
    with ThreadPoolExecutor(8) as threads:
        rewards = list(threads.map(lambda submission: verifier.verify(submission, sample.task).reward, submissions))
    assert rewards == [1.0, 0.0] * 20


@sampled
def test_close_is_idempotent(name):
    verifier = verifiers.make(name)
    assert [verifier.close(), verifier.close()] == [None, None]


@sampled
def test_wrong_option_is_refused(name):
    with pytest.raises(UnknownNameError, match="no_such_option"):
        verifiers.make(name, no_such_option=1)


def test_wrong_name_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'math'"):
        verifiers.make("maths")
