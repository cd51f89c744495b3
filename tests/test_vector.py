"""Vector environments: in turn, in processes and in threads they say what single environments say."""

import json
import threading
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from verigym.envs import QuestionEnv
from verigym.envs.vector import ThreadVectorEnv
from verigym.tasks import Task, TaskSet
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import EnvClosedError, EnvUsageError
from verigym.verifiers import Verdict, Verifier
from verigym.verifiers.exact import ExactVerifier

CALCULATOR = "verigym/Calculator-v0"
CALL = render_call("calculator", {"expression": "12 * 3"})
ACTIONS = [("\\boxed{1}", CALL, "\ud800"), (CALL, "", "\x00"), (CALL, CALL, "next"), ("done", CALL, CALL)]


def plain(said):
    """Observations, rewards and infos in a form that compares equal whatever process they come from."""
    if isinstance(said, Verdict):
        return said.reward, said.outcome, said.reason
    if isinstance(said, dict):
        return {key: plain(value) for key, value in said.items()}
    return [plain(part) for part in said] if isinstance(said, tuple | list | np.ndarray) else said


def play(envs, actions=ACTIONS, **reset):
    """Everything that the environments say to these actions."""
    said = [envs.reset(**reset), *(envs.step(action) for action in actions)]
    envs.close()
    return plain(said)


class Slow(Verifier):
    """Judges after a while; one that is closed at once."""

    def __init__(self, seconds):
        self.seconds, self.judging, self.closed = seconds, threading.Semaphore(0), threading.Event()

    def verify(self, submission, task):
        self.judging.release()
        self.closed.wait(self.seconds)
        return ExactVerifier().verify(submission, task)


class Failing(Verifier):
    """Fails for an answer that asks it to."""

    def verify(self, submission, task):
        if submission.text == "fail":
            raise ZeroDivisionError("no such number")
        return ExactVerifier().verify(submission, task)


def threads(verifier, count=3, **kwargs):
    task_set = TaskSet([Task("a", "What is 12 * 3?", "36"), Task("b", "And 5 * 5?", "25")], name="two", split="train")
    return ThreadVectorEnv([lambda: QuestionEnv(task_set, verifier=verifier)] * count, **kwargs)


@pytest.mark.parametrize("autoreset_mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("mode", ["async", "vector_entry_point"])
def test_every_mode_gives_what_the_sync_one_gives(mode, autoreset_mode):
    option = {"autoreset_mode": autoreset_mode}
    given = {"vector_kwargs": option} if mode == "async" else option
    envs = gym.make_vec(CALCULATOR, num_envs=3, vectorization_mode=mode, level=1, **given)
    sync = gym.make_vec(CALCULATOR, num_envs=3, vectorization_mode="sync", vector_kwargs=option, level=1)
    assert isinstance(envs, AsyncVectorEnv if mode == "async" else ThreadVectorEnv)
    assert envs.metadata["autoreset_mode"] is AutoresetMode(autoreset_mode)
    assert play(envs, seed=7) == play(sync, seed=7)


def test_threads_are_what_make_vec_makes_if_nothing_is_said():
    envs = gym.make_vec(CALCULATOR, num_envs=2, level=3)
    assert isinstance(envs, ThreadVectorEnv)
    assert envs.get_attr("chance") == (gym.make(CALCULATOR, level=3).unwrapped.chance,) * 2
    assert json.loads(gym.spec(CALCULATOR).to_json())["vector_entry_point"] == f"verigym.envs.vector:{CALCULATOR}"


def test_observations_of_processes_have_any_length_and_any_character():
    envs = gym.make_vec(CALCULATOR, num_envs=2, vectorization_mode="async", max_tokens_per_turn=None)
    assert envs.shared_memory
    first, _ = envs.reset(seed=1)
    odd = render_call("no \U0001f642 \u0661", {"x": "\U0001f600"})
    long, _, _, _, info = envs.step([odd * 30, odd])
    assert [len(text) > 1000 for text in long] == [True, False]
    assert [messages[0]["content"] in text for messages, text in zip(info["messages"], long, strict=True)] == [True] * 2
    assert "\U0001f642 \u0661" in long[1]
    assert envs.observation_space.contains(long)
    assert first == tuple(gym.make(CALCULATOR).reset(seed=seed)[0] for seed in (1, 2))  # a copy, not what is there now
    envs.close()


def test_processes_that_are_spawned_share_texts_too():
    env_fns = [lambda: gym.make("verigym:verigym/Calculator-v0", level=1)] * 3
    spawned, sync = AsyncVectorEnv(env_fns, context="spawn"), SyncVectorEnv(env_fns)
    assert play(spawned, seed=7) == play(sync, seed=7)


def test_a_shared_text_is_read_as_it_was_written_last():
    from gymnasium.vector.utils import create_shared_memory, read_from_shared_memory, write_to_shared_memory

    from verigym.envs.spaces import TextSpace

    space = TextSpace()
    memory = create_shared_memory(space, n=2)
    texts = read_from_shared_memory(space, memory, n=2)
    assert tuple(texts) == ("", "")
    for text in ("x" * 3_000_000, "\ud800\x00é", ""):
        write_to_shared_memory(space, 1, text, memory)
        assert tuple(texts) == ("", text)


def test_threads_step_at_the_same_time():
    verifier = Slow(30)
    envs = threads(verifier)
    envs.reset(seed=1)
    waiting = threading.Thread(target=envs.step, args=(["36"] * 3,))
    waiting.start()
    assert all(verifier.judging.acquire(timeout=20) for _ in range(3)), "the third waits for the first"
    verifier.closed.set()
    waiting.join(20)
    assert not waiting.is_alive()
    envs.close()


def test_an_exception_names_the_environment_and_leaves_the_others_stepped():
    envs = threads(Failing())
    envs.reset(seed=1)
    with pytest.raises(ZeroDivisionError, match="environment 1 of 3: no such number"):
        envs.step(["36", "fail", "25"])
    assert [env.unwrapped._over for env in envs.envs] == [True] * 3
    envs.reset(seed=1)
    assert envs.step(["1", "2", "3"])[2].all()
    envs.close()


def test_close_from_another_thread_ends_a_step():
    verifier = Slow(60)
    envs, raised = threads(verifier, 2), []
    envs.reset(seed=1)

    def step():
        try:
            envs.step(["36", "25"])
        except EnvClosedError as error:
            raised.append(str(error))

    waiting = threading.Thread(target=step)
    waiting.start()
    assert verifier.judging.acquire(timeout=20)
    started = time.monotonic()
    envs.close()
    waiting.join(20)
    assert raised == ["the environments were closed"]
    assert time.monotonic() - started < 20  # far below the verifier's minute
    envs.close()
    with pytest.raises(EnvClosedError):
        envs.step(["36", "25"])
    with pytest.raises(EnvClosedError):
        envs.reset()
    verifier.closed.set()


def test_without_autoreset_an_ended_environment_is_reset_by_the_mask():
    envs = threads(ExactVerifier(), 2, autoreset_mode="Disabled")
    envs.reset(seed=[5, None], options={"task": "a"})
    _, rewards, terminated, _, _ = envs.step(["36", "25"])
    assert (rewards.tolist(), terminated.tolist()) == ([1.0, 0.0], [True, True])
    with pytest.raises(EnvUsageError, match=r"must be reset first.*0, 1"):
        envs.step(["36", "25"])
    options = {"task": "b", "reset_mask": np.array([False, True])}
    _, info = envs.reset(options=options)
    assert (info["_task_id"].tolist(), info["task_id"][1]) == ([False, True], "b")
    assert set(options) == {"task", "reset_mask"}
    with pytest.raises(EnvUsageError, match=r"must be reset first.*: 0$"):
        envs.step(["36", "25"])
    envs.close()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda envs: envs.step(["36"]), "2 environments need as many actions, not 1"),
        (lambda envs: envs.step("ab"), "2 environments need as many actions"),
        (lambda envs: envs.reset(seed=[1, 2, 3]), "2 environments need as many seeds, not 3"),
        (lambda envs: envs.reset(options={"reset_mask": [True, False]}), "2 booleans"),
        (lambda envs: envs.reset(options={"reset_mask": np.array([False, False])}), "at least one of them true"),
        (lambda envs: envs.step(["36", 3]), "environment 1 of 2: an action is the agent's turn as text"),
    ],
)
def test_wrong_use_is_refused_in_one_line(wrong, message):
    envs = threads(ExactVerifier(), 2)
    envs.reset(seed=1)
    with pytest.raises(EnvUsageError, match=message):
        wrong(envs)
    envs.close()
