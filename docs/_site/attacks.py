"""What verifiers and sandboxes are attacked with, as the tests that do so are named."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

SHOWN = 90  # characters of a case
_ROWS = re.compile(r"rows? \d+(?: (?:to|and) \d+)? ")


@cache
def attacks_table(root: Path, path: str) -> str:
    """The tests of a file: the sentence that each is named as, a short one of its cases, and their number."""
    tests = [(name, test) for name, test in runpy.run_path(str(root / path)).items() if name.startswith("test_")]
    rows = [f"| [{_sentence(name)}](../{path}#{name}) | {_example(test)} | {_cases(test)} |" for name, test in tests]
    return "\n".join(["| what is tried, and what comes of it | such as | cases |", "|---|---|---|", *rows])


def _sentence(name: str) -> str:
    return _ROWS.sub("", name.removeprefix("test_").replace("_", " "))


def _cases(test: Callable[..., Any]) -> int:
    return prod(len(list(mark.args[1])) for mark in _parametrized(test))


def _example(test: Callable[..., Any]) -> str:
    """The first case that is short."""
    for mark in _parametrized(test)[:1]:
        for case in mark.args[1]:
            values = case if isinstance(case, tuple) else (case,)
            text = " | ".join(value if isinstance(value, str) else repr(value) for value in values)
            if text.isprintable() and "`" not in text and 0 < len(text) <= SHOWN:
                return ", ".join(f"`{part}`" for part in text.replace("|", "\\|").split(" \\| "))
    return ""


def _parametrized(test: Callable[..., Any]) -> list[Any]:
    return [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
