"""The contract of every registered environment, and what is particular to budgets, forks, closing and loading."""

import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from verigym import tasks, verifiers
from verigym.envs import Budget, QuestionEnv, Reply, TextEnv, registered_ids, registration
from verigym.envs.mixture import EnvSpec
from verigym.envs.null_policies import WITH_TOOLS
from verigym.envs.spaces import TextSpace
from verigym.envs.validation import spread, validate
from verigym.tasks import Task, TaskSet, _rows
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import (
    ConfigError,
    EnvClosedError,
    EnvUsageError,
    SnapshotError,
    TaskDataError,
    UnknownNameError,
)
from verigym.verifiers import Outcome, Submission, Verdict, Verifier

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


def question(**kwargs):
    """An environment of two tasks of our own."""
    task_set = TaskSet([Task("a", "What is 12 * 3?", "36"), Task("b", "And 5 * 5?", "25")], name="two", split="train")
    return QuestionEnv(task_set, **kwargs)


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


# The contract of each id.


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
    ids=str,
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


def test_plugins_are_found_when_an_unknown_id_is_asked_for_and_a_broken_one_is_left_out(monkeypatch, tmp_path):
    (tmp_path / "verigym_plugin_of_this_test.py").write_text(
        "from verigym.envs import register\n"
        "register('plugin/Sums-v0', kwargs={'task_set': 'arithmetic', 'chance': 0.2})\n"
    )
    for name, module in (("good", "verigym_plugin_of_this_test"), ("bad", "verigym_no_such_module")):
        package = tmp_path / f"{name}-1.dist-info"
        package.mkdir()
        (package / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (package / "entry_points.txt").write_text(f"[verigym.envs]\n{name} = {module}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registration, "_IDS", registered_ids())
    registration.load_plugins.cache_clear()
    with pytest.warns(UserWarning, match="plug-in 'bad'"):
        env = EnvSpec("plugin/Sums-v0").make()
    assert env.unwrapped.chance == 0.2
    assert "plugin/Sums-v0" in registered_ids()
    del gym.registry["plugin/Sums-v0"]


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
    for answer in range(10, 40):  # within a tick of the file system's clock
        write_question(tmp_path / "train.jsonl", answer, age=0.0)
        targets.append(tasks.load("gsm8k", source=tmp_path)[0].target)
    assert targets == [str(answer) for answer in range(10, 40)]


def test_environments_made_in_threads_read_once(tmp_path, readings):
    write_question(tmp_path / "train.jsonl", 41)
    threads = [
        threading.Thread(target=gym.make, args=("verigym/GSM8K-v0",), kwargs={"source": str(tmp_path)})
        for _ in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(readings) == 1


# Episodes.


def test_a_calculator_episode_calls_and_then_answers():
    env = gym.make(CALCULATOR)
    _, info = env.reset(seed=1)
    task = env.unwrapped.tasks.get(info["task_id"])
    call = render_call("calculator", {"expression": task.metadata["expression"]})
    observation, reward, terminated, truncated, info = env.step(call)
    assert (observation, reward, terminated, truncated) == (task.target, 0.0, False, False)
    assert info == {
        "task_id": task.id,
        "messages": [{"role": "tool", "name": "calculator", "content": task.target}],
    }
    *_, reward, terminated, truncated, info = env.step(f"\\boxed{{{task.target}}}")
    assert (reward, terminated, truncated, info["verdict"].outcome) == (1.0, True, False, Outcome.CORRECT)


def test_calls_that_fail_are_answered_with_what_is_wrong():
    env = gym.make(CALCULATOR)
    env.reset(seed=1)
    observation, *_ = env.step('<tool_call>{"name": "calculater", "arguments": {}}</tool_call><tool_call>{"a"')
    assert "did you mean 'calculator'" in observation
    assert "not valid JSON" in observation


def test_demonstrations_play_to_the_end():
    for env_id in (CALCULATOR, "verigym/Arithmetic-v0"):
        env = gym.make(env_id)
        for seed in range(20):
            env.reset(seed=seed)
            ended = [env.step(turn)[2] for turn in env.unwrapped.demonstration(np.random.default_rng(seed))]
            assert ended == [False] * (len(ended) - 1) + [True]


def test_the_last_turn_of_the_budget_truncates_and_is_judged():
    env = gym.make(CALCULATOR, max_turns=2)
    env.reset(seed=1)
    assert env.step(CALL)[2:4] == (False, False)
    _, reward, terminated, truncated, info = env.step(CALL)
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert info["verdict"].outcome is Outcome.UNPARSEABLE


def test_an_answer_inside_a_call_is_no_answer():
    env = question(tools="verigym.tasks.calculator:calculator", max_turns=1)
    env.reset(options={"task": "a"})
    _, reward, _, truncated, info = env.step(render_call("calculator", {"expression": "\\boxed{36}"}))
    assert (reward, truncated, info["verdict"].outcome) == (0.0, True, Outcome.UNPARSEABLE)


def test_a_turn_over_its_token_budget_is_cut_and_judged_as_it_stands():
    env = question(max_tokens_per_turn=5)
    env.reset(options={"task": "a"})
    _, reward, terminated, truncated, _ = env.step("one two three four five six")
    assert (reward, terminated, truncated) == (0.0, False, True)
    env.reset(options={"task": "a"})
    assert env.step("\\boxed{36}")[2:4] == (True, False)  # \ boxed { 36 } are five


def test_announced_tokens_replace_the_estimate():
    env = question(max_tokens_per_turn=5)
    env.reset(options={"task": "a"})
    env.announce(3)
    assert env.step("So it must be, I think: \\boxed{36}")[1:4] == (1.0, True, False)
    env.reset(options={"task": "a"})
    env.announce(5, cut=True)
    assert env.step("So")[1:4] == (0.0, False, True)


def test_a_cut_turn_runs_no_tool():
    env = question(tools="verigym.tasks.calculator:calculator", max_turns=3)
    env.reset(options={"task": "a"})
    env.announce(9, cut=True)
    observation, _, _, truncated, info = env.step(CALL)
    assert (observation, truncated, info["messages"]) == ("", True, [])


def test_tokens_of_the_episode_are_bounded_over_its_turns():
    env = question(tools="verigym.tasks.calculator:calculator", max_turns=9, max_tokens_per_episode=30)
    env.reset(options={"task": "a"})
    assert env.tokens_left() == 30
    env.announce(20)
    assert env.step(CALL)[3] is False
    assert env.tokens_left() == 10
    env.announce(10)
    assert env.step(CALL)[3] is True


def test_rewards_of_the_turns_and_the_verdict_sum_to_the_return():
    class Paid(TextEnv):
        def respond(self, action):
            return Reply(final=True) if action == "36" else Reply([{"role": "user", "content": "go on"}], reward=0.25)

    task_set = TaskSet([Task("a", "?", "36")], name="one", split="train")
    env = Paid(task_set, "exact", budget=Budget(3))
    env.reset()
    assert [env.step(action)[1] for action in ("x", "y", "36")] == [0.25, 0.25, 1.0]


def test_wrong_use_is_refused_in_one_line():
    env = question()
    with pytest.raises(EnvUsageError, match="call reset first"):
        env.step("x")
    with pytest.raises(UnknownNameError, match="did you mean 'task'"):
        env.reset(options={"tasks": "a"})
    with pytest.raises(UnknownNameError, match="known: a, b"):
        env.reset(options={"task": "zzz"})
    env.reset()
    with pytest.raises(EnvUsageError, match="not int"):
        env.step(3)
    env.step("done")
    with pytest.raises(EnvUsageError, match="call reset first"):
        env.step("again")
    with pytest.raises(EnvUsageError, match="snapshot outside an episode"):
        env.snapshot()


def test_a_name_of_any_length_is_refused_in_a_short_line():
    with pytest.raises(UnknownNameError) as caught:
        question().reset(options={"task": "x" * 10_000_000})
    assert len(str(caught.value)) < 1000


def test_what_the_user_changes_in_an_info_changes_nothing_inside():
    env = gym.make(CALCULATOR, render_mode="ansi")
    _, info = env.reset(seed=1)
    info["messages"][0]["content"] = "changed"
    info["tools"][0]["function"]["parameters"]["properties"].clear()
    assert "changed" not in env.render()
    assert env.reset(seed=1)[1]["tools"][0]["function"]["parameters"]["properties"]


def test_unseeded_resets_go_through_the_tasks_and_repeat_with_the_first_seed():
    env = gym.make(CALCULATOR)
    runs = [[env.reset(seed=3)[1]["task_id"]] + [env.reset()[1]["task_id"] for _ in range(30)] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 25


# Forks.


def test_a_fork_goes_on_like_the_original():
    env, other = gym.make(CALCULATOR), gym.make(CALCULATOR)
    env.reset(seed=9)
    before = env.step(CALL)
    snapshot = json.loads(json.dumps(env.unwrapped.snapshot()))
    rest = [CALL, "\\boxed{5}"]
    observation, info = other.reset(options={"snapshot": snapshot})
    assert observation == before[0]
    assert info["messages"][-1] == before[4]["messages"][-1]
    assert [message["role"] for message in info["messages"]] == ["user", "assistant", "tool"]
    assert other.unwrapped.snapshot() == snapshot
    for action in rest:
        *left, left_info = env.step(action)
        *right, right_info = other.step(action)
        assert left == right
        assert repr(left_info) == repr(right_info)
    assert left[2] is True


def test_a_fork_keeps_the_budget_that_was_used():
    env = gym.make(CALCULATOR, max_turns=3, max_tokens_per_episode=100)
    env.reset(seed=9)
    env.unwrapped.announce(60)
    env.step(CALL)
    snapshot = env.unwrapped.snapshot()
    env.reset(options={"snapshot": snapshot})
    assert env.unwrapped.tokens_left() == 40
    assert env.step(CALL)[3] is False
    assert env.step(CALL)[3] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "replays to other messages"),
        ({"task": "no such task"}, "another environment"),
        ({"task_hash": "0"}, "is not the one"),
        ({"turns": [["\\boxed{1}", 3]]}, "ended on replay"),
        ({"turns": 3}, "must come from snapshot"),
        ({"seed": None}, "must come from snapshot"),
    ],
)
def test_a_snapshot_that_does_not_fit_is_refused(change, message):
    env = gym.make(CALCULATOR).unwrapped
    env.reset(seed=9)
    env.step(CALL)
    with pytest.raises(SnapshotError, match=message):
        env.reset(options={"snapshot": {**env.snapshot(), **change}})


def test_a_snapshot_with_a_changed_gold_answer_is_refused():
    env = question()
    env.reset(options={"task": "a"})
    changed = QuestionEnv(TaskSet([Task("a", "What is 12 * 3?", "37")], name="two", split="train"))
    with pytest.raises(SnapshotError, match="is not the one"):
        changed.reset(options={"snapshot": env.snapshot()})
    with pytest.raises(EnvUsageError, match="not both"):
        env.reset(options={"snapshot": env.snapshot(), "task": "a"})


# Closing.


class Waiting(Verifier):
    """Waits until it is closed."""

    def __init__(self):
        self.waits, self.closed = threading.Event(), threading.Event()

    def verify(self, submission, task):
        self.waits.set()
        self.closed.wait(60)
        return Verdict.infra_error("the verifier was closed")

    def close(self):
        self.closed.set()


def step_in_thread(env):
    """Starts a step that waits for its verifier; returns the thread and what the step raised."""
    raised = []
    env.reset()

    def step():
        try:
            env.step("x")
        except EnvClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=step)
    thread.start()
    return thread, raised


def test_close_from_another_thread_ends_a_step_that_waits_for_the_environments_verifier(monkeypatch):
    verifier = Waiting()
    monkeypatch.setitem(verifiers.verifier._REGISTRY, "waiting", lambda: verifier)
    env = question(verifier="waiting")
    thread, raised = step_in_thread(env)
    assert verifier.waits.wait(30)
    env.close()
    thread.join(30)
    assert not thread.is_alive()
    assert raised


def test_close_ends_a_step_that_waits_for_a_shared_verifier_and_leaves_the_verifier_open():
    verifier = Waiting()
    env, other = question(verifier=verifier), question(verifier=verifier)
    thread, raised = step_in_thread(env)
    assert verifier.waits.wait(30)
    env.close()
    thread.join(30)
    assert not thread.is_alive()
    assert raised
    assert not verifier.closed.is_set()
    verifier.close()
    other.reset()
    assert other.step("x")[4]["verdict"].outcome is Outcome.INFRA_ERROR


def test_a_shared_verifier_judges_and_its_exceptions_reach_the_step():
    class Broken(Verifier):
        def verify(self, submission, task):
            raise TimeoutError("of its own")

    env = question(verifier=verifiers.make("math"))
    env.reset(options={"task": "a"})
    assert env.step("\\boxed{36}")[1] == 1.0
    env = question(verifier=Broken())
    env.reset()
    with pytest.raises(TimeoutError, match="of its own"):
        env.step("x")


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

    assert set(validate(question(verifier=Generous())).earning) == {"empty", "echo", "constant", "spray", "random"}
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
