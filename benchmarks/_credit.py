"""Whom the two learners thank: PPO's advantage of each token beside GRPO's, which is one for the whole episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _curves import Algorithm, Sizes, online_config
from _report import new_figure, table
from matplotlib.axes import Axes

from verigym.agents.agent import load_chat, load_model
from verigym.agents.episode import Episode
from verigym.agents.learners.checkpoint import load_state
from verigym.agents.learners.config import GRPOConfig
from verigym.agents.learners.grpo import GRPO
from verigym.agents.learners.ppo import PPO
from verigym.agents.scalar import load_scalar_model
from verigym.run_folder import LEARNER, RunFolder
from verigym.training import train

_LABEL = 14  # characters of a token in the picture


@dataclass(frozen=True)
class Credited:
    """One episode: each token that the policy sampled, and what the tools said before it ("" for nothing)."""

    right: bool
    question: str
    tokens: list[str]
    heard: list[str]
    values: list[float]
    ppo: list[float]
    grpo: float


def measure(ppo: Algorithm, model: Path, sizes: Sizes, seed: int, folder: Path) -> list[dict[str, Any]]:
    """A right episode that called the tool, and a wrong one of the same task.

    They are played after the critic's warm-up: the critic knows the policy, which has not changed yet, and they are
    new to both.
    """
    config = online_config(ppo, model, sizes, seed, folder)
    warm_up = config.ppo.critic_warmup
    train(replace(config, steps=warm_up + 1, eval_every=0, checkpoint_every=warm_up))
    run = RunFolder(folder)
    before, episodes = run.checkpoints_path / f"{warm_up:06d}", list(run.episodes(warm_up + 1))
    settings = replace(config.ppo, whiten=False)  # whitening moves the zero, and the credit is harder to see
    learner = PPO(load_model(before), settings, critic=load_scalar_model(before, trained=False), seed=seed)
    load_state(before / LEARNER, learner)
    credit = learner.advantages(episodes)
    uniform = GRPO(load_model(before), GRPOConfig()).advantages(episodes)
    tokenizer, _ = load_chat(before)
    found = []
    for index in _pair(episodes):
        place = credit.episodes.index(index)
        values, advantages = credit.values[place].tolist(), credit.advantages[place].tolist()
        found.append(asdict(_credited(episodes[index], tokenizer, values, advantages, float(uniform[index]))))
    return found


def _pair(episodes: Sequence[Episode]) -> tuple[int, int]:
    """The first right episode with a call, and a wrong one of its group. Raises ValueError if there is none."""
    for i, right in enumerate(episodes):
        if right.reward == 1 and len(right.turns) == 2:
            for j, wrong in enumerate(episodes):
                if wrong.group_id == right.group_id and wrong.reward == 0 and wrong.terminated:
                    return i, j
    raise ValueError("no group has both a right episode with a call and a wrong one")


def _credited(
    episode: Episode, tokenizer: Any, values: list[float], advantages: list[float], uniform: float
) -> Credited:
    tokens, heard = [], []
    for turn, after in zip(episode.turns, (None, *episode.turns), strict=False):
        ids = episode.token_ids[turn.start : turn.end].tolist()
        tokens += [tokenizer.decode([token]) for token in ids]
        said = "" if after is None else _tool_text(episode)
        heard += [said, *[""] * (len(ids) - 1)]
    question = str(episode.messages[0]["content"])
    return Credited(episode.reward == 1, question, tokens, heard, values, advantages, uniform)


def _tool_text(episode: Episode) -> str:
    return " ".join(str(message["content"]) for message in episode.messages if message["role"] == "tool")


def show(found: Sequence[Credited], path: Path) -> None:
    """A panel for each episode: bars over its tokens."""
    figure, panels = new_figure(2, len(found) // 2, height=4.2)
    for axes, episode in zip(panels, found, strict=True):
        _bars(axes, episode)
        axes.set_ylim(*_limits(found))
    panels[0].set_ylabel("advantage")
    panels[-1].legend(frameon=False)
    figure.savefig(path, dpi=120)


def _limits(found: Sequence[Credited]) -> tuple[float, float]:
    """One scale for all panels."""
    every = [0.0, *(value for episode in found for value in (*episode.ppo, episode.grpo))]
    return min(every) - 0.1, max(every) + 0.2


def _bars(axes: Axes, episode: Credited) -> None:
    places = range(len(episode.tokens))
    axes.bar([place - 0.2 for place in places], episode.ppo, 0.4, label="PPO", color="tab:blue")
    axes.bar([place + 0.2 for place in places], [episode.grpo] * len(places), 0.4, label="GRPO", color="tab:orange")
    axes.axhline(0, color="black", linewidth=0.8)
    for place, said in enumerate(episode.heard):
        if said:
            axes.axvline(place - 0.5, color="gray", linestyle=":")
            axes.annotate(f" tool: {said}", (place - 0.5, 0.97), xycoords=("data", "axes fraction"), fontsize=8)
    axes.set_xticks(list(places), [_label(token) for token in episode.tokens], rotation=90, fontsize=8)
    axes.set_title(f"{'right' if episode.right else 'wrong'}: {episode.question.splitlines()[0]}", fontsize=10)


def _label(token: str) -> str:
    shown = token.replace("\n", "\\n").replace("$", "\\$").strip() or repr(token)
    return shown if len(shown) <= _LABEL else f"{shown[: _LABEL - 1]}…"


def as_table(found: Sequence[Credited]) -> str:
    """Both episodes token by token."""
    rows = [["episode", "token", "critic's value before it", "PPO", "GRPO"]]
    for episode in found:
        for place, token in enumerate(episode.tokens):
            if episode.heard[place]:
                rows.append(["", f"*the tool says {episode.heard[place]}*", "", "", ""])
            name = ("right" if episode.right else "wrong") if place == 0 else ""
            shown = f"`{_label(token)}`"
            rows.append(
                [name, shown, f"{episode.values[place]:.2f}", f"{episode.ppo[place]:+.2f}", f"{episode.grpo:+.2f}"]
            )
    return table(rows)
