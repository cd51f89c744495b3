"""Making environments, loading their data once, and what goes with them: spaces, null policies, validation."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time

import gymnasium as gym
import numpy as np
import pytest

from verigym import tasks, verifiers
from verigym.envs import QuestionEnv
from verigym.envs.mixture import EnvSpec
from verigym.envs.null_policies import ANSWERING, WITH_TOOLS
from verigym.envs.spaces import TextSpace
from verigym.envs.validation import validate
from verigym.tasks import Task, TaskSet, _rows
from verigym.tasks.errors import (
    ConfigError,
    TaskDataError,
    UnknownNameError,
)
from verigym.verifiers import Outcome, Submission, Verdict, Verifier

CALCULATOR = "verigym/Calculator-v0"


def question(**kwargs):
    """An environment of two tasks of our own."""
    task_set = TaskSet([Task("a", "What is 12 * 3?", "36"), Task("b", "And 5 * 5?", "25")], name="two", split="train")
    return QuestionEnv(task_set, **kwargs)


# Making one.


def test_gym_make_imports_the_package_by_the_id_alone():
    code = 'import gymnasium; print(gymnasium.make("verigym:verigym/Arithmetic-v0").unwrapped.tasks.name)'
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "arithmetic"


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"max_turn": 3}, UnknownNameError, "no environment option 'max_turn'; did you mean 'max_turns'?"),
        ({"levle": 3}, UnknownNameError, "did you mean 'level'?"),
        ({"split": "tset"}, UnknownNameError, "did you mean 'test'?"),
        ({"level": 9}, ConfigError, "level must be a whole number from 1 to 6, not 9"),
        ({"level": "three"}, ConfigError, "not 'three'"),
        ({"source": "somewhere"}, UnknownNameError, "is generated and takes no source"),
        ({"task_set": "calculater"}, UnknownNameError, "did you mean 'calculator'?"),
        ({"task_set": 3}, ConfigError, "task_set must be a TaskSet"),
        ({"verifier": "maths"}, UnknownNameError, "did you mean 'math'?"),
        ({"verifier": 3}, ConfigError, "verifier must be"),
        ({"max_turns": 0}, ConfigError, "max_turns must be a whole number of at least 1, not 0"),
        ({"max_tokens_per_turn": 2.5}, ConfigError, "max_tokens_per_turn must be"),
        ({"tools": "verigym.tasks.calculator:nothing"}, ConfigError, "module:attribute"),
        ({"tools": lambda x: x}, ConfigError, "not a tool"),
        ({"chance": 3}, ConfigError, "chance must be"),
    ],
)
def test_wrong_keyword_arguments_are_refused_at_once_in_one_line(kwargs, error, message):
    with pytest.raises(error) as caught:
        gym.make(CALCULATOR, **kwargs)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"source": "../no/such/place"}, "no file or folder"),
        ({"source": 3}, "source must be"),
        ({"split": "x"}, "test"),
    ],
)
def test_wrong_source_or_split_of_a_data_set_is_one_line(kwargs, message):
    with pytest.raises((TaskDataError, ConfigError, UnknownNameError), match=message) as caught:
        gym.make("verigym/GSM8K-v0", **{"source": ".", **kwargs})
    assert "\n" not in str(caught.value)


def test_a_task_set_and_a_source_contradict_each_other():
    with pytest.raises(ConfigError, match="leave source out"):
        question(source="here")


def test_a_mixture_entry_names_what_it_cannot_make():
    with pytest.raises(UnknownNameError, match="did you mean 'verigym/GSM8K-v0'"):
        EnvSpec("verigym/GSM8-v0").make()
    with pytest.raises(ConfigError, match="cannot import the module"):
        EnvSpec("no_such_module:X-v0").make()
    with pytest.raises(ConfigError, match="weight"):
        EnvSpec(CALCULATOR, weight=0)
    env = EnvSpec("verigym:" + CALCULATOR, kwargs={"level": 1}).with_split("test").make()
    assert (env.unwrapped.tasks.split, env.unwrapped.tasks[0].metadata["level"]) == ("test", 1)


# Loading.


@pytest.fixture
def readings(monkeypatch):
    """The files that were read."""
    read, files = _rows.read_file, []
    monkeypatch.setattr(_rows, "read_file", lambda path: files.append(path) or read(path))
    return files


def write_question(path, answer, age=10.0):
    path.write_text(json.dumps({"question": "How many?", "answer": f"#### {answer}"}) + "\n")
    os.utime(path, (time.time() - age,) * 2)


def test_many_environments_read_a_data_file_once_and_again_when_it_changes(tmp_path, readings):
    write_question(tmp_path / "train.jsonl", 41)
    envs = [gym.make("verigym/GSM8K-v0", source=str(tmp_path)) for _ in range(200)]
    assert len(readings) == 1
    assert envs[0].unwrapped.tasks is envs[199].unwrapped.tasks
    write_question(tmp_path / "train.jsonl", 42, age=5.0)  # as long as before
    assert gym.make("verigym/GSM8K-v0", source=str(tmp_path)).unwrapped.tasks[0].target == "42"
    write_question(tmp_path / "train_2.jsonl", 43)
    assert len(gym.make("verigym/GSM8K-v0", source=str(tmp_path)).unwrapped.tasks) == 2


def test_a_file_that_has_just_changed_is_read_again(tmp_path):
    targets = []
    now = time.time()
    for answer in range(10, 40):  # as if within one tick of the file system's clock
        write_question(tmp_path / "train.jsonl", answer)
        os.utime(tmp_path / "train.jsonl", (now + 60, now + 60))
        targets.append(tasks.load("gsm8k", source=tmp_path)[0].target)
    assert targets == [str(answer) for answer in range(10, 40)]


def test_environments_made_in_threads_read_once(tmp_path, readings, monkeypatch):
    write_question(tmp_path / "train.jsonl", 41)
    read = _rows.read_file
    monkeypatch.setattr(_rows, "read_file", lambda path: time.sleep(0.2) or read(path))
    threads = [
        threading.Thread(target=gym.make, args=("verigym/GSM8K-v0",), kwargs={"source": str(tmp_path)})
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(readings) == 1


# Spaces, policies, verdicts.


def test_any_text_is_in_the_space_and_nothing_else():
    space = TextSpace(seed=3)
    assert all(text in space for text in ("", "\x00", "\ud800", "🙂", "x" * 1_000_000))
    assert not any(thing in space for thing in (b"", None, 3, ["x"]))
    samples = [space.sample() for _ in range(200)]
    assert samples == [sample for space in [TextSpace(seed=3)] for sample in [space.sample() for _ in range(200)]]
    assert all(sample in space and sample.encode() is not None for sample in samples)
    assert space.from_jsonable(json.loads(json.dumps(space.to_jsonable(samples)))) == samples
    assert pickle.loads(pickle.dumps(space)) == space == TextSpace()


def test_null_policies_are_functions_of_their_arguments_alone():
    observation, info = gym.make(CALCULATOR).reset(seed=1)
    for name, policy in WITH_TOOLS.items():
        turns = [policy(np.random.default_rng(seed), observation, info) for seed in (1, 1, 2)]
        assert turns[0] == turns[1], name
        assert (turns[0] != turns[2]) == (name in ("spray", "random", "random call")), name
    assert WITH_TOOLS["echo"](np.random.default_rng(0), observation, info) == observation


def test_the_random_call_is_run_and_then_stops():
    env = gym.make(CALCULATOR)
    observation, info = env.reset(seed=1)
    rng = np.random.default_rng(0)
    _, _, terminated, _, info = env.step(WITH_TOOLS["random call"](rng, observation, info))
    assert terminated is False
    assert info["messages"][0]["name"] == "calculator"
    assert env.step(WITH_TOOLS["random call"](rng, "", info))[2] is True


def test_validation_lists_golds_that_fail_and_policies_that_earn():
    class Generous(Verifier):
        def verify(self, submission, task):
            return Verdict(1.0, Outcome.CORRECT, "for taking part")

    assert set(validate(question(verifier=Generous())).earning) == set(ANSWERING)
    wrong = TaskSet(
        [Task("good", "?", "1"), Task("unclosed", "?", "{{"), Task("empty", "?", ""), Task("none", "?", None)],
        name="golds",
        split="train",
    )
    found = validate(QuestionEnv(wrong))
    assert {failure.task_id for failure in found.failures} == {"unclosed", "empty", "none"}
    assert all(failure.reason for failure in found.failures)
    assert not found.ok
    with pytest.raises(ConfigError, match="limit must be at least 1"):
        validate(question(), limit=0)


def test_every_accepted_answer_of_a_task_is_a_gold():
    env = QuestionEnv(TaskSet([Task("a", "?", ["1/2", "0.5"])], name="two", split="train"))
    assert env.golds(env.tasks[0]) == ["\\boxed{1/2}", "\\boxed{0.5}"]
    assert validate(env).failures == ()


def test_a_verdict_can_be_sent_to_another_process():
    verdict = Verdict(0.5, Outcome.WRONG, "half", components={"form": 0.5}, details={"answer": "1"})
    assert pickle.loads(pickle.dumps(verdict)) == verdict
    assert verifiers.make("math").golds(Task("t", "", 3)) == ["\\boxed{3}"]
    assert verifiers.make("exact").verify(Submission("3"), Task("t", "", 3)).reward == 1.0
