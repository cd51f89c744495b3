"""The process in which an environment is checked, and the one in which some of its episodes are played again.

Both read the pickled specification from standard input. `check FD FIRST MODULES...` writes a JSON line to the
descriptor FD that says whether there is an environment, {"made"} or {"error"}, and one for each rule from number
FIRST on, {"holds", "detail"}.
`play MODULES...` writes {"episodes", "children"}; children are the processes that were started meanwhile.
"""

from __future__ import annotations

import importlib
import json
import os
import pickle
import sys
from collections.abc import Sequence
from typing import IO, Any

import psutil

from verigym.envs._conformance_episodes import episodes
from verigym.envs._conformance_probe import Broken, Subject, Unchecked, said_of
from verigym.envs._conformance_rules import RULES
from verigym.tasks.errors import VerigymError


def main(command: str, *arguments: str) -> int:
    """Checks or plays; returns the exit status."""
    if command == "play":
        return _play(arguments)
    descriptor, first, *modules = arguments
    return _check(int(descriptor), int(first), modules)


def _check(descriptor: int, first: int, modules: Sequence[str]) -> int:
    os.set_inheritable(descriptor, False)
    with open(descriptor, "w", encoding="utf-8") as out:
        try:
            subject = _subject(modules)
            subject.make()
            subject.close()
        except Exception as error:
            _write(out, {"error": str(error) if isinstance(error, VerigymError) else said_of(error)})
            return 1
        _write(out, {"made": True})
        for check in list(RULES.values())[first:]:
            _write(out, _checked(check, subject))
    return 0


def _play(modules: Sequence[str]) -> int:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the environment prints is not what we say
    env = _subject(modules).bare()
    said = episodes(env)
    children = [(child.pid, child.create_time()) for child in psutil.Process().children(recursive=True)]
    env.close()
    _write(out, {"episodes": said, "children": children})
    return 0


def _subject(modules: Sequence[str]) -> Subject:
    for module in modules:
        importlib.import_module(module)
    return Subject(pickle.load(sys.stdin.buffer).fn, modules)


def _checked(check: Any, subject: Subject) -> dict[str, Any]:
    try:
        check(subject)
        subject.close()
    except Unchecked as why:
        return {"holds": None, "detail": str(why)}
    except Broken as seen:
        return {"holds": False, "detail": said_of(seen).partition(": ")[2]}
    except Exception as error:  # whatever an environment does wrong is a finding
        return {"holds": False, "detail": said_of(error)}
    return {"holds": True, "detail": ""}


def _write(out: IO[str], line: dict[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
