"""The README's Python runs as printed."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def test_the_snippets_of_the_readme_run_as_printed(tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(snippets) == 4
    printed = []
    for number, snippet in enumerate(snippets):
        (tmp_path / f"snippet{number}.py").write_text(snippet)
        command = [sys.executable, f"snippet{number}.py"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines())
    assert printed[0][0].startswith("What is ")
    assert "42 0.0 False" in printed[0]
    assert printed[2] == ["1.0"]
    assert printed[3] == ["the gold answer is not among the words"]
    assert (tmp_path / "runs" / "exported" / "config.json").is_file()


def test_the_links_of_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README.read_text()):
        assert (README.parent / target).is_file(), target
