"""Turns, budgets, forks and closing of an environment."""

import json
import threading

import gymnasium as gym
import numpy as np
import pytest

from verigym import verifiers
from verigym.envs import Budget, QuestionEnv, Reply, TextEnv
from verigym.tasks import Task, TaskSet
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import (
    ConfigError,
    EnvClosedError,
    EnvUsageError,
    SnapshotError,
    UnknownNameError,
)
from verigym.verifiers import Outcome, Verdict, Verifier

CALCULATOR = "verigym/Calculator-v0"
CALL = render_call("calculator", {"expression": "12 * 3"})


def question(**kwargs):
    """An environment of two tasks of our own."""
    task_set = TaskSet([Task("a", "What is 12 * 3?", "36"), Task("b", "And 5 * 5?", "25")], name="two", split="train")
    return QuestionEnv(task_set, **kwargs)


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


def test_calls_and_replies_are_bounded():
    def repeat(text: str, times: int) -> str:
        """Repeats a text."""
        return text * times

    env = gym.make("verigym/Arithmetic-v0", tools=repeat, max_turns=9, max_calls=2, max_reply=10).unwrapped
    one, ten = (render_call("repeat", {"text": "ab", "times": times}) for times in (1, 10))
    for _ in range(2):
        env.reset(seed=1)
        *_, info = env.step(one + ten + one)
        said = [message["content"] for message in info["messages"]]
        assert said == ["ab", "ababababab\n... (cut: 20 characters)",
                        "error: not run, as all 2 calls of this task are used up"]  # fmt: skip
    with pytest.raises(ConfigError, match="max_reply must be a whole number of at least 1"):
        gym.make("verigym/Arithmetic-v0", max_reply=0)


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
