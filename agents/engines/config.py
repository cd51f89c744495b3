"""Which rollout engine plays, as a part of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from verigym.tasks.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """The rollout engine of a run."""

    kind: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    """The own KV loop over a transformers model, vLLM in this process, or a running vllm serve."""
    url: str | None = None
    """vllm-server: its address, such as http://localhost:8000."""
    memory: float = 0.5
    """vllm: share of the GPU's memory for its weights and its KV cache."""

    def __post_init__(self) -> None:
        if (self.url is not None) != (self.kind == "vllm-server"):
            raise ConfigError("engine.url goes with engine.kind vllm-server, and only with it")
        if not 0 < self.memory <= 1:
            raise ConfigError(f"engine.memory is a share of the GPU's memory, above 0 and at most 1, not {self.memory}")

    def require_bits(self) -> None:
        """Raises ConfigError if the engine does not promise the same bits for the same seed."""
        if self.kind != "transformers":
            raise ConfigError("deterministic needs engine.kind transformers: vLLM does not promise the same bits")
