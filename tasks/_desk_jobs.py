"""What a user of the desk can ask for, by which calls it is done, and a world in which it can be done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

_PEOPLE = (  # noqa: SIM905 - a list of them would take forty lines
    "Ada Ali Ana Ben Bo Cem Dan Dora Eli Emil Eva Finn Gus Hana Ida Ines Ivo Jan Jon Kai "
    "Kim Lea Leo Lin Max Mia Mo Nia Noa Olga Pia Quinn Ria Rosa Sam Tara Tom Uma Vera Yan"
).split()
_FILES = ("budget", "draft", "invoice", "list", "memo", "notes", "plan", "report", "sketch", "table")
_TEXTS = ("I am late", "See you soon", "Please call me", "The plan has changed", "All is well", "Thank you")
_BYSTANDERS = 2  # of each kind

Call = dict[str, Any]

SHOWS = {"find_order": "orders", "find_meeting": "calendar", "read_message": "inbox", "find_file": "files"}
"""The table of which a tool shows a record, by its only argument."""


@dataclass(frozen=True)
class Job:
    """Something to do: in the user's words, by calls, and what the user must be told of it."""

    says: str
    first: Sequence[Call] = ()
    then: Sequence[Call] = ()
    """Calls that take what the first ones gave."""
    tell: Mapping[str, str] = field(default_factory=dict)
    question: str = ""
    """What to ask for first, and what the user says when one of the words is in a question."""
    facts: Mapping[str, str] = field(default_factory=dict)


class Scene:
    """The world of one task while it is made: each subject that it gives is a new one."""

    def __init__(self, rng: np.random.Generator, state: Mapping[str, Any] = MappingProxyType({})) -> None:
        self.rng = rng
        self.state: dict[str, dict[str, dict[str, Any]]] = dict(state)
        self.orders = self._table("orders")
        self._people = iter(rng.permutation(_PEOPLE).tolist())
        self._names: set[str] = set()

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def pick(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def draw(self, kinds: Sequence[Callable[[Scene], Job]], count: int = 1) -> list[Job]:
        return [self.pick(kinds)(self) for _ in range(count)]

    def fill(self, *, orders_only: bool) -> None:
        """Adds what no request is about."""
        for add in (self.order,) if orders_only else (self.order, self.meeting, self.letter, self.file):
            for _ in range(_BYSTANDERS):
                add()

    def order(self, status: str = "open") -> int:
        while str(number := self.number(100, 999)) in self.orders:
            pass
        record = {"price": self.number(10, 99), "day": self.number(10, 28), "status": status}
        self.orders[str(number)] = record
        return number

    def person(self) -> str:
        name: str = next(self._people)
        self._table("people")[name] = {"room": self.number(100, 999)}
        return name

    def meeting(self) -> str:
        name = self.person()
        self._table("calendar")[name] = {"day": self.number(10, 28), "hour": self.number(8, 18)}
        return name

    def letter(self, text: str = "") -> str:
        name = self.person()
        self._table("inbox")[name] = {"day": self.number(10, 28), "text": text or self.pick(_TEXTS)}
        return name

    def file_name(self) -> str:
        while (name := f"{self.pick(_FILES)}{self.number(10, 99)}") in self._names:
            pass
        self._names.add(name)
        return name

    def file(self) -> str:
        name = self.file_name()
        self._table("files")[name] = {"size": self.number(100, 999), "day": self.number(10, 28)}
        return name

    def other_day(self, day: int) -> int:
        """A day other than this one."""
        return (day - 10 + self.number(1, 18)) % 19 + 10

    def _table(self, name: str) -> dict[str, dict[str, Any]]:
        return self.state.setdefault(name, {})


# Jobs on a given order: what level 1 asks for.


def price(scene: Scene, order: int) -> Job:
    return _told(f"price of order {order}", _call("find_order", order=order), scene.orders[str(order)]["price"])


def day(scene: Scene, order: int) -> Job:
    return _told(f"day of order {order}", _call("find_order", order=order), scene.orders[str(order)]["day"])


def cancel(scene: Scene, order: int) -> Job:
    return Job(f"cancel order {order}", [_call("cancel_order", order=order)])


ON_ORDERS = (price, day, cancel)


# Jobs of one round of calls.


def on_order(scene: Scene) -> Job:
    return scene.pick(ON_ORDERS)(scene, scene.order())  # type: ignore[no-any-return]


def move_order(scene: Scene) -> Job:
    order = scene.order()
    to = scene.other_day(scene.orders[str(order)]["day"])
    return Job(f"move order {order} to day {to}", [_call("move_order", order=order, day=to)])


def about_meeting(scene: Scene) -> Job:
    person, what = scene.meeting(), scene.pick(("day", "hour"))
    value = scene.state["calendar"][person][what]
    return _told(f"{what} of the meeting with {person}", _call("find_meeting", person=person), value)


def move_meeting(scene: Scene) -> Job:
    person = scene.meeting()
    to = scene.other_day(scene.state["calendar"][person]["day"])
    return Job(f"move the meeting with {person} to day {to}", [_call("move_meeting", person=person, day=to)])


def add_meeting(scene: Scene) -> Job:
    person, day, hour = scene.person(), scene.number(10, 28), scene.number(8, 18)
    says = f"plan a meeting with {person} on day {day} at hour {hour}"
    return Job(says, [_call("add_meeting", person=person, day=day, hour=hour)])


def cancel_meeting(scene: Scene) -> Job:
    person = scene.meeting()
    return Job(f"cancel the meeting with {person}", [_call("cancel_meeting", person=person)])


def send_message(scene: Scene) -> Job:
    person, text = scene.person(), scene.pick(_TEXTS)
    return Job(f'send {person} the message "{text}"', [_call("send_message", person=person, text=text)])


def read_message(scene: Scene) -> Job:
    person = scene.letter()
    text = scene.state["inbox"][person]["text"]
    return _told(f"text of the message from {person}", _call("read_message", person=person), text)


def about_file(scene: Scene) -> Job:
    name = scene.file()
    return _told(f"size of the file {name}", _call("find_file", name=name), scene.state["files"][name]["size"])


def rename_file(scene: Scene) -> Job:
    name, new = scene.file(), scene.file_name()
    return Job(f"rename the file {name} to {new}", [_call("rename_file", name=name, new_name=new)])


def delete_file(scene: Scene) -> Job:
    name = scene.file()
    return Job(f"delete the file {name}", [_call("delete_file", name=name)])


SIMPLE = (
    on_order,
    move_order,
    about_meeting,
    move_meeting,
    add_meeting,
    cancel_meeting,
    send_message,
    read_message,
    about_file,
    rename_file,
    delete_file,
)


# Jobs that cannot be done: there is no tool for them, or the desk does not allow them.


def refund(scene: Scene) -> Job:
    return _refused(f"refund order {scene.order()}")


def print_file(scene: Scene) -> Job:
    return _refused(f"print the file {scene.file()}")


def phone(scene: Scene) -> Job:
    return _refused(f"phone {scene.person()}")


def cancel_sent(scene: Scene) -> Job:
    order = scene.order("sent")
    return _refused(f"cancel order {order}", _call("find_order", order=order))


IMPOSSIBLE = (refund, print_file, phone, cancel_sent)


# Jobs whose second call takes what the first one gives.


def meeting_to_order(scene: Scene) -> Job:
    person, order = scene.meeting(), scene.order()
    says = f"move the meeting with {person} to the day of order {order}"
    scene.orders[str(order)]["day"] = day = scene.other_day(scene.state["calendar"][person]["day"])
    return Job(says, [_call("find_order", order=order)], [_call("move_meeting", person=person, day=day)])


def order_to_meeting(scene: Scene) -> Job:
    person, order = scene.meeting(), scene.order()
    says = f"move order {order} to the day of the meeting with {person}"
    scene.orders[str(order)]["day"] = scene.other_day(day := scene.state["calendar"][person]["day"])
    return Job(says, [_call("find_meeting", person=person)], [_call("move_order", order=order, day=day)])


def send_price(scene: Scene) -> Job:
    person, order = scene.person(), scene.order()
    says = f"send {person} a message with the price of order {order}, only the number"
    text = str(scene.orders[str(order)]["price"])
    return Job(says, [_call("find_order", order=order)], [_call("send_message", person=person, text=text)])


def name_from_message(scene: Scene) -> Job:
    name, new = scene.file(), scene.file_name()
    person = scene.letter(new)
    says = f"rename the file {name} to the name in the message from {person}"
    then = _call("rename_file", name=name, new_name=new)
    return Job(says, [_call("read_message", person=person)], [then])


CHAINED = (meeting_to_order, order_to_meeting, send_price, name_from_message)


# Jobs with a fact left out, which the user gives when asked; and the same again, with another fact.


def some_day_for_order(scene: Scene) -> tuple[Job, Job]:
    order = scene.order()
    first = scene.other_day(scene.orders[str(order)]["day"])
    return _with_day(scene, f"move order {order} to", "move_order", first, order=order)


def some_day_for_meeting(scene: Scene) -> tuple[Job, Job]:
    person = scene.meeting()
    first = scene.other_day(scene.state["calendar"][person]["day"])
    return _with_day(scene, f"move the meeting with {person} to", "move_meeting", first, person=person)


VAGUE = (some_day_for_order, some_day_for_meeting)


def _with_day(scene: Scene, says: str, tool: str, first: int, **subject: Any) -> tuple[Job, Job]:
    second, fact = scene.other_day(first), f"To day {first}."
    return (
        Job(
            f"{says} another day",
            [_call(tool, **subject, day=first)],
            question="Which day?",
            facts={"day": fact, "when": fact, "date": fact},
        ),
        Job(f"no, I changed my mind: {says} day {second}", [_call(tool, **subject, day=second)]),
    )


def _told(name: str, call: Call, value: Any) -> Job:
    return Job(f"tell me the {name}", [call], tell={name: str(value)})


def _refused(says: str, *calls: Call) -> Job:
    return Job(says, calls, tell={says: "cannot"})


def _call(tool: str, /, **arguments: Any) -> Call:
    return {"name": tool, "arguments": arguments}
