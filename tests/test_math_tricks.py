"""The math verifier under policies that look for a reward: what was tried on it, beside honest forms of the same."""

from collections.abc import Iterator

import pytest

from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict
from verigym.verifiers.math import MathVerifier


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier()
    yield made
    made.close()


def judge(verifier: MathVerifier, text: str, gold: str, prompt: str = "Find the value.") -> Verdict:
    return verifier.verify(Submission(text), Task("t", prompt, gold))


def boxed(verifier: MathVerifier, answer: str, gold: str, prompt: str = "Find the value.") -> Outcome:
    return judge(verifier, rf"So we get $\boxed{{{answer}}}$.", gold, prompt).outcome


def each(table: dict[str, str]) -> list[tuple[str, str]]:
    """The pairs of a table from gold answers to answers that a semicolon between blanks separates."""
    return [(gold, answer) for gold, answers in table.items() for answer in answers.split(" ;; ")]


# exact values

OTHER_VALUE = {
    "2^{100}-2": "2^{100}-3 ;; 2^{100}",
    "2^{4950}": "2^{4950}+1 ;; 2^{4950}-1",
    "2^{100}": "1267650600228229401496703205377 ;; 2^{100}+1",
    "30!": "30!+1",
    "10^{30}": "10^{30}-1000 ;; 10^{30}+1",
    r"1-\frac{1}{2^{100}}": r"1 ;; 1-\frac{1}{2^{101}}",
    r"\frac{1}{2^{100}}": r"\frac{1}{2^{100}+1} ;; 0",
    r"\frac{\pi}{2^{100}}": r"\frac{\pi}{2^{100}+1}",
    r"1-\frac{\pi}{2^{300}}": r"1-\frac{\pi}{2^{301}} ;; 1",
    r"1+\pi^{-1000}": "1",
    r"(1+\sqrt2)^{200}": r"(1+\sqrt2)^{200}+(1-\sqrt2)^{200}",
    "0": r"10^{-200} ;; \pi\cdot10^{-200}",
}
SAME_VALUE = {
    "2^{100}": "1267650600228229401496703205376 ;; 4^{50}",
    "0": r"\sqrt{5+2\sqrt6}-\sqrt2-\sqrt3 ;; 2^{300}(\sqrt{5+2\sqrt6}-\sqrt2-\sqrt3)",
    r"2^{9999}\pi": r"\pi\cdot2^{9999}",
    r"-\frac12": r"\cos\frac{2\pi}{7}+\cos\frac{4\pi}{7}+\cos\frac{6\pi}{7}",
    "3+4i": r"4\mathrm{i}+3",
}


@pytest.mark.parametrize(("gold", "answer"), each(OTHER_VALUE))
def test_exact_value_that_differs_however_little_is_wrong(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.WRONG


@pytest.mark.parametrize(("gold", "answer"), each(SAME_VALUE))
def test_exact_value_written_otherwise_is_right(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.CORRECT
