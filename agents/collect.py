"""Playing episodes: environments step in threads while the engine generates, token-exactly."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from verigym.agents._live import Env, Live, messages_of
from verigym.agents._workers import Call, Workers
from verigym.agents.agent import LocalAgent
from verigym.agents.chat import Chat
from verigym.agents.engines.engine import Generation, StopReason
from verigym.agents.env_workers import EnvWorkers
from verigym.agents.episode import Episode, Plan, Truncation
from verigym.envs.mixture import EnvSpec
from verigym.tasks import activity
from verigym.tasks.errors import ConfigError, EnvClosedError, EnvLostError, RunInterrupted
from verigym.verifiers.verdict import Outcome, Verdict

_LOSSES = 3  # of environments' workers, in one episode, after which the episode itself may be what ends them


class EnvPool:
    """Environments by spec, made when needed and used again after an episode."""

    def __init__(self, specs: Sequence[EnvSpec], make: Callable[[EnvSpec], Env] | None = None) -> None:
        self.specs, self._make = list(specs), make or (lambda spec: spec.make())  # which a kind of spec may override
        self._free: list[list[Env]] = [[] for _ in self.specs]
        self._lock = threading.Lock()

    def acquire(self, index: int) -> Env:
        """A free environment of spec `index`; made anew if there is none."""
        with self._lock:
            if self._free[index]:
                return self._free[index].pop()
        return self._make(self.specs[index])

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
    with an INFRA_ERROR. With `env_workers` environments are in workers on a cluster; an episode whose worker is lost is
    played again from its start, up to three times, the last time with no other beside it. Raises RunInterrupted when
    `interrupted()` turns true. With `snapshots` episodes keep those of their environment before each turn, for forks;
    raises ConfigError for an environment that has none.
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
        env_workers: EnvWorkers | None = None,
    ) -> None:
        self.env_workers = env_workers
        make, threads = (env_workers.make, env_workers.calls) if env_workers else (None, 64)
        self.agent, self.pool, self.snapshots = agent, EnvPool(envs, make), snapshots
        if snapshots:
            self._require_snapshots()
        self.deterministic, self.concurrency, self.interrupted = deterministic, concurrency, interrupted
        self.workers = Workers(min(concurrency, threads), timeout=env_timeout)
        self._ids = 0
        self.progress = (0, 0)

    def waiting(self) -> dict[str, int]:
        """What running episodes wait for: the engine's tokens or an environment's answer."""
        return {"engine": self.agent.engine.pending, "environment": self.workers.running}

    def collect(self, plans: Sequence[Plan], on_progress: Callable[[], None] = lambda: None) -> list[Episode]:
        """The episodes, in the order of the plans."""
        collection = Collection(self, on_progress)
        numbers = collection.add(plans)
        try:
            collection.lockstep() if self.deterministic else collection.overlapped()
        except BaseException:
            collection.abandon()
            raise
        return collection.take(numbers)

    def close(self) -> None:
        """Closes the environments and lets the threads end."""
        self.pool.close()
        self.workers.close()

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    def _require_snapshots(self) -> None:
        for spec in self.pool.specs:
            env = spec.make()  # in this process: a worker may be lost
            env.close()
            if not hasattr(env.unwrapped, "snapshot"):
                raise ConfigError(f"{spec.id} cannot be forked: it has no method snapshot()")


class Collection:
    """Episodes in play: plans are added, and episodes taken when they have ended, at any time.

    Driven by the thread that drives the engine. Episodes are numbered in the order in which their plans were added.
    """

    def __init__(self, owner: Collector, on_progress: Callable[[], None] = lambda: None) -> None:
        self.owner, self.engine, self.on_progress = owner, owner.agent.engine, on_progress
        self.waiting: deque[Live] = deque()  # not begun
        self.running: dict[int, Live] = {}  # by request id
        self.ended: dict[int, Episode] = {}  # by number
        self.prompts: dict[str, list[int]] = {}  # ids by what was asked
        self._numbers = count()
        activity.announce(self)

    def add(self, plans: Sequence[Plan]) -> list[int]:
        """Plans to play after those that wait; the numbers of their episodes."""
        specs, owner = self.owner.pool.specs, self.owner
        numbers = [next(self._numbers) for _ in plans]
        self.waiting.extend(
            Live(number, plan, specs[plan.env].id, owner.agent.chat, snapshots=owner.snapshots)
            for number, plan in zip(numbers, plans, strict=True)
        )
        return numbers

    def take(self, numbers: Sequence[int]) -> list[Episode]:
        """Episodes that have ended, which are forgotten here."""
        self.prompts.clear()  # whoever asks the same again computes the same ids
        return [self.ended.pop(number) for number in numbers]

    def playing(self) -> tuple[list[activity.Playing], int]:
        """What the episodes in play wait for, and how many are not begun; callable from any thread."""
        calls, drawn, remote = self.owner.workers.open_calls(), self.engine.drawn(), self.owner.env_workers
        elsewhere = remote.waits() if remote else {}
        running = [live.playing(calls.get(live), drawn, elsewhere) for live in self.running.copy().values()]
        return running, len(self.waiting)

    def overlapped(self) -> None:
        """Plays to the end; whoever is ready goes on."""
        while self.waiting or self.running:
            self.advance()

    def advance(self, *, begin: bool = True) -> None:
        """One step of the engine, and of every environment that has answered; without either, a short wait.

        Raises RunInterrupted. Without `begin` no episode is begun.
        """
        self._check()
        while begin and self._may_begin():
            self._reset(self.waiting.popleft())
        for call in self.owner.workers.take(0.0 if self.engine.pending else 0.1):
            self._go_on(call)
        for generation in self.engine.step() if self.engine.pending else ():
            self._step(generation)

    def lockstep(self) -> None:
        """Plays to the end, in rounds."""
        while self.waiting:
            wave: list[Live] = []
            while self._may_begin():
                wave.append(self.waiting.popleft())
                self._reset(wave[-1])
            order = {live.request_id: index for index, live in enumerate(wave)}
            while self._answers():
                finished: list[Generation] = []
                while self.engine.pending:
                    self._check()
                    finished += self.engine.step()
                for generation in sorted(finished, key=lambda generation: order[generation.id]):
                    self._step(generation)

    def gaps(self, taken: Sequence[Episode] = (), *, most: int = 2) -> NDArray[np.float64]:
        """|score - log-probability|, in nats, of the tokens that the engine's present weights sampled.

        They are those of `most` episodes in play, ended, or `taken`; those that older weights began come first.
        The engine computes the scores anew, without the keys and values with which the tokens were sampled.
        """
        playing = [(live.ids, live.logprobs, live.versions) for live in self.running.values()]
        ended = [(one.token_ids.tolist(), one.logprobs, one.versions) for one in (*self.ended.values(), *taken)]
        rows = [(ids, np.array(logprobs), np.array(versions)) for ids, logprobs, versions in (*playing, *ended)]
        version, limit = self.engine.version, self.engine.max_context
        fresh = [row for row in rows if version in row[2] and len(row[0]) < limit]
        oldest = sorted(fresh, key=lambda row: int(row[2][row[2] >= 0].min()))[:most]
        scores = self.engine.score([ids for ids, _, _ in oldest], self.owner.agent.temperature)
        gaps = [
            np.abs(score - logprobs[1:])[versions[1:] == version]
            for score, (_, logprobs, versions) in zip(scores, oldest, strict=True)
        ]
        return np.concatenate([*gaps, np.zeros(0)])

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
        self.waiting.clear()
        self.owner.workers.abandon()
        for request_id, live in self.running.items():
            live.given_up = True
            self.engine.cancel(request_id)
            self.engine.release(request_id)
            if live.env is not None:
                _close_in_background(live.env)

    def _check(self) -> None:
        if self.owner.interrupted():
            raise RunInterrupted("interrupted while collecting episodes")

    def _may_begin(self) -> bool:
        """Whether the next episode may begin: one that was lost so often that the next loss is taken for its own fault
        is played alone, so that it is."""
        if not self.waiting:
            return False
        alone = any(live.lost >= _LOSSES for live in (self.waiting[0], *self.running.values()))
        return len(self.running) < (1 if alone else self.owner.concurrency)

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
        if isinstance(call.error, EnvLostError) and live.lost < _LOSSES:
            self._begin_again(live)
            return
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

    def _begin_again(self, live: Live) -> None:
        """The environment was lost with its worker; nothing of the episode is kept."""
        self.engine.release(live.request_id)
        del self.running[live.request_id]
        again = Live(live.index, live.plan, live.env_id, live.chat, snapshots=self.owner.snapshots)
        again.lost = live.lost + 1
        if again.lost < _LOSSES:
            self.waiting.appendleft(again)
        else:
            self.waiting.append(again)

    def _fail(self, live: Live, error: BaseException) -> None:
        """The environment broke: its episode is unscorable, and it is not used again."""
        live.given_up = True
        if live.env is not None:
            _close_in_background(live.env)
            live.env = None
        verdict = Verdict.infra_error(f"environment {live.env_id} failed: {type(error).__name__}: {error}")
        self._end(live, live.episode(verdict, Truncation.FAILURE))

    def _end(self, live: Live, episode: Episode) -> None:
        self.ended[live.index] = episode
        self.engine.release(live.request_id)
        del self.running[live.request_id]
        if live.env is not None:
            self.owner.pool.give_back(live.plan.env, live.env)
            live.env = None
        self.owner.progress = (len(self.ended), len(self.ended) + len(self.running) + len(self.waiting))
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
