"""A user who follows a script: says a line, gives facts when asked for them, goes on, and says when it is done."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from verigym.tasks.errors import TaskDataError

THANKS = "That is all, thank you."
NO_MORE = "I have told you all that I know. Please do as I said."

_SENTENCE = re.compile(r"[^.!?\n]*[.!?\n]")
_WORD = re.compile(r"\w+")
_OFFERS = {"anything", "else"}


class ScriptedUser:
    """Says the lines of a script one after the other, each when the agent has answered the one before.

    A line is `{"says": text, "facts": {word: text}}`. While it is the matter in hand, a question with one of these
    words in it gets the fact; a question for anything else is told that there is no more to know. An offer of
    further help ("anything else?") is no such question. Of a line with `"any_answer": True`, whatever the agent says
    is the answer. What the user says is a function of the script and of what the agent said. Raises TaskDataError for
    what is no line.
    """

    def __init__(self, script: Sequence[Mapping[str, Any]]) -> None:
        if not all(map(_is_line, script)):
            raise TaskDataError('a line of a user must be such as {"says": "Move it.", "facts": {"day": "To day 14."}}')
        self._script = script
        self.answered = 0  # lines

    def opening(self) -> str:
        """The first line."""
        return str(self._script[0]["says"])

    @property
    def line(self) -> Mapping[str, Any]:
        """The line that is the matter in hand; after the last word, the last one."""
        return self._script[min(self.answered, len(self._script) - 1)]

    def reply(self, message: str) -> tuple[str, bool]:
        """What the user says to a message, and whether it was the last word."""
        if not self.line.get("any_answer"):
            answer = self._answer(message)
            if answer:
                return answer, False
        self.answered += 1
        if self.answered < len(self._script):
            return str(self.line["says"]), False
        return THANKS, True

    def _answer(self, message: str) -> str:
        """What the user says to the questions in a message; "" if there is none but offers."""
        questions = [sentence for sentence in _SENTENCE.findall(f"{message}\n") if sentence.endswith("?")]
        asked = {word.casefold() for question in questions for word in _WORD.findall(question)}
        facts = self.line.get("facts", {})
        given = dict.fromkeys(fact for word, fact in facts.items() if word.casefold() in asked)
        if given:
            return " ".join(given)
        return NO_MORE if asked and not asked & _OFFERS else ""


def _is_line(line: Any) -> bool:
    return (
        isinstance(line, Mapping) and isinstance(line.get("says"), str) and isinstance(line.get("facts", {}), Mapping)
    )
