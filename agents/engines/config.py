"""Which rollout engine plays, as a part of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from verigym.tasks.errors import ConfigError


@dataclass(frozen=True)
class RayConfig:
    """Engine actors and environment workers on a Ray cluster."""

    actors: int = 2
    """Actors, each with an engine and weights of its own."""
    of: Literal["transformers", "vllm"] = "transformers"
    """The engine of an actor."""
    address: str | None = None
    """The cluster's address, such as 10.0.0.1:6379, or auto on one of its machines; None starts one on this machine."""
    cpus: float = 1.0
    """CPU cores of each actor."""
    gpus: float = 0.0
    """GPUs of each actor: some of one machine, over which vLLM cuts its model, a share of one, or 0 to play on CPU."""
    transfer: Literal["nccl", "store"] | None = None
    """Weights go by vLLM's NCCL transfer or Ray's object store; None takes nccl where all have GPUs of their own."""
    env_workers: int = 0
    """Processes that step the environments, on a CPU core each; 0 steps them in the learner's process."""
    timeout: float = 600.0
    """Seconds without an answer, also while it starts, after which an actor counts as lost."""

    def __post_init__(self) -> None:
        if self.actors < 1:
            raise ConfigError(f"engine.ray.actors must be at least 1, not {self.actors}")
        if not self.cpus > 0:
            raise ConfigError(f"engine.ray.cpus must be above 0, not {self.cpus:g}")
        if not self.gpus >= 0 or (self.gpus > 1 and self.gpus % 1):
            raise ConfigError(f"engine.ray.gpus must be a number of GPUs, or a share of one, not {self.gpus:g}")
        if self.gpus > 1 and self.of != "vllm":
            raise ConfigError("engine.ray.gpus above 1 needs engine.ray.of vllm, which alone uses several")
        if self.transfer == "nccl" and (self.of != "vllm" or self.gpus < 1):
            raise ConfigError("engine.ray.transfer nccl goes from GPU to GPUs: it needs engine.ray.of vllm and gpus")
        if self.env_workers < 0:
            raise ConfigError(f"engine.ray.env_workers must be at least 0, not {self.env_workers}")
        if not self.timeout > 0:
            raise ConfigError(f"engine.ray.timeout must be above 0, not {self.timeout}")


@dataclass(frozen=True)
class EngineConfig:
    """The rollout engine of a run."""

    kind: Literal["transformers", "vllm", "vllm-server", "ray"] = "transformers"
    """The own KV loop over a transformers model, vLLM in this process, a running vllm serve, or actors on Ray."""
    url: str | None = None
    """vllm-server: its address, such as http://localhost:8000."""
    memory: float = 0.5
    """vllm: share of the GPU's memory for its weights and its KV cache."""
    ray: RayConfig = field(default_factory=RayConfig)
    """ray: the cluster and the actors."""

    def __post_init__(self) -> None:
        if (self.url is not None) != (self.kind == "vllm-server"):
            raise ConfigError("engine.url goes with engine.kind vllm-server, and only with it")
        if self.ray != RayConfig() and self.kind != "ray":
            raise ConfigError(f"settings of engine.ray are given, but engine.kind is {self.kind}; set it to ray")
        if not 0 < self.memory <= 1:
            raise ConfigError(f"engine.memory is a share of the GPU's memory, above 0 and at most 1, not {self.memory}")

    def require_bits(self) -> None:
        """Raises ConfigError if the engine does not promise the same bits for the same seed."""
        if self.kind != "transformers":
            raise ConfigError(
                f"deterministic needs engine.kind transformers: {self.kind} does not promise the same bits"
            )
