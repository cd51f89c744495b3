"""The file system of BFCL's multi-turn tasks: one folder to stand in, and names that are local to it."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Iterator, Mapping
from typing import Any

from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.world import World

ACTS = frozenset({"touch", "mkdir", "echo", "mv", "cp", "rm", "rmdir"})
NAVIGATION = "place"
"""The table of where the agent stands."""

FILES = "files"
NONE = "None"  # how the documents write an argument that is left out
_MAX_ENTRIES = 5000  # files and folders, so that copies of copies stay few
_MAX_COMPARED = 500  # lines of a file
_UNITS = ("B", "KB", "MB", "GB")
_COUNTS = {"l": "lines", "w": "words", "c": "characters"}


def tables(config: Mapping[str, Any]) -> dict[str, dict[str, Record]]:
    """Each file and folder by its path; the agent stands in the one folder at the top."""
    root = config.get("root") or {"workspace": {"type": "directory", "contents": {}}}
    entries = dict(_entries("", root))
    return {
        FILES: entries,
        NAVIGATION: {"folder": {"path": next(iter(entries))}},
        "shell": {"echo": {"creates": bool(config.get("echo_creates", False))}},
    }


def _entries(folder: str, contents: Mapping[str, Any]) -> Iterator[tuple[str, Record]]:
    for name, entry in contents.items():
        path = f"{folder}/{name}"
        if entry.get("type") == "directory":
            yield path, {"type": "directory"}
            yield from _entries(path, entry.get("contents") or {})
        else:
            yield path, {"type": "file", "content": str(entry.get("content", ""))}


class GorillaFileSystem(World):
    """Files by path; a record is `{"type": "directory"}` or `{"type": "file", "content": ...}`."""

    def cat(self, file_name: str) -> dict[str, Any]:
        """Show what a file of the current folder contains.

        Args:
            file_name: The file's name, without a path.
        """
        return {"file_content": self.__content(file_name)}

    def cd(self, folder: str) -> dict[str, Any]:
        """Go into a folder of the current one, or up with "..", one level at a time.

        Args:
            folder: The folder's name, or "..".
        """
        here = self.__here()
        if folder == "..":
            path = posixpath.dirname(here)
            path = here if path == "/" else path
        elif folder == ".":
            path = here
        else:
            path = self.__path(folder.removesuffix("/"))
            if self.__entry(path)["type"] != "directory":
                raise ValueError(f"{folder} is a file, not a folder")
        self.store.put(NAVIGATION, "folder", {"path": path})
        return {"current_working_directory": path}

    def cp(self, source: str, destination: str) -> dict[str, Any]:
        """Copy a file or folder of the current folder, under a new name or into a folder.

        Args:
            source: The name of what is copied.
            destination: The new name, or the folder to copy into; no path.
        """
        old, new = self.__way(source, destination)
        copied = self.__tree(old)
        if len(self.store.keys(FILES)) + len(copied) > _MAX_ENTRIES:
            raise ValueError(f"there is no room for more than {_MAX_ENTRIES} files and folders")
        for path, entry in copied:
            self.store.put(FILES, new + path[len(old) :], entry)
        return {"result": f"'{source}' copied to '{destination}'"}

    def diff(self, file_name1: str, file_name2: str) -> dict[str, Any]:
        """Compare two files of the current folder line by line.

        Args:
            file_name1: The first file's name; its own lines are marked "- ".
            file_name2: The second file's name; its own lines are marked "+ ".
        """
        one, other = self.__content(file_name1).splitlines(), self.__content(file_name2).splitlines()
        if max(len(one), len(other)) > _MAX_COMPARED:
            raise ValueError(f"only files of at most {_MAX_COMPARED} lines can be compared")
        found = []
        for kind, start, end, other_start, other_end in difflib.SequenceMatcher(None, one, other, False).get_opcodes():
            if kind != "equal":
                found += [f"- {line}" for line in one[start:end]]
                found += [f"+ {line}" for line in other[other_start:other_end]]
        return {"diff_lines": "\n".join(found)}

    def du(self, human_readable: bool = False) -> dict[str, Any]:
        """Tell how much room the files in the current folder and below it take.

        Args:
            human_readable: Whether the size is told in units such as KB and MB.
        """
        entries = (entry for _, entry in self.__tree(self.__here()))
        size = sum(len(entry.get("content", "").encode()) for entry in entries)
        return {"disk_usage": _readable(size) if human_readable else f"{size} bytes"}

    def echo(self, content: str, file_name: str = NONE) -> dict[str, Any]:
        """Write a text to a file of the current folder, in place of what it contained, or to the terminal.

        Args:
            content: The text.
            file_name: The file's name; without it the text goes to the terminal.
        """
        if file_name in (NONE, ""):
            return {"terminal_output": content}
        path = self.__path(file_name)
        entry = self.store.get(FILES, path)
        if entry is None and not (self.store.get("shell", "echo") or {}).get("creates"):
            raise ValueError(f"there is no file '{file_name[:80]}' here; touch creates one")
        if entry is not None and entry["type"] != "file":
            raise ValueError(f"{file_name} is a folder")
        self.store.put(FILES, path, {"type": "file", "content": content})
        return {"terminal_output": None}

    def find(self, path: str = ".", name: str = NONE) -> dict[str, Any]:
        """Find files and folders, at any depth below a folder, by a part of their names.

        Args:
            path: The folder to begin in (default: the current one).
            name: What a name must contain (default: all are found).
        """
        start = posixpath.normpath(posixpath.join(self.__here(), path))
        if self.__entry(start)["type"] != "directory":
            raise ValueError(f"{path} is a file, not a folder")
        wanted = "" if name == NONE else name
        below = [found[len(start) + 1 :] for found, _ in self.__tree(start) if found != start]
        prefix = path.rstrip("/") or "/"
        return {"matches": sorted(f"{prefix}/{found}" for found in below if wanted in posixpath.basename(found))}

    def grep(self, file_name: str, pattern: str) -> dict[str, Any]:
        """Find the lines of a file of the current folder that contain a text.

        Args:
            file_name: The file's name, without a path.
            pattern: The text, as it stands there.
        """
        return {"matching_lines": [line for line in self.__content(file_name).splitlines() if pattern in line]}

    def ls(self, a: bool = False) -> dict[str, Any]:
        """List what the current folder contains, sorted by name.

        Args:
            a: Whether hidden files and folders, whose names begin with a dot, are listed too.
        """
        start = f"{self.__here()}/"
        names = [path[len(start) :] for path in self.store.keys(FILES) if path.startswith(start)]
        found = sorted(name for name in names if "/" not in name and (a or not name.startswith(".")))
        return {"current_directory_content": found}

    def mkdir(self, dir_name: str) -> dict[str, Any]:
        """Create a folder in the current one.

        Args:
            dir_name: The new folder's name.
        """
        self.store.put(FILES, self.__free(dir_name), {"type": "directory"})
        return {}

    def mv(self, source: str, destination: str) -> dict[str, Any]:
        """Move a file or folder of the current folder into another one, or give it a new name.

        Args:
            source: The name of what is moved.
            destination: The folder to move into, or the new name; no path.
        """
        old, new = self.__way(source, destination)
        for path, entry in self.__tree(old):
            self.store.delete(FILES, path)
            self.store.put(FILES, new + path[len(old) :], entry)
        return {"result": f"'{source}' moved to '{destination}'"}

    def pwd(self) -> dict[str, Any]:
        """Tell the path of the current folder."""
        return {"current_working_directory": self.__here()}

    def rm(self, file_name: str) -> dict[str, Any]:
        """Remove a file, or a folder with all that it contains.

        Args:
            file_name: The name of what is removed.
        """
        path = self.__path(file_name)
        self.__entry(path)
        self.__remove(path)
        return {"result": f"'{file_name}' removed"}

    def rmdir(self, dir_name: str) -> dict[str, Any]:
        """Remove an empty folder of the current folder.

        Args:
            dir_name: The folder's name.
        """
        path = self.__path(dir_name)
        if self.__entry(path)["type"] != "directory":
            raise ValueError(f"{dir_name} is a file, not a folder")
        if any(found.startswith(f"{path}/") for found in self.store.keys(FILES)):
            raise ValueError(f"the folder {dir_name} is not empty")
        self.__remove(path)
        return {"result": f"'{dir_name}' removed"}

    def sort(self, file_name: str) -> dict[str, Any]:
        """Show the lines of a file of the current folder in order; the file stays as it is.

        Args:
            file_name: The file's name.
        """
        return {"sorted_content": "\n".join(sorted(self.__content(file_name).splitlines()))}

    def tail(self, file_name: str, lines: int = 10) -> dict[str, Any]:
        """Show the last lines of a file of the current folder.

        Args:
            file_name: The file's name, without a path.
            lines: How many lines.
        """
        if lines < 0:
            raise ValueError(f"lines must be at least 0, not {lines}")
        found = self.__content(file_name).splitlines()
        return {"last_lines": "\n".join(found[max(0, len(found) - lines) :])}

    def touch(self, file_name: str) -> dict[str, Any]:
        """Create an empty file in the current folder.

        Args:
            file_name: The new file's name.
        """
        self.store.put(FILES, self.__free(file_name), {"type": "file", "content": ""})
        return {}

    def wc(self, file_name: str, mode: str = "l") -> dict[str, Any]:
        """Count the lines, words or characters of a file of the current folder.

        Args:
            file_name: The file's name.
            mode: "l" for lines, "w" for words, "c" for characters.
        """
        content = self.__content(file_name)
        if mode not in _COUNTS:
            raise ValueError(f"mode must be l, w or c, not {mode[:20]!r}")
        count = {"l": len(content.splitlines()), "w": len(content.split()), "c": len(content)}[mode]
        return {"count": count, "type": _COUNTS[mode]}

    def __here(self) -> str:
        place = self.store.get(NAVIGATION, "folder")
        return str(place["path"]) if place else "/"

    def __path(self, name: str) -> str:
        """Where a thing of this name is, or would be, in the current folder."""
        if not name or "/" in name or name in (".", ".."):
            raise ValueError(f"give a name in the current folder, not the path '{name[:80]}'")
        return f"{self.__here()}/{name}"

    def __entry(self, path: str) -> Record:
        entry = self.store.get(FILES, path)
        if entry is None:
            raise ValueError(f"there is no file or folder '{posixpath.basename(path)[:80]}' here")
        return entry

    def __free(self, name: str) -> str:
        path = self.__path(name)
        if (FILES, path) in self.store:
            raise ValueError(f"there is a '{name}' already")
        return path

    def __content(self, name: str) -> str:
        entry = self.__entry(self.__path(name))
        if entry["type"] != "file":
            raise ValueError(f"{name} is a folder, not a file")
        return str(entry["content"])

    def __tree(self, path: str) -> list[tuple[str, Record]]:
        """A path and all that is below it, with their records."""
        below = f"{path}/"
        paths = [found for found in self.store.keys(FILES) if found == path or found.startswith(below)]
        return [(found, self.__entry(found)) for found in paths]

    def __remove(self, path: str) -> None:
        here = self.__here()
        if here == path or here.startswith(f"{path}/"):
            raise ValueError("the folder that one stands in cannot be removed")
        for found, _ in self.__tree(path):
            self.store.delete(FILES, found)

    def __way(self, source: str, destination: str) -> tuple[str, str]:
        """The path of what is moved or copied, and its new path, at which there is nothing."""
        old, new = self.__path(source), self.__path(destination.removesuffix("/"))
        self.__entry(old)
        target = self.store.get(FILES, new)
        if target is not None and target["type"] == "directory":
            new = f"{new}/{source}"
        if (FILES, new) in self.store:
            raise ValueError(f"there is a '{posixpath.basename(new)}' already")
        if new.startswith(f"{old}/"):
            raise ValueError(f"the folder {source} cannot be put into itself")
        return old, new


def _readable(size: float) -> str:
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.2f} {_UNITS[unit]}"
