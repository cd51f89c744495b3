"""Evaluates the expressions of tests: literals, arithmetic, comparisons and pure functions, without Python's `eval`.

Nothing here runs code of a submission; the values that it returned take part as plain data.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from verigym.verifiers._plain import equal, refuse_colliding

MAX_ITEMS = 1_000_000
MAX_BITS = 1_000_000
MAX_DIGITS = 10_000


class Unsupported(Exception):  # noqa: N818 - a finding about a test
    """The expression is of a kind that is not evaluated here."""


def _range(*arguments: int) -> range:
    numbers = range(*arguments)
    if len(numbers) > MAX_ITEMS:
        raise Unsupported("a range of too many numbers")
    return numbers


def _set(values: Iterable[Any] = ()) -> set[Any]:
    return set(refuse_colliding(values))


def _frozenset(values: Iterable[Any] = ()) -> frozenset[Any]:
    return frozenset(refuse_colliding(values))


def _dict(pairs: Iterable[Any] = (), **more: Any) -> dict[Any, Any]:
    if isinstance(pairs, Mapping):
        return dict(pairs, **more)
    listed = [tuple(pair) for pair in pairs]
    refuse_colliding(key for key, _ in listed)
    return dict(listed, **more)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{f.__name__: f for f in (abs, all, any, enumerate, isinstance, len, max, min, reversed, round, sorted, sum, zip)},
    **{f.__name__: f for f in (bool, complex, dict, float, frozenset, int, list, set, str, tuple, type)},
    "range": _range,
}
_SAFE: Mapping[Callable[..., Any], Callable[..., Any]] = {set: _set, frozenset: _frozenset, dict: _dict}
_MATH = ("isclose", "fabs", "sqrt", "floor", "ceil", "isnan", "isinf", "inf", "nan", "pi", "e", "log", "sin", "cos")
_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Invert: operator.invert,
}
_COMPARISON: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
}


class Evaluator:
    """Gives the value of an expression, with `names` bound, and the nodes in `given` standing for known values.

    Raises Unsupported for what it does not evaluate, and what Python raises for an operation that fails.
    """

    def __init__(
        self,
        names: Mapping[str, Any],
        given: Mapping[ast.expr, Any] | None = None,
        equals: Callable[[Any, Any], bool] = equal,
    ) -> None:
        self._names, self._given, self._equals = names, given or {}, equals

    def refuse_unknown(self, node: ast.AST) -> None:
        """Raises Unsupported for an expression with a part that is never evaluated, whatever the values are."""
        if node in self._given:
            return
        if isinstance(node, ast.expr | ast.Slice):
            self._method(node)
        if isinstance(node, ast.Name):
            self._name(node)
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.BinOp) and type(node.op) not in _BINARY:
            raise Unsupported(f"the operator of {ast.unparse(node)[:80]}")
        elif isinstance(node, ast.Call):
            self._function(node)
        if not isinstance(node, ast.Attribute):
            for child in ast.iter_child_nodes(node):
                self.refuse_unknown(child)

    def __call__(self, node: ast.expr) -> Any:
        if node in self._given:
            return self._given[node]
        return self._method(node)(node)

    def _method(self, node: ast.expr) -> Callable[[Any], Any]:
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise Unsupported(f"{ast.unparse(node)[:80]} is not evaluated")
        return method  # type: ignore[no-any-return]

    def _constant(self, node: ast.Constant) -> Any:
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id in self._names:
            return self._names[node.id]
        if node.id in FUNCTIONS:
            return FUNCTIONS[node.id]
        raise Unsupported(f"the name {node.id[:80]} is not known")

    def _list(self, node: ast.List) -> list[Any]:
        return self._all(node.elts)

    def _tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self._all(node.elts))

    def _set(self, node: ast.Set) -> set[Any]:
        return set(self._all(node.elts))

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        if None in node.keys:
            raise Unsupported("a dictionary is unpacked")
        return {self(key): self(value) for key, value in zip(node.keys, node.values, strict=True) if key}

    def _unaryop(self, node: ast.UnaryOp) -> Any:
        return _UNARY[type(node.op)](self(node.operand))

    def _binop(self, node: ast.BinOp) -> Any:
        if type(node.op) not in _BINARY:
            raise Unsupported(f"the operator of {ast.unparse(node)[:80]}")
        left, right = self(node.left), self(node.right)
        if isinstance(node.op, ast.Mod) and isinstance(left, str | bytes):
            raise Unsupported("text that is formatted")  # a submission's `%999999999d` would fill the memory
        _refuse_large(node.op, left, right)
        return _BINARY[type(node.op)](left, right)

    def _boolop(self, node: ast.BoolOp) -> Any:
        stops = isinstance(node.op, ast.Or)
        value: Any = None
        for part in node.values:
            value = self(part)
            if bool(value) is stops:
                break
        return value

    def _compare(self, node: ast.Compare) -> bool:
        left = self(node.left)
        for kind, part in zip(node.ops, node.comparators, strict=True):
            right = self(part)
            if not self._holds(kind, left, right):
                return False
            left = right
        return True

    def _holds(self, kind: ast.cmpop, left: Any, right: Any) -> bool:
        if isinstance(kind, ast.Eq | ast.NotEq):
            return self._equals(left, right) is isinstance(kind, ast.Eq)
        return bool(_COMPARISON[type(kind)](left, right))

    def _ifexp(self, node: ast.IfExp) -> Any:
        return self(node.body if self(node.test) else node.orelse)

    def _subscript(self, node: ast.Subscript) -> Any:
        return self(node.value)[self(node.slice)]

    def _slice(self, node: ast.Slice) -> slice:
        return slice(*(None if part is None else self(part) for part in (node.lower, node.upper, node.step)))

    def _attribute(self, node: ast.Attribute) -> Any:
        if isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in _MATH:
            return getattr(math, node.attr)
        raise Unsupported(f"{ast.unparse(node)[:80]} is not evaluated")

    def _call(self, node: ast.Call) -> Any:
        function = self._function(node)
        keywords = {str(keyword.arg): self(keyword.value) for keyword in node.keywords}
        arguments = self._all(node.args)
        if function is round:
            _refuse_many_digits(*arguments, **keywords)
        value = _SAFE.get(function, function)(*arguments, **keywords)
        # what is lazy would be used up by whoever looks first
        return list(value) if isinstance(value, enumerate | zip | reversed) else value

    def _function(self, node: ast.Call) -> Callable[..., Any]:
        function = self(node.func)
        if function not in FUNCTIONS.values() and getattr(function, "__module__", "") != "math":
            raise Unsupported(f"{ast.unparse(node.func)[:80]} is not called")
        if any(keyword.arg is None for keyword in node.keywords):
            raise Unsupported("keyword arguments are unpacked")
        return function  # type: ignore[no-any-return]

    def _starred(self, node: ast.Starred) -> Any:
        raise Unsupported("a star where no list is made")

    def _all(self, nodes: Sequence[ast.expr]) -> list[Any]:
        values: list[Any] = []
        for node in nodes:
            values += self._iterated(node.value) if isinstance(node, ast.Starred) else [self(node)]
        return values

    def _iterated(self, node: ast.expr) -> Iterable[Any]:
        return list(self(node))


def _refuse_many_digits(number: Any, ndigits: Any = None) -> None:
    """Raises Unsupported for a rounding to so many places that a power of ten would fill the memory."""
    if isinstance(ndigits, int) and abs(ndigits) > MAX_DIGITS:
        raise Unsupported("a rounding to too many places")


def _refuse_large(kind: ast.operator, left: Any, right: Any) -> None:
    """Raises Unsupported for a power or a repetition that would take long or fill the memory."""
    if isinstance(kind, ast.Pow) and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right)
        if bits > MAX_BITS:
            raise Unsupported("a power that is too large")
    if isinstance(kind, ast.Mult):
        for count, repeated in ((left, right), (right, left)):
            items = len(repeated) if isinstance(repeated, str | bytes | list | tuple) else 0
            if isinstance(count, int) and items * count > MAX_ITEMS:
                raise Unsupported("a repetition that is too long")
