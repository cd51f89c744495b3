"""reasoning-gym's generators: any of them, its own scorer, and nothing paid for a right answer among other words."""

import random
import re
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest

from verigym import tasks, verifiers
from verigym.envs.validation import validate
from verigym.tasks import Task, reasoning_gym
from verigym.tasks.errors import ConfigError, UnknownNameError, VerifierInputError
from verigym.verifiers import Outcome, Submission

pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed: pip install 'verigym[reasoning-gym]'")

# of each way to score: exact, number, several solutions, grid, words, yes or no, text made of the answer's letters
SOME = ("chain_sum", "gsm_symbolic", "sokoban", "kakurasu", "knights_knaves", "circuit_logic", "spell_backward")
VERIFIER = verifiers.make("reasoning_gym")


def reward(answer: str, task: Task) -> float:
    return VERIFIER.verify(Submission(f"<answer>{answer}</answer>"), task).reward


@pytest.mark.parametrize("dataset", SOME)
def test_gold_answers_earn_one_and_are_worth_nothing_in_a_sentence(dataset: str) -> None:
    for task in tasks.load("reasoning_gym", dataset=dataset, size=10):
        assert reward(task.target, task) == 1.0
        assert reward(f"the answer is {task.target}", task) == 0.0
        assert reward(f"{task.target} or so", task) == 0.0
        assert VERIFIER.verify(Submission(f"<think>{task.target}</think>no"), task).outcome is Outcome.UNPARSEABLE


@pytest.mark.parametrize("dataset", ["gsm_symbolic", "list_functions"])
def test_a_set_that_draws_ahead_has_tasks_beyond_what_it_drew(dataset: str) -> None:
    task = tasks.load("reasoning_gym", "test", dataset=dataset, size=60)[59]
    assert task.metadata["index"] > 1000
    assert reward(task.target, task) == 1.0


def test_a_scorer_that_pays_for_anything_pays_only_for_the_gold_answer() -> None:
    # its own scorer compares bool(answer) with bool(gold): any text earns 1
    for task in tasks.load("reasoning_gym", dataset="game_of_life_halting", size=10):
        assert reward(task.target, task) == 1.0
        assert reward("4", task) == reward("so", task) == 0.0
        assert reward("False" if task.target == "True" else "True", task) == 0.0


def test_partial_credit_is_the_scorers_own() -> None:
    (task,) = tasks.load("reasoning_gym", dataset="palindrome_generation", size=1)
    verdict = VERIFIER.verify(Submission("<answer>abcba</answer>"), task)
    assert (verdict.reward, verdict.outcome, dict(verdict.components)) == (0.05, Outcome.WRONG, {"score": 0.05})


def test_another_solution_than_the_generators_is_right() -> None:
    (task,) = tasks.load("reasoning_gym", dataset="countdown", size=1, config={"min_numbers": 3, "max_numbers": 3})
    assert reward(f"0 + {task.target}", task) < 1.0
    assert reward(f"({task.target})", task) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "__import__('os').system('touch {file}')",
        "[open('{file}', 'w')]",
        "1 if open('{file}', 'w') else 2",
        "(lambda: open('{file}', 'w'))()",
        "9**9**9**9",
        "x" * 19_000,
        "(" * 5000,
    ],
)
@pytest.mark.parametrize(
    "dataset", ["countdown", "spiral_matrix", "simple_integration", "n_queens", "string_insertion"]
)
def test_an_answer_is_never_run(dataset: str, answer: str, tmp_path) -> None:
    (task,) = tasks.load("reasoning_gym", dataset=dataset, size=1)
    file = tmp_path / "made"
    verdict = VERIFIER.verify(Submission(f"<answer>{answer.replace('{file}', str(file))}</answer>"), task)
    assert verdict.reward <= 0.05
    assert verdict.outcome in (Outcome.WRONG, Outcome.TIMEOUT, Outcome.ERROR)
    assert not file.exists()
    assert reward(task.target, task) == 1.0  # the scorer is alive


def test_tasks_depend_on_seed_and_index_and_splits_are_disjoint() -> None:
    train, test = (tasks.load("reasoning_gym", split, dataset="leg_counting", size=40) for split in ("train", "test"))
    assert not {task.prompt for task in train} & {task.prompt for task in test}
    longer = tasks.load("reasoning_gym", "test", dataset="leg_counting", size=50)
    assert [task.prompt for task in longer[:40]] == [task.prompt for task in test]
    other = tasks.load("reasoning_gym", dataset="leg_counting", size=40, seed=1)
    assert len({task.prompt for task in train} & {task.prompt for task in other}) < 5
    code = "from verigym import tasks; print(tasks.load('reasoning_gym', dataset='leg_counting', size=40).fingerprint)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == train.fingerprint


def test_no_global_random_state_is_touched() -> None:
    before = random.getstate(), repr(np.random.get_state())
    tasks.load("reasoning_gym", dataset="pool_matrix", size=2)[1]  # seeds NumPy's global generator
    assert (random.getstate(), repr(np.random.get_state())) == before


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ConfigError, "needs the name of a data set"),
        ({"dataset": "chain_sun"}, UnknownNameError, "did you mean 'chain_sum'?"),
        ({"dataset": "chain_sum", "config": {"min_term": 2}}, UnknownNameError, "did you mean 'min_terms'?"),
        ({"dataset": "chain_sum", "config": {"min_terms": 0}}, ConfigError, "refuses its configuration: min_terms"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message.replace("?", r"\?")) as caught:
        gym.make("verigym/ReasoningGym-v0", **options)
    assert "\n" not in str(caught.value)


def test_configuration_reaches_the_generator() -> None:
    task_set = tasks.load("reasoning_gym", dataset="chain_sum", size=5, config={"min_terms": 7, "max_terms": 7})
    assert {len(re.findall(r"\d+", task.prompt)) for task in task_set} == {7}


@pytest.mark.parametrize("dataset", ["chain_sum", "circuit_logic", "palindrome_generation"])
def test_null_policies_stay_within_chance(dataset: str) -> None:
    env = gym.make("verigym/ReasoningGym-v0", dataset=dataset, size=60).unwrapped
    found = validate(env)
    assert found.ok, found
    assert found.golds == 60


def test_tasks_that_name_no_gold_are_judged_by_their_scorer_alone() -> None:
    env = gym.make("verigym/ReasoningGym-v0", dataset="graph_color", size=20).unwrapped
    found = validate(env)
    assert (found.golds, found.unnamed, found.ok) == (0, 20, True)
    assert found.played == 20
    assert env.tasks[0].target is None


def test_a_task_of_another_set_cannot_be_judged() -> None:
    with pytest.raises(VerifierInputError, match="dataset, config, seed, index"):
        VERIFIER.verify(Submission("x"), Task("t", "p", "1"))


def test_without_the_extra_the_way_to_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasoning_gym, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'verigym\[reasoning-gym\]'"):
        tasks.load("reasoning_gym", dataset="chain_sum")
