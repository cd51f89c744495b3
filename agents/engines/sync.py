"""Proof that the learner's weights reach the engine: what one scores, the other must score."""

# K probe tokens

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from verigym.agents.attention import PackedLayout
from verigym.agents.engines.engine import Engine
from verigym.agents.learners.losses import token_logprobs
from verigym.tasks.errors import SyncError

_SLOPE_TOLERANCE = 0.2
_NOISE_MARGIN = 5.0


@dataclass(frozen=True, slots=True)
class SyncReport:
    """One sync: `slope` of the engine's change on the learner's; `proven` if the change stood out of the noise."""

    version: int
    slope: float
    proven: bool


class WeightSync:
    """Sends weights to an engine and proves that they arrived.

    At the start `prove_each` perturbs every tensor in turn: the engine's scores must follow the learner's. After
    each `send` the change of the engine's scores on the probe tokens, since the last proven version, is regressed
    on the learner's: the slope must be near 1. A change below the noise between the two (their difference at the
    proven version) proves nothing: it is left to accumulate and reported as unproven.

    Raises SyncError if the engine does not follow.
    """

    def __init__(self, model: PreTrainedModel, engine: Engine, *, probes: int = 8, length: int = 24) -> None:
        self.model, self.engine = model, engine
        vocabulary = model.config.get_text_config().vocab_size
        self.probes = np.random.default_rng(0).integers(0, vocabulary, (probes, length)).tolist()
        self.unproven = 0
        self._learner = self._engine = np.zeros(0)

    def start(self, version: int) -> None:
        """Sends all weights and takes them as the proven ones if both sides score alike."""
        self.engine.update_weights(self._tensors(), version)
        self._learner, self._engine = self._score_learner(), self._score_engine()
        error = float(np.abs(self._learner - self._engine).max())
        if not error < (1e-3 if self._is_exact() else 0.5):
            raise SyncError(f"engine and learner differ by {error:.2g} nats on the same weights and tokens")

    def prove_each(self) -> None:
        """Perturbs, sends, scores and restores each tensor."""
        generator = torch.Generator().manual_seed(0)
        version = self.engine.version
        for name, tensor in self._tensors():
            kept = tensor.detach().clone()
            noise = torch.randn(tensor.shape, generator=generator).to(tensor) * (0.1 * tensor.std().nan_to_num() + 0.05)
            with torch.no_grad():
                tensor.add_(noise)
            self.engine.update_weights([(name, tensor)], version)
            slope, stands_out = self._slope(self._score_learner(), self._score_engine())
            with torch.no_grad():
                tensor.copy_(kept)
            self.engine.update_weights([(name, tensor)], version)
            if stands_out and not abs(slope - 1) < _SLOPE_TOLERANCE:
                raise SyncError(
                    f"the engine does not follow the tensor '{name}': its scores move {slope:.2f} times the learner's"
                )
        if float(np.abs(self._score_engine() - self._engine).max()) > (1e-4 if self._is_exact() else 0.1):
            raise SyncError("the engine's scores do not come back when perturbed tensors are restored")

    def send(self, version: int) -> SyncReport:
        """Sends all weights as `version` and checks that the engine's scores moved as the learner's did."""
        self.engine.update_weights(self._tensors(), version)
        learner, engine = self._score_learner(), self._score_engine()
        slope, proven = self._slope(learner, engine)
        if proven and not abs(slope - 1) < _SLOPE_TOLERANCE:
            raise SyncError(
                f"version {version} did not reach the engine: its scores moved {slope:.2f} times the learner's"
            )
        self.unproven = 0 if proven else self.unproven + 1
        if proven:
            self._learner, self._engine = learner, engine
        return SyncReport(version, slope, proven)

    def state_dict(self) -> dict[str, object]:
        """The last proven scores, so that a resumed run reports what an uninterrupted one does."""
        return {"unproven": self.unproven, "learner": self._learner.tolist(), "engine": self._engine.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.unproven = int(state["unproven"])
        self._learner, self._engine = np.array(state["learner"]), np.array(state["engine"])

    def _slope(self, learner: NDArray[np.float64], engine: NDArray[np.float64]) -> tuple[float, bool]:
        """Slope of the engine's change on the learner's, and whether the change stands out of the noise."""
        change, followed = learner - self._learner, engine - self._engine
        size = float(change @ change)
        noise = float(np.sum((self._engine - self._learner) ** 2)) + 1e-12
        if size < _NOISE_MARGIN**2 * noise:
            return 1.0, False
        return float(change @ followed) / size, True

    def _tensors(self) -> Iterable[tuple[str, Tensor]]:
        return list(self.model.named_parameters())

    def _is_exact(self) -> bool:
        return getattr(self.engine, "dtype", torch.float32) == torch.float32

    def _score_engine(self) -> NDArray[np.float64]:
        return np.concatenate(self.engine.score(self.probes)).astype(np.float64)

    @torch.no_grad()
    def _score_learner(self) -> NDArray[np.float64]:
        lengths = [len(probe) for probe in self.probes]
        layout = PackedLayout(lengths, self.model.device)
        flat = torch.tensor([token for probe in self.probes for token in probe], device=self.model.device)
        output = self.model(input_ids=flat[None], position_ids=layout.position_ids, layout=layout, use_cache=False)
        logprobs = token_logprobs(output.logits[0], flat.roll(-1), 1.0).view(len(lengths), -1)
        return logprobs[:, :-1].flatten().double().cpu().numpy()  # type: ignore[no-any-return]
