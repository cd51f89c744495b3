"""A user who is played by a model that reads what the user wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from verigym.tasks.activity import doing
from verigym.tasks.canonical import parse_turn
from verigym.tasks.worlds.user import THANKS

STOP = "###STOP###"
GREETING = "Hi! How can I help you today?"
_PROMPT = """You play a user who talks with a service agent. What you want, and what you know:

{instruction}

Say one thing at a time, in a line or two and in your own words. Do not tell all at once: give what the agent asks for.
Do not make up what is not given above; say then that you do not remember it. Stay with what you want.
When it is done, or when the agent hands you over to a human, write {stop} and nothing else."""


class Player(Protocol):
    """Answers a conversation, as an Agent does."""

    def act(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str: ...


class SimulatedUser:
    """A user played by `player`, who is told the instruction and reads the dialogue with the roles changed.

    The player's words up to STOP, if it writes that, are the last ones. A user like this says other things each time,
    as far as its player does.
    """

    answered = 0  # there is one matter only, which is settled at the end

    def __init__(self, player: Player, instruction: str) -> None:
        prompt = _PROMPT.format(instruction=instruction.strip(), stop=STOP)
        self._player = player
        self._messages = [{"role": "system", "content": prompt}]

    def opening(self) -> str:
        """The first words."""
        return self.reply(GREETING)[0]

    def reply(self, message: str) -> tuple[str, bool]:
        """What the user says to a message, and whether it was the last word."""
        self._messages.append({"role": "user", "content": message})
        with doing("user simulator", type(self._player).__name__):
            turn = self._player.act(self._messages)
        self._messages.append({"role": "assistant", "content": turn})
        said, stop, _ = parse_turn(turn).content.partition(STOP)
        return said.strip() or (THANKS if stop else ""), bool(stop)
