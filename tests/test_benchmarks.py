"""The benchmark scripts run, at sizes at which their figures mean nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "learner.py"
SIZES = ["--vocabulary", "500", "--tokens", "40", "--hidden-size", "32", "--layers", "2"]


@pytest.mark.parametrize("way", ["in chunks", "recomputed"])
def test_the_learner_benchmark_measures_a_way(way: str) -> None:
    command = [sys.executable, str(SCRIPT), "--way", way, *SIZES]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found.keys() == {"mb", "held", "seconds"}
    assert found["held"] > 0
