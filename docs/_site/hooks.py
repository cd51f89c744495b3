"""Hooks of the documentation site: pages that are generated, links out of docs/, formulas without a script."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from attacks import attacks_table
from environments import environment_pages
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from sources import FENCE, function_source, source_page

ROOT = Path(__file__).parents[2]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")
_ENV_ID = re.compile(r"(?<!\[)`verigym/(\w+-v0)`(?!\])")
_CODE_CELL = re.compile(r"`[^`\n]*`")
_MARK = re.compile(r"^<!-- (attacks|source): (\S+?)(?:#(\w+))? -->$", re.MULTILINE)  # what is put in its place


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs.setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is generated, and a page for each file of the repository that a page links to."""
    pages = {page: (ROOT / name).read_text() for name, page in PAGES.items()}
    pages |= environment_pages()
    written = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for uri, text in [*pages.items(), *written.items()]:
        for path in _outward(uri, _MARK.sub(_made, text)):
            pages.setdefault(_page_of(path), source_page(ROOT, path))
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    config.nav = _expanded(config.nav, [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to the repository's files lead to their pages, and ids of environments to theirs.

    Python-Markdown takes a bar in a table's code as it stands, where GitHub wants it escaped.
    """
    uri = page.file.src_uri

    def inward(link: re.Match[str]) -> str:
        path = _resolved(uri, link[2])
        known = _page_of(path) if path is not None else None
        target = known if known is not None and known in files.src_uris else None
        return link[0] if target is None else f"{link[1]}{_relative(target, uri)}{link[3] or ''}{link[4]}"

    def to_environment(env_id: re.Match[str]) -> str:
        target = f"environments/{env_id[1]}.md"
        return f"[{env_id[0]}]({_relative(target, uri)})" if target in files.src_uris else env_id[0]

    lines = _ENV_ID.sub(to_environment, _LINK.sub(inward, _MARK.sub(_made, markdown))).splitlines()
    return "\n".join(_CODE_CELL.sub(_unescaped, line) if line.startswith("|") else line for line in lines)


def formula(source: str, *_: Any, **__: Any) -> str:
    """The MathML of a fence of LaTeX. Raises PluginError for a command that is not known."""
    mathml = convert(source.strip(), display="block")
    if "\\" in mathml:
        raise PluginError(f"a formula has a command that latex2mathml does not know: {source.strip()}")
    return f'<div class="math">{mathml}</div>'


def _made(mark: re.Match[str]) -> str:
    kind, path, name = mark.groups()
    if kind == "attacks":
        return attacks_table(ROOT, path)
    return f"{FENCE} {{.python}}\n{function_source(ROOT, path, name).rstrip()}\n{FENCE}"


def _outward(uri: str, text: str) -> Iterator[str]:
    """The files of the repository, outside docs/ and no page themselves, that a page links to."""
    for _, target, *_ in _LINK.findall(text):
        path = _resolved(uri, target)
        if path is not None and path not in PAGES and not path.startswith("docs/") and (ROOT / path).is_file():
            yield path


def _resolved(uri: str, target: str) -> str | None:
    """The path in the repository of a link, None for one to elsewhere."""
    if "://" in target or target.startswith(("/", "mailto:")):
        return None
    folder = "" if uri in PAGES.values() else posixpath.join("docs", posixpath.dirname(uri))
    path = posixpath.normpath(posixpath.join(folder, target))
    return None if path.startswith("..") else path


def _page_of(path: str) -> str:
    """The page of the site that shows a file of the repository."""
    if path in PAGES:
        return PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"source/{PurePosixPath(path)}.md"


def _relative(target: str, uri: str) -> str:
    return posixpath.relpath(target, posixpath.dirname(uri) or os.curdir)


def _unescaped(code: re.Match[str]) -> str:
    return code[0].replace("\\|", "|")


def _expanded(nav: Any, pages: list[str]) -> list[Any]:
    """The navigation with the pages that a pattern stands for, but for those that are named elsewhere."""
    named = set(_names(nav))
    left = sorted(page for page in pages if page not in named)

    def expand(entry: Any) -> list[Any]:
        if isinstance(entry, dict):
            return [{title: [e for part in parts for e in expand(part)]} for title, parts in entry.items()]
        if "*" not in entry:
            return [entry]
        found = [page for page in left if fnmatch(page, entry) and page.count("/") == entry.count("/")]
        return found

    return [found for entry in nav for found in expand(entry)]


def _names(nav: Any) -> Iterator[str]:
    for entry in nav:
        if isinstance(entry, dict):
            for parts in entry.values():
                yield from _names(parts)
        else:
            yield entry
