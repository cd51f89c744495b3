"""GRPO here against GRPO in TRL: samples and wall time until one pass rate, in runs that take turns.

    python benchmarks/against_trl.py [--seeds 0 1 2 3 4] [--threads 2] [--output FILE]

The same checkpoint (a tiny model after a supervised warm start), tasks in the same order, rewards of the same
environment and one optimizer step per batch with the same loss, by the same settings. A seed is that of the tasks'
order and of sampling. Each run has a process of its own. Ours is the whole run of `verigym train`, with its proofs of
sync, metrics and stored episodes; TRL logs and saves nothing. Of TRL's options that could make it faster here, none
did by more than the noise: 64 or 128 sequences in a forward, and a static cache; its continuous batching and
torch_compile were slower by far.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from verigym.agents.learners.config import GRPOConfig
from verigym.config import SFTConfig, TrainConfig
from verigym.envs.mixture import EnvSpec
from verigym.tasks.task import Task

MAX_TOKENS = 24
RIGHT_SHARE = 0.4

# Student's t at 0.975, by degrees of freedom.
T_975 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclass(frozen=True)
class Options:
    """Samples, seconds and tokens per second until the pass rate is reached."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """One run each of ours and of TRL."""
    threads: int = 2
    """Threads of torch."""
    model: str | None = None
    """Checkpoint to start from; by default a tiny model is made, with `warm_steps`."""
    warm_steps: int = 500
    """Supervised steps of the warm start."""
    goal: float = 0.9
    """The pass rate to reach, in the mean of the last `window` steps' episodes."""
    window: int = 4
    """Steps over which the pass rate is measured."""
    max_steps: int = 150
    """A run that has not reached it by then is reported as such."""
    trl_batch: int = 256
    """Sequences in one forward of TRL; a divisor of the 256 of a step."""
    output: Path | None = None
    """A JSON file for the figures."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.seeds) <= len(T_975):
            raise SystemExit(f"seeds must be 1 to {len(T_975)}, not {len(self.seeds)}")

    @property
    def envs(self) -> tuple[EnvSpec, ...]:
        kwargs = {"level": 1, "max_tokens_per_turn": MAX_TOKENS}
        return (EnvSpec("verigym/Arithmetic-v0", kwargs=kwargs),)


@dataclass
class Progress:
    """What a run has done so far; the clock runs from its first step."""

    options: Options
    rates: list[float] = field(default_factory=list)
    tokens: int = 0
    started: float = 0.0
    seconds: float = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    def step(self, rate: float, tokens: int) -> None:
        self.rates.append(rate)
        self.tokens += tokens
        self.seconds = time.perf_counter() - self.started

    @property
    def reached(self) -> bool:
        last = self.rates[-self.options.window :]
        return len(last) == self.options.window and statistics.mean(last) >= self.options.goal


@dataclass(frozen=True)
class Result:
    """One run: the pass rate of each step, and `seconds` of training alone, without start-up."""

    reached: bool
    rates: list[float]
    episodes: int
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Pair:
    """Both sides with one seed."""

    seed: int
    ours: Result
    trl: Result


def configuration(options: Options, model: str, run: str, seed: int) -> TrainConfig:
    """The settings of both sides."""
    return TrainConfig(
        model=model,
        run=run,
        envs=options.envs,
        steps=options.max_steps,
        grpo=GRPOConfig(lr=3e-4),
        seed=seed,
        checkpoint_every=options.max_steps,
        device="cpu",
        tensorboard=False,
    )


def run_ours(options: Options, config: TrainConfig, progress: Progress) -> None:
    """The ordinary run, which also writes its episodes and metrics, but stops at the goal."""
    from verigym.interrupts import Interrupts
    from verigym.training import Trainer

    class Timed(Trainer):
        def _collect(self) -> Any:
            if not progress.rates:
                progress.start()
            return super()._collect()

        def _log(self, step: int, metrics: dict[str, Any]) -> None:
            super()._log(step, metrics)
            progress.step(metrics["pass_rate"], metrics["policy_tokens"])

        def _reached(self) -> bool:
            return progress.reached

    with Interrupts() as interrupts, Timed(config, interrupts, resume=False) as trainer:
        trainer.run()


def run_trl(options: Options, config: TrainConfig, progress: Progress) -> None:
    """TRL's GRPOTrainer on the same prompts in the same order, with the environment as its reward."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOTrainer

    from verigym.agents.agent import load_chat, load_model
    from verigym.task_sampler import TaskSampler

    tokenizer, _ = load_chat(config.model)
    env = config.envs[0].make()
    sampler = TaskSampler(config.envs, config.seed)
    plans, _ = sampler.plan(sampler.start, config.groups * config.steps, 1)
    rows = [
        {"prompt": env.reset(options={"task": plan.task_id})[1]["messages"], "task": plan.task_id} for plan in plans
    ]

    def reward(completions: Any, completion_ids: list[list[int]], task: list[str], **_: Any) -> list[float]:
        rewards = []
        for completion, ids, task_id in zip(completions, completion_ids, task, strict=True):
            env.reset(options={"task": task_id})
            env.unwrapped.announce(len(ids), cut=ids[-1] != tokenizer.eos_token_id)  # type: ignore[attr-defined]
            rewards.append(float(env.step(completion[0]["content"])[1]))
        counts.append(sum(map(len, completion_ids)))
        rates.append(statistics.mean(rewards))
        return rewards

    counts: list[int] = []
    rates: list[float] = []

    class Clock(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            progress.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.step(rates[-1], counts[-1])
            control.should_training_stop = progress.reached

    trainer = GRPOTrainer(
        load_model(config.model),
        reward,
        trl_settings(options, config),
        Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    env.close()


def trl_settings(options: Options, config: TrainConfig) -> Any:
    """Our settings by TRL's names; nothing is logged, saved or computed again."""
    from trl import GRPOConfig as Settings

    episodes = config.groups * config.group_size
    return Settings(
        output_dir=config.run,
        max_steps=config.steps,
        num_generations=config.group_size,
        per_device_train_batch_size=options.trl_batch,
        gradient_accumulation_steps=episodes // options.trl_batch,
        max_completion_length=config.envs[0].kwargs["max_tokens_per_turn"],
        temperature=config.temperature,
        top_p=1.0,
        top_k=0,
        loss_type="dapo",
        epsilon=config.grpo.clip_low,
        epsilon_high=config.grpo.clip_high,
        beta=0.0,
        scale_rewards="group",
        learning_rate=config.grpo.lr,
        lr_scheduler_type="constant",
        adam_beta1=0.9,
        adam_beta2=config.grpo.adam_beta2,
        adam_epsilon=1e-8,
        weight_decay=config.grpo.weight_decay,
        max_grad_norm=config.grpo.max_grad_norm,
        seed=config.seed,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


SIDES: dict[str, Callable[[Options, TrainConfig, Progress], None]] = {"ours": run_ours, "TRL": run_trl}


def measure(side: str, options: Options, model: str, seed: int) -> Result:
    """One run, in this process."""
    import torch

    torch.set_num_threads(options.threads)
    progress = Progress(options)
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(options, model, str(Path(folder) / "run"), seed)
        SIDES[side](options, config, progress)
    return Result(
        progress.reached,
        progress.rates,
        episodes=len(progress.rates) * config.groups * config.group_size,
        tokens=progress.tokens,
        seconds=progress.seconds,
    )


def warm_start(options: Options, model: str) -> None:
    """A tiny model that knows the form of an answer, and the right one among others."""
    import torch

    from verigym.supervised import sft

    torch.set_num_threads(options.threads)
    envs = tuple(EnvSpec(env.id, kwargs={**env.kwargs, "demonstrate": demonstrate}) for env in options.envs)
    sft(SFTConfig(envs=envs, output=model, steps=options.warm_steps))


def demonstrate(task: Task, rng: np.random.Generator) -> list[str]:
    """A worked answer, right with probability RIGHT_SHARE, else with a number drawn from those of all answers."""
    answer = task.target if rng.random() < RIGHT_SHARE else rng.integers(-8, 19)
    return [f"{task.metadata['expression']} = {answer}, so \\boxed{{{answer}}}"]


def paired_ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """The geometric mean of ours / theirs over the seeds, and its 95% interval (paired t on the logarithms)."""
    logs = [math.log(one / other) for one, other in zip(ours, theirs, strict=True)]
    mean, n = statistics.mean(logs), len(logs)
    half = T_975[n - 1] * statistics.stdev(logs) / math.sqrt(n) if n > 1 else math.nan
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def ratios(pairs: Sequence[Pair]) -> dict[str, tuple[float, float, float]]:
    """Ours over TRL's, with its interval, of what both took to the goal."""
    columns = {"samples": "episodes", "wall time": "seconds", "tokens per second": "tokens_per_second"}
    return {
        name: paired_ratio([getattr(p.ours, column) for p in pairs], [getattr(p.trl, column) for p in pairs])
        for name, column in columns.items()
    }


def report(pairs: Sequence[Pair], options: Options) -> str:
    """A table with a line for each seed, and the ratios."""
    columns = {"seed": [str(pair.seed) for pair in pairs]}
    for name, digits in (("episodes", 0), ("seconds", 1), ("tokens_per_second", 0)):
        for side in ("ours", "trl"):
            cells = [f"{getattr(getattr(pair, side), name):.{digits}f}" for pair in pairs]
            columns[f"{name.replace('_per_second', '/s')} {side.replace('trl', 'TRL')}"] = cells
    first = [pair.ours.rates[0] for pair in pairs]
    widths = [max(map(len, [name, *cells])) for name, cells in columns.items()]
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    missed = [
        f"{side} with seed {pair.seed}"
        for pair in pairs
        for side, result in (("ours", pair.ours), ("TRL", pair.trl))
        if not result.reached
    ]
    return "\n".join(
        [
            f"GRPO from a pass rate of {statistics.mean(first):.2f} to {options.goal}, {options.threads} threads; "
            + ", ".join(f"{name} {number}" for name, number in versions().items()),
            *("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows),
            *(
                f"{name}, ours / TRL: {ratio:.2f}, 95% interval {low:.2f} to {high:.2f} over {len(pairs)} seeds"
                for name, (ratio, low, high) in ratios(pairs).items()
            ),
            *([f"not reached in {options.max_steps} steps: {', '.join(missed)}"] if missed else []),
        ]
    )


def versions() -> dict[str, str]:
    return {name: version(name) for name in ("verigym", "trl", "torch", "transformers")}


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or str(Path(folder) / "model")
        if options.model is None:
            warm_start(options, model)
        for seed in options.seeds:
            pairs.append(Pair(seed, *(in_a_process(side, options, model, seed) for side in SIDES)))
    print(report(pairs, options))
    if options.output:
        figures = {"versions": versions(), "ratios": ratios(pairs), "runs": [asdict(pair) for pair in pairs]}
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


def in_a_process(side: str, options: Options, model: str, seed: int) -> Result:
    """A run in a new process, so that neither side finds what the other left in memory."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        result = process.submit(measure, side, options, model, seed).result()
    print(
        f"{side}, seed {seed}: {result.episodes} episodes in {result.seconds:.1f} s, pass rate {result.rates[-1]:.2f}"
    )
    return result


if __name__ == "__main__":
    main()
