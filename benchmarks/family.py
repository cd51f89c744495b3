"""The family of advantages and losses, each from the same warm starts on Calculator: a curve for each of their pages.

    python benchmarks/family.py --output DIR [--quick] [--seeds 0 1] [--write-docs]

Four optimizer steps for each batch, so that the losses differ. Jobs that are done are kept, as in algorithms.py;
`--write-docs` puts the table into docs/learners.md and the curves beside it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from _curves import Algorithm, Sizes, warm_start
from _report import Jobs, new_figure, paragraph, table, write_docs
from algorithms import Figures, head, peak

FULL = Sizes(steps=20, eval_every=4)
QUICK = Sizes(warm_steps=100, demonstrations=1024, steps=4, groups=8, eval_every=2, eval_tasks=64)
STEPS_PER_BATCH = 4
PAPER = {"reduction": "grpo", "clip_high": 0.2}  # GRPO's, where the package's defaults are DAPO's


def _member(name: str, title: str, settings: Mapping[str, Any], **run: Any) -> Algorithm:
    return Algorithm(name, title, {"grpo": {"minibatches": STEPS_PER_BATCH, **settings}, **run}, "calculator.yaml")


FAMILY = (
    _member("grpo", "GRPO", PAPER),
    _member("dr_grpo", "Dr. GRPO", {"advantages": "dr_grpo", "reduction": "dr_grpo", "clip_high": 0.2}),
    _member("rloo", "RLOO", {"advantages": "rloo"}),
    _member("maxrl", "MaxRL", {"advantages": "maxrl"}),
    _member("reinforce_pp", "REINFORCE++", {"advantages": "reinforce++"}),
    _member("reinforce_pp_baseline", "REINFORCE++ with a baseline", {"advantages": "reinforce++_baseline"}),
    _member("dapo", "DAPO", {"overlong": "penalise"}, dynamic_sampling=1),
    _member("gspo", "GSPO", {"loss": "gspo", "reduction": "grpo"}),
    _member("cispo", "CISPO", {"loss": "cispo"}),
    _member("sapo", "SAPO", {"loss": "sapo", "reduction": "grpo"}),
)


@dataclass(frozen=True)
class Options:
    """Held-out pass rate against episodes, for each member of the family."""

    output: Path
    """Folder for the figures; what is in it is not done again."""
    seeds: tuple[int, ...] = (0, 1)
    """One warm start and one run of each member each."""
    quick: bool = False
    """A smoke test: small sizes, nothing learns much."""
    threads: int = 1
    """Threads of torch."""
    goal: float = 0.9
    """The pass rate whose price the table shows."""
    write_docs: bool = False
    """Put the table into docs/learners.md, and the curves beside it."""
    job: str | None = None
    """Do this one job in this process; for the benchmark's own use."""

    @property
    def sizes(self) -> Sizes:
        return QUICK if self.quick else FULL


def do(options: Options, job: str, folder: Path) -> Any:
    """One job in an empty folder; what it found."""
    name, _, seed = job.rpartition("-")
    model = options.output / "warm" / seed
    if name == "warm":
        warm_start(options.sizes, int(seed), model)
        return {}
    before, algorithm = peak(), next(member for member in FAMILY if member.name == name)
    curve = algorithm.curve(model, options.sizes, int(seed), folder)
    return {"megabytes": peak() - before, "curve": [asdict(point) for point in curve]}


def draw(figures: Sequence[Figures], shown: Figures, path: Path) -> None:
    """One member's mean over the seeds, and its range, before the means of the others."""
    figure, (axes,) = new_figure(1)
    for found in (*(other for other in figures if other is not shown), shown):
        points = list(zip(*found.curves, strict=False))
        episodes = [sum(p.episodes for p in column) / len(column) for column in points]
        rates = [[p.pass_rate for p in column] for column in points]
        style: dict[str, Any] = {"color": "C0", "marker": "o", "markersize": 3, "label": found.algorithm.title}
        if found is not shown:
            style = {"color": "0.8", "linewidth": 1}
        axes.plot(episodes, [sum(column) / len(column) for column in rates], **style)
    axes.fill_between(episodes, list(map(min, rates)), list(map(max, rates)), color="C0", alpha=0.15)
    axes.set_xlabel("episodes played")
    axes.set_ylabel("held-out pass rate")
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)


def text(options: Options, figures: Sequence[Figures]) -> str:
    """The section of docs/learners.md; seconds and memory are for `algorithms.py`, which measures fewer at a time."""
    sizes, seeds = options.sizes, ", ".join(map(str, options.seeds))
    runs = f"seeds {seeds} (mean, lowest to highest)" if len(options.seeds) > 1 else f"one run each, with seed {seeds}"
    setting = (
        f"`python benchmarks/family.py --seeds {seeds.replace(',', '')}`: verigym/Calculator-v0, "
        f"`recipes/calculator.yaml` with {STEPS_PER_BATCH} optimizer steps for each batch of "
        f"{sizes.groups * sizes.group_size} episodes, warm starts of {sizes.warm_steps} supervised steps, {runs}, "
        f"{sizes.steps} batches, torch {torch.__version__}. Pass rates are of {sizes.eval_tasks} held-out tasks. "
        "So few runs show that each of them learns, not which is best. The page of each has its curve, in front of the "
        "others'."
    )
    titles = head(options.goal)
    kept = [number for number, title in enumerate(titles) if "seconds" not in title and "MB" not in title]
    rows = [titles, *(found.row(options.goal) for found in figures)]
    return "\n\n".join([paragraph(setting), table([[row[number] for number in kept] for row in rows])])


def report(options: Options, found: Mapping[str, Any]) -> None:
    """Pictures, figures.json and table.md of all jobs."""
    figures = [Figures.of(member, [found[f"{member.name}-{seed}"] for seed in options.seeds]) for member in FAMILY]
    pictures = [options.output / f"family_{shown.algorithm.name}.png" for shown in figures]
    for shown, picture in zip(figures, pictures, strict=True):
        draw(figures, shown, picture)
    (options.output / "figures.json").write_text(json.dumps(found, indent=1) + "\n")
    section = text(options, figures)
    (options.output / "table.md").write_text(section + "\n", encoding="utf-8")
    print(section)
    if options.write_docs:
        write_docs("benchmarks/family.py", section, pictures)


def main(options: Options) -> None:
    settings = {"sizes": asdict(options.sizes), "family": [asdict(member) for member in FAMILY]}
    work = Jobs(__file__, options.output, settings | {"threads": options.threads})
    if options.job is None:
        names = [f"{name}-{seed}" for seed in options.seeds for name in ("warm", *(m.name for m in FAMILY))]
        report(options, {name: work.run(name) for name in names})
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        work.write(options.job, do(options, options.job, Path(folder)))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
