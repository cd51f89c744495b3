"""The one place that makes rollout engines, of the kind that a configuration names."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from verigym.agents.engines.config import EngineConfig, RayConfig
from verigym.agents.engines.engine import Engine, own_gpu


def make_engine(
    config: EngineConfig, model: str | Path, *, dtype: torch.dtype, device: str = "cpu", slots: int = 256
) -> Engine:
    """An engine with the weights of a checkpoint (a folder or a hub id), which runs up to `slots` requests at a time.

    Raises ConfigError if there is no such checkpoint or no such engine here, EngineError for a model that the engine
    cannot run.
    """
    if config.kind == "vllm":
        from verigym.agents.engines.vllm import VLLMEngine

        return VLLMEngine(model, dtype=dtype, device=device, slots=slots, memory=config.memory)
    if config.kind == "vllm-server":
        from verigym.agents.engines.vllm_server import VLLMServerEngine

        assert config.url is not None
        return VLLMServerEngine(config.url, model, dtype=dtype, slots=slots)
    if config.kind == "ray":
        from verigym.agents.engines.ray import RayEngine

        of = replace(config, kind=config.ray.of, ray=RayConfig())
        make = partial(make_engine, of, dtype=dtype, device="cuda" if config.ray.gpus else "cpu", slots=slots)
        return RayEngine(make, model, config.ray, dtype=dtype, learner_gpu=None if device == "cpu" else own_gpu())
    from verigym.agents.agent import load_model
    from verigym.agents.engines.transformers import TransformersEngine

    return TransformersEngine(load_model(model, dtype=dtype, device=device), slots=slots)
