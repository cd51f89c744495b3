"""Verdicts on episodes in a world: its final state, what was done on the way, and what the user was told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from verigym.tasks.canonical import parse_turn, render_call
from verigym.tasks.errors import VerifierInputError
from verigym.tasks.task import Task
from verigym.tasks.worlds.store import Touched, same
from verigym.tasks.worlds.world import World, world_of
from verigym.verifiers._plain import cut
from verigym.verifiers.communication import owed_by, problem_of
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier


class StateMatchVerifier(Verifier):
    """1 if the world ends as after the gold actions, nothing else was done on the way, and all that was owed was told.

    `target["turns"]` is a gold episode: each turn a list of calls, `{"name": ..., "arguments": {...}}`, or a message to
    the user. Its calls are run in a fresh world. Then

    - `state`: what differs from the start is the same, with exact types;
    - `log`: no call wrote a field that the gold calls do not write, even if it was undone later;
    - `told`: the user was told the fields of `target["tell"]`, and no others (see CommunicationVerifier).

    The order of calls, reads, and calls that failed do not count. A submission that is a text alone is judged by the
    calls in it, run in a fresh world, and by the rest as a message.

    Raises VerifierInputError for a target whose calls fail, and for one by which nothing is to be changed or told.
    """

    def verify(self, submission: Submission, task: Task) -> Verdict:
        owed, gold = owed_by(task), _gold_world(task)
        expected = gold.store.changes()
        if not owed and not expected:
            raise VerifierInputError(f"task {task.id} asks for no change and no message: doing nothing would be right")
        state, touched = _end_of(submission, task)
        strange = sorted(touched - _touched(gold.events))
        problems = {
            "log": _said_of(strange) if strange else "",
            "state": "" if same(state, expected) else "the world is not as it should be at the end",
            "told": problem_of(submission, owed),
        }
        reasons = [problem for problem in problems.values() if problem]
        components = {name: float(not problem) for name, problem in problems.items()}
        if reasons:
            details = {"changes": state, "expected": expected}
            return Verdict(0.0, Outcome.WRONG, "; ".join(reasons), components, details)
        return Verdict(1.0, Outcome.CORRECT, "all was done and told, and nothing else", components)

    def golds(self, task: Task) -> list[str]:
        return ["\n".join(gold_turns(task))]


def gold_turns(task: Task) -> list[str]:
    """The agent's turns of the gold episode, in canonical syntax. Raises VerifierInputError for a task without one."""
    return [turn if isinstance(turn, str) else "".join(render_call(*call) for call in turn) for turn in _gold(task)]


def _gold(task: Task) -> list[str | list[tuple[str, dict[str, Any]]]]:
    """The gold episode: messages, and lists of (name, arguments)."""
    turns = task.target.get("turns") if isinstance(task.target, Mapping) else None
    try:
        return [
            turn if isinstance(turn, str) else [(str(call["name"]), dict(call["arguments"])) for call in turn]
            for turn in turns or ()
        ]
    except (TypeError, KeyError, ValueError) as error:
        raise VerifierInputError(f"task {task.id} has a target that is no gold episode: {error!r}") from error


def _gold_world(task: Task) -> World:
    """A fresh world in which the gold calls were run."""
    world = _replayed(task, [call for turn in _gold(task) if not isinstance(turn, str) for call in turn])
    failed = next((event for event in world.events if event.failed), None)
    if failed is not None:
        raise VerifierInputError(f"task {task.id}: its gold call of {failed.name} gives {failed.result}")
    return world


def _replayed(task: Task, calls: Iterable[tuple[str, dict[str, Any]]]) -> World:
    world = world_of(task)
    for name, arguments in calls:
        world.call(name, arguments)
    return world


def _end_of(submission: Submission, task: Task) -> tuple[Any, set[Touched]]:
    """The final state and what was written on the way."""
    if submission.state is not None:
        return submission.state, _touched(submission.events)
    world = _replayed(task, ((call.name, call.arguments) for call in parse_turn(submission.text).calls))
    return world.store.changes(), _touched(world.events)


def _touched(events: Sequence[Any]) -> set[Touched]:
    return {place for event in events for place in event.touched}


def _said_of(strange: Sequence[Touched]) -> str:
    table, key, field = strange[0]
    what = f"{field} of {key} in {table}" if field else f"{key} in {table}"
    return f"the agent changed what nobody asked it to: {cut(what, 80)}"
