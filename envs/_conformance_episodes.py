"""The rules on episodes: their form, that they repeat, fork and end as they should."""

from __future__ import annotations

import json
import math
import random
import sys
import warnings
from functools import partial
from typing import Any

import numpy as np
from gymnasium.utils.env_checker import check_env

from verigym.envs._conformance_probe import (
    ANSWER,
    MALFORMED,
    Subject,
    Turn,
    Unchecked,
    answer,
    expect,
    expect_raises,
    expect_same,
    finished,
    opening,
    plain,
    play,
    play_turns,
    rule,
    script,
    started,
)
from verigym.envs.null_policies import random_call
from verigym.envs.text_env import Reply, TextEnv, observation_of
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import EnvUsageError, SnapshotError, VerigymError
from verigym.verifiers.verdict import Outcome, Verdict

_ROLES = ("system", "user", "assistant", "tool")
_SEEDS = (11, 12, 13)


# Form.


@rule("Gymnasium's own checker passes without a warning")
def _gymnasium(subject: Subject) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(subject.bare())


@rule("the spaces hold every text, the empty one too, and nothing else")
def _spaces(subject: Subject) -> None:
    env = subject.bare()
    for name, space in (("action", env.action_space), ("observation", env.observation_space)):
        for text in ("", " ", "\x00", "\ud800", "\U0001f642 \u0661", "x" * 100_000):
            expect(space.contains(text), f"the {name} space {space} does not hold {text[:10]!r}")
        for other in (3, None, b"x"):
            expect(not space.contains(other), f"the {name} space {space} holds {other!r}")


@rule("reset and step return a text and an info: task_id, messages, tools at the start, a verdict at the end")
def _form(subject: Subject) -> None:
    env = subject.bare()
    for seed in _SEEDS:
        first, *rest = turns = finished(env, seed=seed)
        expect(isinstance(first.info.get("tools"), list), "the first info has no list of tools")
        expect(first.info["messages"][-1]["role"] == "user", "the first messages do not end with the user's")
        for turn in turns:
            _expect_info(turn, first.info["task_id"])
        for turn in rest:
            expect(
                isinstance(turn.reward, float | int) and not isinstance(turn.reward, bool),
                f"a reward is {turn.reward!r}",
            )
            for flag in (turn.terminated, turn.truncated):
                expect(isinstance(flag, bool | np.bool_), f"terminated or truncated is {flag!r}")


def _expect_info(turn: Turn, task_id: Any) -> None:
    expect(isinstance(turn.observation, str), f"an observation is {turn.observation!r}")
    expect(isinstance(task_id, str), f"task_id is {task_id!r}")
    expect(turn.info.get("task_id") == task_id, f"task_id changes from {task_id!r} to {turn.info.get('task_id')!r}")
    expect(isinstance(turn.info.get("messages"), list), "an info has no list of messages")
    for message in turn.info["messages"]:
        well = message.get("role") in _ROLES and isinstance(message.get("content"), str)
        expect(well, f"a message has no known role or no text: {message!r}")
    verdict = turn.info.get("verdict")
    expect(turn.ended or verdict is None, "there is a verdict before the end")
    expect(not turn.ended or isinstance(verdict, Verdict), f"the verdict at the end is {verdict!r}")


@rule("an observation is the text of the messages that are not from the system, joined by a blank line")
def _observation(subject: Subject) -> None:
    env = subject.bare()
    for seed in _SEEDS:
        for number, turn in enumerate(play(env, seed=seed)):
            joined = observation_of(turn.info["messages"])
            expect(
                turn.observation == joined, f"turn {number} is {turn.observation!r:.80}, its messages {joined!r:.80}"
            )


@rule("what a caller does to an info changes nothing inside")
def _info_is_a_copy(subject: Subject) -> None:
    env, other = subject.bare(), subject.bare()
    for seed in _SEEDS[:2]:
        turns, vandalised = [opening(other, seed=seed)], [opening(env, seed=seed)]
        for action in script(dict(turns[0].info)):
            said = plain(vandalised[-1])
            expect_same(said, turns[-1], "after a change to an earlier info")
            if turns[-1].ended or len(turns) > 3:
                break
            _vandalise(vandalised[-1].info)
            turns.append(answer(other, action))
            vandalised.append(answer(env, action))


def _vandalise(value: Any) -> None:
    """Empties all lists and dictionaries, the inner ones first."""
    for part in list(value.values() if isinstance(value, dict) else value):
        if isinstance(part, dict | list):
            _vandalise(part)
    value.clear()


@rule("a tool is described by a JSON schema, and a call in canonical syntax is answered by a message of its own")
def _tools(subject: Subject) -> None:
    import jsonschema

    env = subject.unlimited()
    first = opening(env, seed=1)
    for tool in first.info["tools"]:
        jsonschema.Draft202012Validator.check_schema(tool["function"]["parameters"])
    if not first.info["tools"]:
        return
    name = first.info["tools"][0]["function"]["name"]
    for action in (
        random_call(np.random.default_rng(1), "", first.info),
        render_call(name, {"no such argument": 1}),
        render_call("no_such_tool", {}),
        MALFORMED,
    ):
        opening(env, seed=1)
        turn = answer(env, action)
        roles = [message["role"] for message in turn.info["messages"]]
        expect(roles == ["tool"] or turn.ended, f"{action:.60} is answered by messages of {roles}")
    opening(env, seed=1)
    turn = answer(env, f"<think>{render_call(name, {})}</think> {ANSWER}")
    expect(not any(message["role"] == "tool" for message in turn.info["messages"]), "a call inside reasoning is run")


# Repetition.


def episodes(env: Any) -> list[Any]:
    """What some seeded and unseeded episodes say, as JSON."""
    return [plain(play(env, seed=seed)) for seed in (_SEEDS[0], None, _SEEDS[1], None)]


@rule("the same seed and actions give the same episode")
def _repeats(subject: Subject) -> None:
    env = subject.bare()
    said = episodes(env)
    expect_same(episodes(env), said, "the second time")
    expect_same(episodes(subject.bare()), said, "in another instance")


@rule("resets without a seed go on from the environment's own generator")
def _unseeded(subject: Subject) -> None:
    env = subject.bare()
    runs = [[plain(opening(env, seed=3)), *(plain(opening(env)) for _ in range(20))] for _ in range(2)]
    expect_same(runs[0], runs[1], "after the same first seed")
    if len(getattr(env, "tasks", ())) > 1:
        ids = {said[4]["task_id"] for said in runs[0]}
        expect(len(ids) > 1, f"twenty resets all give the task {next(iter(ids))!r}")


@rule("no global random generator is touched")
def _global_random(subject: Subject) -> None:
    _seed_global_generators()  # so that an environment that seeds them all alike is seen, too
    before = _global_states()
    env = subject.make()
    for seed in (3, None):
        play(env.unwrapped, seed=seed)
    env.action_space.sample()
    env.observation_space.sample()
    env.close()
    after = _global_states()
    touched = [name for name in before if before[name] != after[name]]
    expect(not touched, f"the generator of {' and '.join(touched)} has another state after an episode")


def _seed_global_generators() -> None:
    random.seed(4711)
    np.random.seed(4711)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(4711)


def _global_states() -> dict[str, str]:
    states = {"random": repr(random.getstate()), "numpy": repr(np.random.get_state())}
    if "torch" in sys.modules:
        states["torch"] = repr(sys.modules["torch"].get_rng_state().tolist())
    return states


@rule("members of a group start from one and the same state")
def _group(subject: Subject) -> None:
    one, other = subject.bare(), subject.bare()
    task_id = opening(one, seed=1).info["task_id"]
    options = {"task": task_id}
    said = [plain(play(env, seed=5, options=options)) for env in (one, other)]
    expect_same(said[1], said[0], "two instances with one seed and task")
    expect(said[0][0][4]["task_id"] == task_id, f"the option task={task_id!r} gives {said[0][0][4]['task_id']!r}")
    unseeded = [plain(opening(env, options=options)) for env in (one, other)]
    expect(unseeded[0][4]["task_id"] == task_id, f"without a seed the option task={task_id!r} gives another task")


@rule("nothing of an episode is left after a reset")
def _no_state_is_kept(subject: Subject) -> None:
    fresh, used = subject.bare(), subject.bare()
    finished(used, seed=1)
    started(used, seed=2)  # and one that is broken off
    if isinstance(used, TextEnv):
        used.announce(1, cut=True)
    expect_same(play(used, seed=5), play(fresh, seed=5), "after other episodes")


# Forks.


@rule("a snapshot is plain data, and restoring it goes on like the original, which it leaves alone")
def _fork(subject: Subject) -> None:
    env, other = subject.bare(), subject.bare()
    messages, observation, rest = started(env, seed=9)
    snapshot = _snapshot(env)
    expect(json.loads(json.dumps(snapshot)) == snapshot, "a snapshot is not the same after a trip through JSON")
    restored = opening(other, options={"snapshot": json.loads(json.dumps(snapshot))})
    expect_same(restored.info["messages"], messages, "the messages of the restored one and the conversation")
    expect_same(restored.observation, observation, "the observation of the restored one and the last")
    expect_same(_snapshot(other), snapshot, "the snapshot of the restored one")
    forked = play_turns(other, rest)
    expect_same(_snapshot(env), snapshot, "the original's snapshot after the fork was played")
    expect_same(forked, play_turns(env, rest), "the fork and the original")


@rule("a snapshot that was changed is refused")
def _tampered(subject: Subject) -> None:
    env = subject.bare()
    started(env, seed=9)
    snapshot = _snapshot(env)
    changes: dict[str, Any] = {"{}": {}, "a list": []}
    if "messages" in snapshot:
        changes["a changed message"] = _changed_message(snapshot)
    if "task" in snapshot:
        changes["an unknown task"] = {**snapshot, "task": "no such task"}
    if "task_hash" in snapshot:
        changes["another task's hash"] = {**snapshot, "task_hash": "0"}
    for what, changed in changes.items():
        reset = partial(subject.bare().reset, options={"snapshot": changed})
        expect_raises(SnapshotError, reset, f"restoring a snapshot with {what}")


def _changed_message(snapshot: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(snapshot))
    changed["messages"][0]["content"] += " (changed)"
    return changed


def _snapshot(env: Any) -> dict[str, Any]:
    if not hasattr(env, "snapshot"):
        raise Unchecked("it has no method snapshot")
    return env.snapshot()  # type: ignore[no-any-return]


# Ends.


@rule("the end of the task terminates, a budget truncates, and never both")
def _ends(subject: Subject) -> None:
    limit = subject.spec.max_episode_steps
    expect(limit is None, f"a wrapper limits the episode to {limit} steps, without a verdict")
    env = subject.bare()
    for seed in _SEEDS:
        for turn in play(env, seed=seed):
            expect(not (turn.terminated and turn.truncated), "a step is terminated and truncated")
    if isinstance(env, TextEnv):
        _expect_budgets(subject, env)
        _expect_task_end(env)


def _expect_budgets(subject: Subject, env: TextEnv) -> None:
    opening(env, seed=1)
    env.announce(1, cut=True)
    _expect_flags(answer(env, ANSWER), False, "a turn that a token budget cut short")
    if "max_tokens_per_turn" in subject.parameters:
        short = subject.bare(max_tokens_per_turn=5)
        opening(short, seed=1)
        _expect_flags(answer(short, "one two three four five six"), False, "a turn over max_tokens_per_turn")
    if "max_turns" in subject.parameters and env.tools:
        short = subject.bare(max_turns=2)
        opening(short, seed=1)
        expect(not answer(short, MALFORMED).ended, "the first of two turns ends the episode")
        _expect_flags(answer(short, MALFORMED), False, "the last of max_turns")


def _expect_task_end(env: TextEnv) -> None:
    turn = opening(env, seed=1)
    golds = env.gold_episodes(env.tasks.get(turn.info["task_id"]))
    if golds:
        _expect_flags(play_turns(env, golds[0])[-1], True, "a gold answer")


def _expect_flags(turn: Turn, terminated: bool, what: str) -> None:
    expected = (terminated, not terminated)
    flags = (bool(turn.terminated), bool(turn.truncated))
    expect(flags == expected, f"{what} gives terminated, truncated = {flags}, not {expected}")


@rule("a step before the first reset or after the end raises EnvUsageError")
def _order(subject: Subject) -> None:
    env = subject.bare()
    expect_raises(EnvUsageError, lambda: env.step(ANSWER), "a step before the first reset")
    finished(env, seed=1)
    expect_raises(EnvUsageError, lambda: env.step(ANSWER), "a step after the end")
    if hasattr(env, "snapshot"):
        expect_raises(EnvUsageError, env.snapshot, "a snapshot after the end")


@rule("the last reward is the verdict's, and only an infrastructure error has none")
def _rewards(subject: Subject) -> None:
    env = subject.bare()
    paid = _rewards_of_turns(env)
    for seed in _SEEDS:
        paid.clear()
        *_, last = turns = finished(env, seed=seed)
        verdict = last.info["verdict"]
        for turn in turns[1:-1]:
            expect(math.isfinite(turn.reward), f"a reward before the end is {turn.reward}")
        of_turn = sum(paid[len(turns) - 2 :])  # none for a turn that was cut
        same = math.isclose(last.reward, verdict.reward + of_turn, abs_tol=1e-9)
        masked = math.isnan(last.reward) and verdict.outcome is Outcome.INFRA_ERROR
        expect(same or masked, f"the last reward is {last.reward}, the verdict's {verdict.reward}")


def _rewards_of_turns(env: Any) -> list[float]:
    """A list that fills with the rewards that a TextEnv gives for single turns."""
    paid: list[float] = []
    if isinstance(env, TextEnv):
        respond = env.respond

        def spy(action: str) -> Reply:
            reply = respond(action)
            paid.append(float(reply.reward))
            return reply

        env.respond = spy  # type: ignore[method-assign]
    return paid


@rule("an unknown reset option or task is refused, and the environment can still be used")
def _options(subject: Subject) -> None:
    env = subject.bare()
    for options in ({"tsak": "x"}, {"task": "no such task \ud800"}):
        name = next(iter(options))
        error = expect_raises(VerigymError, partial(env.reset, options=options), f"reset with {name}")
        expect("\n" not in str(error), f"reset with {name} raises an error of several lines")
    play(env, seed=1)
