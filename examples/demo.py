"""A model learns to use a calculator: supervised warm start, then GRPO on multi-turn episodes, live.

Run by `make demo`; writes everything to runs/demo.
"""

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

import verigym
from verigym.agents.episode import Episode
from verigym.config import SFTConfig, TrainConfig, build, read_recipe
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import Evaluation, play, summarise
from verigym.players import LocalPlayer
from verigym.supervised import SupervisedRun, sft
from verigym.tasks.errors import RunInterrupted

FOLDER = Path("runs/demo")
RECIPE = Path(__file__).parents[1] / "recipes" / "calculator.yaml"
BAR, TASKS, WARM_STEPS = 0.95, 256, 400
ENV = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24})
# Another seed than the evaluations during training, which choose the checkpoint: these tasks chose nothing.
HELD_OUT = EnvSpec(ENV.id, kwargs={**ENV.kwargs, "split": "test", "seed": 1})

console = Console()


def main() -> None:
    started = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    console.rule("1. supervised warm start: the form of an answer and of a tool call, mostly with wrong answers")
    warm = fine_tune("tiny", FOLDER / "warm-start", steps=WARM_STEPS)
    before = summarise(measure(warm.folder))
    console.print(f"held-out pass rate {before}", markup=False)

    console.rule("2. GRPO: nobody shows a right answer, the verifier's reward decides")
    run = verigym.train(recipe(warm.folder))
    episodes = measure(run.checkpoint)
    after = summarise(episodes)

    console.rule("3. the same number of tokens, supervised only")
    tokens = sum(row["policy_tokens"] for row in run.metrics if "policy_tokens" in row)
    more_steps = round(tokens / (warm.tokens / WARM_STEPS))
    supervised = fine_tune(str(warm.folder), FOLDER / "supervised-only", steps=more_steps, seed=1)
    control = summarise(measure(supervised.folder))

    seconds = time.monotonic() - started
    report(before, after, control, run.steps, warm.tokens, tokens, supervised.tokens)
    show(episodes)
    played = sum(row.get("episodes", 0) for row in run.metrics)
    write_summary(before, after, control, seconds, played)
    console.print(f"\n{seconds:.0f} s. Written to {FOLDER}:", *sorted(p.name for p in FOLDER.iterdir()))
    console.print(f"{run.folder}:", *sorted(p.name for p in run.folder.iterdir()))
    if before.pass_rate > 0.45 or after.pass_rate < BAR or control.pass_rate >= BAR:
        raise SystemExit(f"the demo missed its bar: {before.pass_rate:.3f} -> {after.pass_rate:.3f}")


def recipe(model: Path) -> TrainConfig:
    """The project's Calculator recipe, from the demo's warm start."""
    config: TrainConfig = build(TrainConfig, {**read_recipe(RECIPE), "model": str(model), "run": str(FOLDER / "grpo")})
    return config


def fine_tune(model: str, output: Path, steps: int, seed: int = 0) -> SupervisedRun:
    """Supervised training with its loss on the terminal."""
    config = SFTConfig(envs=(ENV,), model=model, output=str(output), steps=steps, seed=seed)
    with console.status("demonstrations") as status:
        return sft(config, lambda step, m: status.update(f"supervised step {step}/{steps}  loss {m['loss']:.3f}"))


def measure(model: Path) -> list[Episode]:
    """One episode on each of the held-out tasks."""
    return play(LocalPlayer(model), HELD_OUT, tasks=TASKS, seed=1)


def report(
    before: Evaluation, after: Evaluation, control: Evaluation, steps: int, warm: int, learned: int, supervised: int
) -> None:
    """The table before and after."""
    table = Table("model", "trained on", f"pass rate on {TASKS} held-out tasks", "95 % interval")
    rows = (
        ("warm start", f"{warm:,} demonstration tokens", before),
        ("+ supervised only", f"{supervised:,} more demonstration tokens", control),
        (f"+ GRPO, {steps} steps", f"{learned:,} tokens of its own", after),
    )
    for name, trained, result in rows:
        table.add_row(name, trained, f"{result.pass_rate:.3f}", f"{result.low:.3f} to {result.high:.3f}")
    console.print(table)


def show(episodes: list[Episode]) -> None:
    """Three episodes that a person can read: tool calls first."""
    for episode in sorted(episodes, key=lambda episode: -len(episode.turns))[:2] + episodes[:1]:
        lines = [f"{message['role']:>9}  {message['content']}" for message in episode.messages]
        verdict = (
            f"{'verdict':>9}  {episode.verdict.outcome.value}, reward {episode.reward:g}: {episode.verdict.reason}"
        )
        panel = Panel("\n".join([*lines, verdict]).replace("[", "\\["), title=episode.task_id, title_align="left")
        console.print(panel)


def write_summary(before: Evaluation, after: Evaluation, control: Evaluation, seconds: float, episodes: int) -> None:
    """runs/demo/summary.json."""
    summary = {
        "pass_rate_before": before.pass_rate,
        "pass_rate_after": after.pass_rate,
        "pass_rate_supervised_only": control.pass_rate,
        "tasks": after.tasks,
        "seconds": round(seconds, 1),
        "episodes": episodes,
        "evaluations": {"before": asdict(before), "after": asdict(after), "supervised_only": asdict(control)},
    }
    (FOLDER / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except RunInterrupted as interruption:
        raise SystemExit(f"demo: {interruption}") from None
