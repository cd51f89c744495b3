"""A real MCP server for the tests: arithmetic, a memory, and ways to fail."""

import os
import time
from pathlib import Path

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("tests")
memory: list[str] = []


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two whole numbers."""
    return a + b


@server.tool(name="notes.remember")
def remember(text: str) -> str:
    """Keeps a note, and says how many there are.

    Args:
        text: what to keep
    """
    memory.append(text)
    return f"{len(memory)} kept"


@server.tool()
def rename(name: str, self: str) -> str:
    """Has arguments that are named like those of many a method."""
    return f"{name} -> {self}"


@server.tool()
def fail(reason: str) -> str:
    """Fails."""
    raise ToolError(reason)


@server.tool()
def die() -> str:
    """Ends the server."""
    os.write(2, b"the disk is full\n")
    os._exit(3)


@server.tool()
def hang(file: str) -> str:
    """Never answers; writes its process id to a file first."""
    Path(file).write_text(str(os.getpid()))
    time.sleep(3600)
    return ""


@server.tool()
def process() -> int:
    """The id of the server's process."""
    return os.getpid()


if __name__ == "__main__":
    server.run()
