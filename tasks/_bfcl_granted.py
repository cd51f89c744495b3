"""What BFCL's multi-turn ground truths take for granted: files that a row does not have, and numbers drawn upstream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from verigym.tasks._bfcl_calls import Call
from verigym.tasks.worlds.bfcl import FILES, NAVIGATION, Services
from verigym.tasks.worlds.store import Record

_NAMING = {  # the arguments with which functions name what is there
    **dict.fromkeys(("cat", "grep", "rm", "sort", "tail", "wc"), ("file_name",)),
    **dict.fromkeys(("cp", "mv"), ("source",)),
    "diff": ("file_name1", "file_name2"),
    "cd": ("folder",),
    "rmdir": ("dir_name",),
}
_NUMBERED = {  # where what an argument names is, and of how many digits its number is
    "access_token": ("tokens", 6),  # which no table holds
    "booking_id": ("bookings", 7),
    "card_id": ("cards", 12),
    "insurance_id": ("insurances", 9),
}
_ADDED = "This file is there to make the task long."


def granted(state: dict[str, Any], calls: Sequence[Sequence[Call]]) -> dict[str, Any]:
    """The state, and in it what the calls of a row, turn by turn, take for granted."""
    for add in (_named_files, _echo, _numbers):
        state = add(state, calls)
    return state


def _named_files(state: dict[str, Any], calls: Sequence[Sequence[Call]]) -> dict[str, Any]:
    """The state, and the files that the calls take for granted in the folder where they are made."""
    if FILES not in state:
        return state
    while True:
        world = Services(state)
        missing = (found for turn in calls for call in turn for found in _missing(world, call))
        path, entry = next(((path, entry) for path, entry in missing if path not in state[FILES]), ("", {}))
        if not path:
            return state
        state = {**state, FILES: {**state[FILES], path: entry}}


def _echo(state: dict[str, Any], calls: Sequence[Sequence[Call]]) -> dict[str, Any]:
    """The state, in which echo creates a file if the calls take that for granted."""
    world = Services(state)
    for call in (call for turn in calls for call in turn):
        world.call(**call)
        if world.events[-1].failed and call["name"] == "echo":
            return {**state, "shell": {"echo": {"creates": True}}}
    return state


def _numbers(state: dict[str, Any], calls: Sequence[Sequence[Call]]) -> dict[str, Any]:
    """The state, in which a token, booking, card or insurance gets the number by which a later call names it."""
    while "travel" in state:
        world, given = Services(state), dict(state["travel"].get("given", {}))
        wanted = (found for turn in calls for call in turn for found in _unknown_numbers(world, call))
        place, number = next(((place, number) for place, number in wanted if place not in given), ("", ""))
        if not place:
            break
        state = {**state, "travel": {**state["travel"], "given": {**given, place: number}}}
    return state


def _unknown_numbers(world: Services, call: Call) -> Iterator[tuple[str, str]]:
    """The numbers that a call names and that nothing has, each with the place of the latest one drawn of its digits.

    Makes the call.
    """
    world.call(**call)
    if not world.events[-1].failed:
        return
    drawn = (world.store.get("travel", "numbers") or {"drawn": []})["drawn"]
    for argument, (table, digits) in _NUMBERED.items():
        number = str(call["arguments"].get(argument, ""))
        if number.isdecimal() and len(number) == digits and digits in drawn and (table, number) not in world.store:
            yield str(len(drawn) - drawn[::-1].index(digits)), number


def _missing(world: Services, call: Call) -> Iterator[tuple[str, Record]]:
    """The files and folders, by path, that a call names and that are not there; makes the call."""
    world.call(**call)
    if not world.events[-1].failed or call["name"] not in _NAMING:
        return
    here = (world.store.get(NAVIGATION, "folder") or {})["path"]
    for argument in _NAMING[call["name"]]:
        name = str(call["arguments"].get(argument, ""))
        if name not in ("", ".", "..") and "/" not in name and (FILES, f"{here}/{name}") not in world.store:
            folder = call["name"] in ("cd", "rmdir")
            yield f"{here}/{name}", {"type": "directory"} if folder else {"type": "file", "content": _ADDED}
