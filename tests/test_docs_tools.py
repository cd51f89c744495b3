"""The docs on tools, extending and other worlds: every snippet prints what it says; counts are those of the data."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs" / "tools.md"
SNIPPETS = [
    snippet
    for document in (DOCS, DOCS.with_name("extending.md"), DOCS.with_name("other_worlds.md"))
    for snippet in re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)
]
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMED = re.compile(r"# (\w+\.py)\n")  # the first line of a snippet that is a file of another


def promised(snippet: str) -> list[str]:
    """The lines that a snippet says it prints: behind a print, or in comments of their own after one."""
    return re.findall(r"^(?:print\(.*\)  |)# (.*)$", snippet, flags=re.MULTILINE)


@pytest.mark.parametrize("snippet", [snippet for snippet in SNIPPETS if not NAMED.match(snippet)])
def test_each_snippet_prints_what_it_says(snippet: str, tmp_path: Path) -> None:
    if "mcp" in snippet:
        pytest.importorskip("mcp", reason="the extra mcp is not installed")
    if "TextArena" in snippet:
        pytest.importorskip("textarena", reason="the extra textarena is not installed")
    for other in SNIPPETS:
        if name := NAMED.match(other):
            (tmp_path / name[1]).write_text(other)
    (tmp_path / "snippet.py").write_text(snippet)
    done = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == promised(snippet)


def test_the_module_of_the_package_registers_on_import(tmp_path: Path) -> None:
    snippet = next(snippet for snippet in SNIPPETS if snippet.startswith("# my_tasks.py\n"))
    (tmp_path / "my_tasks.py").write_text(snippet)
    code = "import my_tasks, verigym; print('my_tasks/Remainders-v0' in verigym.registered_ids())"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
def test_the_differences_of_the_strict_policy_are_counted() -> None:
    rows = re.findall(r"^\| ([^|`]+) \| (\d+) \|", DOCS.read_text(), flags=re.MULTILINE)
    counted = runpy.run_path(str(Path(__file__).with_name("test_call_match.py")))["strict_differences"]()
    assert {cause: int(cases) for cause, cases in rows} == counted
