"""Environments of Prime Intellect's verifiers, run by the package itself, in an interpreter of its own."""

import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from verigym.envs.conformance import check
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.verifiers import Outcome

ID = "verigym/PrimeVerifiers-v0"
WORLD = str(Path(__file__).with_name("prime_world.py"))
APART = Path(sys.prefix) / "other-worlds"  # see the Makefile
PYTHON = None if any(metadata.distributions(name="verifiers")) else str(APART / "bin" / "python")
if PYTHON and not list(APART.glob("lib/python*/site-packages/verifiers")):
    pytest.skip("verifiers is not installed: make .venv/other-worlds/.installed", allow_module_level=True)


def make(kind: str = "single", *, arguments: dict[str, Any] | None = None, **options: Any) -> Any:
    arguments = {"kind": kind, **(arguments or {})}
    return gym.make(ID, **{"environment": WORLD, "arguments": arguments, "python": PYTHON, **options}).unwrapped


def roles(info: dict[str, Any]) -> list[str]:
    return [message["role"] for message in info["messages"]]


def test_a_single_turn_is_judged_by_the_rubric() -> None:
    env = make(arguments={"weights": [1.0, 0.25]})
    for index, task_id in enumerate(env.tasks.ids):
        observation, info = env.reset(options={"task": task_id})
        assert observation == f"What is {index} + {index}?"
        assert info["messages"][0] == {"role": "system", "content": "Answer with the number."}
        said, reward, terminated, _, info = env.step(f"<think>twice that</think>{2 * index}")
        assert (said, reward, terminated) == ("", 1.25, True)
        assert info["verdict"].outcome is Outcome.CORRECT
        assert dict(info["verdict"].components) == {"right": 1.0, "short": 1.0, "num_turns": 1.0}
    env.reset(options={"task": task_id})
    assert env.step("7")[1] == 0.25


def test_an_environment_that_reads_the_reasoning_in_the_text_finds_it() -> None:
    env = make("thinks")
    for turn, paid in (("<think>twice</think>4", 1.5), ("4", 0.0)):
        env.reset(options={"task": env.tasks.ids[2]})
        assert env.step(turn)[1] == paid


def test_the_prompt_of_a_completion_is_the_users() -> None:
    env = make("completes")
    assert env.reset(seed=0)[1]["messages"] == [{"role": "user", "content": "Twice 1 is"}]
    assert env.step("2")[1] == 1.0


def test_the_splits_are_those_of_the_environment() -> None:
    assert [len(make(split=split).tasks) for split in ("train", "test")] == [6, 3]
    assert make(split="test").tasks[0].prompt == "What is 50 + 50?"


def test_a_multi_turn_environment_answers_and_ends_itself() -> None:
    env = make("guess")
    env.reset(options={"task": env.tasks.ids[0]})
    low, high, said, ended = 1, 100, "", False
    while not ended:
        guess = (low + high) // 2
        said, reward, ended, _, info = env.step(str(guess))
        low, high = (guess + 1, high) if said == "Higher." else (low, guess - 1)
    assert (said, reward, info["verdict"].outcome) == ("Yes.", 1.0, Outcome.CORRECT)


def test_its_draws_follow_the_task_and_no_other_episode() -> None:
    def told(env: Any) -> list[str]:
        return [env.step(str(guess))[0] for guess in (90, 75, 60, 45, 30, 15)]

    one, other = make("guess"), make("guess")
    one.reset(options={"task": one.tasks.ids[2]})
    alone = told(one)
    one.reset(options={"task": one.tasks.ids[2]})
    other.reset(options={"task": other.tasks.ids[3]})
    assert [one.step(str(guess))[0] for guess in (90, 75, 60)] == alone[:3]
    other.step("1")
    assert [one.step(str(guess))[0] for guess in (45, 30, 15)] == alone[3:]


def test_tools_are_called_and_their_results_are_told() -> None:
    env = make("tools")
    _, info = env.reset(options={"task": env.tasks.ids[4]})
    (tool,) = info["tools"]
    assert (tool["function"]["name"], list(tool["function"]["parameters"]["properties"])) == ("double", ["number"])
    said, _, terminated, _, info = env.step(f"Let me see. {render_call('double', {'number': 4})}")
    assert (said, terminated) == ("8", False)
    assert info["messages"] == [{"role": "tool", "name": "double", "content": "8"}]
    assert env.step(render_call("double", {"number": -1}))[0] == "negative"
    assert "error: tool call not run" in env.step("<tool_call>{</tool_call>")[0]
    _, reward, terminated, _, info = env.step("8")
    assert (reward, terminated) == (1.0, True)
    assert info["verdict"].components["double_calls"] == 2.0


def test_a_budget_ends_the_rollout_and_the_rubric_judges_it() -> None:
    env = make("tools", max_turns=1)
    env.reset(options={"task": env.tasks.ids[4]})
    *_, truncated, info = env.step(render_call("double", {"number": 4}))
    assert truncated
    assert info["verdict"].outcome is Outcome.WRONG
    assert info["verdict"].components["total_tool_calls"] == 1.0
    env.reset(options={"task": env.tasks.ids[4]})
    *_, truncated, info = env.step("<tool_call>8")
    assert (truncated, info["verdict"].outcome) == (True, Outcome.WRONG)
    twice = make("tools", max_turns=2)
    twice.reset(options={"task": twice.tasks.ids[4]})
    twice.step("<tool_call>8")  # which verifiers does not hear
    *_, truncated, info = twice.step(render_call("double", {"number": 4}))
    assert (truncated, info["verdict"].components["num_turns"]) == (True, 1.0)
    cut = make(max_tokens_per_turn=3)
    cut.reset(options={"task": cut.tasks.ids[4]})
    _, reward, _, truncated, info = cut.step("it is 8 or so")
    assert (reward, truncated, info["verdict"].outcome) == (0.0, True, Outcome.WRONG)
    assert info["verdict"].components["num_turns"] == 1.0


@pytest.mark.parametrize(
    ("kind", "turn", "reason"),
    [
        ("breaks", "8", "verifiers failed: ValueError: its rubric failed at breaks: KeyError: 'no such judge'"),
        ("as_said", "nan", "verifiers failed: it pays a reward of nan"),
        ("as_said", "-inf", "verifiers failed: it pays a reward of -inf"),
        ("guess", "eight", "verifiers failed: ValueError: invalid literal for int()"),
        ("rewrites", "1", "verifiers failed: ValueError: it rewrites what was said before"),
    ],
)
def test_what_fails_in_it_is_an_infrastructure_error(kind: str, turn: str, reason: str) -> None:
    env = make(kind)
    env.reset(options={"task": env.tasks.ids[0]})
    *_, terminated, _, info = env.step(turn)
    assert terminated
    assert info["verdict"].outcome is Outcome.INFRA_ERROR
    assert info["verdict"].reason.startswith(reason)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"environment": "no_such_env"}, ConfigError, "Could not import 'no_such_env' environment"),
        ({"environment": "nowhere.py"}, ConfigError, "there is no file nowhere.py"),
        ({"arguments": {"kind": "single", "wieghts": []}}, ConfigError, "unexpected keyword argument 'wieghts'"),
        ({"arguments": {"kind": "empty"}}, ConfigError, "its data set for train is empty"),
        ({"arguments": {"kind": "group"}}, ConfigError, "its rubric has rewards for a group of rollouts"),
        ({"split": "eval"}, UnknownNameError, "no split of 'prime' named 'eval'"),
    ],
)
def test_what_cannot_be_played_is_refused_in_one_line(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        gym.make(ID, **{"environment": WORLD, "python": PYTHON, **options})
    assert "\n" not in str(caught.value)


def test_training_needs_a_word_on_isolation() -> None:
    assert not make().isolated
    assert make(isolated=True).isolated


@pytest.mark.parametrize("kind", [pytest.param("single", marks=pytest.mark.slow), "tools"])
def test_it_keeps_to_every_rule_that_needs_no_golds(kind: str) -> None:
    found = check(ID, environment=WORLD, arguments={"kind": kind}, python=PYTHON)
    assert found.failures == ()
    assert len(found.unchecked) == 2
    assert all("gold" in unchecked.rule for unchecked in found.unchecked)
