"""How fast the sandboxes are on this machine: tiny jobs, jobs of many calls, plain subprocesses and `docker run`.

    python benchmarks/sandbox.py [--jobs 1000] [--workers 2]

Each row is measured in the same run: latencies of one job at a time, then jobs per second from as many threads as
there are workers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from verigym.tasks.errors import SandboxError
from verigym.verifiers import sandbox
from verigym.verifiers.sandbox import Call, Job, Sandbox, Status

SOURCE = "def f(x):\n    return x + 1\n"
PLAIN = [shutil.which("python3", path="/usr/bin:/usr/local/bin") or "python3", "-I", "-c", SOURCE]
LOCKED = "--rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges --pids-limit 64 --memory 256m"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--jobs", type=int, default=1000)
    arguments.add_argument("--workers", type=int, default=2)
    options = arguments.parse_args()
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {options.workers} workers\n")
    print("| tiny job | p50 ms | p95 ms | jobs/s |\n|---|---|---|---|")
    row("plain subprocess", lambda: subprocess.run(PLAIN, check=True), options.jobs // 5, options.workers)
    if shutil.which("docker"):
        command = ["docker", "run", *LOCKED.split(), "verigym-sandbox", "python3", *PLAIN[1:]]
        row("docker run", lambda: subprocess.run(command, check=True), max(10, options.jobs // 50), options.workers)
    many = []
    for name in ("process", "bubblewrap", "docker"):
        try:
            box = sandbox.make(name, workers=options.workers, allow_unsafe=True)
        except SandboxError as error:
            print(f"| {name} | {error} | | |")
            continue
        try:
            row(name, lambda box=box: run(box, 1), options.jobs, options.workers)
            many.append((name, [median(latencies(lambda n=n, box=box: run(box, n), 50)) for n in (1, 50, 200)]))
        finally:
            box.close()
    print("\n| calls in one job, p50 ms | 1 | 50 | 200 |\n|---|---|---|---|")
    for name, times in many:
        print(f"| {name} | " + " | ".join(f"{1000 * seconds:.1f}" for seconds in times) + " |")


def run(box: Sandbox, calls: int) -> None:
    result = box.run(Job(SOURCE, calls=tuple(Call("f", (number,)) for number in range(calls))))
    assert result.status is Status.OK, result
    assert result.returns[-1].value == calls


def row(name: str, job: Callable[[], object], jobs: int, workers: int) -> None:
    """One row of the first table."""
    times = latencies(job, max(10, jobs // 5))
    with ThreadPoolExecutor(workers) as threads:
        start = time.perf_counter()
        list(threads.map(lambda _: job(), range(jobs)))
        rate = jobs / (time.perf_counter() - start)
    slow = times[int(0.95 * len(times))]
    print(f"| {name} | {1000 * median(times):.1f} | {1000 * slow:.1f} | {rate:.0f} |", flush=True)


def latencies(job: Callable[[], object], jobs: int) -> list[float]:
    """Sorted times of one job after the other."""
    times = []
    for number in range(jobs + 3):
        start = time.perf_counter()
        job()
        if number >= 3:
            times.append(time.perf_counter() - start)
    return sorted(times)


def median(times: list[float]) -> float:
    return times[len(times) // 2]


if __name__ == "__main__":
    main()
