r"""Verdicts on a required structure, whatever the answer is: `<think>...</think>` and then one `\boxed{}`."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from verigym.tasks._boxed import boxed_contents
from verigym.tasks.errors import ConfigError
from verigym.tasks.task import Task
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

_NAME = re.compile(r"[A-Za-z][\w-]*")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])")
BOXED, THINK = "boxed", "think"


class FormatVerifier(Verifier):
    r"""1 if the text consists of the required parts in their order, each there once and not empty; else 0.

    A part is the name of a tag, `<name>...</name>`, or, as the last, `boxed`: text with exactly one `\boxed{}`.
    Nothing but white space stands before, between and after the tags; only after a closing `think` that comes
    last the answer may stand as free text, and must. A tag may not be repeated or nested in another part.
    The target is not looked at. There are no regular expressions to configure: Python's can take exponential
    time on a hostile text.
    Raises ConfigError for parts that are no such names.
    """

    def __init__(self, *, require: Sequence[str] = (THINK, BOXED)) -> None:
        parts = tuple(require) if isinstance(require, list | tuple) else ()
        wrong = [part for part in parts if not (isinstance(part, str) and _NAME.fullmatch(part))]
        if not parts or wrong or len(set(parts)) != len(parts) or BOXED in parts[:-1]:
            raise ConfigError(
                f"require must be a list of different tag names such as ['think', 'answer'], with 'boxed' only "
                f"as the last, not {require!r}"
            )
        self._tags = [part for part in parts if part != BOXED]
        self._boxed = BOXED in parts

    def verify(self, submission: Submission, task: Task) -> Verdict:
        if why := self._fault(submission.text):
            return Verdict(0.0, Outcome.WRONG, why)
        return Verdict(1.0, Outcome.CORRECT, "the text has the required structure")

    def golds(self, task: Task) -> list[str]:
        targets = super().golds(task)
        return [self.dress(f"\\boxed{{{target}}}" if self._boxed else target) for target in targets]

    def dress(self, gold: str) -> str:
        """The gold answer in the last part, after the word "reasoning" in each of the others."""
        holds_gold = None if self._boxed or self._tags[-1] == THINK else self._tags[-1]
        blocks = [f"<{tag}>\n{gold if tag == holds_gold else 'reasoning'}\n</{tag}>" for tag in self._tags]
        return "\n".join(blocks if holds_gold else [*blocks, gold])

    def _fault(self, text: str) -> str | None:
        """What is wrong with the structure; None if nothing is. Linear in the length of the text."""
        for tag in self._tags:
            if (text.count(f"<{tag}>"), text.count(f"</{tag}>")) != (1, 1):
                return f"there must be exactly one <{tag}> and one </{tag}>"
        rest = text
        for tag in self._tags:
            before, _, rest = rest.partition(f"<{tag}>")
            if before.strip():
                return f"there is text before <{tag}>"
            inside, closed, rest = rest.partition(f"</{tag}>")
            if not closed:
                return f"</{tag}> does not come after <{tag}>, or the tags are nested or in the wrong order"
            if _is_empty(inside):
                return f"<{tag}> is empty"
        return self._fault_of_end(rest)

    def _fault_of_end(self, rest: str) -> str | None:
        if self._boxed:
            if len(_BOX.findall(rest)) != 1 or len(boxes := boxed_contents(rest)) != 1:
                return r"there must be exactly one \boxed{} answer"
            return None if not _is_empty(boxes[0]) else r"the \boxed{} is empty"
        if self._tags[-1] == THINK:
            return None if not _is_empty(rest) else "there is no text after </think>"
        return f"there is text after </{self._tags[-1]}>" if rest.strip() else None


def _is_empty(text: str) -> bool:
    """Whether a reader sees nothing: white space, or characters without a glyph such as U+200B."""
    return all(character.isspace() or unicodedata.category(character) in {"Cf", "Cc"} for character in text)
