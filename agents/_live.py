"""An episode that is being played: what the environment says becomes requests, and what was sampled its turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from verigym.agents._workers import Call
from verigym.agents.agent import LocalAgent
from verigym.agents.chat import Chat
from verigym.agents.engines.engine import Generation, Request, StopReason
from verigym.agents.episode import Episode, Plan, Truncation, Turn, derive_seed
from verigym.tasks.activity import Activity, Doing, Playing
from verigym.verifiers.verdict import Verdict

Env = gym.Env[str, str]


class Live:
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
        self.asked = 0.0  # when the engine was last given a request
        self.lost = 0  # how often its environment's worker was lost

    def begin(self, env: Env, observation: str, info: Mapping[str, Any], *, prompts: dict[str, list[int]]) -> None:
        """Takes the environment's first messages. `prompts` keeps their ids for the other members of the group."""
        self.env = env
        self.messages = messages_of(observation, info)
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
        self.asked = time.monotonic()
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
            new = messages_of(observation, info, ended=terminated or truncated)
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
            sampling_seed=self.plan.sampling_seed,
        )

    def playing(
        self,
        call: Call | None,
        drawn: Mapping[int, int | None] | None,
        elsewhere: Mapping[Activity, tuple[Doing, ...]],
    ) -> Playing:
        """What it waits for: `call`, its environment's, or the engine, with what `Engine.drawn` says.

        `elsewhere`: what goes on in other processes, by who waits for them.
        """
        if call is not None:
            stack = environment_call(call, "reset" if self.generation is None else "step")
            stack += elsewhere.get(call.activity, ())
        elif drawn is None:
            stack = (Doing("engine", "", self.asked),)
        elif self.request_id not in drawn:
            stack = (Doing("round", "the others' turns", self.asked),)
        else:
            tokens = drawn[self.request_id]
            name = "queued" if tokens is None else f"generating, {tokens} tokens so far"
            stack = (Doing("engine", name, self.asked),)
        turn = len(self.turns) + (self.generation is not None or call is None)
        return Playing(self.env_id, self.plan.task_id, turn, stack)

    def _feed(self, ids: list[int]) -> None:
        self.ids += ids
        self.mask += [False] * len(ids)
        self.logprobs += [0.0] * len(ids)
        self.versions += [-1] * len(ids)


def environment_call(call: Call, name: str) -> tuple[Doing, ...]:
    """What a call to an environment waits for."""
    if not call.started:
        return (Doing("environment", f"{name}, for a free thread", call.submitted),)
    return (Doing("environment", name, call.started), *call.activity.stack)


def messages_of(observation: str, info: Mapping[str, Any], *, ended: bool = False) -> list[dict[str, Any]]:
    """The new messages: the environment's own, or its observation as the user's."""
    given = info.get("messages") or ([{"role": "user", "content": observation}] if observation or not ended else [])
    for message in given:
        if not isinstance(message["role"], str) or not isinstance(message["content"], str):
            raise TypeError(f"a message's role and content are text, not {message!r}")
    return [dict(message) for message in given]
