"""How fast worlds are reset and stepped on one core: the desk, and tau-bench's shop and airline over their data bases.

    python benchmarks/worlds.py --tau PATH --seconds 3

CPU time of this process, over gold episodes, one after the other. World: to make it, and the gold calls in it, with the
making in the time. Environment: `reset`, and `step` with one turn (its calls, or the user's reply and, at the end, the
verdict), with the reset in the time. Beside them stands a deep copy of the data base, which is what a reset costs that
does not share it.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from itertools import count

import gymnasium as gym

from verigym.envs.world import WorldEnv
from verigym.tasks import Task
from verigym.tasks.worlds import world_of
from verigym.verifiers.state import calls_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tau", help="folder with tau-bench's data; without it only the desk is measured")
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU time for each figure")
    arguments = parser.parse_args()
    print("| world | tasks | reset, ms | deep copy, ms | calls/s | environment reset, ms | environment steps/s |")
    print("|---|---|---|---|---|---|---|")
    for name, env in environments(arguments.tau):
        made, copied, calls, resets, steps = figures(env, arguments.seconds)
        shown = f"{1e3 / made:.4f} | {1e3 / copied:.2f} | {calls:.0f} | {1e3 / resets:.3f} | {steps:.0f}"
        print(f"| {name} | {len(env.tasks)} | {shown} |", flush=True)


def environments(tau: str | None) -> Iterator[tuple[str, WorldEnv]]:
    yield "desk, level 5", gym.make("verigym/Desk-v0", level=5).unwrapped
    if tau:
        yield "tau retail, train", gym.make("verigym/TauRetail-v0", source=tau).unwrapped
        yield "tau retail, test", gym.make("verigym/TauRetail-v0", source=tau, split="test").unwrapped
        yield "tau airline, test", gym.make("verigym/TauAirline-v0", source=tau).unwrapped


def figures(env: WorldEnv, seconds: float) -> list[float]:
    """Per second: worlds made, data bases copied, calls in worlds, resets, and steps."""
    tasks = list(env.tasks[:200])
    golds = {task.id: (calls_of(task), env.gold_episodes(task)[0]) for task in tasks}

    def make(task: Task) -> int:
        world_of(task)
        return 1

    def copy_base(task: Task) -> int:
        copy.deepcopy(dict(task.metadata["state"]))
        return 1

    def call(task: Task) -> int:
        world, (calls, _) = world_of(task), golds[task.id]
        for name, arguments in calls:
            world.call(name, arguments)
        return len(calls)

    def reset(task: Task) -> int:
        env.reset(options={"task": task.id})
        return 1

    def play(task: Task) -> int:
        env.reset(seed=0, options={"task": task.id})
        for turn in golds[task.id][1]:
            *_, info = env.step(turn)
        assert info["verdict"].reward == 1.0
        return len(golds[task.id][1])

    return [rate(run, tasks, seconds) for run in (make, copy_base, call, reset, play)]


def rate(run: Callable[[Task], int], tasks: list[Task], seconds: float) -> float:
    """What `run` did per second of CPU time, by its own count, with the tasks in turn."""
    done, started = 0, time.process_time()
    for number in count():
        done += run(tasks[number % len(tasks)])
        if time.process_time() >= started + seconds:
            break
    return done / (time.process_time() - started)


if __name__ == "__main__":
    main()
