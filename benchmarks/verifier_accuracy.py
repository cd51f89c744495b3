r"""Accuracy and speed of the math verifier beside math-verify alone, as the table of docs/verifiers.md.

    python benchmarks/verifier_accuracy.py DATA [--hostile N] [--listed]

DATA holds the folders math_answer_pairs, verifier_cases_math and math_hendrycks. math-verify alone is
`verify(parse(gold), parse(completion))` on the whole completion, in the main thread, where its timeout works.
A case of verifier_cases_math that is a bare answer (no box, no "answer is", no LaTeX span, one short line) is put
into a box for ours, which takes no number in prose for an answer.
"""

from __future__ import annotations

import gzip
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
import tyro

from verigym.tasks import _pool as processes
from verigym.tasks._boxed import boxed_contents
from verigym.tasks.errors import VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, _pool
from verigym.verifiers.extract import math_answer
from verigym.verifiers.math import MathVerifier

SLOW = r"\frac{1}{1+" * 20 + "1" + "}" * 20


@dataclass(frozen=True)
class Options:
    """False accepts and rejects, answers per second, the CPU time of the slowest answer, hostile answers."""

    data: Annotated[Path, tyro.conf.Positional]
    """The folder of the data sets."""
    hostile: int = 1000
    """Hostile answers, of which every twentieth runs into the limit on CPU time."""
    listed: bool = False
    """Whether to list each case that ours decides otherwise than its source."""


@dataclass(frozen=True)
class Case:
    """A completion, the gold answer, and whether it should count as right."""

    source: str
    completion: str
    gold: str
    right: bool
    prompt: str = ""


# rows 36 to 50 of the adversarial suite: (completion, gold, whether it is right, prompt)
ADVERSARIAL: list[tuple[str, str, bool, str]] = [
    (r"\boxed{41}, no, \boxed{42}", "42", True, ""),
    (r"\boxed{42}, no, \boxed{41}", "42", False, ""),
    (r"\boxed{39} \boxed{40} \boxed{41} \boxed{42}", "42", False, ""),
    *[
        (rf"\boxed{{{a}}}", "42", False, "")
        for a in ("41,42", "41 or 42", r"\{41, 42\}", r"\pm 42", r"41\text{ or }42")
    ],
    *[(rf"\boxed{{{a}}}", "42", False, "") for a in ("x=7=42", "x = 42 = 7", "7 = 42", "1+1=42")],
    (r"\boxed{\int_0^1 x^2 dx}", r"\frac{1}{3}", False, r"Evaluate $\int_0^1 x^2 dx$."),
    (r"\boxed{19 \cdot 21}", "399", False, r"What is $19 \cdot 21$?"),
    (r"\boxed{7+1}", "8", False, "What is 7 + 1?"),
    (r"\boxed{x^2-1}", "(x-1)(x+1)", False, "Factor $x^2 - 1$."),
    (r"\boxed{\int_0^1 x^2 dx}", r"\int_0^1 x^2\,dx", True, "Write the integral."),
    *[(rf"\boxed{{{a}}}", "1", False, "") for a in ("10^{10^{10}}", "9^{9^{9^9}}", "10000000!", "((9999!)!)!", SLOW)],
    (r"\boxed{" + r"\frac{1}{" * 400 + "1" + "}" * 401, "1", False, ""),
    (r"\boxed{" + "{" * 20_000 + "1" + "}" * 20_001, "1", False, ""),
    (r"\boxed{" + "9" * 1_000_000 + "}", "1", False, ""),
    (r"\boxed{0.0}", "1e-7", False, ""),
    (r"\boxed{0.0000001}", "1e-7", True, ""),
    *[(rf"\boxed{{{a}}}", "42", True, "") for a in ("42", "٤٢")],
    *[(rf"\boxed{{{a}}}", "42", False, "") for a in ("nan", "zoo", "oo", r"\infty", "1/0", r"\frac{42}{0}")],
    ("So it must be 42.", "42", False, ""),
    *[(rf"\boxed{{{a}}}", "42", False, "") for a in ("42abc", "4,,,2", r"42\text{ or anything}", r"\text{anything}")],
    (r"<think>\boxed{42}</think> \boxed{41}", "42", False, ""),
    (r"<think>\boxed{41}</think> \boxed{42}", "42", True, ""),
    *[(rf"\boxed{{{a}}}", "0", False, "") for a in ("__import__('os').getpid() or 0", "open('x','w') or 0")],
    *[(text, "42", False, "What is 6 times 7?") for text in ("", "  \n", r"\boxed{}", "What is 6 times 7?")],
    (r"\boxed{[3, 5]}", "(3, 5)", False, ""),
    (r"\boxed{(2, 5)}", "(2, 5]", False, ""),
]


def rows(path: Path) -> list[dict[str, Any]]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


def answer_pairs(data: Path) -> list[Case]:
    found = rows(data / "math_answer_pairs" / "pairs.jsonl")
    return [Case("math_answer_pairs", row["pred"], row["gold"], row["expected"]) for row in found]


def source_cases(data: Path) -> list[Case]:
    """The equivalence cases of other graders' own tests; each source is a policy of its own."""
    found = [row for row in rows(data / "verifier_cases_math" / "cases.jsonl") if row["kind"] == "equiv"]
    return [Case(row["source"], row["pred"], row["gold"], row["expected"], row.get("prompt", "")) for row in found]


def adversarial() -> list[Case]:
    return [Case("rows 36-50", text, gold, right, prompt) for text, gold, right, prompt in ADVERSARIAL]


def boxed_if_bare(case: Case) -> str:
    bare = math_answer(case.completion, latex=True).answer is None and len(case.completion) < 200
    return f"\\boxed{{{case.completion}}}" if bare and "\n" not in case.completion.strip() else case.completion


def ours(cases: Iterable[Case], form: Callable[[Case], str], extract: Literal["boxed", "latex"]) -> list[bool]:
    verifier = MathVerifier(extract=extract)
    found = []
    for case in cases:
        try:
            task = Task("case", case.prompt, (boxed_contents(case.gold) or [case.gold])[-1])
            found.append(verifier.verify(Submission(form(case)), task).outcome is Outcome.CORRECT)
        except VerifierInputError:
            found.append(False)
    return found


def math_verify_alone(cases: Iterable[Case]) -> list[bool]:
    from math_verify import parse, verify

    found = []
    for case in cases:
        gold = case.gold if "$" in case.gold or "\\boxed" in case.gold else f"${case.gold}$"
        try:
            found.append(bool(verify(parse(gold), parse(case.completion))))
        except BaseException as error:  # its timeout is no Exception
            if isinstance(error, KeyboardInterrupt):
                raise
            found.append(False)
    return found


def line(name: str, cases: list[Case], *columns: list[bool]) -> str:
    """One row of the table: accepted though wrong, rejected though right, for each column."""

    def wrong(found: list[bool]) -> str:
        accepts = sum(a and not case.right for a, case in zip(found, cases, strict=True))
        rejects = sum(case.right and not a for a, case in zip(found, cases, strict=True))
        return f"{accepts} + {rejects}"

    return f"| {name} | {len(cases)} | {' | '.join(map(wrong, columns))} |"


def verdicts_on(cases: list[Case], form: Callable[[Case], str] = lambda case: case.completion) -> list[list[bool]]:
    return [ours(cases, form, "boxed"), ours(cases, form, "latex"), math_verify_alone(cases)]


def accuracy(options: Options) -> None:
    """False accepts + false rejects, of ours by default, of ours with `extract="latex"`, and of math-verify."""
    print('| cases | number | ours, by default | ours, `extract="latex"` | math-verify |')
    print("|---|---|---|---|---|")
    pairs, hostile, cases = answer_pairs(options.data), adversarial(), source_cases(options.data)
    print(line("math_answer_pairs", pairs, *verdicts_on(pairs)))
    columns = verdicts_on(cases, boxed_if_bare)
    for source in dict.fromkeys(case.source for case in cases):
        chosen = [i for i, case in enumerate(cases) if case.source == source]
        print(line(source, *[[column[i] for i in chosen] for column in (cases, *columns)]))
    print(line("adversarial, rows 36 to 50", hostile, *verdicts_on(hostile)))
    for case, verdict in zip(cases, columns[0], strict=True):
        if options.listed and verdict != case.right:
            print(f"    {case.source}: {case.completion[-80:]!r} for {case.gold[-50:]!r}, {case.right} by its source")


@contextmanager
def cpu_times() -> Iterator[list[float]]:
    """The CPU time that each question took its worker, appended as they are answered or given up."""
    ask, used = processes._Worker.ask, []

    def timed(worker: Any, question: Any, budget: Any) -> dict[str, Any]:
        started = worker._cpu_time() if worker._ready else None
        try:
            return ask(worker, question, budget)
        finally:
            if started is not None:
                used.append(worker._cpu_time() - started)

    processes._Worker.ask = timed  # type: ignore[method-assign]
    try:
        yield used
    finally:
        processes._Worker.ask = ask  # type: ignore[method-assign]


def throughput(options: Options) -> None:
    """Answers per second of a warm pool: the pairs, and different symbolic answers, each asked once."""
    verifier = MathVerifier(extract="latex")
    golds = [row["answer"] or "" for row in rows(options.data / "math_hendrycks" / "train.jsonl.gz")]
    symbolic = [gold for gold in dict.fromkeys(golds) if re.search(r"\\(?:sqrt|frac|pi)|[a-z]\^|\dx", gold)]
    random.Random(0).shuffle(symbolic)
    pairs = answer_pairs(options.data)
    verifier.verify_many([(Submission(rf"\boxed{{x + {n}}}"), Task("warm", "", f"{n} + x")) for n in range(200)])
    boxed = [(rf"\boxed{{0 + {gold}}}", gold) for gold in symbolic]
    for name, found in (
        ("typical answers (math_answer_pairs)", [(case.completion, case.gold) for case in pairs]),
        ("symbolic answers, all different, workers just started", boxed[:800]),
        ("symbolic answers, all different, thereafter", boxed[800:1600]),
    ):
        submissions = [(Submission(text), Task("t", "", gold)) for text, gold in found]
        started = time.perf_counter()
        verifier.verify_many(submissions)
        print(f"| {name} | {len(found) / (time.perf_counter() - started):.0f} answers/s |")


def hostile_answers(number: int) -> list[str]:
    kinds: list[Callable[[int], str]] = [
        lambda n: "9" * (400 + n),
        lambda n: r"\frac{1}{" * 400 + str(n) + "}" * 400,
        lambda n: f"{n}^{{{n}^{{{n}^{n}}}}}",
        lambda n: f"{n}0000!",
        lambda n: "{" * n,
        lambda n: f"x = {n} = {n + 1}",
        lambda n: f"__import__('os').system('{n}')",
        lambda n: rf"\sqrt[{n}]{{" * 12 + "2" + "}" * 12,
        lambda n: rf"\tan({n}x+" * 5 + "1" + ")" * 5,
        lambda n: ",".join(map(str, range(n % 100))),
    ]
    return [f"{SLOW}+{n}" if n % 20 == 0 else kinds[n % len(kinds)](n) for n in range(number)]


def endurance(options: Options) -> None:
    """What a stream of hostile answers does to the pool, to the memory and to the answers' CPU time."""
    verifier = MathVerifier()
    answers = hostile_answers(options.hostile)
    pairs = [(Submission(rf"\boxed{{{answer}}}"), Task("hostile", "", "42")) for answer in answers]
    verifier.verify_many(pairs[:40])
    before = psutil.Process().memory_info().rss
    with cpu_times() as used:
        verdicts = verifier.verify_many(pairs)
    grown = (psutil.Process().memory_info().rss - before) / (1 << 20)
    pool = _pool.shared_pool()
    rewarded = sum(verdict.reward != 0 for verdict in verdicts)
    late = sum(verdict.outcome is Outcome.TIMEOUT for verdict in verdicts)
    print(f"| CPU time of the slowest of {options.hostile} hostile answers ({late} timeouts) | {max(used):.2f} s |")
    print(f"| workers afterwards | {len(pool.pids())} of {pool.size} |")
    print(f"| growth of the process's memory | {grown:.1f} MB |")
    print(f"| hostile answers with a reward or an infrastructure error | {rewarded} |")


def main(options: Options) -> None:
    logging.disable(logging.CRITICAL)  # math-verify reports each text that it cannot read, whole
    print("| speed | measured |\n|---|---|")
    throughput(options)  # first: no answer may be known already
    endurance(options)
    print()
    accuracy(options)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
