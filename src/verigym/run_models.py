"""The models of a training run and their learner: where they are loaded from, what each rank has, how they are kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from verigym.agents.agent import load_chat, load_model, save_checkpoint, save_model
from verigym.agents.engines.learner_weights import LearnerWeights
from verigym.agents.episode import derive_seed
from verigym.agents.learners.checkpoint import load_state, save_state
from verigym.agents.learners.grpo import GRPO
from verigym.agents.learners.layers import require_compiler
from verigym.agents.learners.policy import PolicyLearner
from verigym.agents.learners.ppo import PPO
from verigym.agents.learners.sharding import Ranks
from verigym.agents.lora import ADAPTER, add_adapter, load_adapter
from verigym.agents.scalar import load_scalar_model
from verigym.config import TrainConfig
from verigym.ranks import Team
from verigym.run_folder import RunFolder


def load_policy(config: TrainConfig, folder: RunFolder, device: str, *, resume: bool) -> PreTrainedModel:
    """The model that learns. One with an adapter goes on from the weights that the run began with: merged ones are
    rounded."""
    if config.policy.compile:
        require_compiler(device)
    source = folder.latest() if resume else config.model
    if not config.lora.rank:
        return load_model(source, device=device)
    model = load_model(reference_path(folder) if resume else source, device=device)
    add_adapter(model, config.lora, derive_seed(config.seed, "adapter"))
    if resume:
        load_adapter(model, Path(source) / ADAPTER)
    return model


def keep_reference(config: TrainConfig, folder: RunFolder) -> None:
    """Keeps the frozen model that training starts from in the run folder, where a run needs it again.

    With an adapter the policy is that model when its adapter is switched off: it is only kept.
    """
    if config.policy.kl_coefficient > 0 or config.lora.rank > 0:
        tokenizer, _ = load_chat(config.model)
        model = load_model(config.model)
        folder.save(reference_path(folder).name, lambda path: save_checkpoint(path, model, tokenizer))


def load_reference(config: TrainConfig, folder: RunFolder, device: str) -> PreTrainedModel | None:
    """The model that was kept, if the learner needs one besides the policy."""
    if config.policy.kl_coefficient == 0 or config.lora.rank > 0:
        return None
    return load_model(reference_path(folder), device=device).requires_grad_(False)


def reference_path(folder: RunFolder) -> Path:
    """Where the model that training started from is kept."""
    return folder.checkpoints_path / "reference"


@dataclass(frozen=True)
class Start:
    """All that every rank makes its part of a run from."""

    config: TrainConfig
    resume: bool
    device: str
    autocast: torch.dtype | None
    max_policy_tokens: int


class Part:
    """What every rank has of a run: the policy, or a shard of it, with its learner, and how they are kept.

    What rank 0 does to it is done on every rank. `model`: the policy, where it is loaded already.
    """

    def __init__(self, start: Start, team: Team, model: PreTrainedModel | None = None) -> None:
        config, folder, ranks = start.config, RunFolder(start.config.run), team.ranks
        self.ranks = ranks
        device = staging(start.device, ranks)
        self.model = model or load_policy(config, folder, device, resume=start.resume)
        options: dict[str, Any] = {
            "reference": load_reference(config, folder, device),
            "temperature": config.temperature,
            "max_policy_tokens": start.max_policy_tokens,
            "steps": config.steps,
            "autocast": start.autocast,
            "ranks": ranks,
        }
        self.learner: PolicyLearner
        if config.learner == "grpo":
            self.learner = GRPO(self.model, config.grpo, **options)
        else:
            source = folder.latest() if start.resume else config.model
            critic = load_scalar_model(source, device=device, trained=False)
            self.learner = PPO(self.model, config.ppo, critic=critic, seed=config.seed, **options)
        self.weights = LearnerWeights(self.model)
        team.lead(self, "save_model", "save_learner", "load_learner")
        team.lead(self.learner, "advantages", "update")
        team.lead(self.weights, "value", "perturb", "restore", "score")

    def save_model(self, path: Path) -> None:
        """Writes the model, as an ordinary transformers checkpoint without a tokenizer."""
        save_model(path, self.model, writes=self.ranks.rank == 0)

    def save_learner(self, path: Path) -> None:
        """Writes all that a run which goes on needs beside the model."""
        save_state(path, self.learner, self.ranks)

    def load_learner(self, path: Path) -> None:
        """Reads it."""
        load_state(path, self.learner, self.ranks)


def staging(device: str, ranks: Ranks) -> str:
    """Where a model is loaded to: one that is cut into shards need not fit into one device as a whole."""
    return device if ranks.size == 1 else "cpu"
