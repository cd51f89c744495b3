"""Tools of an MCP server, which is a process of the environment's own. Needs the extra `mcp`.

    env = gym.make("verigym/Custom-v0", tools=mcp_tools([sys.executable, "weather_server.py"]), max_turns=4, ...)

The official SDK (`mcp`) speaks to the server, over its standard input and output.
"""

from __future__ import annotations

import asyncio
import atexit
import re
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import suppress
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from verigym.tasks.errors import ConfigError, EnvClosedError, ToolServerError
from verigym.tasks.worlds import _loop
from verigym.tasks.worlds.tool import Tool

if TYPE_CHECKING:
    import mcp

SECONDS_TO_END = 10.0  # the SDK asks a server to end, and kills it after some seconds


def mcp_tools(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    seconds: float = 60.0,
    stateless: bool = False,
    isolated: bool = True,
) -> list[Tool]:
    """The tools of the MCP server that `command` starts, for one environment, whose `close` ends the server.

    Args:
        command: the program and its arguments, such as [sys.executable, "server.py"]; no shell reads it.
        env: environment variables of the server beside PATH, HOME and the like, which are all that it inherits.
        cwd: the folder in which it runs.
        seconds: how long it may take to start, and to answer a call.
        stateless: the server keeps nothing between episodes; else one that was called is started anew for the next.
        isolated: false of a server that runs code of the agent's where it could reach the trainer.

    What the server calls an error, the agent reads. A server that ends or does not answer raises ToolServerError from
    `step`: the episode is an INFRA_ERROR. Raises ToolServerError here if it cannot be started, ConfigError without the
    extra.
    """
    server = _Server(command, env, cwd, seconds, stateless)
    try:
        return [server.tool(described, isolated) for described in server.described()]
    except BaseException:
        server.close()
        raise


class _Server:
    """The process, started when it is needed, and the session with it."""

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None,
        cwd: str | None,
        seconds: float,
        stateless: bool,
    ) -> None:
        if isinstance(command, str) or not command:
            raise ConfigError(f"the command of an MCP server is a list, program first, not {command!r}")
        self._parameters = _sdk().StdioServerParameters(
            command=str(command[0]), args=[str(part) for part in command[1:]], env=dict(env or {}), cwd=cwd
        )
        self._seconds, self._stateless = seconds, stateless
        self._coroutines = _loop.Coroutines()
        self._lock = threading.Lock()
        self._session: Future[mcp.ClientSession] | None = None
        self._process: Future[None] | None = None
        self._used = self._closed = False
        _SERVERS.add(self)

    def tool(self, described: mcp.Tool, isolated: bool) -> Tool:
        """The tool of the server's that is so described."""
        import jsonschema

        parameters = {"type": "object", "properties": {}, "required": [], **described.input_schema}
        try:
            jsonschema.Draft202012Validator.check_schema(parameters)
        except jsonschema.SchemaError as error:
            raise self._failed(f"describes its tool '{described.name[:80]}' wrongly", error.message) from error
        if elsewhere := next(_references_elsewhere(parameters), None):
            why = f"its schema refers to '{elsewhere[:80]}', and nothing is fetched"
            raise self._failed(f"describes its tool '{described.name[:80]}' wrongly", why)
        return Tool(
            name=re.sub(r"[^a-zA-Z0-9_-]", "_", described.name)[:64],
            description=described.description or described.title or described.name,
            parameters=parameters,
            function=partial(self._call, described.name),
            reset=self.reset,
            close=self.close,
            isolated=isolated,
        )

    def described(self) -> list[mcp.Tool]:
        """The server's tools, all pages of them."""
        found: list[mcp.Tool] = []
        cursor = None
        while True:
            asked = _sdk().types.PaginatedRequestParams(cursor=cursor)
            page = self._ask(partial(_list_tools, asked))
            found += page.tools
            cursor = page.next_cursor
            if cursor is None:
                return found

    def reset(self) -> None:
        """Ends a server that an earlier episode may have changed; the first call starts another."""
        if self._used and not self._stateless:
            self._end()

    def close(self) -> None:
        """Ends the server, and from another thread the call that waits for it. Idempotent."""
        with self._lock:
            self._closed = True
        self._coroutines.cancel()
        self._end()

    def _call(self, name: str, /, **arguments: Any) -> str:  # an argument may be called name or self
        self._used = True
        result = self._ask(lambda session: session.call_tool(name, arguments))
        text = "\n".join(map(_shown, result.content))
        if result.is_error:
            raise ValueError(text)
        return text

    def _ask(self, question: Any) -> Any:
        """What the server answers. Raises ValueError for what it refuses, ToolServerError if it gives no answer."""
        sdk = _sdk()
        try:
            return self._coroutines.run(question(self._running()), self._seconds)
        except sdk.MCPError as error:
            if error.code != sdk.types.CONNECTION_CLOSED:
                raise ValueError(error.message) from error
            self._end()
            raise self._failed("has ended") from error
        except (TimeoutError, FutureTimeoutError) as error:
            self._end()
            raise self._failed(f"gave no answer within {self._seconds:g} s") from error
        except (ValueError, RuntimeError) as error:  # of the SDK: what the server said is not by the protocol
            raise self._failed("gave an answer that is none", _innermost(error)) from error

    def _running(self) -> mcp.ClientSession:
        """The session, with a server that is started if none runs."""
        with self._lock:
            if self._closed:
                raise EnvClosedError("the MCP server was closed with its environment")
            if self._session is None:
                self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives with the server
                self._session, self._stop = Future(), asyncio.Event()
                self._process = _loop.start(self._serve(self._session, self._stop, self._errors))
            session = self._session
        try:
            return session.result(self._seconds)
        except (EnvClosedError, ToolServerError):
            raise
        except Exception as error:  # whatever the SDK raises, in a group or not, there is no server
            self._end()
            if self._closed:
                raise EnvClosedError("the MCP server was closed with its environment") from error
            raise self._failed("cannot be started", _innermost(error)) from error

    async def _serve(self, session: Future[mcp.ClientSession], stop: asyncio.Event, errors: IO[str]) -> None:
        """The server's life, in one task, as the SDK asks for."""
        sdk = _sdk()
        try:
            streams = sdk.stdio_client(self._parameters, errlog=errors)
            async with streams as (reading, writing), sdk.ClientSession(reading, writing) as opened:
                await opened.initialize()
                session.set_result(opened)
                await stop.wait()
        except asyncio.CancelledError:
            if not session.done():
                session.set_exception(EnvClosedError("the MCP server was closed with its environment"))
            raise
        except Exception as error:
            if session.done():
                raise
            session.set_exception(error)

    def _end(self) -> None:
        """Ends the process and waits for that."""
        with self._lock:
            session, process, self._session, self._process, self._used = self._session, self._process, None, None, False
        if process is None or session is None:
            return
        if session.done():
            _loop.the_loop().call_soon_threadsafe(self._stop.set)
        else:
            process.cancel()
        with suppress(Exception, CancelledError):  # the server is gone either way; who asked it has been told why
            process.result(SECONDS_TO_END)
        session.cancel()  # one that never began

    def _failed(self, what: str, detail: str = "") -> ToolServerError:
        self._errors.seek(0)
        said = detail or "".join(self._errors.read().strip().splitlines()[-1:])
        command = " ".join([self._parameters.command, *self._parameters.args])
        return ToolServerError(f"the MCP server '{command[:200]}' {what}" + (f" ({said[:200]})" if said else ""))


_SERVERS: weakref.WeakSet[_Server] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for server in list(_SERVERS):
        server.close()


def _sdk() -> Any:
    """The SDK. Raises ConfigError if it is not installed."""
    try:
        import mcp
    except ImportError as error:
        raise ConfigError("MCP servers need the SDK: pip install 'verigym[mcp]'") from error
    return mcp


def _list_tools(asked: Any, session: mcp.ClientSession) -> Any:
    return session.list_tools(params=asked)


def _shown(content: Any) -> str:
    """A part of a result as text; an image and the like as what it is."""
    text = getattr(content, "text", None)
    return text if isinstance(text, str) else f"[{content.type}]"


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(str(error).split()) or type(error).__name__


def _references_elsewhere(schema: Any) -> Iterator[str]:
    """What a schema refers to outside of itself."""
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and isinstance(target := schema.get("$ref"), str) and not target.startswith("#"):
        yield target
    for part in parts:
        yield from _references_elsewhere(part)
