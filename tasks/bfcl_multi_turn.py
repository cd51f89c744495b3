r"""BFCL's multi-turn tasks: a user asks for several things in turn, of services with a state.

A row of the questions (`multi_turn_base`), cut, and that of its answer:

    {"id": "multi_turn_base_6", "involved_classes": ["GorillaFileSystem"], "initial_config": {"GorillaFileSystem":
     {"root": {"gorilla": {"type": "directory", "contents": {...}}}}}, "question": [[{"role": "user", "content":
     "Please initiate a file creation in our communal folder ..."}], [{"role": "user", "content": "How many ..."}]]}
    {"id": "multi_turn_base_6", "ground_truth": [["cd(folder='communal')", "touch(file_name='R')"], ["wc('R')"]]}

The services are worlds of our own (`worlds.bfcl`). The metadata has the world's start and the user's lines; the target
is a gold episode: for each line the calls of the ground truth, and a message that tells the user what is owed. In it

- the result of a call is quoted as `[wc: {"count": 9, "type": "words"}]`: a look-up is owed unless its result supplies
  an argument of a later call of the same turn (a price that is then paid), the argument being none that the look-up was
  given. Of a turn that only goes where one is already, the result of the last call is owed.
- where the ground truth has no call, as a function or a fact is missing, `[cannot: ...]` is owed.

Categories: base; miss_func, some functions are offered only from a later line on, which shows their documents;
miss_param, a fact is left out and given with the next line; long_context, with much more in the world (`bulk`, our
own: BFCL adds such by code). Files and folders that the ground truth takes for granted are there in all of them.
`echo` writes to a file that is there; it creates one only in rows whose ground truth takes that for granted.
Tokens, bookings, cards and insurances get the numbers by which the ground truth names them.

A call of the ground truth that the world refuses changes nothing: it is no part of the gold episode, and listed in
`metadata["refused"]`. A row with a call that is no call of literals is left out, and the task set says so (`left_out`).
There is one split, test, and the source is as that of `bfcl`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from verigym.tasks._bfcl_calls import Call, parse_call
from verigym.tasks._bfcl_granted import granted
from verigym.tasks._rows import Row, UnusableRow, read_jsonl
from verigym.tasks.bfcl import HUB_ID, SPLITS, Place, answers_of
from verigym.tasks.canonical import MAX_CALLS
from verigym.tasks.errors import TaskDataError, UnknownNameError
from verigym.tasks.task import Task, TaskSet
from verigym.tasks.worlds.bfcl import ACTS, APIS, NAVIGATION, Services, lengthened, tables_of
from verigym.tasks.worlds.scenario import Scenario
from verigym.tasks.worlds.world import Event

CATEGORIES = ("base", "miss_func", "miss_param", "long_context")
NEW_FUNCTIONS = "You can use these functions too, from now on:\n{}\nPlease do now what I asked for."


def load(split: str = "test", source: str | os.PathLike[str] | None = None, *, category: str = "base") -> TaskSet:
    """The tasks of one category; see `tasks.load`."""
    if split not in SPLITS:
        raise UnknownNameError.of("split of 'bfcl_multi_turn' named", str(split), SPLITS)
    if category not in CATEGORIES:
        raise UnknownNameError.of("category of 'bfcl_multi_turn' named", str(category), CATEGORIES)
    place = Place.of(HUB_ID if source is None else os.fspath(source), f"multi_turn_{category}")
    file = place.questions(f"multi_turn_{category}")
    answers, tasks, left_out = answers_of(file), [], []
    for row in read_jsonl(file):
        try:
            tasks.append(_to_task(row, category, answers))
        except UnusableRow as unusable:
            left_out.append(str(unusable))
    if not tasks:
        why = f" that can be used ({left_out[0]})" if left_out else ""
        raise TaskDataError(f"bfcl_multi_turn/{category}: {file} holds no rows{why}; give another source")
    return TaskSet(tasks, name=f"bfcl_multi_turn/{category}", split=split, left_out=left_out)


def _to_task(row: Row, category: str, answers: Mapping[str, Any]) -> Task:
    task_id, names = row.text("id"), _services(row)
    missed, turns = _missed(row), row.values.get("question")
    if not isinstance(turns, list) or not turns:
        raise row.error("the field 'question' must hold a list of turns")
    truth = row.values.get("ground_truth", answers.get(task_id))
    if not isinstance(truth, list) or not all(isinstance(turn, list) for turn in truth):
        raise row.error(f"no ground truth for '{task_id}', which is a list of calls for each turn")
    if len(truth) != len(turns):
        raise row.unusable(f"{task_id} has {len(turns)} turns, and a ground truth of {len(truth)}")
    try:
        calls = [[parse_call(text) for text in turn] for turn in truth]
    except TaskDataError as error:
        raise row.unusable(f"{task_id} is a bad row: {error}") from error
    lines = [_line(row, turn, missed.get(index, [])) for index, turn in enumerate(turns)]
    withheld = {*_names(row, "excluded_function"), *(name for several in missed.values() for name in several)}
    tools = tuple(name for api in APIS if api in names for name in APIS[api].tools() if name not in withheld)
    state = _state(row, names)
    if category == "long_context":
        state = lengthened(state, task_id)
    state = granted(state, calls)
    metadata = {"category": category, "world": "bfcl", "state": state, "tools": tools, "user": lines}
    gold, refused = _gold(Task(task_id, lines[0]["says"], None, metadata), calls)
    return Task(task_id, lines[0]["says"], {"turns": gold}, MappingProxyType({**metadata, "refused": refused}))


def _services(row: Row) -> list[str]:
    names = row.values.get("involved_classes")
    if not isinstance(names, list) or not names:
        raise row.error("the field 'involved_classes' must hold a list of services")
    for name in names:
        if name not in APIS:
            raise row.error(str(UnknownNameError.of("service", str(name), APIS)))
    return names


def _state(row: Row, names: list[str]) -> dict[str, Any]:
    config = row.values.get("initial_config")
    if not isinstance(config, Mapping):
        raise row.error("the field 'initial_config' must hold an object with the state of each service")
    try:
        return tables_of(config, names)
    except (AttributeError, TypeError, ValueError, KeyError, StopIteration) as error:
        raise row.unusable(f"its initial_config does not describe {', '.join(names)} ({error!r})") from error


def _names(row: Row, field: str) -> list[str]:
    found = row.values.get(field) or []
    if not isinstance(found, list):
        raise row.error(f"the field '{field}' must hold a list of functions, not {str(found)[:80]}")
    return _known(row, found)


def _missed(row: Row) -> dict[int, list[str]]:
    """The functions that are offered only from a line on, by its index."""
    found = row.values.get("missed_function") or {}
    try:
        return {int(index): _known(row, [*names]) for index, names in found.items()}
    except (AttributeError, TypeError, ValueError) as error:
        wanted = '{"2": ["sort"]}'
        raise row.error(f"the field 'missed_function' must be such as {wanted}, not {str(found)[:80]}") from error


def _known(row: Row, names: list[str]) -> list[str]:
    for name in names:
        if name not in Services.tools():
            raise row.unusable(str(UnknownNameError.of("function", str(name)[:80], Services.tools())))
    return names


def _line(row: Row, turn: Any, offered: Sequence[str]) -> dict[str, Any]:
    """What the user says: the messages of a turn, and the documents of the functions that are new."""
    if not isinstance(turn, list) or not all(
        isinstance(message, Mapping) and isinstance(message.get("content"), str) for message in turn
    ):
        raise row.error("a turn of the field 'question' must be a list of messages with content")
    said = [message["content"] for message in turn]
    if offered:
        said.append(NEW_FUNCTIONS.format("\n".join(json.dumps(Services.tools()[name].schema) for name in offered)))
    if not "".join(said).strip():
        raise row.unusable("a turn in which no function is new has no message of the user")
    return {"says": "\n\n".join(said), "any_answer": True, **({"tools": tuple(offered)} if offered else {})}


# The gold episode.


def _gold(task: Task, calls: Sequence[Sequence[Call]]) -> tuple[list[list[Call] | str], list[str]]:
    """The turns of the gold episode, and the calls of the ground truth that the world refused."""
    scenario = Scenario(task)
    turns: list[list[Call] | str] = []
    refused: list[str] = []
    for several in calls:
        world, begin = scenario.world, len(scenario.world.events)
        before = world.store.changes()
        for call in several:
            world.call(**call)
        events = world.events[begin:]
        done = [call for call, event in zip(several, events, strict=True) if not event.failed]
        refused += [f"{event.name}: {event.result}" for event in events if event.failed]
        good = [event for event in events if not event.failed]
        message = _message(good, changed=_judged(world.store.changes(), good) != _judged(before, good))
        turns += [done[start : start + MAX_CALLS] for start in range(0, len(done), MAX_CALLS)]
        turns.append(message)
        scenario.hear(message)
    return turns, refused


def _message(events: Sequence[Event], *, changed: bool) -> str:
    """What the user must be told after these calls."""
    if not events:
        return "[cannot: a function or a fact is missing]"
    owed = [event for index, event in enumerate(events) if is_lookup(event) and not _feeds(event, events[index + 1 :])]
    if not changed and all(event.name == "cd" for event in events):
        owed = [events[-1]]
    return "\n".join(dict.fromkeys(f"[{event.name}: {event.result}]" for event in owed)) or "Done."


def is_lookup(event: Event) -> bool:
    """Whether a call is one of a function that changes nothing, nor where the agent stands."""
    return event.name not in ACTS and event.name != "cd"


def ends_in_a_folder(events: Sequence[Event]) -> bool:
    """Whether the last call on the file system was to go somewhere: then that was the point of it."""
    on_files = [event.name for event in events if event.name in APIS["GorillaFileSystem"].tools()]
    return bool(on_files) and on_files[-1] == "cd"


def _judged(changes: Mapping[str, Any], events: Sequence[Event]) -> Mapping[str, Any]:
    """What of a state counts after these calls."""
    return changes if ends_in_a_folder(events) else {name: changes[name] for name in changes if name != NAVIGATION}


def _feeds(event: Event, later: Sequence[Event]) -> bool:
    """Whether a later call has an argument that came with the result of this one."""
    found = set(_leaves(json.loads(event.result))) - set(_leaves(event.arguments))
    return any(found & set(_leaves(each.arguments)) for each in later)


def _leaves(value: Any) -> Iterator[str | float]:
    """The texts and numbers in plain data."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from _leaves(inner)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield value
