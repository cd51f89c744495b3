"""A learner's state on disk through torch.distributed.checkpoint: what some ranks wrote, any number of ranks reads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from verigym.agents.learners.sharding import ALONE, Ranks
from verigym.tasks.errors import RunError


class Stateful(Protocol):
    """`state_dict` is nested dictionaries of tensors and plain values, always the same ones and of the same shapes."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save_state(path: str | Path, learner: Stateful, ranks: Ranks = ALONE) -> None:
    """Writes a folder, of which each rank writes its shards. Every rank calls it; it returns when all is written."""
    with _quiet():
        save(learner.state_dict(), checkpoint_id=path, no_dist=ranks.size == 1)


def load_state(path: str | Path, learner: Stateful, ranks: Ranks = ALONE) -> None:
    """Sets a learner to the state in a folder, each rank its shards. Every rank calls it.

    Unpickles what the folder says of itself: load only what you wrote. Raises RunError for a folder that has not all
    of what the learner needs.
    """
    if not (Path(path) / ".metadata").is_file():
        raise RunError(f"no state of a learner in '{path}': the checkpoint is not whole, or of an older verigym")
    state = learner.state_dict()
    try:
        with _quiet():
            load(state, checkpoint_id=path, no_dist=ranks.size == 1)
    except CheckpointException as error:
        reason = " ".join(str(next(iter(error.failures.values()))[0]).split())
        raise RunError(f"'{path}' does not hold this learner's state: {reason}") from error
    learner.load_state_dict(state)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warning that one process reads and writes alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
