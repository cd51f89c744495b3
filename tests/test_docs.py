"""The README and docs/: each block of Python runs and prints what it says, commands are ones, counts are the data's.

In a block, a comment behind a print or at the beginning of a line is what is printed, `...` standing for anything. The
blocks of a page run in order, in one folder; a block that begins with a file's name is a file of the others. A block
behind the line `<!-- slow -->` runs in the slow tier.
"""

import doctest
import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from verigym.cli import COMMANDS, _parse
from verigym.config import TrainConfig, build
from verigym.tasks.errors import ConfigError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
DATA = ROOT.resolve().parent / "shared" / "data"
BLOCK = re.compile(r"^(<!-- slow -->\n)?```python\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
NAMED = re.compile(r"# (\w+\.py)\n")  # the first line of a block that is a file of the others
COMMAND = re.compile(r"^    ((?:verigym|make|python|pip) .*(?:\\\n.*)*)$", flags=re.MULTILINE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[bool, str]]:
    """Whether each block of Python is slow, and the block."""
    return [(bool(slow), block) for slow, block in BLOCK.findall(page.read_text())]


def promised(block: str) -> str:
    """What a block says that it prints."""
    lines = re.findall(r"^(?: *print\(.*\)  |)# (.*)$", re.sub(NAMED, "", block, count=1), flags=re.MULTILINE)
    return "".join(f"{line}\n" for line in lines)


def run(block: str, folder: Path) -> None:
    (folder / "block.py").write_text(block)
    done = subprocess.run([sys.executable, "block.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{block}\n{done.stderr}"
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(promised(block), done.stdout, flags), f"{block}\n{done.stdout}"


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_the_blocks_of_a_page_run_in_order_and_print_what_they_say(page: Path, tmp_path: Path) -> None:
    if any("mcp" in block for _, block in blocks(page)):
        pytest.importorskip("mcp", reason="the extra mcp is not installed")
    for _, block in blocks(page):
        if named := NAMED.match(block):
            (tmp_path / named[1]).write_text(block)
    for slow, block in blocks(page):
        if not slow and not NAMED.match(block):
            run(block, tmp_path)
    for program, *arguments in commands(page):
        if program == "verigym" and "--no-open" in arguments:  # what looks at the runs of the blocks
            subprocess.run([sys.executable, "-m", "verigym.cli", *arguments], cwd=tmp_path, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(slow for slow, _ in blocks(page))], ids=name)
def test_the_slow_blocks_of_a_page_run_after_the_others(page: Path, tmp_path: Path) -> None:
    for _, block in blocks(page):
        run(block, tmp_path)


def test_a_newcomers_path_is_in_the_readme_alone_each_step_under_15_lines(tmp_path: Path) -> None:
    titles = re.findall(r"^## (.*)$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert titles[:6] == ["Install", "Play", "Train", "Look", "Add a task", "Add a verifier"]
    sizes = [len([line for line in block.splitlines() if line.strip()]) for _, block in blocks(ROOT / "README.md")]
    assert len(sizes) == 4
    assert max(sizes) < 15


def commands(page: Path) -> list[list[str]]:
    """The commands that stand in a page as code of their own, without comments and brackets around what is optional."""
    text = BLOCK.sub("", page.read_text()).replace("\\\n", " ")
    lines = [re.sub(r" +# .*", "", line) for line in COMMAND.findall(text)]
    return [shlex.split(line.replace("[--", "--").replace("json]", "json")) for line in lines]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_the_commands_of_a_page_exist_and_take_their_options(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for program, what, *options in commands(page):
        if program == "make":
            assert what in targets
        elif program == "python":
            assert what == "-m" or (ROOT / what).is_file()
        elif program == "verigym":
            module, attribute, _ = COMMANDS[what]
            try:
                _parse(getattr(import_module(f"verigym.commands.{module}"), attribute), what, options)
            except ConfigError as error:
                if not ("--resume" in options and "no run in" in str(error)):  # sought when the options have been read
                    raise


@pytest.mark.parametrize("page", sorted((DOCS / "learners").glob("*.md")), ids=name)
def test_the_settings_on_the_page_of_an_algorithm_are_ones(page: Path) -> None:
    run_of = {"model": "tiny", "run": "runs/x", "envs": [{"id": "verigym/Calculator-v0"}]}
    for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        build(TrainConfig, run_of | yaml.safe_load(block))


def test_the_module_of_the_package_registers_on_import(tmp_path: Path) -> None:
    (module,) = [block for _, block in blocks(DOCS / "extending.md") if block.startswith("# my_tasks.py\n")]
    (tmp_path / "my_tasks.py").write_text(module)
    code = "import my_tasks, verigym; print('my_tasks/Remainders-v0' in verigym.registered_ids())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
def test_the_differences_of_the_strict_policy_are_counted() -> None:
    rows = re.findall(r"^\| ([^|`]+) \| (\d+) \|", (DOCS / "tools.md").read_text(), flags=re.MULTILINE)
    counted = runpy.run_path(str(Path(__file__).with_name("test_call_match.py")))["strict_differences"]()
    assert {cause: int(cases) for cause, cases in rows} == counted
