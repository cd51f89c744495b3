"""Episodes of an endpoint's model: played turn by turn in text, and without the tokens that only an engine knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from verigym.agents._live import Env, messages_of
from verigym.agents._workers import Workers
from verigym.agents.collect import EnvPool, reset_options, verdict_of
from verigym.agents.endpoint import EndpointAgent
from verigym.agents.episode import Episode, Plan, Truncation, Turn, derive_seed
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ContextOverflow, RunInterrupted
from verigym.verifiers.verdict import Outcome, Verdict


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
    pool, workers = EnvPool(specs), Workers(min(concurrency, len(plans)), timeout=float("inf"))
    left = len(plans)
    try:
        for index, plan in enumerate(plans):
            workers.submit(index, partial(_play, agent, pool, plan))
        while left:
            if interrupted():
                raise RunInterrupted("interrupted while playing episodes")
            for call in workers.take(0.1):
                left -= 1
                yield call.key, call.result or _failed(specs, plans[call.key], call.error)
    finally:
        workers.abandon()
        workers.close()
        pool.close()


def _play(agent: EndpointAgent, pool: EnvPool, plan: Plan) -> Episode:
    env = pool.acquire(plan.env)
    try:
        episode = _episode(agent, env, plan, pool.specs[plan.env].id)
    except BaseException:
        env.close()
        raise
    pool.give_back(plan.env, env)
    return episode


def _episode(agent: EndpointAgent, env: Env, plan: Plan, env_id: str) -> Episode:
    observation, info = env.reset(seed=plan.seed, options=reset_options(env, plan))
    messages, tools = messages_of(observation, info), info.get("tools") or ()
    turns: list[Turn] = []
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
        observation, reward, terminated, truncated, info = env.step(answer.text)
        ended = bool(terminated or truncated)
        new = messages_of(observation, info, ended=ended)
        messages += [{"role": "assistant", "content": answer.text}, *new]
        turns.append(Turn(0, 0, float(reward), "length" if answer.cut else "stop", limit))
        if ended:
            verdict = info.get("verdict") or verdict_of(sum(turn.reward for turn in turns))
            truncation = _truncation(info) if truncated else None
            return _without_tokens(env_id, plan, turns, messages, truncation, verdict, (read, written))


def _failed(specs: Sequence[EnvSpec], plan: Plan, error: Exception | None) -> Episode:
    verdict = Verdict.infra_error(f"{type(error).__name__}: {error}")
    return _without_tokens(specs[plan.env].id, plan, [], [], Truncation.FAILURE, verdict)


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
    )


def _truncation(info: Mapping[str, Any]) -> Truncation:
    named = info.get("truncation")
    return Truncation(named) if named in set(Truncation) else Truncation.ENVIRONMENT
