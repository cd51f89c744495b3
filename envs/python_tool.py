"""A Python interpreter as a tool: variables live across an episode's calls, in a sandbox of the episode's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from verigym.tasks.errors import SandboxError
from verigym.tasks.worlds.tool import Tool
from verigym.verifiers.sandbox import Job, Limits, Sandbox, SandboxResult, Session, Status, shared

MAX_SHOWN = 2_000  # characters of output that the agent is shown
_FIRST = "import random; random.seed(0)"  # the same actions give the same episode
_LOST = "The interpreter was ended while it ran the earlier calls again: their variables are lost."
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

    What is replayed are the sources after which the session was alive; the one that ended it is lost. Sources that end
    the session on replay are all lost, and the agent is told. A failure of the sandbox is tried once more, then it
    raises SandboxError, and the episode is an INFRA_ERROR; unless other jobs run: then the code is what fails it.
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
        session, lost = self._opened()
        result = self._execute(session, code)
        if result.status is Status.INFRA_ERROR:
            session, lost_now = self._opened()
            lost = lost or lost_now
            result = self._execute(session, code)
        if result.status is Status.INFRA_ERROR:
            self._expect_alive(result)
        text = _shown(result, ended=not session.alive)
        return f"{_LOST}\n{text}" if lost else text

    def reset(self) -> None:
        """Begins without variables."""
        self.close()
        self._sources = []

    def close(self) -> None:
        """Ends the session, from any thread."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _opened(self) -> tuple[Session, bool]:
        """The session, and whether the variables of earlier calls were lost on the way to it."""
        session, lost = self._session or self._replayed(self._sources), False
        if session is None:
            session, lost, self._sources = self._replayed([]), True, []
        if session is None:
            raise SandboxError("the Python tool failed: a new session ends at once")
        self._session = session
        return session, lost

    def _replayed(self, sources: Sequence[str]) -> Session | None:
        """A new session in which these have run; None if they end it, twice where that looks like a failure of ours."""
        failed = None
        for _ in range(2):
            session = self._sandbox.session(self._limits)
            ends = (result for result in map(session.execute, [_FIRST, *sources]) if not session.alive)
            failed = next(ends, None)
            if failed is None:
                return session
            session.close()
            if failed.status is not Status.INFRA_ERROR:
                return None
        if failed is not None:
            self._expect_alive(failed)
        return None

    def _execute(self, session: Session, code: str) -> SandboxResult:
        result = session.execute(code)
        if session.alive:
            self._sources.append(code)
        else:
            self.close()
        return result

    def _expect_alive(self, failed: SandboxResult) -> None:
        """Raises SandboxError for a failure of ours, unless another job runs: code may have ended its own sandbox."""
        if self._sandbox.run(Job("pass")).status is not Status.OK:
            raise SandboxError(f"the Python tool failed: {failed.reason}")


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
