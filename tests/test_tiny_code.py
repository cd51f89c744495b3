"""TinyCode: functions as their words say, right ones pass, nearly right ones fail, and splits share nothing."""

import re
import runpy
from collections import Counter
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from verigym import tasks, verifiers
from verigym.tasks import tiny_code
from verigym.tasks.errors import ConfigError
from verigym.verifiers import Submission
from verigym.verifiers._code_text import fenced

make_sandbox = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))["make"]
each_level = pytest.mark.parametrize("level", range(1, 6))


@pytest.fixture(scope="module")
def verifier():
    box = make_sandbox("bubblewrap")
    yield verifiers.make("code", sandbox=box)
    box.close()


def load(level, split="train", size=40):
    return tasks.load("tiny_code", split=split, level=level, size=size)


@each_level
def test_solutions_pass_and_nearly_right_ones_do_not(verifier, level):
    task_set = load(level)
    right = [(Submission(verifier.golds(task)[0]), task) for task in task_set]
    wrong = [(Submission(fenced(next_number(task.target["solution"]))), task) for task in task_set]
    assert {verdict.reward for verdict in verifier.verify_many(right)} == {1.0}
    assert {verdict.reward for verdict in verifier.verify_many(wrong)} == {0.0}


def next_number(solution):
    """The solution with its last number increased by one: a bound, at level 5."""
    return re.sub(r"(\d+)(?=\D*$)", lambda match: str(int(match[1]) + 1), solution)


@each_level
def test_splits_share_no_question(level):
    words = {split: {question(task) for task in load(level, split, 2000)} for split in ("train", "test")}
    assert not words["train"] & words["test"]


def question(task):
    return task.prompt.partition(" For example")[0]


@each_level
def test_tasks_are_a_function_of_seed_and_index(level):
    few, many = load(level, size=5), load(level, size=50)
    assert list(few) == list(many)[:5]
    assert list(few) != list(tasks.load("tiny_code", level=level, size=5, seed=1))


@each_level
def test_the_example_in_the_prompt_is_the_public_test(level):
    for task in load(level):
        call, _, value = task.metadata["public"].removeprefix("assert ").partition(" == ")
        assert task.prompt.endswith(f"For example, {call} is {value}.")
        assert task.target["asserts"].count("assert") >= tiny_code.TESTS


def test_chance_is_the_share_of_the_most_common_function():
    counts = Counter(task.target["solution"] for task in load(1, "test", 20_000))
    share = counts.most_common(1)[0][1] / 20_000
    assert share <= tiny_code.chance(1) * 1.2
    assert len(counts) == round(1 / tiny_code.chance(1))
    for level in range(2, 6):
        counts = Counter(task.target["solution"] for task in load(level, "test", 3000))
        assert counts.most_common(1)[0][1] <= 10


def test_demonstrations_are_right_as_often_as_asked(verifier):
    task, rng = load(2)[0], np.random.default_rng(0)
    turns = [tiny_code.demonstrate(task, rng, right_share=0.5)[0] for _ in range(200)]
    share = np.mean([verdict.reward for verdict in verifier.verify_many([(Submission(turn), task) for turn in turns])])
    assert 0.35 < share < 0.65


def test_the_environment_takes_levels_and_refuses_others():
    env = gym.make("verigym:verigym/TinyCode-v0", level=3, verifier_options={"sandbox": "bubblewrap"})
    observation, _ = env.reset(seed=0)
    assert observation.startswith("Write a function f(x, y) that returns x times ")
    with pytest.raises(ConfigError, match="level must be a whole number from 1 to 5"):
        gym.make("verigym:verigym/TinyCode-v0", level=6)
