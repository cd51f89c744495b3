"""Which libraries a task's own code needs beside Python's, and whether a sandbox has them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import lru_cache

from verigym.tasks.errors import VerifierInputError
from verigym.verifiers._code_runs import Runner
from verigym.verifiers.sandbox import Job, Status

_found: dict[tuple[str, str], bool] = {}  # by the names of sandbox and library


def refuse_missing(source: str, runner: Runner) -> None:
    """Raises VerifierInputError if code of the task itself imports what the sandbox has not, whatever is judged."""
    for library in _libraries(source):
        if not _has(runner, library):
            raise VerifierInputError(
                f"the task's own code imports '{library[:60]}', which the sandbox '{runner.sandbox.name}' has not: "
                "leave the task out"
            )


@lru_cache(maxsize=4096)
def _libraries(source: str) -> tuple[str, ...]:
    try:
        names = set(_imported(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ()
    return tuple(sorted(names - sys.stdlib_module_names))


def _imported(node: ast.AST) -> Iterator[str]:
    """The modules that are imported, but for what is only tried."""
    if isinstance(node, ast.Import):
        yield from (alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield node.module.partition(".")[0]
    elif not isinstance(node, ast.Try):
        for child in ast.iter_child_nodes(node):
            yield from _imported(child)


def _has(runner: Runner, library: str) -> bool:
    key = (runner.sandbox.name, library)
    if key not in _found:
        result = runner.run(Job(f"import {library}", limits=runner.limits))
        if result.status is Status.INFRA_ERROR:
            return True  # whoever runs the code next will say so
        _found[key] = result.status is Status.OK
    return _found[key]
