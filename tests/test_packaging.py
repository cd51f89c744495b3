"""What is shipped, what `import verigym` costs, and which way imports go."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
# from left to right: nothing imports to the right of itself
ORDER = ("verigym.tasks", "verigym.verifiers", "verigym.envs", "verigym.agents", "verigym")
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "sympy",
    "math_verify",
    "jsonschema",
    "pandas",
    "tyro",
    "rich",
    "yaml",
    "trl",
)


def packages_on_disk():
    """The dotted name of every folder with an `__init__.py` under the folders that are mapped."""
    found = {}
    for name, folder in FOLDERS["package-dir"].items():
        for init in (ROOT / folder).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / folder).parts
            found[".".join((name, *inner))] = init.parent
    return found


def modules():
    """Every module that is shipped, by dotted name."""
    return {
        package if file.stem == "__init__" else f"{package}.{file.stem}": file
        for package, folder in packages_on_disk().items()
        for file in folder.glob("*.py")
    }


def imports(module, file):
    """The dotted names that `module` imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def rank(name):
    """How far to the right a module of ours stands, None for one that is not ours."""
    for position, package in enumerate(ORDER):
        if name == package or name.startswith(package + "."):
            return position
    return None


def test_every_package_on_disk_is_in_the_wheel():
    assert sorted(FOLDERS["packages"]) == sorted(packages_on_disk())


def test_every_folder_of_code_is_a_package():
    for folder in packages_on_disk().values():
        for inner in folder.iterdir():
            if inner.is_dir() and any(inner.glob("*.py")):
                assert (inner / "__init__.py").is_file(), f"{inner} has no __init__.py"


def test_nothing_imports_to_the_right_of_itself():
    known = modules()
    wrong = [
        f"{module} imports {name}"
        for module, file in known.items()
        for name in imports(module, file)
        # `from verigym import tasks` names the package too, whose own module is the front door
        if name in known and name != "verigym" and rank(name) > rank(module)
    ]
    assert len(known) > 40
    assert wrong == []


def test_no_module_imports_a_name_that_is_no_module_of_ours():
    known = modules()
    for module, file in known.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "verigym":
                assert node.module in known, f"{module} imports from {node.module}"


def test_the_direction_check_sees_an_import_to_the_right():
    assert rank("verigym.tasks.load") < rank("verigym.verifiers") < rank("verigym.envs.text_env")
    assert rank("verigym.envs") < rank("verigym.agents.engines") < rank("verigym.training") == rank("verigym.cli")
    assert rank("numpy") is None


def test_importing_verigym_registers_the_ids_and_loads_nothing_heavy():
    code = f"""
import sys, gymnasium
before = set(sys.modules)
import verigym
new = sorted(set(sys.modules) - before)
heavy = [name for name in {HEAVY!r} if name in new]
assert heavy == [], heavy
assert {{"verigym/GSM8K-v0", "verigym/Calculator-v0"}} <= set(gymnasium.registry)
assert set(verigym.registered_ids()) <= set(gymnasium.registry)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("env_id", ["verigym/Arithmetic-v0", "verigym/Calculator-v0"])
def test_making_a_generated_environment_loads_no_model_library(env_id):
    code = f"""
import sys, gymnasium
gymnasium.make("verigym:{env_id}").reset(seed=1)
heavy = [name for name in ("torch", "transformers", "datasets", "sympy", "math_verify") if name in sys.modules]
assert heavy == [], heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_a_package_exports_is_there():
    import importlib

    for name, folder in packages_on_disk().items():
        if "__all__" in (folder / "__init__.py").read_text():
            package = importlib.import_module(name)
            assert all(hasattr(package, exported) for exported in package.__all__), name
