"""The Python tool: variables live across turns, a crash replays the session, episodes do not see each other."""

import json
import runpy
from pathlib import Path

import gymnasium as gym
import pytest

from verigym.envs.mixture import EnvSpec
from verigym.envs.python_tool import MAX_SHOWN, Interpreter, python_tool
from verigym.task_sampler import TaskSampler
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import ConfigError, SandboxError
from verigym.verifiers.sandbox import Limits, SandboxResult, Session, Status

make_sandbox = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))["make"]


@pytest.fixture
def tool(box):
    tool = python_tool(sandbox=box, cpu_seconds=1.0)
    yield tool
    tool.close()


def run(tool, code):
    return tool.call({"code": code})


def test_variables_live_across_calls_and_end_with_the_episode(tool):
    assert run(tool, "x = 6\ndef f(y): return x * y") == "(no output)"
    assert run(tool, "print('a')\nf(7)") == "a\n42"
    tool.reset()
    assert "NameError" in run(tool, "x")


def test_an_error_is_told_and_ends_nothing(tool):
    run(tool, "x = 1")
    told = run(tool, "x / 0")
    assert told.splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert run(tool, "x") == "1"


@pytest.mark.parametrize("ending", ["import os; os._exit(1)", "while True: pass", "import ctypes; ctypes.string_at(0)"])
def test_a_crash_replays_the_session(tool, ending):
    run(tool, "x = [1]")
    run(tool, "x.append(2)")
    told = run(tool, f"x.append(3)\n{ending}")
    assert "The interpreter was ended" in told
    assert "The variables of earlier calls are there again." in told
    assert run(tool, "x") == "[1, 2]"


def test_code_that_ends_the_session_on_replay_loses_its_variables_and_fails_nothing(box):
    tool = Interpreter(box, Limits(cpu_seconds=1.0))
    assert tool.python("x = 1") == "(no output)"
    tool._sources.append("import os; os._exit(1)")  # what might have lived by the clock the first time
    assert "The interpreter was ended" in tool.python("import os; os._exit(1)")
    first, *told = tool.python("x").splitlines()
    assert first == "The interpreter was ended while it ran the earlier calls again: their variables are lost."
    assert "NameError" in told[-1]
    assert tool.python("y = 2") == "(no output)"
    assert "there again" in tool.python("import os; os._exit(1)")
    assert tool.python("y") == "2"
    tool.close()


def test_code_that_takes_its_sandbox_down_is_not_our_failure(box):
    """The session fails as if by our fault, each time; other jobs run."""

    class Failing(Session):
        alive = True

        def execute(self, source):
            self.alive = source != "fail"
            return SandboxResult(Status.OK if self.alive else Status.INFRA_ERROR, "the server fell silent")

        def call(self, call): ...

        def close(self): ...

    class Box(type(box)):
        def __init__(self):
            self.works = True

        def session(self, limits=None):
            return Failing()

        def run(self, job, **kwargs):
            return box.run(job, **kwargs) if self.works else SandboxResult(Status.INFRA_ERROR, "gone")

    failing = Box()
    assert "The interpreter was ended: the server fell silent." in Interpreter(failing, Limits()).python("fail")
    failing.works = False
    with pytest.raises(SandboxError, match="the Python tool failed: the server fell silent"):
        Interpreter(failing, Limits()).python("fail")


def test_random_numbers_are_those_of_the_episode(tool):
    first = run(tool, "import random; random.random()")
    tool.reset()
    assert run(tool, "import random; random.random()") == first
    assert "0x" not in run(tool, "object()")


def test_long_output_is_cut_in_the_middle(tool):
    told = run(tool, "print('a' * 10_000); print('b' * 10_000)")
    assert told.startswith("aaa")
    assert told.endswith("bbb")
    assert len(told) <= MAX_SHOWN + 10


def test_a_failure_of_the_sandbox_is_no_answer():
    broken = make_sandbox("bubblewrap")
    tool = python_tool(sandbox=broken)
    broken.close()
    with pytest.raises(SandboxError):
        run(tool, "1")


def test_a_math_task_is_worked_out_with_the_tool(box, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"question": "What is 6 * 7?", "answer": "#### 42"}) + "\n")
    env = gym.make("verigym:verigym/PythonTool-v0", task_set="gsm8k", source=str(rows), tools=python_tool(sandbox=box))
    _, info = env.reset(seed=0)
    assert [tool["function"]["name"] for tool in info["tools"]] == ["python"]
    observation, *_ = env.step(render_call("python", {"code": "x = 6"}))
    assert observation == "(no output)"
    observation, *_ = env.step(render_call("python", {"code": "x * 7"}))
    snapshot = env.unwrapped.snapshot()
    assert observation == "42"
    assert env.reset(options={"snapshot": snapshot})[0] == "42"
    *_, info = env.step("It is \\boxed{42}.")
    assert info["verdict"].reward == 1
    env.reset(seed=0)
    observation, *_ = env.step(render_call("python", {"code": "x"}))
    assert "NameError" in observation
    env.close()


def unsafe_tool():
    return python_tool(sandbox="process", allow_unsafe=True)


def test_training_refuses_a_tool_that_does_not_isolate():
    kwargs = {"task_set": "arithmetic", "tools": unsafe_tool()}
    with pytest.raises(ConfigError, match="without isolation"):
        TaskSampler([EnvSpec("verigym/PythonTool-v0", kwargs=kwargs)], 0)
