"""A function of one's own as a tool in a sandbox: its values, its state, its faults, and what it cannot reach."""

import os

import pytest

from verigym.envs import QuestionEnv
from verigym.envs.sandboxed_tool import sandboxed_tool
from verigym.tasks import Task, TaskSet
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import ConfigError
from verigym.verifiers.sandbox import Limits


def shell(command: str, lines: int = 5) -> dict[str, object]:
    """Runs a shell command.

    Args:
        command: the command
        lines: how many lines of its output are shown
    """
    import os
    import subprocess

    global runs
    runs = globals().get("runs", 0) + 1
    if command == "crash":
        os._exit(1)
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip() or "failed")
    return {"output": done.stdout.splitlines()[:lines], "run": runs}


@pytest.fixture
def env(box):
    tool = sandboxed_tool(shell, sandbox=box, limits=Limits(cpu_seconds=1.0))
    tasks = TaskSet([Task("t", "What is 6 times 7?", "42")], name="one", split="train")
    env = QuestionEnv(tasks, verifier="exact", tools=tool, max_turns=9)
    env.reset(seed=1)
    yield env
    env.close()


def say(env, **arguments):
    return env.step(render_call("shell", arguments))[0]


def test_a_function_keeps_its_globals_within_an_episode(env):
    assert say(env, command="echo a; echo b", lines=1) == '{"output": ["a"], "run": 1}'
    assert say(env, command="echo c") == '{"output": ["c"], "run": 2}'
    env.reset(seed=1)
    assert say(env, command="echo d") == '{"output": ["d"], "run": 1}'


def test_its_faults_are_told_to_the_agent(env):
    assert say(env, command="exit 3").startswith("error: RuntimeError: failed")
    assert "must be string" in say(env, command=3)
    assert "what it kept from earlier calls is lost" in say(env, command="crash")
    assert say(env, command="echo a") == '{"output": ["a"], "run": 1}'


def test_it_cannot_reach_what_the_trainer_can(env):
    assert env.isolated
    assert str(os.getpid()) not in say(env, command="ps -e 2>/dev/null || ls /proc")
    assert "error" in say(env, command=f"cat {__file__}")


def test_a_function_without_a_source_of_its_own_is_refused(box):
    namespace = {}
    exec('def f() -> str:\n    "Says nothing."\n    return ""', namespace)
    with pytest.raises(ConfigError, match="source"):
        sandboxed_tool(namespace["f"], sandbox=box)
