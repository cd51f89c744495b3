"""A Python interpreter as a tool: variables live across an episode's calls, in a sandbox of the episode's own."""

from __future__ import annotations

import re
from dataclasses import replace

from verigym.tasks.errors import SandboxError
from verigym.tasks.worlds.tool import Tool
from verigym.verifiers.sandbox import Limits, Sandbox, SandboxResult, Session, Status, shared

MAX_SHOWN = 2_000  # characters of output that the agent is shown
_FIRST = "import random; random.seed(0)"  # the same actions give the same episode
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def python_tool(
    *, sandbox: Sandbox | str = "auto", allow_unsafe: bool = False, cpu_seconds: float = Limits().cpu_seconds
) -> Tool:
    """The tool `python`, for one environment.

    Args:
        sandbox: a Sandbox, or the name of one; "auto" is the strongest that isolates.
        allow_unsafe: take a sandbox that does not isolate; training refuses such an environment.
        cpu_seconds: CPU time of one call.

    Raises SandboxError if the sandbox does not work here.
    """
    made = shared(sandbox, allow_unsafe=allow_unsafe) if isinstance(sandbox, str) else sandbox
    interpreter = Interpreter(made, replace(Limits(), cpu_seconds=cpu_seconds))
    tool = Tool.from_function(interpreter.python)
    return replace(tool, reset=interpreter.reset, close=interpreter.close, isolated=made.isolated)


class Interpreter:
    """A session that is opened when it is needed, and replayed in a fresh one when it has ended.

    What is replayed are the sources after which the session was alive; the one that ended it is lost. A failure of the
    sandbox is tried once more, then it raises SandboxError: the episode is an INFRA_ERROR.
    """

    def __init__(self, sandbox: Sandbox, limits: Limits) -> None:
        self._sandbox, self._limits = sandbox, limits
        self._session: Session | None = None
        self._sources: list[str] = []

    def python(self, code: str) -> str:
        """Runs Python code and gives what it prints, and the value of its last expression.

        Variables, functions and imports live on in later calls.

        Args:
            code: The Python code to run.
        """
        result = self._execute(code)
        if result.status is Status.INFRA_ERROR:
            result = self._execute(code)
        if result.status is Status.INFRA_ERROR:
            raise SandboxError(f"the Python tool failed: {result.reason}")
        return _shown(result, ended=self._session is None)

    def reset(self) -> None:
        """Begins without variables."""
        self.close()
        self._sources = []

    def close(self) -> None:
        """Ends the session, from any thread."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _execute(self, code: str) -> SandboxResult:
        session = self._session or self._replayed()
        self._session = session
        result = session.execute(code)
        if session.alive:
            self._sources.append(code)
        else:
            self.close()
        return result

    def _replayed(self) -> Session:
        session = self._sandbox.session(self._limits)
        for source in [_FIRST, *self._sources]:
            result = session.execute(source)
            if not session.alive:
                raise SandboxError(f"the Python tool's session ended on replay: {result.reason}")
        return session


def _shown(result: SandboxResult, *, ended: bool) -> str:
    """What the agent reads: output, then errors; cut in the middle."""
    streams = [stream.decode("utf-8", "replace").rstrip() for stream in (result.stdout, result.stderr)]
    text = _ADDRESS.sub("", "\n".join(filter(None, streams)))
    if len(text) > MAX_SHOWN:
        text = f"{text[: MAX_SHOWN // 2]}\n...\n{text[-MAX_SHOWN // 2 :]}"
    if ended:
        note = f"The interpreter was ended: {result.reason}. The variables of earlier calls are there again."
        text = f"{text}\n{note}" if text else note
    return text or "(no output)"
