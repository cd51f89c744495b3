"""A training run: collect, advantages, update, sync, log."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from verigym.agents.agent import LocalAgent, load_chat, load_model, resolve_device, save_checkpoint
from verigym.agents.collect import Collector
from verigym.agents.engines.make import make_engine
from verigym.agents.engines.sync import WeightSync
from verigym.agents.env_workers import make_env_workers
from verigym.agents.episode import Episode, Plan
from verigym.agents.learners.turn_fork import plan_forks
from verigym.config import TrainConfig, build, to_plain
from verigym.display import Display
from verigym.evaluation import Evaluation, summarise
from verigym.interrupts import Interrupts
from verigym.loggers import open_loggers
from verigym.metrics import Times, episode_metrics, refuse_drift, staleness_metrics, sync_metrics
from verigym.ranks import Team, leads, refuse_unshared
from verigym.rollouts import make_rollouts
from verigym.run_folder import LEARNER, RunFolder
from verigym.run_models import Part, Start, keep_reference, load_policy, reference_path, staging
from verigym.stalls import StallWatch
from verigym.task_sampler import Curriculum, TaskSampler, evaluation_plans, not_held_out, trained_on
from verigym.tasks.activity import doing
from verigym.tasks.errors import ConfigError, EngineError, RunError, RunInterrupted, VerigymError
from verigym.verifiers import sandbox
from verigym.verifiers.verdict import Outcome


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    steps: int
    best: Evaluation | None

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return RunFolder(self.folder).metrics()

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint if the run evaluated, else the last one: an ordinary transformers folder."""
        best = self.folder / "checkpoints" / "best"
        return best if best.exists() else RunFolder(self.folder).latest()

    def save_pretrained(self, path: str | Path) -> None:
        """Exports model and tokenizer of `checkpoint`, without the run's state."""
        tokenizer, _ = load_chat(self.checkpoint)
        save_checkpoint(path, load_model(self.checkpoint), tokenizer)


def train(config: TrainConfig, *, resume: bool = False) -> Run:
    """Trains as `config` says; `resume` goes on from the last checkpoint in `config.run`.

    Under torchrun the learner's models are sharded over its processes (docs/scale.md), and each returns the same run.
    Raises ConfigError for a configuration that cannot work, RunError for a run that had to stop, SyncError if
    the engine does not follow the weights, RunInterrupted (after a checkpoint) on Ctrl-C.
    """
    with Interrupts(speaks=leads()) as interrupts, Team(resolve_device(config.device)) as team:
        if team.ranks.rank > 0:
            return _follow(team)
        with StallWatch(Path(config.run)), Trainer(config, interrupts, resume=resume, team=team) as trainer:
            trainer.run()
        run = Run(trainer.folder.path, trainer.step, trainer.best)
        team.end(run)
        return run


def _follow(team: Team) -> Run:
    """A run that another rank leads."""
    try:
        with StallWatch(asked_only=True):  # rank 0 sees whether anything moves
            Part(team.hear(), team)
            run: Run = team.follow()
        return run
    except VerigymError as error:
        raise type(error)(f"rank {team.ranks.rank}: {error}") from error


def resume(path: str | Path, **changes: Any) -> Run:
    """Goes on with the run in the folder `path`; `changes` replace fields of its configuration, such as `steps`."""
    config = build(TrainConfig, RunFolder(path).read_config(), "config.yaml")
    return train(replace(config, run=str(path), **changes), resume=True)


class Trainer:
    """The parts of a run and its state between two steps."""

    @doing("starting")
    def __init__(self, config: TrainConfig, interrupts: Interrupts, *, resume: bool, team: Team | None = None) -> None:
        self.config, self.interrupts = config, interrupts
        self.folder = RunFolder(config.run)
        self._open = ExitStack()  # what is to be closed, the last one first
        try:
            self._start(team or Team(), resume=resume)
        except BaseException:
            self._open.close()
            raise

    def _start(self, team: Team, *, resume: bool) -> None:
        config = self.config
        refuse_unshared(config)
        if not resume:
            self.folder.refuse_if_taken()
        state = self._saved_state() if resume else None
        # Before what takes long to start.
        self.sampler = TaskSampler(config.envs, config.seed)
        specs = (config.eval_envs or [spec.held_out() for spec in config.envs]) if config.eval_every else ()
        self.eval_plans = evaluation_plans(specs, config.eval_tasks, config.seed) if specs else []
        overlap = trained_on(config.envs, specs, self.eval_plans)
        source = self.folder.latest() if state else config.model
        device = resolve_device(config.device)
        low_precision = config.dtype == "bfloat16" or (config.dtype == "auto" and device == "cuda")
        self.tokenizer, chat = load_chat(source)
        model = load_policy(config, self.folder, staging(device, team.ranks), resume=state is not None)
        engine_dtype = torch.bfloat16 if low_precision else torch.float32
        engine = make_engine(config.engine, source, dtype=engine_dtype, device=device, slots=config.slots)
        self._open.callback(engine.close)
        self.agent = LocalAgent(chat, engine, temperature=config.temperature, max_new_tokens=config.max_new_tokens)
        self.env_workers = make_env_workers(config.engine.ray)
        if self.env_workers is not None:
            self._open.callback(self.env_workers.close)
        self.collector = self._collector(config.envs, snapshots=config.forks > 0)
        self.evaluator = self._collector(specs)
        # Only now, when nothing in the configuration has turned out wrong, is anything written.
        self._open_folder(state)
        if state is None:
            keep_reference(config, self.folder)
        autocast = torch.bfloat16 if low_precision else None
        shared = replace(config, run=str(self.folder.path.absolute()))
        start = Start(shared, state is not None, device, autocast, _policy_token_budget(config))
        team.tell(start)
        self.part = Part(start, team, model)
        self.learner = self.part.learner
        self.sync = WeightSync(model, engine, learner=self.part.weights)
        self.step, self.evaluated = 0, -1
        self.saved: tuple[int, int] | None = None  # the step of the newest checkpoint, and what was evaluated then
        self.position = self.sampler.start
        self.curriculum = self._curriculum()
        self.best: Evaluation | None = None
        self.last: Evaluation | None = None
        self._restore(state)
        self.loggers = open_loggers(config, self.folder.path, self.step)
        for logger in self.loggers:
            self._open.callback(logger.close)
        self.display = Display(config, self.collector)
        notes = [not_held_out(spec, spec.split()) for spec in specs]
        for note in filter(None, [*notes, *overlap]):
            self.display.say(note)
        left = config.steps - self.step
        self.rollouts = make_rollouts(
            config, self.collector, self.sampler, steps=left, on_progress=self.display.refresh
        )
        self._open.callback(self.rollouts.close)
        self._open.callback(self.display.stop)

    def run(self) -> None:
        """Steps to the end, five verbs each. Ctrl-C leaves a checkpoint to go on from."""
        config = self.config
        if self.step == 0:
            self._save()  # from here on a kill loses nothing
        with doing("syncing", "proof of each tensor"):
            unseen = self.sync.prove_each()
        if unseen:
            self.display.say(f"sync: no score depends on {', '.join(unseen)}; they are sent, but cannot be proven")
        try:
            self._after_step()
            while self.step < config.steps and not self._reached():
                step, times = self.step, Times()
                collected = self._collect()
                times.mark("collect")
                metrics = self._learn([*collected.used, *collected.forks])
                times.mark("update")
                with doing("syncing"):
                    report = self.sync.send(step + 1)
                times.mark("sync")
                self.folder.write_episodes(step + 1, [*collected.played, *collected.forks], self.learner.columns)
                self.step, self.position = step + 1, collected.position
                played = {**episode_metrics(collected.played), **self.learner.statistics(collected.played)}
                played |= collected.shares
                played["unlocked_envs"] = len(config.envs) if self.unlocked is None else self.unlocked
                self._log(step + 1, {**played, **metrics, **sync_metrics(report), **times.seconds})
                self._promote(collected)
                self._after_step()
        except RunInterrupted:
            self._save()
            raise RunInterrupted(
                f"checkpoint of step {self.step} written; go on with: verigym train --resume {self.folder.path}"
            ) from None
        except EngineError as error:  # such as a server that is gone
            raise EngineError(
                f"{error}; the checkpoint of step {int(self.folder.latest().name)} is kept: when this is mended, go on "
                f"with: verigym train --resume {self.folder.path}"
            ) from error
        if self._save():
            self.folder.plot()

    @doing("updating")
    def _learn(self, episodes: Sequence[Episode]) -> dict[str, float]:
        """The learner's step; how old its tokens are is told with it."""
        learner, version = self.learner, self.step
        ages = staleness_metrics(episodes, version, self.config.staleness)
        metrics = self.rollouts.learn(lambda: learner.update(episodes, learner.advantages(episodes)))
        metrics |= ages | self.rollouts.gaps()
        refuse_drift(metrics, self.config, version + 1)
        return metrics

    @doing("collecting")
    def _collect(self) -> _Collected:
        """The step's groups; with dynamic sampling, further ones in the place of those that teach nothing."""
        config, position = self.config, self.position
        planned: list[Plan] = []
        played: list[Episode] = []
        used: list[Episode] = []
        for _ in range(1 + config.dynamic_sampling):
            missing = config.groups - len(used) // config.group_size
            plans, episodes, position = self.rollouts.play(position, missing, unlocked=self.unlocked)
            planned, played = [*planned, *plans], [*played, *episodes]
            self._refuse_unjudged(played)
            used += self.learner.informative(episodes) if config.filters_groups else episodes
            if len(used) == config.groups * config.group_size:
                break
        return _Collected(planned, played, used, self._forks(planned, played, used), position)

    def _forks(self, plans: Sequence[Plan], played: Sequence[Episode], used: Sequence[Episode]) -> list[Episode]:
        """What the turns of the used episodes lack of other continuations, where baselines are made of them."""
        if not self.config.forks:
            return []
        groups = {episode.group_id for episode in used}
        chosen = [(plan, episode) for plan, episode in zip(plans, played, strict=True) if plan.group_id in groups]
        planned = plan_forks(chosen, self.config.forks)
        forks = self.collector.collect(planned, on_progress=self.display.refresh)
        self._refuse_unjudged([*played, *forks])
        return forks

    @property
    def unlocked(self) -> int | None:
        """How many environments, from the first on, are open; None without a curriculum."""
        return None if self.curriculum is None else self.curriculum.unlocked

    def _curriculum(self) -> Curriculum | None:
        threshold = self.config.curriculum
        return None if threshold is None else Curriculum(threshold, self.config.curriculum_window)

    def _promote(self, collected: _Collected) -> None:
        """Unlocks the next environment if the newest one is mastered."""
        if self.curriculum is None:
            return
        newest = self.curriculum.unlocked - 1
        of_newest = [e for e, plan in zip(collected.played, collected.planned, strict=True) if plan.env == newest]
        passed = [e.verdict.outcome is Outcome.CORRECT for e in of_newest if not math.isnan(e.reward)]
        if self.curriculum.record(passed, len(self.config.envs)):
            self.display.say(f"step {self.step}: environment {newest + 1} is mastered, the next one is unlocked")

    def _after_step(self) -> None:
        """Evaluation and checkpoint where they are due; also before the first step."""
        config, last = self.config, self.step == self.config.steps
        due = config.eval_every and (self.step % config.eval_every == 0 or last)
        if due and self.evaluated != self.step:
            self._log(self.step, self._evaluate(self.step))
            self.evaluated = self.step
        if self.interrupts.requested:
            raise RunInterrupted("interrupted")
        if self.step % config.checkpoint_every == 0 and self._save():
            self.folder.plot()

    @doing("evaluating")
    def _evaluate(self, step: int) -> dict[str, float]:
        """Plays the evaluation's tasks; keeps the best checkpoint."""
        started = time.monotonic()
        self.rollouts.pause()
        self.display.watch(self.evaluator)
        episodes = self.evaluator.collect(self.eval_plans, on_progress=self.display.refresh)
        self.display.watch(self.collector)
        self._refuse_unjudged(episodes)
        result = self.last = summarise(episodes)
        if self.best is None or result.pass_rate > self.best.pass_rate:
            self.best = result
            with doing("checkpointing", "the best"):
                self.folder.save("best", self._write_model)
        names = ("pass_rate", "low", "high", "reward", "tasks", "infra_errors")
        return {f"eval/{name}": getattr(result, name) for name in names} | {"time/eval": time.monotonic() - started}

    def _reached(self) -> bool:
        """Whether the evaluation of this step reached `stop_at`."""
        goal = self.config.stop_at
        due = self.step > 0 and self.evaluated == self.step and self.last is not None
        return goal is not None and due and self.last is not None and self.last.pass_rate >= goal

    def _log(self, step: int, metrics: dict[str, Any]) -> None:
        self.folder.log({"step": step, **metrics})
        for logger in self.loggers:
            logger.log(step, metrics)
        self.display.update(step, metrics)

    def _refuse_unjudged(self, episodes: Sequence[Episode]) -> None:
        broken = [episode for episode in episodes if episode.verdict.outcome is Outcome.INFRA_ERROR]
        if len(broken) > self.config.max_infra_error_rate * len(episodes):
            raise RunError(
                f"after step {self.step}: {len(broken)} of {len(episodes)} episodes could not be judged, more than the "
                f"{self.config.max_infra_error_rate:.0%} allowed; the first: {broken[0].verdict.reason}"
            )

    # State.

    def _saved_state(self) -> dict[str, Any] | None:
        """The state to go on from; None if the run was killed before its first checkpoint and starts over."""
        config = build(TrainConfig, self.folder.read_config(), "config.yaml")
        if not self.folder.has_checkpoint():
            return None
        state: dict[str, Any] = torch.load(self.folder.latest() / "state.pt", weights_only=True, map_location="cpu")
        for name in ("model", "learner", "lora"):
            if (began := getattr(config, name)) != getattr(self.config, name):
                raise ConfigError(f"the run began with {name} {began}; of a run that goes on it cannot change")
        if len(config.envs) != len(self.config.envs):
            raise ConfigError(
                f"the run began with {len(config.envs)} envs; of a run that goes on the number cannot change"
            )
        if self.config.steps < state["step"]:
            raise ConfigError(f"the run has done {state['step']} steps already; steps is {self.config.steps}")
        if self.config.policy.kl_coefficient > 0 and not reference_path(self.folder).exists():
            raise ConfigError("the run began without a KL loss and kept no reference model; start a new one")
        return state

    def _open_folder(self, state: dict[str, Any] | None) -> None:
        self.folder.create(to_plain(self.config))
        self.folder.note_sandboxes(sandbox.in_use())
        self.folder.cut(state["step"] if state else -1)

    def _collector(self, specs: Sequence[Any], *, snapshots: bool = False) -> Collector:
        collector = Collector(
            self.agent,
            specs,
            deterministic=self.config.deterministic,
            concurrency=self.config.concurrency,
            env_timeout=self.config.env_timeout,
            interrupted=lambda: self.interrupts.requested,
            snapshots=snapshots,
            env_workers=self.env_workers,
        )
        self._open.callback(collector.close)
        return collector

    @doing("checkpointing")
    def _save(self) -> bool:
        """Writes the checkpoint of this step; False if it has been written as it is now."""
        if self.saved == (self.step, self.evaluated):
            return False
        state = {
            "step": self.step,
            "evaluated": self.evaluated,
            "sampler": self.position,
            "curriculum": None if self.curriculum is None else asdict(self.curriculum),
            "sync": self.sync.state_dict(),
            "best": None if self.best is None else asdict(self.best),
            "last": None if self.last is None else asdict(self.last),
        }
        self.folder.save_step(self.step, self._write, state)
        self.saved = (self.step, self.evaluated)
        return True

    def _write(self, path: Path) -> None:
        self._write_model(path)
        self.part.save_learner((path / LEARNER).absolute())  # the other ranks may run elsewhere

    def _write_model(self, path: Path) -> None:
        self.part.save_model(path)
        self.tokenizer.save_pretrained(path)

    def _restore(self, state: dict[str, Any] | None) -> None:
        self.sync.start(0 if state is None else state["step"])
        if state is None:
            return
        self.step, self.evaluated = state["step"], state["evaluated"]
        self.position = state["sampler"]
        if self.curriculum is not None and state["curriculum"] is not None:
            known = state["curriculum"]
            self.curriculum = replace(self.curriculum, unlocked=known["unlocked"], recent=known["recent"])
        self.best, self.last = (state[name] and Evaluation(**state[name]) for name in ("best", "last"))
        self.part.load_learner((self.folder.latest() / LEARNER).absolute())
        self.sync.load_state_dict(state["sync"])

    def __enter__(self) -> Trainer:
        self.display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


@dataclass(frozen=True)
class _Collected:
    """A step's episodes with their plans, those that it learns from, their forks, and the sampler's position after."""

    planned: list[Plan]
    played: list[Episode]
    used: list[Episode]
    forks: list[Episode]
    position: list[int]

    @property
    def shares(self) -> dict[str, float]:
        """How much of what was played is learned from, and what the forks cost, as metrics."""
        return {
            "used_share": len(self.used) / len(self.played),
            "forks": len(self.forks),
            "fork_tokens": sum(episode.num_policy_tokens for episode in self.forks),
            "fork_infra_errors": sum(math.isnan(episode.reward) for episode in self.forks),
        }


def _policy_token_budget(config: TrainConfig) -> int:
    """The most policy tokens an episode can have, over all environments (Lmax of the dr_grpo reduction)."""
    limits = []
    for spec in config.envs:
        env = spec.make()
        budget = getattr(env.unwrapped, "budget", None)
        env.close()
        per_turn = getattr(budget, "tokens_per_turn", None) or config.max_new_tokens
        whole = per_turn * getattr(budget, "turns", 1)
        limits.append(min(whole, getattr(budget, "tokens_per_episode", None) or whole))
    return max(limits)
