"""What every registered verifier keeps to: verdicts, no exceptions, from any thread, the same every time."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from verigym import verifiers
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict


@dataclass(frozen=True)
class Sample:
    """A task of a verifier's kind, a submission that is right and one that is wrong."""

    task: Task
    right: Submission
    wrong: Submission


MULTIPLY = {
    "name": "multiply",
    "parameters": {"type": "dict", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
}
SAMPLES: dict[str, Sample] = {
    "math": Sample(
        Task("t", "What is the sum of one half and one third?", r"\frac{5}{6}"),
        Submission(r"<think>3/6 + 2/6</think> It is \boxed{\frac{10}{12}}."),
        Submission(r"It is \boxed{\frac{2}{5}}."),
    ),
    "exact": Sample(Task("t", "Say yes.", "yes"), Submission("<think>So I do.</think> yes"), Submission("yes and no")),
    "choice": Sample(
        Task("t", "How many?", "B", {"options": ("21", "21.5", "22")}),
        Submission("<think>A or B?</think> The answer is (B)."),
        Submission(r"\boxed{21}"),
    ),
    "numeric": Sample(
        Task("t", "How far?", "8675309.25", {"tolerance": 0.5}),
        Submission(r"\boxed{8675309.6}"),
        Submission(r"\boxed{8675310}"),
    ),
    "format": Sample(
        Task("t", "Why?", "8675309"),
        Submission(r"<think>Because.</think> It is \boxed{1}."),
        Submission(r"It is \boxed{8675309}."),
    ),
    "code": Sample(
        Task("t", "Add them.", {"asserts": "assert add(2, 40) == 42", "solution": "def add(a, b): return a + b"}),
        Submission("<think>a + b</think>\n```python\ndef add(a, b):\n    return a + b\n```"),
        Submission("```python\ndef add(a, b):\n    return a - b\n```"),
    ),
    "call_match": Sample(
        Task("t", "What is 6 times 7?", [{"multiply": {"a": [6], "b": [8675309]}}], {"tools": [MULTIPLY]}),
        Submission("<think>6 * 7</think>" + render_call("multiply", {"a": 6, "b": 8675309})),
        Submission(render_call("multiply", {"a": 6, "b": 8})),
    ),
    "composite": Sample(
        Task("t", "What is six times seven?", "42"),
        Submission(r"<think>6 * 7</think> It is \boxed{42}."),
        Submission(r"\boxed{41}"),
    ),
}
DESK = {"world": "desk", "state": {"orders": {"412": {"price": 30, "day": 12, "status": "open"}}}}
FIND, CANCEL = (
    f'<tool_call>{{"name": "{name}_order", "arguments": {{"order": 412}}}}</tool_call>' for name in ("find", "cancel")
)
SAMPLES |= {
    "state_match": Sample(
        Task("t", "Cancel it.", {"turns": [[{"name": "cancel_order", "arguments": {"order": 412}}], "Done."]}, DESK),
        Submission(f"<think>Cancel.</think>{FIND}{CANCEL} Done."),
        Submission(FIND),
    ),
    "communication": Sample(
        Task("t", "What is the price?", {"tell": {"price of order 412": "8675309"}}),
        Submission("It is [Price of order 412: 8675309]."),
        Submission("It is [price of order 412: 8675308]."),
    ),
}
ADD, SUM = {"name": "add", "arguments": {"a": 8675300, "b": 9}}, '[add: {"result": 8675309.0}]'
SAMPLES["bfcl_turns"] = Sample(
    Task("t", "Add them.", {"turns": [[ADD], SUM]}, {"world": "bfcl", "state": {}, "tools": ["add"]}),
    Submission(f"<think>I add.</think>{render_call(**ADD)} It is {SUM}"),
    Submission(f"It is {SUM}"),
)
OPTIONS: dict[str, dict[str, Any]] = {
    "code": {"sandbox": "bubblewrap"},
    "composite": {"parts": {"math": 1.0, "format": 0.1}},
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


def make(name: str, **options: Any) -> verifiers.Verifier:
    return verifiers.make(name, **OPTIONS.get(name, {}), **options)


sampled = pytest.mark.parametrize("name", sorted(SAMPLES))


def test_every_registered_verifier_of_texts_has_a_sample():
    assert (
        {"call_match", "choice", "code", "communication", "composite", "exact", "format", "math", "numeric"}
        | {"state_match", "bfcl_turns"}
        == set(SAMPLES)
        <= set(verifiers.registered())
    )


def outline(verdict: Verdict) -> tuple[Any, ...]:
    return verdict.outcome, verdict.reason, verdict.reward


@sampled
def test_right_submission_earns_full_reward_and_wrong_one_none(name):
    verifier, sample = make(name), SAMPLES[name]
    assert verifier.verify(sample.right, sample.task).reward == 1.0
    wrong = verifier.verify(sample.wrong, sample.task)
    assert (wrong.reward, wrong.outcome) == (0.0, Outcome.WRONG)


@sampled
def test_golds_earn_full_reward(name):
    verifier, sample = make(name), SAMPLES[name]
    golds = verifier.golds(sample.task)
    assert golds
    assert [verifier.verify(Submission(gold), sample.task).reward for gold in golds] == [1.0] * len(golds)


@sampled
@pytest.mark.parametrize("text", JUNK, ids=lambda text: ascii(text[:8]))
def test_junk_is_a_verdict_without_reward(name, text):
    verdict = make(name).verify(Submission(text), SAMPLES[name].task)
    assert verdict.reward == 0.0
    assert verdict.outcome in {Outcome.WRONG, Outcome.UNPARSEABLE, Outcome.ERROR}
    assert verdict.reason.strip()


@sampled
def test_reason_of_a_wrong_submission_does_not_hold_the_target(name):
    sample = SAMPLES[name]
    verdict = make(name).verify(Submission("nothing of the sort"), sample.task)
    assert str(sample.task.target) not in verdict.reason


@sampled
def test_many_verdicts_are_the_single_ones_in_order(name):
    verifier, sample = make(name), SAMPLES[name]
    pairs = [(submission, sample.task) for submission in (sample.right, sample.wrong, Submission("")) * 3]
    one_by_one = [outline(verifier.verify(*pair)) for pair in pairs]
    assert [outline(verdict) for verdict in verifier.verify_many(pairs)] == one_by_one
    assert verifier.verify_many([]) == []


@sampled
def test_verdicts_are_the_same_from_any_thread(name):
    verifier, sample = make(name), SAMPLES[name]
    submissions = [sample.right, sample.wrong] * 20
    with ThreadPoolExecutor(8) as threads:
        rewards = list(threads.map(lambda submission: verifier.verify(submission, sample.task).reward, submissions))
    assert rewards == [1.0, 0.0] * 20


@sampled
def test_close_is_idempotent(name):
    verifier = make(name)
    assert [verifier.close(), verifier.close()] == [None, None]


@sampled
def test_wrong_option_is_refused(name):
    with pytest.raises(UnknownNameError, match="no_such_option"):
        make(name, no_such_option=1)


def test_wrong_name_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'math'"):
        verifiers.make("maths")


def test_a_list_of_targets_holds_several_accepted_answers():
    for name, golds in (("exact", ["a", "b"]), ("numeric", ["1", 2.5])):
        verifier, task = verifiers.make(name), Task("t", "p", golds)
        for gold in verifier.golds(task):
            assert verifier.verify(Submission(gold), task).reward == 1.0
        assert verifier.verify(Submission(str(golds)), task).reward == 0.0


def test_a_missing_option_is_named():
    with pytest.raises(ConfigError, match="verifier 'composite' needs the option 'parts'"):
        verifiers.make("composite")
    with pytest.raises(ConfigError, match="verifier 'composite' needs the option 'parts'"):
        verifiers.make("composite", parts={"composite": 1})
