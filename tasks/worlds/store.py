"""The state of a simulated system: tables of records over a shared base, of which only the changes are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

Record = dict[str, Any]
Tables = Mapping[str, Mapping[str, Record]]
Changes = dict[str, dict[str, Record | None]]
"""Per table the new record of each key, None for one that is gone."""

Place = tuple[str, str]
"""(table, key) of a record."""

Touched = tuple[str, str, str]
"""(table, key, field) of what was written; the field is "" where a record came or went as a whole."""


class Store:
    """Tables of records of plain JSON data, read and written by key.

    The base is shared by all forks and never written: a fork costs as much as was changed, however large the base.
    A record that is read is a copy, one that is written is copied, so nobody can change the state but by `put`,
    `update` and `delete`. What was read and written since the store was made or forked is noted in `seen` and
    `touched`; in `named` also the fields that were updated to what they were.
    """

    def __init__(self, base: Tables) -> None:
        self._base = base
        self._changed: Changes = {}
        self._seen: dict[Place, None] = {}
        self._touched: dict[Touched, None] = {}
        self._named: dict[Touched, None] = {}

    def __contains__(self, place: Place) -> bool:
        return self._find(*place) is not None

    def get(self, table: str, key: str) -> Record | None:
        """A copy of a record, None if there is none."""
        record = self._find(table, key)
        if record is None:
            return None
        self._seen[table, key] = None
        copy: Record = plain(record)
        return copy

    def part(self, table: str, key: str, *path: str) -> Any:
        """A copy of what stands under the names of `path` in a record, None if there is nothing: cheaper than all."""
        found: Any = self._find(table, key)
        if found is None:
            return None
        self._seen[table, key] = None
        for name in path:
            found = found.get(name) if isinstance(found, dict) else None
        return plain(found)

    def keys(self, table: str) -> list[str]:
        """The keys of a table: those of the base in their order, then the new ones."""
        base, changed = self._base.get(table, {}), self._changed.get(table, {})
        known = [key for key in base if changed.get(key, base[key]) is not None]
        return known + [key for key, record in changed.items() if key not in base and record is not None]

    def find(self, table: str, **fields: Any) -> list[str]:
        """The keys of the records that have these values, of these very types."""
        return self.where(table, lambda record: _has(record, fields))

    def where(self, table: str, test: Callable[[Record], bool]) -> list[str]:
        """The keys of the records that pass a test, which must not write them."""
        return [key for key in self.keys(table) if test(self._find(table, key) or {})]

    def put(self, table: str, key: str, record: Record) -> None:
        """Writes a record. Raises TypeError if it is not plain JSON data."""
        old, new = self._find(table, key), plain(record)
        fields = [""] if old is None else [name for name in {**old, **new} if _differ(old, new, name)]
        self._touched.update(dict.fromkeys((table, key, field) for field in fields))
        self._changed.setdefault(table, {})[key] = new

    def update(self, table: str, key: str, fields: Record) -> Record:
        """Writes some fields of a record, of a new one if there is none, and returns the whole."""
        record = {**(self.get(table, key) or {}), **fields}
        self.put(table, key, record)
        self._named.update(dict.fromkeys((table, key, name) for name in fields))
        return record

    def add(self, table: str, record: Record) -> str:
        """Writes a record under a new key of six digits, and returns it.

        The key follows from the record, so that it does not depend on the order in which records are added.
        """
        text = json.dumps([table, record], sort_keys=True).encode()
        number = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")
        while (table, key := f"{number % 900_000 + 100_000}") in self:
            number += 1
        self.put(table, key, record)
        return key

    def delete(self, table: str, key: str) -> None:
        """Takes a record away, if it is there."""
        if self._find(table, key) is not None:
            self._touched[table, key, ""] = None
            self._changed.setdefault(table, {})[key] = None

    @property
    def seen(self) -> tuple[Place, ...]:
        """The records that `get` gave, in whole or `part`."""
        return tuple(self._seen)

    @property
    def touched(self) -> tuple[Touched, ...]:
        """What was written, even if it was undone."""
        return tuple(self._touched)

    @property
    def named(self) -> tuple[Touched, ...]:
        """The fields that `update` was given, changed or not."""
        return tuple(self._named)

    def changes(self) -> Changes:
        """What differs from the base."""
        found: Changes = {}
        for table, records in self._changed.items():
            base = self._base.get(table, {})
            differing = {key: record for key, record in records.items() if not same(record, base.get(key))}
            if differing:
                found[table] = plain(differing)
        return found

    def fork(self) -> Store:
        """A store of its own with the same state, in which nothing is noted yet."""
        other = Store(self._base)
        other._changed = {table: dict(records) for table, records in self._changed.items()}
        return other

    def _find(self, table: str, key: str) -> Record | None:
        """The record itself, which must not be written."""
        changed = self._changed.get(table, {})
        return changed[key] if key in changed else self._base.get(table, {}).get(key)


def plain(value: Any) -> Any:
    """A deep copy of plain JSON data. Raises TypeError for anything else, subclasses included."""
    kind = type(value)
    if kind is dict:
        return {_name(key): plain(inner) for key, inner in value.items()}
    if kind is list:
        return [plain(inner) for inner in value]
    if kind in (str, int, float, bool) or value is None:
        return value
    raise TypeError(f"a store holds plain JSON data, not {kind.__name__}")


def same(one: Any, other: Any) -> bool:
    """Whether two values of plain JSON data are equal, with exact types: 1, 1.0 and True differ."""
    if type(one) is not type(other):
        return False
    if type(one) is dict:
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if type(one) is list:
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _name(key: Any) -> str:
    if type(key) is not str:
        raise TypeError(f"a key in a store is a str, not {type(key).__name__}")
    return key


def _differ(old: Record, new: Record, name: str) -> bool:
    return (name in old) != (name in new) or not same(old.get(name), new.get(name))


def _has(record: Record, fields: Mapping[str, Any]) -> bool:
    return all(name in record and same(record[name], value) for name, value in fields.items())
