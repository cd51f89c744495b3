"""GEM's environments as verigym's (Liu et al., arXiv:2510.01051; `verigym[gem]`).

A task of `game="game:GuessTheNumber-v0-easy"`: the prompt "You are playing Guess The Number. You have to guess the
number between 1 and 10 (inclusive) within 4 turns. ..."; `\\boxed{5}` is answered by "At turn 1, you guessed 5, and the
target number is lower than 5.", and the number itself earns 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from verigym.envs.adapters._sessions import Session
from verigym.envs.adapters.adapted import AdaptedEnv, Ending, described, seeded_tasks, turn_text
from verigym.envs.text_env import Budget, Message, Reply


class GEMEnv(AdaptedEnv):
    """An environment of GEM. It pays each turn; the last turn's reward is the verdict's, the others come before.

    The agent reads GEM's observation and its suffix, and is read after its reasoning.

    Args:
        game: its id in GEM, such as "game:Sudoku-v0-easy".
        options: keyword arguments of the environment, such as `max_turns`.
        split, seed, size: which tasks; each is a seed of the environment, and no seed is in both splits.
        instructions: a text put under the first message, after a blank line ("" for none).
        python: the interpreter that has gem-llm (None: this one).
        max_turns, max_tokens_per_turn, max_tokens_per_episode: the budgets; None is no limit on tokens.
        chance: the reward that a policy blind to the task can earn (None: measured when it is asked for).

    Raises UnknownNameError for an id that GEM has not, ConfigError for one that cannot be made, with the reason, and
    if gem-llm is not installed; TaskDataError from `reset` for a task that cannot begin.
    """

    adapter: ClassVar[str] = "gem"
    package: ClassVar[str] = "gem-llm"
    extra: ClassVar[str] = "gem"

    def __init__(
        self,
        game: str = "",
        *,
        options: Mapping[str, Any] | None = None,
        split: str = "train",
        seed: int = 0,
        size: int | None = None,
        instructions: str = "",
        python: str | None = None,
        max_turns: int = 200,
        max_tokens_per_turn: int | None = 1024,
        max_tokens_per_episode: int | None = None,
        chance: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        spec = {"game": game, "options": dict(options or {})}
        described(GEMEnv, python, spec, game)
        drawn = seeded_tasks(GEMEnv, python, spec, split, seed)
        super().__init__(
            drawn.of_size(size),
            spec=spec,
            python=python,
            instructions=instructions,
            budget=Budget(max_turns, max_tokens_per_turn, max_tokens_per_episode),
            chance=chance,
            render_mode=render_mode,
        )
        self._paid = 0.0

    @property
    def isolated(self) -> bool:
        """Whether it is a game: GEM's other scorers run or evaluate what the agent writes."""
        return str(self._spec["game"]).startswith("game:")

    def begin(self, session: Session, reply: Mapping[str, Any]) -> list[Message]:
        self._paid = 0.0
        return [{"role": "user", "content": reply["text"]}]

    def play(self, session: Session, action: str) -> Reply:
        reply = session.move(text=turn_text(action))
        told = [{"role": "user", "content": reply["text"]}] if reply["text"] else []
        if "over" not in reply:
            self._paid += reply["reward"]
            return Reply(told, reward=reply["reward"])
        parts = {"last turn": reply["reward"], "earlier turns": self._paid}
        self._end = Ending(reply["reward"], reply["reason"], parts)
        return Reply(told, final=True)
