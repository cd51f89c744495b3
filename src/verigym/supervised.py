"""Supervised warm start: a model learns the form of an answer from an environment's demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from verigym.agents.agent import load_chat, load_model, resolve_device, save_checkpoint
from verigym.agents.chat import Chat
from verigym.agents.collect import demonstrations
from verigym.agents.episode import Episode, derive_seed
from verigym.agents.learners.sft import SFT
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.config import SFTConfig
from verigym.stalls import StallWatch
from verigym.task_sampler import TaskSampler
from verigym.tasks.activity import doing
from verigym.tasks.errors import ConfigError

_SCAFFOLDING_SAMPLES = 64


@dataclass(frozen=True)
class SupervisedRun:
    """A finished warm start: the checkpoint's folder, and what was learned."""

    folder: Path
    loss: float
    tokens: int


@StallWatch()
def sft(
    config: SFTConfig, on_step: Callable[[int, dict[str, float]], None] = lambda step, metrics: None
) -> SupervisedRun:
    """Trains on demonstrations and saves an ordinary transformers checkpoint in `config.output`.

    Raises ConfigError if the folder is taken, or an environment has no demonstrations.
    """
    output = Path(config.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigError(f"'{output}' exists already; choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the folder '{output}': {error.strerror}") from error
    model, tokenizer, chat = starting_point(config)
    episodes = _play(config, chat, config.demonstrations)
    learner, tokens, loss = SFT(model, lr=config.lr), 0, 0.0
    with doing("learning"):
        for step, batch in enumerate(_batches(config, len(episodes))):
            metrics = learner.update([episodes[index] for index in batch])
            tokens, loss = tokens + int(metrics["tokens"]), metrics["loss"]
            on_step(step + 1, metrics)
    save_checkpoint(output, model, tokenizer)
    return SupervisedRun(output, loss, tokens)


def starting_point(config: SFTConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Chat]:
    """The checkpoint to start from, or a new tiny one whose tokens fit the environments' scaffolding."""
    device = resolve_device(config.device)
    if config.model != "tiny":
        tokenizer, chat = load_chat(config.model)
        return load_model(config.model, device=device), tokenizer, chat
    samples = _play(config, Chat(tiny_tokenizer()), min(_SCAFFOLDING_SAMPLES, config.demonstrations))
    tools = [tool for spec in config.envs for tool in getattr(spec.make().unwrapped, "tools", [])]
    tokenizer = tiny_tokenizer([[dict(m) for m in episode.messages] for episode in samples], tools or None)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model: PreTrainedModel = tiny_model(len(tokenizer), seed=derive_seed(config.seed, "model") % 2**31, **ends)
    return model.to(device), tokenizer, Chat(tokenizer)


def _play(config: SFTConfig, chat: Chat, count: int) -> list[Episode]:
    """Demonstrations, one for each of the first tasks that the sampler draws."""
    sampler = TaskSampler(config.envs, derive_seed(config.seed, "demonstrations") % 2**31)
    plans, _ = sampler.plan(sampler.start, groups=count, group_size=1)
    with doing("demonstrating"):
        return demonstrations(chat, config.envs, plans)


def _batches(config: SFTConfig, count: int) -> Sequence[list[int]]:
    """Indices of each step's demonstrations: shuffled passes over all of them."""
    needed = config.steps * config.batch_size
    passes = [
        np.random.default_rng(derive_seed(config.seed, "pass", number)).permutation(count)
        for number in range(-(-needed // count))
    ]
    order = np.concatenate(passes)[:needed]
    return [part.tolist() for part in order.reshape(config.steps, config.batch_size)]
