"""tau-bench: a customer wants something of a shop or an airline, and an agent serves it by tools and a policy.

A row of `retail/tasks_test.jsonl`, cut:

    {"id": "retail-test-0", "user_id": "yusuf_rossi_9620", "instruction": "You are Yusuf Rossi in 19122. You received
     your order #W2378156 and wish to exchange the mechanical keyboard for a similar one but with clicky switches ...",
     "actions": [{"name": "exchange_delivered_order_items", "kwargs": {"order_id": "#W2378156", ...}}], "outputs": []}

The prompt is what the user says first; the policy, the data base, the user's script and the instruction are metadata.
The target has a gold episode in `turns`, in `outputs` what the user must be told, in `known` the user's records where
nothing is to be changed, and `closing` where no human helps then either. A correct episode:

    <tool_call>{"name": "exchange_delivered_order_items", "arguments": {"order_id": "#W2378156", ...}}</tool_call>
    It is done. Is there anything else that I can help you with?

`source` is a checkout of tau-bench, or a folder with `retail` and `airline`, or one of these two, or a file of tasks in
it. They hold users.json, orders.json and products.json (airline: flights.json, reservations.json), gzipped or not or in
`data/`, wiki.md, and tasks_<split> (.jsonl, or tau-bench's .py, which is read and not run). Of tau2-bench, with
`benchmark="tau2"`: db.json, policy.md, tasks.jsonl or tasks.json, split_tasks.json. Where there is no db.json,
tau-bench's data beside it are taken. There is no public hub id.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from verigym.tasks._rows import Row, UnusableRow
from verigym.tasks._tau_source import Home
from verigym.tasks._tau_user import script, script_of_parts
from verigym.tasks.errors import TaskDataError, UnknownNameError
from verigym.tasks.task import Task, TaskSet
from verigym.tasks.worlds import Scenario
from verigym.tasks.worlds.base import Base

NOTHING = "[changes: none]"  # how an agent closes that has nothing to do, to tell or to hand over
BENCHMARKS = ("tau", "tau2")
OFFER = "Is there anything else that I can help you with?"
_TRANSFER = "transfer_to_human_agents"
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
    """What one earns who always says that there is nothing to do, and small numbers, or always hands over."""
    nothing = sum("closing" in task.target or _is_guessed(task) for task in task_set)
    return max(nothing, sum(map(_is_handed_over, task_set))) / len(task_set)


def _is_guessed(task: Task) -> bool:
    """Whether there is nothing to do but to tell numbers of one or two digits, of which a message may have many."""
    outputs = task.target.get("outputs", ()) if "known" in task.target else ()
    return bool(outputs) and all(re.fullmatch(r"\d{1,2}", output) for output in outputs)


def _is_handed_over(task: Task) -> bool:
    """Whether all that is to be done is to hand over: no change, nothing to tell, and no other closing."""
    return "known" in task.target and not {"closing", "outputs"} & task.target.keys()


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
            "(see docs/tau.md)"
        )
    home = Home(domain, benchmark, Path(os.path.expanduser(source)))
    tasks, left_out = [], []
    for row in home.rows(split):
        try:
            tasks.append(_task(row, home))
        except UnusableRow as unusable:
            left_out.append(str(unusable))
    if not tasks:
        raise TaskDataError(f"{name}/{split}: {home.folder} holds no tasks of this split; give another source or split")
    return TaskSet(tasks, name=name, split=split, left_out=left_out)


class _Read(NamedTuple):
    """What a row says."""

    task_id: str
    instruction: str
    user: dict[str, Any]
    script: dict[str, Any]
    calls: list[dict[str, Any]]
    outputs: Any


def _task(row: Row, home: Home) -> Task:
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
    calls, outputs = _calls(row, criteria.get("actions") or [], "arguments"), criteria.get("communicate_info")
    user = _user(row, base, _named_user(row, instruction, calls, base))
    task_id = f"{parts.get('domain', 'tau2')}-{row.id('id', default='')}"
    return _Read(task_id, instruction, user, script_of_parts(parts, user), calls, outputs)


_PARTS = ("reason_for_call", "known_info", "unknown_info", "task_instructions")
_OF_USER = {
    "name": ("first_name", "last_name"),
    "address": ("address1", "address2", "city", "state", "zip", "country"),
}
_USER_ID = re.compile(r"\b[a-z]+_[a-z]+_\d{4}\b")


def _named_user(row: Row, instruction: str, calls: list[dict[str, Any]], base: Base) -> str:
    """The user of tau2-bench's task, which no field names: by id, email, or name and zip or city, else by the calls.

    Raises UnusableRow if neither tells.
    """
    users = base["users"]
    named = [found for found in _USER_ID.findall(instruction) if found in users]
    if named:
        return str(named[0])
    text = instruction.casefold()
    scores = {key: _mentions(user, text) for key, user in users.items()}
    best = max(scores, key=lambda key: scores[key])
    if scores[best] > 1 and list(scores.values()).count(scores[best]) == 1:
        return str(best)
    for call in calls:
        for name, value in call["arguments"].items():
            owner = value if name == "user_id" else _owner(base, name, value)
            if isinstance(owner, str) and owner in users:
                return owner
    raise row.unusable("neither its instructions nor its actions tell who of the data base the user is")


def _owner(base: Base, name: str, value: Any) -> Any:
    """Whose an order or reservation is, of a call's argument such as `order_id`."""
    return base.get(f"{name.removesuffix('_id')}s", {}).get(str(value), {}).get("user_id")


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
    user: dict[str, Any] = base["users"][user_id]
    for table, fields in _OF_USER.items():
        for field in fields:
            if not isinstance(user[table].get(field), str):
                raise row.error(f"the record of user '{user_id}' has no {table} with '{field}'")
    return {**user, "id": user_id}


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
    for output in outputs or ():
        if not re.search(r"[^\W_]", output):
            raise row.error(f"what the user must be told must have a letter or digit, not {output!r}")
    scenario = Scenario(task)
    for call in calls:
        if call["name"] not in scenario.world.tools():
            raise row.error(f"there is no tool '{call['name']}'")
    doing = [call for call in calls if call["name"] != _TRANSFER]
    leaving = [call for call in calls if call["name"] == _TRANSFER][:1]
    for call in doing:
        scenario.world.call(call["name"], call["arguments"])
    known = [] if scenario.world.store.changes() else _records_of(user)
    idle = bool(known) and not outputs
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
    """The places of a user's records: one of them must be looked at where nothing is changed."""
    table = "orders" if "orders" in user else "reservations"
    return [["users", user["id"]], *([table, key] for key in user[table])]
