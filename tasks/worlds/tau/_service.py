"""What the agents of tau-bench's two services have in common: to think, to calculate, to hand over to a human."""

from __future__ import annotations

import json
from typing import Any

from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.tau._arithmetic import calculate
from verigym.tasks.worlds.tool import Refused
from verigym.tasks.worlds.world import World


class Service(World):
    """Records of users and of what they bought; a tool answers in JSON, or "Error: ..." and then has done nothing."""

    _last = frozenset({"transfer_to_human_agents"})

    def calculate(self, expression: str) -> str:
        """Work out an arithmetic expression, to two decimals.

        Args:
            expression: numbers, + - * /, parentheses and spaces, such as '2 + 2'.
        """
        try:
            return calculate(expression)
        except ValueError as error:
            raise Refused(f"Error: {error}") from error

    def get_user_details(self, user_id: str) -> str:
        """Show a user's profile, with the ways to pay and what was ordered or booked.

        Args:
            user_id: such as 'sara_doe_496'.
        """
        return text(self._record("users", user_id, "user not found"))

    def think(self, thought: str) -> str:
        """Note a thought. Nothing is looked up or changed by it.

        Args:
            thought: what to keep in mind.
        """
        return ""

    def transfer_to_human_agents(self, summary: str) -> str:
        """Hand the user over to a human agent, which ends the conversation.

        Only where the user asks for it expressly, or where the tools cannot settle the matter.

        Args:
            summary: what the matter is.
        """
        return "Transfer successful"

    def _result(self, name: str, arguments: dict[str, Any]) -> str:
        try:
            return super()._result(name, arguments)
        except (LookupError, ArithmeticError) as error:  # such as a certificate that pays twice
            raise Refused(f"Error: {error}") from error  # as tau-bench tells of whatever goes wrong in a tool

    def _record(self, table: str, key: str, missing: str) -> Record:
        """A copy of a record. Raises Refused with what is missing."""
        record = self.store.get(table, key)
        if record is None:
            raise Refused(f"Error: {missing}")
        return record

    def _payment_method(self, user: Record, payment_id: str, name: str = "") -> dict[str, Any]:
        method: dict[str, Any] | None = user["payment_methods"].get(payment_id)
        if method is None:
            raise Refused(f"Error: payment method {name}not found")
        return method


def text(value: Any) -> str:
    """Plain data as tau-bench writes it."""
    return json.dumps(value)
