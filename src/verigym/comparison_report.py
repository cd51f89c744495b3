"""A comparison to look at: a table for each environment, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from verigym.comparison import Comparison, Entry
from verigym.estimates import Estimate
from verigym.scores import LEAST_MAJORITY, ladder

_GREY = "#757e8c"  # reads on white and on black
_COLORS = ("#4a7be0", "#d9742b", "#2f9e62", "#b04fc4", "#c9a227", "#2aa7b8")
_MARKERS = ("o", "s", "^", "D", "v", "P")  # a model beyond the colors has the next one
_NAME_WIDTH, _COLUMN_WIDTH = 36, 25


def tables(comparison: Comparison, width: int) -> Iterator[Table]:
    """A table for each environment: a column for each model, a row for each figure with its interval at 95 %.

    Where `width` characters are too few for all models, several tables.
    """
    fitting = max(1, (width - _NAME_WIDTH) // _COLUMN_WIDTH)
    for env, entries in comparison.envs.items():
        for start in range(0, len(entries), fitting):
            split = comparison.splits[env]
            title = f"{env} (split {split})" if split else env
            yield _table(title, entries[start : start + fitting], comparison.models)


def _table(title: str, entries: Sequence[Entry], models: Sequence[str]) -> Table:
    first = models[0] if len(models) > 1 else None
    columns = [_figures(entry, first) for entry in entries]
    table = Table(title=escape(title), title_justify="left", title_style="bold")
    table.add_column("", overflow="fold")
    for entry in entries:
        table.add_column(escape(entry.model), justify="right", overflow="fold")
    for name in columns[0]:
        table.add_row(escape(name), *(column[name] for column in columns))
    return table


def _figures(entry: Entry, first: str | None) -> dict[str, str]:
    """One model's figures by name; the same names for every model of an environment. `first` is compared with."""
    scores, ks = entry.scores, ladder(entry.scores.samples)
    prompt, generated, seconds = scores.cost.per_episode()
    one = "pass@1" if scores.samples == 1 else f"pass@1 (avg@{scores.samples})"
    rows = [("tasks", f"{scores.tasks:,}"), (one, _text(scores.pass_at.get(1)))]
    rows += [(f"pass@{k}", _text(scores.pass_at.get(k))) for k in ks[1:]]
    rows += [(f"pass^{k}", _text(scores.pass_hat.get(k))) for k in ks[1:]]
    rows += [(f"majority@{k}", _text(scores.majority.get(k))) for k in ks if k >= LEAST_MAJORITY]
    rows += [("mean reward", _text(scores.reward))]
    rows += [] if first is None else [(f"pass@1 less {first}'s", _text(entry.difference, sign="+"))]
    rows += [
        ("prompt tokens an episode", f"{prompt:,.0f}"),
        ("generated tokens an episode", f"{generated:,.0f}"),
        ("tokens in all", f"{scores.cost.prompt_tokens + scores.cost.generated_tokens:,}"),
        ("seconds an episode", f"{seconds:.3g}"),
        ("seconds in all", f"{scores.cost.seconds:,.1f}"),
        ("not judged", f"{scores.infra_errors:,}"),
    ]
    return dict(rows)


def _text(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None:
        return "-"
    value, low, high = (format(number, f"{sign}.3f") for number in (estimate.value, estimate.low, estimate.high))
    return escape(f"{value} [{low}, {high}]")


def notes(comparison: Comparison) -> list[str]:
    """Sentences on what the tables leave out, and why."""
    found = list(comparison.failures)
    for env, entries in comparison.envs.items():
        for entry in entries:
            scores = entry.scores
            if scores.infra_errors:
                found.append(f"{env}, {entry.model}: {scores.infra_errors} episodes could not be judged; not counted")
            if scores.no_majority and scores.samples >= LEAST_MAJORITY:
                found.append(f"{env}, {entry.model}: no majority, {scores.no_majority}")
    return found


def plot(comparison: Comparison, path: Path) -> None:
    """Draws pass@1 with its interval for each environment and, of several samples, pass@k and pass^k over k."""
    from matplotlib.figure import Figure

    curves = any(len(entry.scores.pass_at) > 1 for entries in comparison.envs.values() for entry in entries)
    heights = [0.5 + 0.4 * len(comparison.models), 3.0][: 1 + curves]
    figure = Figure(figsize=(1 + 5 * len(comparison.envs), 0.8 + sum(heights)), layout="constrained")
    grid = figure.subplots(len(heights), len(comparison.envs), squeeze=False, height_ratios=heights)
    styles = {model: _style(index) for index, model in enumerate(comparison.models)}
    for column, (env, entries) in enumerate(comparison.envs.items()):
        _draw_rates(grid[0][column], env, entries, styles)
        if curves:
            _draw_curves(grid[1][column], entries, styles)
    for axes in grid.flat:
        axes.tick_params(colors=_GREY)
        axes.grid(color=_GREY, alpha=0.25)
        axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=150, transparent=True)


def _style(index: int) -> dict[str, str]:
    """A color and a marker that no other model has."""
    return {"color": _COLORS[index % len(_COLORS)], "marker": _MARKERS[index // len(_COLORS) % len(_MARKERS)]}


def _draw_rates(axes: Any, env: str, entries: Sequence[Entry], styles: Mapping[str, Mapping[str, str]]) -> None:
    for row, entry in enumerate(entries):
        estimate = entry.scores.pass_at[1]
        bars = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
        axes.errorbar([estimate.value], [row], xerr=bars, ls="", capsize=4, **styles[entry.model])
    axes.set_yticks(range(len(entries)), [label_of(entry.model) for entry in entries])
    axes.set_ylim(len(entries) - 0.5, -0.5)
    axes.set_xlim(-0.03, 1.03)
    env_id, _, options = env.partition(",")
    axes.set_title("\n".join(filter(None, [env_id, _short(options, 48)])), color=_GREY, loc="left", fontsize="medium")
    axes.set_xlabel("pass@1", color=_GREY)


def label_of(model: str) -> str:
    """A model's name beside the plot; of NAME@ADDRESS the address stands below."""
    name, _, address = model.rpartition("@")
    if not address.startswith(("http://", "https://")):
        return _short(model, 24)
    return f"{_short(name, 24)}\n{_short(address.partition('://')[2], 24)}"


def _short(name: str, length: int) -> str:
    """The end of a long name, which tells paths apart."""
    return name if len(name) <= length else f"...{name[3 - length :]}"


def _draw_curves(axes: Any, entries: Sequence[Entry], styles: Mapping[str, Mapping[str, str]]) -> None:
    for entry in entries:
        scores, style = entry.scores, styles[entry.model]
        axes.plot(list(scores.pass_at), [e.value for e in scores.pass_at.values()], "-", **style, markersize=4)
        bounds = [[e.low for e in scores.pass_at.values()], [e.high for e in scores.pass_at.values()]]
        axes.fill_between(list(scores.pass_at), *bounds, color=style["color"], alpha=0.15, linewidth=0)
        every = {1: scores.pass_at[1], **scores.pass_hat}
        axes.plot(list(every), [e.value for e in every.values()], ":", **style, markersize=3)
    axes.set_xscale("log", base=2)
    ks = sorted({k for entry in entries for k in entry.scores.pass_at})
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("k    (solid: pass@k, dotted: pass^k)", color=_GREY)
