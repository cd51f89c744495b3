"""A page for each registered environment: a task as the agent sees it, its tools, verdicts and options."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from sources import FENCE

from verigym.envs import registered_ids
from verigym.envs.null_policies import ANSWERING, WITH_TOOLS
from verigym.envs.text_env import TextEnv
from verigym.tasks.errors import ConfigError, SandboxError
from verigym.tasks.load import _factory
from verigym.verifiers import Verdict

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
ROWS = Path(__file__).with_name("rows")
REFUSED = "More could not be played where this was built"
MADE_UP = "A made-up task in the shape of the data set."
SHOWN = 2500  # characters of a message
# What environments of other packages are made with here, and whose module says what they are.
OTHERS: dict[str, dict[str, Any]] = {
    "verigym/TextArena-v0": {"game": "GuessTheNumber-v0"},
    "verigym/GEM-v0": {"game": "game:GuessTheNumber-v0-easy"},
    "verigym/PrimeVerifiers-v0": {"environment": "tests/prime_world.py"},
}
_APART = Path(sys.prefix) / "other-worlds" / "bin" / "python"  # see the Makefile
_ARGUMENT = re.compile(r"^    (\w+(?:, \w+)*): (.*(?:\n     .*)*)", re.MULTILINE)


def environment_pages(data: Path = DATA) -> dict[str, str]:
    """The pages by their place in the site; tasks are those of the data sets in `data`, or else made-up ones."""
    needed = runpy.run_path(str(ROOT / "tests" / "test_env_contract.py"))["ARGUMENTS"]
    ours = [env_id for env_id in registered_ids() if env_id.startswith("verigym/")]
    return {f"environments/{_name(env_id)}.md": _page(env_id, needed.get(env_id, {}), data) for env_id in ours}


def _name(env_id: str) -> str:
    return env_id.removeprefix("verigym/")


def _page(env_id: str, needed: Mapping[str, Any], data: Path) -> str:
    task_set = gym.spec(env_id).kwargs.get("task_set")
    factory = _factory(task_set) if task_set else None
    about = inspect.cleandoc(import_module(factory.__module__ if factory else _kind(env_id).__module__).__doc__ or "")
    first, _, rest = about.partition("\n\n")
    given, origin = _given(task_set, needed, data) if task_set else _given_other(env_id)
    parts = [f"# {_name(env_id)}", first, _usage(env_id, needed)]
    try:
        with gym.make(env_id, **given) as env:
            parts += [*_asked(env.unwrapped, origin), *_judged(env.unwrapped)]
    except SandboxError as error:
        with gym.make(env_id, **given, verifier="exact", tools=()) as env:  # neither needs one
            parts += [*_asked(env.unwrapped, origin), f"{REFUSED}: {error}."]
    except ConfigError as error:  # an extra that is not installed
        parts.append(f"{REFUSED}: {error}.")
    return "\n\n".join([*parts, "## Options", _options(env_id, factory), "## The data", rest, ""])


def _given(task_set: str, needed: Mapping[str, Any], data: Path) -> tuple[dict[str, Any], str]:
    """The keyword arguments with which an id is played here, and a sentence on where its task comes from."""
    if "source" not in needed:
        return dict(needed), "The first task of seed 0."
    real = data / needed["source"]  # an absolute one is made up, in the tests
    if real.exists() and data in real.parents and task_set != "custom":
        return {**needed, "source": str(real)}, "A task of the data set."
    made_up = ROWS / task_set if (ROWS / task_set).is_dir() else ROWS / f"{task_set}.jsonl"
    source = real if Path(needed["source"]).is_absolute() else made_up
    return {"source": str(source)}, MADE_UP


def _given_other(env_id: str) -> tuple[dict[str, Any], str]:
    """The keyword arguments with which an environment of another package is played here, in its own interpreter."""
    given = dict(OTHERS[env_id])
    if "environment" in given:
        given["environment"] = str(ROOT / given["environment"])
    if env_id != "verigym/TextArena-v0" and _APART.exists():
        given["python"] = str(_APART)
    return given, "The first task of seed 0."


def _usage(env_id: str, needed: Mapping[str, Any]) -> str:
    own = {"dataset": "chain_sum"} if "dataset" in needed else OTHERS.get(env_id, {})
    options = {**own, **({"source": "my.jsonl"} if env_id == "verigym/Custom-v0" else {})}
    arguments = "".join(f", {name}={value!r}" for name, value in options.items())
    return f'    gym.make("verigym:{env_id}"{arguments})'


def _facts(env: TextEnv, origin: str) -> str:
    kind, budget = type(env), env.budget
    counted = origin == MADE_UP and isinstance(gym.spec(env.spec.id).kwargs.get("chance"), str)
    path = Path(inspect.getfile(kind)).relative_to(ROOT)
    tokens = ", ".join(
        f"{count} per {what}"
        for what, count in (("turn", budget.tokens_per_turn), ("episode", budget.tokens_per_episode))
        if count is not None
    )
    rows = [
        ("class", f"[`{kind.__name__}`](../../{path}#{kind.__name__})"),
        ("verifier", _verifier(env)),
        ("turns of the agent", f"at most {budget.turns}"),
        ("tokens", f"at most {tokens}" if tokens else "no limit"),
        ("chance score", "counted on the data set" if counted else f"{env.chance:.4g}"),
    ]
    return "\n".join(["| what | here |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _verifier(env: TextEnv) -> str:
    named = inspect.signature(type(env).__init__).parameters.get("verifier")
    if named is None:
        return "the environment's own"
    return f"[`{gym.spec(env.spec.id).kwargs.get('verifier', named.default)}`](../verifiers.md)"


def _asked(env: TextEnv, origin: str) -> Iterator[str]:
    """Budgets and chance, a task and its tools."""
    yield _facts(env, origin)
    _, info = env.reset(seed=0)
    yield f"## A task\n\n{origin} Its id is `{info['task_id']}`."
    yield from map(_message, info["messages"])
    if info["tools"]:
        names = ", ".join(f"`{tool['function']['name']}`" for tool in info["tools"])
        schemas = "\n".join(json.dumps(tool, indent=2) for tool in info["tools"])
        yield f"## Tools\n\nThe agent may call {names}."
        yield _folded("The schemas", schemas, "json")


def _judged(env: TextEnv) -> Iterator[str]:
    """A right episode of that task, and what it and knowing nothing earn."""
    _, info = env.reset(seed=0)
    task_id = info["task_id"]
    episodes = env.gold_episodes(env.tasks.get(task_id))
    if episodes:
        yield "## A right episode"
        yield from _transcript(env, task_id, episodes[0])
    yield "## Verdicts"
    yield _verdicts(env, task_id, episodes)


def _transcript(env: TextEnv, task_id: str, turns: list[str]) -> Iterator[str]:
    env.reset(seed=0, options={"task": task_id})
    for turn in turns:
        yield _message({"role": "assistant", "content": turn})
        *_, info = env.step(turn)
        yield from map(_message, info["messages"])


def _verdicts(env: TextEnv, task_id: str, golds: list[list[str]]) -> str:
    rows = []
    if golds:
        env.reset(seed=0, options={"task": task_id})
        *_, info = [env.step(turn) for turn in golds[0]][-1]
        rows.append(("the right episode", info["verdict"]))
    for name, policy in (WITH_TOOLS if env.tools else ANSWERING).items():
        rng = np.random.default_rng(0)
        observation, info = env.reset(seed=0, options={"task": task_id})
        over = False
        while not over:
            observation, _, terminated, truncated, info = env.step(policy(rng, observation, info))
            over = terminated or truncated
        rows.append((f"[{name}](../../envs/null_policies.py#{policy.__name__})", info["verdict"]))
    head = ["| policy | reward | outcome | reason |", "|---|---|---|---|"]
    return "\n".join([*head, *(f"| {name} | {_verdict(verdict)} |" for name, verdict in rows)])


def _verdict(verdict: Verdict) -> str:
    reason = " ".join(verdict.reason.split())[:200]
    return f"{verdict.reward:g} | {verdict.outcome.value} | {_code(reason)}"


def _message(message: Mapping[str, Any]) -> str:
    text = str(message["content"])
    cut = text if len(text) <= SHOWN else f"{text[:SHOWN]}\n... (cut: {len(text)} characters)"
    return f'{FENCE} {{.text title="{message["role"]}"}}\n{cut}\n{FENCE}'


def _folded(title: str, text: str, language: str) -> str:
    inside = f"{FENCE} {{.{language}}}\n{text}\n{FENCE}"
    return f'??? note "{title}"\n\n' + "\n".join(f"    {line}" for line in inside.splitlines())


def _options(env_id: str, factory: Any) -> str:
    """The keyword arguments of `gym.make`: those of the class and of the task set, with their defaults here."""
    spec, kind = gym.spec(env_id), _kind(env_id)
    meanings = {**_COMMON, **{name: text for base in reversed(kind.__mro__) for name, text in _meanings(base)}}
    own, of_tasks = _parameters(kind.__init__), _parameters(factory) if factory else {}
    rows = [(name, default, meanings[name]) for name, default in own.items()]
    rows += [(name, default, "of the task set: see below") for name, default in of_tasks.items() if name not in own]
    cells = [(name, _value(spec.kwargs.get(name, default)), _cell(text)) for name, default, text in rows]
    head = ["| option | default | meaning |", "|---|---|---|"]
    return "\n".join([*head, *(f"| `{name}` | {value} | {text} |" for name, value, text in cells)])


def _kind(env_id: str) -> Any:
    """The class of an environment."""
    module, _, attribute = str(gym.spec(env_id).entry_point).partition(":")
    return getattr(import_module(module), attribute)


_COMMON = {
    "split": "which part of the task set",
    "source": "where the data is read from: a hub id, a file or a folder ([environments](../environments.md#sources))",
    "render_mode": "`ansi`: `render()` gives the conversation as text",
}


def _parameters(function: Any) -> dict[str, Any]:
    """The named parameters of a function, and their defaults."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.items()
    return {name: p.default for name, p in parameters if name != "self" and p.kind in kinds}


def _meanings(kind: type) -> Iterator[tuple[str, str]]:
    """What a class says of its arguments; a line may be of several."""
    _, _, arguments = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")
    for names, text in _ARGUMENT.findall(arguments.partition("\n\n")[0]):
        for name in names.split(", "):
            yield name, text


def _value(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    return _code(repr(value) if len(repr(value)) <= 80 else f"{repr(value)[:77]}...")


def _code(text: str) -> str:
    """Text as code in a cell of a table."""
    return f"`{_cell(text).replace('`', chr(39))}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
