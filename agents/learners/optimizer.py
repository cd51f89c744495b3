"""AdamW with a clipped gradient that never takes a non-finite step, and a learning rate that follows the run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from verigym.agents.shards import whole
from verigym.tasks.errors import RunError

_MAX_BAD_STEPS = 3


class Optimizer:
    """Steps on the accumulated gradient and clears it.

    A non-finite gradient norm skips the step and is counted; three in a row raise RunError. `schedule` is what `lr`
    is multiplied by at each step of the run, from 0; `advance` goes on to the next one.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        lr: float,
        beta2: float = 0.95,
        weight_decay: float = 0.0,
        max_grad_norm: float = 1.0,
        schedule: Callable[[int], float] = lambda step: 1.0,
    ) -> None:
        learning = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self.names, self.parameters = list(learning), list(learning.values())
        self.max_grad_norm, self.schedule, self.bad_steps = max_grad_norm, schedule, 0
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in self.parameters)
        self.adamw = torch.optim.AdamW(
            self.parameters, lr=lr, betas=(0.9, beta2), weight_decay=weight_decay, fused=fused
        )
        for parameter in self.parameters:
            # As AdamW does at its first step: the state is of one shape from the start, so that it can be loaded into.
            step = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
            moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
            self.adamw.state[parameter] = {"step": step, **moments}
        self.scheduler = LambdaLR(self.adamw, schedule)

    @property
    def lr(self) -> float:
        """The learning rate of this step of the run."""
        return float(self.adamw.param_groups[0]["lr"])

    def advance(self) -> None:
        """To the next step of the run, whether or not this one had a gradient."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.scheduler.step()

    def step(self) -> dict[str, float]:
        """One step; returns `grad_norm` before clipping and `skipped` (1 if the step was not taken)."""
        if all(parameter.grad is None for parameter in self.parameters):
            return {"grad_norm": 0.0, "skipped": 0.0}
        norm = float(whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm)))
        finite = math.isfinite(norm)
        if finite:
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        self.bad_steps = 0 if finite else self.bad_steps + 1
        if self.bad_steps >= _MAX_BAD_STEPS:
            raise RunError(f"the gradient was not finite in {self.bad_steps} steps in a row; lower the learning rate")
        return {"grad_norm": norm if finite else 0.0, "skipped": float(not finite)}

    def state_dict(self) -> dict[str, Any]:
        """AdamW's moments by the names of the parameters, not copied, and how far the schedule is."""
        moments = {
            name: dict(self.adamw.state[parameter]) for name, parameter in zip(self.names, self.parameters, strict=True)
        }
        return {"moments": moments, "scheduler": self.scheduler.state_dict(), "bad_steps": self.bad_steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, parameter in zip(self.names, self.parameters, strict=True):
            for kind, tensor in self.adamw.state[parameter].items():
                tensor.copy_(state["moments"][name][kind])
        self.scheduler.load_state_dict(state["scheduler"])
        # The moments are those of the run so far; the settings, and the length of its schedule, are this optimizer's.
        settings = self.adamw.defaults
        self.scheduler.base_lrs = [settings["lr"] for _ in self.adamw.param_groups]
        for group in self.adamw.param_groups:
            group |= {name: settings[name] for name in ("betas", "weight_decay")}
            group["initial_lr"] = settings["lr"]
            group["lr"] = settings["lr"] * self.schedule(self.scheduler.last_epoch)
        self.bad_steps = state["bad_steps"]
