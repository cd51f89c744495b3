"""The sandbox that all backends are: fork servers kept warm, jobs handed to them in the order of arrival."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from verigym.tasks.errors import SandboxError
from verigym.verifiers.sandbox.base import Answer, Sandbox, Session
from verigym.verifiers.sandbox.job import Call, Job, Limits, Return, SandboxResult, Status
from verigym.verifiers.sandbox.link import Cancelled, WorkerFailed
from verigym.verifiers.sandbox.worker import Worker, call_step, larger

MAX_JOBS = 200
"""After so many jobs a worker is replaced."""


class PooledSandbox(Sandbox):
    """Workers of one backend; a subclass says how to launch one.

    A worker that has served enough, or about which there is any doubt, is replaced, in the background.
    """

    max_jobs = MAX_JOBS

    def __init__(self, workers: int | None = None) -> None:
        self.size = workers or os.cpu_count() or 1
        self.replaced = 0
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._waiting: deque[Future[Worker | None]] = deque()
        self._count = 0  # workers that are idle, busy or being started; sessions have workers of their own
        self._all: set[Worker] = set()
        self._sessions: set[PooledSession] = set()
        self._closed = False
        self._launcher = _Launcher(self.name)

    @abstractmethod
    def launch(self, capacity: Limits) -> Worker:
        """A new worker with room for such limits. Raises WorkerFailed or OSError."""

    def start(self) -> dict[str, Any]:
        """Starts one worker, and returns what it tells of itself. Raises SandboxError if that does not work here."""
        try:
            worker = self._new_worker(Limits())
        except (WorkerFailed, OSError) as error:
            self.close()
            raise SandboxError(f"sandbox '{self.name}' does not start: {error}") from error
        self._count = 1
        self._give(worker)
        return worker.about

    def run(self, job: Job, *, answer: Answer | None = None, cancelled: threading.Event | None = None) -> SandboxResult:
        try:
            return self._run(job, answer, cancelled)
        except (WorkerFailed, OSError):
            if self._closed:
                return _failure("the sandbox was closed")
        except Cancelled:
            return _failure("the job was called off")
        try:
            return self._run(job, answer, cancelled, fresh=True)
        except (WorkerFailed, OSError) as error:
            return _failure("the sandbox was closed" if self._closed else f"two workers failed: {error}")
        except Cancelled:
            return _failure("the job was called off")

    def _run(
        self, job: Job, answer: Answer | None, cancelled: threading.Event | None, *, fresh: bool = False
    ) -> SandboxResult:
        worker = self._take(job.limits, cancelled, fresh)
        try:
            result = worker.run(job, answer, cancelled)
        except BaseException:
            worker.worn = worker.worn or "it failed"
            raise
        finally:
            if worker.jobs >= self.max_jobs:
                worker.worn = worker.worn or "it has served enough"
            self._give(worker)
        return result

    def session(self, limits: Limits | None = None) -> Session:
        limits = limits or Limits()
        try:
            worker = self._new_worker(larger(Limits(), limits))
        except (WorkerFailed, OSError) as error:
            raise SandboxError(f"no session in sandbox '{self.name}': {error}") from error
        worker.open_session(limits)
        session = PooledSession(self, worker, limits)
        with self._lock:
            self._sessions.add(session)
        return session

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._all.difference(idle)
            self._all.clear()
            sessions, self._sessions = self._sessions, set()
            waiting, self._waiting = self._waiting, deque()
        for future in waiting:
            future.set_result(None)
        for worker in busy:
            worker.kill()
        for worker in idle:
            worker.close()
        for session in sessions:
            session.close()
        self._launcher.close()

    # workers

    def _take(self, limits: Limits, cancelled: threading.Event | None, fresh: bool) -> Worker:
        """The worker most lately used, one to start, or, in the order of arrival, the next to be free."""
        worker = self._free_worker(cancelled)
        if worker is not None and (fresh or larger(worker.capacity, limits) != worker.capacity):
            self.discard(worker)
            worker = None
        if worker is None:
            try:
                worker = self._new_worker(larger(Limits(), limits))
            except BaseException:
                self._give_place()
                raise
        return worker

    def _free_worker(self, cancelled: threading.Event | None) -> Worker | None:
        """None: there is a place, but its worker is still to be started."""
        with self._lock:
            if self._closed:
                raise WorkerFailed("the sandbox was closed")
            if self._idle:
                return self._idle.pop()
            if self._count < self.size:
                self._count += 1
                return None
            place: Future[Worker | None] = Future()
            self._waiting.append(place)
        while True:
            with contextlib.suppress(TimeoutError):
                worker = place.result(0.1 if cancelled is not None else None)
                if self._closed:
                    raise WorkerFailed("the sandbox was closed")
                return worker
            if cancelled is not None and cancelled.is_set():
                self._leave_queue(place)
                raise Cancelled

    def _leave_queue(self, place: Future[Worker | None]) -> None:
        with self._lock:
            if place in self._waiting:
                self._waiting.remove(place)
                return
        worker = place.result()
        if worker is None:
            self._give_place()
        else:
            self._give(worker)

    def _give(self, worker: Worker) -> None:
        if worker.worn:
            self.discard(worker)
            self._replace()
            return
        with self._lock:
            if not self._closed:
                if self._waiting:
                    self._waiting.popleft().set_result(worker)
                else:
                    self._idle.append(worker)
                return
        self.discard(worker)

    def _give_place(self) -> None:
        """A worker that could not be started leaves its place to whoever waits."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set_result(None)
            else:
                self._count -= 1

    def _replace(self) -> None:
        with self._lock:
            if self._closed:
                return
            self.replaced += 1

        def started(future: Future[Worker]) -> None:
            if future.exception() is None:
                self._give(self._keep(future.result()))
            else:
                self._give_place()  # the next job says what is wrong

        self._launcher.submit(lambda: self.launch(Limits()), started)

    def _new_worker(self, capacity: Limits) -> Worker:
        return self._keep(self._launcher.submit(lambda: self.launch(capacity)).result())

    def _keep(self, worker: Worker) -> Worker:
        with self._lock:
            if not self._closed:
                self._all.add(worker)
                return worker
        worker.close()
        raise WorkerFailed("the sandbox was closed")

    def discard(self, worker: Worker) -> None:
        """Ends a worker for good; for whoever used it last."""
        with self._lock:
            self._all.discard(worker)
        worker.close()

    def forget(self, session: PooledSession) -> None:
        """A session that has ended needs no end from us."""
        with self._lock:
            self._sessions.discard(session)


class PooledSession(Session):
    """A live interpreter with a worker of its own."""

    def __init__(self, sandbox: PooledSandbox, worker: Worker, limits: Limits) -> None:
        self._sandbox, self._worker, self._limits = sandbox, worker, limits
        self._alive = True
        self._lock = threading.Lock()

    @property
    def alive(self) -> bool:
        return self._alive

    def execute(self, source: str) -> SandboxResult:
        return self._step({"source": source})

    def call(self, call: Call) -> Return:
        result = self._step(call_step(call))
        if result.returns:
            return result.returns[0]
        return Return(False, error=f"{result.status}: {result.reason}")

    def _step(self, step: dict[str, str]) -> SandboxResult:
        with self._lock:
            if not self._alive:
                raise SandboxError("the session has ended: open another one")
            try:
                result, self._alive = self._worker.turn(step, self._limits)
            except (WorkerFailed, OSError) as error:
                self._alive = False
                result = _failure(str(error))
        if not self._alive:
            self._end()
        return result

    def close(self) -> None:
        self._alive = False
        self._worker.kill()  # a step that runs ends
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._sandbox.forget(self)
        self._sandbox.discard(self._worker)


class _Launcher:
    """The thread that starts a pool's workers, and lives as long: the kernel ends bwrap with its parent thread."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Worker], Callable[[], Worker]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._serve, name=f"verigym-{name}-launcher", daemon=True).start()
        self._closed = False

    def submit(
        self, launch: Callable[[], Worker], then: Callable[[Future[Worker]], None] | None = None
    ) -> Future[Worker]:
        if self._closed:
            raise WorkerFailed("the sandbox was closed")
        future: Future[Worker] = Future()
        if then is not None:
            future.add_done_callback(then)
        self._queue.put((future, launch))
        return future

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            future, launch = item
            try:
                future.set_result(launch())
            except BaseException as error:
                future.set_exception(error)

    def close(self) -> None:
        self._closed = True
        self._queue.put(None)


def _failure(reason: str) -> SandboxResult:
    return SandboxResult(Status.INFRA_ERROR, reason)
