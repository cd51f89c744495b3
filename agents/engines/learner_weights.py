"""The learner's half of the proof of sync: its weights, by the names of a checkpoint, and what it scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from verigym.agents.attention import PackedLayout
from verigym.agents.learners.losses import token_logprobs
from verigym.agents.lora import checkpoint_weights
from verigym.agents.shards import add_noise


class LearnerWeights:
    """A model's weights, which an engine is sent. Of a model in shards every rank has to make each call."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.weights = model, checkpoint_weights(model)
        self._kept: list[tuple[Tensor, Tensor]] = []

    def value(self, index: int) -> Tensor:
        """The tensor of the weight at `index`, whole, as a checkpoint has it."""
        return self.weights[index].value()

    def perturb(self, index: int, part: int, by: float) -> None:
        """Puts noise on a part of a weight, until `restore`."""
        tensors = self.weights[index].parts[part]
        self._kept = [(tensor, tensor.detach().clone()) for tensor in tensors]
        for tensor in tensors:
            add_noise(tensor, by)

    @torch.no_grad()
    def restore(self) -> None:
        """Takes the noise back, to the bit."""
        for tensor, before in self._kept:
            tensor.copy_(before)
        self._kept = []

    @torch.no_grad()
    def score(self, probes: Sequence[Sequence[int]]) -> list[NDArray[np.float64]]:
        """For each sequence of n ids the n - 1 log-probabilities of its tokens after the first."""
        lengths = [len(probe) for probe in probes]
        layout = PackedLayout(lengths, self.model.device)
        flat = torch.tensor([token for probe in probes for token in probe], device=self.model.device)
        output = self.model(input_ids=flat[None], position_ids=layout.position_ids, layout=layout, use_cache=False)
        logprobs = token_logprobs(output.logits[0], flat.roll(-1), 1.0).double().cpu().numpy()
        return [part[:-1] for part in np.split(logprobs, np.cumsum(lengths)[:-1])]
