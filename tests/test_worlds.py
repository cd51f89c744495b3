"""Worlds: stores that share a base, tools that fail without a trace, logs of what was written, users with a script."""

from typing import Any, NotRequired, TypedDict

import pytest

from verigym.tasks import Task
from verigym.tasks.errors import TaskDataError, UnknownNameError
from verigym.tasks.worlds import ScriptedUser, Store, World, world_of
from verigym.tasks.worlds.tool import Refused
from verigym.tasks.worlds.user import NO_MORE, THANKS

BASE = {"orders": {"1": {"day": 3, "items": ["pen"]}, "2": {"day": 4, "items": []}}}


class Shop(World):
    def find(self, order: str) -> dict[str, Any]:
        """Show an order."""
        record = self.store.get("orders", order)
        if record is None:
            raise ValueError(f"there is no order {order}")
        return record

    def move_all(self, orders: list[str], day: int) -> str:
        """Move orders to a day."""
        for order in orders:
            self.store.put("orders", order, {**self.find(order), "day": day})
        return "done"

    def _helper(self) -> None:
        raise NotImplementedError


# Stores.


def test_what_is_read_or_written_is_a_copy():
    store, record = Store(BASE), {"day": 9, "items": ["cup"]}
    store.get("orders", "1")["items"].append("ink")
    store.put("orders", "3", record)
    record["items"].append("ink")
    store.get("orders", "3")["items"].append("ink")
    assert store.get("orders", "1") == {"day": 3, "items": ["pen"]}
    assert store.get("orders", "3") == {"day": 9, "items": ["cup"]}
    assert BASE["orders"].keys() == {"1", "2"}


def test_changes_are_what_differs_from_the_base_with_exact_types():
    store = Store(BASE)
    store.put("orders", "1", {"day": 5, "items": ["pen"]})
    store.put("orders", "1", {"day": 3, "items": ["pen"]})
    assert store.changes() == {}
    store.put("orders", "1", {"day": 3.0, "items": ["pen"]})
    store.delete("orders", "2")
    store.put("orders", "3", {})
    store.delete("orders", "3")
    assert repr(store.changes()) == "{'orders': {'1': {'day': 3.0, 'items': ['pen']}, '2': None}}"


def test_what_was_written_is_noted_by_field_even_if_it_was_undone():
    store = Store(BASE)
    store.put("orders", "1", {"day": 5, "items": ["pen"]})
    store.put("orders", "1", {"day": 3, "items": ["pen"]})
    store.put("orders", "2", {"day": 4, "items": []})  # as it was
    store.put("orders", "3", {"day": 4})
    store.delete("orders", "3")
    store.delete("orders", "4")  # which is not there
    assert store.touched == (("orders", "1", "day"), ("orders", "3", ""))
    assert store.fork().touched == ()


def test_what_was_read_is_noted_too():
    store = Store(BASE)
    store.keys("orders")
    store.get("orders", "9")  # which is not there
    assert store.seen == ()
    store.get("orders", "2")
    assert store.seen == (("orders", "2"),)


def test_a_fork_goes_its_own_way():
    store = Store(BASE)
    store.put("orders", "1", {"day": 5})
    fork = store.fork()
    fork.delete("orders", "1")
    store.put("orders", "2", {"day": 6})
    assert store.changes() == {"orders": {"1": {"day": 5}, "2": {"day": 6}}}
    assert fork.changes() == {"orders": {"1": None}}


def test_keys_and_finds_follow_the_changes():
    store = Store(BASE)
    store.delete("orders", "1")
    store.put("orders", "3", {"day": 4})
    assert store.keys("orders") == ["2", "3"]
    assert store.find("orders", day=4) == ["2", "3"]
    assert store.find("orders", day=4.0) == store.find("orders", week=4) == store.keys("nothing") == []
    assert ("orders", "1") not in store


def test_records_are_found_by_a_test_and_read_in_part():
    store = Store(BASE)
    store.put("orders", "3", {"day": 9, "to": {"city": "Bath", "lines": ["1 Elm"]}})
    assert store.where("orders", lambda order: order["day"] > 3) == ["2", "3"]
    assert store.seen == ()
    store.part("orders", "3", "to", "lines").append("2 Elm")
    assert store.part("orders", "3", "to") == {"city": "Bath", "lines": ["1 Elm"]}
    assert store.part("orders", "3", "to", "zip") is store.part("orders", "3", "day", "hour") is None
    assert store.part("orders", "4", "day") is None
    assert store.seen == (("orders", "3"),)


def test_new_keys_do_not_depend_on_the_order_of_creation():
    first, second = Store({}), Store({})
    letters = [{"to": "Ana", "text": "1"}, {"to": "Ana", "text": "2"}, {"to": "Bo", "text": "1"}]
    for one, other in zip(letters, reversed(letters), strict=True):
        first.add("sent", one)
        second.add("sent", other)
    assert first.changes() == second.changes()
    assert len({first.add("sent", letters[0]), *first.keys("sent")}) == 4


@pytest.mark.parametrize("value", [(1,), {1}, {1: 2}, object(), type("Text", (str,), {})("x")])
def test_a_store_takes_plain_data_only(value):
    with pytest.raises(TypeError, match=r"plain JSON data|a key in a store"):
        Store({}).put("orders", "1", {"x": value})


def test_a_fork_looks_at_nothing_of_the_base():
    class Watched(dict):
        def __iter__(self):
            raise AssertionError("the base was gone through")

        keys = values = items = __iter__

    store = Store(Watched(rows=Watched({"1": {"text": "x"}})))
    store.put("rows", "1", {"text": "y"})
    fork = store.fork()
    assert fork.get("rows", "1") == {"text": "y"}
    assert fork.changes() == {"rows": {"1": {"text": "y"}}}


# Worlds.


class Parcel(TypedDict):
    to: str
    weight: NotRequired[float]


class Post(World):
    _last = frozenset({"close"})

    def send(self, parcels: list[Parcel]) -> str:
        """Send parcels."""
        for parcel in parcels:
            self.store.put("sent", parcel["to"], {**parcel})
        if ("sent", "nowhere") in self.store:
            raise Refused("NO SUCH PLACE")
        return "done"

    def close(self, hour: int) -> str:
        """Close the counter."""
        if hour < 18:
            raise ValueError("it is too early")
        return "closed"


def test_a_typed_dict_is_an_object_with_the_keys_that_it_needs():
    assert Post.tools()["send"].parameters["properties"]["parcels"] == {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"to": {"type": "string"}, "weight": {"type": "number"}},
            "required": ["to"],
        },
    }
    world = Post({})
    assert world.call("send", {"parcels": [{"to": "Bath", "note": "kept"}]}) == "done"
    assert world.call("send", {"parcels": [{"weight": 1.5}]}).startswith("error: ")
    assert world.store.changes() == {"sent": {"Bath": {"to": "Bath", "note": "kept"}}}


def test_what_a_system_refuses_in_its_own_words_is_a_failed_call():
    world = Post({})
    assert world.call("send", {"parcels": [{"to": "Bath"}, {"to": "nowhere"}]}) == "NO SUCH PLACE"
    assert (world.events[0].failed, world.events[0].touched, world.store.changes()) == (True, (), {})


def test_a_call_ends_all_if_it_succeeds():
    world = Post({})
    assert world.call("close", {"hour": 9}) == "error: it is too early"
    assert not world.ended
    assert world.call("close", {"hour": 18}) == "closed"
    assert world.ended
    assert not world.fork().ended


def test_the_public_methods_of_a_world_are_its_tools():
    assert list(Shop.tools()) == ["find", "move_all"]
    assert [schema["function"]["name"] for schema in Shop(BASE).schemas] == ["find", "move_all"]
    assert Shop(BASE, ["move_all"]).schemas == [Shop.tools()["move_all"].schema]


@pytest.mark.parametrize("name", ["call", "store", "fork"])
def test_a_tool_cannot_be_named_like_a_part_of_every_world(name):
    with pytest.raises(TypeError, match=f"Wrong: no tool can be named '{name}'"):
        type("Wrong", (World,), {name: lambda self: ""})


def test_a_tool_of_a_world_is_no_coroutine():
    async def wait(self) -> str:
        """Wait."""
        return ""

    with pytest.raises(TypeError, match="'wait' must be written with def"):
        type("Wrong", (World,), {"wait": wait})


def test_a_tool_of_a_world_is_no_static_or_class_method():
    def count(number: int) -> int:
        """Count."""
        return number

    for kind in (staticmethod, classmethod):
        with pytest.raises(TypeError, match="'count' must be a plain method"):
            type("Wrong", (World,), {"count": kind(count)})
        type("Right", (World,), {"_count": kind(count)})


def test_a_mistake_without_a_text_is_still_said():
    class Mute(World):
        def fail(self) -> str:
            """Fail."""
            raise ValueError

    assert Mute({}).call("fail", {}) == "error: fail failed"
    assert Mute.tools()["fail"].call({}) == "error: fail failed"


def test_a_call_that_fails_changes_nothing_but_the_log():
    world = Shop(BASE)
    assert world.call("move_all", {"orders": ["1", "9"], "day": 7}) == "error: there is no order 9"
    assert world.store.changes() == {}
    assert world.events[0].failed
    assert world.events[0].touched == ()
    assert world.events[0].seen == (("orders", "1"),)
    assert world.call("move_all", {"orders": ["1", "2"], "day": 7}) == "done"
    assert world.events[1].touched == (("orders", "1", "day"), ("orders", "2", "day"))
    assert world.events[0].name == "move_all"


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("fnd", {}, "error: no tool 'fnd'; did you mean 'find'?"),
        ("_helper", {}, "error: no tool '_helper'"),
        ("fork", {}, "error: no tool 'fork'"),
        ("find", {"order": 1}, "error: the argument 'order' of find must be string, not 1"),
        ("find", {}, "error: the argument 'order' of find is missing; expected string"),
    ],
)
def test_a_wrong_call_is_answered_by_what_helps(name, arguments, said):
    world = Shop(BASE)
    assert world.call(name, arguments).startswith(said)
    assert world.events[0].failed


def test_a_tool_that_is_not_offered_is_no_tool():
    assert Shop(BASE, ["move_all"]).call("find", {"order": "1"}) == "error: no tool 'find'; known: move_all"
    with pytest.raises(UnknownNameError, match="no tool of Shop named 'move_al'; did you mean 'move_all'"):
        Shop(BASE, ["find", "move_al"])


def test_a_fork_of_a_world_has_its_state_and_an_empty_log():
    world = Shop(BASE, ["move_all"])
    world.call("move_all", {"orders": ["1"], "day": 7})
    fork = world.fork()
    fork.call("move_all", {"orders": ["2"], "day": 8})
    assert fork.offered == ("move_all",)
    assert [event.arguments["day"] for event in fork.events] == [8]
    assert {key: record["day"] for key, record in fork.store.changes()["orders"].items()} == {"1": 7, "2": 8}
    assert world.store.changes().keys() == {"orders"}
    assert world.store.get("orders", "2")["day"] == 4


def test_a_task_without_a_world_or_with_an_unknown_one_is_refused():
    with pytest.raises(TaskDataError, match="task t needs metadata such as"):
        world_of(Task("t", "?", "x"))
    with pytest.raises(UnknownNameError, match="did you mean 'desk'"):
        world_of(Task("t", "?", "x", {"world": "dsk", "state": {}}))


# Users.

SCRIPT = [
    {"says": "Move it.", "facts": {"day": "To day 3.", "when": "To day 3.", "hour": "At 8."}},
    {"says": "No, to day 4.", "facts": {}},
]


def test_the_user_gives_a_fact_when_asked_and_goes_on_when_answered():
    user = ScriptedUser(SCRIPT)
    assert user.opening() == "Move it."
    assert user.reply("I can do that. Which day?") == ("To day 3.", False)
    assert user.reply("When, on which DAY, and at which hour?") == ("To day 3. At 8.", False)
    assert user.reply("Done.") == ("No, to day 4.", False)
    assert user.reply("Done.") == (THANKS, True)


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        ("Shall I do it?", NO_MORE),
        ("Which Monday?", NO_MORE),  # has "day" in it, but not as a word
        ("It is the day. Shall I?", NO_MORE),
        ("Done. Anything else?", "No, to day 4."),
        ("The day is set.", "No, to day 4."),
        ("", "No, to day 4."),
        ("?" * 5, "No, to day 4."),
    ],
)
def test_only_a_question_gets_a_fact_and_an_offer_of_help_is_none(message, answer):
    assert ScriptedUser(SCRIPT).reply(message) == (answer, False)


def test_a_fact_of_an_earlier_line_is_given_no_more():
    user = ScriptedUser(SCRIPT)
    user.reply("Done.")
    assert user.reply("Which day?") == (NO_MORE, False)


def test_a_long_message_is_read_in_linear_time():
    for message in ("x" * 3_000_000, "? " * 300_000):  # which would take hours
        assert ScriptedUser(SCRIPT).reply(message) == ("No, to day 4.", False)


@pytest.mark.parametrize("line", ["Move it.", {}, {"says": 5}, {"says": "Move it.", "facts": ["day"]}])
def test_what_is_no_line_of_a_user_is_refused(line):
    with pytest.raises(TaskDataError, match="a line of a user must be such as"):
        ScriptedUser([{"says": "Hello."}, line])
