"""Exact match of a final text with the gold answer: the smallest verifier there is."""

from verigym.tasks.task import Task
from verigym.verifiers.extract import answer_block, answer_text
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier


class ExactVerifier(Verifier):
    """1 if the text after the reasoning, or in its `<answer>` block, stripped of white space, is the target; else 0.

    A target that is a list holds several accepted answers.
    """

    def verify(self, submission: Submission, task: Task) -> Verdict:
        text = answer_text(submission.text)
        if text is None or not text.strip():
            return Verdict(0.0, Outcome.UNPARSEABLE, "no text after the reasoning")
        block = answer_block(text)
        answer = (text if block is None else block).strip()
        if any(answer == gold.strip() for gold in self.golds(task)):
            return Verdict(1.0, Outcome.CORRECT, "the text is the gold answer")
        return Verdict(0.0, Outcome.WRONG, "the text is not the gold answer")
