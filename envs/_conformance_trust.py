"""The rules on trust: misuse, closing, hidden golds, and what they and knowing nothing earn."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np

from verigym import verifiers
from verigym.envs._conformance_probe import (
    ANSWER,
    MALFORMED,
    Broken,
    Subject,
    Unchecked,
    answer,
    expect,
    expect_raises,
    opening,
    play_turns,
    rule,
    said_of,
    script,
)
from verigym.envs._waiting import start
from verigym.envs.null_policies import ANSWERING
from verigym.envs.text_env import TextEnv
from verigym.envs.validation import PLAYED, TOLERANCE, Validation, spread, validate
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import EnvClosedError, EnvUsageError, VerifierInputError
from verigym.tasks.task import Task, TaskSet
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

CANARY = 7351946208
_ENDED = 5.0  # seconds in which what was closed must be over
_SECONDS = 4.0  # for the golds and the null policies, where judging one answer takes long
_FEWEST = 20


# Misuse.


def hostile(tool: str) -> dict[str, str]:
    """Turns that a model may produce and nobody expects."""
    return {
        "an empty turn": "",
        "a blank turn": " \n\t",
        "NULs": "\x00\\boxed{1}\x00",
        "a lone surrogate": "\ud800 \\boxed{\udfff}",
        "unclosed markup": "<tool_call>" * 2000 + "\\boxed{" * 2000 + "<think>" * 2000,
        "20,000 braces": "{" * 20_000,
        "a call of 3,000 levels": f'<tool_call>{{"name": "{tool}", "arguments": ' + '{"a":' * 3000 + "</tool_call>",
        "a surrogate in a call": f'<tool_call>{{"name": "{tool}", "arguments": {{"x": "\\ud800"}}}}</tool_call>',
        "an unknown tool": render_call("os.system", {"expression": "1"}),
        "wrong arguments": render_call(tool, {"expression": ["1"], "x": None}),
        "other scripts": "答えは\\boxed{٣} 🙂",
        "ten megabytes": "0123456789" * 1_000_000,
        "a megabyte in a call": render_call(tool, {"expression": "1+" * 500_000}),
    }


@rule("no text raises an exception or earns what is no number")
def _hostile_texts(subject: Subject) -> None:
    env = subject.unlimited()
    tools = opening(env, seed=1).info["tools"]
    tool = tools[0]["function"]["name"] if tools else "calculator"
    for name, action in hostile(tool).items():
        opening(env, seed=1)
        for _ in range(2):
            try:
                turn = answer(env, action)
            except Exception as error:
                raise Broken(f"{name}: {said_of(error)}") from error
            expect(math.isfinite(turn.reward), f"{name} earns {turn.reward}: {turn.info.get('verdict')}"[:300])
            if turn.ended:
                break


@rule("an action that is no text raises EnvUsageError")
def _wrong_type(subject: Subject) -> None:
    env = subject.bare()
    opening(env, seed=1)
    for action in (3, None, b"x", ["x"], {"role": "assistant", "content": "x"}):
        expect_raises(EnvUsageError, partial(env.step, action), f"an action of {type(action).__name__}")


@rule("an unknown keyword argument fails at once, named, with the one that is like it")
def _unknown_keyword(subject: Subject) -> None:
    names = list(subject.parameters)
    near = "max_turns" if "max_turns" in names else next((name for name in reversed(names) if len(name) > 4), "")
    wrong = f"{near[:-1]}_" if near else "no_such_option"
    error = expect_raises(Exception, lambda: subject.make(**{wrong: 3}), f"the keyword {wrong}")
    # where Python refuses a keyword itself, it names it and nothing else
    hint = "" if isinstance(error, TypeError) else near
    expect(wrong in str(error) and hint in str(error), f"{wrong} gives {said_of(error)}")


# Closing.


class Waits(Verifier):
    """Judges when it is told to, or closed."""

    def __init__(self) -> None:
        self.began, self.released = threading.Event(), threading.Event()

    def verify(self, submission: Submission, task: Task) -> Verdict:
        self.began.set()
        self.released.wait()
        return Verdict(0.0, Outcome.WRONG, "told to end")

    def close(self) -> None:
        self.released.set()


@rule("close from another thread ends what step waits for")
def _close_ends_a_step(subject: Subject) -> None:
    for shared in (True, False):
        waits = Waits()
        try:
            _expect_close_ends(_with_verifier(subject, waits, shared), waits)
        finally:
            waits.released.set()


def _with_verifier(subject: Subject, verifier: Verifier, shared: bool) -> Any:
    """An environment with this verifier: one that the environment shares, or one that it made by name."""
    if "verifier" in subject.parameters:
        name = "one of verigym's checks"
        verifiers.register(name, lambda: verifier)
        options = {"verifier_options": None} if "verifier_options" in subject.parameters else {}
        return subject.bare(verifier=verifier if shared else name, **options)
    env = subject.text()
    env.verifier, env._owns_verifier = verifier, not shared
    return env


def _expect_close_ends(env: Any, waits: Waits) -> None:
    opening(env, seed=1)
    if isinstance(env, TextEnv):
        env.announce(1, cut=True)  # whatever the turn says, it is judged now
    step = start(lambda: env.step(ANSWER))
    while not waits.began.wait(0.05):
        if step.done():
            step.result()
            raise Unchecked("its step does not wait for its verifier")
    closing = start(env.close)
    until = time.monotonic() + _ENDED
    while not (step.done() and closing.done()) and time.monotonic() < until:
        time.sleep(0.01)
    expect(closing.done(), f"close still waits after {_ENDED:.0f} s")
    expect(step.done(), f"a step still waits {_ENDED:.0f} s after close")
    error = step.exception()
    expect(isinstance(error, EnvClosedError), f"the step ends with {said_of(error) if error else 'a result'}")


@rule("a closed environment says so, and may be closed again")
def _closed(subject: Subject) -> None:
    env = subject.bare()
    opening(env, seed=1)
    env.close()
    env.close()
    expect_raises(EnvClosedError, lambda: env.step(ANSWER), "a step after close")
    expect_raises(EnvClosedError, env.reset, "a reset after close")


# Rewards.


@rule("with the gold replaced by a canary, the canary is nowhere before the verdict nor in its reason")
def _leak(subject: Subject) -> None:
    subject.text()
    overrides = {"render_mode": "ansi"} if "render_mode" in subject.parameters else {}
    with _canaries():
        env = subject.text(**overrides)
    for task in env.tasks:
        for action in (ANSWER, MALFORMED):
            _expect_no_canary(env, task, action)


@contextlib.contextmanager
def _canaries() -> Iterator[None]:
    """Every TextEnv that is made meanwhile has three of its tasks, with canaries for golds."""
    original = TextEnv.__init__

    def init(self: TextEnv, tasks: TaskSet, *args: Any, **kwargs: Any) -> None:
        changed = [task for task in map(_with_canary, spread(tasks, 3)) if task is not None]
        if not changed:
            raise Unchecked(f"no canary can stand for a gold such as {tasks[0].target!r:.80}")
        original(self, TaskSet(changed, name=tasks.name, split=tasks.split), *args, **kwargs)

    TextEnv.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        TextEnv.__init__ = original  # type: ignore[method-assign]


def _with_canary(task: Task) -> Task | None:
    """The task with another gold of the same type, and the same in its metadata; None if there is none."""
    target = _canary(task.target)
    if target is None:
        return None
    metadata = {key: target if value == task.target else value for key, value in task.metadata.items()}
    return Task(task.id, task.prompt, target, metadata)


def _canary(gold: Any) -> Any:
    if isinstance(gold, bool) or gold is None:
        return None
    if isinstance(gold, int | float):
        return type(gold)(CANARY)
    if isinstance(gold, str):
        return str(CANARY)
    if isinstance(gold, list | tuple):
        parts = [_canary(part) for part in gold]
        return None if None in parts or not parts else type(gold)(parts)
    if isinstance(gold, Mapping):
        found = {key: _canary(value) for key, value in gold.items()}
        return None if None in found.values() or not found else found
    return None


def _expect_no_canary(env: TextEnv, task: Task, last: str) -> None:
    turn = opening(env, options={"task": task.id})
    actions = [*([] if last is ANSWER else [*script(turn.info)][:1]), last, ANSWER]
    _expect_hidden(env, "the first turn", turn, env.snapshot())
    for action in actions:
        try:
            turn = answer(env, action)
        except VerifierInputError:
            return  # the canary is no gold that can be judged; until here it was not seen
        verdict = turn.info.pop("verdict", None)
        _expect_hidden(env, f"the answer to {action:.40}", turn, verdict and verdict.reason)
        if turn.ended:
            return
        _expect_hidden(env, "the snapshot", turn, env.snapshot())


def _expect_hidden(env: TextEnv, where: str, *said: Any) -> None:
    seen = repr([said, env.render(), env.tools, env, str(env)])
    at = seen.find(str(CANARY))
    expect(at < 0, f"{where}, or what can be seen after it, has the gold: ...{seen[max(0, at - 40) : at + 12]}...")


@rule("gold answers earn full reward, and with another value in them none")
def _golds(subject: Subject) -> None:
    env, found = subject.text(), _validated(subject)
    if not found.golds:
        raise Unchecked("no task names a gold answer")
    if found.failures:
        first = found.failures[0]
        raise Broken(f"{len(found.failures)} of {found.golds} fail; {first.task_id}: {first.outcome}, {first.reason}")
    for task in spread(env.tasks, _FEWEST):
        for gold in env.gold_episodes(task):
            opening(env, seed=0, options={"task": task.id})
            turns = play_turns(env, map(mutated, gold))
            total = sum(turn.reward for turn in turns)
            expect(total <= found.limit, f"{[*map(mutated, gold)]!r:.80} earns {total} on task {task.id}")


def mutated(gold: str) -> str:
    """A gold answer with another number at its end, or a number where there is none."""
    if gold[-1:].isdigit():
        return f"{gold}98765431"
    return gold.replace("}", "+98765431}", 1) if gold[-2:-1].isdigit() and "}" in gold else "\\boxed{98765431}"


@rule("a chance score from 0 to 1 is declared, and policies that know nothing earn at most that and 0.02")
def _null_policies(subject: Subject) -> None:
    env = subject.bare()
    chance: Any = getattr(env, "chance", None)
    declared = isinstance(chance, int | float) and not isinstance(chance, bool) and 0 <= chance <= 1
    expect(declared, f"its chance is {chance!r}")
    if isinstance(env, TextEnv):
        found = _validated(subject)
        rewards, played, all_of_them = dict(found.null_rewards), found.played, len(env.tasks)
    else:
        rewards, played, all_of_them = _null_rewards(env), _FEWEST, _FEWEST
    limit = min(1.0, float(chance) + TOLERANCE)
    # a mean over fewer tasks strays: three standard errors are let pass
    stray = 0.0 if played >= min(PLAYED, all_of_them) else 3 * math.sqrt(limit * (1 - limit) / played)
    earning = [f"{name} {reward:.3f}" for name, reward in rewards.items() if not reward <= limit + stray]
    expect(not earning, f"at most {limit + stray:.3f} may be earned on {played} tasks: {', '.join(earning)}")


@cache
def _validated(subject: Subject) -> Validation:
    """What `validate` finds on as many tasks as there is time for."""
    env = subject.text()
    validate(env, limit=1, played=1)  # starts what it needs
    started = time.perf_counter()
    found = validate(env, limit=_FEWEST, played=_FEWEST)
    count = int(_FEWEST * _SECONDS / max(time.perf_counter() - started, 1e-9))
    return validate(env, limit=min(PLAYED, count), played=min(PLAYED, count)) if count > _FEWEST else found


def _null_rewards(env: Any) -> dict[str, float]:
    """The mean return of each null policy, by the seeds 0 to `_FEWEST` - 1."""
    rewards = {}
    for name, policy in ANSWERING.items():
        returns = []
        for seed in range(_FEWEST):
            rng, turn, total = np.random.default_rng(seed), opening(env, seed=seed), 0.0
            for _ in range(100):
                turn = answer(env, policy(rng, turn.observation, turn.info))
                total += turn.reward
                if turn.ended:
                    break
            returns.append(total)
        rewards[name] = float(np.mean(returns))
    return rewards
