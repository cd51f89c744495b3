"""Verdicts on BFCL's multi-turn tasks: after each of the user's lines, what was done, and what the user was told."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigym.tasks.bfcl_multi_turn import ends_in_a_folder, is_lookup
from verigym.tasks.canonical import parse_turn
from verigym.tasks.errors import VerifierInputError
from verigym.tasks.task import Task
from verigym.tasks.worlds.bfcl import ACTS, FILES, NAVIGATION, Services
from verigym.tasks.worlds.store import Changes, Record, Touched, same
from verigym.tasks.worlds.world import Event, world_of
from verigym.verifiers._plain import cut
from verigym.verifiers.state import gold_episode, gold_scenario, gold_turns
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

MAX_QUOTES = 200  # in one message
_CANNOT = "cannot"
_BEGINNING = re.compile(r"\[(\w{1,64}):\s*")
_CLOSE = re.compile(r"\s*\]")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class _Turn:
    """What was done and said in answer to one line of the user."""

    before: Changes
    after: Changes
    events: Sequence[Event]
    said: str


class BFCLTurnsVerifier(Verifier):
    """1 if after each line of the user all is as in the gold episode, and the user was told what is owed; else 0.

    `target["turns"]` is a gold episode, which is played in a fresh world. For each line of the user

    - `state`: what differs from the world's start is the same, with exact types. Where the agent stands in the file
      system counts only if the gold calls on files end with going there.
    - `log`: each field was written as often as by the gold calls of this line, even if that was undone or written over,
      or the same again beside others (a door locked alone, then with all); a file or folder that was there neither
      before nor after does not count.
    - `done`: a gold call of a function that changes things of which nothing was left to see (the doors were locked
      already, a flight was booked and cancelled at once) was made as often, with the same arguments; defaults and the
      order of a list do not count. What a gold call set to what it was (one of the doors) was set, too.
    - `seen`: what the gold calls look up was looked up: a call of the same function gave the same result, now or
      before. What can be guessed is not to be guessed.
    - `told`: each result that the gold message quotes is quoted in the agent's message, and what the agent quotes is
      true: the result of a call that it made. `[cannot: ...]` is said where the gold message says so, nowhere else.

    The order of calls, other look-ups, and calls that failed do not count, nor does what is said beside the quotes. A
    submission that is a text alone is judged as if it answered all lines at once: by the end.

    Raises VerifierInputError for a task without a world, and for a target whose calls fail, that ends before the user's
    script does, or by which nothing is to be changed or told.
    """

    def verify(self, submission: Submission, task: Task) -> Verdict:
        gold = _gold(task)
        played = _played(submission, task)
        if submission.state is None:
            gold = [_merged(gold)]
        files = task.metadata["state"].get(FILES, {})
        problems = dict.fromkeys(("state", "log", "done", "seen", "told"), "")
        if len(played) < len(gold):
            problems["told"] = f"only {len(played)} of the user's {len(gold)} lines were answered"
        made: list[Event] = []
        for turn, right in zip(played, gold, strict=False):
            made += [event for event in turn.events if not event.failed]
            found = {
                "state": _state_problem(turn, right),
                "log": _log_problem(turn, right, files),
                "done": _done_problem(turn, right),
                "seen": _seen_problem(made, right),
                "told": _told_problem(turn.said, right.said, made),
            }
            problems = {name: problem or found[name] for name, problem in problems.items()}
        reasons = [problem for problem in problems.values() if problem]
        components = {name: float(not problem) for name, problem in problems.items()}
        if reasons:
            return Verdict(0.0, Outcome.WRONG, "; ".join(reasons), components)
        return Verdict(1.0, Outcome.CORRECT, "all was done and told, and nothing else", components)

    def golds(self, task: Task) -> list[str]:
        text = "\n".join(gold_turns(task))
        return [] if parse_turn(text).errors else [text]  # a text alone is one turn, which can have so many calls


def _gold(task: Task) -> list[_Turn]:
    scenario = gold_scenario(task)
    said = [turn for turn in gold_episode(task) if isinstance(turn, str)]
    if len(said) != len(scenario.states):
        raise VerifierInputError(f"task {task.id}: a message of its gold episode does not end a line of the user's")
    turns = _turns(scenario.states, scenario.world.events, said)
    if not any(turn.after or _idle(turn) or _owes(turn.said) for turn in turns):
        raise VerifierInputError(f"task {task.id} asks for no change and no message: doing nothing would be right")
    return turns


def _played(submission: Submission, task: Task) -> list[_Turn]:
    """What was answered to each line; all at once by a text alone."""
    if submission.state is not None:
        return _turns(submission.state, submission.events, _said(submission))
    world, turn = world_of(task), parse_turn(submission.text)
    for line in task.metadata.get("user", ()):
        world.offer(line.get("tools", ()))
    for call in turn.calls:
        world.call(call.name, call.arguments)
    return [_Turn({}, world.store.changes(), world.events, turn.content)]


def _turns(states: Sequence[Changes], events: Sequence[Event], said: Sequence[str]) -> list[_Turn]:
    """The turns that came to their end: each with a message."""
    before: Changes = {}
    turns = []
    for line, (after, message) in enumerate(zip(states, said, strict=False)):
        turns.append(_Turn(before, after, [event for event in events if event.line == line], message))
        before = after
    return turns


def _said(submission: Submission) -> list[str]:
    """The messages that reached the user."""
    spoken = (parse_turn(str(each["content"])) for each in submission.messages if each["role"] == "assistant")
    return [turn.content for turn in spoken if not (turn.calls or turn.errors)]


def _merged(turns: Sequence[_Turn]) -> _Turn:
    events = [event for turn in turns for event in turn.events]
    return _Turn({}, turns[-1].after, events, "\n".join(turn.said for turn in turns))


def _state_problem(turn: _Turn, right: _Turn) -> str:
    if ends_in_a_folder([event for event in right.events if not event.failed]):
        return "" if same(turn.after, right.after) else "the world is not as it should be"
    pair = ({name: found for name, found in each.after.items() if name != NAVIGATION} for each in (turn, right))
    return "" if same(*pair) else "the world is not as it should be"


def _log_problem(turn: _Turn, right: _Turn, files: Mapping[str, Record]) -> str:
    written, expected = _written(turn, files), _written(right, files)
    for table, key, field in sorted(written - expected):
        what = f"{field} of {key} in {table}" if field else f"{key} in {table}"
        return f"the agent changed what nobody asked it to: {cut(what, 80)}"
    return "the agent did less than it was asked to" if expected - written else ""


def _written(turn: _Turn, files: Mapping[str, Record]) -> Counter[Touched]:
    """How many of the calls that changed something wrote each field that counts and that the turn changed."""
    changed = {place for event in turn.events for place in event.touched if place[0] != NAVIGATION}
    acts = [event for event in turn.events if event.touched]
    places = Counter(place for event in acts for place in changed.intersection(event.touched + event.named))
    return Counter(
        {place: count for place, count in places.items() if place[0] != FILES or _lasts(place[1], turn, files)}
    )


def _lasts(path: str, turn: _Turn, files: Mapping[str, Record]) -> bool:
    """Whether a file was there before the turn, or is after it."""
    return any(each.get(FILES, {}).get(path, files.get(path)) is not None for each in (turn.before, turn.after))


def _done_problem(turn: _Turn, right: _Turn) -> str:
    made, expected = (Counter(_key(event) for event in each.events if not event.failed) for each in (turn, right))
    missing = [event.name for event in _traceless(right) if made[_key(event)] < expected[_key(event)]]
    named = {place for event in turn.events for place in event.touched + event.named}
    missing += [event.name for event in right.events if not named.issuperset(event.named)]
    return f"the agent did not call {missing[0]} as it had to" if missing else ""


def _idle(turn: _Turn) -> list[Event]:
    """The calls of functions that change things that changed nothing."""
    return [event for event in turn.events if event.name in ACTS and not event.touched and not event.failed]


def _traceless(turn: _Turn) -> list[Event]:
    """The calls of functions that change things of which the state after the turn shows nothing.

    Files count by what became of them: they may be renamed before they are moved, or after.
    """
    events = [event for event in turn.events if event.name in ACTS and not event.failed]
    return [event for at, event in enumerate(events) if _covered(event, events[at + 1 :], turn)]


def _covered(event: Event, later: Sequence[Event], turn: _Turn) -> bool:
    """Whether all that a call wrote was written again, or a record that it made is gone."""
    rewritten = {place for each in later for place in each.touched}
    made = [(table, key) for table, key, field in event.touched if not field and table != FILES]
    gone = any(not turn.after.get(table, {}).get(key) and (table, key, "") in rewritten for table, key in made)
    return gone or all(place in rewritten and (place[2] or place[0] != FILES) for place in event.touched)


def _seen_problem(made: Sequence[Event], right: _Turn) -> str:
    results = {(event.name, event.result) for event in made}
    lookups = [event for event in right.events if is_lookup(event) and not event.failed]
    unseen = [event for event in lookups if (event.name, event.result) not in results]
    return f"{len(unseen)} of {len(lookups)} things were not looked up that had to be known" if unseen else ""


def _key(event: Event) -> str:
    """A call as a text: the same for arguments that mean the same."""
    schemas = Services.tools()[event.name].parameters["properties"]
    defaults = {name: schema["default"] for name, schema in schemas.items() if "default" in schema}
    arguments = {**defaults, **event.arguments}
    return json.dumps([event.name, {name: _loosely(value) for name, value in arguments.items()}], sort_keys=True)


def _loosely(value: Any) -> Any:
    if isinstance(value, list):
        return sorted(map(json.dumps, value))
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value  # MAX_NUMBER is finite


def _told_problem(said: str, right: str, made: Sequence[Event]) -> str:
    """What is wrong with what the user was told; it never says what is right."""
    told, owed = _Fields.of(said), _Fields.of(right)
    if len(told.quotes) > MAX_QUOTES:
        return f"the user was told more than {MAX_QUOTES} results at once"
    if told.cannot and not owed.cannot:
        return "the user was told that something cannot be done, and it can"
    if owed.cannot and not told.cannot:
        return "the user was not told that something is missing, as [cannot: ...]"
    results = [(event.name, json.loads(event.result)) for event in made] if told.quotes else []
    for name, value in told.quotes:
        if not _among(name, value, results):
            return f"the user was told of {name} what no call gave"
    untold = sum(not _among(name, value, told.quotes) for name, value in owed.quotes)
    return f"{untold} of {len(owed.quotes)} results that the user asked for were not told" if untold else ""


def _owes(message: str) -> bool:
    fields = _Fields.of(message)
    return bool(fields.quotes or fields.cannot)


def _among(name: str, value: Any, results: Sequence[tuple[str, Any]]) -> bool:
    return any(name == known and same(value, result) for known, result in results)


@dataclass(frozen=True, slots=True)
class _Fields:
    """The results that a message quotes, as (function, JSON value), and whether it says that something cannot be done.

    What stands inside a quote, such as in the content of a file, is no field of its own.
    """

    quotes: Sequence[tuple[str, Any]]
    cannot: bool

    @classmethod
    def of(cls, message: str) -> _Fields:
        quotes: list[tuple[str, Any]] = []
        cannot, at = False, 0
        while (match := _BEGINNING.search(message, at)) and len(quotes) <= MAX_QUOTES:
            name, at = match[1], match.end()
            if name == _CANNOT:
                cannot = cannot or message[at : at + 1] not in ("", "]")
            elif name in Services.tools() and (found := _value(message, at)):
                quotes.append((name, found[0]))
                at = found[1]
        return cls(quotes, cannot)


def _value(message: str, start: int) -> tuple[Any, int] | None:
    """The JSON value that begins there and ends the field, and where that ends."""
    try:
        value, end = _DECODER.raw_decode(message, start)
    except (ValueError, RecursionError):
        return None
    close = _CLOSE.match(message, end)
    return (value, close.end()) if close else None
