"""The one place that makes rollout engines, of the kind that a configuration names."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from verigym.agents.engines.config import EngineConfig, RayConfig
from verigym.agents.engines.engine import Engine, gpu_uuid


def make_engine(
    config: EngineConfig,
    model: str | Path,
    *,
    dtype: torch.dtype,
    device: str = "cpu",
    slots: int = 256,
    tensor_parallel: int = 1,
) -> Engine:
    """An engine with the weights of a checkpoint (a folder or a hub id), which runs up to `slots` requests at a time.

    vLLM cuts its model over `tensor_parallel` devices.

    Raises ConfigError if there is no such checkpoint or no such engine here, EngineError for a model that the engine
    cannot run.
    """
    if config.kind == "vllm":
        from verigym.agents.engines.vllm import VLLMEngine

        return VLLMEngine(
            model,
            dtype=dtype,
            device=device,
            slots=slots,
            memory=config.memory,
            tensor_parallel=tensor_parallel,
        )
    if config.kind == "vllm-server":
        from verigym.agents.engines.vllm_server import VLLMServerEngine

        assert config.url is not None
        return VLLMServerEngine(config.url, model, dtype=dtype, slots=slots)
    if config.kind == "ray":
        from verigym.agents.engines.ray import RayEngine

        of = replace(config, kind=config.ray.of, ray=RayConfig())
        device_of_actors, cut = "cuda" if config.ray.gpus else "cpu", max(1, int(config.ray.gpus))
        make = partial(make_engine, of, dtype=dtype, device=device_of_actors, slots=slots, tensor_parallel=cut)
        learner_gpu = None if device == "cpu" else gpu_uuid(torch.cuda.current_device())
        return RayEngine(make, model, config.ray, dtype=dtype, learner_gpu=learner_gpu)
    from verigym.agents.agent import load_model
    from verigym.agents.engines.transformers import TransformersEngine

    return TransformersEngine(load_model(model, dtype=dtype, device=device), slots=slots)
