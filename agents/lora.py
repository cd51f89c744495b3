"""Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) through peft: few weights learn, the engine gets merged ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from verigym.agents.learners.config import LoRAConfig
from verigym.agents.shards import whole
from verigym.tasks.errors import ConfigError, UnknownNameError

# The folder of the adapter beside a checkpoint whose weights it is merged into.
ADAPTER = "adapter"
_NAME, _PREFIX = "default", "base_model.model."  # peft's own


def add_adapter(model: PreTrainedModel, config: LoRAConfig, seed: int) -> None:
    """Puts adapters on linear layers, in place; nothing else learns from now on, and at first they change nothing.

    Raises ConfigError if peft is missing, UnknownNameError for a layer that the model does not have.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ModuleNotFoundError as error:
        raise ConfigError("lora needs peft, which is missing: pip install 'verigym[lora]'") from error
    _require_layers(model, config.targets)
    wanted = list(config.targets) or "all-linear"
    settings = LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=wanted, task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[] if model.device.type == "cpu" else [model.device]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, model)
    model.eval()


def _require_layers(model: PreTrainedModel, targets: tuple[str, ...]) -> None:
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    for target in targets:
        if target not in linear:
            raise UnknownNameError.of(f"linear layer of model type '{model.config.model_type}' named", target, linear)


def has_adapter(model: nn.Module) -> bool:
    """Whether `add_adapter` was called."""
    return bool(_adapted(model))


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """Within it the model is the one that the adapter was added to, to the bit."""
    layers = list(_adapted(model).values())
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of the checkpoint that a model is; `layer` is that of the adapter to merge into it, if there is one."""

    name: str
    tensor: Tensor
    layer: Any = None

    @torch.no_grad()
    def value(self) -> Tensor:
        """The tensor as a checkpoint has it, whole; of a model in shards every rank has to ask."""
        return whole(self.tensor if self.layer is None else self.tensor + self.layer.get_delta_weight(_NAME))

    @property
    def parts(self) -> list[list[Tensor]]:
        """What it is made of: of an adapter the factors together, because one of them is zero at first."""
        return [[self.tensor]] if self.layer is None else [[self.tensor], [factor for _, factor in _own(self.layer)]]


def checkpoint_weights(model: nn.Module) -> list[Weight]:
    """The weights by the names of an ordinary checkpoint; those with an adapter are merged when asked for."""
    layers = {f"{name}.base_layer.weight": layer for name, layer in _adapted(model).items()}
    adapter = _adapter(model)
    return [
        Weight(_plain(name), tensor, layers.get(name))
        for name, tensor in model.named_parameters()
        if name not in adapter
    ]


def checkpoint_state(model: nn.Module, *, keep: bool = True) -> dict[str, Tensor]:
    """What an ordinary checkpoint of the model holds, adapters merged, off the device.

    Of a model in shards every rank has to ask; those that do not `keep` it get nothing.
    """
    weights = {id(weight.tensor): weight for weight in checkpoint_weights(model)}
    adapter, state = _adapter(model), dict[str, Tensor]()
    values: dict[int, Tensor] = {}  # tied weights stay one tensor
    for name, tensor in model.state_dict(keep_vars=True).items():
        if name in adapter:
            continue
        if id(tensor) not in values:
            value = weights.get(id(tensor), Weight(name, tensor)).value().detach()
            values[id(tensor)] = value.cpu() if keep else value.new_empty(0)
        state[_plain(name)] = values[id(tensor)]
    return state if keep else {}


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the adapter, by peft's names, off the device; of a model in shards every rank has to ask."""
    return {_as_saved(name): whole(tensor).detach().cpu() for name, tensor in _adapter(model).items()}


def save_adapter(model: Any, state: dict[str, Tensor], path: str | Path) -> None:
    """Writes the adapter as peft does: it can be put on the model that training began with."""
    Path(path).mkdir(parents=True, exist_ok=True)
    model.peft_config[_NAME].save_pretrained(str(path))
    save_file(state, str(Path(path) / "adapter_model.safetensors"))


@torch.no_grad()
def load_adapter(model: nn.Module, path: str | Path) -> None:
    """Sets the adapter to the one saved by `save_adapter`, to the bit."""
    saved = load_file(str(Path(path) / "adapter_model.safetensors"))
    for name, tensor in _adapter(model).items():
        tensor.copy_(saved[_as_saved(name)])


def _adapted(model: nn.Module) -> dict[str, Any]:
    """The layers with an adapter."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


def _adapter(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the adapter."""
    return {f"{name}.{part}": tensor for name, layer in _adapted(model).items() for part, tensor in _own(layer)}


def _own(layer: nn.Module) -> list[tuple[str, Tensor]]:
    """The tensors of one layer's adapter."""
    return [(part, tensor) for part, tensor in layer.named_parameters() if not part.startswith("base_layer.")]


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _as_saved(name: str) -> str:
    return _PREFIX + name.replace(f".{_NAME}.", ".")
