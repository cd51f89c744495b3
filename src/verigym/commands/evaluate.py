"""`verigym eval --model PATH --env ID`: pass@1 with its confidence interval, and pass^k of several episodes a task."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from verigym.agents.engines.config import EngineConfig
from verigym.commands._arguments import key_values
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError

if TYPE_CHECKING:
    from verigym.agents.episode import Episode


@dataclass(frozen=True)
class Evaluate:
    """Measure a model's pass rate: pass@1 with its 95 % confidence interval (Wilson), and pass^k up to k = samples."""

    model: str
    """Checkpoint: a folder or a hub id; of an endpoint, the model's name there."""
    env: str
    """Gymnasium id, such as verigym/GSM8K-v0."""
    tasks: int | None = None
    """The first so many tasks; default: all."""
    samples: int = 1
    """Episodes of each task; of more than one, pass^k tells how often k of them all pass."""
    split: str = "test"
    """Split of the environment's tasks."""
    source: str | None = None
    """Where the task set is read from: a file, a folder or a hub id."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A keyword argument of the environment, as key=value; may be repeated."""
    temperature: float = 1.0
    """Sampling temperature; 0 takes the most probable token."""
    max_new_tokens: int = 1024
    """Tokens per turn where the environment sets no budget."""
    seed: int = 0
    """Seed of episodes and sampling."""
    deterministic: bool = False
    """Lockstep: the same seed gives the same episodes to the bit."""
    endpoint: str | None = None
    """Address of an OpenAI-compatible endpoint that plays, such as http://localhost:8000; OPENAI_API_KEY is its key."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What plays the episodes."""
    slots: int = 256
    """Requests that the engine runs, or the endpoint gets, at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model lives."""
    output: str | None = None
    """Write every episode to this file (JSONL)."""

    def run(self) -> int:
        if (
            self.temperature < 0
            or self.slots < 1
            or self.max_new_tokens < 1
            or self.samples < 1
            or (self.tasks is not None and self.tasks < 1)
        ):
            raise ConfigError("temperature must be at least 0; tasks, samples, slots and max-new-tokens at least 1")
        kwargs = {"split": self.split, **({"source": self.source} if self.source else {}), **key_values(self.option)}
        spec = EnvSpec(self.env, kwargs=kwargs)
        spec.make().close()  # a wrong environment is told before a model is loaded
        if self.output:
            try:
                Path(self.output).touch()
            except OSError as error:
                raise ConfigError(f"cannot write '{self.output}': {error.strerror}") from error
        from verigym.evaluation import summarise

        episodes = self._play(spec)
        result = summarise(episodes)
        if self.output:
            lines = (json.dumps(episode.to_json(), ensure_ascii=True) + "\n" for episode in episodes)
            Path(self.output).write_text("".join(lines), encoding="utf-8")
        print(f"{self.env} {self.split}: pass@1 {result}, mean reward {result.reward:.3f}")
        if self.samples > 1:
            print(", ".join(f"pass^{k} {share:.3f}" for k, share in enumerate(result.pass_hat, start=1)))
        if result.infra_errors:
            print(f"{result.infra_errors} episodes could not be judged and are left out")
        print(json.dumps(asdict(result)))
        return 0

    def _play(self, spec: EnvSpec) -> list[Episode]:
        from verigym.agents.endpoint import EndpointAgent
        from verigym.evaluation import play, play_endpoint

        if self.endpoint is None:
            return play(
                self.model,
                spec,
                tasks=self.tasks,
                samples=self.samples,
                seed=self.seed,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                engine=self.engine,
                slots=self.slots,
                deterministic=self.deterministic,
                device=self.device,
            )
        if self.deterministic or self.engine != EngineConfig():
            raise ConfigError(
                "an endpoint has an engine of its own and promises no bits: leave out engine and deterministic"
            )
        agent = EndpointAgent(
            self.endpoint,
            self.model,
            api_key=os.environ.get("OPENAI_API_KEY"),
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            concurrency=self.slots,
        )
        return play_endpoint(
            agent, spec, tasks=self.tasks, samples=self.samples, seed=self.seed, concurrency=self.slots
        )
