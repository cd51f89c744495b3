"""Tells whether an environment keeps to what every environment promises, rule by rule.

    assert_conforms("acme_envs:acme/Sums-v0", source="tests/sums.jsonl")

The environment is checked in a process of its own, so that one that hangs or crashes is a finding.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from gymnasium.vector.utils.misc import CloudpickleWrapper

from verigym.envs._conformance_rules import RULES
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError, ConformanceError

SECONDS = 300.0  # until a check counts as hanging: some run hundreds of programs, and a busy machine is slow
SECONDS_TO_MAKE = 600.0  # making the environment may mean loading its data from the hub
_MOST_STOPS = 2  # processes that may hang or crash before the rest is left unchecked
_TICK = 0.1


@dataclass(frozen=True)
class Check:
    """What an environment keeps to, and whether it does: None if that could not be checked."""

    rule: str
    holds: bool | None
    detail: str = ""
    """What was seen, or why it could not be checked; in one line."""


@dataclass(frozen=True)
class Conformance:
    """What `check` found."""

    env_id: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether no rule is broken. What could not be checked is in `unchecked`."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The rules that do not hold."""
        return tuple(check for check in self.checks if check.holds is False)

    @property
    def unchecked(self) -> tuple[Check, ...]:
        """The rules that could not be checked on this environment."""
        return tuple(check for check in self.checks if check.holds is None)

    def raise_for_failures(self) -> None:
        """Raises ConformanceError, an AssertionError, that lists the rules that do not hold."""
        if self.failures:
            listed = "; ".join(f"{check.rule} ({check.detail})" for check in self.failures)
            raise ConformanceError(f"{self.env_id} breaks {len(self.failures)} of {len(self.checks)}: {listed}")


def assert_conforms(env_id: str, /, **kwargs: Any) -> None:
    """Raises ConformanceError if an environment breaks a rule; for the tests of who wrote it."""
    check(env_id, **kwargs).raise_for_failures()


def check(env_id: str, /, **kwargs: Any) -> Conformance:
    """Checks `gym.make(env_id, **kwargs)`, rule by rule; see `checks`."""
    return Conformance(env_id, tuple(checks(env_id, **kwargs)))


def checks(env_id: str, /, **kwargs: Any) -> Iterator[Check]:
    """The checks of `check` one by one, as they are made.

    `env_id` may name the module that registers it ("module:id"); one that is registered by a script of the
    caller's must have its class in a module that can be imported. Raises UnknownNameError for an id that is not
    registered, ConfigError if the environment cannot be made, with the reason.
    """
    name = EnvSpec(env_id).find()
    module, rules = env_id.rpartition(":")[0], list(RULES)
    request = _request(name, kwargs)
    done = stops = 0
    while done < len(rules) and stops < _MOST_STOPS:
        with _Worker(name, request, first=done, modules=[module] if module else []) as worker:
            while done < len(rules) and not worker.stopped:
                yield worker.next(rules[done])
                done += 1
        stops += worker.stopped
    for rule in rules[done:]:
        yield Check(rule, None, "not tried: the checks that hung or ended their process were too many")


def _request(name: str, kwargs: Mapping[str, Any]) -> bytes:
    spec = copy(gym.spec(name))
    spec.kwargs = {**spec.kwargs, **kwargs}
    try:
        return pickle.dumps(CloudpickleWrapper(spec))  # type: ignore[arg-type]
    except Exception as error:  # what cannot be pickled raises what it likes
        raise ConfigError(f"cannot check {name}: what it is made with cannot be sent to a process: {error}") from error


class _Worker:
    """A process that checks the rules from one on. It is killed on exit, with what it started.

    Entering raises ConfigError if there is no environment.
    """

    def __init__(self, name: str, request: bytes, *, first: int, modules: list[str]) -> None:
        self._name, self.stopped = name, False
        self._lines: queue.Queue[str] = queue.Queue()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit
        reading, writing = os.pipe()
        path = [os.path.abspath(folder or ".") for folder in sys.path]
        with tempfile.TemporaryFile() as stdin:
            stdin.write(request)
            stdin.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-m", "verigym.envs._conformance_worker", "check", str(writing), str(first), *modules],
                stdin=stdin,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "1"},
                pass_fds=[writing],
                start_new_session=True,
            )
        os.close(writing)
        threading.Thread(target=self._read, args=(reading,), daemon=True).start()

    def __enter__(self) -> _Worker:
        try:
            self._expect_environment()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._errors.close()

    def next(self, rule: str) -> Check:
        """The check of a rule, the one after the last."""
        line = self._line(SECONDS)
        if line is None:
            self.stopped = True
            return Check(rule, False, self._why_stopped(SECONDS))
        found = json.loads(line)
        return Check(rule, found["holds"], found["detail"])

    def _expect_environment(self) -> None:
        line = self._line(SECONDS_TO_MAKE)
        error = self._why_stopped(SECONDS_TO_MAKE) if line is None else json.loads(line).get("error")
        if error is not None:
            raise ConfigError(f"cannot make {self._name}: {error}")

    def _line(self, seconds: float) -> str | None:
        """The next line, or None if the time is up or the process has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            ended = self._process.poll() is not None  # before looking, so that its last line is not missed
            with contextlib.suppress(queue.Empty):
                return self._lines.get(timeout=_TICK)
            if ended:
                return None
        return None

    def _why_stopped(self, seconds: float) -> str:
        status = self._process.poll()
        if status is None:
            return f"it hung: no end within {seconds:.0f} s"
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"it ended its process with status {status}" + "".join(f" ({line[:200]})" for line in last)

    def _read(self, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8") as lines:
            for line in lines:
                self._lines.put(line)
