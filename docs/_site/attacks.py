"""What verifiers and sandboxes are attacked with, as the tests that do so are named."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

_ROWS = re.compile(r"rows? (\d+(?: (?:to|and) \d+)?) ")


@cache
def attacks_table(root: Path, path: str) -> str:
    """The tests of a file: the sentence that each is named as, and the number of its cases."""
    rows = [
        f"| [{_sentence(name)}](../{path}#{name}) | {_cases(test)} |"
        for name, test in runpy.run_path(str(root / path)).items()
        if name.startswith("test_")
    ]
    return "\n".join(["| what is tried, and what comes of it | cases |", "|---|---|", *rows])


def _sentence(name: str) -> str:
    return _ROWS.sub("", name.removeprefix("test_").replace("_", " "))


def _cases(test: Callable[..., Any]) -> int:
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return prod(len(list(mark.args[1])) for mark in marks)
