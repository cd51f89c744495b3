"""Signs of life of a run's processes, so that one that stands still is not waited for without end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

# Beats in the time after which a rank that gives none is lost.
_BEATS = 60


class Heartbeat:
    """Between `start` and `stop` this rank gives signs of life, and ends if one of the `watched` ranks gives none.

    A process beats as long as it runs, whatever its main thread does: one that is stopped, or whose machine is frozen
    or cut off, does not. After `patience` without a beat of it this process ends as if it were killed, but for one line
    on standard error and exit status 2: its main thread may wait for that rank in native code, which nothing
    interrupts, and for which the interpreter's orderly end would wait in turn.

    Beats are counts in torchrun's store, over a connection of their own. The thread that speaks to the store stands
    still with it; another one counts time, that in which this process itself runs: ranks that were all stopped and go
    on have lost nobody.
    """

    def __init__(self, rank: int, watched: Iterable[int], patience: timedelta) -> None:
        self._rank, self._patience = rank, patience.total_seconds()
        self._tick = self._patience / _BEATS
        self._counts = dict.fromkeys([rank, *watched], 0)  # also its own: without it the store is what stands still
        self._places = dict.fromkeys(self._counts, "never seen")
        self._store = next(rendezvous("env://", timeout=patience))[0]
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=work, name="heartbeat", daemon=True) for work in (self._beat, self._watch)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(self._tick)  # no longer: the store may stand still

    def _beat(self) -> None:
        with suppress(dist.DistError):  # a store that is gone does not answer either
            self._store.set(_key(self._rank, "place"), f"on {socket.gethostname()}, process {os.getpid()}")
            while not self._over.is_set():
                for rank, before in self._counts.items():
                    self._counts[rank] = self._store.add(_key(rank, "beats"), int(rank == self._rank))
                    if not before and self._counts[rank]:
                        self._places[rank] = self._store.get(_key(rank, "place")).decode()
                self._over.wait(self._tick)

    def _watch(self) -> None:
        seen, silent = dict(self._counts), dict.fromkeys(self._counts, 0)
        while not self._over.wait(self._tick):
            for rank, count in self._counts.items():
                silent[rank] = silent[rank] + 1 if count == seen[rank] else 0
                seen[rank] = count
            lost = [rank for rank, ticks in silent.items() if ticks > _BEATS]
            # Nothing is known of others while the store does not answer.
            if self._rank in lost or (lost and silent[self._rank] < _BEATS / 2):
                self._end(lost)

    def _end(self, lost: list[int]) -> None:
        """The end of this process."""
        speaker = f"rank {self._rank}: " if self._rank else ""
        what = ", ".join(f"rank {rank} ({self._places[rank]})" for rank in lost)
        if self._rank in lost:
            what = f"torchrun's store at {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        line = (
            f"verigym train: {speaker}no sign of life for {self._patience / 60:.3g} min from {what}: the process is "
            "stopped, or its machine does not answer; go on from the last checkpoint with --resume\n"
        )
        os.write(2, line.encode())
        os._exit(2)


def _key(rank: int, what: str) -> str:
    return f"heartbeat/{rank}/{what}"
