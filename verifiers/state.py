"""Verdicts on episodes in a world: its final state, what was done on the way, and what the user was told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from verigym.tasks.canonical import parse_turn, render_call
from verigym.tasks.errors import TaskDataError, UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.tasks.worlds.scenario import Scenario
from verigym.tasks.worlds.store import Changes, Place, Touched, same
from verigym.tasks.worlds.world import Event, world_of
from verigym.verifiers._plain import cut
from verigym.verifiers.communication import owed_by, problem_of
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier


class StateMatchVerifier(Verifier):
    """1 if the world ends as in the gold episode, nothing else was done on the way, and all that was owed was told.

    `target["turns"]` is a gold episode: each turn a list of calls, `{"name": ..., "arguments": {...}}`, or a message to
    the user. It is played in a fresh world. Then

    - `state`: what differs from the world's start is the same, with exact types, at the end and each time that the
      user went on to a new line of the script: who says that something is done must have done it;
    - `log`: no call wrote a field that the gold calls do not write, even if it was undone later;
    - `seen`: the records that `target["seen"]` names, as [table, key], were looked at by some call, if only in vain:
      what cannot be known otherwise is not to be guessed;
    - `told`: the user was told the fields of `target["tell"]`, and no others (see CommunicationVerifier).

    The order of calls, other reads, and calls that failed do not count. A submission that is a text alone is judged by
    the end: its calls are run in a fresh world, and the rest is a message.

    Raises VerifierInputError for a task without a world, and for a target whose calls fail, that ends before the user's
    script does, or by which nothing is to be changed or told.
    """

    def verify(self, submission: Submission, task: Task) -> Verdict:
        owed, seen, gold = owed_by(task), _to_be_seen(task), gold_scenario(task)
        if not owed and not any(gold.states):
            raise VerifierInputError(f"task {task.id} asks for no change and no message: doing nothing would be right")
        states, events = played(submission, task)
        expected = gold.states if submission.state is not None else gold.states[-1:]
        strange = sorted(touched(events) - touched(gold.world.events))
        problems = {
            "log": said_of(strange) if strange else "",
            "state": "" if same(states, expected) else "the world is not as it should be",
            "seen": "" if seen <= _seen(events) else "the agent did not look at all that it had to know",
            "told": problem_of(submission, owed),
        }
        reasons = [problem for problem in problems.values() if problem]
        components = {name: float(not problem) for name, problem in problems.items()}
        if reasons:
            details = {"states": states, "expected": expected}
            return Verdict(0.0, Outcome.WRONG, "; ".join(reasons), components, details)
        return Verdict(1.0, Outcome.CORRECT, "all was done and told, and nothing else", components)

    def golds(self, task: Task) -> list[str]:
        return ["\n".join(gold_turns(task))]


def gold_turns(task: Task) -> list[str]:
    """The agent's turns of the gold episode, in canonical syntax. Raises VerifierInputError for a task without one."""
    return [
        turn if isinstance(turn, str) else "".join(render_call(*call) for call in turn) for turn in gold_episode(task)
    ]


def calls_of(task: Task) -> list[tuple[str, dict[str, Any]]]:
    """The calls of the gold episode, (name, arguments). Raises VerifierInputError for a task without one."""
    return [call for turn in gold_episode(task) if not isinstance(turn, str) for call in turn]


def gold_episode(task: Task) -> list[str | list[tuple[str, dict[str, Any]]]]:
    """The gold episode: messages, and lists of (name, arguments)."""
    turns = task.target.get("turns") if isinstance(task.target, Mapping) else None
    try:
        return [
            turn if isinstance(turn, str) else [(str(call["name"]), dict(call["arguments"])) for call in turn]
            for turn in turns or ()
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise VerifierInputError(f"task {task.id} has a target that is no gold episode: {error!r}") from error


def gold_scenario(task: Task) -> Scenario:
    """The task with its gold episode played. Raises VerifierInputError for one that cannot be."""
    try:
        scenario, ended = Scenario(task), False
    except (TaskDataError, UnknownNameError) as error:
        raise VerifierInputError(str(error)) from error
    for turn in gold_episode(task):
        if ended:
            raise VerifierInputError(f"task {task.id}: its gold episode goes on after the user's last word")
        if isinstance(turn, str):
            _, ended = scenario.hear(turn)
            continue
        for call in turn:
            result = scenario.world.call(*call)
            if scenario.world.events[-1].failed:
                raise VerifierInputError(f"task {task.id}: its gold call of {call[0]} gives {result}")
    if not ended:
        raise VerifierInputError(f"task {task.id}: its gold episode ends before the user's script does")
    return scenario


def played(submission: Submission, task: Task) -> tuple[Sequence[Changes], Sequence[Event]]:
    """The states of the world and its log; those of a text alone by running the calls in it."""
    if submission.state is not None:
        return submission.state, submission.events
    world = world_of(task)
    for call in parse_turn(submission.text).calls:
        if not world.ended:
            world.call(call.name, call.arguments)
    return [world.store.changes()], world.events


def touched(events: Sequence[Event]) -> set[Touched]:
    return {place for event in events for place in event.touched}


def _seen(events: Sequence[Event]) -> set[Place]:
    return {place for event in events for place in event.seen}


def _to_be_seen(task: Task) -> set[Place]:
    try:
        return {(str(table), str(key)) for table, key in task.target.get("seen", ())}
    except (TypeError, ValueError) as error:
        raise VerifierInputError(f'task {task.id} has a target whose "seen" is no list of [table, key]') from error


def said_of(strange: Sequence[Touched]) -> str:
    table, key, field = strange[0]
    what = f"{field} of {key} in {table}" if field else f"{key} in {table}"
    return f"the agent changed what nobody asked it to: {cut(what, 80)}"
