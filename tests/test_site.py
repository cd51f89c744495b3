"""The documentation site: it builds without a broken link or anchor, and needs nothing from another server."""

import os
import re
import runpy
import subprocess
import sys
from html import unescape
from pathlib import Path

import gymnasium as gym
import pytest

from verigym.envs import registered_ids

ROOT = Path(__file__).parents[1]
pytest.importorskip("material", reason="mkdocs-material is not installed")


def build(site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


def text(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text()))


OURS = [env_id for env_id in registered_ids() if env_id.startswith("verigym/")]
REFUSED = "More could not be played where this was built"


def test_every_environment_has_a_page_with_a_task_verdicts_and_options(site: Path) -> None:
    for env_id in OURS:
        page = text(site / "environments" / f"{env_id.removeprefix('verigym/')}.html")
        assert "max_tokens_per_turn" in page
        if REFUSED not in page:  # as where an extra is not installed
            named = "task_set" in gym.spec(env_id).kwargs  # other packages name no right episodes
            assert not named or re.search(r"the right episode\s+1\s+correct", page), env_id
            assert re.search(r"empty\s+0\s+" if named else r"empty\s+\S+\s+(wrong|unparseable)", page), env_id
    assert REFUSED not in text(site / "environments" / "Calculator-v0.html")


def test_the_pages_of_environments_need_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_site"))
    pages = runpy.run_path(str(ROOT / "docs" / "_site" / "environments.py"))["environment_pages"](tmp_path)
    assert len(pages) == len(OURS)
    refused = {page for page, written in pages.items() if REFUSED in written}
    extras = ("ReasoningGym", "TextArena", "GEM", "PrimeVerifiers")  # that are not installed everywhere
    assert refused <= {f"environments/{name}-v0.md" for name in extras}
    assert "A made-up task in the shape of the data set." in pages["environments/TauRetail-v0.md"]


def test_nothing_on_the_site_comes_from_another_server(site: Path) -> None:
    loading = re.compile(r'<(?:script|img|iframe)[^>]* src="?https?:|<link[^>]* href="?https?:', re.IGNORECASE)
    assert [page.name for page in site.rglob("*.html") if loading.search(page.read_text())] == []


def test_every_algorithm_has_a_page_with_a_formula_its_code_and_a_curve(site: Path) -> None:
    sources = sorted((ROOT / "docs" / "learners").glob("*.md"))
    assert len(sources) >= 14
    for source in sources:
        page = (site / "learners" / f"{source.stem}.html").read_text()
        assert "<math" in page
        assert re.search(r'href="\.\./source/[\w/.]+#\w+"', page), source
        assert re.search(r'<img[^>]* src="\w+\.png"', page), source


def test_the_attacks_are_those_of_the_tests(site: Path) -> None:
    page = text(site / "attacks.html")
    assert "a fork bomb is stopped" in page
    assert "exact value that differs however little is wrong" in page
    assert "<!--" not in page
