"""AdamW with a clipped gradient that never takes a non-finite step."""

from __future__ import annotations

import math
from typing import Any

import torch

from verigym.tasks.errors import RunError

_MAX_BAD_STEPS = 3


class Optimizer:
    """Steps on the accumulated gradient and clears it.

    A non-finite gradient norm skips the step and is counted; three in a row raise RunError.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        lr: float,
        beta2: float = 0.95,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.max_grad_norm, self.bad_steps = max_grad_norm, 0
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in self.parameters)
        self.adamw = torch.optim.AdamW(
            self.parameters, lr=lr, betas=(0.9, beta2), weight_decay=weight_decay, fused=fused
        )

    def step(self) -> dict[str, float]:
        """One step; returns `grad_norm` before clipping and `skipped` (1 if the step was not taken)."""
        if all(parameter.grad is None for parameter in self.parameters):
            return {"grad_norm": 0.0, "skipped": 0.0}
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        finite = math.isfinite(norm)
        if finite:
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.bad_steps = 0 if finite else self.bad_steps + 1
        if self.bad_steps >= _MAX_BAD_STEPS:
            raise RunError(f"the gradient was not finite in {self.bad_steps} steps in a row; lower the learning rate")
        return {"grad_norm": norm if finite else 0.0, "skipped": float(not finite)}

    def state_dict(self) -> dict[str, Any]:
        return {"adamw": self.adamw.state_dict(), "bad_steps": self.bad_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.adamw.load_state_dict(state["adamw"])
        self.bad_steps = state["bad_steps"]
