"""How fast function calls are judged and the desk is played on one core, beside a mere comparison of JSON.

    python benchmarks/function_calls.py --seconds 3

CPU time of this process. Verdicts: the best of five passes over the same calls, one call, right or wrong in turn.
Desk: a step is a turn of the gold episode, its calls, the reply of the user and, at the end, the verdict; the reset,
which makes the task and its world, is in the time, too.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import gymnasium as gym

from verigym import verifiers
from verigym.tasks import Task, desk
from verigym.tasks.canonical import render_call
from verigym.verifiers import Submission

CALLS = 2000
PASSES = 5
BOOK = {
    "name": "hotels.book",
    "description": "Books a room.",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer"},
            "price": {"type": "float"},
            "extras": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["city", "nights"],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="CPU time for each figure of the desk")
    seconds = parser.parse_args().seconds
    plain = json_comparisons()
    print("| figure | per second | of plain JSON |\n|---|---|---|")
    print(f"| json.loads and == | {plain:.0f} | 1 |")
    for policy in ("strict", "bfcl"):
        rate = verdicts(policy)
        print(f"| verdicts, {policy} | {rate:.0f} | {rate / plain:.3f} |")
    for level in range(1, len(desk.LEVELS) + 1):
        print(f"| desk steps, level {level} | {desk_steps(level, seconds):.0f} | |")


def verdicts(policy: str) -> float:
    """Verdicts per second, each of a text and a task that were not seen before in the pass."""
    verifier = verifiers.make("call_match", policy=policy)
    pairs = [(Submission(render_call(BOOK["name"], given)), task(number)) for number, given in enumerate(made())]
    assert [verdict.reward for verdict in verifier.verify_many(pairs[:2])] == [1.0, 0.0]
    return rate(lambda: verifier.verify_many(pairs))


def json_comparisons() -> float:
    """Comparisons per second of the same calls with one right answer: what no grader can be faster than."""
    rows = [(json.dumps({"name": BOOK["name"], "arguments": given}), gold(i)) for i, given in enumerate(made())]
    return rate(lambda: [json.loads(text)["arguments"] == right for text, right in rows])


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


def made() -> list[dict[str, object]]:
    """The arguments of the calls: every second one has a night too many."""
    return [{**gold(number), "nights": number % 30 + number % 2} for number in range(CALLS)]


def gold(number: int) -> dict[str, object]:
    return {"city": f"City {number}", "nights": number % 30, "price": number / 4, "extras": ["breakfast", "bed"]}


def task(number: int) -> Task:
    allowed = {name: [value] for name, value in gold(number).items()}
    return Task(str(number), "", [{BOOK["name"]: {**allowed, "price": [number / 4, ""]}}], {"tools": [BOOK]})


def rate(run: Callable[[], object]) -> float:
    """Calls per second of CPU time, in the fastest pass."""
    seconds = []
    for _ in range(PASSES):
        started = time.process_time()
        run()
        seconds.append(time.process_time() - started)
    return CALLS / min(seconds)


if __name__ == "__main__":
    main()
