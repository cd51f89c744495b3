"""`torchrun sharded_fault.py RANK error|kill|ask train ...`: the command line, in which a rank fails, or is asked.

That is in its second update; the others are in the middle of the same one then.
"""

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
        if sys.argv[2] == "error":
            raise RunError("its disk is full")
        os.kill(os.getpid(), signal.SIGKILL if sys.argv[2] == "kill" else signal.SIGQUIT)
    return update(self, *arguments)


if os.environ["RANK"] == sys.argv[1]:
    GRPO.update = fail
sys.exit(main(sys.argv[3:]))
