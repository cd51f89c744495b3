"""Where metrics go besides metrics.jsonl: TensorBoard by default, W&B and Trackio by a flag."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from verigym.config import TrainConfig, to_plain
from verigym.tasks.errors import ConfigError


class Logger(Protocol):
    """Takes the metrics of a step."""

    def log(self, step: int, metrics: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run folder; what was written after `step` is hidden when a run resumes."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Tracker:
    """Weights & Biases or Trackio, which have one interface."""

    def __init__(self, module: str, project: str, name: str, config: Mapping[str, Any]) -> None:
        try:
            self._module = import_module(module)
        except ImportError as error:
            raise ConfigError(f"logging to {module} was asked for, but it is missing: pip install {module}") from error
        self._run = self._module.init(project=project, name=name, config=dict(config))

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        self._module.log(dict(metrics), step=step)

    def close(self) -> None:
        self._module.finish()


def open_loggers(config: TrainConfig, folder: Path, step: int) -> list[Logger]:
    """The loggers that the configuration asks for. Raises ConfigError for one that is not installed."""
    loggers: list[Logger] = []
    for module, project in (("wandb", config.wandb), ("trackio", config.trackio)):
        if project:
            loggers.append(Tracker(module, project, folder.name, to_plain(config)))
    if config.tensorboard:
        loggers.append(TensorBoard(folder / "tensorboard", step))
    return loggers
