"""TextArena's games as environments (Guertler et al., arXiv:2504.11442; `verigym[textarena]`).

A task of `game="GuessTheNumber-v0"`: the prompt "You are Player 0. You are playing Guess The Number. You have to guess
the number between 1 and 20 within 10 turns. ..."; `[14]` is answered by "The target number is lower.", and the number
itself ends the game with a reward of 1.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from verigym.envs._options import player
from verigym.envs._waiting import call_until
from verigym.envs.adapters._sessions import Session
from verigym.envs.adapters.adapted import AdaptedEnv, Ending, described, seeded_tasks, turn_text
from verigym.envs.text_env import Budget, Message, Reply
from verigym.tasks._generate import whole_number
from verigym.tasks.errors import TaskDataError
from verigym.tasks.worlds.simulated import Player


class TextArenaEnv(AdaptedEnv):
    """A game of TextArena; a turn is a move. The reward comes at the end: the game's own, of the agent's seat.

    The agent reads what is new to its player, and moves by what it writes after its reasoning. A game of several
    players has the agent in each seat in turn, by the task's index; the others are played by `opponent`. A game that
    ends for an invalid move is UNPARSEABLE; one that a budget ends is lost, and pays
    -1 among several players, else 0.

    Args:
        game: its id in TextArena. Wrappers that its id has for observations, such as that of the whole history, are
            left out, as the conversation has it; those for actions stay.
        options: keyword arguments of the game, such as `max_turns`.
        players: how many there are (None: the fewest that the game can have).
        opponent: who plays the others, anything with an Agent's `act`, or "module:function" of what makes one (None:
            random moves that the game takes). A fork needs one that says the same again.
        split, seed, size: which tasks; each is a seed of the game, and no seed is in both splits.
        instructions: a text put under the first message, after a blank line ("" for none).
        python: the interpreter that has textarena (None: this one).
        max_turns, max_tokens_per_turn, max_tokens_per_episode: the budgets; None is no limit on tokens.
        chance: the reward that a policy blind to the game can earn (None: measured when it is asked for).

    Raises UnknownNameError for a game that there is not, ConfigError for one that cannot be made, with the reason, and
    if textarena is not installed; TaskDataError from `reset` for a task that cannot begin.
    """

    adapter: ClassVar[str] = "textarena"
    package: ClassVar[str] = "textarena"
    extra: ClassVar[str] = "textarena"

    def __init__(
        self,
        game: str = "",
        *,
        options: Mapping[str, Any] | None = None,
        players: int | None = None,
        opponent: Player | str | None = None,
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
        if players is not None:
            players = whole_number("textarena", "players", players, 1, None)
        spec = {"game": game, "options": dict(options or {}), "players": players}
        spec = {**spec, "players": described(TextArenaEnv, python, spec, game)["players"]}
        drawn = seeded_tasks(TextArenaEnv, python, spec, split, seed)
        super().__init__(
            drawn.of_size(size),
            spec=spec,
            python=python,
            instructions=instructions,
            budget=Budget(max_turns, max_tokens_per_turn, max_tokens_per_episode),
            chance=chance,
            render_mode=render_mode,
        )
        self._opponent = player("opponent", opponent)
        self._seat = 0
        self._seen: dict[int, list[Message]] = {}

    def begin(self, session: Session, reply: Mapping[str, Any]) -> list[Message]:
        self._seat, self._seen = reply["seat"], defaultdict(list)
        reply = self._others_move(session, reply)
        if "over" in reply:
            raise TaskDataError(f"the game is over before the agent's first move: {reply['reason']}")
        return [{"role": "user", "content": reply["text"]}]

    def play(self, session: Session, action: str) -> Reply:
        reply = self._others_move(session, session.move(text=turn_text(action)))
        told = [{"role": "user", "content": reply["text"]}] if reply["text"] else []
        if "over" not in reply:
            return Reply(told)
        self._end = Ending(reply["reward"], reply["reason"], reply["components"], reply["invalid"])
        return Reply(told, final=True)

    def broken_off(self, session: Session, cut: str | None) -> Ending:
        # 0 would be better than a loss: a policy would learn to run out of turns
        if self._spec["players"] == 1:
            return Ending()
        return Ending(-1.0, "a budget ended the game before it was over, which counts as lost")

    def _others_move(self, session: Session, reply: Mapping[str, Any]) -> Mapping[str, Any]:
        """The moves of the other players, up to the agent's next turn or the end."""
        while "over" not in reply and reply["player"] != self._seat:
            if self._opponent is None:
                reply = session.move()
                continue
            seen = self._seen[reply["player"]]
            seen.append({"role": "user", "content": reply["text"]})
            said = call_until(self._closed, partial(self._opponent.act, seen))
            seen.append({"role": "assistant", "content": said})
            reply = session.move(text=turn_text(said))
        return reply
