"""A reward model from preferences: `verigym reward-model`."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict

import torch
from transformers import AutoModel

from verigym.agents.agent import load_checkpoint, resolve_device
from verigym.agents.chat import Chat
from verigym.agents.learners.pairs import Pair
from verigym.agents.learners.reward_model import RewardLearner
from verigym.agents.reward_model import read_conversation
from verigym.agents.scalar import ScalarModel, load_scalar_model
from verigym.calibration import Calibration, calibration
from verigym.offline_config import RewardModelConfig
from verigym.pairs import Preference, as_preference, match, read_preferences, split
from verigym.passes import OfflineRun, OnStep, Passes, Source, of_pairs, publish, refuse_too_long, silent
from verigym.tasks.errors import ConfigError, TaskDataError, TemplateError


def train_reward_model(config: RewardModelConfig, *, resume: bool = False, on_step: OnStep = silent) -> OfflineRun:
    """Trains on a share of the pairs, and reports accuracy and calibration on the held-out rest.

    The model's folder is what `verifiers.make("reward_model", path=...)` takes. Raises ConfigError or TaskDataError
    for what cannot work, RunInterrupted (after a checkpoint) on Ctrl-C.
    """
    source = Source(config, resume=resume)
    device = resolve_device(config.device)
    pairs, left_out = _pairs(config, source)
    train, held_out = split(pairs, [pair.question for pair in pairs], config.held_out, config.seed)
    passes = Passes(config, source.folder, "reward-model", train, of_pairs([*train, *held_out]))
    state = source.start(passes)
    model = _begin(config, source, device, resumed=state is not None)
    learner = RewardLearner(
        model,
        lr=config.lr,
        tokens_per_forward=config.tokens_per_forward,
        autocast=torch.bfloat16 if device == "cuda" else None,
    )
    passes.run(learner, model.trunk, source.tokenizer, state, on_step)
    learner.centre(train)
    sides = (("held_out", held_out), ("train", train))
    report = {"left_out": left_out, **{name: asdict(_judge(learner, side)) for name, side in sides}}
    path = publish(source.folder, lambda path: model.save(path, source.tokenizer), report)
    return OfflineRun(source.folder.path, path, report)


def _begin(config: RewardModelConfig, source: Source, device: str, *, resumed: bool) -> ScalarModel:
    """A head of zeros on the checkpoint's trunk; to go on, on the trunk that was saved (the state has the head)."""
    if not resumed:
        return load_scalar_model(config.model, device=device, trained=False)
    return ScalarModel(load_checkpoint(AutoModel, source.folder.latest()).to(device).eval())


def _pairs(config: RewardModelConfig, source: Source) -> tuple[list[Pair], int]:
    """What is read of the pairs, and how many of the played ones cannot be; a row of a file must be readable."""
    if config.pairs:
        return [read_pair(source.chat, row, source.context) for row in read_preferences(config.pairs)], 0
    matched = match(source.episodes(), config.pairs_per_task, config.seed)
    pairs = []
    for chosen, rejected in matched:
        with contextlib.suppress(TaskDataError):
            pairs.append(read_pair(source.chat, as_preference(chosen, rejected), source.context))
    if not pairs:
        raise ConfigError("no task has both a right and a wrong episode, so there are no pairs; play more episodes")
    return pairs, len(matched) - len(pairs)


def read_pair(chat: Chat, preference: Preference, context: int) -> Pair:
    """What a reward model reads of a preference. Raises TaskDataError, with file and row."""
    try:
        chosen, rejected = (
            read_conversation(chat, [*preference.prompt, *side]) for side in (preference.chosen, preference.rejected)
        )
    except TemplateError as error:
        raise TaskDataError(f"{preference.where}: {error}") from error
    pair = Pair(chosen, rejected, preference.question)
    refuse_too_long(pair, preference.where, context)
    return pair


def _judge(learner: RewardLearner, pairs: Sequence[Pair]) -> Calibration:
    scores = learner.scores([episode for pair in pairs for episode in (pair.chosen, pair.rejected)])
    return calibration(pairs, scores[0::2] - scores[1::2])
