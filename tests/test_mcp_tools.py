"""Tools that are coroutines, and the tools of a real MCP server: state, errors, death, and the end of the process."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from verigym.envs import QuestionEnv
from verigym.tasks import Task, TaskSet
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import ConfigError, EnvClosedError, ToolServerError
from verigym.tasks.worlds import Tool

TASKS = TaskSet([Task("t", "What is 2 + 40?", "42")], name="sums", split="train")
SERVER = [sys.executable, str(Path(__file__).with_name("mcp_server.py"))]


def question(tools: Any) -> QuestionEnv:
    return QuestionEnv(TASKS, verifier="exact", tools=tools, max_turns=9)


def call(env: QuestionEnv, name: str, **arguments: Any) -> str:
    observation, _, terminated, truncated, _ = env.step(render_call(name, arguments))
    assert (terminated, truncated) == (False, False)
    return observation


def ended(process: int) -> bool:
    """Whether there is no such process any more, or soon."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


# Coroutines.


async def slow_sum(a: int, b: int) -> int:
    """Adds, and takes its time.

    Args:
        a: a number
        b: another
    """
    await asyncio.sleep(0.01)
    if a < 0:
        raise ValueError("no negative numbers")
    return a + b


def test_a_coroutine_function_is_a_tool():
    tool = Tool.from_function(slow_sum)
    assert tool.call({"a": 2, "b": 40}) == "42"
    assert tool.call({"a": -2, "b": 40}) == "error: no negative numbers"
    assert "must be integer" in tool.call({"a": "2", "b": 40})
    assert tool.parameters["properties"]["a"] == {"type": "integer", "description": "a number"}


def test_coroutines_of_many_threads_run_on_one_loop_also_where_another_runs():
    loops = []

    async def which() -> str:
        """Says which loop it runs on."""
        loops.append(asyncio.get_running_loop())
        return "said"

    tool = Tool.from_function(which)

    async def caller() -> str:
        return tool.call({})  # as in a notebook, whose thread has a loop that runs

    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: tool.call({}), range(20))) == {"said"}
    assert asyncio.run(caller()) == "said"
    assert len(set(loops)) == 1


def test_close_ends_a_coroutine_that_a_step_waits_for():
    began, cancelled = threading.Event(), threading.Event()

    async def forever() -> str:
        """Never ends."""
        began.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return ""

    env = question(forever)
    env.reset(seed=1)
    with ThreadPoolExecutor(1) as threads:
        step = threads.submit(env.step, render_call("forever", {}))
        assert began.wait(30)
        env.close()
        with pytest.raises(EnvClosedError):
            step.result(30)
    assert cancelled.wait(30)


def test_half_of_a_surrogate_pair_in_a_reply_is_shown_as_a_question_mark():
    def broken() -> str:
        """Says what no tokenizer takes."""
        return "a\ud800b"

    env = question(broken)
    env.reset(seed=1)
    assert call(env, "broken") == "a?b"


def test_two_tools_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two tools are named 'slow_sum'"):
        question([slow_sum, Tool.from_function(slow_sum)])


# An MCP server.


@pytest.fixture
def mcp_tools() -> Any:
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    from verigym.tasks.worlds.mcp import mcp_tools

    return mcp_tools


def test_the_tools_of_a_server_are_used_from_an_environment(mcp_tools):
    env = question(mcp_tools(SERVER))
    _, info = env.reset(seed=1)
    schemas = {tool["function"]["name"]: tool["function"] for tool in info["tools"]}
    assert schemas["add"]["description"] == "Adds two whole numbers."
    assert schemas["add"]["parameters"]["required"] == ["a", "b"]
    assert call(env, "add", a=2, b=40) == "42"
    assert call(env, "notes_remember", text="x") == "1 kept"
    assert env.step("42")[1:3] == (1.0, True)
    env.close()


def test_an_argument_of_a_server_may_have_any_name(mcp_tools):
    env = question(mcp_tools(SERVER))
    env.reset(seed=1)
    assert env.step(render_call("rename", {"name": "a", "self": "b"}))[0] == "a -> b"
    env.close()


@pytest.mark.parametrize("schema", ['{"type": "nonsense"}', '{"$ref": "http://127.0.0.1:9/x"}'])
def test_a_server_that_describes_a_tool_by_no_schema_is_refused(mcp_tools, tmp_path, schema):
    server = tmp_path / "server.py"
    server.write_text(NO_SCHEMA.replace("SCHEMA", schema))
    with pytest.raises(ToolServerError, match="describes its tool 'f' wrongly"):
        mcp_tools([sys.executable, str(server)])


NO_SCHEMA = """
import json, sys
TOOL = {"name": "f", "inputSchema": {"type": "object", "properties": {"x": SCHEMA}}}
for line in sys.stdin:
    asked = json.loads(line)
    result = {"tools": [TOOL]}
    if asked["method"] == "initialize":
        about = {"capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}
        result = {"protocolVersion": asked["params"]["protocolVersion"], **about}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


def test_errors_reach_the_agent_as_text_that_helps(mcp_tools):
    env = question(mcp_tools(SERVER))
    env.reset(seed=1)
    assert "no such fish" in call(env, "fail", reason="no such fish")
    assert call(env, "add", a=2) == "error: the argument 'b' of add is missing; expected integer"
    assert "did you mean 'add'?" in call(env, "ad", a=2, b=40)
    assert call(env, "add", a=2, b=40) == "42"
    env.close()


def test_each_episode_begins_with_a_server_of_its_own_unless_it_keeps_nothing(mcp_tools):
    for stateless, kept in ((False, "1 kept"), (True, "2 kept")):
        env = question(mcp_tools(SERVER, stateless=stateless))
        for said in ("1 kept", kept):
            env.reset(seed=1)
            assert call(env, "notes_remember", text="x") == said
        env.close()


def test_a_server_that_dies_is_an_infrastructure_error_and_the_next_episode_has_another(mcp_tools):
    env = question(mcp_tools(SERVER))
    env.reset(seed=1)
    with pytest.raises(ToolServerError, match=r"has ended \(the disk is full\)"):
        env.step(render_call("die", {}))
    env.reset(seed=1)
    assert call(env, "add", a=2, b=40) == "42"
    env.close()


def test_a_server_that_does_not_answer_is_an_infrastructure_error(mcp_tools, tmp_path):
    env = question(mcp_tools(SERVER, seconds=4))
    env.reset(seed=1)
    with pytest.raises(ToolServerError, match="gave no answer within 4 s"):
        env.step(render_call("hang", {"file": str(tmp_path / "pid")}))
    assert ended(int((tmp_path / "pid").read_text()))
    env.close()


def test_close_ends_the_process_and_the_call_that_waits_for_it(mcp_tools, tmp_path):
    env, file = question(mcp_tools(SERVER)), tmp_path / "pid"
    env.reset(seed=1)
    with ThreadPoolExecutor(1) as threads:
        step = threads.submit(env.step, render_call("hang", {"file": str(file)}))
        while not (file.is_file() and file.read_text()):
            time.sleep(0.05)
        env.close()
        with pytest.raises(EnvClosedError):
            step.result(30)
    assert ended(int(file.read_text()))
    env.close()


def test_a_program_that_ends_without_close_leaves_no_server(mcp_tools):
    script = (
        "import sys; from verigym.tasks.worlds.mcp import mcp_tools\n"
        "tools = {tool.name: tool for tool in mcp_tools(sys.argv[1:])}\n"
        "print(tools['process'].call({}))"
    )
    done = subprocess.run([sys.executable, "-c", script, *SERVER], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert ended(int(done.stdout))


@pytest.mark.parametrize(
    ("command", "why"),
    [
        (["/no/such/program"], "cannot be started"),
        ([sys.executable, "-c", "import sys; sys.exit('no licence')"], "no licence"),
    ],
)
def test_a_server_that_cannot_be_started_says_so(mcp_tools, command, why):
    with pytest.raises(ToolServerError, match=why):
        mcp_tools(command)


def test_a_command_that_is_a_text_is_refused(mcp_tools):
    with pytest.raises(ConfigError, match="is a list, program first"):
        mcp_tools("python server.py")


def server_tools() -> list[Tool]:
    from verigym.tasks.worlds.mcp import mcp_tools

    return mcp_tools(SERVER)


def test_a_function_that_makes_the_tools_gives_each_environment_a_server(mcp_tools):
    first, second = (gym.make("verigym/Arithmetic-v0", tools=server_tools, max_turns=3).unwrapped for _ in range(2))
    first.reset(seed=1)
    second.reset(seed=1)
    assert call(first, "process") != call(second, "process")
    first.close()
    second.close()
