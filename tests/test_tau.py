"""tau-bench: gold steps as they were recorded, tools as they are documented, and what the service of a user earns."""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest

from verigym.tasks.worlds.base import read_base
from verigym.tasks.worlds.tau import Airline, Retail

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
TAU, ORACLE = DATA / "tau_bench", DATA / "tau_bench_oracle"
WORLDS = {"retail": Retail, "airline": Airline}
RECORDED = [("retail", "train", 500), ("retail", "dev", 20), ("retail", "test", 37), ("airline", "test", 19)]
CUT = 4000  # characters of an output that are recorded


def rows(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


@cache
def base(domain):
    tables = ("users", "orders", "products") if domain == "retail" else ("users", "flights", "reservations")
    found = {path.name.partition(".")[0]: str(path) for path in (TAU / domain).glob("*.json*")}
    return read_base(tuple((table, found[table]) for table in tables))


def recorded(domain, split):
    return [row for path in sorted((ORACLE / domain).glob(f"tasks_{split}*")) for row in rows(path)]


@pytest.mark.parametrize(("domain", "split", "count"), RECORDED)
def test_every_gold_step_gives_what_was_recorded(domain, split, count):
    found = recorded(domain, split)
    assert len(found) == count
    differing = []
    for row in found:
        world = WORLDS[domain](base(domain))
        for step in row["steps"]:
            result, output = world.call(step["name"], step["kwargs"]), step["output"]
            long = len(output) > CUT
            same = result[:CUT] + "…" == output if long else result == output
            if not same or world.events[-1].failed != output.startswith("Error"):
                differing.append((row["task_id"], step["name"]))
        if world.store.changes() != row["db_changes"]:
            differing.append((row["task_id"], "changes"))
    assert differing == []
