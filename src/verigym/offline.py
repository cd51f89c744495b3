"""Policies that learn offline: from preferences (`verigym dpo`), from their own right episodes (`verigym rft`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from verigym.agents.agent import load_model, resolve_device, save_checkpoint
from verigym.agents.chat import Chat
from verigym.agents.episode import Episode
from verigym.agents.learners.dpo import DPO
from verigym.agents.learners.pairs import Pair, written_episode
from verigym.agents.learners.sft import SFT
from verigym.calibration import calibration
from verigym.offline_config import DPOConfig, RFTConfig
from verigym.pairs import (
    Message,
    Preference,
    match,
    opening,
    question,
    read_preferences,
    right_episodes,
    split,
)
from verigym.passes import (
    OfflineRun,
    OnStep,
    Passes,
    Source,
    fingerprint,
    of_pairs,
    publish,
    refuse_other_tokens,
    refuse_too_long,
    silent,
)
from verigym.tasks.errors import ConfigError, TaskDataError, TemplateError


def dpo(config: DPOConfig, *, resume: bool = False, on_step: OnStep = silent) -> OfflineRun:
    """Trains a policy on a share of the pairs, and reports how it ranks the held-out rest.

    The report's probabilities are those of its implicit rewards. Raises ConfigError or TaskDataError for what cannot
    work, RunInterrupted (after a checkpoint) on Ctrl-C.
    """
    source = Source(config, resume=resume)
    pairs = _pairs(config, source)
    train, held_out = split(pairs, [pair.question for pair in pairs], config.held_out, config.seed)
    passes = Passes(config, source.folder, "dpo", range(len(train)), of_pairs([*train, *held_out]))
    state = source.start(passes)
    model, autocast = _load(source, state)
    learner = DPO(
        model, beta=config.beta, lr=config.lr, tokens_per_forward=config.tokens_per_forward, autocast=autocast
    )
    held_to = _HeldTo(learner, [*train, *held_out], known=state is not None)
    passes.run(held_to, model, source.tokenizer, state, on_step)
    margins = held_to.margins()
    sides = (("held_out", held_out, margins[len(train) :]), ("train", train, margins[: len(train)]))
    report = {name: asdict(calibration(side, part)) for name, side, part in sides}
    path = publish(source.folder, lambda path: save_checkpoint(path, model, source.tokenizer), report)
    return OfflineRun(source.folder.path, path, report)


def rft(config: RFTConfig, *, resume: bool = False, on_step: OnStep = silent) -> OfflineRun:
    """Fine-tunes a policy on right episodes, on the tokens as they were sampled. Raises as `dpo`."""
    source = Source(config, resume=resume)
    episodes = source.episodes()
    kept = right_episodes(episodes, config.episodes_per_task, config.seed)
    if not kept:
        raise ConfigError(f"none of {len(episodes)} episodes is right, so there is nothing to learn from")
    refuse_other_tokens(kept, source)
    passes = Passes(config, source.folder, "rft", kept, fingerprint(kept))
    state = source.start(passes)
    model, autocast = _load(source, state)
    learner = _Resumable(model, lr=config.lr, tokens_per_forward=config.tokens_per_forward, autocast=autocast)
    passes.run(learner, model, source.tokenizer, state, on_step)
    tasks = len({(episode.env_id, episode.task_id, question(opening(episode))) for episode in kept})
    report = {"episodes": len(episodes), "learned": len(kept), "tasks": tasks}
    path = publish(source.folder, lambda path: save_checkpoint(path, model, source.tokenizer), report)
    return OfflineRun(source.folder.path, path, report)


def _load(source: Source, state: Any) -> tuple[PreTrainedModel, torch.dtype | None]:
    """The weights to begin or to go on with, and the precision of forwards if it is not theirs."""
    device = resolve_device(source.config.device)
    model = load_model(source.config.model if state is None else source.folder.latest(), device=device)
    return model, torch.bfloat16 if device == "cuda" else None


# DPO.


class _HeldTo:
    """DPO on pairs by number, with the log-probabilities that the model had before the first step."""

    def __init__(self, learner: DPO, pairs: Sequence[Pair], *, known: bool) -> None:
        self.learner, self.pairs = learner, pairs
        # Of a resumed run they are in the checkpoint: its model is no longer the one that began.
        self.reference: NDArray[np.float64] = np.zeros((len(pairs), 2)) if known else learner.logprobs(pairs)

    def update(self, batch: list[int]) -> dict[str, float]:
        return self.learner.update([self.pairs[i] for i in batch], self.reference[batch])

    def margins(self) -> NDArray[np.float64]:
        return self.learner.margins(self.pairs, self.reference)

    def state_dict(self) -> dict[str, Any]:
        return {**self.learner.state_dict(), "reference": torch.from_numpy(self.reference)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state)
        self.reference = state["reference"].numpy()


def _pairs(config: DPOConfig, source: Source) -> list[Pair]:
    """Pairs of a file, written in the model's own syntax; or of episodes, with the tokens as they were sampled."""
    if config.pairs:
        return [written_pair(source.chat, row, source.context) for row in read_preferences(config.pairs)]
    matched = match(source.episodes(), config.pairs_per_task, config.seed)
    if not matched:
        raise ConfigError("no task has both a right and a wrong episode, so there are no pairs; play more episodes")
    refuse_other_tokens([episode for both in matched for episode in both], source)
    return [Pair(chosen, rejected, question(opening(chosen))) for chosen, rejected in matched]


def written_pair(chat: Chat, preference: Preference, context: int) -> Pair:
    """Two answers turn by turn, as the policy would have played them. Raises TaskDataError, with file and row."""
    try:
        chosen, rejected = (
            write_turns(chat, preference.prompt, answer) for answer in (preference.chosen, preference.rejected)
        )
    except TemplateError as error:
        raise TaskDataError(f"{preference.where}: {error}") from error
    pair = Pair(chosen, rejected, preference.question)
    refuse_too_long(pair, preference.where, context)
    return pair


def write_turns(chat: Chat, prompt: Sequence[Message], answer: Sequence[Message]) -> Episode:
    """The ids of a prompt and of turns that somebody wrote, marked, with what was said between them, unmarked."""
    ids = chat.prompt(prompt)
    mask = [False] * len(ids)
    turn: list[int] = []
    heard: list[Message] = []
    for message in answer:
        if message["role"] != "assistant":
            heard.append(message)
            continue
        if turn:
            ids += chat.suffix(heard or [{"role": "user", "content": ""}], ids[-1], turn=turn)
            mask += [False] * (len(ids) - len(mask))
        turn, heard = chat.turn(str(message["content"]), ids), []
        ids, mask = ids + turn, mask + [True] * len(turn)
    return written_episode(ids, mask)


# Rejection sampling.


class _Resumable(SFT):
    """Supervised steps that a resumed run goes on with."""

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
