"""How tests in a process of their own use what a submission made: values cross as data, objects stay behind handles.

The text of this module runs in both sandboxes, and imports nothing of the package. What the submission's side says is
plain data to the tests' side, which alone compares: `==` of a submission's object is never asked for, and no operator
takes a value of the tests beside one.
"""

from __future__ import annotations

import builtins
import collections
import contextlib
import copy
import datetime
import decimal
import enum
import fractions
import operator
from collections.abc import Callable, Mapping
from typing import Any

VALUES, OBJECTS, STATE = 1, 2, 3
"""What crosses: copies of plain values; also handles of objects; also what is changed in lists, sets, dictionaries."""

Element = Any  # a scalar, or a list with the number of a node
Nodes = Mapping[int, tuple[str, list[Element]]]  # a kind and its elements; so data may be as deep as it likes
Packed = tuple[Element, Nodes]

_SCALARS = {type(None), bool, int, float, complex, str, bytes}
_NAMED, _HANDLE = "namedtuple", "handle"


class Unsendable(BaseException):
    """The tests hand to the submission what must stay in their own process."""


class NoValue(BaseException):
    """The submission gives an object where a value is asked for."""


def _pairs(value: Any) -> list[Any]:
    return [part for pair in value.items() for part in pair]


def _fill_list(value: Any, parts: list[Any]) -> None:
    value[:] = parts


def _fill_dictionary(value: Any, parts: list[Any]) -> None:
    value.clear()
    for key, part in zip(parts[::2], parts[1::2], strict=True):
        value[key] = part


def _fill_set(value: Any, parts: list[Any]) -> None:
    value.clear()
    value.update(parts)


def _fill_deque(value: Any, parts: list[Any]) -> None:
    value.clear()
    value.extend(parts)


_Parts = Callable[[Any], list[Any]]
_MUTABLE: Mapping[type, tuple[_Parts, Callable[[Any, list[Any]], None]]] = {
    list: (list, _fill_list),
    bytearray: (list, _fill_list),
    set: (list, _fill_set),
    collections.deque: (list, _fill_deque),
    dict: (_pairs, _fill_dictionary),
    collections.Counter: (_pairs, _fill_dictionary),
    collections.OrderedDict: (_pairs, _fill_dictionary),
    collections.defaultdict: (_pairs, _fill_dictionary),
}
_FIXED: Mapping[type, tuple[_Parts, Callable[[list[Any]], Any]]] = {
    tuple: (list, tuple),
    frozenset: (list, frozenset),
    type({}.keys()): (list, set),
    range: (lambda value: [value.start, value.stop, value.step], lambda parts: range(*parts)),
    slice: (lambda value: [value.start, value.stop, value.step], lambda parts: slice(*parts)),
    fractions.Fraction: (lambda v: [v.numerator, v.denominator], lambda parts: fractions.Fraction(*parts)),
    decimal.Decimal: (lambda value: [str(value)], lambda parts: decimal.Decimal(*parts)),
    datetime.date: (lambda value: [value.isoformat()], lambda parts: datetime.date.fromisoformat(*parts)),
    datetime.time: (lambda value: [value.isoformat()], lambda parts: datetime.time.fromisoformat(*parts)),
    datetime.datetime: (lambda value: [value.isoformat()], lambda parts: datetime.datetime.fromisoformat(*parts)),
    datetime.timedelta: (lambda v: [v.days, v.seconds, v.microseconds], lambda parts: datetime.timedelta(*parts)),
}
_KINDS = {kind.__name__: kind for kind in (*_MUTABLE, *_FIXED)}


class Border:
    """One side of the border, and the objects that both sides know, by their numbers."""

    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}  # by the object's id
        self._next = 0

    def register(self, value: Any, number: int | None = None) -> int:
        """Makes it known to both sides; its number."""
        number = self._next if number is None else number
        self._next = max(self._next, number + 1)
        self._objects[number], self._numbers[id(value)] = value, number
        return number

    def forget(self) -> None:
        """Forgets all but what stands behind handles."""
        self._objects = {number: value for number, value in self._objects.items() if type(value) not in _MUTABLE}
        self._numbers = {id(value): number for number, value in self._objects.items()}

    def end_exchange(self, sharing: int) -> None:
        """Only a handle can bring the same list to the border again."""
        if sharing < STATE or all(type(value) in _MUTABLE for number, value in self._objects.items() if number):
            self.forget()

    def stranger(self, value: Any) -> int:
        """The number of what is no data."""
        raise NotImplementedError

    def handle(self, number: int) -> Any:
        """What stands for the other side's object."""
        raise NotImplementedError

    # out

    def pack(self, root: Any) -> Packed:
        """The value with all that it is made of, and all that both sides know."""
        self._described: dict[int, tuple[str, list[Element]]] = {}
        element = self._element(root)
        for number, value in list(self._objects.items()):
            if type(value) in _MUTABLE and number not in self._described:
                self._describe(number, value)
        return element, self._described

    def _element(self, value: Any) -> Element:
        kind = type(value)
        if kind in _SCALARS:
            return value
        if isinstance(kind, enum.EnumMeta) and issubclass(kind, int | float | str):
            return value.value
        number = self._numbers.get(id(value))
        if number is None:
            number = self._number(value)
        if number not in self._described:
            self._describe(number, value)
        return [number]

    def _number(self, value: Any) -> int:
        if type(value) in _FIXED or _is_named(value):
            self._next += 1
            return self._next - 1
        return self.register(value) if type(value) in _MUTABLE else self.stranger(value)

    def _describe(self, number: int, value: Any) -> None:
        kind, name, parts = type(value), _HANDLE, list[Any]()
        self._described[number] = (name, parts)  # lest it hold itself
        if kind in _MUTABLE or kind in _FIXED:
            name, parts = kind.__name__, (_MUTABLE.get(kind) or _FIXED[kind])[0](value)
        elif _is_named(value):
            name, parts = _NAMED, [kind.__name__, " ".join(kind._fields), *value]
        self._described[number] = (name, [self._element(part) for part in parts])

    # in

    def unpack(self, packed: Packed) -> Any:
        """The value that the other side packed; what this side knows of it gets its new parts."""
        root, self._nodes = packed
        self._made: dict[int, Any] = {}
        self._next = max([self._next - 1, *self._nodes]) + 1
        value = self._value(root)
        for number in self._nodes:
            if number in self._objects:
                self._value([number])
        return value

    def _value(self, element: Element) -> Any:
        if type(element) is not list:
            return element
        (number,) = element
        if number not in self._made:
            self._made[number] = self._make(number, *self._nodes[number])
        return self._made[number]

    def _make(self, number: int, name: str, parts: list[Element]) -> Any:
        if name == _HANDLE:
            return self.handle(number)
        if name == _NAMED:
            return collections.namedtuple(parts[0], parts[1])(*map(self._value, parts[2:]))  # type: ignore[misc]
        kind = _KINDS[name]
        if kind in _FIXED:
            return _FIXED[kind][1]([self._value(part) for part in parts])
        value = self._made[number] = self._objects[number] if number in self._objects else kind()
        if type(value) is not kind:
            raise NoValue(f"a forged {name[:20]}")
        self.register(value, number)
        _MUTABLE[kind][1](value, [self._value(part) for part in parts])
        return value


def _is_named(value: Any) -> bool:
    return isinstance(value, tuple) and "_fields" in type(value).__dict__


# the tests' side


class AskingSide(Border):
    """Asks the submission's side to do something with an object of its own.

    Args:
        remote: takes an operation, packed operands and `sharing`; gives a packed value and what was raised.
        names: where the tests find the exceptions that they know.
    """

    def __init__(self, remote: Callable[..., Any], sharing: int, names: Mapping[str, Any]) -> None:
        super().__init__()
        self._remote, self._sharing, self._known = remote, sharing, names
        self.entry = Handle(self)
        self.register(self.entry)

    def handle(self, number: int) -> Any:
        if self._sharing < OBJECTS:
            raise NoValue("a test gets what is no plain value")
        if number not in self._objects:
            self.register(Handle(self), number)
        return self._objects[number]

    def stranger(self, value: Any) -> int:
        raise Unsendable(f"they hand a {type(value).__name__} to the code, which only their own process has")

    def operate(self, operation: str, *operands: Any) -> Any:
        packed = self.pack(operands)
        if self._sharing < STATE:
            self.forget()
        packed, error = self._remote(operation, packed, self._sharing)
        value = self.unpack(packed)
        self.end_exchange(self._sharing)
        if error is not None:
            raise self._exception(operation, *error)
        return value

    def _exception(self, operation: str, name: str, message: str) -> Exception:
        kind = getattr(builtins, name, None) or self._known.get(name)
        forged = kind is StopIteration and operation != "next"  # it would end a loop over `map` as if all were well
        if isinstance(kind, type) and issubclass(kind, Exception) and not forged:
            with contextlib.suppress(TypeError):  # UnicodeDecodeError and the like want more
                return kind(message)
        return RuntimeError(f"{name}: {message}")


class Handle:
    """Stands in the tests for an object that the submission keeps."""

    __slots__ = ("__side",)
    __side: AskingSide

    def __init__(self, side: AskingSide) -> None:
        object.__setattr__(self, "_Handle__side", side)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__side.operate("call", self, args, kwargs)

    def __instancecheck__(self, value: Any) -> bool:
        return type(value) is Handle and bool(self.__side.operate("isinstance", value, self))

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        raise NoValue("a test compares an object of the code's own, which is no plain value")

    __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__  # type: ignore[assignment]
    __hash__ = object.__hash__


def _operation(name: str) -> Callable[..., Any]:
    return lambda self, *operands: self._Handle__side.operate(name, self, *operands)


def _between_objects(name: str) -> Callable[..., Any]:
    """An operator that takes no value of the tests, which may be what they expect, into the submission's process."""

    def operate(self: Any, other: Any) -> Any:
        return self._Handle__side.operate(name, self, other) if type(other) is Handle else NotImplemented

    return operate


for _name in ("getattr", "setattr", "delattr", "getitem", "setitem", "delitem", "len", "bool", "str", "repr", "iter"):
    setattr(Handle, f"__{_name}__", _operation(_name))
for _name in ("next", "int", "float", "round", "abs", "neg", "copy", "deepcopy", "enter", "exit"):
    setattr(Handle, f"__{_name}__", _operation(_name))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"):
    setattr(Handle, f"__{_name}__", _between_objects(_name))


# the submission's side


_OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "call": lambda function, args, kwargs: function(*args, **kwargs),
    "enter": lambda manager: manager.__enter__(),
    "exit": lambda manager, *error: manager.__exit__(*error),
    "copy": copy.copy,
    "deepcopy": lambda value, memo: copy.deepcopy(value),
}


class AnsweringSide(Border):
    """Does with the submission's objects what the tests' side asks for; number 0 is what the tests call."""

    def __init__(self, entry: Any) -> None:
        super().__init__()
        self.register(entry)

    def stranger(self, value: Any) -> int:
        return self.register(value)

    def handle(self, number: int) -> Any:
        return self._objects[number]

    def serve(self, operation: str, packed: Packed, sharing: int) -> tuple[Packed, tuple[str, str] | None]:
        """A packed value, and the name and the message of what was raised."""
        operands = self.unpack(packed)
        if sharing < STATE:
            self.forget()
        value, error = None, None
        try:
            value = _function(operation)(*operands)
        except MemoryError:
            raise
        except Exception as raised:
            error = (type(raised).__name__, str(raised))
        answer = self.pack(value), error
        self.end_exchange(sharing)
        return answer


def _function(operation: str) -> Any:
    return _OPERATIONS.get(operation) or getattr(builtins, operation, None) or getattr(operator, operation)
