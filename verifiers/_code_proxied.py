"""Runs tests that are more than rows in a sandbox of their own; the submission, in another, answers their calls."""

from __future__ import annotations

import ast
import inspect
import re
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any

from verigym.tasks.errors import SandboxError, VerifierInputError
from verigym.verifiers import _border
from verigym.verifiers._asserts import unparse
from verigym.verifiers._border import OBJECTS, STATE, VALUES
from verigym.verifiers._code_runs import OUTCOMES, Findings, Runner, failed, one_line
from verigym.verifiers.sandbox import Call, Job, Return, SandboxResult, Session, Status
from verigym.verifiers.sandbox.outcome import SOURCE_FAILED
from verigym.verifiers.verdict import Outcome

TRIAL_SECONDS = 30.0
"""CPU time of the task's own solution, when its tests are tried."""
_CAPACITY = 2048

_TESTS, _REMOTE = "_verigym_tests", "_verigym_remote"
# as in rows, the code under `if __name__ == "__main__"` does not run
_NOT_MAIN = "__import__('sys').modules['solution'] = __import__('sys').modules[__name__]; __name__ = 'solution'"
# either side may use names of Python's own for its variables
_LOAD = f"""
import builtins as _verigym_python, types as _verigym_types
_verigym_border = _verigym_types.ModuleType("_verigym_border")
_verigym_python.exec({inspect.getsource(_border)!r}, _verigym_border.__dict__)
"""
_ENDS = {status.value for status in OUTCOMES}


@dataclass(frozen=True, slots=True)
class ProxiedTests:
    """Tests of `entry_point`, which may use what `context` defines: trusted code, that of the task's own solution.

    `solution` is the module of the task's own solution; empty if it names none.
    """

    asserts: str
    entry_point: str
    context: str = ""
    solution: str = ""

    def run(self, runner: Runner, source: str) -> Findings:
        """What they find, with as much sharing as the task's own solution needs. Raises VerifierInputError."""
        sharing = self.sharing(runner)
        return sharing if isinstance(sharing, Findings) else _run(runner, source, self, sharing)

    def sharing(self, runner: Runner) -> int | Findings:
        """The least sharing with which the task's own solution passes, which is tried once for all submissions.

        Raises VerifierInputError if it passes with none.
        """
        if not self.solution:
            return STATE if self._looks_back() or _is_class(self.entry_point) else OBJECTS
        with _lock:
            known = _known.get(self)
        if known is None:
            tried = self._try(runner.granting(TRIAL_SECONDS))
            if isinstance(tried, Findings):
                return tried
            known = tried
            _keep(self, known)
        if isinstance(known, str):
            raise VerifierInputError(known)
        return known

    def _try(self, runner: Runner) -> int | str | Findings:
        found = Findings(0, 1)
        least = STATE if self._looks_back() else OBJECTS if _is_class(self.entry_point) else VALUES
        for sharing in range(least, STATE + 1):
            found = _run(runner, self.solution, self, sharing)
            if found.outcome is Outcome.CORRECT:
                return sharing
            if found.outcome is Outcome.INFRA_ERROR:
                return found
            if found.outcome is Outcome.TIMEOUT:
                break
        said = " ".join(filter(None, (found.reason, found.first.get("test", ""))))
        return f"the task's own solution fails its tests, which run in a process of their own: {said}"

    def _looks_back(self) -> bool:
        """Whether they ask what a call did to its arguments: by a call whose result they drop, or an assert later on.

        Only such tests see changed arguments: in others, an answer could change what is expected of it.
        """
        tree = ast.parse(self.asserts)
        names = {self.entry_point, *_parameters(tree, self.entry_point)}
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _root(node.func) in names]
        given = {arg.id for call in calls for arg in call.args if isinstance(arg, ast.Name)}
        dropped = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
        return any(call in dropped for call in calls) or any(_is_literal_of(node, given) for node in ast.walk(tree))

    def module(self, sharing: int) -> str:
        """The module of the tests' own process: the context, and the tests as a function."""
        body = ast.parse(f"import random\nrandom.seed(0)\n{self.asserts}").body
        imports = [node for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
        rest = [node for node in body if not isinstance(node, ast.Import | ast.ImportFrom)]
        indented = "\n".join(f"    {line}" for node in rest for line in unparse(node).splitlines())
        side = f"{self.entry_point} = _verigym_border.AskingSide({_REMOTE}, {sharing}, _verigym_python.globals()).entry"
        return "\n".join([self.context, *map(unparse, imports), _LOAD, side, f"def {_TESTS}():", indented, ""])


_known: OrderedDict[ProxiedTests, int | str] = OrderedDict()
_lock = threading.Lock()


def _keep(tests: ProxiedTests, known: int | str) -> None:
    with _lock:
        _known[tests] = known
        while len(_known) > _CAPACITY:
            _known.popitem(last=False)


def refuse_untried(asserts: str, entry_point: str) -> None:
    """Raises VerifierInputError for tests of a class that compare or add up its objects: they need a trial."""
    if not _is_class(entry_point):
        return
    tree = ast.parse(asserts)
    made = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_call_of(node.value, entry_point)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        operands = _operands(node)
        if any(_is_call_of(part, entry_point) or (isinstance(part, ast.Name) and part.id in made) for part in operands):
            raise VerifierInputError(
                f"tests that compare or combine objects ('{ast.unparse(node)[:60]}') must be tried first: "
                "give the target a 'solution' that passes them"
            )


def _is_class(name: str) -> bool:
    return re.match("[A-Z]", name) is not None


def _operands(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.Compare):
        equal = [isinstance(kind, ast.Eq | ast.NotEq | ast.Lt | ast.LtE | ast.Gt | ast.GtE) for kind in node.ops]
        return [node.left, *node.comparators] if any(equal) else []
    return [node.left, node.right] if isinstance(node, ast.BinOp) else []


def _is_call_of(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def _parameters(tree: ast.AST, entry_point: str) -> set[str]:
    """The names by which functions of the tests know the function that they are given."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return {
        parameter.arg
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in functions
        for arg, parameter in zip(call.args, functions[call.func.id].args.args, strict=False)
        if isinstance(arg, ast.Name) and arg.id == entry_point
    }


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_literal_of(test: ast.AST, names: set[str]) -> bool:
    """Whether a test compares one of these names with what has no names in it."""
    parts = [test.left, *test.comparators] if isinstance(test, ast.Compare) else []
    others = [part for part in parts if not (isinstance(part, ast.Name) and part.id in names)]
    return len(others) < len(parts) and not any(isinstance(node, ast.Name) for p in others for node in ast.walk(p))


def _run(runner: Runner, source: str, tests: ProxiedTests, sharing: int) -> Findings:
    findings = Findings(0, 1)
    for _ in range(2):  # a failure of ours is tried once more
        try:
            session = runner.sandbox.session(runner.limits)
        except SandboxError as error:
            return Findings(0, 1, Outcome.INFRA_ERROR, str(error))
        try:
            findings = _run_once(runner, session, source, tests, sharing)
        finally:
            session.close()
        if findings.outcome is not Outcome.INFRA_ERROR:
            return findings
    # what a session says before it ends may be the submission's word: others must fail, too, to believe in a failure
    canary = runner.run(Job("def works(): pass", (Call("works"),)))
    if canary.status is Status.OK:
        return replace(findings, outcome=Outcome.ERROR, reason=f"the code ends its sandbox twice: {findings.reason}")
    return findings


def _run_once(runner: Runner, session: Session, source: str, tests: ProxiedTests, sharing: int) -> Findings:
    for part in (_NOT_MAIN, source, _served(tests.entry_point)):
        loaded = session.execute(part)
        if loaded.status is not Status.OK:
            return failed(loaded, 0, 1, {})
    submission = _Submission(session)
    job = Job(tests.module(sharing), (Call(_TESTS),), limits=runner.limits, proxies=(_REMOTE,))
    result = runner.run(job, submission.answer)
    if submission.failure:
        return Findings(0, 1, *submission.failure)
    if result.status is not Status.OK and not submission.asked:
        _refuse_broken(result)
    if result.status is not Status.OK:
        return failed(result, 0, 1, {})
    returned = result.returns[0]
    if returned.ok and not submission.asked:
        raise VerifierInputError("the target has no tests: no assert calls the code")
    if returned.ok:
        return Findings(1, 1)
    kind, _, said = returned.error.partition(": ")
    if kind in (_border.Unsendable.__name__, "NameError") and not submission.asked and not tests.solution:
        raise VerifierInputError(f"the tests of the task do not run in a process of their own: {one_line(said)}")
    if kind in (_border.NoValue.__name__, _border.Unsendable.__name__):
        return Findings(0, 1, Outcome.WRONG, one_line(said))
    if submission.error:
        return Findings(0, 1, Outcome.ERROR, f"the code fails in a test: {one_line(submission.error)}")
    return Findings(0, 1, Outcome.WRONG, "the tests fail", {"test": one_line(returned.error)})


def _served(entry_point: str) -> str:
    """What is run after the submission's source, in its session."""
    return f"{_LOAD}\n{_REMOTE} = _verigym_border.AnsweringSide({entry_point}).serve"


def _refuse_broken(result: SandboxResult) -> None:
    """Raises VerifierInputError if tests failed to load: no submission has a part in that."""
    if result.status is Status.ERROR and result.reason.startswith(SOURCE_FAILED):
        raise VerifierInputError(f"the tests of the task do not run in this sandbox: {one_line(result.reason)}")


class _Submission:
    """Answers what a test's process asks for with what the submission's session says."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.failure: tuple[Outcome, str] | None = None
        self.asked = False
        """Whether it was: what the tests raise thereafter may be the submission's doing."""
        self.error = ""
        """What the last call raised, if it did."""

    def answer(self, call: Call) -> Return:
        self.asked = True
        if self.failure is not None:
            return Return(False, error="the session has ended")
        try:
            returned = self._session.call(Call(_REMOTE, call.args))
        except SandboxError as error:  # arguments made of what the submission returned may be too large
            returned = Return(False, error=f"ValueError: {error}")
        self.error = _raised(returned.value) if returned.ok else returned.error
        if not returned.ok and self.error.startswith("StopIteration"):  # forged: it would end a test's loop over `map`
            returned = Return(False, error=f"RuntimeError: {self.error}")
        if not self._session.alive:
            status = returned.error.partition(":")[0]
            outcome = OUTCOMES[Status(status)] if status in _ENDS else Outcome.ERROR
            self.failure = (outcome, f"the code ends its process in a test: {one_line(returned.error)}")
        return returned


def _raised(answer: Any) -> str:
    """The exception in an answer of the submission's side, which may be anything; empty if there is none."""
    error = answer[1] if type(answer) is tuple and len(answer) == 2 else None
    return ": ".join(map(str, error)) if type(error) is tuple else ""
