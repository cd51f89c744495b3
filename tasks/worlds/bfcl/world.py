"""The eight services of BFCL's multi-turn tasks as one world, of which a task offers the functions that it is about."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from verigym.tasks.worlds.bfcl import files, messages, tickets, trading, travel, tweets, vehicle
from verigym.tasks.worlds.bfcl.files import FILES, NAVIGATION, GorillaFileSystem
from verigym.tasks.worlds.bfcl.messages import MessageAPI
from verigym.tasks.worlds.bfcl.numbers import MathAPI
from verigym.tasks.worlds.bfcl.tickets import TicketAPI
from verigym.tasks.worlds.bfcl.trading import TradingBot
from verigym.tasks.worlds.bfcl.travel import TravelAPI
from verigym.tasks.worlds.bfcl.tweets import TwitterAPI
from verigym.tasks.worlds.bfcl.vehicle import VehicleControlAPI
from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.world import World

__all__ = ["ACTS", "APIS", "FILES", "NAVIGATION", "Services", "tables_of"]

MAX_NUMBER = 10**15
Tables = dict[str, dict[str, Record]]

_TABLES: dict[type[World], Callable[[Mapping[str, Any]], Tables]] = {
    GorillaFileSystem: files.tables,
    MathAPI: lambda config: {},
    MessageAPI: messages.tables,
    TicketAPI: tickets.tables,
    TradingBot: trading.tables,
    TravelAPI: travel.tables,
    TwitterAPI: tweets.tables,
    VehicleControlAPI: vehicle.tables,
}
APIS: Mapping[str, type[World]] = {api.__name__: api for api in _TABLES}
"""Each service by the name that the rows give it."""

ACTS = frozenset().union(*(module.ACTS for module in (files, messages, tickets, trading, travel, tweets, vehicle)))
"""The functions that change something besides where the agent stands; the others are looked things up with."""


class Services(GorillaFileSystem, MathAPI, MessageAPI, TicketAPI, TradingBot, TravelAPI, TwitterAPI, VehicleControlAPI):
    """All functions of all services; no two of them share a name or a table.

    As they are bases of one class, each keeps its helpers to itself: their names begin with two underscores.
    """

    def _result(self, name: str, arguments: dict[str, Any]) -> str:
        if any(abs(number) > MAX_NUMBER for number in _numbers(arguments)):
            raise ValueError(f"a number must be from {-MAX_NUMBER} to {MAX_NUMBER}")
        return super()._result(name, arguments)


def _numbers(value: Any) -> Iterator[float]:
    """The numbers in plain data."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _numbers(inner)


def tables_of(config: Mapping[str, Any], names: list[str]) -> Tables:
    """The state that a row's `initial_config` describes, for the services of these names; null is as nothing."""
    found: Tables = {}
    for name in names:
        fields = config.get(name) or {}
        found |= _TABLES[APIS[name]]({field: value for field, value in fields.items() if value is not None})
    return found
