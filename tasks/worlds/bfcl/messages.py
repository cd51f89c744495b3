"""The workspace's messages of BFCL's multi-turn tasks: users by name, and what the current one has sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.world import World

ACTS = frozenset({"add_contact", "delete_message", "message_login", "send_message"})
_USERS = {"Alice": "USR001", "Bob": "USR002", "Catherine": "USR003", "Daniel": "USR004"}
_SENT = [
    {"USR002": "My name is Alice. I want to connect."},
    {"USR003": "Could you upload the file?"},
    {"USR004": "Could you upload the file?"},
]


def tables(config: Mapping[str, Any]) -> dict[str, dict[str, Record]]:
    """`users` by name, `sent` messages by number, and who is logged in.

    The messages of a row are those of the user that it logs in; if it logs in none, of whoever does.
    """
    users, user = config.get("user_map") or _USERS, config.get("current_user")
    sent = [pair for entry in config.get("inbox", _SENT) for pair in _messages(entry)]
    return {
        "users": {name: {"id": user_id} for name, user_id in users.items()},
        "sent": {str(number): _message(user, *pair) for number, pair in enumerate(sent, start=1)},
        "workspace": {
            "session": {"user": user},
            "counts": {"users": config.get("user_count", len(users)), "messages": len(sent)},
        },
    }


def _message(sender: str | None, to: str, text: str) -> Record:
    return {"from": sender, "to": to, "message": text}


def _messages(entry: Any, to: str = "") -> Iterator[tuple[str, str]]:
    """(receiver, text) of each message in an entry of an inbox, which may be nested."""
    if isinstance(entry, Mapping):
        for user_id, inner in entry.items():
            yield from _messages(inner, to or str(user_id))
    elif isinstance(entry, list):
        for inner in entry:
            yield from _messages(inner, to)
    else:
        yield to, str(entry)


class MessageAPI(World):
    """Who uses the workspace, and what the current user has sent."""

    def add_contact(self, user_name: str) -> dict[str, Any]:
        """Add a user to the workspace.

        Args:
            user_name: The name of the new user.
        """
        self.__user()
        if ("users", user_name) in self.store:
            return {"added_status": False, "user_id": self.__id(user_name), "message": f"{user_name} is there already"}
        counts = self.__counts()
        number = counts["users"] + 1
        while (user_id := f"USR{number:03}") in self.__ids():
            number += 1
        self.store.put("users", user_name, {"id": user_id})
        self.store.put("workspace", "counts", {**counts, "users": number})
        return {"added_status": True, "user_id": user_id, "message": f"{user_name} was added"}

    def delete_message(self, receiver_id: str) -> dict[str, Any]:
        """Delete the latest message that the current user has sent to someone.

        Args:
            receiver_id: The user id of the receiver.
        """
        numbers = [number for number, message in self.__sent().items() if message["to"] == receiver_id]
        if not numbers:
            said = "no message was sent to this user"
            return {"deleted_status": False, "receiver_id": receiver_id, "message": said}
        self.store.delete("sent", numbers[-1])
        return {"deleted_status": True, "receiver_id": receiver_id, "message": "the latest message was deleted"}

    def get_message_stats(self) -> dict[str, Any]:
        """Count the messages, and the users that the current one has to do with."""
        user, sent = self.__user(), self.__sent().values()
        received = [self.store.get("sent", number) or {} for number in self.store.find("sent", to=user)]
        contacts = {message["to"] for message in sent} | {message["from"] for message in received}
        return {"stats": {"received_count": len(received), "total_contacts": len(contacts - {None})}}

    def get_user_id(self, user: str) -> dict[str, Any]:
        """Tell the user id of a user.

        Args:
            user: The user's name.
        """
        return {"user_id": self.__id(user)}

    def list_users(self) -> dict[str, Any]:
        """List the names of all users of the workspace."""
        return {"user_list": self.store.keys("users")}

    def message_get_login_status(self) -> dict[str, Any]:
        """Tell whether a user is logged in."""
        return {"login_status": bool(self.__session()["user"])}

    def message_login(self, user_id: str) -> dict[str, Any]:
        """Log in as a user.

        Args:
            user_id: The user id.
        """
        if user_id not in self.__ids() and user_id != self.__session()["user"]:
            return {"login_status": False, "message": f"there is no user with the id {user_id}"}
        self.store.put("workspace", "session", {"user": user_id})
        return {"login_status": True, "message": f"{user_id} is logged in"}

    def search_messages(self, keyword: str) -> dict[str, Any]:
        """Find the messages of the current user that contain a word, in whatever case.

        Args:
            keyword: The word.
        """
        word = keyword.casefold()
        found = [message for message in self.__sent().values() if word in message["message"].casefold()]
        return {"results": [{"receiver_id": each["to"], "message": each["message"]} for each in found]}

    def send_message(self, receiver_id: str, message: str) -> dict[str, Any]:
        """Send a message to a user.

        Args:
            receiver_id: The user id of the receiver.
            message: The text.
        """
        user = self.__user()
        if receiver_id not in self.__ids():
            said = f"there is no user with the id {receiver_id}"
            return {"sent_status": False, "message_id": None, "message": said}
        counts = self.__counts()
        number = counts["messages"] + 1
        self.store.put("workspace", "counts", {**counts, "messages": number})
        self.store.put("sent", str(number), _message(user, receiver_id, message))
        return {"sent_status": True, "message_id": number, "message": f"the message to {receiver_id} was sent"}

    def view_messages_sent(self) -> dict[str, Any]:
        """Show all messages that the current user has sent, by receiver."""
        found: dict[str, list[str]] = {}
        for message in self.__sent().values():
            found.setdefault(message["to"], []).append(message["message"])
        return {"messages": found}

    def __session(self) -> Record:
        return self.store.get("workspace", "session") or {"user": None}

    def __user(self) -> str:
        user = self.__session()["user"]
        if not user:
            raise ValueError("nobody is logged in; call message_login first")
        return str(user)

    def __counts(self) -> Record:
        return self.store.get("workspace", "counts") or {"users": 0, "messages": 0}

    def __ids(self) -> list[str]:
        return [self.__id(name) for name in self.store.keys("users")]

    def __id(self, name: str) -> str:
        user = self.store.get("users", name)
        if user is None:
            raise ValueError(f"there is no user {name[:80]}; see list_users")
        return str(user["id"])

    def __sent(self) -> dict[str, Record]:
        """What the current user has sent, by number."""
        user = self.__user()
        found = {number: self.store.get("sent", number) or {} for number in sorted(self.store.keys("sent"), key=int)}
        return {number: message for number, message in found.items() if message["from"] in (None, user)}
