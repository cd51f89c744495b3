"""tau-bench: a customer wants something of a shop or an airline, and an agent serves it by tools and a policy.

A row of `retail/tasks_test.jsonl`, cut:

    {"id": "retail-test-0", "user_id": "yusuf_rossi_9620", "instruction": "You are Yusuf Rossi in 19122. You received
     your order #W2378156 and wish to exchange the mechanical keyboard for a similar one but with clicky switches ...",
     "actions": [{"name": "exchange_delivered_order_items", "kwargs": {"order_id": "#W2378156", ...}}], "outputs": []}

The prompt is what the user says first; the policy, the data base, the user's script and the instruction are metadata.
The target has a gold episode in `turns`, in `outputs` what the user must be told, in `known` the user's records where
nothing is to be changed or told, and `closing` where no human helps then either. A correct episode:

    <tool_call>{"name": "exchange_delivered_order_items", "arguments": {"order_id": "#W2378156", ...}}</tool_call>
    It is done. Is there anything else that I can help you with?

`source` is a folder with `retail` and `airline` or one of the two, or a file of tasks in it: users.json, orders.json,
products.json (airline: flights.json, reservations.json; each may be gzipped), wiki.md, tasks_<split>*.jsonl. Of
tau2-bench (`benchmark="tau2"`): db.json, policy.md, tasks.jsonl, split_tasks.json. Where there is no db.json for the
airline, tau-bench's data beside it are taken, which are not quite the same. There is no public hub id.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from verigym.tasks._rows import Row, read_file
from verigym.tasks._tau_user import script, script_of_parts
from verigym.tasks.errors import TaskDataError, UnknownNameError
from verigym.tasks.task import Task, TaskSet
from verigym.tasks.worlds import Scenario
from verigym.tasks.worlds.base import Base, read_base

NOTHING = "[changes: none]"  # how an agent closes that has nothing to do, to tell or to hand over
BENCHMARKS = ("tau", "tau2")
OFFER = "Is there anything else that I can help you with?"
_TRANSFER = "transfer_to_human_agents"
_TABLES = {"retail": ("users", "orders", "products"), "airline": ("users", "flights", "reservations")}
_SPLITS = {("retail", "tau"): ("train", "dev", "test"), ("airline", "tau"): ("test",)}
_SPLITS_2 = ("train", "test", "base")


def load_retail(
    split: str = "train", source: str | os.PathLike[str] | None = None, *, benchmark: str = "tau"
) -> TaskSet:
    """The shop's tasks; see `tasks.load`."""
    return _load("retail", split, source, benchmark)


def load_airline(
    split: str = "test", source: str | os.PathLike[str] | None = None, *, benchmark: str = "tau"
) -> TaskSet:
    """The airline's tasks; see `tasks.load`."""
    return _load("airline", split, source, benchmark)


def chance(task_set: TaskSet) -> float:
    """What one earns who always says that there is nothing to do, or always hands over to a human."""
    nothing = sum("closing" in task.target for task in task_set)
    return max(nothing, sum(map(_is_handed_over, task_set))) / len(task_set)


def _is_handed_over(task: Task) -> bool:
    """Whether all that is to be done is to hand over: no change, nothing to tell, and no other closing."""
    return "known" in task.target and "closing" not in task.target


def _load(domain: str, split: str, source: str | os.PathLike[str] | None, benchmark: str) -> TaskSet:
    name = f"tau_{domain}"
    if benchmark not in BENCHMARKS:
        raise UnknownNameError.of(f"benchmark of '{name}' named", str(benchmark), BENCHMARKS)
    splits = _SPLITS_2 if benchmark == "tau2" else _SPLITS[domain, benchmark]
    if split not in splits:
        raise UnknownNameError.of(f"split of '{name}' named", str(split), splits)
    if source is None:
        raise TaskDataError(
            f"{name}: {benchmark}-bench has no public hub id; give source=PATH of a folder with its data "
            "(see docs/environments.md)"
        )
    home = _Home(domain, benchmark, Path(os.path.expanduser(source)))
    tasks = [_task(row, home) for row in home.rows(split)]
    if not tasks:
        raise TaskDataError(f"{name}/{split}: {home.folder} holds no tasks of this split; give another source or split")
    return TaskSet(tasks, name=name, split=split)


class _Home:
    """The folder of a domain: its data base, policy and tasks. Raises TaskDataError for what is missing."""

    def __init__(self, domain: str, benchmark: str, source: Path) -> None:
        if not source.exists():
            raise TaskDataError(f"tau_{domain}: no file or folder '{source}'; check the path given as source")
        self.domain, self.benchmark = domain, benchmark
        self.file = source if source.is_file() else None
        places = [source.parent] if self.file else [source, source / domain]
        policy = "policy.md" if benchmark == "tau2" else "wiki.md"
        # a folder of the other domain has a policy, too; where the name does not tell, its tables do
        fitting = [place for place in places if (place / policy).is_file() and self._is_mine(place)]
        if not fitting:
            looked = " and ".join(str(place) for place in places)
            raise TaskDataError(
                f"tau_{domain}: no {policy} with the data of the {domain} domain in {looked}; "
                f"give the folder of {benchmark}-bench's data as source"
            )
        self.folder = fitting[-1]
        self.policy = (self.folder / policy).read_text(encoding="utf-8")
        self.base = read_base(self._files())

    def _is_mine(self, place: Path) -> bool:
        return place.name == self.domain or _file(place, _TABLES[self.domain][1]) is not None

    def _files(self) -> tuple[tuple[str, str], ...]:
        """The files of the data base, by table."""
        places = [self.folder]
        if self.benchmark == "tau2":
            if whole := _file(self.folder, "db"):
                return (("", str(whole)),)
            places = [self.folder.parent.parent / "tau_bench" / self.domain]
        found = {table: _file(place, table) for place in places for table in _TABLES[self.domain]}
        for table, path in found.items():
            if path is None:
                raise TaskDataError(f"{places[0]}: no {table}.json or {table}.json.gz; fetch the data again")
        return tuple((table, str(path)) for table, path in found.items())

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of a split; of a file that was named, all."""
        if self.file is not None:
            return _rows(self.file)
        if self.benchmark == "tau2":
            wanted = self._ids(split)
            file = next(
                (path for name in ("tasks.jsonl", "tasks.json") if (path := self.folder / name).is_file()), None
            )
            if file is None:
                raise TaskDataError(f"{self.folder}: no tasks.jsonl; fetch the data again")
            return (row for row in _rows(file) if row.id("id", default="") in wanted)
        words = re.compile(rf"(?:^|[^a-z0-9]){split}(?:[^a-z0-9]|$)")
        files = sorted(path for path in self.folder.glob("tasks*.jsonl*") if words.search(path.name.lower()))
        return (row for file in files for row in read_file(file))

    def _ids(self, split: str) -> set[str]:
        path = self.folder / "split_tasks.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))[split]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TaskDataError(f"{path}: does not tell the ids of the split '{split}' ({error})") from error
        return set(map(str, found))


def _file(folder: Path, name: str) -> Path | None:
    """A JSON file, perhaps gzipped."""
    return next((path for end in ("json", "json.gz") if (path := folder / f"{name}.{end}").is_file()), None)


def _rows(path: Path) -> Iterator[Row]:
    """The rows of a file of tasks: JSON lines, or tau2-bench's own list."""
    if path.suffix != ".json":
        return read_file(path)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TaskDataError(f"{path}: is not JSON ({error}); fetch the file again") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise TaskDataError(f"{path}: must be a list of tasks; fetch the file again")
    return (Row(row, str(path), number) for number, row in enumerate(found, start=1))


class _Read(NamedTuple):
    """What a row says."""

    task_id: str
    instruction: str
    user: dict[str, Any]
    script: dict[str, Any]
    calls: list[dict[str, Any]]
    outputs: Any


def _task(row: Row, home: _Home) -> Task:
    read = _read_2 if home.benchmark == "tau2" else _read_1
    found = read(row, home.base)
    metadata = {
        "world": f"{home.benchmark}_{home.domain}",
        "state": home.base,
        "policy": home.policy,
        "instruction": found.instruction,
        "user": found.script,
    }
    asked = Task(found.task_id, found.script["says"], None, MappingProxyType(metadata))
    return Task(asked.id, asked.prompt, _target(row, asked, found), asked.metadata)


def _read_1(row: Row, base: Base) -> _Read:
    user, instruction = _user(row, base, row.text("user_id")), row.text("instruction")
    calls = _calls(row, row.values.get("actions"), "kwargs")
    return _Read(row.text("id"), instruction, user, script(instruction, user), calls, row.values.get("outputs"))


def _read_2(row: Row, base: Base) -> _Read:
    scenario, criteria = row.values.get("user_scenario"), row.values.get("evaluation_criteria")
    parts = scenario.get("instructions") if isinstance(scenario, Mapping) else None
    if not isinstance(parts, Mapping) or not isinstance(criteria, Mapping):
        raise row.error("a task needs user_scenario.instructions and evaluation_criteria")
    instruction = "\n".join(str(parts[name]) for name in _PARTS if parts.get(name))
    user = _user(row, base, _named_user(row, instruction, base))
    calls, outputs = _calls(row, criteria.get("actions") or [], "arguments"), criteria.get("communicate_info")
    task_id = f"{parts.get('domain', 'tau2')}-{row.id('id', default='')}"
    return _Read(task_id, instruction, user, script_of_parts(parts, user), calls, outputs)


_PARTS = ("reason_for_call", "known_info", "unknown_info", "task_instructions")
_USER_ID = re.compile(r"\b[a-z]+_[a-z]+_\d{4}\b")


def _named_user(row: Row, instruction: str, base: Base) -> str:
    """The user of tau2-bench's task, which does not name it by a field: by id, email, or name and zip or city."""
    users = base["users"]
    named = [found for found in _USER_ID.findall(instruction) if found in users]
    if named:
        return str(named[0])
    text = instruction.casefold()
    scores = {key: _mentions(user, text) for key, user in users.items()}
    best: str = max(scores, key=lambda key: scores[key])
    if scores[best] < 2 or list(scores.values()).count(scores[best]) > 1:
        raise row.error("its instructions do not tell who of the data base the user is")
    return best


def _mentions(user: Mapping[str, Any], text: str) -> int:
    """How surely a text is about a user: 0 without the first and the last name or the email."""
    name = [part.casefold() in text for part in user["name"].values()]
    email = user["email"].casefold() in text
    if not (email or all(name)):
        return 0
    address = user["address"]
    return 1 + 4 * email + 2 * (address["zip"] in text) + (address["city"].casefold() in text)


def _user(row: Row, base: Base, user_id: str) -> dict[str, Any]:
    """The record of a user, with its id."""
    if user_id not in base["users"]:
        raise row.error(f"there is no user '{user_id}' in the data base")
    return {**base["users"][user_id], "id": user_id}


def _calls(row: Row, actions: Any, arguments: str) -> list[dict[str, Any]]:
    """The gold calls. Raises TaskDataError for what is none."""
    if not isinstance(actions, list):
        raise row.error("'actions' must be a list of calls")
    for action in actions:
        if not (
            isinstance(action, Mapping)
            and isinstance(action.get("name"), str)
            and isinstance(action.get(arguments), Mapping)
        ):
            raise row.error(f"an action must have a name and {arguments}, not {json.dumps(action)[:80]}")
    return [{"name": action["name"], "arguments": dict(action[arguments])} for action in actions]


def _target(row: Row, task: Task, found: _Read) -> dict[str, Any]:
    """The gold episode, played here to see what it changes and when the user leaves."""
    calls, outputs, user = found.calls, found.outputs, found.user
    if not isinstance(outputs or [], list) or not all(isinstance(output, str) for output in outputs or []):
        raise row.error("what the user must be told must be a list of texts")
    scenario = Scenario(task)
    for call in calls:
        if call["name"] not in scenario.world.tools():
            raise row.error(f"there is no tool '{call['name']}'")
    doing = [call for call in calls if call["name"] != _TRANSFER]
    leaving = [call for call in calls if call["name"] == _TRANSFER][:1]
    for call in doing:
        scenario.world.call(call["name"], call["arguments"])
    idle = not outputs and not scenario.world.store.changes()
    known = _records_of(user) if idle else []
    if known and not any(list(place) in known for event in scenario.world.events for place in event.seen):
        doing.insert(0, {"name": "get_user_details", "arguments": {"user_id": user["id"]}})
    turns: list[Any] = [[call] for call in doing]
    if outputs:
        turns.append(f"Here is what you asked for: {'; '.join(outputs)}. {OFFER}")
    elif not leaving:
        turns.append(f"I changed nothing. {NOTHING} {OFFER}" if idle else f"It is done. {OFFER}")
    if leaving:
        turns.append(leaving)
    else:
        _, ended = scenario.hear(turns[-1])
        while not ended:
            turns.append(f"That is all that I can do. {OFFER}")
            _, ended = scenario.hear(turns[-1])
    closing = {"closing": "none"} if idle and not leaving else {}
    return {
        "turns": turns,
        **({"outputs": outputs} if outputs else {}),
        **({"known": known} if known else {}),
        **closing,
    }


def _records_of(user: Mapping[str, Any]) -> list[list[str]]:
    """The places of a user's records: one of them must be looked at before the user is refused or handed over."""
    table = "orders" if "orders" in user else "reservations"
    return [["users", user["id"]], *([table, key] for key in user[table])]
