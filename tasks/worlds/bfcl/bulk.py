"""What makes a task long: records that nobody asks for, beside those that a row has.

BFCL adds such text by code, which is not in its data; what is added here is our own. It is a pure function of the
task's id, and it gets in nobody's way: folders beside those that there are, tweets, users, tickets, orders, stocks and
bookings of others, a note in the car's status.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from verigym.tasks.worlds.bfcl.files import FILES, NAVIGATION
from verigym.tasks.worlds.store import Record

Tables = dict[str, dict[str, Record]]

_WORDS = (  # noqa: SIM905 - a list of them would take fifty lines
    "amber basin cedar delta ember fjord glade heron inlet jetty knoll ledge marsh north oasis plume quarry ridge "
    "shore thicket upland valley willow yarrow zephyr canyon dune estuary fern gully harbor island lagoon meadow"
).split()


def lengthened(tables: Tables, seed: str) -> Tables:
    """The tables of a world with much more in them; `tables` is not changed."""
    generator = random.Random(seed)
    tables = {name: dict(records) for name, records in tables.items()}
    for name, add in _ADDERS.items():
        if name in tables:
            add(tables, generator)
    return tables


def _text(generator: random.Random, words: int) -> str:
    return " ".join(generator.choices(_WORDS, k=words))


def _files(tables: Tables, generator: random.Random) -> None:
    top = str(tables[NAVIGATION]["folder"]["path"])
    for name in ("zz_attic", "zz_cellar"):
        tables[FILES][f"{top}/{name}"] = {"type": "directory"}
        for number in range(60):
            content = "\n".join(_text(generator, 12) for _ in range(20))
            tables[FILES][f"{top}/{name}/{generator.choice(_WORDS)}_{number:03}.log"] = {
                "type": "file",
                "content": content,
            }


def _users(tables: Tables, generator: random.Random) -> None:
    for number in range(200):
        tables["users"][f"{generator.choice(_WORDS).title()} {number:03}"] = {"id": f"WRK{number:05}"}


def _tweets(tables: Tables, generator: random.Random) -> None:
    for number in range(100_000, 100_080):
        word = generator.choice(_WORDS)
        tweet = {"id": number, "username": f"{word}_{number}", "content": _text(generator, 20)}
        tables["tweets"][str(number)] = {**tweet, "tags": [f"#{word}"], "mentions": []}


def _tickets(tables: Tables, generator: random.Random) -> None:
    for number in range(10_000_000, 10_000_200):
        ticket = {"id": number, "title": _text(generator, 3), "description": _text(generator, 30), "status": "Open"}
        owner = f"{generator.choice(_WORDS)} {number}"
        tables["tickets"][str(number)] = {**ticket, "priority": generator.randint(1, 5), "created_by": owner}


def _stocks(tables: Tables, generator: random.Random) -> None:
    for number in range(200):
        price = round(generator.uniform(10, 900), 2)
        stock: dict[str, Any] = {"price": price, "percent_change": round(generator.uniform(-1, 1), 2)}
        stock |= {"volume": round(generator.uniform(0.5, 4), 3), "MA(5)": price, "MA(20)": price}
        tables["stocks"][f"BULK{number:03}"] = stock
    for number in range(1000, 1200):
        order = {"id": number, "order_type": "Buy", "symbol": f"BULK{number - 1000:03}", "price": 10.0}
        tables["orders"][str(number)] = {**order, "amount": generator.randint(1, 99), "status": "Completed"}


def _bookings(tables: Tables, generator: random.Random) -> None:
    others = {}
    for number in range(40):
        trip = {"travel_date": f"2019-{number % 12 + 1:02}-11", "travel_from": "LAX", "travel_to": "HND"}
        cost = float(generator.randint(100, 2000))
        paid = {"travel_class": "economy", "travel_cost": cost, "transaction_id": f"{generator.randrange(10**8):08}"}
        others[f"past_{number:03}"] = {**trip, **paid}
    tables["bookings"] = {**others, **tables["bookings"]}


def _notes(tables: Tables, generator: random.Random) -> None:
    tables["car"]["notes"] = {"metadata": _text(generator, 120)}


_ADDERS: dict[str, Callable[[Tables, random.Random], None]] = {
    FILES: _files,
    "users": _users,
    "tweets": _tweets,
    "tickets": _tickets,
    "stocks": _stocks,
    "bookings": _bookings,
    "car": _notes,
}
