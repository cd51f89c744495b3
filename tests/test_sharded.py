"""A learner over several devices: it is the learner on one, whatever the ranks have to do."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
NAMES = [
    *("grpo", "means over episodes", "adaptive", "logits in chunks", "recomputed", "tied", "one episode"),
    *("no episode", "not finite", "adapter", "ppo", "ppo by turns"),
]


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A script or, after -m, a module on two ranks."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By case, what one rank learned and what two did."""
    file = tmp_path_factory.mktemp("learned") / "results.pt"
    done = torchrun(HERE / "sharded_learners.py", file)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = torch.load(file, weights_only=False)
    return results


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_learn_what_one_does(learned: dict[str, Any], name: str) -> None:
    one, two = learned[name]["one"], learned[name]["many"]
    for alone, together in zip(one, two, strict=True):
        assert together["metrics"].keys() == alone["metrics"].keys()
        for metric, value in alone["metrics"].items():
            assert together["metrics"][metric] == pytest.approx(value, rel=1e-5, abs=1e-5, nan_ok=True), metric
        for mine, theirs in zip(alone["columns"], together["columns"], strict=True):
            assert mine.keys() == theirs.keys()
            for column, values in mine.items():
                np.testing.assert_allclose(theirs[column], values, rtol=1e-4, atol=1e-5)
    changed = relative_change(one[-1]["weights"], one[0]["weights"])
    assert (changed > 1e-2) == (name not in ("no episode", "not finite"))
    assert relative_change(two[-1]["weights"], one[-1]["weights"]) < 1e-5


def relative_change(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """That of the tensor that changed most."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).norm() / other[name].norm().clamp(min=1e-12)) for name in one)
