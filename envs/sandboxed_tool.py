"""A typed function as a tool that runs in a sandbox: for one that does what an agent's text tells it to do."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from verigym.tasks.errors import ConfigError, SandboxError
from verigym.tasks.worlds.tool import Tool
from verigym.verifiers.sandbox import Call, Limits, Sandbox, Session, Status, shared


def sandboxed_tool(
    function: Callable[..., Any],
    *,
    sandbox: Sandbox | str = "auto",
    allow_unsafe: bool = False,
    limits: Limits | None = None,
) -> Tool:
    """The tool that `function` is, for one environment, each call of it in a sandbox of the episode's own.

    Args:
        function: what `Tool.from_function` takes, written with `def`. Only its source is sent: imports and helpers
            stand inside it. Its globals live on from call to call of an episode.
        sandbox: a Sandbox, or the name of one; "auto" is the strongest that isolates.
        allow_unsafe: take a sandbox that does not isolate; training refuses such an environment.
        limits: what one call may use.

    An exception of the function, and a limit that it passes, are text for the agent; the globals are lost with a call
    that ends the interpreter, and the agent is told so. A failure of the sandbox raises SandboxError.
    """
    tool = Tool.from_function(function)
    made = shared(sandbox, allow_unsafe=allow_unsafe) if isinstance(sandbox, str) else sandbox
    runner = _Runner(tool.name, _source(function), made, limits or Limits())
    return replace(tool, function=runner, reset=runner.close, close=runner.close, isolated=made.isolated)


class _Runner:
    """Calls of the function in a session, which is opened when it is needed."""

    def __init__(self, name: str, source: str, sandbox: Sandbox, limits: Limits) -> None:
        self._name, self._source, self._sandbox, self._limits = name, source, sandbox, limits
        self._session: Session | None = None

    def __call__(self, /, **arguments: Any) -> Any:
        session = self._session = self._session or self._opened()
        result = session.call(Call(self._name, kwargs=arguments))
        if session.alive:
            if not result.ok:
                raise ValueError(result.error)
            return result.value
        self.close()
        if result.error.startswith(Status.INFRA_ERROR):
            raise SandboxError(f"the tool {self._name} failed: {result.error}")
        raise ValueError(f"{result.error}; what it kept from earlier calls is lost")

    def close(self) -> None:
        """Ends the session, from any thread."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _opened(self) -> Session:
        session = self._sandbox.session(self._limits)
        result = session.execute(self._source)
        if result.status is not Status.OK:
            session.close()
            raise SandboxError(f"the tool {self._name} cannot be defined in the sandbox: {result.reason}")
        return session


def _source(function: Callable[..., Any]) -> str:
    """The function's own text; its annotations are not evaluated. Raises ConfigError if it has none."""
    try:
        text = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError) as error:
        raise ConfigError(f"the source of {function!r} cannot be read, so no sandbox can run it ({error})") from error
    if not text.startswith("def "):
        raise ConfigError(f"{function!r} must be written with def, without decorators, so that a sandbox can run it")
    return f"from __future__ import annotations\n{text}"
