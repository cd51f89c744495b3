"""Episodes of an endpoint's model: played turn by turn in text, and without the tokens that only an engine knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from verigym.agents._live import Env, messages_of
from verigym.agents._workers import Workers
from verigym.agents.collect import EnvPool, reset_options, verdict_of
from verigym.agents.endpoint import EndpointAgent
from verigym.agents.episode import Episode, Plan, Truncation, Turn, derive_seed
from verigym.envs.mixture import EnvSpec
from verigym.tasks import activity
from verigym.tasks.errors import ContextOverflow, RunInterrupted
from verigym.verifiers.verdict import Outcome, Verdict


@dataclass(eq=False)
class _Talk:
    """An episode to play, and its turns so far."""

    plan: Plan
    env_id: str
    turns: list[Turn] = field(default_factory=list)


class _Talkers(Workers):
    """Threads that play a talk each."""

    def playing(self) -> tuple[list[activity.Playing], int]:
        """What the talks wait for, and how many are not begun; callable from any thread."""
        calls = self.open_calls()
        begun = {talk: call for talk, call in calls.items() if call.started}
        found = [
            activity.Playing(talk.env_id, talk.plan.task_id, len(talk.turns) + 1, call.activity.stack)
            for talk, call in begun.items()
        ]
        return found, len(calls) - len(begun)


def converse(
    agent: EndpointAgent,
    specs: Sequence[EnvSpec],
    plans: Sequence[Plan],
    *,
    concurrency: int = 64,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Episode]]:
    """Index of the plan and episode, as they end; up to `concurrency` at a time.

    One whose environment or endpoint fails ends with an INFRA_ERROR; one that outgrows the model's context earns 0.
    Raises RunInterrupted when `interrupted()` turns true.
    """
    pool, workers = EnvPool(specs), _Talkers(min(concurrency, len(plans)), timeout=float("inf"))
    activity.announce(workers)
    index_of = {_Talk(plan, specs[plan.env].id): index for index, plan in enumerate(plans)}
    left = len(plans)
    try:
        for talk in index_of:
            workers.submit(talk, partial(_play, agent, pool, talk))
        while left:
            if interrupted():
                raise RunInterrupted("interrupted while playing episodes")
            for call in workers.take(0.1):
                left -= 1
                yield index_of[call.key], call.result or _failed(call.key, call.error)
    finally:
        workers.abandon()
        workers.close()
        pool.close()


def _play(agent: EndpointAgent, pool: EnvPool, talk: _Talk) -> Episode:
    plan = talk.plan
    env = pool.acquire(plan.env)
    try:
        episode = _episode(agent, env, talk)
    except BaseException:
        env.close()
        raise
    pool.give_back(plan.env, env)
    return episode


def _episode(agent: EndpointAgent, env: Env, talk: _Talk) -> Episode:
    plan, env_id, turns = talk.plan, talk.env_id, talk.turns
    with activity.doing("environment", "reset"):
        observation, info = env.reset(seed=plan.seed, options=reset_options(env, plan))
    messages, tools = messages_of(observation, info), info.get("tools") or ()
    read, written = 0, 0
    while True:
        left = getattr(env.unwrapped, "tokens_left", lambda: None)()
        limit = agent.max_new_tokens if left is None else left
        seed = derive_seed(plan.sampling_seed, len(turns))
        try:
            answer = agent.answer(messages, tools, max_new_tokens=limit, seed=seed)
        except ContextOverflow as overflow:
            if not turns:
                raise  # not even the question fits, whoever plays
            verdict = Verdict(0.0, Outcome.UNPARSEABLE, f"the conversation fills the model's context: {overflow}")
            return _without_tokens(env_id, plan, turns, messages, Truncation.CONTEXT, verdict, (read, written))
        read, written = read + answer.prompt_tokens, written + answer.tokens
        if hasattr(env.unwrapped, "announce"):
            env.unwrapped.announce(answer.tokens, cut=answer.cut)
        with activity.doing("environment", "step"):
            observation, reward, terminated, truncated, info = env.step(answer.text)
        ended = bool(terminated or truncated)
        new = messages_of(observation, info, ended=ended)
        messages += [{"role": "assistant", "content": answer.text}, *new]
        turns.append(Turn(0, 0, float(reward), "length" if answer.cut else "stop", limit))
        if ended:
            verdict = info.get("verdict") or verdict_of(sum(turn.reward for turn in turns))
            truncation = _truncation(info) if truncated else None
            return _without_tokens(env_id, plan, turns, messages, truncation, verdict, (read, written))


def _failed(talk: _Talk, error: BaseException | None) -> Episode:
    verdict = Verdict.infra_error(f"{type(error).__name__}: {error}")
    return _without_tokens(talk.env_id, talk.plan, [], [], Truncation.FAILURE, verdict)


def _without_tokens(
    env_id: str,
    plan: Plan,
    turns: Sequence[Turn],
    messages: Sequence[Mapping[str, Any]],
    truncation: Truncation | None,
    verdict: Verdict,
    usage: tuple[int, int] | None = None,
) -> Episode:
    return Episode(
        env_id=env_id,
        task_id=plan.task_id,
        group_id=plan.group_id,
        seed=plan.seed,
        token_ids=np.zeros(0, np.int64),
        mask=np.zeros(0, np.bool_),
        logprobs=np.zeros(0, np.float32),
        versions=np.zeros(0, np.int64),
        turns=tuple(turns),
        messages=tuple(messages),
        truncation=truncation,
        verdict=verdict,
        usage=usage,
        sampling_seed=plan.sampling_seed,
    )


def _truncation(info: Mapping[str, Any]) -> Truncation:
    named = info.get("truncation")
    return Truncation(named) if named in set(Truncation) else Truncation.ENVIRONMENT
