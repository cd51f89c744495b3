"""Attention over ragged tokens: one hook under every transformers model, for rollouts and for training.

Tokens of many episodes are laid end to end in one row, so that linear layers see no padding. A layout says where
each episode's tokens are; it reaches the hook as the keyword `layout` of the model's forward.
"""

# N new tokens in the row, B episodes, T new tokens of the longest, L tokens it attends to, H heads, D head size

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from verigym.tasks.errors import EngineError

IMPLEMENTATION = "verigym"


class Layout(Protocol):
    """Where the tokens of a row belong."""

    position_ids: Tensor  # (1, N)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Causal attention within each episode: (1, H, N, D) queries to (1, N, H, D)."""


class PackedLayout:
    """Whole episodes of the given lengths end to end; nothing is cached. Differentiable."""

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.shape = (len(lengths), max(lengths))
        sizes = torch.tensor(list(lengths))
        starts = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
        positions = torch.arange(int(sizes.sum())) - starts
        rows = torch.repeat_interleave(torch.arange(len(sizes)), sizes)
        self.position_ids = positions[None].to(device)
        self.index = (rows * self.shape[1] + positions).to(device)  # (N,) into the padded (B * T)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        grouped = query.shape[1] != key.shape[1]
        query, key, value = (pad(states, self.index, self.shape) for states in (query, key, value))
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
        return unpad(out, self.index)


def pad(states: Tensor, index: Tensor, shape: tuple[int, int]) -> Tensor:
    """(1, H, N, D) to (B, H, T, D), zeros where an episode is shorter than T."""
    flat = states[0].transpose(0, 1)  # (N, H, D)
    padded = flat.new_zeros(shape[0] * shape[1], *flat.shape[1:]).index_copy(0, index, flat)
    return padded.view(*shape, *flat.shape[1:]).transpose(1, 2)


def unpad(states: Tensor, index: Tensor) -> Tensor:
    """(B, H, T, D) to (1, N, H, D)."""
    return states.transpose(1, 2).flatten(0, 1).index_select(0, index)[None]


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function that transformers calls in each attention layer."""
    layout = options.get("layout")
    if layout is None:
        raise EngineError(
            "this model runs with attention over ragged tokens: call it with layout=PackedLayout(lengths)"
        )
    for kind in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if options.get(kind) is not None:
            raise EngineError(f"the model's attention uses {kind}, which is not full attention and is not supported")
    return layout.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(IMPLEMENTATION, attention)


class _Counting(PackedLayout):
    """Counts how often the hook is called."""

    calls = 0

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        self.calls += 1
        return super().attend(layer, query, key, value, scale)


@torch.no_grad()
def install(model: PreTrainedModel) -> None:
    """Puts the hook under a model, in evaluation mode, and proves that every layer calls it.

    Raises EngineError, naming the model type, for one with another kind of attention or of cache.
    """
    config = model.config.get_text_config()
    require_full_attention(config)
    refusal = f"model type '{config.model_type}' does not run its attention through transformers' attention interface"
    layout = _Counting([3, 2], model.device)
    try:
        model.set_attn_implementation(IMPLEMENTATION)
        ids = torch.zeros(1, 5, dtype=torch.long, device=model.device)
        model.eval()(input_ids=ids, position_ids=layout.position_ids, layout=layout, use_cache=False)
    except (ValueError, TypeError, AttributeError) as error:
        raise EngineError(f"{refusal}: {str(error).splitlines()[0]}") from error
    if layout.calls != config.num_hidden_layers:
        raise EngineError(f"{refusal}: {layout.calls} of {config.num_hidden_layers} layers do; it is not supported")


def require_full_attention(config: PreTrainedConfig) -> None:
    """Refuses, by name, a model whose layers keep another cache than that of full attention."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        kinds.add("sliding_attention")
    for name in ("attn_logit_softcapping", "state_size", "kv_lora_rank"):
        if getattr(config, name, None):
            kinds.add(name)
    if kinds:
        raise EngineError(
            f"model type '{config.model_type}' uses {', '.join(sorted(kinds))}; only full attention is supported"
        )
