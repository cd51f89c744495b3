"""The math verifier's workers when things go wrong: killed, crashed, starved, stalled, and started in odd places."""

import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from verigym import verifiers
from verigym.tasks import _pool as processes
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict, _pool
from verigym.verifiers.math import MathVerifier

SLOW = r"\frac{1}{1+" * 20 + "1" + "}" * 20  # math-verify takes far more than the limit for it


@pytest.fixture
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier()
    assert ask(made, "1+w", "w+1").reward == 1  # the pool runs
    while not all(worker.ready for worker in _pool.shared_pool()._idle):
        time.sleep(0.01)
    yield made
    assert ask(made, "1+w+2", "w+3").reward == 1  # and serves on
    assert len(_pool.shared_pool().pids()) == _pool.shared_pool().size
    made.close()


def ask(verifier: MathVerifier, answer: str, gold: str) -> Verdict:
    return verifier.verify(Submission(f"\\boxed{{{answer}}}"), Task("t", "", gold))


def busy_worker(seen: set[int]) -> int | None:
    """The worker that has used CPU time since it was ready."""
    for worker in list(_pool.shared_pool()._busy):
        pid = worker._process.pid
        if pid not in seen and worker._monitor is not None and psutil.Process(pid).status() == "running":
            return pid
    return None


def while_busy(act: Callable[[int], None], times: int) -> threading.Thread:
    """Does something to the next `times` workers that are at work."""

    def watch() -> None:
        seen: set[int] = set()
        deadline = time.monotonic() + 60
        while len(seen) < times and time.monotonic() < deadline:
            if pid := busy_worker(seen):
                act(pid)
                seen.add(pid)
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def send(number: signal.Signals) -> Callable[[int], None]:
    return lambda pid: os.kill(pid, number)


def test_one_killed_worker_costs_nothing(verifier):
    thread = while_busy(send(signal.SIGKILL), times=1)
    assert ask(verifier, SLOW, "1").outcome is Outcome.TIMEOUT  # in the second worker
    thread.join()


def test_two_killed_workers_in_a_row_are_our_failure(verifier):
    thread = while_busy(send(signal.SIGKILL), times=2)
    verdict = ask(verifier, SLOW, "1")
    thread.join()
    assert verdict.outcome is Outcome.INFRA_ERROR
    assert "two workers in a row failed" in verdict.reason


def test_answer_that_crashes_two_workers_is_the_submissions_error(verifier):
    thread = while_busy(send(signal.SIGSEGV), times=2)
    verdict = ask(verifier, SLOW, "1")
    thread.join()
    assert (verdict.outcome, verdict.reward) == (Outcome.ERROR, 0.0)
    assert "crashes" in verdict.reason


def test_answer_that_needs_too_much_memory_is_the_submissions_error(verifier):
    starved = list(_pool.shared_pool()._idle)
    for worker in starved:
        process = psutil.Process(worker._process.pid)
        size = process.memory_info().vms
        process.rlimit(psutil.RLIMIT_AS, (size, size))
    verdict = ask(verifier, SLOW + "+3", "1")
    assert (verdict.outcome, verdict.reward) == (Outcome.ERROR, 0.0)
    assert "memory" in verdict.reason or "crashes" in verdict.reason
    for worker in starved:
        worker._process.kill()
        worker._process.wait()


def test_stopped_worker_is_given_up_after_the_wall_limit(verifier, monkeypatch):
    monkeypatch.setattr(processes, "STALL_SECONDS", 0.5)
    thread = while_busy(send(signal.SIGSTOP), times=2)
    verdict = ask(verifier, SLOW, "1")
    thread.join()
    assert verdict.outcome is Outcome.INFRA_ERROR


def test_worker_ends_itself_when_nobody_watches_its_time(verifier, monkeypatch):
    monkeypatch.setattr(processes._Worker, "_cpu_time", lambda worker: 0.0)
    assert ask(verifier, SLOW + "+1", "1").outcome is Outcome.TIMEOUT


def test_limit_on_cpu_time_holds_however_many_answers_a_worker_has_given(verifier):
    for n in range(30):
        assert ask(verifier, f"x^2 + {n}", f"{n} + x^2").reward == 1
    before = {worker._process.pid for worker in _pool.shared_pool()._idle}
    used: list[float] = []
    monitored = {pid: psutil.Process(pid) for pid in before}
    start = {pid: sum(process.cpu_times()[:2]) for pid, process in monitored.items()}
    thread = while_busy(lambda pid: used.append(_cpu_of(monitored[pid]) - start[pid]), times=1)
    assert ask(verifier, SLOW + "+2", "1").outcome is Outcome.TIMEOUT
    thread.join()
    assert used
    assert used[0] < 1.2


def _cpu_of(process: psutil.Process) -> float:
    """The CPU time at its death."""
    seen = 0.0
    while True:
        try:
            times = process.cpu_times()
            if process.status() == psutil.STATUS_ZOMBIE:
                return seen
            seen = times.user + times.system
        except psutil.Error:
            return seen
        time.sleep(0.002)


HOSTILE = [
    lambda n: "9" * (400 + n),
    lambda n: r"\frac{1}{" * (30 + n % 300) + "2" + "}" * (30 + n % 300),
    lambda n: f"{n}^{{{n}^{{{n}^{n}}}}}",
    lambda n: f"{n}0000!",
    lambda n: rf"\binom{{10^{n}}}{{5}}",
    lambda n: "{" * n,
    lambda n: rf"\text{{{n}}} or anything",
    lambda n: f"x = {n} = {n + 1}",
    lambda n: f"__import__('os').system('{n}')",
    lambda n: ",".join(map(str, range(n))),
    lambda n: f"x^{n % 30}+" * 50 + "1",
    lambda n: rf"\begin{{pmatrix}} {n} & \\ \end{{pmatrix}}" * 3,
    lambda n: "|" * (n % 60),
    lambda n: rf"\sqrt[{n}]{{" * 12 + "2" + "}" * 12,
]  # fmt: skip


def test_a_thousand_hostile_answers_leave_the_pool_and_the_memory_as_they_were(verifier):
    def hostile(first: int, count: int) -> list[tuple[Submission, Task]]:
        answers = [HOSTILE[n % len(HOSTILE)](n) for n in range(first, first + count)]
        return [(Submission(f"\\boxed{{{answer}}}"), Task("t", "", "42")) for answer in answers]

    verifier.verify_many(hostile(2000, 300))  # fills what is cached
    gc.collect()
    before = psutil.Process().memory_info().rss
    slow = [(Submission(rf"\boxed{{{SLOW}+{n}}}"), Task("t", "", "1")) for n in range(4)]
    verdicts = verifier.verify_many([*hostile(0, 1000), *slow])
    gc.collect()
    assert not [verdict for verdict in verdicts if verdict.reward != 0 or verdict.outcome is Outcome.INFRA_ERROR]
    assert [verdict.outcome for verdict in verdicts[-4:]] == [Outcome.TIMEOUT] * 4
    assert len(_pool.shared_pool().pids()) == _pool.shared_pool().size
    assert psutil.Process().memory_info().rss - before < 8 << 20


PIECES = [
    *"{}$^_,;()[]=<|%&!1xieB. ", r"\boxed{", r"\frac", r"\sqrt", r"\text{", "and", "or", r"\le", r"\cup", r"\in", r"\{",
    r"\}", r"\pm", r"\circ", r"\begin{pmatrix}", r"\end{pmatrix}", r"\\", "23", "0.5", r"\pi", r"\infty", "\n",
    "answer is", "<think>", "</think>", "<answer>", "</answer>", "(C)", "five", "cm", "\ud800", "٣", "½", "∞", "\x00",
    r"\int", "Rs.", "1,000", r"\%", "degrees",
]  # fmt: skip


@pytest.mark.parametrize("name", ["math", "choice", "numeric", "format", "exact"])
def test_no_text_whatever_raises_or_earns_an_infrastructure_error(name):
    draw = random.Random(7)
    verifier = verifiers.make(name)
    targets = {"choice": ["B"], "numeric": ["23", 0.5], "math": ["23", r"\frac{x}{2}", "(1, 23]", r"5\text{ cm}"]}
    metadata = {"options": ("1", "23 cm", "x", r"\frac{1}{2}")} if name == "choice" else {}
    pairs = []
    for _ in range(1500):
        text = "".join(draw.choice(PIECES) for _ in range(draw.randrange(1, 14)))
        task = Task("t", "What is 1 + x?", draw.choice(targets.get(name, ["23"])), metadata)
        pairs.append((Submission(draw.choice([text, f"\\boxed{{{text}}}", f"<answer>{text}</answer>"])), task))
    verdicts = verifier.verify_many(pairs)
    assert len(verdicts) == len(pairs)
    assert all(verdict.outcome is not Outcome.INFRA_ERROR and verdict.reason for verdict in verdicts)


# started in odd places

SCRIPT = """
import sys
from verigym import verifiers
from verigym.tasks.task import Task
from verigym.verifiers import Submission
def judge():
    verifier = verifiers.make("math")
    answers = ["1+v", "2*v", "v^2-1"]
    pairs = [(Submission("\\\\boxed{" + a + "}"), Task("t", "", "v+1")) for a in answers]
    return [verdict.reward for verdict in verifier.verify_many(pairs)]
"""
RAY_LIKE = (
    SCRIPT
    + """
print(judge())
"""
)
FORKED = (
    SCRIPT
    + """
import multiprocessing
def child(queue):
    queue.put(judge())
for daemon in (False, True):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(queue,), daemon=daemon)
    process.start()
    print(queue.get(timeout=100))
    process.join()
    print(process.exitcode)
"""
)


@pytest.mark.parametrize("script", [RAY_LIKE, FORKED], ids=["popen", "fork"])
def test_judges_in_a_process_without_a_main_guard(script):
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert [line for line in done.stdout.split("\n") if line not in {"", "0"}] == ["[1.0, 0.0, 0.0]"] * (
        1 if script is RAY_LIKE else 2
    )
    assert not done.stderr


@pytest.mark.parametrize("daemon", [False, True])
def test_judges_in_a_spawned_process(tmp_path, daemon):
    # a spawned child imports the function by name, so that it must lie in a module of its own
    module = tmp_path / "spawned_judge.py"
    module.write_text(
        f"{SCRIPT}\nimport multiprocessing\n"
        "def child(queue):\n    queue.put(judge())\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n"
        "    queue = context.Queue()\n"
        f"    process = context.Process(target=child, args=(queue,), daemon={daemon})\n"
        "    process.start()\n"
        "    print(queue.get(timeout=100))\n"
        "    process.join()\n"
    )
    done = subprocess.run([sys.executable, str(module)], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[1.0, 0.0, 0.0]"


def test_worker_is_found_from_any_working_directory(tmp_path):
    command = [sys.executable, "-c", RAY_LIKE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True, cwd=Path("/"))
    assert done.stdout.strip() == "[1.0, 0.0, 0.0]"
