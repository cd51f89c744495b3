"""How a model's layers run in training: computed again for the gradient instead of kept, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from verigym.agents.attention import attention
from verigym.tasks.errors import ConfigError, EngineError

_COMPILED = "verigym-compiled"


def recompute_layers(model: PreTrainedModel) -> None:
    """Keeps only what enters each layer; its inside is computed again when its gradient is needed.

    Not transformers' own way, which asks for training mode, and so for dropout. Raises EngineError for a model
    whose layers cannot be told.
    """
    for layer in layers_of(model):
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **options)
    # Nothing in a layer draws random numbers: dropout is off.
    return checkpoint(forward, *arguments, use_reentrant=False, preserve_rng_state=False, **options)


def compile_layers(model: PreTrainedModel) -> None:
    """Compiles each layer but its attention, whose layout is another for every batch; for any number of tokens.

    Raises ConfigError where nothing can be compiled, EngineError for a model whose layers cannot be told.
    """
    require_compiler(model.device.type)
    AttentionInterface.register(_COMPILED, torch.compiler.disable(attention))
    # Past the limit layers would run uncompiled without a word: they have variants with and without gradient, adapter
    # and autocast, for policy, reference and critic.
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    model.set_attn_implementation(_COMPILED)
    for layer in layers_of(model):
        layer.forward = torch.compile(layer.forward, dynamic=True)


def require_compiler(device: str) -> None:
    """Raises ConfigError if torch.compile does not work on this machine."""
    from torch._dynamo.exc import BackendCompilerFailed  # a second that only those pay who compile

    try:
        torch.compile(lambda states: states.sin() + 1)(torch.ones(3, device=device))
    except BackendCompilerFailed as error:
        raise ConfigError(
            f"compile does not work on this machine ({str(error).splitlines()[0]}); install a C++ compiler, or set "
            "compile to false"
        ) from error


def layers_of(network: torch.nn.Module) -> list[Any]:
    """The layers of a model, or of a network around one. Raises EngineError for a model whose layers cannot be told."""
    layers = [module for module in network.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        model = next(module for module in network.modules() if isinstance(module, PreTrainedModel))
        raise EngineError(f"model type '{model.config.model_type}' does not mark its layers as transformers does")
    return layers
