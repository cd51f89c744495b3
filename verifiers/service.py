"""Verdicts on whether a customer was served: the state of the world, what was done on the way, what was said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

from verigym.tasks.canonical import parse_turn
from verigym.tasks.errors import TaskDataError, UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.tasks.worlds.store import same
from verigym.tasks.worlds.world import Event, World, world_of
from verigym.verifiers.communication import spoken
from verigym.verifiers.state import calls_of, gold_turns, played, said_of, touched
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

MOST_NUMBERS = 20
"""Numbers of fewer than eight digits in a message that tells something; in all messages five times as many."""
MOST_WORDS = 200
"""Different words in a message that tells something."""

_CLOSING = re.compile(r"\[\s*changes\s*:\s*([^\[\]\n]{1,80}?)\s*\]", re.IGNORECASE)
# bounded groups of thousands, so that the search stays linear
_NUMBER = re.compile(r"(?<![\w.])(?:\d{1,3}(?:,\d{3}){1,6}|\d+)(?:\.\d+)?(?!\w)")
_LIST_MARK = re.compile(r"^[ \t]{0,8}\d{1,3}[.)][ \t]", re.MULTILINE)
_PIECE = re.compile(r"(\d[\d,]*(?:\.\d+)?)|([^\W\d_]+)")
_WORD = re.compile(r"\w+")


class ServiceVerifier(Verifier):
    """1 if the world ends as after the gold calls, nothing else was done on the way, and what was owed was said.

    `target["turns"]` is a gold episode, as `state_match` has it; a gold call that the world refuses changes nothing,
    there as here. Then

    - `state`: what differs from the world's start is the same at the end, with exact types;
    - `log`: no call wrote a field that the gold calls do not write, even if it was undone later;
    - `human`: the user was handed over to a human if the gold calls do so, and was not where there is a closing;
    - `told`: each text of `target["outputs"]` was told the user in a turn without calls: as whole words, a number by
      its value ("$1,939.05" tells 1939.05, "54.041" does not tell 54.04). A message with more than MOST_NUMBERS
      different numbers or MOST_WORDS different words tells nothing, nor does any if they have five times so many
      numbers: who tells everything has told nothing. Numbers of eight digits and more, which are ids, are words, and
      the numbers of a list's lines are none;
    - `closed`: where nothing is to be done but to close, `[changes: none]` was said, if `target["closing"]` is "none";
      where something was changed or the user was handed over, no closing was said after it;
    - `known`: where there was nothing to change, one of the records in `target["known"]` was looked at, if there are
      any: who refuses everything unseen, or guesses an answer, is no service.

    The order of calls, other reads, and calls that failed do not count. A submission that is a text alone is judged by
    running its calls in a fresh world; the rest is a message. Raises VerifierInputError for a task without a world or
    without a gold episode.
    """

    def verify(self, submission: Submission, task: Task) -> Verdict:
        try:
            gold = _gold_world(task)
            states, events = played(submission, task)
        except (TaskDataError, UnknownNameError) as error:
            raise VerifierInputError(str(error)) from error
        target, said = task.target, list(spoken(submission))
        strange = sorted(touched(events) - touched(gold.events))
        problems = {
            "log": said_of(strange) if strange else "",
            "state": "" if same(states[-1], gold.store.changes()) else "the world is not as it should be",
            "human": _problem_of_human(events, gold, target),
            "told": problem_of_outputs(said, target.get("outputs", ())),
            "closed": _problem_of_closing(submission, events, target),
            "known": _problem_of_looks(events, target),
        }
        reasons = [problem for problem in problems.values() if problem]
        components = {name: float(not problem) for name, problem in problems.items()}
        if reasons:
            details = {"state": states[-1], "expected": gold.store.changes()}
            return Verdict(0.0, Outcome.WRONG, "; ".join(reasons), components, details)
        return Verdict(1.0, Outcome.CORRECT, "the customer was served as it should be, and nothing else", components)

    def golds(self, task: Task) -> list[str]:
        _gold_world(task)
        return ["\n".join(gold_turns(task))]


def problem_of_outputs(said: Sequence[str], outputs: Sequence[str]) -> str:
    """What is wrong with what the user was told, in one sentence; "" if nothing is. It never says what is right."""
    if not outputs:
        return ""
    said = [_LIST_MARK.sub("", message) for message in said]
    numbers = {number for message in said for number in _numbers(message)}
    if len(numbers) > 5 * MOST_NUMBERS:
        return f"the user was told {len(numbers)} numbers, so none was an answer"
    telling = [message for message in said if _is_bounded(message)]
    missing = sum(not any(map(_pattern(output).search, telling)) for output in outputs)
    return f"{missing} of {len(outputs)} facts that the user asked for were not told" if missing else ""


def _is_bounded(message: str) -> bool:
    words = {word.casefold() for word in _WORD.findall(message)}
    return len(set(_numbers(message))) <= MOST_NUMBERS and len(words) <= MOST_WORDS


def _numbers(message: str) -> Iterator[Decimal]:
    """The numbers in a message that are no ids, by value."""
    for found in _NUMBER.findall(message):
        digits = found.replace(",", "")
        if len(digits.partition(".")[0]) < 8:
            yield Decimal(digits)


def _pattern(output: str) -> re.Pattern[str]:
    """Finds an output as whole words: its words and numbers in their order, with signs and space between them."""
    pieces = [_number(number) if number else re.escape(word) for number, word in _PIECE.findall(output)]
    before, after = r"(?<![\w])(?<!\d[.,])(?<!(?<!\w)-)", r"(?!\w)(?![.,]\d)"
    if output.strip().startswith("-"):
        before = r"(?<!\w)-\s*"
    return re.compile(before + r"[\W_]{0,3}".join(pieces) + after, re.IGNORECASE)


def _number(text: str) -> str:
    """A pattern of a number by its value: thousands with or without separators, with or without zeros at its end."""
    whole, _, rest = text.replace(",", "").partition(".")
    groups = re.sub(r"(?<=\d)(?=(?:\d{3})+$)", ",?", whole)
    rest = rest.rstrip("0")
    return rf"{groups}\.{rest}0*" if rest else rf"{groups}(?:\.0+)?"


def _gold_world(task: Task) -> World:
    """A fresh world after the gold calls."""
    world = world_of(task)
    for name, arguments in calls_of(task):
        world.call(name, arguments)
    return world


def _problem_of_human(events: Sequence[Event], gold: World, target: Mapping[str, Any]) -> str:
    handed_over = any(_hands_over(event) for event in events)
    if gold.ended and not handed_over:
        return "the user was not handed over to a human"
    return "the user was handed over to a human for nothing" if "closing" in target and handed_over else ""


def _problem_of_closing(submission: Submission, events: Sequence[Event], target: Mapping[str, Any]) -> str:
    if "closing" in target:
        right = _closings(spoken(submission)) == {target["closing"]}
        return "" if right else "the user was not told that nothing was changed"
    done = touched(events) or any(map(_hands_over, events))
    if done and _closings(_last_words(submission)):
        return "the user was told that nothing was changed, which is not so"
    return ""


def _closings(said: Iterable[str]) -> set[str]:
    return {closing.casefold() for message in said for closing in _CLOSING.findall(message)}


def _last_words(submission: Submission) -> Iterator[str]:
    """What the user was told after the last call; all of a submission that is a text alone."""
    if not submission.messages:
        return spoken(submission)
    calls = [index for index, message in enumerate(submission.messages) if message["role"] == "tool"]
    after = submission.messages[calls[-1] + 1 :] if calls else submission.messages
    return (parse_turn(str(message["content"])).content for message in after if message["role"] == "assistant")


def _problem_of_looks(events: Sequence[Event], target: Mapping[str, Any]) -> str:
    known = {tuple(place) for place in target.get("known", ())}
    seen = {place for event in events for place in event.seen}
    return "no record of the user was looked at" if known and not known & seen else ""


def _hands_over(event: Event) -> bool:
    return event.name == "transfer_to_human_agents" and not event.failed
