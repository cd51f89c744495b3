"""Proof that the learner's weights reach the engine: what one scores, the other must score."""

# C copies of the engine, K scores of the probe tokens, in nats

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from verigym.agents.engines.begun import BegunEpisodes
from verigym.agents.engines.engine import Engine, Held, layer_of
from verigym.agents.engines.learner_weights import LearnerWeights
from verigym.tasks.errors import SyncError

# A slope whose standard error is larger proves nothing.
_STANDARD_ERROR = 0.05
# Tokens of kept keys and values may stray by so many times what those of unseen prompts do.
_DRIFT_MARGIN = 3.0
# A slope may be off by so many times its standard error.
_SLOPE_MARGIN = 4.0
# The engine may stray by so many times the noise between the two.
_NOISE_MARGIN = 6.0
# Two sums of the same numbers in float64 may differ by this part of them.
_ROUNDING = 1e-11
_STALE = "the engine goes on with keys and values of older weights: after an update its tokens' log-probabilities are"


@dataclass(frozen=True, slots=True)
class SyncReport:
    """One sync: `slope` of the engine's change on the learner's (1 if unproven); `proven` if that can be told."""

    version: int
    slope: float
    proven: bool


@dataclass(frozen=True, slots=True)
class _Scores:
    """Log-probabilities of the same tokens by the learner (K,) and by each copy of the engine (C, K)."""

    learner: NDArray[np.float64]
    engine: NDArray[np.float64]

    @property
    def gap(self) -> float:
        return _norm(self.engine - self.learner)


@dataclass(frozen=True, slots=True)
class _Precision:
    """How well two implementations of one model agree: `noise` at least, `gap` at most, in nats per token.

    The engine must follow the learner's change to within the part `tolerance` of it: rounded weights move by rounded
    steps, exact ones as the learner's.
    """

    noise: float
    gap: float
    tolerance: float


_EXACT = _Precision(noise=2e-6, gap=1e-3, tolerance=0.001)
_ROUNDED = _Precision(noise=1e-2, gap=0.5, tolerance=0.2)


class WeightSync:
    """Sends weights to an engine and proves that they arrived.

    At the start `prove_each` perturbs every tensor in turn: the engine's scores must follow the learner's. The engine
    gets the tensors of an ordinary checkpoint: one with an adapter merged into it is perturbed through either. After
    each `send` the change of the engine's scores on the probe tokens, since the last proven version, is regressed
    on the learner's: the slope must be near 1, and little of the change may lie beside it. The noise is the
    difference between the two at the proven version. A change from which it leaves no slope to be told proves
    nothing: it is left to accumulate and reported as unproven. Episodes that were begun before an update of an idle
    engine must go on with the new weights. Weights that the engine lets be read back (`held`) must besides have the
    learner's sums, so that no tensor is too small to be missed. Each copy of the engine is proven by itself.
    `learner` are the model's weights where calls to them reach every rank that has a shard of it.

    Raises SyncError if the engine does not follow.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        engine: Engine,
        *,
        learner: LearnerWeights | None = None,
        probes: int = 8,
        length: int = 24,
    ) -> None:
        self.model, self.engine, self.learner = model, engine, learner or LearnerWeights(model)
        self.weights = self.learner.weights
        vocabulary = model.config.get_text_config().vocab_size
        self.probes: list[list[int]] = np.random.default_rng(0).integers(0, vocabulary, (probes, length)).tolist()
        self.unproven = 0
        self._proven = _Scores(np.zeros(0), np.zeros((engine.copies, 0)))

    def start(self, version: int) -> None:
        """Sends all weights and takes them as the proven ones if both sides score alike."""
        self.engine.update_weights(self._tensors(), version)
        self._proven = self._score(self.probes)
        error = float(np.abs(self._proven.learner - self._proven.engine).max())
        if not error < self._precision.gap:
            dtype, most = str(self._dtype).removeprefix("torch."), self._precision.gap
            raise SyncError(
                f"engine and learner differ by {error:.2g} nats on the same weights and tokens, more than the {most:g} "
                f"that {dtype} explains; an engine that computes in another precision must be started with {dtype}"
            )

    def prove_each(self) -> tuple[str, ...]:
        """Perturbs, sends, scores and restores each tensor; then checks that no older keys and values are used.

        Returns the names of tensors that cannot be proven, because the learner's own scores do not depend on them
        (an expert that no probe token is routed to): with full attention and dense layers there are none.
        """
        self._resend_layers()
        few = self.probes[:2]  # enough for nearly all tensors, at a fraction of the cost
        few_before, before = self._score(few), self._score(self.probes)
        unseen = [
            weight.name
            for index, weight in enumerate(self.weights)
            for part in range(len(weight.parts))
            if not self._follows(index, part, few, few_before, 1.0)
            and not self._follows(index, part, self.probes, before, 4.0)
        ]
        if not _norm(self._score(self.probes).engine - before.engine) < self._precision.noise * _NOISE_MARGIN:
            raise SyncError("the engine's scores do not come back when perturbed tensors are restored")
        embedding = self.model.get_input_embeddings().weight
        index = next(index for index, weight in enumerate(self.weights) if weight.tensor is embedding)
        with self._perturbed(index, 0, 1.0):
            begun = self._begin(self.probes)
        gap = float(np.abs(begun.gaps(self.learner.score)[0]).max())
        if not gap < self._precision.gap:
            raise SyncError(f"{_STALE} {gap:.2g} nats off")
        return tuple(unseen)

    def send(self, version: int) -> SyncReport:
        """Sends all weights as `version` and checks that the engine's scores moved as the learner's did."""
        # the episodes of an engine that is at work show by themselves whether it forgets what it computed
        begun = None if self.engine.pending else self._begin(self.probes[:2])
        self.engine.update_weights(self._tensors(), version)
        fault = f"version {version} did not reach the engine"
        self._compare_held(fault)
        slope, proven = self._compare(self._proven, after := self._score(self.probes), fault)
        if begun is not None:
            gap, unseen = map(_norm, begun.gaps(self.learner.score, self._unseen(version)))
            size, noise = _norm(after.learner - self._proven.learner), max(after.gap, self._precision.noise)
            # drift, which tokens of unseen prompts show too, is not its business
            if not gap < self._precision.tolerance * size + _NOISE_MARGIN * noise + _DRIFT_MARGIN * unseen:
                raise SyncError(f"version {version}: {_STALE} {gap:.2g} nats off, those of unseen prompts {unseen:.2g}")
        self.unproven = 0 if proven else self.unproven + 1
        if proven:
            self._proven = after
        return SyncReport(version, slope, proven)

    def state_dict(self) -> dict[str, object]:
        """The last proven scores, so that a resumed run reports what an uninterrupted one does."""
        learner, engine = self._proven.learner.tolist(), self._proven.engine.tolist()
        return {"unproven": self.unproven, "learner": learner, "engine": engine}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.unproven = int(state["unproven"])
        proven = _Scores(np.array(state["learner"]), np.array(state["engine"]))
        if len(proven.engine) == self.engine.copies:  # of another number it starts anew
            self._proven = proven

    def _follows(self, index: int, part: int, probes: Sequence[Sequence[int]], before: _Scores, by: float) -> bool:
        """Whether a perturbation of a weight's part shows; raises SyncError if the engine does not follow it."""
        with self._perturbed(index, part, by):
            after = self._score(probes)
        return self._compare(before, after, f"the engine does not follow the tensor '{self.weights[index].name}'")[1]

    @contextmanager
    def _perturbed(self, index: int, part: int, by: float) -> Iterator[None]:
        """Noise on part of a weight on both sides; afterwards the learner's is the same to the bit."""
        try:
            self.learner.perturb(index, part, by)
            self._send_part(index)
            yield
        finally:
            self.learner.restore()
            self._send_part(index)

    def _send_part(self, index: int) -> None:
        """Sends a weight alone, or with its layer where the engine cannot take it alone."""
        part = self._layers[layer_of(self.weights[index].name)] if self.engine.whole_layers else [index]
        self.engine.update_weights(self._values(part), self.engine.version)

    def _resend_layers(self) -> None:
        """Sends layer by layer what the engine has already; a fault in one would else bear another tensor's name."""
        for layer, indices in self._layers.items() if self.engine.whole_layers else ():
            before = self._score(self.probes)
            self._send_part(indices[0])
            moved = _norm(self._score(self.probes).engine - before.engine)
            if not moved < self._precision.noise * _NOISE_MARGIN:
                raise SyncError(
                    f"the engine does not keep '{layer}': sent again, it moved the scores by {moved:.2g} nats"
                )

    @property
    def _layers(self) -> dict[str, list[int]]:
        """The indices of the weights by the part of the model that engines fuse tensors of."""
        found: dict[str, list[int]] = {}
        for index, weight in enumerate(self.weights):
            found.setdefault(layer_of(weight.name), []).append(index)
        return found

    def _unseen(self, version: int) -> list[list[int]]:
        """Two probes that no other version has."""
        shuffled = np.random.default_rng(version).permutation(np.concatenate(self.probes)).tolist()
        length = len(self.probes[0])
        return [shuffled[:length], shuffled[length : 2 * length]]

    def _begin(self, probes: list[list[int]]) -> BegunEpisodes:
        """An episode for each probe, and one in each copy of the engine at least: others are probes turned round."""
        count = len(probes)
        turned = [divmod(i, count) for i in range(max(count, self.engine.copies))]
        return BegunEpisodes(self.engine, [probes[which][by:] + probes[which][:by] for by, which in turned])

    def _compare(self, before: _Scores, after: _Scores, fault: str) -> tuple[float, bool]:
        """Slope of the engine's change on the learner's, and whether that can be told from the noise."""
        change, followed = after.learner - before.learner, after.engine - before.engine
        size, noise = _norm(change), max(before.gap, self._precision.noise)
        astray = _norm(followed - change)
        # Both versions have noise, hence the root of 2.
        error = 2**0.5 * noise / max(size * len(change) ** 0.5, 1e-300)
        proven = error <= _STANDARD_ERROR
        slopes = followed @ change / (change @ change) if proven else np.ones(1)
        slope = float(slopes[np.abs(slopes - 1).argmax()])  # of the copy that follows worst
        tolerance = self._precision.tolerance if proven else _ROUNDED.tolerance
        near = not proven or abs(slope - 1) < max(tolerance, _SLOPE_MARGIN * error)
        if not (near and astray < tolerance * size + _NOISE_MARGIN * noise):
            raise SyncError(
                f"{fault}: its scores moved {slope:.2f} times the learner's, "
                f"and {astray:.2g} nats beside a change of {size:.2g}"
            )
        return slope, proven

    def _compare_held(self, fault: str) -> None:
        """What the engine holds against what was sent."""
        places = {weight.name: index for index, weight in enumerate(self.weights)}
        for held in self.engine.held():
            if all(name in places for name in held.names):
                values = [self.learner.value(places[name]).to(self._dtype) for name in held.names]
                sent = [Held.of((name,), value) for name, value in zip(held.names, values, strict=True)]
                total, squares = sum(part.total for part in sent), sum(part.squares for part in sent)
                # float64 adds up fused and separate tensors alike, but for its rounding
                size = (sum(value.numel() for value in values) * squares) ** 0.5
                near = abs(held.total - total) <= _ROUNDING * size
                if not (near and abs(held.squares - squares) <= _ROUNDING * squares):
                    raise SyncError(f"{fault}: it holds another {' + '.join(held.names)}")

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        return self._values(range(len(self.weights)))

    def _values(self, indices: Iterable[int]) -> Iterator[tuple[str, Tensor]]:
        """Names and tensors of weights, one whole and merged tensor at a time."""
        return ((self.weights[index].name, self.learner.value(index)) for index in indices)

    @property
    def _dtype(self) -> torch.dtype:
        """The engine's; one that does not tell is float32."""
        holder = self.engine if hasattr(self.engine, "dtype") else getattr(self.engine, "model", None)
        dtype: torch.dtype = getattr(holder, "dtype", torch.float32)
        return dtype

    @property
    def _precision(self) -> _Precision:
        """What the engine's precision allows."""
        return _EXACT if self._dtype.itemsize >= 4 else _ROUNDED

    def _score(self, probes: Sequence[Sequence[int]]) -> _Scores:
        learner, copies = self.learner.score(probes), self.engine.copies
        engine = np.concatenate(self.engine.score([*probes] * copies)).astype(np.float64)
        return _Scores(np.concatenate(learner), engine.reshape(copies, -1))


def _norm(values: NDArray[np.float64]) -> float:
    """Root mean square; of several rows the largest."""
    return float(np.sqrt(np.mean(values**2, axis=-1)).max())
