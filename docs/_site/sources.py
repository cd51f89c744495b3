"""Pages of the site that show a file of the repository, with an anchor for each of its functions and classes."""

from __future__ import annotations

import ast
from pathlib import Path

FENCE = "~" * 8
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".md": "markdown", ".toml": "toml", ".jsonl": "json"}


def source_page(root: Path, path: str) -> str:
    """The page of a file. A function of a module is linked to as `path/to/module.py#function`."""
    text, kind = (root / path).read_text(encoding="utf-8"), _LANGUAGES.get(Path(path).suffix, "text")
    parts = _parts(text) if kind == "python" else [("", 1, text)]
    return f"# {path}\n\n" + "\n\n".join(_part(name, line, code, kind) for name, line, code in parts) + "\n"


def function_source(root: Path, path: str, name: str) -> str:
    """The source of one function or class of a module. Raises KeyError."""
    return {found: code for found, _, code in _parts((root / path).read_text(encoding="utf-8"))}[name]


def _part(name: str, line: int, code: str, kind: str) -> str:
    heading = f"## `{name}` {{#{name}}}\n\n" if name else ""
    return f'{heading}{FENCE} {{.{kind} linenums="{line}"}}\n{code.rstrip()}\n{FENCE}'


def _parts(text: str) -> list[tuple[str, int, str]]:
    """What stands before the first function or class, and each of these with what stands after it: name, line, code."""
    lines = text.splitlines()
    named = [
        (node.name, min(node.lineno, *(d.lineno for d in node.decorator_list), node.lineno))
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    starts = [("", 1), *named]
    ends = [line - 1 for _, line in named] + [len(lines)]
    return [(name, line, "\n".join(lines[line - 1 : end])) for (name, line), end in zip(starts, ends, strict=True)]
