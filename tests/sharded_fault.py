"""`torchrun sharded_fault.py RANK FAULT train ...`: the command line, in which something happens to a rank.

That is in its second update, while the others are in the middle of the same one (error, kill, ask, freeze), or at its
end, before the next call (still, busy). A rank that stands still is lost after 12 seconds here; one is busy for longer.
"""

import os
import signal
import sys
import time
from datetime import timedelta
from itertools import count
from typing import Any

from verigym import ranks
from verigym.agents.learners.grpo import GRPO
from verigym.cli import main
from verigym.tasks.errors import RunError

ranks._PATIENCE = timedelta(seconds=12)
rank, fault = sys.argv[1:3]
SIGNALS = {"kill": signal.SIGKILL, "ask": signal.SIGQUIT, "freeze": signal.SIGSTOP}
update, calls = GRPO.update, count(1)


def fail(self: GRPO, *arguments: Any) -> dict[str, float]:
    if next(calls) != 2:
        return update(self, *arguments)
    if fault == "error":
        raise RunError("its disk is full")
    if fault in SIGNALS:
        os.kill(os.getpid(), SIGNALS[fault])
    metrics = update(self, *arguments)
    if fault == "still":
        os.kill(os.getpid(), signal.SIGSTOP)
    if fault == "busy":
        time.sleep(18)
    return metrics


if os.environ["RANK"] == rank:
    GRPO.update = fail
sys.exit(main(sys.argv[3:]))
