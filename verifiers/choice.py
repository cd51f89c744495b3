r"""Verdicts on multiple choice: `\boxed{B}`, "the answer is (B)" or the value of option B."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigym.tasks.errors import VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import _letters
from verigym.verifiers._equal import Rules, equal
from verigym.verifiers._latex import canonical
from verigym.verifiers.extract import answer_text
from verigym.verifiers.math import MathVerifier
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

_UNSURE = Rules(oracle=lambda gold, answer: True)


class ChoiceVerifier(Verifier):
    r"""1 if the final answer is the right option, by its letter or by its value, else 0.

    `task.target` is the letter. `task.metadata["options"]`, where it is there, lists the options' texts, A first,
    or maps letters to them; a label in front of a text ("A)") is taken off. How letters and values are found in a
    text is said in `_letters`.

    - A letter that names no option is wrong; several letters are no answer.
    - A letter and a value must agree: "B. 21.5" is wrong if option B is 21.
    - A value must equal the right option, as the math verifier compares, and no other one; a value written
      as exactly one option names that one.

    Raises VerifierInputError for a target that is no letter, or none of the options' letters.
    """

    def __init__(self) -> None:
        self._math = MathVerifier()

    def verify(self, submission: Submission, task: Task) -> Verdict:
        return self.verify_many([(submission, task)])[0]

    def verify_many(self, pairs: Sequence[tuple[Submission, Task]]) -> list[Verdict]:
        """The verdicts in order; the values that have to be compared are spread over the math workers."""
        questions = [_Question.of(task) for _, task in pairs]
        answers = [_answer(submission.text, q) for (submission, _), q in zip(pairs, questions, strict=True)]
        verdicts = {i: _by_letter(*pair) for i, pair in enumerate(zip(answers, questions, strict=True))}
        values = [i for i, verdict in verdicts.items() if verdict is None]
        compared = self._compare([(answers[i].value, questions[i].text) for i in values])
        settled = {i: _by_value(answers[i], verdict) for i, verdict in zip(values, compared, strict=True)}
        return [verdict or settled[i] for i, verdict in (verdicts | self._refuted(settled, answers, questions)).items()]

    def _refuted(
        self, settled: dict[int, Verdict], answers: list[_letters.Answer], questions: list[_Question]
    ) -> dict[int, Verdict]:
        """The right values without a letter that are the value of another option too, and why they are none."""
        values = [i for i, verdict in settled.items() if verdict.reward == 1 and not answers[i].letters]
        rivals = [(i, text) for i in values for text in questions[i].other_texts]
        compared = self._compare([(answers[i].value, text) for i, text in rivals])
        refuted = {}
        for (i, _), verdict in zip(rivals, compared, strict=True):
            if verdict.outcome is Outcome.INFRA_ERROR:
                refuted[i] = verdict
            elif verdict.outcome is Outcome.CORRECT:
                refuted.setdefault(i, Verdict(0.0, Outcome.UNPARSEABLE, "the answer is the value of several options"))
        return refuted

    def golds(self, task: Task) -> list[str]:
        """The letter, and the right option's text where it can be told from the others at sight."""
        question = _Question.of(task)
        forms = [question.letter]
        read = _letters.read(f"\\boxed{{{question.text}}}", question.options)
        is_value = canonical(question.text) and not read.letters and not read.reason
        if is_value and not any(equal(question.text, other, _UNSURE) for other in question.other_texts):
            forms.append(question.text)
        return [f"\\boxed{{{form}}}" for form in forms]

    def close(self) -> None:
        self._math.close()

    def _compare(self, pairs: list[tuple[str, str]]) -> list[Verdict]:
        """The math verifier's verdicts on (answer, option) pairs; an option without a text equals nothing."""
        plain = [(_letters.without_currency(answer), _letters.without_currency(option)) for answer, option in pairs]
        return self._math.verify_many(
            [
                (Submission(f"\\boxed{{{answer}}}"), Task("option", "", option if canonical(option) else "nothing"))
                for answer, option in plain
            ]
        )


@dataclass(frozen=True, slots=True)
class _Question:
    """The right letter and the options' texts by letter; no options where the task has none."""

    letter: str
    options: Mapping[str, str]

    @classmethod
    def of(cls, task: Task) -> _Question:
        letter = task.target.strip().strip("().").upper() if isinstance(task.target, str) else ""
        if len(letter) != 1 or letter not in string.ascii_uppercase:
            raise VerifierInputError(f"a choice target must be a letter, not {str(task.target)[:60]!r}")
        options = _options(task.metadata.get("options"))
        if options and letter not in options:
            raise VerifierInputError(f"the choice target {letter} is none of the options {', '.join(options)}")
        return cls(letter, options)

    @property
    def text(self) -> str:
        """The right option's text; empty without options."""
        return self.options.get(self.letter, "")

    def named(self, value: str) -> list[str]:
        """The letters of the options that are written as the value is."""
        return [
            letter for letter, text in self.options.items() if canonical(text) and canonical(text) == canonical(value)
        ]

    @property
    def other_texts(self) -> list[str]:
        return [text for letter, text in self.options.items() if letter != self.letter]


def _options(given: Any) -> dict[str, str]:
    """The options' texts by letter. Raises VerifierInputError if they are neither a list nor a mapping."""
    if given is None:
        return {}
    if isinstance(given, Mapping):
        options = {str(letter).strip().upper(): str(text).strip() for letter, text in given.items()}
    elif isinstance(given, list | tuple) and len(given) <= len(string.ascii_uppercase):
        options = dict(zip(string.ascii_uppercase, (str(text).strip() for text in given), strict=False))
    else:
        raise VerifierInputError(
            "the options of a task must be a list of at most 26 texts, or a mapping of letters to texts"
        )
    if wrong := [letter for letter in options if len(letter) != 1 or letter not in string.ascii_uppercase]:
        raise VerifierInputError(f"the options of a task must have the letters A to Z, not {wrong[0][:60]!r}")
    return _letters.without_labels(options)


def _answer(text: str, question: _Question) -> _letters.Answer:
    after = answer_text(text)
    if after is None:
        return _letters.Answer(reason="the reasoning never ends: a <think> without its </think>")
    answer = _letters.read(after, question.options)
    named = [] if answer.letters or not answer.value else question.named(answer.value)
    return _letters.Answer((named[0],)) if len(named) == 1 else answer


def _by_letter(answer: _letters.Answer, question: _Question) -> Verdict | None:
    """The verdict where letters decide; None where the value has to be compared with the right option."""
    if answer.reason or len(answer.letters) > 1:
        return Verdict(0.0, Outcome.UNPARSEABLE, answer.reason or "the answer names several options")
    details = {"answer": answer.value or "".join(answer.letters), "gold": question.letter}
    if not answer.letters:
        return None if question.options else Verdict(0.0, Outcome.WRONG, "the answer names no option", details=details)
    letter = answer.letters[0]
    if question.options and letter not in question.options:
        return Verdict(0.0, Outcome.WRONG, f"the letter {letter} names no option", details=details)
    if letter != question.letter:
        return Verdict(0.0, Outcome.WRONG, f"the option {letter} is not the right one", details=details)
    if answer.value and question.options:
        return None
    return Verdict(1.0, Outcome.CORRECT, "the answer is the right option", details=details)


def _by_value(answer: _letters.Answer, compared: Verdict) -> Verdict:
    if compared.outcome is Outcome.CORRECT:
        return Verdict(1.0, Outcome.CORRECT, "the answer is the right option", details=compared.details)
    if compared.outcome is Outcome.WRONG and answer.letters:
        return Verdict(0.0, Outcome.WRONG, "the letter and the value contradict each other", details=compared.details)
    if compared.outcome is Outcome.WRONG:
        return Verdict(0.0, Outcome.WRONG, "the answer is not the right option", details=compared.details)
    return compared
