"""Compiles tests that are written as asserts into rows: a call of the submission, and what its result must satisfy.

The tests are read, never run: `assert f([2] * 3) == 6` becomes the call `f([2, 2, 2])` and the condition `... == 6`,
which is evaluated outside of the sandbox on the plain value that came back.
"""

from __future__ import annotations

import ast
import builtins
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from verigym.tasks.errors import VerifierInputError
from verigym.verifiers._code_driver import ITEMS, NUMBER, TRUTH, VALUE
from verigym.verifiers._evaluate import FUNCTIONS, Evaluator, Unsupported
from verigym.verifiers._plain import close, is_floats, short

MAX_CHECKS = 20_000
MAX_EXPECTED = 1 << 20  # characters of an expected value, as text
_PLAIN = (type(None), bool, int, float, complex, str, bytes)
_IMPORTS = (ast.Import, ast.ImportFrom)
_ITERATING = {"all", "any", "dict", "frozenset", "list", "max", "min", "set", "sorted", "sum", "tuple"}
_CALCULATING = {"abs", "float", "int", "math.isclose", "round"}
_FLOAT_TOLERANCE = 1e-6  # of EvalPlus, where a test names none

_TOO_MANY_DIGITS = (
    "the tests of the task hold a whole number of more digits than Python reads (4300): "
    "write it in hexadecimal (0x...) or as an expression (10**5000 + 1)"
)

Equals = Callable[[Any, Any], bool]


@dataclass(frozen=True, eq=False)
class Check:
    """One row: `function(*args, **kwargs)`, or the code `expression` in the submission's module, and a condition."""

    text: str
    """The test, as it is written."""
    holds: Callable[[Any, Equals], bool]
    """Whether the result is right; raises what a test on such a value would raise."""
    expected: str = ""
    """What the result must be, for people; empty where the test is no comparison."""
    function: str = ""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    expression: str = ""
    driver: str = VALUE
    """How the result becomes plain data, see `_code_driver`."""
    reuses: bool = False
    """Whether it is given a list or the like that an earlier call was given, too, and may have changed."""


@lru_cache(maxsize=4096)
def compile_tests(source: str, entry_points: frozenset[str] = frozenset()) -> tuple[Check, ...]:
    """The rows of the tests in `source`, which call the functions named; without names, any that Python has not.

    Raises Unsupported, with the reason, for tests that are more than rows, and VerifierInputError for no Python.
    """
    compiler = _Compiler(entry_points)
    try:
        compiler.run(ast.parse(source).body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if "integer string conversion" in str(error):
            raise VerifierInputError(_TOO_MANY_DIGITS) from error
        raise VerifierInputError(f"the tests of the task are not Python: {' '.join(str(error).split())}") from error
    except (TypeError, ArithmeticError, LookupError) as error:
        raise Unsupported(f"a test that cannot be read without running it ({error})") from error
    return tuple(compiler.checks)


class _Compiler:
    """Walks over test code, with the variables that it binds."""

    def __init__(self, entry_points: frozenset[str]) -> None:
        self.checks: list[Check] = []
        self._entry_points = entry_points
        self._names: dict[str, Any] = {}
        self._aliases: dict[str, str] = {}
        self._functions: dict[str, ast.FunctionDef] = {}
        self._unknown: set[str] = set()
        self._given: set[int] = set()

    def run(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            method = getattr(self, f"_{type(statement).__name__.lower()}", None)
            if method is None:
                raise Unsupported(f"a test with the statement {ast.unparse(statement)[:60]!r}")
            method(statement)

    def _pass(self, statement: ast.Pass) -> None:
        pass

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        """Modules are not imported: what a test takes from one is unknown, but for `math`."""
        self._unknown |= {(alias.asname or alias.name).split(".")[0] for alias in statement.names} - {"math"}

    _importfrom = _import

    def _functiondef(self, statement: ast.FunctionDef) -> None:
        self._functions[statement.name] = statement

    def _assign(self, statement: ast.Assign) -> None:
        value = Evaluator(self._names)(statement.value)
        for target in statement.targets:
            self._bind(target, value)

    def _for(self, statement: ast.For) -> None:
        if statement.orelse:
            raise Unsupported("a test with for ... else")
        for value in Evaluator(self._names)(statement.iter):
            self._bind(statement.target, value)
            self.run(statement.body)

    def _bind(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Tuple):
            for part, item in zip(target.elts, value, strict=True):
                self._bind(part, item)
        elif isinstance(target, ast.Name):
            self._names[target.id] = value
        else:
            raise Unsupported(f"a test that assigns to {ast.unparse(target)[:60]!r}")

    def _expr(self, statement: ast.Expr) -> None:
        """A docstring, `check(f)`, or EvalPlus's `assertion(f(...), expected, tolerance)`."""
        call = statement.value
        if isinstance(call, ast.Constant):
            return
        name = call.func.id if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) else ""
        if name not in self._functions or not isinstance(call, ast.Call) or call.keywords:
            raise Unsupported(f"a test with the statement {ast.unparse(statement)[:60]!r}")
        if name == "assertion" and len(call.args) == 3:
            self._add(statement, *call.args)
        else:
            self._inline(self._functions[name], call.args)

    def _inline(self, function: ast.FunctionDef, args: Sequence[ast.expr]) -> None:
        """Runs over a function's body, whose parameters are names of the submission's functions."""
        parameters = [parameter.arg for parameter in function.args.args]
        names = [arg.id for arg in args if isinstance(arg, ast.Name)]
        if not len(parameters) == len(names) == len(args):
            raise Unsupported(f"a call of {function.name} with what is no function")
        self._aliases.update(zip(parameters, names, strict=True))
        self.run(function.body)

    def _assert(self, statement: ast.Assert) -> None:
        if self._calls(statement.test):
            self._add(statement, statement.test)
        elif self._has_given(statement.test, [[check.args, check.kwargs] for check in self.checks]):
            raise Unsupported("a test of what a call does to its arguments")
        elif not Evaluator(self._names)(statement.test):
            raise Unsupported(f"a test that no submission can pass: {ast.unparse(statement)[:60]!r}")

    def _add(self, statement: ast.stmt, test: ast.expr, *oracle: ast.expr) -> None:
        """One row: for the condition `test`, or for its closeness to an expected value within a tolerance."""
        calls = self._calls(test)
        if len(calls) != 1 or any(self._calls(part) for part in oracle):
            raise Unsupported("a test that calls the submission several times")
        if len(self.checks) >= MAX_CHECKS:
            raise Unsupported("too many tests")
        names, call = dict(self._names), calls[0]
        Evaluator(names, {call: None}).refuse_unknown(test)
        known = [Evaluator(names)(part) for part in oracle]

        def holds(value: Any, equals: Equals) -> bool:
            result = Evaluator(names, {call: value}, equals)(test)
            return evalplus_equal(result, known[0], known[1], equals) if known else bool(result)

        arguments = self._arguments(call)
        if any(self._has_given(part, arguments, call) for part in (test, *oracle)):
            raise Unsupported("a test of what a call does to its arguments")
        expected = short(known[0], MAX_EXPECTED) if known else _expected(test, call, names)
        arguments |= {"driver": _driver(test, call), "reuses": self._reuses(call)}
        self.checks.append(Check(self._text(statement), holds, expected, **arguments))

    def _calls(self, node: ast.AST) -> list[ast.expr]:
        """The calls of the submission in an expression, the outer ones, with the methods called on their results."""
        if isinstance(node, ast.Call | ast.Attribute) and self._starts_with_entry(node):
            return [node]
        return [call for child in ast.iter_child_nodes(node) for call in self._calls(child)]

    def _starts_with_entry(self, node: ast.expr) -> bool:
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                return self._is_entry(node.func.id)
            if not isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
                return False
            node = node.func if isinstance(node, ast.Call) else node.value
        return False

    def _is_entry(self, name: str) -> bool:
        name = self._aliases.get(name, name)
        if self._entry_points:
            return name in self._entry_points
        return name not in FUNCTIONS and name not in self._names and name not in self._functions

    def _arguments(self, node: ast.expr) -> dict[str, Any]:
        """The call by values; by its code where a part of it is something that only the submission's module has."""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            try:
                evaluate = Evaluator(self._names)
                args = tuple(evaluate(ast.Tuple(node.args)))
                kwargs = {str(keyword.arg): evaluate(keyword.value) for keyword in node.keywords if keyword.arg}
                if is_plain([args, kwargs]) and len(kwargs) == len(node.keywords):
                    function = self._aliases.get(node.func.id, node.func.id)
                    return {"function": function, "args": args, "kwargs": kwargs}
            except Unsupported:
                pass
        return {"expression": unparse(self._own(node))}

    def _has_given(self, node: ast.AST, given: Any, call: ast.AST | None = None) -> bool:
        """Whether an expression, but for the call in it, looks at a list or the like that a call is given."""
        values = [self._names[name] for name in _names(node, call) if name in self._names]
        seen = _containers(values)
        return bool(seen) and not seen.isdisjoint(_containers(given))

    def _reuses(self, call: ast.expr) -> bool:
        given = _containers([self._names[name] for name in _names(call, None) if name in self._names])
        reuses = not given.isdisjoint(self._given)
        self._given |= given
        return reuses

    def _own(self, node: ast.expr) -> ast.expr:
        """An expression in the names of the submission's module. Raises Unsupported if it needs those of the tests."""
        renamed: ast.expr = copy.deepcopy(node)
        for name in ast.walk(renamed):
            if isinstance(name, ast.Name):
                if name.id in self._names.keys() | self._functions.keys() | self._unknown:
                    raise Unsupported(f"{ast.unparse(node)[:60]!r} needs the tests' own {name.id[:40]}")
                name.id = self._aliases.get(name.id, name.id)
        return renamed

    def _text(self, statement: ast.stmt) -> str:
        renamed = copy.deepcopy(statement)
        for name in ast.walk(renamed):
            if isinstance(name, ast.Name):
                name.id = self._aliases.get(name.id, name.id)
        return unparse(renamed)


def entry_point_in(source: str) -> str:
    """The one function that test code calls and neither it nor Python defines; "" if there are none or several."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    own |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    own |= {alias.asname or alias.name for node in nodes if isinstance(node, _IMPORTS) for alias in node.names}
    free = called - own - set(dir(builtins))
    return free.pop() if len(free) == 1 else ""


def evalplus_equal(value: Any, expected: Any, tolerance: float, equals: Equals) -> bool:
    """EvalPlus's comparison: equal, or close where a tolerance is given or floats are expected."""
    if equals(value, expected):
        return True
    tolerance = tolerance or (_FLOAT_TOLERANCE if is_floats(expected) else 0)
    same = type(value) is type(expected)
    return bool(tolerance) and same and close(value, expected, tolerance)


def is_plain(value: Any) -> bool:
    """Whether `value` is made of nothing but plain types."""
    if type(value) in (list, tuple, set, frozenset):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(is_plain(key) and is_plain(part) for key, part in value.items())
    return type(value) in _PLAIN


def unparse(node: ast.AST) -> str:
    """Python for it, also for whole numbers of more digits than Python writes."""
    try:
        return ast.unparse(node)
    except ValueError:
        return ast.unparse(_InHexadecimal().visit(copy.deepcopy(node)))


class _InHexadecimal(ast.NodeTransformer):
    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return ast.Name(hex(node.value)) if type(node.value) is int else node


def _names(node: ast.AST, but: ast.AST | None) -> list[str]:
    """The names in an expression, outside of one of its parts."""
    if node is but:
        return []
    own = [node.id] if isinstance(node, ast.Name) else []
    return own + [name for child in ast.iter_child_nodes(node) for name in _names(child, but)]


def _containers(value: Any) -> set[int]:
    """The ids of what can be changed in a plain value."""
    if isinstance(value, dict):
        return {id(value)}.union(*map(_containers, value.values()))
    if isinstance(value, list | tuple):
        inner = set().union(*map(_containers, value))
        return inner | {id(value)} if isinstance(value, list) else inner
    return {id(value)} if isinstance(value, set) else set()


def _driver(test: ast.expr, call: ast.expr) -> str:
    """How the result of a call becomes plain data, for what a test asks of it."""
    for driver, asked in ((TRUTH, _asks_for_truth), (ITEMS, _asks_for_items), (NUMBER, _asks_for_number)):
        if asked(test, call):
            return driver
    return VALUE


def _asks_for_truth(test: ast.expr, call: ast.expr) -> bool:
    """Whether a test asks no more of the result than whether it is true, as `assert f(x)` does."""
    return test is call or (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) and test.operand is call)


def _asks_for_items(test: ast.expr, call: ast.expr) -> bool:
    """Whether a test looks at no more of the result than its items, as `set(f(x))` does."""
    calls = [node for node in ast.walk(test) if isinstance(node, ast.Call) and node.args[:1] == [call]]
    return any(isinstance(node.func, ast.Name) and node.func.id in _ITERATING for node in calls)


def _asks_for_number(test: ast.expr, call: ast.expr) -> bool:
    """Whether a test calculates with the result, rounds it or compares its size, as `abs(f(x) - 1) < 0.1`."""
    for node in ast.walk(test):
        if isinstance(node, ast.BinOp) and call in (node.left, node.right):
            return True
        if isinstance(node, ast.Call) and call in node.args and ast.unparse(node.func) in _CALCULATING:
            return True
        if isinstance(node, ast.Compare) and call in (node.left, *node.comparators):
            return any(isinstance(kind, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for kind in node.ops)
    return False


def _expected(test: ast.expr, call: ast.expr, names: Mapping[str, Any]) -> str:
    """What the call must return, as text; empty if the test does not say so."""
    if _asks_for_truth(test, call):
        return str(test is call)
    if isinstance(test, ast.Compare) and test.left is call and isinstance(test.ops[0], ast.Eq | ast.Is):
        return short(Evaluator(names)(test.comparators[0]), MAX_EXPECTED)
    return ""
