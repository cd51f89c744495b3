"""Policies that know nothing of the question: what they earn, an environment gives away.

Each is a pure function of (rng, observation, info) to the next turn; all randomness comes from `rng`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from verigym.tasks.canonical import render_call

Policy = Callable[[np.random.Generator, str, Mapping[str, Any]], str]

CONSTANT = 4  # the most common answer of GSM8K's training questions
SPRAYED = 200


def empty(rng: np.random.Generator, observation: str, info: Mapping[str, Any]) -> str:
    """Says nothing."""
    return ""


def echo(rng: np.random.Generator, observation: str, info: Mapping[str, Any]) -> str:
    """Repeats what it was told."""
    return observation


def constant(rng: np.random.Generator, observation: str, info: Mapping[str, Any]) -> str:
    """Gives one answer to every question."""
    return boxed(CONSTANT)


def letter(rng: np.random.Generator, observation: str, info: Mapping[str, Any]) -> str:
    """Chooses the first option of every question."""
    return "\\boxed{A}"


def spray(rng: np.random.Generator, observation: str, info: Mapping[str, Any]) -> str:
    """Gives every small number as its answer, in random order."""
    return " ".join(boxed(int(number)) for number in rng.permutation(SPRAYED))


def random(rng: np.random.Generator, observation: str, info: Mapping[str, Any]) -> str:
    """Gives a random whole number below 100 as its answer."""
    return boxed(int(rng.integers(100)))


def no_op(rng: np.random.Generator, observation: str, info: Mapping[str, Any]) -> str:
    """Has tools, uses none and gives no answer."""
    return "I am done."


def random_call(rng: np.random.Generator, observation: str, info: Mapping[str, Any]) -> str:
    """Calls a random tool with random arguments, then stops. Tools are in `info` at an episode's start only."""
    tools = info.get("tools")
    if not tools:
        return no_op(rng, observation, info)
    function = tools[int(rng.integers(len(tools)))]["function"]
    properties = function["parameters"].get("properties", {})
    return render_call(function["name"], {name: _value(rng, schema) for name, schema in properties.items()})


ANSWERING: Mapping[str, Policy] = {
    "empty": empty,
    "echo": echo,
    "constant": constant,
    "letter": letter,
    "spray": spray,
    "random": random,
}
WITH_TOOLS: Mapping[str, Policy] = {**ANSWERING, "no-op": no_op, "random call": random_call}


def boxed(answer: int) -> str:
    """An answer in the form that the instructions ask for."""
    return f"\\boxed{{{answer}}}"


def _value(rng: np.random.Generator, schema: Mapping[str, Any]) -> Any:
    """A random value of the schema's type; text for a type that is not simple."""
    if "enum" in schema:
        return schema["enum"][int(rng.integers(len(schema["enum"])))]
    number = int(rng.integers(1000))
    simple = {"integer": number, "number": number / 10, "boolean": number % 2 == 0, "array": [], "object": {}}
    return simple.get(str(schema.get("type")), str(number))
