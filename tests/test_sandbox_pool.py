"""One pool of workers for many episodes: all of it is kept busy, and whoever waits longest is served next."""

import runpy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium as gym
import pytest

from verigym.agents.agent import LocalAgent
from verigym.agents.chat import Chat
from verigym.agents.collect import Collector
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.episode import Plan
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.envs import Budget, Reply, TextEnv
from verigym.envs.mixture import EnvSpec
from verigym.envs.vector import ThreadVectorEnv
from verigym.tasks import Task, TaskSet
from verigym.verifiers import Outcome, Submission, make
from verigym.verifiers._code_text import fenced
from verigym.verifiers.sandbox import Call, Job, Return, Status
from verigym.verifiers.sandbox.worker import Worker

make_sandbox = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))["make"]
HOLDS = Job("def f(): return hold()", calls=(Call("f"),), proxies=("hold",))
WAITS = "import time\ndef f():\n    time.sleep(0.3)\n    return 1"


@pytest.fixture
def box():
    sandbox = make_sandbox("bubblewrap", workers=2)
    with ThreadPoolExecutor(2) as threads:  # both workers are started
        list(threads.map(sandbox.run, [Job("import time; time.sleep(0.5)")] * 2))
    yield sandbox
    sandbox.close()


class Busy:
    """How many workers run a job, at most, and how many jobs were run."""

    def __init__(self, monkeypatch):
        self.now = self.most = self.jobs = 0
        self._lock, self._run = threading.Lock(), Worker.run
        monkeypatch.setattr(Worker, "run", lambda worker, *arguments: self.count(worker, *arguments))

    def count(self, worker, *arguments):
        with self._lock:
            self.now, self.jobs = self.now + 1, self.jobs + 1
            self.most = max(self.most, self.now)
        try:
            return self._run(worker, *arguments)
        finally:
            with self._lock:
                self.now -= 1


@pytest.fixture
def busy(monkeypatch):
    return Busy(monkeypatch)


class Waits(TextEnv):
    """Whatever the agent says, code that waits a while is judged."""

    def __init__(self, box):
        task = Task("one", "Write f.", {"asserts": "assert f() == 1", "entry_point": "f"})
        super().__init__(TaskSet([task], name="one", split="train"), make("code", sandbox=box), budget=Budget(1))

    def respond(self, action):
        return Reply(final=True)

    def submission(self, action):
        return Submission(fenced(WAITS), tuple(self._messages))


def test_whoever_waits_longest_is_served_next(monkeypatch):
    served, run = [], Worker.run
    monkeypatch.setattr(
        Worker, "run", lambda worker, job, *rest: (served.append(job.source), run(worker, job, *rest))[1]
    )
    box = make_sandbox("bubblewrap", workers=1)
    release = threading.Event()
    with ThreadPoolExecutor(10) as threads:
        threads.submit(box.run, HOLDS, answer=lambda _: Return(release.wait(30), True))
        wait_until(lambda: served)
        for number in range(8):
            threads.submit(box.run, Job(f"print({number})"))
            wait_until(lambda number=number: len(box._waiting) == number + 1)
        release.set()
    box.close()
    assert served == [HOLDS.source, *(f"print({number})" for number in range(8))]


def wait_until(holds):
    deadline = time.monotonic() + 30
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.001)


def test_a_vector_environment_keeps_every_worker_busy(box, busy):
    envs = ThreadVectorEnv([lambda: Waits(box)] * 6)
    envs.reset(seed=0)
    _, rewards, *_ = envs.step(["any"] * 6)
    envs.close()
    assert rewards.tolist() == [1.0] * 6
    assert (busy.most, busy.jobs) == (2, 6)


@pytest.mark.parametrize("deterministic", [False, True])
def test_collect_keeps_every_worker_busy(box, busy, deterministic):
    gym.register("test/Waits", lambda: Waits(box))
    tokenizer = tiny_tokenizer()
    model = tiny_model(len(tokenizer), hidden_size=32, layers=2, heads=2, intermediate_size=48)
    agent = LocalAgent(Chat(tokenizer), TransformersEngine(model, slots=8), max_new_tokens=2)
    collector = Collector(agent, [EnvSpec("test/Waits")], deterministic=deterministic, concurrency=6)
    try:
        episodes = collector.collect([Plan(0, "one", number, number, number) for number in range(12)])
    finally:
        collector.close()
        del gym.registry["test/Waits"]
    assert [episode.verdict.outcome for episode in episodes] == [Outcome.CORRECT] * 12
    assert (busy.most, busy.jobs) == (2, 12)


def test_jobs_called_off_while_they_wait_leave_the_queue(box):
    off, release = threading.Event(), threading.Event()
    with ThreadPoolExecutor(5) as threads:
        held = [threads.submit(box.run, HOLDS, answer=lambda _: Return(release.wait(30), True)) for _ in range(2)]
        wait_until(lambda: not box._idle)
        waiting = [threads.submit(box.run, Job("print(1)"), cancelled=off) for _ in range(3)]
        wait_until(lambda: len(box._waiting) == 3)
        off.set()
        assert [future.result().status for future in waiting] == [Status.INFRA_ERROR] * 3
        release.set()
        assert [future.result().status for future in held] == [Status.OK] * 2
    assert not box._waiting
    assert box.run(Job("print(1)")).status is Status.OK
