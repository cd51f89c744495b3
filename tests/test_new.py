"""`verigym new`: packages that are installed into a fresh virtual environment, and used from there."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from verigym.cli import main

NAMES = {"task": "spans", "verifier": "divisors_of_products_of_primes", "env": "guess", "tool": "lengths"}
IDS = ["spans/Spans-v0", "divisors_of_products_of_primes/DivisorsOfProductsOfPrimes-v0", "guess/Guess-v0"]
IDS.append("lengths/Lengths-v0")
kinds = pytest.mark.parametrize("kind", NAMES)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package of each kind, as the command writes them."""
    folder = tmp_path_factory.mktemp("packages")
    for kind, name in NAMES.items():
        assert main(["new", kind, name, "--folder", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def python(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The interpreter of a new virtual environment that has the packages, and what is installed here."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place)
    python = str(place / "bin" / "python")
    ours = sysconfig.get_path("purelib")
    theirs = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], capture_output=True, text=True
    ).stdout.strip()
    Path(theirs, "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps"]
    places = [str(packages / name) for name in NAMES.values()]
    done = run([*install, "--no-build-isolation", *places])
    assert done.returncode == 0, done.stdout + done.stderr
    return python


def run(command: list[str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def verigym(python: str, *arguments: str, cwd: Path) -> str:
    done = run([python, "-m", "verigym.cli", *arguments], cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# What is written.


@kinds
def test_a_package_keeps_to_lint_and_format_of_its_own_settings_which_are_ours(packages, kind):
    place = packages / NAMES[kind]
    ruff = str(Path(sys.executable).with_name("ruff"))
    for command in ("check", "format"):
        done = run([ruff, command, "--no-cache", *(["--check"] if command == "format" else []), "."], place)
        assert done.returncode == 0, done.stdout
    rules = [line for line in (place / "pyproject.toml").read_text().splitlines() if line.startswith("select = ")]
    assert rules[0] in (Path(__file__).parents[1] / "pyproject.toml").read_text()


@kinds
def test_nothing_of_the_templates_is_left_in_a_package(packages, kind):
    texts = [file.read_text() for file in (packages / NAMES[kind]).rglob("*") if file.is_file()]
    assert len(texts) >= 6
    assert not any(mark in text for text in texts for mark in ("PACKAGE", "$package", "$id"))


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("my-tasks", "did you mean 'my_tasks'?"),
        ("MyTasks", "did you mean 'mytasks'?"),
        ("3d", "is no name for a package"),
        ("class", "is no name for a package"),
        ("../up", "did you mean 'up'?"),
        ("json", "a module of Python's own"),
        ("numpy", "a package 'numpy' is installed"),
        ("verigym", "a package 'verigym' is installed"),
        ("gsm8k", "there is a task set 'gsm8k'"),
        ("exact", "there is a verifier 'exact'"),
        ("there", "'there' exists"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_line_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, name, problem
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    assert main(["new", "task", name]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert problem in line
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert [*(tmp_path / "there").iterdir()] == []


def test_a_wrong_kind_and_a_folder_that_cannot_be_are_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for arguments, problem in (
        (["tsk", "spans"], "Expected one of"),
        (["task"], "missing: NAME"),
        (["task", "spans", "--folder", str(tmp_path / "file")], "cannot write"),
    ):
        assert main(["new", *arguments]) == 2
        line = capsys.readouterr().err
        assert problem in line
        assert line.count("\n") == 1


def test_the_command_says_what_to_do_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "task", "spans"]) == 0
    out = capsys.readouterr().out
    assert all(f"{line}\n" in out for line in ("pip install -e spans", "pytest spans", "verigym check spans/Spans-v0"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spans"]


# What is installed.


def test_an_installed_package_is_there_for_make_verify_and_the_list(python, tmp_path):
    code = f"import gymnasium, verigym; [print(gymnasium.make(i).reset(seed=1)[1]['task_id']) for i in {IDS}]"
    done = run([python, "-c", code], tmp_path)
    assert [line.partition("-train")[0] for line in done.stdout.splitlines()] == list(NAMES.values()), done.stderr
    rows = [
        {"id": divisor, "completion": f"\\boxed{{{divisor}}}", "target": "101", "metadata": {"number": 10403}}
        for divisor in (101, 102, 103)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = verigym(python, "verify", NAMES["verifier"], "rows.jsonl", cwd=tmp_path)
    assert [json.loads(line)["reward"] for line in out.splitlines()] == [1.0, 0.0, 1.0]
    listed = verigym(python, "envs", cwd=tmp_path)
    assert all(f"plugin '{name}' of {name} 0.1.0" in listed for name in NAMES.values())


def test_the_tests_of_a_package_pass_but_for_the_long_one(python, packages):
    quick = ["-k", "not keeps_to_what_all", "--import-mode=importlib", "-p", "no:cacheprovider"]
    done = run([python, "-m", "pytest", *quick, *NAMES.values()], packages)
    assert done.returncode == 0, done.stdout
    assert "4 deselected" in done.stdout


@pytest.mark.slow
@kinds
def test_all_tests_of_a_package_pass(python, packages, kind):
    done = run([python, "-m", "pytest", "-p", "no:cacheprovider"], packages / NAMES[kind])
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_environment_of_a_package_passes_the_check_of_the_command(python, tmp_path):
    assert "0 are broken, 0 could not be checked" in verigym(python, "check", IDS[0], cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["env", "tool"])
def test_a_model_is_trained_on_the_environment_of_a_package(python, packages, kind, tmp_path):
    env_id = IDS[list(NAMES).index(kind)]
    few = ["--steps", "1", "--batch-size", "4", "--demonstrations", "8"]
    verigym(python, "sft", "--env", env_id, "--output", "runs/warm-start", *few, cwd=tmp_path)
    few = ["--steps", "2", "--groups", "2", "--group-size", "2", "--eval-tasks", "2"]
    recipe = packages / NAMES[kind] / "recipe.yaml"
    verigym(python, "train", str(recipe), *few, cwd=tmp_path)
    metrics = (tmp_path / "runs" / NAMES[kind] / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) >= 2
    assert os.listdir(tmp_path / "runs" / NAMES[kind] / "episodes")
