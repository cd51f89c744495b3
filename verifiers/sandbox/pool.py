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

from verigym.tasks.activity import doing
from verigym.tasks.errors import SandboxError
from verigym.verifiers.sandbox.base import Answer, Sandbox, Session
from verigym.verifiers.sandbox.job import Call, Job, Limits, Return, SandboxResult, Status
from verigym.verifiers.sandbox.link import Cancelled, WorkerFailed
from verigym.verifiers.sandbox.worker import Worker, encode_call, encode_job, larger

MAX_JOBS = 200
"""After so many jobs a worker is replaced."""


class PooledSandbox(Sandbox):
    """Workers of one backend; a subclass says how to launch one.

    A worker that has served enough, or about which there is any doubt, is replaced, in the background.
    """

    max_jobs = MAX_JOBS
    launchers = 1
    """How many workers are launched at a time."""

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
        self._spares: list[Worker] = []
        self._spares_to_come = 0
        # the kernel ends bwrap with the thread that started it: threads that live as long start all of them
        self._launcher, self._reaper = _Helper(self.launchers), _Helper(self.launchers)

    @abstractmethod
    def launch(self, capacity: Limits) -> Worker:
        """A new worker with room for such limits, not yet greeted. Raises WorkerFailed or OSError."""

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
        request = encode_job(job)
        failure = ""
        for fresh in (False, True):  # after a failure of ours once more, in a fresh worker
            try:
                with doing("sandbox", f"a free worker of {self.name}"):
                    worker = self._take(job.limits, cancelled, fresh)
                try:
                    with doing("sandbox", f"a job in {self.name}"):
                        return self._use(worker, job, request, answer, cancelled)
                finally:
                    self._give(worker)
            except Cancelled:
                return _failure("the job was called off")
            except (WorkerFailed, OSError) as error:
                failure = f"two workers failed: {error}"
            if self._closed:
                return _failure("the sandbox was closed")
        return _failure(failure)

    def _use(
        self,
        worker: Worker,
        job: Job,
        request: dict[str, Any],
        answer: Answer | None,
        cancelled: threading.Event | None,
    ) -> SandboxResult:
        try:
            result = worker.run(job, request, answer, cancelled)
        except BaseException:
            worker.worn = worker.worn or "it failed"
            raise
        if worker.jobs >= self.max_jobs:
            worker.worn = worker.worn or "it has served enough"
        elif worker.jobs == self.max_jobs * 3 // 4:
            self._prepare_spare()
        return result

    def session(self, limits: Limits | None = None) -> Session:
        limits = limits or Limits()
        try:
            with doing("sandbox", f"a new session in {self.name}"):
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
            idle += self._spares
            self._spares = []
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
        self._reaper.close()

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
        """A spare, or a new worker, takes a place in the background."""
        with self._lock:
            if self._closed:
                return
            self.replaced += 1
            spare = self._spares.pop() if self._spares else None
        if spare is not None:
            self._give(spare)
        else:
            self._launcher.submit(lambda: self.launch(Limits()), self._fill_place)

    def _fill_place(self, future: Future[Worker]) -> None:
        try:
            self._give(self._keep(future.result()))
        except (WorkerFailed, OSError):
            self._give_place()  # the next job says what is wrong

    def _prepare_spare(self) -> None:
        """A worker will soon be replaced: starts its successor, so that nobody waits for that."""
        with self._lock:
            if self._closed or self._spares_to_come + len(self._spares) >= self.size:
                return
            self._spares_to_come += 1
        self._launcher.submit(lambda: self.launch(Limits()), self._add_spare)

    def _add_spare(self, future: Future[Worker]) -> None:
        with self._lock:
            self._spares_to_come -= 1
        with contextlib.suppress(WorkerFailed, OSError):
            spare = self._keep(future.result())
            with self._lock:
                self._spares.append(spare)

    def _new_worker(self, capacity: Limits) -> Worker:
        future = self._launcher.submit(lambda: self.launch(capacity))
        if future is None:
            raise WorkerFailed("the sandbox was closed")
        return self._keep(future.result())

    def _keep(self, worker: Worker) -> Worker:
        """A new worker once it is ready; one at a time is launched, but many may get ready together."""
        worker.greet()
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
        if not self._reaper.submit(worker.close):
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
        result = self._step(encode_call(call))
        if result.returns:
            return result.returns[0]
        return Return(False, error=f"{result.status}: {result.reason}")

    def _step(self, step: dict[str, str]) -> SandboxResult:
        with self._lock:
            if not self._alive:
                raise SandboxError("the session has ended: open another one")
            try:
                with doing("sandbox", f"code in a session of {self._sandbox.name}"):
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


class _Helper:
    """Threads that do what no job should wait for, in the order in which it was asked for."""

    def __init__(self, threads: int) -> None:
        self._queue: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, what: Callable[[], Any], then: Callable[[Future[Any]], None] | None = None) -> Future[Any] | None:
        """Queues it; `then` is called in a thread of these. None once closed."""
        if self._closed:
            return None
        future: Future[Any] = Future()
        if then is not None:
            future.add_done_callback(then)
        self._queue.put((future, what))
        return future

    def _serve(self) -> None:
        while (item := self._queue.get()) is not None:
            future, what = item
            try:
                future.set_result(what())
            except BaseException as error:
                future.set_exception(error)

    def close(self) -> None:
        """Waits for what is queued, unless it is one of these threads that closes."""
        if not self._closed:
            self._closed = True
            for _ in self._threads:
                self._queue.put(None)
        if threading.current_thread() not in self._threads:
            for thread in self._threads:
                thread.join(90)


def _failure(reason: str) -> SandboxResult:
    return SandboxResult(Status.INFRA_ERROR, reason)
