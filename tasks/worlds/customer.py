"""A user who wants something of a service: asks, answers questions, confirms, and is told when it is done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from verigym.tasks.errors import TaskDataError
from verigym.tasks.worlds.user import NO_MORE, THANKS

YES = "Yes, please go ahead, if it is just what I asked for."
ALL_DONE = "Is everything done that I asked for?"
GO_ON = "All right."
NO_OTHERS = "No, there is nothing else."

# "a.b@c.com" and "$5.20" have no end in them, "**Is it?** Yes." has
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?](?=[^\s*_\"')])[^.!?\n]*)*[.!?\n]?")
_LIST_MARK = re.compile(r"\n{1,2}[ \t]{0,8}(?:[-*•]|\d{1,2}[.)])[ \t]")  # whose lines belong to what is before
_WORD = re.compile(r"\w+")
_REQUEST = re.compile(
    r"\?\W{0,5}$|\b(?:please|kindly) (?:also )?(?:provide|confirm|tell|share|specify|give|reply|respond|verify|enter|"
    r"choose|select|state|send|indicate|clarify|say|type|let)\b|\blet me know\b|"
    r"\b(?:reply|respond|answer|say|type)\W+yes\b|\byes ?/ ?no\b|"
    r"\b(?:can|could|may) (?:I|we) (?:have|get|know|ask)\b|\bwhat(?:['’]s| is| are) your\b|"
    r"\bI(?:'ll| will)? need (?:you|your|the|to know)\b",
    re.IGNORECASE,
)
_HELP = r"(?:help|assistance|support|questions?|concerns?|requests?|issues?|problems?|needs?|matters?)\b"
_OFFER = re.compile(
    rf"\b(?:any|some)thing (?:else|more|further)\b|\b(?:any )?(?:other|more|further|additional) {_HELP}|"
    r"\b(?:help|assist|serve) you (?:any )?further\b|\b(?:what|how) else can\b|\belse I can\b",
    re.IGNORECASE,
)
_OTHERS = re.compile(r"\b(?:any|some)thing (?:else|more|further)\b|\bany (?:other|more|further|additional)\b", re.I)
_CHANGES = re.compile(
    r"(?<!\[)\b(?:items?|orders?|products?|flights?|reservations?|bags?|chang\w+|modif\w+|exchang\w+|return\w*|cancel\w*|"
    r"add)\b",
    re.IGNORECASE,
)
_SERVES = re.compile(rf"\b(?:help|assist|I can|can I|{_HELP})", re.IGNORECASE)
_IN_HAND = re.compile(
    r"\b(?:proceed\w*|provide|share|specify|verify|confirm|yes)\b|\bbefore (?:I|we) (?!wrap|close|end|finish)|"
    r"\b(?:have|what(?:['’]s| is)) your\b|"
    r"\b(?:could|can|would|will) you (?:please |kindly )?(?:tell|give|send|state)\b",
    re.IGNORECASE,
)
_WHAT_FOR = re.compile(r"\b(?:how|what) (?:can|may) I\b", re.IGNORECASE)
_BUSY = re.compile(
    r"\b(?:not yet|still|(?:one|a) moment|please wait|hold on|let me|working on|I(?:['’]ll| will| am going to))\b",
    re.IGNORECASE,
)
_CONFIRM = {"confirm", "confirmation", "proceed", "correct", "agree", "yes", "ahead"}
_YES_OR_NO = re.compile(
    r"^\W{0,5}(?:so,? |and |then,? )?(?:is|are|do|does|did|would|will|shall|should|can|could|may)\b", re.I
)
_TELL = re.compile(r"\b(?:provide|share|tell|specify|clarify|describe|explain|give)\b", re.IGNORECASE)
_COMMON = set(
    _WORD.findall(
        "about also another been does from have into like need only order please return same some that their them then "
        "there these they this those want what when where which will with would your"
    )
)


class Customer:
    """Says what it is about, gives facts when asked, tells the rest, confirms, and asks whether all is done.

    The script is `{"says": text, "facts": {word: text}, "more": [text]}`. A question with one of the words gets its
    fact. `more` is told, once and as a whole, as soon as the agent asks for a confirmation or for something that is no
    fact, or says something: what the user thinks of later. After that a question about what was said before gets it
    again, a question for a confirmation gets a yes, and one for further items or changes a no. The user leaves when
    offered further help, or when the agent says for the second time something that is no question and no promise to do
    something. What the user says is a function of the script and of what the agent said. Raises TaskDataError for what
    is no script.
    """

    answered = 0  # there is one matter only, which is settled at the end

    def __init__(self, script: Mapping[str, Any]) -> None:
        facts, more = script.get("facts", {}), script.get("more", ())
        texts = [script.get("says"), *(facts.values() if isinstance(facts, Mapping) else [None])]
        texts += more if isinstance(more, list | tuple) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise TaskDataError('a customer must be such as {"says": "Stop it.", "facts": {"zip": "It is 19122."}}')
        self._says, self._facts, self._more = str(script["says"]), facts, list(more)
        self._told, self._asked_back = not more, False

    def opening(self) -> str:
        """What it is about."""
        return self._says

    def reply(self, message: str) -> tuple[str, bool]:
        """What the user says to a message, and whether it was the last word."""
        sentences = [found.strip() for found in _SENTENCE.findall(_LIST_MARK.sub(" - ", message))]
        questions = [sentence for sentence in sentences if _REQUEST.search(sentence) and not _is_offer(sentence)]
        words = {word.casefold() for question in questions for word in _WORD.findall(question)}
        given = list(dict.fromkeys(fact for word, fact in self._facts.items() if word in words))
        if not self._told and (words & _CONFIRM or not given):
            self._told = True
            return " ".join([*given, *self._more]), False
        if questions:
            self._asked_back = False
            return self._answer(questions, words, given), False
        if any(map(_is_offer, sentences)):
            return THANKS, True
        if _BUSY.search(message):
            self._asked_back = False
            return GO_ON, False
        final, self._asked_back = self._asked_back, True
        return (THANKS, True) if final else (ALL_DONE, False)

    def _answer(self, questions: list[str], words: set[str], given: list[str]) -> str:
        """Facts and a yes, or what was said before about the same thing."""
        if words & _CONFIRM:
            given = [YES, *given]
        if any(_OTHERS.search(question) and _CHANGES.search(question) for question in questions):
            given = [NO_OTHERS, *given]
        if not given and any(map(_WHAT_FOR.search, questions)):
            given = [self._says, *self._more]
        if not given:
            said = _SENTENCE.findall(" ".join([self._says, *self._more]))
            given = [text.strip() for text in said if _content(text) & words]
        if not given and any(_YES_OR_NO.search(question) and not _TELL.search(question) for question in questions):
            given = [YES]
        return " ".join(given) or NO_MORE


def _is_offer(sentence: str) -> bool:
    """Whether a sentence offers further help; what asks for more items or changes, or for a fact, does not."""
    if not _OFFER.search(sentence) or _IN_HAND.search(sentence):
        return False
    return bool(_SERVES.search(sentence)) or not _CHANGES.search(sentence)


def _content(text: str) -> set[str]:
    words = {word.casefold() for word in _WORD.findall(text)}
    return {word for word in words if len(word) > 3} - _COMMON
