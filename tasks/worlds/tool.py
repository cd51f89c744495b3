"""A tool that an agent can call: a typed Python function with its JSON schema and validated arguments."""

from __future__ import annotations

import inspect
import json
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from verigym.tasks.activity import doing
from verigym.tasks.errors import UnknownNameError
from verigym.tasks.worlds._loop import Coroutines
from verigym.tasks.worlds._schema import description, parameters_schema

if TYPE_CHECKING:
    import jsonschema

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MAX_ECHO = 100  # characters of a wrong argument that the agent is shown


def _nothing() -> None:
    """What most tools do at an episode's start and end."""


@dataclass(frozen=True)
class Tool:
    """A function as an agent sees it: a name, what it does, and the JSON schema of its arguments.

    `Tool.from_function` derives all three; the constructor takes them as they are. The function may be a coroutine
    function: all of them run on one event loop, in a thread of its own. A tool with a state belongs to one
    environment: `reset` begins an episode with a new state, `close` (from any thread) ends what the tool holds, and a
    coroutine that runs.
    `isolated` is false of one that runs an agent's code where it could reach the trainer.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    function: Callable[..., Any]
    reset: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing
    isolated: bool = True

    def __post_init__(self) -> None:
        if inspect.iscoroutinefunction(self.function):
            self._run_on_the_loop(Coroutines())

    def _run_on_the_loop(self, coroutines: Coroutines) -> None:
        function, reset, close = self.function, self.reset, self.close

        def begin() -> None:
            coroutines.reopen()
            reset()

        def end() -> None:
            coroutines.cancel()
            close()

        object.__setattr__(self, "function", lambda **arguments: coroutines.run(function(**arguments)))
        object.__setattr__(self, "reset", begin)
        object.__setattr__(self, "close", end)

    @classmethod
    def from_function(cls, function: Callable[..., Any]) -> Tool:
        """The tool that `function` (or a bound method) is: its name, docstring and type hints.

        The docstring up to `Args:` is the description; the lines under `Args:` describe the parameters.
        Raises TypeError for a function without a usable name or docstring, or with a parameter that has no
        annotation or a type that JSON has not; it names the parameter.
        """
        name = getattr(function, "__name__", "")
        if not _NAME.fullmatch(name):
            raise TypeError(f"{function!r} has no name that a tool can have ({_NAME.pattern})")
        text = description(inspect.getdoc(function) or "")
        if not text:
            raise TypeError(f"{name}: a tool needs a docstring, which tells the agent what it does")
        return cls(name, text, parameters_schema(function), function)

    @property
    def schema(self) -> dict[str, Any]:
        """The OpenAI function format, as chat templates take it."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}

    def call(self, arguments: Mapping[str, Any]) -> str:
        """What the agent reads: the function's result, or "error: ..." with what is wrong and expected.

        A result that is no text is given as JSON. An argument that the schema refuses and a ValueError of the
        function are the agent's mistakes; any other exception is the tool's own and propagates.
        """
        problem = self.problem(arguments)
        if problem:
            return f"error: {problem}"
        try:
            with doing("tool", self.name):
                result = self.function(**arguments)
        except ValueError as error:
            return failure(self.name, error)
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False)

    def problem(self, arguments: Any) -> str:
        """What is wrong with `arguments`, in one sentence; "" if nothing is."""
        if not isinstance(arguments, dict):
            return f"the arguments of {self.name} must be an object, not {_short(arguments)}"
        known = self.parameters["properties"]
        for name in arguments:
            if name not in known and self.parameters.get("additionalProperties", False) is False:
                return str(UnknownNameError.of(f"argument of {self.name} named", str(name)[:80], known))
        for name in self.parameters["required"]:
            if name not in arguments:
                return f"the argument '{name}' of {self.name} is missing; expected {_expected(known.get(name, {}))}"
        return self._type_problem(arguments)

    def _type_problem(self, arguments: dict[str, Any]) -> str:
        error = next(self._validator.iter_errors(arguments), None)
        if error is None:
            return ""
        path = list(error.absolute_path)
        where = "".join(f"[{step!r}]" for step in path[1:])
        place = f"the argument '{path[0]}'{where} of {self.name}" if path else f"the arguments of {self.name}"
        if error.validator in _IN_WORDS:
            return f"{place} must be {_expected(error.schema)}, not {_short(error.instance)}"
        rule = f"{error.validator or 'schema'}: {_short(error.validator_value)}"
        return f"{place} must keep to {rule}, not be {_short(error.instance)}"

    @cached_property
    def _validator(self) -> jsonschema.protocols.Validator:
        import jsonschema
        import referencing

        # JSON schema calls 1.0 an integer; a function annotated `int` would be given a float
        checker = jsonschema.Draft202012Validator.TYPE_CHECKER.redefine(
            "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
        )
        kind = jsonschema.validators.extend(jsonschema.Draft202012Validator, type_checker=checker)
        validator: jsonschema.protocols.Validator = kind(
            self.parameters,
            registry=referencing.Registry(),  # which fetches nothing
        )
        return validator


class Refused(ValueError):  # noqa: N818 - what a tool says to a call, as `failure` has it
    """A mistake in a call of which the agent reads this very text, as the system that is simulated would write it."""


def failure(name: str, error: ValueError) -> str:
    """What the agent reads of a mistake in a call of the tool `name`."""
    return str(error) if isinstance(error, Refused) else f"error: {str(error) or f'{name} failed'}"


_IN_WORDS = ("type", "enum", "const", "anyOf", "oneOf")  # rules of which `_expected` tells all


def _short(value: Any) -> str:
    text = reprlib.repr(value)  # bounded in depth and number, so that the whole is never written out
    return text if len(text) <= _MAX_ECHO else f"{text[:_MAX_ECHO]}..."


def _expected(schema: Any) -> str:
    """A schema in words: `integer`, `one of "a", "b"`, `array of string`."""
    if "enum" in schema:
        return "one of " + ", ".join(json.dumps(value) for value in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_expected(choice) for choice in schema[several])
    kinds = schema.get("type", "any value")
    kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
    if "items" in schema:
        return f"{kind} of {_expected(schema['items'])}"
    return kind
