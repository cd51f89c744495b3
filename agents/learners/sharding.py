"""A learner over several devices: its models cut into shards (FSDP2), its batches dealt out, its numbers put together.

Every rank does the same in the same order, on its share of the episodes. Whatever one rank computes of a network the
others take part in, because each holds only its shard of the weights.
"""

# R ranks

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import MethodType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from transformers import PreTrainedModel

from verigym.agents.learners.batch import MicroBatch, Sequences
from verigym.agents.learners.layers import layers_of
from verigym.agents.learners.pairs import written_episode
from verigym.agents.learners.scoring import WITHIN_FORWARD, prove_head
from verigym.agents.scalar import ScalarModel

T = TypeVar("T")


class Ranks:
    """The processes over which a learner's models are cut, as one dimension of devices; without one it is alone.

    Alone, each method gives back what it is given: a learner on one device is not another learner.
    """

    def __init__(self, mesh: DeviceMesh | None = None) -> None:
        self.mesh = mesh
        self.rank = 0 if mesh is None else mesh.get_rank()
        self.size = 1 if mesh is None else mesh.size()

    def shard(self, network: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Cuts each layer's weights, and then those outside of layers, over the ranks, in place.

        `dtype`: the precision of the forwards, in which weights are gathered for them; the shards stay as they are.
        """
        if self.mesh is None:
            return
        if isinstance(network, PreTrainedModel):
            prove_head(network, _filler(network.device))  # one rank alone could not, later
        exact = MixedPrecisionPolicy()
        rounded = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        if isinstance(network, ScalarModel):
            self._cut(network.head, exact)
        for module in [*layers_of(network), network]:
            self._cut(module, exact if dtype is None else rounded)
        setattr(network, WITHIN_FORWARD, MethodType(lambda _, function, *arguments: function(*arguments), network))
        register_fsdp_forward_method(network, WITHIN_FORWARD)

    def _cut(self, module: nn.Module, policy: MixedPrecisionPolicy) -> None:
        # Also the outermost part lets go of what it gathered: the next pass would miss a change of its shards.
        part: Any = fully_shard(module, mesh=self.mesh, mp_policy=policy, reshard_after_forward=True)
        # A loss is weighed by the counts of the whole step, so the ranks' gradients are added up: no mean of them.
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo knows no other
        part.set_reduce_scatter_unused_params(True, recurse=False)  # an expert that no token of a rank was sent to

    def share(
        self, batch: Sequences, max_tokens: int, device: torch.device, score: Callable[[MicroBatch], Tensor]
    ) -> Iterator[MicroBatch]:
        """This rank's micro-batches of a batch, each of which goes through one network, once.

        A rank with fewer of them than another takes part in the other's passes: it sends a token through the network
        (`score`, to numbers of one for each policy token) that weighs nothing.
        """
        packs = batch.packs(max_tokens, self.size)
        for indices in packs[self.rank]:
            yield MicroBatch(batch, indices, device)
        for _ in range(max(map(len, packs)) - len(packs[self.rank])):
            nothing = score(_filler(device)).sum() * 0
            if torch.is_grad_enabled():
                nothing.backward()

    def gather(self, items: Sequence[T]) -> list[T]:
        """The items of all ranks, those of rank 0 first. They travel as objects: keep tensors in them off GPUs."""
        if self.mesh is None:
            return list(items)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, list(items), group=self.mesh.get_group())
        return [item for part in parts for item in part]

    def sum(self, value: Tensor) -> float:
        """The sum of a number () over the ranks."""
        if self.mesh is not None:
            value = value.clone()
            dist.all_reduce(value, group=self.mesh.get_group())
        return float(value)


ALONE = Ranks()


def _filler(device: torch.device) -> MicroBatch:
    """Two tokens, of which one is the policy's."""
    return MicroBatch(Sequences.of([written_episode([0, 0], [False, True])]), [0], device)
