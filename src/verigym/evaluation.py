"""How good a model is: pass rate on fixed tasks, with its confidence interval, and how reliably it passes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from verigym.agents.agent import LocalAgent, load_chat, load_model, resolve_device
from verigym.agents.attention import install
from verigym.agents.collect import Collector
from verigym.agents.conversation import converse
from verigym.agents.endpoint import EndpointAgent
from verigym.agents.engines.config import EngineConfig
from verigym.agents.engines.engine import Engine
from verigym.agents.engines.make import make_engine
from verigym.agents.engines.sync import WeightSync
from verigym.agents.env_workers import make_env_workers
from verigym.agents.episode import Episode, mean_reward
from verigym.envs.mixture import EnvSpec
from verigym.interrupts import Interrupts
from verigym.stalls import StallWatch
from verigym.task_sampler import evaluation_plans, task_ids
from verigym.tasks.activity import doing
from verigym.tasks.errors import RunError
from verigym.verifiers.verdict import Outcome


@dataclass(frozen=True)
class Evaluation:
    """pass@1 over the episodes that could be judged, of `tasks` tasks.

    `low` and `high` bound the pass rate at 95 % (Wilson's interval: sound at 0 and 1 too), as if each task had been
    played once: episodes of one task are no further evidence on other tasks.
    `pass_hat` is pass^k for k = 1, 2, ..., see `pass_hat_k`.
    """

    pass_rate: float
    low: float
    high: float
    reward: float
    tasks: int
    infra_errors: int
    pass_hat: tuple[float, ...] = ()

    def __str__(self) -> str:
        return f"{self.pass_rate:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.tasks} tasks"


@StallWatch()
def play(
    model: str | Path,
    spec: EnvSpec,
    *,
    tasks: int | None = None,
    ids: Collection[str] | None = None,
    samples: int = 1,
    seed: int = 0,
    temperature: float = 1.0,
    max_new_tokens: int = 1024,
    engine: EngineConfig = EngineConfig(),  # noqa: B008 - it is frozen
    slots: int = 256,
    deterministic: bool = False,
    device: str = "auto",
) -> list[Episode]:
    """`samples` episodes of a checkpoint on each of the first `tasks` tasks (None: all) of an environment.

    With `ids`, on those of them only. Raises ConfigError for `deterministic` with another engine than transformers.
    """
    if deterministic:
        engine.require_bits()
    plans = evaluation_plans([spec], len(task_ids(spec)) if tasks is None else tasks, seed, samples)
    plans = [plan for plan in plans if ids is None or plan.task_id in ids]
    _, chat = load_chat(model)
    device = resolve_device(device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    player = make_engine(engine, model, dtype=dtype, device=device, slots=slots)
    agent = LocalAgent(chat, player, temperature=temperature, max_new_tokens=max_new_tokens)
    workers = make_env_workers(engine.ray)
    with Interrupts() as interrupts, doing("evaluating"):
        collector = Collector(
            agent,
            [spec],
            deterministic=deterministic,
            interrupted=lambda: interrupts.requested,
            env_workers=workers,
        )
        try:
            if engine.kind == "vllm-server":
                _send(model, player, device)
            return collector.collect(plans)
        finally:
            collector.close()
            if workers is not None:
                workers.close()
            player.close()


def _send(model: str | Path, server: Engine, device: str) -> None:
    """Gives a server, which plays with whatever weights it got last, the checkpoint's. Raises SyncError."""
    policy = load_model(model, device=device)
    install(policy)
    WeightSync(policy, server).start(0)


@StallWatch()
def play_endpoint(
    agent: EndpointAgent,
    spec: EnvSpec,
    *,
    tasks: int | None = None,
    samples: int = 1,
    seed: int = 0,
    concurrency: int = 64,
) -> list[Episode]:
    """As `play`, of a model behind an endpoint; the episodes have messages and no tokens."""
    plans = evaluation_plans([spec], len(task_ids(spec)) if tasks is None else tasks, seed, samples)
    with Interrupts() as interrupts, doing("evaluating"):
        return converse(agent, [spec], plans, concurrency=concurrency, interrupted=lambda: interrupts.requested)


def summarise(episodes: Sequence[Episode]) -> Evaluation:
    """The evaluation of played episodes. Raises RunError if none could be judged."""
    judged = [episode for episode in episodes if episode.verdict.outcome is not Outcome.INFRA_ERROR]
    if not judged:
        reason = episodes[0].verdict.reason if episodes else "there were none"
        raise RunError(f"no episode of {len(episodes)} could be judged: {reason}")
    trials: dict[int, list[bool]] = defaultdict(list)
    for episode in judged:
        trials[episode.group_id].append(episode.verdict.outcome is Outcome.CORRECT)
    rate = sum(map(sum, trials.values())) / len(judged)
    low, high = wilson(rate * len(trials), len(trials))
    counts = [(sum(passed), len(passed)) for passed in trials.values()]
    pass_hat = tuple(pass_hat_k(counts, k) for k in range(1, max(total for _, total in counts) + 1))
    return Evaluation(rate, low, high, mean_reward(judged), len(trials), len(episodes) - len(judged), pass_hat)


def pass_hat_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """pass^k: the chance that k episodes on a task pass, all of them, on average over tasks (arXiv:2406.12045).

    Of each task `counts` has how many of its episodes passed, c, and how many there were, n; C(c, k) / C(n, k) is
    unbiased. A task with fewer than k episodes is left out; raises ValueError if there is no other.
    """
    shares = [math.comb(passed, k) / math.comb(total, k) for passed, total in counts if total >= k]
    if k < 1 or not shares:
        raise ValueError(f"no task was played {k} times, so there is no pass^{k}")
    return sum(shares) / len(shares)


def wilson(passed: float, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), at 95 % by default."""
    rate = passed / total
    centre = (rate + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    # At 0 and 1 the bound is the rate itself; rounding must not put it a hair beside.
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return (0.0 if passed == 0 else low), (1.0 if passed == total else high)
