"""Playing episodes: environments step in threads while the engine generates, token-exactly."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from verigym.agents._workers import Call, Workers
from verigym.agents.agent import LocalAgent
from verigym.agents.chat import Chat
from verigym.agents.engines.engine import Generation, Request, StopReason
from verigym.agents.episode import Episode, Plan, Truncation, Turn, derive_seed
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError, EnvClosedError, RunInterrupted
from verigym.verifiers.verdict import Outcome, Verdict

Env = gym.Env[str, str]


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


class _Live:
    """An episode that is being played: it turns what the environment says into requests, and back."""

    def __init__(self, index: int, plan: Plan, env_id: str, chat: Chat, *, snapshots: bool = False) -> None:
        self.index, self.plan, self.env_id, self.chat = index, plan, env_id, chat
        self.snapshots: list[Mapping[str, Any]] | None = [] if snapshots else None
        self.request_id = 0
        self.env: Env | None = None
        self.ids: list[int] = []
        self.mask: list[bool] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.turns: list[Turn] = []
        self.messages: list[dict[str, Any]] = []
        self.tools: Sequence[dict[str, Any]] = ()
        self.generation: Generation | None = None
        self.limit = 0
        self.fills_context = False
        self.given_up = False

    def begin(self, env: Env, observation: str, info: Mapping[str, Any], *, prompts: dict[str, list[int]]) -> None:
        """Takes the environment's first messages. `prompts` keeps their ids for the other members of the group."""
        self.env = env
        self.messages = _messages(observation, info)
        self.tools = info.get("tools") or ()
        if self.plan.start is not None:
            self._feed(self.plan.start.token_ids.tolist())
            return
        asked = repr((self.messages, self.tools))
        if asked not in prompts:
            prompts[asked] = self.chat.prompt(self.messages, self.tools)
        self._feed(prompts[asked])

    def remember(self, env: Env) -> None:
        """Takes the environment's snapshot before a turn, in the environment's own thread."""
        if self.snapshots is not None:
            self.snapshots.append(env.unwrapped.snapshot())  # type: ignore[attr-defined]

    def request(self, agent: LocalAgent) -> Request | None:
        """The next turn's request; None if the conversation fills the model's context."""
        room = agent.engine.max_context - len(self.ids)
        left = getattr(self.env.unwrapped, "tokens_left", lambda: None)() if self.env else None
        budget = agent.max_new_tokens if left is None else left
        self.limit, self.fills_context = min(room, budget), room < budget
        if self.limit < 1:
            return None
        seed = derive_seed(self.plan.sampling_seed, len(self.turns))
        return Request(self.request_id, self.request_id, self.ids, seed, agent.sampling(self.limit))

    def absorb(self, generation: Generation) -> Callable[[], Any]:
        """Takes the sampled tokens; returns the environment's step on them."""
        self.generation = generation
        action = self.chat.canonical(generation.token_ids, self.ids)
        self.ids += generation.token_ids
        self.mask += [True] * len(generation.token_ids)
        self.logprobs += generation.logprobs
        self.versions += generation.versions
        self.messages.append({"role": "assistant", "content": action})
        env, tokens, cut = self.env, len(generation.token_ids), generation.stop_reason is StopReason.LENGTH
        assert env is not None

        def step() -> Any:
            if hasattr(env.unwrapped, "announce"):
                env.unwrapped.announce(tokens, cut=cut)
            observation, reward, terminated, truncated, info = env.step(action)
            # Whatever is wrong with the answer shows here, in the environment's own thread.
            new = _messages(observation, info, ended=terminated or truncated)
            if not (terminated or truncated):
                self.remember(env)
            return float(reward), bool(terminated), bool(truncated), info, new

        return step

    def answered(self, reward: float, new: Sequence[dict[str, Any]], ended: bool) -> None:
        """Records the turn's reward and, if the episode goes on, feeds what the environment said."""
        assert self.generation is not None
        end = len(self.ids)
        start = end - len(self.generation.token_ids)
        self.turns.append(Turn(start, end, reward, self.generation.stop_reason.value, self.limit))
        self.messages += new
        if not ended:
            self._feed(self.chat.suffix(new, self.ids[-1], turn=self.generation.token_ids))

    def forget_answer(self) -> None:
        """Drops what was fed after the last turn: a whole message that fits no more, never a part of one."""
        if self.turns:
            for column in (self.ids, self.mask, self.logprobs, self.versions):
                del column[self.turns[-1].end :]

    def truncation(self, info: Mapping[str, Any]) -> Truncation:
        """Why a truncated episode ended: the model's context, or what the environment says."""
        cut = self.generation is not None and self.generation.stop_reason is StopReason.LENGTH
        if cut and self.fills_context:
            return Truncation.CONTEXT
        named = info.get("truncation")
        return Truncation(named) if named in set(Truncation) else Truncation.ENVIRONMENT

    def episode(self, verdict: Verdict, truncation: Truncation | None = None) -> Episode:
        return Episode(
            env_id=self.env_id,
            task_id=self.plan.task_id,
            group_id=self.plan.group_id,
            seed=self.plan.seed,
            token_ids=np.array(self.ids, np.int64),
            mask=np.array(self.mask, np.bool_),
            logprobs=np.array(self.logprobs, np.float32),
            versions=np.array(self.versions, np.int64),
            turns=tuple(self.turns),
            messages=tuple(self.messages),
            truncation=truncation,
            verdict=verdict,
            forked_turn=None if self.plan.start is None else self.plan.start.turn,
            snapshots=tuple(self.snapshots or ()),
        )

    def _feed(self, ids: list[int]) -> None:
        self.ids += ids
        self.mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.versions += [-1] * len(ids)


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
            _Live(index, plan, specs[plan.env].id, owner.agent.chat, snapshots=owner.snapshots)
            for index, plan in enumerate(plans)
        ]
        self.episodes: dict[int, Episode] = {}
        self.running: dict[int, _Live] = {}  # by request id
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

    def _reset(self, live: _Live) -> None:
        plan = live.plan

        def reset() -> Any:
            env = self.owner.pool.acquire(plan.env)
            if live.given_up:
                env.close()
                raise EnvClosedError("the episode was given up while its environment was made")
            live.env = env
            observation, info = env.reset(seed=plan.seed, options=_reset_options(env, plan))
            _messages(observation, info)
            live.remember(env)
            return env, observation, info

        live.request_id = self.owner.next_id()
        self.running[live.request_id] = live
        self.owner.workers.submit(live, reset)

    def _go_on(self, call: Call) -> None:
        """Takes an environment's answer: the next request, or the end of the episode."""
        live: _Live = call.key
        if call.error is not None:
            self._fail(live, call.error)
            return
        if live.generation is None:
            live.begin(*call.result, prompts=self.prompts)
        else:
            reward, terminated, truncated, info, new = call.result
            live.answered(reward, new, terminated or truncated)
            if terminated or truncated:
                verdict = info.get("verdict") or _verdict_of(sum(turn.reward for turn in live.turns))
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

    def _fail(self, live: _Live, error: Exception) -> None:
        """The environment broke: its episode is unscorable, and it is not used again."""
        live.given_up = True
        if live.env is not None:
            _close_in_background(live.env)
            live.env = None
        verdict = Verdict.infra_error(f"environment {live.env_id} failed: {type(error).__name__}: {error}")
        self._end(live, live.episode(verdict, Truncation.FAILURE))

    def _end(self, live: _Live, episode: Episode) -> None:
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
        live = _Live(index, plan, specs[plan.env].id, chat)
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


def _reset_options(env: Env, plan: Plan) -> dict[str, Any] | None:
    if plan.start is not None:
        return {"snapshot": plan.start.snapshot}
    return {"task": plan.task_id} if hasattr(env.unwrapped, "tasks") else None


def _messages(observation: str, info: Mapping[str, Any], *, ended: bool = False) -> list[dict[str, Any]]:
    """The new messages: the environment's own, or its observation as the user's."""
    given = info.get("messages") or ([{"role": "user", "content": observation}] if observation or not ended else [])
    for message in given:
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise TypeError(f"a message's role and content are text, not {message!r}")
    return [dict(message) for message in given]


def _verdict_of(total: float) -> Verdict:
    """The verdict on an environment that gives rewards and no verdict."""
    outcome = Outcome.CORRECT if total > 0 else Outcome.WRONG
    return Verdict(total, outcome, f"the environment's rewards sum to {total:g}")


def _close_in_background(env: Env) -> None:
    """Closing ends what a hanging step waits for, and may itself take long."""
    threading.Thread(target=env.close, name="verigym-close", daemon=True).start()
