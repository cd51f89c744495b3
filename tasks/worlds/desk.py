"""The desk: orders, a calendar, messages and files, as a world for `verigym/Desk-v0`."""

from __future__ import annotations

from typing import Any

from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.world import World


class Desk(World):
    """Orders by number, meetings by person, messages by a number of their own, files by name.

    `people` has a record for each person who can be met and written to.
    """

    def find_order(self, order: int) -> dict[str, Any]:
        """Show an order."""
        return self._record("orders", str(order), "order")

    def cancel_order(self, order: int) -> str:
        """Cancel an order."""
        self._change_order(order, status="cancelled")
        return "done"

    def move_order(self, order: int, day: int) -> str:
        """Change the day on which an order arrives."""
        self._change_order(order, day=day)
        return "done"

    def find_meeting(self, person: str) -> dict[str, Any]:
        """Show the meeting with a person."""
        return self._record("calendar", person, "meeting with")

    def add_meeting(self, person: str, day: int, hour: int) -> str:
        """Plan a meeting with a person who has none."""
        self._record("people", person, "person")
        if ("calendar", person) in self.store:
            raise ValueError(f"there is a meeting with {person} already")
        self.store.put("calendar", person, {"day": day, "hour": hour})
        return "done"

    def move_meeting(self, person: str, day: int) -> str:
        """Change the day of the meeting with a person."""
        meeting = self._record("calendar", person, "meeting with")
        self.store.put("calendar", person, {**meeting, "day": day})
        return "done"

    def cancel_meeting(self, person: str) -> str:
        """Take the meeting with a person off the calendar."""
        self._record("calendar", person, "meeting with")
        self.store.delete("calendar", person)
        return "done"

    def read_message(self, person: str) -> dict[str, Any]:
        """Show the message that came from a person."""
        return self._record("inbox", person, "message from")

    def send_message(self, person: str, text: str) -> str:
        """Send a message to a person."""
        self._record("people", person, "person")
        return f"sent as message {self.store.add('sent', {'to': person, 'text': text})}"

    def find_file(self, name: str) -> dict[str, Any]:
        """Show what is known of a file."""
        return self._record("files", name, "file")

    def rename_file(self, name: str, new_name: str) -> str:
        """Give a file another name."""
        file = self._record("files", name, "file")
        if ("files", new_name) in self.store:
            raise ValueError(f"there is a file {new_name} already")
        self.store.delete("files", name)
        self.store.put("files", new_name, file)
        return "done"

    def delete_file(self, name: str) -> str:
        """Delete a file."""
        self._record("files", name, "file")
        self.store.delete("files", name)
        return "done"

    def _change_order(self, order: int, **fields: Any) -> None:
        record = self._record("orders", str(order), "order")
        if record["status"] != "open":
            raise ValueError(f"order {order} is {record['status']} and cannot be changed")
        self.store.put("orders", str(order), {**record, **fields})

    def _record(self, table: str, key: str, kind: str) -> Record:
        record = self.store.get(table, key)
        if record is None:
            raise ValueError(f"there is no {kind} {key}")
        return record
