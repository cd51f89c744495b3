"""A run that stands still says what it waits for, when it is asked and by itself, and goes on."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from verigym.agents.endpoint import EndpointAgent
from verigym.config import SFTConfig
from verigym.envs._waiting import call_until
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import play
from verigym.players import EndpointPlayer
from verigym.stalls import Patience, StallWatch, report
from verigym.supervised import sft
from verigym.tasks import activity
from verigym.tasks.activity import Activity, Doing, Playing, doing

SCRIPT = """
    import sys, threading
    from verigym import stalls, train
    from verigym.config import TrainConfig, build
    from verigym.envs import Budget, Reply, TextEnv, register
    from verigym.tasks import Task, TaskSet
    from verigym.tasks.errors import RunInterrupted
    from verigym.tasks.worlds.tool import Tool
    from verigym.verifiers import Verifier
    from verigym.verifiers.sandbox import Job, Limits, shared

    stalls.PATIENCE = 1.0
    sandbox = shared("process", allow_unsafe=True)

    def search() -> str:
        '''Searches, and never finds.'''
        threading.Event().wait()

    class Judge(Verifier):
        def verify(self, submission, task):
            limits = Limits(cpu_seconds=3600, wall_seconds=3600)
            sandbox.run(Job("import time; time.sleep(3600)", limits=limits))

    class Stuck(TextEnv):
        def __init__(self, **options):
            tasks = TaskSet([Task("searched", "?", 1), Task("judged", "?", 1)], name="stuck", split="train")
            super().__init__(tasks, Judge(), budget=Budget(1, 8), **options)

        def respond(self, action):
            return Reply(final=True)

        def submission(self, action):
            if self._task.id == "searched":
                Tool.from_function(search).call({})
            return super().submission(action)

    register("test/Stuck-v0", entry_point=Stuck, kwargs={})
    config = {"model": sys.argv[1], "run": sys.argv[2], "envs": [{"id": "test/Stuck-v0"}], "groups": 2,
        "group_size": 2, "tensorboard": False}
    try:
        train(build(TrainConfig, config))
    except RunInterrupted as interruption:
        print(interruption)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    sums = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1, "max_tokens_per_turn": 8})
    sft(SFTConfig(envs=(sums,), output=str(folder), steps=1, batch_size=4, demonstrations=8))
    return folder


def reports(process: subprocess.Popen[str]) -> Iterator[str]:
    """Of what a process writes, the reports; the text of one ends where the threads begin."""
    assert process.stderr is not None
    lines = iter(process.stderr.readline, "")
    for line in lines:
        if line.startswith("verigym, process"):
            text = line
            for row in lines:
                text += row
                if row.startswith("  threads"):
                    break
            yield text


def test_a_run_in_which_a_tool_and_a_sandbox_hang_says_so_and_still_ends_in_order(model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(model), str(run)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        told = reports(process)
        by_itself = next(text for text in told if "> sandbox: a job" in text and text.count("> tool: search") == 2)
        assert "nothing moved for" in by_itself
        assert "run: collecting" in by_itself
        process.send_signal(signal.SIGQUIT)
        asked = next(text for text in told if "nothing moved" not in text)
        assert "4 in play, 0 not begun" in asked
        assert asked.count("searched (test/Stuck-v0), turn 1: environment: step") == 2
        assert asked.count("judged (test/Stuck-v0), turn 1: environment: step") == 2
        assert asked.count("> tool: search") == 2
        assert asked.count("> verifier: Judge") == asked.count("> sandbox: ") == 2
        assert "  if that takes too long:\n" in asked
        assert "    tool: its function does not return" in asked
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate()
    assert "go on with: verigym train --resume" in rest
    assert process.returncode == 0
    assert asked.rstrip() in (run / "stalls.txt").read_text(encoding="utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="the bytes of a mutex are those of Linux")
def test_a_main_thread_that_hangs_in_native_code_is_told_of() -> None:
    script = """
        import ctypes
        from verigym.stalls import StallWatch
        from verigym.tasks.activity import doing

        with StallWatch(), doing("updating"):
            mutex = ctypes.create_string_buffer(256)
            lock = ctypes.CDLL(None).pthread_mutex_lock
            lock(mutex)
            print("locked", flush=True)
            lock(mutex)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        process.send_signal(signal.SIGQUIT)
        text = next(reports(process))
        process.kill()
    assert "what the run waits for" in text
    assert "run: updating" in text
    assert "0 in play" in text


def test_signals_are_as_they_were_after_a_watch() -> None:
    def mine(number: int, frame: object) -> None:
        seen.append(number)

    seen: list[int] = []
    handler = signal.signal(signal.SIGQUIT, mine)
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        with StallWatch():
            assert signal.getsignal(signal.SIGQUIT) is not mine
        assert signal.getsignal(signal.SIGQUIT) is mine
        assert signal.set_wakeup_fd(write) == -1
        with StallWatch():  # somebody else's, as asyncio's, stays
            signal.raise_signal(signal.SIGQUIT)
        assert os.read(read, 8) == bytes([signal.SIGQUIT])
        assert signal.set_wakeup_fd(-1) == write
        assert seen == []
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGQUIT, handler)
        os.close(read)
        os.close(write)


def test_a_warm_start_tells_what_it_is_at_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sums = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1, "max_tokens_per_turn": 8})
    config = SFTConfig(envs=(sums,), output=str(tmp_path / "model"), steps=1, batch_size=4, demonstrations=8)
    said = ""

    def ask(step: int, metrics: object) -> None:
        nonlocal said
        signal.raise_signal(signal.SIGQUIT)
        deadline = time.monotonic() + 60
        while "threads," not in said and time.monotonic() < deadline:
            time.sleep(0.01)
            said += capfd.readouterr().err

    asked = sft(config, ask)
    assert (asked.folder / "config.json").is_file()
    assert "run: learning (" in said


def test_a_watch_outside_the_main_thread_leaves_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGQUIT), []

    def work() -> None:
        with StallWatch(), doing("collecting"):
            seen.append(signal.getsignal(signal.SIGQUIT))
        seen.append(activity.current.get())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, None]


def test_a_stall_is_told_once_and_again_after_twice_the_time() -> None:
    patience = Patience(60.0)
    assert patience.still(1, 0.0) is None
    told = [second for second in range(1, 301) if patience.still(1, 1.0) is not None]
    assert told == [60, 120, 240]
    assert [patience.still(2, 1.0)] + [patience.still(2, 1.0) for _ in range(59)] == [None] * 60
    assert patience.still(2, 1.0) == 60.0


def test_nothing_is_told_while_something_moves_and_later_of_work_that_cannot_tell() -> None:
    patience = Patience(60.0)
    assert not any(patience.still(second // 59, 1.0) for second in range(1000))
    silent = [second for second in range(1, 1001) if patience.still(-5, 1.0, longer=True) is not None]
    assert silent == [601]  # the first call sees that it moved


def test_work_in_another_thread_is_its_callers_and_ends_with_an_error_too() -> None:
    mine = Activity()
    token = activity.current.set(mine)
    seen: list[list[str]] = []

    def judge() -> None:
        with doing("sandbox", "a job"):
            seen.append([one.kind for one in mine.stack])
            raise ValueError("broken")

    try:
        with pytest.raises(ValueError, match="broken"), doing("verifier", "code"):
            call_until(threading.Event(), judge)
    finally:
        activity.current.reset(token)
    assert seen == [["verifier", "sandbox"]]
    assert mine.stack == ()


def test_many_episodes_are_told_by_what_they_have_in_common() -> None:
    class Crowd:
        def playing(self) -> tuple[list[Playing], int]:
            since = time.monotonic()
            queued = [Playing("test/A-v0", f"a{i}", 1, (Doing("engine", "queued", since),)) for i in range(15)]
            drawn = [
                Playing("test/A-v0", f"b{i}", 2, (Doing("engine", f"generating, {i} tokens so far", since - 1000),))
                for i in range(15)
            ]
            return [*queued, *drawn], 7

    crowd = Crowd()
    activity.announce(crowd)
    text = report("?", Activity(), threading.current_thread())
    assert "30 in play, 7 not begun" in text
    drawn, queued = (line.strip() for line in text.splitlines() if " of test/A-v0" in line)
    assert drawn == "15 of test/A-v0, such as b0, turn 2: engine: generating, 0 tokens so far (17 min)"
    assert queued.startswith("15 of test/A-v0, such as a0, turn 1: engine: queued (")
    del crowd
    assert "0 in play, 0 not begun" in report("?", Activity(), threading.current_thread())


def test_an_endpoint_that_does_not_answer_is_what_its_episode_waits_for() -> None:
    asked, answer = threading.Event(), threading.Event()

    class Silent(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.set()
            answer.wait()
            self.send_error(400)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        agent = EndpointAgent(f"http://127.0.0.1:{server.server_port}", "m")
        spec = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1})
        player = threading.Thread(target=lambda: play(EndpointPlayer(agent), spec, tasks=1))
        player.start()
        asked.wait()
        ((episode,), unbegun) = activity.playing()
        answer.set()
        player.join()
        server.shutdown()
    assert (episode.env_id, episode.turn, unbegun) == ("verigym/Arithmetic-v0", 1, 0)
    assert [(one.kind, one.name) for one in episode.stack] == [("endpoint", agent.url)]
