"""GEM's environments, played by the package itself, in an interpreter of its own: its pins do not go with ours."""

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from verigym.envs.conformance import check
from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.verifiers import Outcome

ID, GUESS = "verigym/GEM-v0", "game:GuessTheNumber-v0-easy"
APART = Path(sys.prefix) / "other-worlds"  # see the Makefile
PYTHON = None if any(metadata.distributions(name="gem-llm")) else str(APART / "bin" / "python")
if PYTHON and not list(APART.glob("lib/python*/site-packages/gem")):
    pytest.skip("gem-llm is not installed: make .venv/other-worlds/.installed", allow_module_level=True)


def make(game: str = GUESS, **options: Any) -> Any:
    return gym.make(ID, game=game, python=PYTHON, **options).unwrapped


def test_a_game_pays_what_it_pays() -> None:
    env = make(size=5)
    for task_id in env.tasks.ids:
        observation, _ = env.reset(options={"task": task_id})
        assert "between 1 and 10 (inclusive) within 4 turns" in observation
        assert observation.endswith("Enter your next guess.")
        low, high, reward, ended = 1, 10, 0.0, False
        while not ended:
            assert reward == 0.0
            guess = (low + high) // 2
            said, reward, ended, _, info = env.step(f"<think>\\boxed{{3}}?</think>I say \\boxed{{{guess}}}.")
            low, high = (guess + 1, high) if "higher" in said else (low, guess - 1)
        assert (reward, info["verdict"].outcome) == (1.0, Outcome.CORRECT)
        assert f"guessed the correct number {guess}" in info["verdict"].reason


def test_rewards_of_turns_come_with_their_turns_and_add_up() -> None:
    env = make("game:Sudoku-v0-easy")
    observation, _ = env.reset(seed=0)
    rewards, ended = [], False
    for row in range(1, 5):
        for column in range(1, 5):
            if ended:
                break
            _, reward, ended, _, info = env.step(f"\\boxed{{{row} {column} 1}}")
            rewards.append(reward)
    while not ended:
        _, reward, ended, _, info = env.step("\\boxed{1 1 1}")
        rewards.append(reward)
    parts = info["verdict"].components
    assert parts["last turn"] == rewards[-1]
    assert parts["earlier turns"] == pytest.approx(sum(rewards[:-1]))
    assert any(rewards[:-1]), observation


def test_a_turn_that_gem_cannot_read_earns_what_gem_says() -> None:
    env = make()
    env.reset(seed=0)
    said, reward, terminated, _, info = env.step("five")
    assert (said, reward, terminated) == ("At turn 1, you did not provide a valid guess.", -0.1, True)
    assert info["verdict"].outcome is Outcome.WRONG


def test_only_games_are_trained_on() -> None:
    assert make().isolated
    assert not make("rg:chain_sum").isolated  # some of reasoning-gym's scorers evaluate what they read


def test_the_data_sets_of_reasoning_gym_are_there() -> None:
    env = make("rg:chain_sum")
    observation, _ = env.reset(seed=0)
    terms = re.search(r"problem: ([-+ \d]+) =", observation)[1]
    value = sum(int(term.replace(" ", "")) for term in re.findall(r"[-+]? ?\d+", terms))
    assert env.step(f"\\boxed{{{value}}}")[1:3] == (1.0, True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"game": ""}, ConfigError, "needs a name, such as game="),
        ({"game": "game:Sudoku-v0-esy"}, UnknownNameError, "did you mean 'game:Sudoku-v0-easy'?"),
        ({"options": {"max_turns": 2, "min_number": "1"}}, ConfigError, "gem-llm cannot make 'game:Guess"),
        ({"game": "game:Wordle-v0-hard"}, ConfigError, "LookupError: Resource words not found."),
        ({"seed": -1}, ConfigError, "seed"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_a_game_keeps_to_every_rule_that_needs_no_golds() -> None:
    found = check(ID, game=GUESS, python=PYTHON, size=20)
    assert found.failures == ()
    assert len(found.unchecked) == 2
    assert all("gold" in unchecked.rule for unchecked in found.unchecked)
