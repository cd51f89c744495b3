"""Training on data that is there before the first step: where it is from, and passes that resume to the bit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from verigym.agents.agent import LocalAgent, load_chat, resolve_device, save_checkpoint
from verigym.agents.chat import Chat
from verigym.agents.collect import Collector
from verigym.agents.engines.config import EngineConfig
from verigym.agents.engines.make import make_engine
from verigym.agents.episode import Episode, derive_seed
from verigym.agents.learners.checkpoint import load_state, save_state
from verigym.agents.learners.pairs import Pair
from verigym.config import build, to_plain
from verigym.interrupts import Interrupts
from verigym.offline_config import OfflineConfig
from verigym.pairs import asked, read_episodes
from verigym.run_folder import LEARNER, RunFolder
from verigym.stalls import StallWatch
from verigym.task_sampler import TaskSampler
from verigym.tasks.activity import doing
from verigym.tasks.errors import ConfigError, RunError, RunInterrupted, TaskDataError
from verigym.verifiers.verdict import Outcome

T = TypeVar("T")
_MAY_CHANGE = ("run", "epochs", "checkpoint_every", "device")
_MAX_INFRA_ERROR_RATE = 0.1  # as in training

OnStep = Callable[[int, int, dict[str, float]], None]


def silent(step: int, steps: int, metrics: dict[str, float]) -> None:
    """Nobody watches."""


@dataclass(frozen=True)
class OfflineRun:
    """A finished run: its folder, the trained model's, and what `report.json` beside the model says."""

    folder: Path
    model: Path
    report: dict[str, Any]


class Learner(Protocol[T]):
    """What a run of passes needs of a learner."""

    def update(self, batch: list[T]) -> dict[str, float]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Passes(Generic[T]):
    """Passes over examples, each in an order of its own, a batch per optimizer step; with metrics and checkpoints.

    `name` is the command that goes on with the run; `fingerprint` tells whether it would with the same data.
    """

    def __init__(
        self, config: OfflineConfig, folder: RunFolder, name: str, examples: Sequence[T], fingerprint: str
    ) -> None:
        self.config, self.folder, self.name = config, folder, name
        self.examples, self.fingerprint = examples, fingerprint
        self.per_pass = -(-len(examples) // config.batch_size)
        self.steps = self.per_pass * config.epochs

    def batch(self, step: int) -> list[T]:
        """The examples of a step, counted from 0: a pure function of the seed."""
        number, index = divmod(step, self.per_pass)
        order = np.random.default_rng(derive_seed(self.config.seed, "pass", number)).permutation(len(self.examples))
        size = self.config.batch_size
        return [self.examples[i] for i in order[index * size : (index + 1) * size]]

    def run(
        self, learner: Learner[T], network: PreTrainedModel, tokenizer: Tokenizer, state: Any, on_step: OnStep
    ) -> None:
        """All steps that are left; Ctrl-C leaves a checkpoint to go on from: the network and the learner's state."""
        step = 0
        if state is not None:
            load_state(self.folder.latest() / LEARNER, learner)
            step = state["step"]
        saved = step if state is not None else -1

        def write(path: Path) -> None:
            save_checkpoint(path, network, tokenizer)
            save_state(path / LEARNER, learner)

        def save() -> None:
            self.folder.save_step(step, write, {"step": step, "examples": self.fingerprint})

        with Interrupts() as interrupts, StallWatch(self.folder.path), doing("learning"):
            while step < self.steps and not interrupts.requested:
                metrics = learner.update(self.batch(step))
                step += 1
                self.folder.log({"step": step, **metrics})
                on_step(step, self.steps, metrics)
                if step % self.config.checkpoint_every == 0:
                    save()
                    saved = step
        if saved != step:
            save()
        if interrupts.requested and step < self.steps:
            raise RunInterrupted(
                f"checkpoint of step {step} written; go on with: verigym {self.name} --resume {self.folder.path}"
            )

    def state(self) -> Any:
        """That of the last checkpoint; None if there is none. Raises ConfigError if it is of other examples."""
        if not self.folder.has_checkpoint():
            return None
        state = torch.load(self.folder.latest() / "state.pt", weights_only=True, map_location="cpu")
        if state["examples"] != self.fingerprint:
            raise ConfigError(f"the data is not what the run in '{self.folder.path}' began with; start a new run")
        if state["step"] > self.steps:
            raise ConfigError(f"the run has done {state['step']} steps already; epochs {self.config.epochs} ask fewer")
        return state


def fingerprint(episodes: Sequence[Episode]) -> str:
    """A name of what is learned: the tokens and whose they are."""
    digest = hashlib.sha256()
    for episode in episodes:
        digest.update(len(episode.token_ids).to_bytes(8, "big") + episode.token_ids.tobytes() + episode.mask.tobytes())
    return digest.hexdigest()


def of_pairs(pairs: Sequence[Pair]) -> str:
    """The fingerprint of pairs."""
    return fingerprint([episode for pair in pairs for episode in (pair.chosen, pair.rejected)])


# Where the data is from.


class Source:
    """The run's folder and its data: a new run's, or, to go on, that which it began with."""

    def __init__(self, config: OfflineConfig, *, resume: bool) -> None:
        self.config, self.folder = config, RunFolder(config.run)
        if resume:
            self._refuse_changes()
        else:
            self.folder.refuse_if_taken()
        self.tokenizer, self.chat = load_chat(config.model)
        known = AutoConfig.from_pretrained(str(config.model)).get_text_config()
        self.context, self.vocabulary = int(known.max_position_embeddings), int(known.vocab_size)
        self.resume = resume

    def _refuse_changes(self) -> None:
        """A run that goes on does so as it began: bit for bit what it would have been."""
        began = to_plain(build(type(self.config), self.folder.read_config(), "config.yaml"))
        for name, value in to_plain(self.config).items():
            if name not in _MAY_CHANGE and value != began[name]:
                raise ConfigError(
                    f"{name} was {began[name]!r} when the run in '{self.folder.path}' began; "
                    f"of a run that goes on only {', '.join(_MAY_CHANGE[1:])} can change"
                )

    def episodes(self) -> list[Episode]:
        """Those that are stored, or those that the model plays now; these are kept in the run's folder."""
        if self.config.episodes:
            return read_episodes(self.config.episodes)
        played = self.folder.episodes_path / "000000.jsonl.gz"
        if self.resume and played.is_file():
            return list(self.folder.episodes(0))
        episodes = play_groups(self.config, self.chat)
        _refuse_unjudged(episodes)
        self.open()
        self.folder.write_episodes(0, episodes)
        return episodes

    def open(self) -> None:
        """Makes the folder: only now, when nothing in the data has turned out wrong, is anything written."""
        self.folder.create(to_plain(self.config))

    def start(self, passes: Passes[T]) -> Any:
        """The state to go on from, or None; takes back what was logged after it."""
        self.open()
        state = passes.state() if self.resume else None
        self.folder.cut(state["step"] if state else 0)
        return state

    def checkpoint(self, state: Any) -> str | Path:
        """Where the weights to begin with are."""
        return self.config.model if state is None else self.folder.latest()


def play_groups(config: OfflineConfig, chat: Chat) -> list[Episode]:
    """`samples` episodes of each of `tasks` tasks, in lockstep: the same for the same seed, to the bit."""
    device = resolve_device(config.device)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    sampler = TaskSampler(config.envs, config.seed)
    plans, _ = sampler.plan(sampler.start, config.tasks, config.samples)
    engine = make_engine(EngineConfig(), config.model, dtype=dtype, device=device, slots=config.slots)
    agent = LocalAgent(chat, engine, temperature=config.temperature, max_new_tokens=config.max_new_tokens)
    with Interrupts() as interrupts, StallWatch(), doing("collecting"):
        collector = Collector(agent, config.envs, deterministic=True, interrupted=lambda: interrupts.requested)
        try:
            return collector.collect(plans)
        finally:
            collector.close()
            engine.close()


def _refuse_unjudged(episodes: Sequence[Episode]) -> None:
    broken = [episode for episode in episodes if episode.verdict.outcome is Outcome.INFRA_ERROR]
    if len(broken) > _MAX_INFRA_ERROR_RATE * len(episodes):
        raise RunError(
            f"{len(broken)} of {len(episodes)} episodes could not be judged, more than the {_MAX_INFRA_ERROR_RATE:.0%} "
            f"allowed; the first: {broken[0].verdict.reason}"
        )


def refuse_too_long(pair: Pair, where: str, context: int) -> None:
    """Raises TaskDataError for a pair of which the model cannot read a conversation to its end."""
    longest = max(len(pair.chosen.token_ids), len(pair.rejected.token_ids))
    if longest > context:
        raise TaskDataError(f"{where}: a conversation has {longest} tokens, the model reads {context}; remove the row")


def refuse_other_tokens(episodes: Sequence[Episode], source: Source) -> None:
    """Raises ConfigError if the ids of an episode are not the words of its messages in this model's vocabulary."""
    for episode in episodes:
        turn, said = episode.turns[0], episode.messages[len(asked(episode))]["content"]
        ids = episode.token_ids.tolist()
        known = max(ids) < source.vocabulary and len(ids) <= source.context
        if not known or source.chat.canonical(ids[turn.start : turn.end], ids[: turn.start]) != said:
            raise ConfigError(
                f"the episodes of {episode.env_id} were played with another tokenizer than this model's; "
                "learn from episodes of this model, or of one with the same tokenizer"
            )


def publish(folder: RunFolder, save: Callable[[Path], None], report: dict[str, Any]) -> Path:
    """Writes the run's `model` folder with `report.json`, as a whole or not at all."""
    target, writing = folder.path / "model", folder.path / ".writing-model"
    shutil.rmtree(writing, ignore_errors=True)
    save(writing)
    (writing / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(target, ignore_errors=True)
    writing.rename(target)
    return target


def resumed(kind: type[Any], path: str | Path, **changes: Any) -> Any:
    """The configuration of the run in a folder, with some fields replaced."""
    return replace(build(kind, RunFolder(path).read_config(), "config.yaml"), run=str(path), **changes)
