"""The rules on what environments are used with: other processes, Gymnasium's wrappers, vector environments."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import gymnasium as gym
import psutil
from gymnasium.vector.utils.misc import CloudpickleWrapper

from verigym.envs._conformance_episodes import episodes
from verigym.envs._conformance_probe import (
    Broken,
    Subject,
    Turn,
    answer,
    expect,
    expect_same,
    opening,
    rule,
    script,
)
from verigym.envs.vector import ThreadVectorEnv

_ENDED = 5.0  # seconds in which what it started must be over

# Other processes.


@rule("the same seed and actions give the same episode in another process with another hash seed")
def _other_process(subject: Subject) -> None:
    said, _ = _in_another_process(subject)
    expect_same(said, episodes(subject.bare()), "in another process")


@rule("nothing that it started outlives its process")
def _nothing_is_left(subject: Subject) -> None:
    _, children = _in_another_process(subject)
    until = time.monotonic() + _ENDED
    while (left := [child for child in children if _alive(*child)]) and time.monotonic() < until:
        time.sleep(0.05)
    names = [_name(pid) for pid, _ in left]
    for pid, _ in left:
        psutil.Process(pid).kill()
    expect(not left, f"{len(left)} processes run on after it ended: {', '.join(names)}")


@cache
def _in_another_process(subject: Subject) -> tuple[list[Any], list[tuple[int, float]]]:
    """What `episodes` says in a new process, and the (pid, start time) of the processes that it started."""
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        pickle.dump(CloudpickleWrapper(subject.spec), request)  # type: ignore[arg-type]
        request.seek(0)
        # files, not pipes: what it leaves running would keep a pipe open
        done = subprocess.run(
            [sys.executable, "-m", "verigym.envs._conformance_worker", "play", *subject.modules],
            stdin=request,
            stdout=said,
            stderr=errors,
            env={**os.environ, "PYTHONHASHSEED": "2"},
            check=False,
        )
        said.seek(0)
        errors.seek(0)
        if done.returncode:
            last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Broken(f"it does not run in another process: {' '.join(last)[:300]}")
        reply = json.load(said)
    return reply["episodes"], [(pid, started) for pid, started in reply["children"]]


def _alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        return process.create_time() == started and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _name(pid: int) -> str:
    try:
        return psutil.Process(pid).name()
    except psutil.NoSuchProcess:
        return "?"


# Gymnasium's own tools.


@rule("Gymnasium's wrappers TimeLimit and RecordEpisodeStatistics work on it")
def _wrappers(subject: Subject) -> None:
    env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(subject.make(), 3))
    for seed in range(3):
        turns = [opening(env, seed=seed)]
        for action in script(turns[0].info):
            turns.append(answer(env, action))
            if turns[-1].ended:
                break
        expect(len(turns) <= 4, "TimeLimit(env, 3) does not end an episode")
        recorded = turns[-1].info["episode"]
        expect_same([recorded["r"], recorded["l"]], [sum(t.reward for t in turns[1:]), len(turns) - 1], "recorded")


@rule("gym.make_vec in sync mode gives what single environments give")
def _sync(subject: Subject) -> None:
    _expect_vector(subject, gym.make_vec(subject.spec, num_envs=2, vectorization_mode="sync"))


@rule("gym.make_vec in async mode gives what single environments give")
def _async(subject: Subject) -> None:
    _expect_vector(subject, gym.make_vec(subject.spec, num_envs=2, vectorization_mode="async"))


@rule("stepped in threads, it gives what single environments give")
def _threads(subject: Subject) -> None:
    _expect_vector(subject, ThreadVectorEnv([subject.make] * 2))


def _expect_vector(subject: Subject, envs: gym.vector.VectorEnv) -> None:
    """Compares with single environments that are reset in the step after their end."""
    singles = [subject.make() for _ in range(2)]
    try:
        turns = [opening(env, seed=7 + index) for index, env in enumerate(singles)]
        _expect_batch(envs.reset(seed=7), turns)
        for action in [*script(turns[0].info)][:4]:
            turns = [
                opening(env) if turn.ended else answer(env, action) for env, turn in zip(singles, turns, strict=True)
            ]
            _expect_batch(envs.step((action,) * 2), turns)
    finally:
        envs.close()


def _expect_batch(batch: tuple[Any, ...], turns: list[Turn]) -> None:
    observations, *middle, infos = batch
    for index, turn in enumerate(turns):
        rest = [part[index] for part in middle] or [0.0, False, False]
        said = Turn(observations[index], _info_of(infos, index), float(rest[0]), bool(rest[1]), bool(rest[2]))
        single = replace(turn, reward=float(turn.reward))
        expect_same(said, single, f"environment {index}, vector and single")


def _info_of(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """The info of one environment, out of those of all."""
    info: dict[str, Any] = {}
    for key, values in infos.items():
        if f"_{key}" in infos and infos[f"_{key}"][index]:
            info[key] = _info_of(values, index) if isinstance(values, dict) else values[index]
    return info
