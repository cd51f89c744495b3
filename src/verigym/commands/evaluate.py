"""`verigym eval --model PATH --env ID`: how good models are on environments, and which of them is better."""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args, get_type_hints

import tyro

from verigym.agents.engines.config import EngineConfig, RayConfig
from verigym.cli import parse_options
from verigym.commands._arguments import Limit, Options, Source, key_values
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError, RunInterrupted

if TYPE_CHECKING:
    from verigym.comparison import Comparison, Evaluator
    from verigym.players import Player

_ENGINES = get_args(get_type_hints(EngineConfig)["kind"])


@dataclass(frozen=True)
class Evaluate:
    """Measure how often models pass: pass@1 (avg@n of n samples) and, of several samples, pass@k, pass^k, majority@k.

    All figures are means over tasks; intervals are a bootstrap over tasks. With several models, each is compared with
    the first one on the same tasks. With --folder what was played is kept: an evaluation that was interrupted goes on,
    and of one with another model, environment, or more tasks or samples only the new part is played. The exit status
    is 1 if no episode of a model on an environment could be judged; the others' figures are told.
    """

    model: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")]
    """A checkpoint (a folder or a hub id), PATH@ENGINE such as PATH@vllm, or NAME@http://host:port; may be repeated."""
    env: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="ENV")]
    """An id, such as verigym/GSM8K-v0, or with options of its own ID,key=value,...; may be repeated."""
    tasks: Limit = None
    """The first so many tasks of each environment."""
    samples: int = 1
    """Episodes of each task; of more than one, pass@k, pass^k and majority@k are told too."""
    split: str | None = None
    """Split of the environments' tasks; default: test, or of an environment that takes no split all its tasks."""
    source: Source = None
    """Where the task sets are read from: a hub id, a file or a folder."""
    option: Options = ()
    """A keyword argument of every environment; may be repeated."""
    temperature: float = 1.0
    """Sampling temperature; 0 takes the most probable token."""
    max_new_tokens: int = 1024
    """Tokens per turn where the environment sets no budget."""
    seed: int = 0
    """Seed of episodes and sampling."""
    deterministic: bool = False
    """Lockstep: the same seed gives the same episodes to the bit."""
    endpoint: str | None = None
    """Address of the OpenAI-compatible endpoint that has the models; OPENAI_API_KEY is its key."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """What plays the episodes of checkpoints."""
    slots: int = 256
    """Requests that the engine runs, or the endpoint gets, at a time."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the models live."""
    folder: str | None = None
    """Keep the episodes in this folder, go on from what is there, and write report.json and report.png."""
    output: str | None = None
    """Write every judged episode to this file (JSONL)."""
    json: bool = False
    """Print the figures as JSON, and nothing else on standard output."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Evaluate:
        """`--json` may stand alone, for `--json True`."""
        whole: list[str] = []
        for word, after in pairwise([*arguments, ""]):
            whole += [word, "True"] if word == "--json" and after not in ("True", "False") else [word]
        return parse_options(cls, "eval", whole)  # type: ignore[no-any-return]

    def run(self) -> int:
        self._check()
        envs = {text: self._spec(text) for text in self.env}  # a wrong one is told before a model is loaded
        from verigym.comparison import Evaluator, plain
        from verigym.comparison_report import plot

        with tempfile.TemporaryDirectory() as temporary:
            evaluator = Evaluator(
                {text: self._player(text) for text in self.model},
                envs,
                self.folder or temporary,
                tasks=self.tasks,
                samples=self.samples,
                seed=self.seed,
            )
            try:
                self._play(evaluator)
                found = evaluator.compare()
                self._write_episodes(found)
            finally:
                evaluator.close()
        settings = {name: getattr(self, name) for name in ("samples", "seed", "temperature", "max_new_tokens")}
        report = json.dumps(plain(found, **settings), indent=2)
        if self.folder:
            (Path(self.folder) / "report.json").write_text(report + "\n", encoding="utf-8")
            plot(found, Path(self.folder) / "report.png")
        print(report) if self.json else self._show(found, envs)
        return 1 if found.failures else 0

    def _check(self) -> None:
        if (
            not 0 <= self.temperature < math.inf
            or self.slots < 1
            or self.max_new_tokens < 1
            or self.samples < 1
            or (self.tasks is not None and self.tasks < 1)
        ):
            raise ConfigError(
                "temperature must be a number of at least 0; tasks, samples, slots and max-new-tokens at least 1"
            )
        for name, texts in (("model", self.model), ("env", self.env)):
            if not texts:
                raise ConfigError(f"missing: --{name}; see verigym eval --help")
            twice = [text for text in texts if texts.count(text) > 1]
            if twice:
                raise ConfigError(f"--{name} {twice[0]} is given twice")
        if self.output:
            try:
                Path(self.output).touch()
            except OSError as error:
                raise ConfigError(f"cannot write '{self.output}': {error.strerror}") from error

    def _spec(self, text: str) -> EnvSpec:
        """The environment of ID or ID,key=value,..., on the split that is asked for, or else on what it holds out."""
        env_id, *options = text.split(",")
        named = {name: value for name, value in (("split", self.split), ("source", self.source)) if value}
        spec = EnvSpec(env_id, kwargs={**named, **key_values(self.option), **key_values(options)})
        asked = spec.kwargs.get("split")
        if asked is None:
            return spec.held_out()
        if (split := spec.split()) != asked:
            raise ConfigError(f"{env_id} has no split '{asked}': its tasks are of '{split}'; leave split out")
        return spec

    def _player(self, text: str) -> Player:
        """Who plays as PATH, PATH@ENGINE or NAME@ADDRESS."""
        from verigym.agents.endpoint import EndpointAgent
        from verigym.players import EndpointPlayer, LocalPlayer

        name, _, where = text.rpartition("@")
        kind = re.split("[,:]", where)[0]
        if name and kind in _ENGINES and kind != where:
            raise ConfigError(f"--model {text}: an engine has one set of settings; give them as --engine...")
        known = bool(name) and (where in _ENGINES or where.startswith(("http://", "https://")))
        name, where = (name, where) if known else (text, self.endpoint or self.engine.kind)
        if where in _ENGINES:
            return LocalPlayer(
                name,
                temperature=self.temperature,
                max_new_tokens=self.max_new_tokens,
                engine=self._engine(where),
                slots=self.slots,
                deterministic=self.deterministic,
                device=self.device,
            )
        if self.deterministic or (self.endpoint is not None and self.engine != EngineConfig()):
            raise ConfigError(
                "an endpoint has an engine of its own and promises no bits: leave out engine and deterministic"
            )
        agent = EndpointAgent(
            where,
            name,
            api_key=os.environ.get("OPENAI_API_KEY"),
            temperature=self.temperature,
            max_new_tokens=self.max_new_tokens,
            concurrency=self.slots,
        )
        return EndpointPlayer(agent, concurrency=self.slots)

    def _engine(self, kind: str) -> EngineConfig:
        """The engine of this kind, without the settings of other kinds."""
        ray, url = self.engine.ray if kind == "ray" else RayConfig(), self.engine.url if kind == "vllm-server" else None
        return replace(self.engine, kind=cast(Any, kind), ray=ray, url=url)

    def _play(self, evaluator: Evaluator) -> None:
        """Plays what is missing, with a bar on standard error."""
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        name = TextColumn("{task.description}", markup=False)
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
            shown: dict[tuple[str, str], Any] = {}

            def show(model: str, env: str, done: int, total: int) -> None:
                if (model, env) not in shown:
                    shown[model, env] = bars.add_task(f"{model}, {env}", total=total)
                bars.update(shown[model, env], completed=done)

            try:
                evaluator.play(show)
            except RunInterrupted as interruption:
                kept = f"what was played is kept in {self.folder}; the same command goes on" if self.folder else None
                raise RunInterrupted(
                    kept or "interrupted; with --folder what was played would be kept"
                ) from interruption

    def _write_episodes(self, found: Comparison) -> None:
        if not self.output:
            return
        with Path(self.output).open("w", encoding="utf-8") as file:
            for entries in found.envs.values():
                for entry in entries:
                    file.writelines(json.dumps(row) + "\n" for row in entry.cell.rows(entry.keys))

    def _show(self, found: Comparison, envs: Mapping[str, EnvSpec]) -> None:
        from rich.console import Console

        from verigym.comparison_report import notes, tables
        from verigym.task_sampler import not_held_out

        console = Console()
        if not console.is_terminal:  # a file or a pipe has room for every column
            console = Console(width=60 + 32 * len(self.model))
        for table in tables(found, console.width):
            console.print(table)
        unheld = (not_held_out(spec, found.splits[text]) for text, spec in envs.items())
        for note in [*filter(None, unheld), *notes(found)]:
            console.print(note, markup=False)
        if self.folder:
            console.print(f"{self.folder}: report.json, report.png, episodes", markup=False)
