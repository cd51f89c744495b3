"""Playing episodes: environments step in threads while the engine generates, token-exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from verigym.agents._live import Env, Live, messages_of
from verigym.agents._workers import Call, Workers
from verigym.agents.agent import LocalAgent
from verigym.agents.chat import Chat
from verigym.agents.engines.engine import Generation, StopReason
from verigym.agents.episode import Episode, Plan, Truncation
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError, EnvClosedError, RunInterrupted
from verigym.verifiers.verdict import Outcome, Verdict


class EnvPool:
    """Environments by spec, made when needed and used again after an episode."""

    def __init__(self, specs: Sequence[EnvSpec]) -> None:
        self.specs = list(specs)
        self._free: list[list[Env]] = [[] for _ in self.specs]
        self._lock = threading.Lock()

    def acquire(self, index: int) -> Env:
        """A free environment of spec `index`; made anew if there is none."""
        with self._lock:
            if self._free[index]:
                return self._free[index].pop()
        return self.specs[index].make()

    def give_back(self, index: int, env: Env) -> None:
        with self._lock:
            self._free[index].append(env)

    def close(self) -> None:
        """Closes the free environments."""
        with self._lock:
            free = [env for envs in self._free for env in envs]
            self._free = [[] for _ in self.specs]
        for env in free:
            env.close()


class Collector:
    """Plays planned episodes with an agent.

    Overlapped (the default): whoever is ready goes on; the make-up of batches, and so the last digits of
    log-probabilities, vary from run to run. `deterministic` (lockstep): rounds of generation and of environment
    steps in the order of the plans; the same plans give the same bits.

    An environment that raises, or does not answer within `env_timeout` seconds, loses its own episode, which ends
    with an INFRA_ERROR. Raises RunInterrupted when `interrupted()` turns true. With `snapshots` episodes keep those of
    their environment before each turn, for forks; raises ConfigError for an environment that has none.
    """

    def __init__(
        self,
        agent: LocalAgent,
        envs: Sequence[EnvSpec],
        *,
        deterministic: bool = False,
        concurrency: int = 256,
        env_timeout: float = 300.0,
        interrupted: Callable[[], bool] = lambda: False,
        snapshots: bool = False,
    ) -> None:
        self.agent, self.pool, self.snapshots = agent, EnvPool(envs), snapshots
        if snapshots:
            self._require_snapshots()
        self.deterministic, self.concurrency, self.interrupted = deterministic, concurrency, interrupted
        self.workers = Workers(min(concurrency, 64), timeout=env_timeout)
        self._ids = 0
        self.progress = (0, 0)

    def waiting(self) -> dict[str, int]:
        """What running episodes wait for: the engine's tokens or an environment's answer."""
        return {"engine": self.agent.engine.pending, "environment": self.workers.running}

    def collect(self, plans: Sequence[Plan], on_progress: Callable[[], None] = lambda: None) -> list[Episode]:
        """The episodes, in the order of the plans."""
        run = _Collection(self, plans, on_progress)
        try:
            return run.lockstep() if self.deterministic else run.overlapped()
        except BaseException:
            run.abandon()
            raise

    def close(self) -> None:
        """Closes the environments and lets the threads end."""
        self.pool.close()
        self.workers.close()

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    def _require_snapshots(self) -> None:
        for index, spec in enumerate(self.pool.specs):
            env = self.pool.acquire(index)
            self.pool.give_back(index, env)
            if not hasattr(env.unwrapped, "snapshot"):
                raise ConfigError(f"{spec.id} cannot be forked: it has no method snapshot()")


class _Collection:
    """One call of `Collector.collect`."""

    def __init__(self, owner: Collector, plans: Sequence[Plan], on_progress: Callable[[], None]) -> None:
        self.owner, self.engine, self.on_progress = owner, owner.agent.engine, on_progress
        specs = owner.pool.specs
        self.lives = [
            Live(index, plan, specs[plan.env].id, owner.agent.chat, snapshots=owner.snapshots)
            for index, plan in enumerate(plans)
        ]
        self.episodes: dict[int, Episode] = {}
        self.running: dict[int, Live] = {}  # by request id
        self.prompts: dict[str, list[int]] = {}  # ids by what was asked

    def overlapped(self) -> list[Episode]:
        queue = list(reversed(self.lives))
        while len(self.episodes) < len(self.lives):
            self._check()
            while queue and len(self.lives) - len(queue) - len(self.episodes) < self.owner.concurrency:
                self._reset(queue.pop())
            for call in self.owner.workers.take(0.0 if self.engine.pending else 0.1):
                self._go_on(call)
            for generation in self.engine.step() if self.engine.pending else ():
                self._step(generation)
        return [self.episodes[index] for index in range(len(self.lives))]

    def lockstep(self) -> list[Episode]:
        for start in range(0, len(self.lives), self.owner.concurrency):
            wave = self.lives[start : start + self.owner.concurrency]
            for live in wave:
                self._reset(live)
            while self._answers():
                requests = [live.request_id for live in wave if live.index not in self.episodes]
                order = {request_id: index for index, request_id in enumerate(requests)}
                finished: list[Generation] = []
                while self.engine.pending:
                    self._check()
                    finished += self.engine.step()
                for generation in sorted(finished, key=lambda generation: order[generation.id]):
                    self._step(generation)
        return [self.episodes[index] for index in range(len(self.lives))]

    def _answers(self) -> bool:
        """Waits for every environment, goes on in the order of the plans; whether any episode asks for tokens."""
        calls: list[Call] = []
        while self.owner.workers.running:
            self._check()
            calls += self.owner.workers.take(0.1)
        for call in sorted(calls, key=lambda call: call.key.index):
            self._go_on(call)
        return self.engine.pending > 0

    def abandon(self) -> None:
        """Drops everything that runs: requests, cached keys and values, environments."""
        self.owner.workers.abandon()
        for request_id, live in self.running.items():
            live.given_up = True
            self.engine.cancel(request_id)
            self.engine.release(request_id)
            if live.env is not None and live.index not in self.episodes:
                _close_in_background(live.env)

    def _check(self) -> None:
        if self.owner.interrupted():
            raise RunInterrupted("interrupted while collecting episodes")

    def _reset(self, live: Live) -> None:
        plan = live.plan

        def reset() -> Any:
            env = self.owner.pool.acquire(plan.env)
            if live.given_up:
                env.close()
                raise EnvClosedError("the episode was given up while its environment was made")
            live.env = env
            observation, info = env.reset(seed=plan.seed, options=reset_options(env, plan))
            messages_of(observation, info)
            live.remember(env)
            return env, observation, info

        live.request_id = self.owner.next_id()
        self.running[live.request_id] = live
        self.owner.workers.submit(live, reset)

    def _go_on(self, call: Call) -> None:
        """Takes an environment's answer: the next request, or the end of the episode."""
        live: Live = call.key
        if call.error is not None:
            self._fail(live, call.error)
            return
        if live.generation is None:
            live.begin(*call.result, prompts=self.prompts)
        else:
            reward, terminated, truncated, info, new = call.result
            live.answered(reward, new, terminated or truncated)
            if terminated or truncated:
                verdict = info.get("verdict") or verdict_of(sum(turn.reward for turn in live.turns))
                self._end(live, live.episode(verdict, live.truncation(info) if truncated else None))
                return
        request = live.request(self.owner.agent)
        if request is not None:
            self.engine.submit(request)
            return
        live.forget_answer()
        full = live.fills_context
        what = f"the model's context of {self.engine.max_context} tokens" if full else "the budget of tokens"
        verdict = Verdict(0.0, Outcome.UNPARSEABLE, f"the conversation fills {what}; there is no room for a turn")
        self._end(live, live.episode(verdict, Truncation.CONTEXT if full else Truncation.TOKENS))

    def _step(self, generation: Generation) -> None:
        live = self.running[generation.id]
        self.owner.workers.submit(live, live.absorb(generation))

    def _fail(self, live: Live, error: Exception) -> None:
        """The environment broke: its episode is unscorable, and it is not used again."""
        live.given_up = True
        if live.env is not None:
            _close_in_background(live.env)
            live.env = None
        verdict = Verdict.infra_error(f"environment {live.env_id} failed: {type(error).__name__}: {error}")
        self._end(live, live.episode(verdict, Truncation.FAILURE))

    def _end(self, live: Live, episode: Episode) -> None:
        self.episodes[live.index] = episode
        self.engine.release(live.request_id)
        del self.running[live.request_id]
        if live.env is not None:
            self.owner.pool.give_back(live.plan.env, live.env)
            live.env = None
        self.owner.progress = (len(self.episodes), len(self.lives))
        self.on_progress()


def demonstrations(chat: Chat, specs: Sequence[EnvSpec], plans: Sequence[Plan]) -> list[Episode]:
    """Episodes in which an environment's own demonstrations are played (`TextEnv.demonstration`)."""
    envs = [spec.make() for spec in specs]
    episodes = []
    for index, plan in enumerate(plans):
        env = envs[plan.env]
        live = Live(index, plan, specs[plan.env].id, chat)
        if not hasattr(env.unwrapped, "demonstration"):
            raise ConfigError(f"{specs[plan.env].id} has no demonstrations: give it a method demonstration(rng)")
        live.begin(env, *env.reset(seed=plan.seed, options={"task": plan.task_id}), prompts={})
        rng = np.random.default_rng(plan.sampling_seed)
        for action in env.unwrapped.demonstration(rng):
            ids = tuple(chat.turn(action, live.ids))
            step = live.absorb(Generation(0, ids, (0.0,) * len(ids), (0,) * len(ids), StopReason.STOP))
            reward, terminated, truncated, info, new = step()
            live.answered(reward, new, terminated or truncated)
            if terminated or truncated:
                break
        else:
            raise ConfigError(f"the demonstration of {plan.task_id} in {specs[plan.env].id} does not end the task")
        episodes.append(live.episode(info["verdict"], live.truncation(info) if truncated else None))
    for env in envs:
        env.close()
    return episodes


def reset_options(env: Env, plan: Plan) -> dict[str, Any] | None:
    """How an environment is told where the planned episode starts."""
    if plan.start is not None:
        return {"snapshot": plan.start.snapshot}
    return {"task": plan.task_id} if hasattr(env.unwrapped, "tasks") else None


def verdict_of(total: float) -> Verdict:
    """The verdict on an environment that gives rewards and no verdict."""
    outcome = Outcome.CORRECT if total > 0 else Outcome.WRONG
    return Verdict(total, outcome, f"the environment's rewards sum to {total:g}")


def _close_in_background(env: Env) -> None:
    """Closing ends what a hanging step waits for, and may itself take long."""
    threading.Thread(target=env.close, name="verigym-close", daemon=True).start()
