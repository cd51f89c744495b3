"""A model that gives one number for each place in a text: the critic's values, the reward model's scores."""

# N tokens of a micro-batch end to end

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from verigym.agents.agent import load_checkpoint, load_model, save_checkpoint
from verigym.agents.attention import install
from verigym.tasks.errors import ConfigError

if TYPE_CHECKING:
    from verigym.agents.learners.batch import MicroBatch

HEAD = "scalar_head.safetensors"


class ScalarModel(nn.Module):
    """A transformer's trunk and a linear head of one output, which begins at zero: every number is 0 at first."""

    def __init__(self, trunk: PreTrainedModel) -> None:
        super().__init__()
        install(trunk)
        hidden = trunk.config.get_text_config().hidden_size
        precise = torch.promote_types(trunk.dtype, torch.float32)
        self.trunk, self.head = trunk, nn.Linear(hidden, 1, device=trunk.device, dtype=precise)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(self, micro: MicroBatch) -> Tensor:
        """One number (N,) for each token of a micro-batch, of the state after it."""
        output = self.trunk(
            input_ids=micro.token_ids,
            position_ids=micro.layout.position_ids,
            layout=micro.layout,
            use_cache=False,
        )
        with torch.autocast(self.device.type, enabled=False):
            numbers: Tensor = self.head(output.last_hidden_state[0].to(self.head.weight.dtype))
            return numbers.squeeze(-1).clone()  # FSDP takes no view from a forward

    def save(self, path: str | Path, tokenizer: Tokenizer) -> None:
        """Writes the trunk as an ordinary transformers checkpoint, and the head beside it."""
        save_checkpoint(path, self.trunk, tokenizer)
        save_file({name: tensor.cpu() for name, tensor in self.head.state_dict().items()}, str(Path(path) / HEAD))


def load_scalar_model(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu", trained: bool = True
) -> ScalarModel:
    """The scalar model saved in a folder; not `trained`: a new one on the trunk of any checkpoint.

    Raises ConfigError, in one line, if there is none.
    """
    if not trained:
        return ScalarModel(load_model(path, dtype=dtype, device=device).base_model)
    model = ScalarModel(load_checkpoint(AutoModel, path, dtype=dtype).to(device).eval())
    head = Path(path) / HEAD
    if not head.is_file():
        raise ConfigError(f"'{path}' is no scalar model: it has no {HEAD}")
    model.head.load_state_dict(load_file(str(head), device=device))
    return model
