"""Generated errands at a desk of orders, meetings, messages and files, for an agent with tools and a scripted user.

| level | the user asks for | turns | chance |
|---|---|---|---|
| 1 | the price or the day of an order, or to cancel it | 2 | 0.003 |
| 2 | one thing of any kind | 2 | 0.015 |
| 3 | two or three things at once; one of them may be impossible | 2 | 0.001 |
| 4 | one thing that takes another to be looked up, and one with a fact left out | 4 | 0.001 |
| 5 | all of that over four requests, with a change of mind | 10 | 0.001 |

A task of level 1: the prompt "Tell me the price of order 412.", and a correct episode

    <tool_call>{"name": "find_order", "arguments": {"order": 412}}</tool_call>
    [price of order 412: 30]

The target has such an episode in `turns`, in `tell` what the user must be told, and in `seen` what must be looked at
for that. The metadata has the world's start and the user's lines. What is impossible never stands alone, so that to
refuse everything earns nothing. Train and test never share a request. Chance is the share of the most common request,
on the worse of the two splits: counted at the levels 1 (532 requests are test) and 2, a bound above.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from verigym.tasks import _desk_jobs as jobs
from verigym.tasks._desk_jobs import Call, Job, Scene
from verigym.tasks._generate import generator, make_set, split_by, whole_number
from verigym.tasks.canonical import render_call
from verigym.tasks.task import Task, TaskSet

_CHANCE = (3e-3, 0.015, 1e-3, 1e-3, 1e-3)

Lines = list[list[Job]]
"""For each thing that the user says, the jobs that it asks for."""


def load(split: str = "train", *, level: int = 1, seed: int = 0, size: int | None = None) -> TaskSet:
    """`size` errands of one level (default: 10,000 train, 1,000 test), a pure function of the arguments.

    A larger size only adds tasks. Raises UnknownNameError for the split, ConfigError for the other options.
    """
    level = whole_number("desk", "level", level, 1, len(LEVELS))
    return make_set(_make, name="desk", split=split, seed=seed, level=level, size=size)


def chance(level: int = 1) -> float:
    """The share of the most common request at this level, which is what always playing its episode earns."""
    return _CHANCE[whole_number("desk", "level", level, 1, len(LEVELS)) - 1]


def demonstrate(task: Task, rng: np.random.Generator, *, right_share: float = 0.2) -> list[str]:
    """The agent's turns in one episode to imitate, in canonical syntax.

    The gold episode with probability `right_share`. Else, at level 1, one of the three things that can be done with
    the order, each as likely as the others, whatever the user asked for; at other levels the gold episode without its
    calls. So a model learns the forms of calls and messages, and has no more than a hint of which of them pays.
    """
    turns = task.target["turns"]
    if rng.random() >= right_share:
        turns = _anything(task, rng) if task.metadata["level"] == 1 else [t for t in turns if isinstance(t, str)]
    return [turn if isinstance(turn, str) else "".join(render_call(**call) for call in turn) for turn in turns]


def _anything(task: Task, rng: np.random.Generator) -> list[Any]:
    """The turns of one of the things that can be done with the order of a task of level 1."""
    scene = Scene(rng, task.metadata["state"])
    return _episode([[scene.pick(jobs.ON_ORDERS)(scene, task.metadata["order"])]])


def _one_order(scene: Scene) -> Lines:
    return [[jobs.on_order(scene)]]


def _one(scene: Scene) -> Lines:
    return [scene.draw(jobs.SIMPLE)]


def _several(scene: Scene) -> Lines:
    others = scene.draw(jobs.SIMPLE, scene.number(1, 2))
    return [_shuffled(scene, [*scene.draw(scene.pick((jobs.SIMPLE, jobs.IMPOSSIBLE))), *others])]


def _steps(scene: Scene) -> Lines:
    first, _ = scene.pick(jobs.VAGUE)(scene)
    return [_shuffled(scene, [first, *scene.draw(jobs.CHAINED)])]


def _errands(scene: Scene) -> Lines:
    """Ten turns: three, three, two and two."""
    vague, changed = scene.pick(jobs.VAGUE)(scene)
    return [
        _shuffled(scene, scene.draw(jobs.CHAINED, 2)),
        _shuffled(scene, [vague, *scene.draw(jobs.SIMPLE)]),
        [changed],
        _shuffled(scene, [*scene.draw(jobs.IMPOSSIBLE), *scene.draw(jobs.SIMPLE, 2)]),
    ]


def _shuffled(scene: Scene, several: list[Job]) -> list[Job]:
    return [several[index] for index in scene.rng.permutation(len(several))]


LEVELS: tuple[Callable[[Scene], Lines], ...] = (_one_order, _one, _several, _steps, _errands)
_FIRST_TOOLS = ("find_order", "cancel_order")


def _make(index: int, *, name: str, split: str, seed: int, level: int, prefix: str) -> Task:
    rng = generator(seed, index, f"{name}/{level}/{split}")
    while True:
        scene = Scene(rng)
        lines = LEVELS[level - 1](scene)
        user = [_line(several) for several in lines]
        if split_by("\n".join(text for line in user for text in (line["says"], *line["facts"].values()))) == split:
            break
    metadata = {"level": level, "world": "desk", "state": scene.state, "user": user}
    if level == 1:
        metadata |= {"tools": _FIRST_TOOLS, "order": int(next(iter(scene.orders)))}
    scene.fill(orders_only=level == 1)
    return Task(f"{prefix}/{index}", user[0]["says"], _target(lines), MappingProxyType(metadata))


def _line(several: Sequence[Job]) -> dict[str, Any]:
    """What the user says, and the facts he gives when asked."""
    *others, last = [job.says for job in several]
    says = f"{', '.join(others)} and {last}" if others else last
    facts = {word: fact for job in several for word, fact in job.facts.items()}
    return {"says": f"{says[0].upper()}{says[1:]}.", "facts": facts}


def _target(lines: Lines) -> dict[str, Any]:
    """A right episode, what must be told, and the records that cannot be known without a look at them."""
    turns, several = _episode(lines), [job for jobs_of_line in lines for job in jobs_of_line]
    calls = [call for job in several for call in (*job.first, *job.then) if call["name"] in jobs.SHOWS]
    seen = [[jobs.SHOWS[call["name"]], *map(str, call["arguments"].values())] for call in calls]
    tell = {name: value for job in several for name, value in job.tell.items()}
    return {"turns": turns, **({"tell": tell} if tell else {}), **({"seen": seen} if seen else {})}


def _episode(lines: Lines) -> list[list[Call] | str]:
    """The right turns: for each line questions, calls, the calls that follow from them, and what is told."""
    turns: list[list[Call] | str] = []
    for several in lines:
        questions = " ".join(job.question for job in several if job.question)
        rounds = ([call for job in several for call in job.first], [call for job in several for call in job.then])
        told = " ".join(f"[{name}: {value}]" for job in several for name, value in job.tell.items())
        turns += [questions, *rounds] if questions else rounds
        turns.append(told or "Done.")
    return [turn for turn in turns if turn]
