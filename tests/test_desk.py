"""Desk: errands of five levels, a pure function of their index, that nobody passes without doing what was asked."""

import json
import re
from collections import Counter

import gymnasium as gym
import numpy as np
import pytest

from verigym import tasks
from verigym.envs.conformance import check
from verigym.envs.validation import validate
from verigym.tasks import desk
from verigym.tasks.canonical import parse_turn, render_call
from verigym.tasks.errors import ConfigError

each_level = pytest.mark.parametrize("level", range(1, 6))


def load(level, split="train", size=40, seed=0):
    return tasks.load("desk", split=split, level=level, size=size, seed=seed)


def request(task):
    """All that the user says."""
    return json.dumps(task.metadata["user"])


@each_level
def test_tasks_are_a_function_of_seed_and_index(level):
    few, many = load(level, size=5), load(level, size=50)
    assert list(few) == list(many)[:5]
    assert list(few) != list(load(level, size=5, seed=1))


@each_level
def test_splits_share_no_request(level):
    requests = {split: {request(task) for task in load(level, split, 800)} for split in ("train", "test")}
    assert not requests["train"] & requests["test"]


@each_level
def test_chance_is_the_share_of_the_most_common_request(level):
    for split in ("train", "test"):
        counts = Counter(map(request, load(level, split, 1000)))
        assert counts.most_common(1)[0][1] <= max(desk.chance(level) * 3000, 2), split


@each_level
def test_golds_verify_and_null_policies_earn_nothing(level):
    found = validate(gym.make("verigym/Desk-v0", level=level).unwrapped, limit=100, played=100)
    assert found.ok, found
    assert found.golds == 100
    assert max(found.null_rewards.values()) == 0.0


def test_a_hard_level_keeps_to_every_rule_too():
    found = check("verigym/Desk-v0", level=5)
    assert found.failures == found.unchecked == ()


def test_levels_go_from_one_call_to_ten_turns_with_parallel_calls():
    turns = {level: [task.target["turns"] for task in load(level)] for level in range(1, 6)}
    calls = {level: [sum(len(t) for t in one if not isinstance(t, str)) for one in turns[level]] for level in turns}
    assert set(calls[1]) == set(calls[2]) == {1}
    assert {len(one) for one in turns[1]} == {2}
    assert {len(one) for one in turns[4]} == {4}
    assert {len(one) for one in turns[5]} == {10}
    assert any(len(turn) > 1 for one in turns[3] for turn in one if not isinstance(turn, str))
    assert min(calls[5]) >= 7


def test_every_tool_of_the_desk_is_needed():
    turns = [turn for level in (2, 3, 4) for task in load(level, size=100) for turn in task.target["turns"]]
    used = {call["name"] for turn in turns if not isinstance(turn, str) for call in turn}
    assert used == {tool["function"]["name"] for tool in gym.make("verigym/Desk-v0", level=2).unwrapped.tools}


def refusing(task):
    """Refuses each part of what is asked, in the words of the user."""
    parts = re.split(r", (?:and )?| and ", task.prompt.rstrip("."))
    return " ".join(f"[{part}: cannot]" for part in parts)


@pytest.mark.parametrize("level", [3, 5])
def test_refusing_everything_earns_nothing_and_refusing_nothing_neither(level):
    env, impossible = gym.make("verigym/Desk-v0", level=level).unwrapped, 0
    for task in load(level, size=200):
        owed = task.target.get("tell", {})
        for keep in (False, True):
            env.reset(options={"task": task.id})
            reward = 0.0
            for turn in task.target["turns"]:
                if isinstance(turn, str):  # the right calls and no refusal, or no call and nothing but refusals
                    text = re.sub(r"\[[^]]*: cannot\]", "", turn) if keep else refusing(task)
                else:
                    text = "".join(render_call(**call) for call in turn) if keep else ""
                if text:
                    _, reward, ended, _, _ = env.step(text)
                    if ended:
                        break
            refused = "cannot" in owed.values()
            impossible += refused
            assert reward == float(keep and not refused), task
    assert impossible > 100


def test_demonstrations_of_the_first_level_teach_forms_and_not_which_one_pays():
    env, rng = gym.make("verigym/Desk-v0").unwrapped, np.random.default_rng(0)
    rewards, seen = [], Counter()
    for task in load(1, size=300):
        env.reset(options={"task": task.id})
        turns = env.demonstration(rng)
        (call,) = parse_turn(turns[0]).calls
        assert call.arguments == {"order": task.metadata["order"]}
        for turn in turns:
            _, reward, ended, _, _ = env.step(turn)
        assert ended
        rewards.append(reward)
        seen[task.prompt.split(" order")[0], turns[1].split(" order")[0]] += 1
    assert len(seen) == 9
    assert min(seen.values()) >= 15  # whatever is asked for, each of the three
    assert 0.4 < np.mean(rewards) < 0.5


@each_level
def test_demonstrations_end_the_task(level):
    env, rng = gym.make("verigym/Desk-v0", level=level).unwrapped, np.random.default_rng(0)
    rewards = []
    for task in load(level, size=60):
        env.reset(options={"task": task.id})
        *_, (_, reward, ended, _, _) = [env.step(turn) for turn in env.demonstration(rng)]
        assert ended
        rewards.append(reward)
    assert 0.1 < np.mean(rewards) < 0.7


def test_the_user_gives_the_day_when_asked_and_changes_its_mind():
    task = load(5, size=1)[0]
    env = gym.make("verigym/Desk-v0", level=5).unwrapped
    env.reset(options={"task": task.id})
    said = [env.step(turn)[0] for turn in env.demonstration(np.random.default_rng(1))]
    assert any(re.fullmatch(r"To day \d+\.", text) for text in said)
    assert any(text.startswith("No, I changed my mind: ") for text in said)
    assert said[-1] == "That is all, thank you."


def test_levels_and_options_are_refused_in_one_line():
    with pytest.raises(ConfigError, match="level must be a whole number from 1 to 5"):
        gym.make("verigym/Desk-v0", level=6)
    with pytest.raises(ConfigError, match="max_calls must be a whole number of at least 1"):
        gym.make("verigym/Desk-v0", max_calls=0)
