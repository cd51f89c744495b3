"""What a worker does for another package's environments: it keeps their sessions.

Those packages draw from global random generators. So each session has states of its own for these, which are put in
place while it is played; a worker answers one request at a time. Loaded by `_worker`; imports nothing of verigym.
"""

from __future__ import annotations

import contextlib
import importlib.util
import random
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

try:
    import numpy
except ImportError:  # then no package draws from it
    numpy = None  # type: ignore[assignment]

MEMORY_BYTES = 8 << 30
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Session:
    """An episode of the package's, and the states of the random generators that it sees."""

    def __init__(self, seed: int) -> None:
        with _kept():
            random.seed(seed)
            if numpy is not None:
                numpy.random.seed(seed % 2**32)
            self._states = _states()
        self.played: Any = None

    @contextlib.contextmanager
    def random(self) -> Iterator[None]:
        """Puts the session's random states in place."""
        with _kept():
            _put(self._states)
            try:
                yield
            finally:
                self._states = _states()


def load() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function of a request to a reply."""
    sessions: dict[str, Session] = {}
    sys.set_int_max_str_digits(0)  # a number of any length is a wrong one, and no error

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        for name in request["drop"]:
            _end(sessions.pop(name, None))
        try:
            adapter = _adapter(request["adapter"])
        except ImportError as error:
            return {"missing": str(error)}
        try:
            return _answer(adapter, request, sessions)
        except MemoryError:
            raise
        except Exception as error:  # packages raise whatever they like
            return {"error": describe(error)}

    return answer


def describe(error: BaseException) -> str:
    """An exception in one line: its type, and the first line of it that says anything."""
    lines = (line.strip() for line in _COLOURS.sub("", str(error)).splitlines())
    said = next((line for line in lines if any(map(str.isalnum, line))), "")
    return f"{type(error).__name__}: {said[:300]}" if said else type(error).__name__


def _answer(adapter: Any, request: dict[str, Any], sessions: dict[str, Session]) -> dict[str, Any]:
    if request["do"] == "describe":
        with _kept():
            return adapter.describe(request["spec"])  # type: ignore[no-any-return]
    name = request["session"]
    if request["do"] == "open":
        session = Session(request["seed"])
        with session.random():
            session.played = adapter.Session(request["spec"], request["seed"], request["index"])
            sessions[name] = session
            return session.played.opening()  # type: ignore[no-any-return]
    if name not in sessions:
        return {"lost": True}
    with sessions[name].random():
        return sessions[name].played.move(request["move"])  # type: ignore[no-any-return]


def _end(session: Session | None) -> None:
    if session is not None and hasattr(session.played, "close"):
        with session.random(), contextlib.suppress(Exception):  # nobody is there to be told
            session.played.close()


@cache
def _adapter(name: str) -> Any:
    path = Path(__file__).with_name(f"_{name}_host.py")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _states() -> tuple[Any, Any]:
    return random.getstate(), numpy.random.get_state() if numpy else None


def _put(states: tuple[Any, Any]) -> None:
    random.setstate(states[0])
    if numpy is not None:
        numpy.random.set_state(states[1])


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Leaves the random states as they are found."""
    found = _states()
    try:
        yield
    finally:
        _put(found)
