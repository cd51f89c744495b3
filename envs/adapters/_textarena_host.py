"""What a worker does for TextArena: plays a game, all of its players, turn by turn. Imports nothing of verigym."""

from __future__ import annotations

import copy
import itertools
import random
import re
from collections import defaultdict
from typing import Any

import textarena as ta
from textarena.core import GAME_ID, ActionWrapper, ObservationType
from textarena.envs.registration import ENV_REGISTRY

MOST_PLAYERS = 15
_TOKEN = re.compile(r"\[[^\[\]\n]{1,40}\]")
_refuse = ta.SinglePlayerState.set_invalid_move


def _refuse_in_order(state: Any, reason: Any, reward: Any = -1.0) -> None:
    """Refuses a move; four games, such as Countdown, give the reward before the reason."""
    _refuse(state, *((reward, reason) if isinstance(reward, str) else (reason, reward)))


ta.SinglePlayerState.set_invalid_move = _refuse_in_order


def describe(spec: dict[str, Any]) -> dict[str, Any]:
    """The number of players of a game, or which games there are, or how many players it can have."""
    if spec["game"] not in ENV_REGISTRY:
        return {"names": [name for name in ENV_REGISTRY if not name.endswith(("-raw", "-train"))]}
    problem: Exception | None = None
    wanted = range(1, MOST_PLAYERS + 1) if spec["players"] is None else [spec["players"]]
    for players in wanted:
        game = _make(spec)
        try:
            game.reset(num_players=players, seed=0)
        except (AssertionError, ValueError) as error:  # how games refuse a number of players
            problem = problem or error
        else:
            return {"players": players}
    raise problem or ValueError("no number of players suits it")


def _make(spec: dict[str, Any]) -> Any:
    """The game without the wrappers of observations, which repeat the whole history; those of actions stay."""
    entry = ENV_REGISTRY[spec["game"]]
    wrappers, entry.default_wrappers = entry.default_wrappers or [], None
    try:
        env = ta.make(spec["game"], **spec["options"])
    finally:
        entry.default_wrappers = wrappers
    for wrapper in wrappers:
        if issubclass(wrapper, ActionWrapper):
            env = wrapper(env)
    return env


class Session:
    """A game. `seed` decides its course; the agent takes the seats in turn, by `index`."""

    def __init__(self, spec: dict[str, Any], seed: int, index: int) -> None:
        self._env = _make(spec)
        self._env.reset(num_players=spec["players"], seed=seed % 2**32)
        self._seat = index % spec["players"]
        self._told: dict[int, list[str]] = defaultdict(list)

    def opening(self) -> dict[str, Any]:
        prompt = self._shown(self._seat, self._env.state.observations[self._seat])  # read, and not taken
        return {"prompt": prompt, "seat": self._seat, **self._said()}

    def move(self, move: dict[str, Any]) -> dict[str, Any]:
        """Plays a move of whose turn it is; without a text, a random one."""
        text = move.get("text")
        if text is None:
            text = self._random_move()
        over, _ = self._env.step(text)
        return self._result() if over else self._said()

    def _said(self) -> dict[str, Any]:
        player, observation = self._env.get_observation()
        text = self._shown(player, observation)
        self._told[player].append(text)
        return {"player": player, "text": text}

    def _shown(self, reader: int, observation: Any) -> str:
        """What a player is told, without the player's own words."""
        if isinstance(observation, str):
            return observation.strip()
        said = []
        for sender, message, kind in observation:
            own = kind == ObservationType.PLAYER_ACTION and sender == reader
            if own or not isinstance(message, str):  # some games of one player mix up what their own move is noted with
                continue
            name = self._env.state.role_mapping.get(sender, f"Player {sender}")
            said.append(message.strip() if sender == GAME_ID else f"[{name}] {message.strip()}")
        return "\n\n".join(said)

    def _result(self) -> dict[str, Any]:
        rewards, infos = self._env.close()
        if not rewards or self._seat not in rewards:
            raise ValueError(f"the game ended without a reward for player {self._seat}: {rewards}")
        info = infos.get(self._seat, {})
        told = self._env.state.observations.get(self._seat, [])
        return {
            "over": True,
            "text": self._shown(self._seat, told),
            "reward": float(rewards[self._seat]),
            "reason": str(info.get("reason") or "the game is over"),
            "invalid": bool(info.get("invalid_move")),
            "components": {f"player {player}": float(reward) for player, reward in sorted(rewards.items())},
        }

    def _random_move(self) -> str:
        """A move that the game takes, of those that the player was shown, of small numbers and of places on a board."""
        player = self._env.state.current_player_id
        shown: list[str] = _TOKEN.findall(" ".join(self._told[player]))
        numbers = [f"[{number}]" for number in range(10)]
        places = [f"[{row} {column}]" for row, column in itertools.product(range(8), repeat=2)]
        for moves in (list(dict.fromkeys([*shown, *numbers])), places):
            for move in random.sample(moves, len(moves)):
                if self._takes(move):
                    return str(move)
        raise ValueError("no random move is found for the opponent: give one that can play, as opponent=")

    def _takes(self, move: str) -> bool:
        """Whether the game takes a move, tried on a copy."""
        trial = copy.deepcopy(self._env)
        refuse, refused = trial.state.set_invalid_move, []

        def watched(*args: Any, **kwargs: Any) -> Any:
            refused.append(move)
            return refuse(*args, **kwargs)

        trial.state.set_invalid_move = watched
        trial.step(move)
        return not refused
