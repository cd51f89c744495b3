"""The models of a training run: where policy and reference are loaded from, for a new run and for one that goes on."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel

from verigym.agents.agent import load_chat, load_model
from verigym.agents.episode import derive_seed
from verigym.agents.learners.layers import require_compiler
from verigym.agents.lora import ADAPTER, add_adapter, load_adapter
from verigym.config import TrainConfig
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


def load_reference(config: TrainConfig, folder: RunFolder, device: str, *, resume: bool) -> PreTrainedModel | None:
    """The frozen model that training started from, kept in the run folder for resuming.

    With an adapter it is only kept: the policy is that model when its adapter is switched off.
    """
    needed, adapted = config.policy.kl_coefficient > 0, config.lora.rank > 0
    if not resume and (needed or adapted):
        tokenizer, _ = load_chat(config.model)
        folder.save(reference_path(folder).name, load_model(config.model), tokenizer)
    if adapted or not needed:
        return None
    return load_model(reference_path(folder), device=device).requires_grad_(False)


def reference_path(folder: RunFolder) -> Path:
    """Where the model that training started from is kept."""
    return folder.checkpoints_path / "reference"
