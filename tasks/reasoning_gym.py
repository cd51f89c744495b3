"""Any of reasoning-gym's generators as a task set (Stojanovski et al., arXiv:2505.24760; `verigym[reasoning-gym]`).

A task of `dataset="chain_sum"`: the prompt "State the final answer to the following arithmetic problem: 4 - 3 =", the
target "1"; correct answers are `<answer>1</answer>` and `\\boxed{1}`. Some data sets have many right answers and
name none: their target is None, and only the scorer knows.

Generators and scorers run in worker processes (`_reasoning_worker`). Train and test never share a question.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from threading import Event
from types import MappingProxyType
from typing import Any

from verigym.tasks._generate import MAX_SIZE, SPLITS, whole_number
from verigym.tasks._pool import AnswerCrash, AnswerTimeout, Budget, PoolFailure, shared_pool
from verigym.tasks.errors import ConfigError, TaskDataError, UnknownNameError
from verigym.tasks.task import GeneratedTaskSet, Task, TaskSet

DEFAULT_SIZE = {"train": 1000, "test": 200}
MAKING_SECONDS = 60.0  # of CPU time for one task
SAMPLED = 64  # tasks on which the chance is measured
_WORKER = Path(__file__).with_name("_reasoning_worker.py")


def load(
    split: str = "train",
    *,
    dataset: str = "",
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    size: int | None = None,
) -> TaskSet:
    """`size` tasks (default: 1,000 train, 200 test) of reasoning-gym's data set `dataset`, with its own `config`.

    A pure function of the arguments; a larger size only adds tasks. Raises UnknownNameError for the data set, a
    field of its configuration and the split, ConfigError for a value, or if reasoning-gym is not installed.
    """
    if split not in SPLITS:
        raise UnknownNameError.of("split of 'reasoning_gym' named", str(split), SPLITS)
    seed = whole_number("reasoning_gym", "seed", seed, 0, None)
    size = whole_number("reasoning_gym", "size", DEFAULT_SIZE[split] if size is None else size, 1, MAX_SIZE)
    settings = dict(config or {})
    _check(dataset, settings)
    first = int.from_bytes(hashlib.sha256(f"reasoning-gym/{seed}".encode()).digest()[:4], "big") % 2**31
    request = {"dataset": dataset, "config": settings, "seed": first}
    prefix = f"{dataset}-{split}-seed{seed}"
    make = lru_cache(maxsize=4096)(partial(_make, request=request, split=split, prefix=prefix))
    return GeneratedTaskSet(make, size=size, name=f"reasoning_gym/{dataset}", split=split, prefix=prefix)


def ask(request: Mapping[str, Any], cancelled: Event, cpu_seconds: float) -> dict[str, Any]:
    """A worker's reply. Raises the exceptions of `_pool`, and ConfigError if reasoning-gym is not installed."""
    if find_spec("reasoning_gym") is None:
        raise ConfigError("reasoning-gym is not installed; pip install 'verigym[reasoning-gym]'")
    return shared_pool(_WORKER, "reasoning_gym").ask(request, Budget(cancelled, cpu_seconds))


def chance(task_set: TaskSet) -> float:
    """What the best of some blind answers earns on a sample: a number, or one of the most common right ones."""
    count = min(SAMPLED, len(task_set))
    tasks = [task_set[index * len(task_set) // count] for index in range(count)]
    # of other tasks than those that it is measured on, or each would be right at least once
    common = Counter(task.target for task in tasks[1::2] if task.target is not None).most_common(3)
    blind = dict.fromkeys(["0", "4", *(gold for gold, _ in common)])
    asked = tasks[::2]
    return max(sum(score(task, answer, Event()) for task in asked) / len(asked) for answer in blind)


def score(task: Task, answer: str, cancelled: Event, cpu_seconds: float = 5.0) -> float:
    """What the task's scorer pays for `answer`, from 0 to 1. Raises as `ask`."""
    entry = {name: task.metadata[name] for name in ("dataset", "config", "seed", "index")}
    reply = ask({"do": "score", **entry, "answer": answer}, cancelled, cpu_seconds)
    if "score" not in reply:
        raise PoolFailure(f"the scorer of {task.metadata['dataset']} failed: {reply.get('error')}")
    return min(max(float(reply["score"]), 0.0), 1.0)


def _check(dataset: str, config: Mapping[str, Any]) -> None:
    found = ask({"do": "describe", "dataset": dataset, "config": config}, Event(), MAKING_SECONDS)
    if "datasets" in found:
        if not dataset:
            raise ConfigError('reasoning_gym needs the name of a data set, such as dataset="chain_sum"')
        raise UnknownNameError.of("data set of reasoning-gym named", str(dataset), found["datasets"])
    if "fields" in found:
        wrong = next(name for name in config if name not in found["fields"])
        raise UnknownNameError.of(f"option of reasoning-gym's '{dataset}' named", wrong, found["fields"])
    if "problem" in found or "failed" in found:
        why = found.get("problem", found.get("error"))
        raise ConfigError(f"reasoning-gym's '{dataset}' refuses its configuration: {why}")


def _make(index: int, *, request: Mapping[str, Any], split: str, prefix: str) -> Task:
    try:
        made = ask({"do": "make", **request, "number": index, "split": split}, Event(), MAKING_SECONDS)
    except (AnswerTimeout, AnswerCrash, PoolFailure) as error:
        raise TaskDataError(f"reasoning-gym's '{request['dataset']}' makes no task {index}: {error!r}") from error
    if "failed" in made:
        raise TaskDataError(f"reasoning-gym's '{request['dataset']}' makes no task {index}: {made['error']}")
    if not made:
        raise TaskDataError(
            f"reasoning-gym's '{request['dataset']}' has too few different questions for a task {index} of {split}; "
            "give a smaller size or another config"
        )
    metadata = MappingProxyType({**request, "index": made["index"]})
    return Task(f"{prefix}/{index}", made["question"], made["answer"], metadata)
