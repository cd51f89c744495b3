"""Log-probability and entropy of each policy token, without ever holding the logits of all of them."""

# M policy tokens of a micro-batch, V vocabulary, D hidden size

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from verigym.agents.learners.batch import MicroBatch, packed_logits
from verigym.agents.learners.losses import entropy, token_logprobs
from verigym.tasks.errors import EngineError

# Logits in float32 that are held at a time: 64 MiB. More are computed in chunks, and again in the backward pass.
MAX_LOGITS = 2**24


Entropies = Literal["none", "value", "gradient"]

T = TypeVar("T")
# The method of a model in shards, whose weights are whole only during its forward, that calls a function as a forward.
WITHIN_FORWARD = "_verigym_within_forward"
_PROVEN = "_verigym_head_is_proven"


def score_tokens(
    model: torch.nn.Module, micro: MicroBatch, temperature: float, *, entropies: Entropies = "none"
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (M,) of the policy tokens at a temperature, in nats.

    The entropies are 0 if none are asked for, and have a gradient only if that is asked for. Where M * V is above
    MAX_LOGITS, the language-model head is applied to chunks of hidden states, and its logits are computed anew for
    the gradient.
    Raises EngineError for a model whose logits are more than its head's output, if chunks are needed.
    """
    vocabulary = model.config.get_text_config().vocab_size  # type: ignore[operator, union-attr]
    rows = max(1, MAX_LOGITS // vocabulary)
    if len(micro.targets) <= rows:
        return _scores(packed_logits(model, micro), micro.targets, temperature, entropies)
    if not getattr(model, _PROVEN, False):
        prove_head(model, micro)
    return _within_forward(model, _in_chunks, model, micro, rows, temperature, entropies)


def _within_forward(model: torch.nn.Module, function: Callable[..., T], *arguments: Any) -> T:
    """What a function makes of a model's parts, called by themselves."""
    call: Callable[..., T] | None = getattr(model, WITHIN_FORWARD, None)
    return function(*arguments) if call is None else call(function, *arguments)


def _in_chunks(
    model: torch.nn.Module, micro: MicroBatch, rows: int, temperature: float, entropies: Entropies
) -> tuple[Tensor, Tensor]:
    head = model.get_output_embeddings()  # type: ignore[operator]
    parts = [
        checkpoint(_chunk, head, states, targets, temperature, entropies, use_reentrant=False)
        for states, targets in zip(_states(model, micro).split(rows), micro.targets.split(rows), strict=True)
    ]
    logprobs, entropy = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropy)


def _chunk(
    head: torch.nn.Module, states: Tensor, targets: Tensor, temperature: float, entropies: Entropies
) -> tuple[Tensor, Tensor]:
    return _scores(head(states), targets, temperature, entropies)


def _scores(logits: Tensor, targets: Tensor, temperature: float, entropies: Entropies) -> tuple[Tensor, Tensor]:
    logprobs = token_logprobs(logits, targets, temperature)
    if entropies == "none":
        return logprobs, torch.zeros_like(logprobs)
    return logprobs, entropy(logits if entropies == "gradient" else logits.detach(), temperature)


def _states(model: torch.nn.Module, micro: MicroBatch) -> Tensor:
    """The last hidden states (M, D) that predict the policy tokens."""
    output = model.base_model(  # type: ignore[operator, union-attr]
        input_ids=micro.token_ids,
        position_ids=micro.layout.position_ids,
        layout=micro.layout,
        use_cache=False,
    )
    return output.last_hidden_state[0].index_select(0, micro.predicting)  # type: ignore[no-any-return]


@torch.no_grad()
def prove_head(model: torch.nn.Module, micro: MicroBatch) -> None:
    """Proves, on any tokens, that the language-model head is all that turns hidden states into logits.

    Raises EngineError for a model of which it is not.
    """
    head: torch.nn.Module | None = model.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        raise EngineError(f"model type '{_kind(model)}' has no language-model head")
    two = micro.predicting[:2]
    output = model(
        input_ids=micro.token_ids,
        position_ids=micro.layout.position_ids,
        layout=micro.layout,
        use_cache=False,
        logits_to_keep=two,
    )
    logits, ours = output.logits[0].float(), head(_states(model, micro)[: len(two)]).float()
    if not torch.allclose(logits, ours, rtol=1e-2, atol=1e-2 * float(logits.abs().max())):
        raise EngineError(f"model type '{_kind(model)}' does more to its logits than its head: it is not supported")
    setattr(model, _PROVEN, True)


def _kind(model: torch.nn.Module) -> str:
    return str(model.config.model_type)  # type: ignore[union-attr]
