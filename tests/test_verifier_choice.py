"""The choice verifier: letters, values, both at once, and every question of AQuA."""

import json
from pathlib import Path
from typing import Any

import pytest

from verigym import verifiers
from verigym.tasks.errors import VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict

AQUA = Path(__file__).parent.parent.parent / "shared" / "data" / "aqua" / "dev.jsonl"
NUMBERS = ("21", "21.5", "22", "none of these")


def judge(text: str, *, target: str = "B", options: Any = NUMBERS) -> Verdict:
    metadata = {} if options is None else {"options": options}
    return verifiers.make("choice").verify(Submission(text), Task("t", "Which one?", target, metadata))


@pytest.mark.parametrize("options", [NUMBERS, None], ids=["options", "no-options"])
@pytest.mark.parametrize(
    "text",
    [r"\boxed{B}", "(B)", "B)", "B.", "b", "**B**", "the answer is (B)", r"\boxed{\text{B}}", r"\boxed{\textbf{(B)}}",
     "Option B", "Answer: **B**", "The correct option is B because it fits.", "The answer is B, not A",
     "<answer>B</answer>", "<think>It is A</think> The answer is $\\boxed{B}$.", r"\boxed{A}, no: \boxed{B}"],
)  # fmt: skip
def test_letter_is_right(text, options):
    assert judge(text, options=options).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    "text",
    [r"\boxed{21.5}", r"\boxed{\frac{43}{2}}", "the answer is 21.5", "21.5", r"\boxed{21.50}", "<answer>21.5</answer>"],
)
def test_value_of_the_right_option_is_right(text):
    assert judge(text).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    "text", ["B. 21.5", "B) 21.5", "(B) 21.5", r"\boxed{B. 21.5}", r"\boxed{\textbf{(B)}\ \frac{43}{2}}", "B: 21.5"]
)
def test_letter_with_its_value_is_right(text):
    assert judge(text).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    "text", ["B. 21", "B) 99", r"\boxed{B) 22}", "The answer is B. 22", r"\boxed{A. 21.5}", r"\boxed{B. none of these}"]
)
def test_letter_and_value_that_contradict_are_wrong(text):
    assert judge(text).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    "text", [r"\boxed{A}", "C", r"\boxed{F}", r"\boxed{22}", r"\boxed{21, 21.5}", r"\boxed{BC}", "The answer is 7."]
)
def test_other_letter_or_value_is_wrong(text):
    assert judge(text).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    "text",
    [r"\boxed{B, C}", "B or C", "The answer is A or B", "A B C D", r"\boxed{\text{B and C}}", "(A) (B)", "",
     "It is 21.5, I think.", "I pick B", r"\boxed{A} \boxed{B} \boxed{C} \boxed{D}", "<think>B"],
)  # fmt: skip
def test_several_letters_or_none_are_no_answer(text):
    assert judge(text).outcome is Outcome.UNPARSEABLE


def test_value_of_two_options_names_the_one_that_is_written_so():
    options = ("1", "1/2", "0.5")
    assert judge(r"\boxed{1/2}", options=options).outcome is Outcome.CORRECT
    assert judge(r"\boxed{0.5}", options=options).outcome is Outcome.WRONG
    assert judge(r"\boxed{0.50}", options=options).outcome is Outcome.UNPARSEABLE
    assert judge(r"\boxed{B}", options=options).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    "text",
    [
        r"\boxed{21.5 (B)}",
        "Option B is correct.",
        "The answer would be B.",
        "Ｂ",
        r"\boxed{Ｂ}",
        "B is the right answer.",
    ],
)
def test_other_sentence_about_the_letter_is_right(text):
    assert judge(text).outcome is Outcome.CORRECT


def test_value_with_another_letter_behind_it_is_wrong():
    assert judge(r"\boxed{22 (B)}").outcome is Outcome.WRONG
    assert judge(r"\boxed{21.5 (A)}").outcome is Outcome.WRONG


def test_small_letter_that_is_an_option_is_its_value():
    assert judge(r"\boxed{a}", target="B", options=("b", "a")).outcome is Outcome.CORRECT
    assert judge(r"\boxed{b}", target="B", options=("b", "a")).outcome is Outcome.WRONG


def test_options_may_be_a_mapping_and_carry_labels():
    assert judge(r"\boxed{22}", target="C", options={"A": "21", "C": "22"}).outcome is Outcome.CORRECT
    assert judge(r"\boxed{B}", target="C", options={"A": "21", "C": "22"}).outcome is Outcome.WRONG
    assert judge(r"\boxed{22}", target="C", options=["A)21", "B)21.5", "C)22"]).outcome is Outcome.CORRECT


def test_currency_in_front_of_an_option_may_be_missing():
    options = ("Rs. 300", "Rs. 400", r"\$500")
    assert judge(r"\boxed{400}", options=options).outcome is Outcome.CORRECT
    assert judge(r"\boxed{B. 400}", options=options).outcome is Outcome.CORRECT
    assert judge(r"\boxed{C. 500}", target="C", options=options).outcome is Outcome.CORRECT
    assert judge(r"\boxed{B. 300}", options=options).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("target", "options"),
    [("E", NUMBERS), ("", NUMBERS), ("21.5", NUMBERS), (2, NUMBERS), ("B", "ABCD"), ("B", {"1": "x", "B": "y"}),
     ("B", ["x"] * 27)],
)  # fmt: skip
def test_task_without_a_right_letter_is_refused(target, options):
    with pytest.raises(VerifierInputError):
        judge(r"\boxed{B}", target=target, options=options)


def aqua() -> list[Task]:
    if not AQUA.exists():
        pytest.skip(f"no real data at {AQUA}")
    rows = [json.loads(line) for line in AQUA.read_text().splitlines()]
    return [Task(str(n), row["question"], row["correct"], {"options": row["options"]}) for n, row in enumerate(rows)]


def test_golds_of_aqua_earn_full_reward_as_letter_and_as_value():
    verifier, tasks = verifiers.make("choice"), aqua()
    pairs = [(Submission(gold), task) for task in tasks for gold in verifier.golds(task)]
    assert len(pairs) > 1.6 * len(tasks)  # most options can be told from the others at sight
    assert [pair for pair, verdict in zip(pairs, verifier.verify_many(pairs), strict=True) if verdict.reward != 1] == []


def test_every_other_letter_of_aqua_is_wrong():
    verifier = verifiers.make("choice")
    pairs = [
        (Submission(f"The answer is ({letter})."), task)
        for task in aqua()
        for letter in "ABCDE"
        if letter != task.target
    ]
    assert {verdict.outcome for verdict in verifier.verify_many(pairs)} == {Outcome.WRONG}
