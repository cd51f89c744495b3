"""What a run waits for: told when SIGQUIT asks for it (`kill -QUIT`, Ctrl-\\), and by itself when nothing moves."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import ContextDecorator, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from verigym.tasks import activity
from verigym.tasks.activity import Activity, Doing, Playing

PATIENCE = 60.0
"""Seconds in which something moves, or the run is said to stand still."""
# Work that cannot tell whether it gets on is given so many times as long.
_SILENT, _LONGER = ("starting", "checkpointing"), 10
_ROWS, _STACKS, _FRAMES = 20, 6, 10  # that a report has at most
_STOP = 0  # no signal has this number

# By kind of what is waited for: what to look at.
_HINTS = {
    "engine": "what is queued waits for one of `slots`. If none gets tokens, the run's thread below shows "
    "where the engine is, nvidia-smi whether a GPU works, its log what a server does",
    "environment": "a `step` or `reset` does not return: its thread is below. `env_timeout` ends such an episode",
    "environment worker": "a process of the Ray cluster that does not tell what this call does: see there, "
    "such as with `ray stack` on its machine. `env_timeout` ends such an episode",
    "tool": "its function does not return: its thread is below. Give what it asks for a time limit of its own",
    "verifier": "it does not return: its thread is below",
    "worker process": "an answer ends there by a limit of CPU time; what takes longer waits for a busy machine",
    "sandbox": "a job ends by its limits of CPU and wall time. Many that wait for a free worker need more workers; "
    "`verigym sandbox doctor` says whether the sandbox works",
    "user simulator": "the agent that plays the users does not return: its thread is below",
    "endpoint": "is the server up, and what does its log say? After `timeout` it is asked again",
    "reward model": "it scores in this process, in batches: see where its thread is",
}


class StallWatch(ContextDecorator):
    """While entered, SIGQUIT has the report written to standard error, and so has a time in which nothing moves.

    The run goes on. With `folder`, a run's, it is also added to the `stalls.txt` there. After the first time in which
    nothing moved, one twice as long is told again, and so on; with `asked_only`, of a process that others give its
    work, none is. Also a decorator.

    A thread of its own writes, so that a main thread that hangs in native code is told of too. Outside the main thread
    of the process, where Python delivers no signals, and where the system has no SIGQUIT, it only watches.
    """

    def __init__(self, folder: Path | None = None, *, asked_only: bool = False) -> None:
        self._folder, self._asked_only, self._main = folder, asked_only, Activity()
        self._thread = threading.Thread(target=self._watch, name="verigym-stall-watch", daemon=True)
        self._previous: Any = None
        self._wakes = False

    def _recreate_cm(self) -> StallWatch:
        return StallWatch(self._folder, asked_only=self._asked_only)

    def __enter__(self) -> StallWatch:
        self._entered = threading.current_thread()
        self._token = activity.current.set(self._main)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        if self._entered is threading.main_thread() and hasattr(signal, "SIGQUIT"):
            self._catch()
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._wakes:
            signal.set_wakeup_fd(-1)
        if self._previous is not None:
            signal.signal(signal.SIGQUIT, self._previous)
        os.write(self._write, bytes([_STOP]))
        self._thread.join()
        os.close(self._read)
        os.close(self._write)
        activity.current.reset(self._token)

    def _catch(self) -> None:
        self._previous = signal.getsignal(signal.SIGQUIT)
        if self._previous is None:
            return  # somebody's handler that is not Python's, as faulthandler's, and could not be put back
        signal.signal(signal.SIGQUIT, self._handle)
        # The number of a signal is written there at once, even if this thread is in native code and does not handle it.
        before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._wakes = before == -1
        if not self._wakes:
            signal.set_wakeup_fd(before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._wakes:
            with suppress(BlockingIOError):
                os.write(self._write, bytes([number]))

    def _watch(self) -> None:
        poll = select.poll()  # not select(): a trainer may hold more than 1024 descriptors
        poll.register(self._read, select.POLLIN)
        patience, tick = Patience(PATIENCE), min(1.0, PATIENCE / 4)
        while True:
            asked = os.read(self._read, 4096) if poll.poll(tick * 1000) else b""
            if _STOP in asked:
                return
            if asked and signal.SIGQUIT in asked:
                self._tell("what the run waits for")
            if self._asked_only:
                continue
            still = patience.still(activity.moves(), 0.0 if asked else tick, longer=self._is_silent())
            if still is not None:
                self._tell(f"nothing moved for {seconds(still)}: no token, no environment, no learner")

    def _is_silent(self) -> bool:
        stack = self._main.stack
        return not stack or stack[-1].kind in _SILENT

    def _tell(self, title: str) -> None:
        text = report(title, self._main, self._entered)
        with suppress(OSError, ValueError):  # whoever read it is gone
            print(text, file=sys.stderr, flush=True)
        if self._folder is not None and self._folder.is_dir():
            with suppress(OSError), (self._folder / "stalls.txt").open("a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n\n")


class Patience:
    """When to say that nothing moves: after `first` seconds, then each time after twice as long."""

    def __init__(self, first: float) -> None:
        self._first = self._due = first
        self._still, self._moves = 0.0, -1

    def still(self, moves: int, passed: float, *, longer: bool = False) -> float | None:
        """The seconds in which `moves` has not changed, if it is time to tell of them; `passed` since the last call."""
        if moves != self._moves:
            self._moves, self._still, self._due = moves, 0.0, self._first
            return None
        self._still += passed
        if self._still < self._due * (_LONGER if longer else 1):
            return None
        self._due = 2 * self._still
        return self._still


def report(title: str, main: Activity, thread: threading.Thread) -> str:
    """The report, in lines: the run, its episodes, what to look at, where the threads are.

    `main` is what the run's own thread, `thread`, is doing.
    """
    now = time.monotonic()
    episodes, unbegun = activity.playing()
    lines = [f"verigym, process {os.getpid()}: {title}"]
    lines.append(f"  run: {_said(main.stack, now) or 'starting, or between two phases'}")
    lines.append(
        f"  episodes: {len(episodes)} in play, {unbegun} not begun{'; the longest wait first' * bool(episodes)}"
    )
    lines += [f"    {row}" for row in _rows(episodes, now)]
    kinds = dict.fromkeys(episode.stack[-1].kind for episode in _longest_first(episodes) if episode.stack)
    hints = [f"    {kind}: {_HINTS[kind]}" for kind in kinds if kind in _HINTS]
    lines += ["  if that takes too long:", *hints] if hints else []
    lines.append("  threads, the innermost call last:")
    lines += [f"    {row}" for row in _threads(thread)]
    return "\n".join(lines)


def seconds(time: float) -> str:
    """A time to read."""
    if time < 10:
        return f"{time:.1f} s"
    return f"{time:.0f} s" if time < 600 else f"{time / 60:.0f} min"


def _longest_first(episodes: Sequence[Playing]) -> list[Playing]:
    return sorted(episodes, key=lambda episode: episode.stack[0].since if episode.stack else float("inf"))


def _rows(episodes: Sequence[Playing], now: float) -> list[str]:
    """A line for each episode, or, if they are many, for each kind of those that are alike."""
    episodes = _longest_first(episodes)
    if len(episodes) <= _ROWS:
        return [
            f"{e.task_id} ({e.env_id}), turn {e.turn}: {_said(e.stack, now) or 'between two waits'}" for e in episodes
        ]
    alike: dict[tuple[str, tuple[str, ...]], list[Playing]] = {}
    for episode in episodes:
        # What differs within a kind, as tokens so far, stands after a comma.
        waits = tuple(_name(one).partition(",")[0] for one in episode.stack)
        alike.setdefault((episode.env_id, waits), []).append(episode)
    rows = [
        f"{len(group)} of {env_id}, such as {group[0].task_id}, turn {group[0].turn}: {_said(group[0].stack, now)}"
        for (env_id, _), group in alike.items()
    ]
    return rows if len(rows) <= _ROWS else [*rows[:_ROWS], f"and {len(rows) - _ROWS} further kinds"]


def _name(one: Doing) -> str:
    return f"{one.kind}: {one.name}" if one.name else one.kind


def _said(stack: Sequence[Doing], now: float) -> str:
    return " > ".join(f"{_name(one)} ({seconds(now - one.since)})" for one in stack)


def _threads(main: threading.Thread) -> list[str]:
    """Where the run's thread is, and those of ours that are at work; those at the same place together."""
    frames = sys._current_frames()
    found: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for thread in [main, *threading.enumerate()]:
        frame = frames.pop(thread.ident or 0, None)
        # A thread of ours that waits for work does so in its own loop.
        if frame is None or (thread is not main and (not _is_ours(thread) or frame.f_code.co_name == "_work")):
            continue
        stack = [call for call in traceback.extract_stack(frame) if not call.name.endswith("_call_impl")]  # torch's
        calls = [f"{Path(call.filename).name}:{call.lineno} {call.name}: {call.line}" for call in stack[-_FRAMES:]]
        found["the run's" if thread is main else thread.name, tuple(calls)] += 1
    rows: list[str] = []
    for (name, place), count in list(found.items())[:_STACKS]:
        rows += [f"{name} (x{count})" if count > 1 else name, *(f"  {call}" for call in place)]
    return rows


def _is_ours(thread: threading.Thread) -> bool:
    return thread.name.startswith("verigym-") and thread is not threading.current_thread()
