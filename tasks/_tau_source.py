"""Finds the data of tau-bench and tau2-bench in a folder: data base, policy and tasks, in whichever layout."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from verigym.tasks._rows import Row, read_file
from verigym.tasks.errors import TaskDataError
from verigym.tasks.worlds.base import Base, File, read_base

_TABLES = {"retail": ("users", "orders", "products"), "airline": ("users", "flights", "reservations")}
_FIELDS: dict[str, dict[str, type]] = {
    "users": {"name": dict, "address": dict, "email": str, "payment_methods": dict},
    "orders": {"order_id": str, "user_id": str, "status": str, "items": list, "payment_history": list},
    "products": {"name": str, "variants": dict},
    "flights": {"origin": str, "destination": str, "scheduled_arrival_time_est": str, "dates": dict},
    "reservations": {"user_id": str, "flights": list, "passengers": list, "payment_history": list},
}
_POLICY = {"tau": "wiki.md", "tau2": "policy.md"}
_CHECKOUT = {"tau": "tau_bench/envs", "tau2": "data/tau2/domains"}  # where the projects' own repositories have them


class Home:
    """The folder of a domain, found in a source. Raises TaskDataError for what is missing."""

    def __init__(self, domain: str, benchmark: str, source: Path) -> None:
        if not source.exists():
            raise TaskDataError(f"tau_{domain}: no file or folder '{source}'; check the path given as source")
        self.domain, self.benchmark = domain, benchmark
        self.file = source if source.is_file() else None
        places = [source.parent] if self.file else [source, source / domain, source / _CHECKOUT[benchmark] / domain]
        policy = _POLICY[benchmark]
        fitting = [place for place in places if (place / policy).is_file() and self._is_mine(place)]
        if not fitting:
            looked = ", ".join(str(place) for place in places)
            raise TaskDataError(
                f"tau_{domain}: no {policy} with the data of the {domain} domain in {looked}; "
                f"give the folder of {benchmark}-bench's data as source"
            )
        self.folder = fitting[0]
        self.policy = (self.folder / policy).read_text(encoding="utf-8")
        self.base: Base = read_base(self._files())
        self._refuse_other_tables()

    def _is_mine(self, place: Path) -> bool:
        """Whether a folder with a policy is of this domain, by its name or else by its tables."""
        return place.name == self.domain or _table(place, _TABLES[self.domain][1]) is not None

    def _files(self) -> tuple[File, ...]:
        """The files of the data base, by table."""
        place = self.folder
        if self.benchmark == "tau2":
            if whole := _table(place, "db"):
                return (("", str(whole)),)
            place = place.parent.parent / "tau_bench" / self.domain  # tau-bench's data beside tau2-bench's
        found = {table: _table(place, table) for table in _TABLES[self.domain]}
        missing = [table for table, path in found.items() if path is None]
        if missing:
            raise TaskDataError(f"{place}: no {missing[0]}.json or {missing[0]}.json.gz; fetch the data again")
        return tuple((table, str(path)) for table, path in found.items())

    def _refuse_other_tables(self) -> None:
        """What the tools take for granted is looked at once, here."""
        for table in _TABLES[self.domain]:
            if table not in self.base:
                raise TaskDataError(f"{self.folder}: the data base has no table '{table}'; fetch the data again")
            for key, record in self.base[table].items():
                for field, kind in _FIELDS[table].items():
                    if not isinstance(record, dict) or not isinstance(record.get(field), kind):
                        raise TaskDataError(
                            f"{self.folder}: the record '{key}' of {table} has no right '{field}'; fetch the data again"
                        )

    def rows(self, split: str) -> Iterator[Row]:
        """The rows of a split; of a file that was named, all."""
        if self.file is not None:
            return _rows(self.file, f"{self.domain}-{split}")
        if self.benchmark == "tau2":
            wanted = self._ids(split)
            return (row for row in _rows(self._find_tasks(), "") if row.id("id", default="") in wanted)
        words = re.compile(rf"(?:^|[^a-z0-9]){split}(?:[^a-z0-9]|$)")
        files = [path for path in self.folder.glob("tasks*") if words.search(path.name.lower())]
        return (row for file in sorted(files) for row in _rows(file, f"{self.domain}-{split}"))

    def _find_tasks(self) -> Path:
        found = [path for name in ("tasks.jsonl", "tasks.json") if (path := self.folder / name).is_file()]
        if not found:
            raise TaskDataError(f"{self.folder}: no tasks.jsonl or tasks.json; fetch the data again")
        return found[0]

    def _ids(self, split: str) -> set[str]:
        path = self.folder / "split_tasks.json"
        try:
            return set(map(str, json.loads(path.read_text(encoding="utf-8"))[split]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TaskDataError(f"{path}: does not tell the ids of the split '{split}' ({error!r})") from error


def _table(folder: Path, name: str) -> Path | None:
    """A JSON file, perhaps gzipped, in a folder or its `data`."""
    ends = [f"{place}{name}.{end}" for place in ("", "data/") for end in ("json", "json.gz")]
    return next((path for end in ends if (path := folder / end).is_file()), None)


def _rows(path: Path, prefix: str) -> Iterator[Row]:
    """The rows of a file of tasks: JSON lines, tau2-bench's list, or tau-bench's Python, whose rows have no ids."""
    if path.suffix not in (".json", ".py"):
        return read_file(path)
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else [_value(task) for task in _tasks_of(text)]
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        why = " ".join(str(error).split())[:160]
        raise TaskDataError(f"{path}: is no list of tasks ({why}); fetch the file again") from error
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise TaskDataError(f"{path}: is no list of tasks; fetch the file again")
    return (Row({"id": f"{prefix}-{number}", **row}, str(path), number + 1) for number, row in enumerate(found))


def _tasks_of(text: str) -> Iterator[ast.Call]:
    """The calls of Task in a module that is read and not run."""
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.List):
            yield from (item for item in statement.value.elts if isinstance(item, ast.Call))


def _value(node: ast.expr) -> Any:
    """A literal, where a call is an object with its keyword arguments. Raises ValueError for anything else."""
    if isinstance(node, ast.Call):
        return {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List):
        return [_value(item) for item in node.elts]
    return ast.literal_eval(node)
