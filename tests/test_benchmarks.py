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


def test_the_function_call_benchmark_prints_its_figures() -> None:
    script = SCRIPT.with_name("function_calls.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]]
    assert {"json.loads and ==", "verdicts, strict", "verdicts, bfcl"} <= set(figures)
