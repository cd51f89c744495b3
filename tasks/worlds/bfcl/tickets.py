"""The support tickets of BFCL's multi-turn tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.world import World

ACTS = frozenset({"close_ticket", "create_ticket", "edit_ticket", "logout", "resolve_ticket", "ticket_login"})
_FIELDS = ("title", "description", "status", "priority")
_NONE = "None"  # how the documents write an argument that is left out


def tables(config: Mapping[str, Any]) -> dict[str, dict[str, Record]]:
    """`tickets` by number (or by the name that the row gives), and who is logged in."""
    tickets: dict[str, Record] = {}
    for number, entry in enumerate(config.get("ticket_queue", [])):
        by_name = "id" not in entry and all(isinstance(inner, Mapping) for inner in entry.values())
        named = entry if by_name else {entry.get("id", f"ticket_{number}"): entry}
        tickets |= {str(key): dict(ticket) for key, ticket in named.items()}
    return {
        "tickets": tickets,
        "support": {
            "session": {"user": config.get("current_user") or None},
            "counter": {"next": int(config.get("ticket_counter", 1))},
        },
    }


class TicketAPI(World):
    """Tickets, and a user who creates them."""

    def close_ticket(self, ticket_id: int) -> dict[str, Any]:
        """Close a ticket.

        Args:
            ticket_id: The number of the ticket.
        """
        ticket = self.__ticket(ticket_id)
        if ticket.get("status") == "Closed":
            raise ValueError(f"ticket {ticket_id} is closed already")
        self.store.put("tickets", str(ticket_id), {**ticket, "status": "Closed"})
        return {"status": f"Ticket {ticket_id} has been closed"}

    def create_ticket(self, title: str, description: str = "", priority: int = 1) -> dict[str, Any]:
        """Create a ticket.

        Args:
            title: The title.
            description: What it is about.
            priority: From 1 to 5, which is the highest.
        """
        user = self.__user()
        _check_priority(priority)
        number = (self.store.get("support", "counter") or {"next": 1})["next"]
        while ("tickets", str(number)) in self.store:
            number += 1
        ticket = {"id": number, "title": title, "description": description, "status": "Open", "priority": priority}
        self.store.put("tickets", str(number), {**ticket, "created_by": user})
        self.store.put("support", "counter", {"next": number + 1})
        return ticket

    def edit_ticket(self, ticket_id: int, updates: dict[str, Any]) -> dict[str, Any]:
        """Change a ticket.

        Args:
            ticket_id: The number of the ticket.
            updates: The new values by field: title, description, status (texts), priority (a whole number).
        """
        self.__ticket(ticket_id)
        if not updates:
            raise ValueError(f"updates must have some of {', '.join(_FIELDS)}")
        for name, value in updates.items():
            if name not in _FIELDS:
                raise ValueError(f"a ticket has no field '{name[:40]}' to edit; there are {', '.join(_FIELDS)}")
            if type(value) is not str and (name != "priority" or type(value) is not int):
                raise ValueError(f"the {name} of a ticket must be {'a text' if name != 'priority' else 'an integer'}")
        if type(updates.get("priority")) is int:  # some rows have priorities such as "High"
            _check_priority(updates["priority"])
        self.store.update("tickets", str(ticket_id), updates)
        return {"status": f"Ticket {ticket_id} has been updated"}

    def get_ticket(self, ticket_id: int) -> dict[str, Any]:
        """Show a ticket.

        Args:
            ticket_id: The number of the ticket.
        """
        return self.__ticket(ticket_id)

    def get_user_tickets(self, status: str = _NONE) -> dict[str, Any]:
        """List the tickets that the current user has created.

        Args:
            status: Only those with this status (default: all).
        """
        user = self.__user()
        found = [self.store.get("tickets", key) or {} for key in self.store.find("tickets", created_by=user)]
        wanted = [
            each for each in found
            if status == _NONE or str(each.get("status", "")).casefold() == status.casefold()
        ]  # fmt: skip
        return {"tickets": sorted(wanted, key=lambda ticket: str(ticket.get("id", "")))}

    def logout(self) -> dict[str, Any]:
        """Log out of the ticket system."""
        if not self.__session()["user"]:
            return {"success": False}
        self.store.put("support", "session", {"user": None})
        return {"success": True}

    def resolve_ticket(self, ticket_id: int, resolution: str) -> dict[str, Any]:
        """Mark a ticket as resolved.

        Args:
            ticket_id: The number of the ticket.
            resolution: How it was resolved.
        """
        ticket = self.__ticket(ticket_id)
        if ticket.get("status") == "Resolved":
            raise ValueError(f"ticket {ticket_id} is resolved already")
        self.store.put("tickets", str(ticket_id), {**ticket, "status": "Resolved", "resolution": resolution})
        return {"status": f"Ticket {ticket_id} has been resolved"}

    def ticket_get_login_status(self) -> dict[str, Any]:
        """Tell whether a user is logged in to the ticket system."""
        return {"login_status": bool(self.__session()["user"])}

    def ticket_login(self, username: str, password: str) -> dict[str, Any]:
        """Log in to the ticket system.

        Args:
            username: The user's name.
            password: The user's password.
        """
        if not username or not password:  # no row says what is right, so any other password is
            return {"success": False}
        self.store.put("support", "session", {"user": username, "password": password})
        return {"success": True}

    def __session(self) -> Record:
        return self.store.get("support", "session") or {"user": None}

    def __user(self) -> str:
        user = self.__session()["user"]
        if not user:
            raise ValueError("nobody is logged in; call ticket_login first")
        return str(user)

    def __ticket(self, ticket_id: int) -> Record:
        ticket = self.store.get("tickets", str(ticket_id))
        if ticket is None:
            raise ValueError(f"there is no ticket {ticket_id}")
        return ticket


def _check_priority(priority: int) -> None:
    if not 1 <= priority <= 5:
        raise ValueError(f"a priority is from 1 to 5, not {priority}")
