"""How long a page of many episodes takes to open: from the start of navigation to its first painted view.

    python benchmarks/view.py [--episodes 10000] [--repeats 5] [--browser FILE] [--driver FILE]

The run is made up: episodes of two turns with reasoning and a call of a tool, with random log-probabilities, advantages
and values. Each opening is that of a headless Chromium with an empty profile, from a file.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.wait import WebDriverWait

from verigym.agents.episode import Episode, Turn
from verigym.agents.tiny import tiny_tokenizer
from verigym.run_folder import RunFolder
from verigym.verifiers.verdict import Outcome, Verdict
from verigym.view import write_page

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PER_STEP, GROUP = 200, 8
PAINTED = "return performance.getEntriesByName('verigym-ready').map((entry) => entry.startTime)[0]"


@dataclass(frozen=True)
class Options:
    """Median milliseconds to the first view, and the size of the page."""

    episodes: int = 10_000
    """How many episodes the run holds."""
    repeats: int = 5
    """Openings, each in a new browser."""
    browser: str = "/usr/bin/chromium"
    """The browser's program."""
    driver: str = "/usr/bin/chromedriver"
    """Its driver."""
    keep: str | None = None
    """Make the run and its page in this folder, which stays."""


def main(options: Options) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.keep or scratch) / "made-up"
        make_run(folder, options.episodes)
        started = time.monotonic()
        episodes = write_page(folder, folder / "view.html")
        seconds = time.monotonic() - started
        times = [first_view(folder / "view.html", options) for _ in range(options.repeats)]
        size = (folder / "view.html").stat().st_size / 2**20
    print("| episodes | page, MB | written in, s | first view, ms (median) | slowest |")
    print("|---|---|---|---|---|")
    print(f"| {episodes} | {size:.1f} | {seconds:.1f} | {statistics.median(times):.0f} | {max(times):.0f} |")


def make_run(folder: Path, episodes: int) -> None:
    """A run folder with metrics, episodes and a tokenizer."""
    run = RunFolder(folder)
    run.create({"model": "made-up", "learner": "ppo"})
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(run.checkpoints_path / "000000")
    rng = np.random.default_rng(0)
    for step in range(1, -(-episodes // PER_STEP) + 1):
        count = min(PER_STEP, episodes - (step - 1) * PER_STEP)
        played = [make_episode(tokenizer, rng, (step - 1) * PER_STEP + i, step) for i in range(count)]
        columns = {e: {name: rng.normal(size=e.num_policy_tokens) for name in ("advantages", "values")} for e in played}
        for e in played:
            columns[e]["logprobs"] = e.logprobs[e.mask] + rng.normal(0, 0.01, e.num_policy_tokens)
        run.write_episodes(step, played, columns)
        rate = float(np.mean([e.verdict.outcome is Outcome.CORRECT for e in played]))
        run.log({"step": step, "reward": rate, "pass_rate": rate, "entropy": 2 / (step + 3), "grad_norm": rng.random()})
        if step % 10 == 0:
            low, high = max(0.0, rate - 0.08), min(1.0, rate + 0.08)
            run.log({"step": step, "eval/pass_rate": rate, "eval/low": low, "eval/high": high})


def make_episode(tokenizer, rng: np.random.Generator, number: int, step: int) -> Episode:
    group = number // GROUP
    a, b = (group * 37) % 90 + 10, (group * 61) % 90 + 10
    right = bool(rng.random() < step / (step + 20))
    answer = a * b if right else int(rng.integers(100, 9999))
    messages = [
        {"role": "user", "content": f"What is {a} * {b}? Use the calculator and put the answer in \\boxed{{}}."},
        {
            "role": "assistant",
            "content": f"<think>{a} times {b} is best left to the tool.</think>\n"
            f'<tool_call>{{"name": "calculator", "arguments": {{"expression": "{a} * {b}"}}}}</tool_call>',
        },
        {"role": "tool", "name": "calculator", "content": str(a * b)},
        {"role": "assistant", "content": f"The product of {a} and {b} is \\boxed{{{answer}}}."},
    ]
    ids: list[int] = []
    mask: list[bool] = []
    turns = []
    for message in messages:
        own = message["role"] == "assistant"
        head = tokenizer.encode(f"<|im_start|>{message['role']}\n", add_special_tokens=False)
        body = tokenizer.encode(f"{message['content']}<|im_end|>", add_special_tokens=False)
        if own:
            start = len(ids) + len(head)
            turns.append(Turn(start, start + len(body), float(right) if len(turns) else 0.0, "stop", 256))
        ids += head + body
        mask += [False] * len(head) + [own] * len(body)
    policy = np.array(mask)
    outcome = Outcome.CORRECT if right else Outcome.WRONG
    reason = "the answer equals the gold answer" if right else f"the answer {answer} does not equal the gold answer"
    return Episode(
        env_id="verigym/Calculator-v0",
        task_id=f"calculator-train-level2-seed0/{group}",
        group_id=group,
        seed=group,
        token_ids=np.array(ids, np.int64),
        mask=policy,
        logprobs=np.where(policy, -rng.exponential(0.3, len(ids)), 0).astype(np.float32),
        versions=np.where(policy, step - 1, -1),
        turns=tuple(turns),
        messages=tuple(messages),
        truncation=None,
        verdict=Verdict(float(right), outcome, reason),
    )


def first_view(page: Path, options: Options) -> float:
    """Milliseconds from the start of navigation until the first view has been painted, in a new browser."""
    settings = webdriver.ChromeOptions()
    settings.binary_location = options.browser
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            settings.add_argument(flag)
        browser = webdriver.Chrome(options=settings, service=Service(options.driver))
        try:
            browser.get(page.resolve().as_uri())
            return float(WebDriverWait(browser, 600).until(lambda b: b.execute_script(PAINTED)))
        finally:
            browser.quit()


if __name__ == "__main__":
    main(tyro.cli(Options))
