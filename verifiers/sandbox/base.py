"""The sandbox contract, and the table of registered backends."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module

from verigym.tasks.errors import SandboxError, UnknownNameError
from verigym.verifiers.sandbox.job import Call, Job, Limits, Return, SandboxResult

Answer = Callable[[Call], Return]
"""What a proxied call gives: the supervisor's own word."""

_LOG = logging.getLogger("verigym.sandbox")
STRONGEST_FIRST = ("docker", "bubblewrap")


class Session(ABC):
    """One live interpreter in a sandbox of its own: variables live on from one `execute` to the next.

    A session that has ended (a limit, a crash, a failure of ours) says so by its last result's status and by `alive`;
    whoever needs it opens another one and replays the sources.
    """

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether another `execute` or `call` can be made."""

    @abstractmethod
    def execute(self, source: str) -> SandboxResult:
        """Runs source; a last expression's repr is printed as a REPL does. Limits hold for each `execute`."""

    @abstractmethod
    def call(self, call: Call) -> Return:
        """Calls a function that was defined in the session. Raises SandboxError if the session has ended."""

    @abstractmethod
    def close(self) -> None:
        """Ends the interpreter and all that it started. Idempotent, from any thread."""


class Sandbox(ABC):
    """Runs untrusted Python. Safe to call from any thread; what the job does is a result, never an exception."""

    name: str
    reason: str
    """Why it was chosen and what holds its limits, in one sentence."""
    isolated: bool

    @abstractmethod
    def run(self, job: Job, *, answer: Answer | None = None, cancelled: threading.Event | None = None) -> SandboxResult:
        """Runs the job; waits, in the order of arrival, for a worker.

        Args:
            answer: gives the returns of the job's `proxies`.
            cancelled: once set, the job is ended and its result is an INFRA_ERROR.
        """

    @abstractmethod
    def session(self, limits: Limits | None = None) -> Session:
        """A live interpreter. Raises SandboxError if none can be started."""

    @abstractmethod
    def close(self) -> None:
        """Ends all workers and sessions. Idempotent, from any thread; later runs are INFRA_ERRORs."""


Factory = Callable[[int | None], Sandbox]
_REGISTRY: dict[str, str | Factory] = {}
_UNSAFE: set[str] = set()


def register(name: str, factory: str | Factory, *, unsafe: bool = False) -> None:
    """Makes `make(name)` call `factory(workers)`, a callable or "module:attribute" that is imported on first use.

    The factory raises SandboxError, with what to install, where the backend does not work. `unsafe`: it does not
    isolate, so `make` takes it only with `allow_unsafe=True`.
    """
    _REGISTRY[name] = factory
    (_UNSAFE.add if unsafe else _UNSAFE.discard)(name)


def registered() -> list[str]:
    """The names that `make` takes beside "auto"."""
    return sorted(_REGISTRY)


def make(name: str = "auto", *, workers: int | None = None, allow_unsafe: bool = False) -> Sandbox:
    """The sandbox registered as `name`; "auto" is the strongest that works here, and its `reason` says why.

    Args:
        workers: how many jobs run at a time (default: as many as there are processors).
        allow_unsafe: needed for backends that do not isolate.
    """
    if workers is not None and workers < 1:
        raise SandboxError(f"a sandbox has at least 1 worker, not {workers}")
    if name == "auto":
        return _strongest(workers)
    if name not in _REGISTRY:
        raise UnknownNameError.of("sandbox", name, [*_REGISTRY, "auto"])
    if name in _UNSAFE and not allow_unsafe:
        raise SandboxError(f"sandbox '{name}' does not isolate: pass allow_unsafe=True for code that you trust")
    return _factory(name)(workers)


def _strongest(workers: int | None) -> Sandbox:
    refused = []
    for name in STRONGEST_FIRST:
        try:
            sandbox = _factory(name)(workers)
        except SandboxError as error:
            refused.append(str(error))
            continue
        sandbox.reason = "; ".join([sandbox.reason, *refused])
        return sandbox
    raise SandboxError(f"no sandbox that isolates works here: {'; '.join(refused)}")


def _factory(name: str) -> Factory:
    factory = _REGISTRY[name]
    if isinstance(factory, str):
        module, attribute = factory.split(":")
        factory = getattr(import_module(module), attribute)
        assert callable(factory)
    return factory


_shared: dict[str, Sandbox] = {}
_shared_lock = threading.Lock()


def shared(name: str = "auto", *, allow_unsafe: bool = False) -> Sandbox:
    """This process's one sandbox of that name, for all verifiers and environments; a forked child gets its own."""
    if name in _UNSAFE and not allow_unsafe:
        raise SandboxError(f"sandbox '{name}' does not isolate: pass allow_unsafe=True for code that you trust")
    with _shared_lock:
        if name not in _shared:
            made = make(name, allow_unsafe=allow_unsafe)
            sandbox = _shared.setdefault(made.name, made)
            if sandbox is made:
                atexit.register(sandbox.close)
            else:
                made.close()
            _shared[name] = sandbox
            _LOG.info("sandbox %s: %s", sandbox.name, sandbox.reason)
        return _shared[name]


def in_use() -> list[Sandbox]:
    """The sandboxes that `shared` has given in this process."""
    with _shared_lock:
        return list(dict.fromkeys(_shared.values()))


def _forget_after_fork() -> None:
    # the parent's workers and locks are not ours: drop them without touching the processes
    global _shared, _shared_lock
    for sandbox in _shared.values():
        atexit.unregister(sandbox.close)
    _shared, _shared_lock = {}, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)

register("docker", "verigym.verifiers.sandbox.docker:DockerSandbox")
register("bubblewrap", "verigym.verifiers.sandbox.bubblewrap:BubblewrapSandbox")
register("process", "verigym.verifiers.sandbox.process:ProcessSandbox", unsafe=True)
