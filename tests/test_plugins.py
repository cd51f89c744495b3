"""Packages that add names of their own by the entry point `verigym.plugins`, each in a process that imports verigym."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
from verigym import tasks, verifiers
from verigym.envs import register
from verigym.tasks import Task, TaskSet, worlds
from verigym.verifiers.exact import ExactVerifier

class Shelf(worlds.World):
    pass

tasks.register("capitals", lambda split="train": TaskSet([Task("c", "Where?", "Rome")], name="capitals", split=split))
verifiers.register("capital", ExactVerifier)
worlds.register("shelf", Shelf)
register("good/Capitals-v0", kwargs={"task_set": "capitals", "verifier": "capital"})
"""


def install(folder: Path, name: str, code: str, entry: str | None = None) -> None:
    """A distribution with one module and an entry point, as pip would leave it in `folder`."""
    (folder / f"{name}.py").write_text(code)
    information = folder / f"{name}-1.5.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-envs\nVersion: 1.5\n")
    (information / "entry_points.txt").write_text(f"[verigym.plugins]\n{name} = {entry or name}\n")


def python(folder: Path, code: str) -> tuple[str, list[str]]:
    """What a process prints, and the lines on its standard error."""
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.splitlines()


@pytest.mark.parametrize("first", ["import verigym", "import good"])
def test_what_a_plugin_registers_is_there_when_verigym_or_the_plugin_is_imported(tmp_path, first):
    install(tmp_path, "good", GOOD)
    code = f"""
{first}
import gymnasium
from verigym import tasks, verifiers
from verigym.tasks.plugins import origin
env = gymnasium.make("good/Capitals-v0")
env.reset(seed=1)
print(env.step("Rome")[1], tasks.load("capitals")[0].target, "capital" in verifiers.registered())
print(origin("environment", "good/Capitals-v0"), "|", origin("environment", "verigym/GSM8K-v0"))
"""
    said, warnings = python(tmp_path, code)
    assert said.splitlines() == ["1.0 Rome True", "plugin 'good' of good-envs 1.5 | None"]
    assert warnings == []


def test_a_plugin_is_found_by_an_id_that_names_verigym_in_threads_and_in_spawned_processes(tmp_path):
    install(tmp_path, "good", GOOD)
    (tmp_path / "script.py").write_text("""
import gymnasium

if __name__ == "__main__":
    assert gymnasium.make("verigym:good/Capitals-v0").reset(seed=1)[0] == "Where?"
    for kwargs in ({}, {"vectorization_mode": "async", "vector_kwargs": {"context": "spawn"}}):
        envs = gymnasium.make_vec("good/Capitals-v0", num_envs=2, **kwargs)
        envs.reset(seed=1)
        print(*envs.step(("Rome", "Oslo"))[1])
        envs.close()
""")
    said, warnings = python(tmp_path, "import runpy; runpy.run_path('script.py', run_name='__main__')")
    assert said.splitlines() == ["1.0 0.0"] * 2
    assert warnings == []


def test_a_function_is_called_to_register(tmp_path):
    install(tmp_path, "good", "def add():\n" + GOOD.replace("\n", "\n    "), "good:add")
    assert python(tmp_path, "import verigym; print('good/Capitals-v0' in verigym.registered_ids())") == ("True", [])


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        (f"{GOOD}\nverifiers.register('math', ExactVerifier)", "the verifier 'math' is taken already"),
        (f"{GOOD}\nregister('CartPole-v1', kwargs={{}})", "the environment 'CartPole-v1' is taken already"),
    ],
)
def test_a_plugin_that_fails_is_left_out_with_one_warning_and_named_where_a_name_is_missed(tmp_path, code, why):
    install(tmp_path, "bad", code.replace("good/", "bad/"))
    said, warnings = python(
        tmp_path,
        """
import verigym
from verigym import tasks, verifiers
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import UnknownNameError
print(type(verifiers.make("math")).__name__)
for ask in (EnvSpec("bad/Capitals-v0").make, lambda: tasks.load("capitals"), lambda: verifiers.make("capital")):
    try:
        ask()
    except UnknownNameError as error:
        print(error)
""",
    )
    line = f"the plugin 'bad' of bad-envs 1.5 is left out: {why}"
    assert warnings == [f"verigym: {line}"]
    kind, *missed = said.splitlines()
    assert kind == "MathVerifier"
    assert [line in each for each in missed] == [True] * 3


def test_of_two_plugins_with_one_name_the_second_is_left_out_and_the_first_stays(tmp_path):
    install(tmp_path, "good", GOOD)
    install(tmp_path, "other", GOOD.replace('"capitals"', '"cities"').replace("good/", "other/"))
    code = "import verigym; print([i for i in verigym.registered_ids() if 'Capitals' in i])"
    said, warnings = python(tmp_path, code)
    first, second = ("good", "other") if "good/" in said else ("other", "good")
    assert said == f"['{first}/Capitals-v0']"
    assert warnings == [
        f"verigym: the plugin '{second}' of {second}-envs 1.5 is left out: "
        f"the verifier 'capital' is taken already by the plugin '{first}' of {first}-envs 1.5"
    ]


def test_a_plugin_that_imports_another_leaves_its_names_alone_when_it_fails(tmp_path):
    install(tmp_path, "good", GOOD)
    install(tmp_path, "bad", "import good\nfrom verigym import tasks\ntasks.register('bad', 'bad:load')\nraise OSError")
    said, warnings = python(tmp_path, "from verigym import tasks; print({'bad', 'capitals'} & {*tasks.registered()})")
    assert said == "{'capitals'}"
    assert len(warnings) == 1


def test_a_plugin_that_is_imported_before_it_can_register_is_told_how(tmp_path):
    install(tmp_path, "early", "import verigym\ndef add():\n    pass\n", "early:add")
    _, warnings = python(tmp_path, "import early")
    assert len(warnings) == 1
    assert "'early' is being imported and imports verigym: let it register on import" in warnings[0]
    assert python(tmp_path, "import verigym, early") == ("", [])


def test_a_name_whose_module_cannot_be_imported_is_told_in_one_line(tmp_path):
    install(tmp_path, "good", "from verigym import tasks\ntasks.register('capitals', 'good.capitals:load')\n")
    said, _ = python(
        tmp_path,
        """
from verigym import tasks
from verigym.tasks.errors import ConfigError
try:
    tasks.load("capitals")
except ConfigError as error:
    print(error)
""",
    )
    assert said.startswith("the task set 'capitals' (good.capitals:load) cannot be imported: ModuleNotFoundError: ")


def test_verigym_envs_says_which_plugin_an_id_comes_from(tmp_path):
    install(tmp_path, "good", GOOD)
    said, _ = python(tmp_path, "from verigym.cli import main; main(['envs'])")
    ours, theirs = said.split("plugin 'good' of good-envs 1.5\n")
    assert "verigym/GSM8K-v0" in ours
    assert "good/Capitals-v0" in theirs
    assert "good" not in ours
