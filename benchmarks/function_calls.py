"""Speed of function calls: steps per second of one core (its CPU time) on the desk, at each level.

    python benchmarks/function_calls.py [--seconds 3]

A step is a turn of the gold episode, its calls, the user's reply and, at the end, the verdict; making the task and
its world at the reset is in the time, too.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import gymnasium as gym
import tyro

import verigym
from verigym.tasks import desk


@dataclass(frozen=True)
class Options:
    """Rates of one core."""

    seconds: float = 3.0
    """For each line."""


def desk_steps(level: int, seconds: float) -> float:
    """Steps per second of CPU time over gold episodes, one after the other."""
    env = gym.make("verigym/Desk-v0", level=level).unwrapped
    golds = [(task.id, env.gold_episodes(task)[0]) for task in env.tasks[:500]]
    steps, started = 0, time.process_time()
    while time.process_time() < started + seconds:
        task_id, turns = golds[steps % len(golds)]
        env.reset(seed=0, options={"task": task_id})
        for turn in turns:
            *_, info = env.step(turn)
        assert info["verdict"].reward == 1.0
        steps += len(turns)
    return steps / (time.process_time() - started)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    print(f"verigym {verigym.__version__}, {options.seconds:g} s of one core each")
    for level in range(1, len(desk.LEVELS) + 1):
        print(f"desk level {level}: {desk_steps(level, options.seconds):,.0f} steps/s (asked: 2,000)")


if __name__ == "__main__":
    main()
