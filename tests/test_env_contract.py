"""What every registered environment keeps to: Gymnasium's rules, its own rewards, no leak, no surprise."""

import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from verigym.envs import registered_ids
from verigym.envs.validation import spread, validate
from verigym.tasks import Task, TaskSet
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import (
    EnvClosedError,
)
from verigym.verifiers import Outcome

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
SOURCES = {"verigym/GSM8K-v0": "gsm8k", "verigym/MATH500-v0": "math500"}
CALCULATOR = "verigym/Calculator-v0"
CANARY = "7351946208"
CALL = render_call("calculator", {"expression": "12 * 3"})

each_id = pytest.mark.parametrize(
    "env_id", [pytest.param(env_id, marks=NEEDS_DATA if env_id in SOURCES else ()) for env_id in registered_ids()]
)


def make(env_id, **kwargs):
    if env_id in SOURCES and "task_set" not in kwargs:
        kwargs.setdefault("source", str(DATA / SOURCES[env_id]))
    return gym.make(env_id, **kwargs)


def mutated(gold):
    """A gold answer with another number in it, or with one where there is none."""
    return gold.replace("}", "+98765431}", 1) if gold[-2:-1].isdigit() else "\\boxed{98765431}"


def play(env, actions, **reset):
    """Everything that the environment says to these actions, verdicts as what an agent's log shows of them."""
    said = [env.reset(**reset)]
    for action in actions:
        *step, info = env.step(action)
        verdict = info.pop("verdict", None)
        said.append((*step, info, verdict and (verdict.reward, verdict.outcome, verdict.reason)))
        if step[2] or step[3]:
            break
    return said


@each_id
def test_gymnasium_checks_each_environment_without_a_warning(env_id):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(env_id).unwrapped)


@each_id
def test_all_gold_answers_verify_and_null_policies_stay_below_chance(env_id):
    found = validate(make(env_id).unwrapped)
    assert found.failures == ()
    assert found.golds == len(make(env_id).unwrapped.tasks)
    assert found.earning == [], dict(found.null_rewards)
    assert set(found.null_rewards) >= {"empty", "echo", "constant", "spray", "random"}


@NEEDS_DATA
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 660)])
def test_chance_of_gsm8k_is_what_the_most_common_answer_earns(split, count):
    env = make("verigym/GSM8K-v0", split=split).unwrapped
    answers = [task.target for task in env.tasks]
    share = max(map(answers.count, set(answers))) / len(answers)
    assert len(answers) == count
    assert share <= env.chance <= 0.04


@pytest.mark.parametrize("level", [1, 2, 3])
def test_chance_of_generated_tasks_follows_the_level(level):
    from verigym.tasks import arithmetic, calculator

    assert gym.make("verigym/Arithmetic-v0", level=level).unwrapped.chance == arithmetic.chance(level)
    assert gym.make(CALCULATOR, level=level).unwrapped.chance == calculator.chance(level)


@each_id
def test_gold_answers_earn_one_and_mutated_golds_nothing(env_id):
    env = make(env_id)
    for task in spread(env.unwrapped.tasks, 40):
        for gold in env.unwrapped.golds(task):
            for action, expected in ((gold, 1.0), (mutated(gold), 0.0)):
                env.reset(options={"task": task.id})
                _, reward, terminated, truncated, info = env.step(action)
                assert (reward, terminated, truncated) == (expected, True, False), (task, action, info)


@each_id
def test_gold_is_nowhere_before_the_verdict_nor_in_its_reason(env_id):
    task_set = TaskSet([Task("one", "What is asked?", CANARY)], name="canary", split="train")
    env = make(env_id, task_set=task_set, render_mode="ansi", max_turns=3).unwrapped
    seen = [*env.reset(seed=1), env.snapshot(), env.render(), env.tools, repr(env)]
    for action in (CALL, "<tool_call>{", "I do not know: \\boxed{1}"):
        observation, reward, terminated, truncated, info = env.step(action)
        if terminated or truncated:
            seen.append(info.pop("verdict").reason)
        else:
            seen += [env.snapshot(), env.tokens_left()]
        seen += [observation, reward, info, env.render()]
        if terminated or truncated:
            break
    else:
        pytest.fail("the episode did not end")
    assert CANARY not in repr(seen)


@each_id
def test_members_of_a_group_start_from_one_state(env_id):
    one, other = make(env_id), make(env_id)
    task_id = one.unwrapped.tasks[3].id
    assert one.reset(seed=5, options={"task": task_id}) == other.reset(seed=5, options={"task": task_id})


@each_id
def test_first_info_has_the_task_the_tools_and_the_messages_that_the_observation_joins(env_id):
    env = make(env_id)
    observation, info = env.reset(seed=2)
    assert set(info) == {"task_id", "tools", "messages"}
    assert env.unwrapped.tasks.get(info["task_id"]).prompt in observation
    assert observation == "\n\n".join(message["content"] for message in info["messages"])
    assert [message["role"] for message in info["messages"]] == ["user"]
    assert [tool["function"]["name"] for tool in info["tools"]] == (["calculator"] if env_id == CALCULATOR else [])


PROCESS = """
import json, sys, gymnasium as gym
env = gym.make("verigym:" + sys.argv[1], **json.loads(sys.argv[2]))
said = [env.reset(seed=11), env.reset()]
for action in json.loads(sys.argv[3]):
    observation, reward, terminated, truncated, info = env.step(action)
    verdict = info.pop("verdict", None)
    said.append([observation, reward, terminated, truncated, info, verdict and verdict.reason])
    if terminated or truncated:
        break
print(json.dumps(said))
"""


@each_id
def test_same_seed_and_actions_give_the_same_episode_in_any_process(env_id):
    kwargs = {"source": str(DATA / SOURCES[env_id])} if env_id in SOURCES else {}
    command = [sys.executable, "-c", PROCESS, env_id, json.dumps(kwargs), json.dumps([CALL, "\\boxed{3}"])]
    runs = [
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert json.loads(runs[0].stdout)[0] != json.loads(runs[0].stdout)[1]


@each_id
def test_no_global_random_state_is_touched(env_id):
    before = random.getstate(), repr(np.random.get_state())
    env = make(env_id)
    play(env, ["\\boxed{3}"], seed=3)
    env.reset()
    env.action_space.sample()
    assert (random.getstate(), repr(np.random.get_state())) == before


HOSTILE = {
    "empty": "",
    "blank": " \n\t",
    "NUL": "\x00\\boxed{1}\x00",
    "lone surrogate": "\ud800 \\boxed{\udfff}",
    "unclosed": "<tool_call>" * 2000 + "\\boxed{" * 2000 + "<think>" * 2000,
    "braces": "{" * 20_000,
    "deep call": '<tool_call>{"name": "calculator", "arguments": ' + '{"a":' * 3000 + "</tool_call>",
    "surrogate in a call": '<tool_call>{"name": "calculator", "arguments": {"expression": "\\ud800"}}</tool_call>',
    "unknown tool": render_call("os.system", {"expression": "1"}),
    "wrong arguments": render_call("calculator", {"expression": ["1"], "x": None}),
    "other scripts": "答えは\\boxed{٣} 🙂",
    "ten megabytes": "0123456789" * 1_000_000,
    "a megabyte of a call": render_call("calculator", {"expression": "1+" * 500_000}),
}


@each_id
@pytest.mark.parametrize("name", HOSTILE)
def test_no_action_raises(env_id, name):
    env = make(env_id, max_tokens_per_turn=None, max_turns=2)
    env.reset(seed=1)
    for _ in range(2):
        observation, reward, terminated, truncated, _ = env.step(HOSTILE[name])
        assert isinstance(observation, str)
        assert reward == 0.0
        if terminated or truncated:
            return
    pytest.fail("the episode did not end")


@each_id
def test_wrappers_of_gymnasium_work(env_id):
    env = gym.wrappers.RecordEpisodeStatistics(gym.wrappers.TimeLimit(make(env_id), 3))
    _, info = env.reset(seed=4)
    gold = env.unwrapped.golds(env.unwrapped.tasks.get(info["task_id"]))[0]
    *_, info = env.step(gold)
    assert (info["episode"]["r"], info["episode"]["l"]) == (1.0, 1)


@each_id
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_vector_environments_step(env_id, mode):
    kwargs = {"source": str(DATA / SOURCES[env_id])} if env_id in SOURCES else {}
    vector_kwargs = {"shared_memory": False} if mode == "async" else {}
    envs = gym.make_vec(env_id, num_envs=2, vectorization_mode=mode, vector_kwargs=vector_kwargs, **kwargs)
    observations, info = envs.reset(seed=7)
    assert list(info["task_id"]) == [make(env_id).reset(seed=seed)[1]["task_id"] for seed in (7, 8)]
    assert len(observations) == 2
    _, rewards, terminated, _, info = envs.step(("\\boxed{-1}", "nothing"))
    assert rewards.tolist() == [0.0, 0.0]
    assert terminated.all()
    assert [verdict.outcome for verdict in info["verdict"]] == [Outcome.WRONG, Outcome.UNPARSEABLE]
    envs.close()


@each_id
def test_a_closed_environment_says_so_and_can_be_closed_again(env_id):
    env = make(env_id)
    env.reset(seed=1)
    env.close()
    env.close()
    with pytest.raises(EnvClosedError):
        env.step("x")
    with pytest.raises(EnvClosedError):
        env.reset()
