"""`torchrun sharded_fault.py error|kill train ...`: the command line, in which rank 1 fails in its second update."""

import os
import signal
import sys
from itertools import count
from typing import Any

from verigym.agents.learners.grpo import GRPO
from verigym.cli import main
from verigym.tasks.errors import RunError

update, calls = GRPO.update, count(1)


def fail(self: GRPO, *arguments: Any) -> dict[str, float]:
    if next(calls) == 2:
        if sys.argv[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RunError("its disk is full")
    return update(self, *arguments)


if os.environ["RANK"] == "1":
    GRPO.update = fail
sys.exit(main(sys.argv[2:]))
