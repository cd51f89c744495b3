"""The math verifier: adversarial rows 36 to 50, the policy per kind of answer, real data, the pool."""

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from verigym import verifiers
from verigym.tasks.errors import UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict, _pool
from verigym.verifiers.math import MathVerifier

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SLOW = r"\frac{1}{1+" * 20 + "1" + "}" * 20  # math-verify takes far more than the limit for it


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    made = MathVerifier()
    yield made
    made.close()


def judge(verifier: MathVerifier, text: str, gold: Any, prompt: str = "What is it?") -> Verdict:
    return verifier.verify(Submission(text), Task("t", prompt, gold))


def boxed(verifier: MathVerifier, answer: str, gold: Any, prompt: str = "What is it?") -> Outcome:
    return judge(verifier, f"Thus \\boxed{{{answer}}}.", gold, prompt).outcome


def rows(name: str) -> list[dict[str, Any]]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"no real data at {path}")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in content.splitlines()]


# rows 36 to 50 of the adversarial suite


def test_last_of_two_different_boxes_counts(verifier):
    assert judge(verifier, r"\boxed{41}, no, \boxed{42}", "42").outcome is Outcome.CORRECT
    assert judge(verifier, r"\boxed{42}, no, \boxed{41}", "42").outcome is Outcome.WRONG


def test_more_than_three_different_boxes_are_no_answer(verifier):
    assert judge(verifier, "".join(rf"\boxed{{{n}}} " for n in (39, 40, 41, 42)), "42").outcome is Outcome.UNPARSEABLE
    assert judge(verifier, "".join(rf"\boxed{{{n}}} " for n in (42, 42, 42, 42)), "42").outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    "answer",
    ["41,42", "41 or 42", r"41 \text{ or } 42", "42, 42", r"\{41, 42\}", r"\pm 42", r"42 \text{ and } 41"],
)
def test_several_values_are_wrong_for_one(verifier, answer):
    assert boxed(verifier, answer, "42") is Outcome.WRONG


@pytest.mark.parametrize("answer", ["x=7=42", "x = 42 = 7", "7 = 42", "1+1=42", "x=7=42=42"])
def test_contradictory_chain_is_wrong(verifier, answer):
    assert boxed(verifier, answer, "42") is Outcome.WRONG


@pytest.mark.parametrize("answer", ["x=42", "42=x", r"x = \frac{84}{2} = 42", "41+1=42", r"f(2) = 42"])
def test_consistent_chain_is_its_value(verifier, answer):
    assert boxed(verifier, answer, "42") is Outcome.CORRECT


@pytest.mark.parametrize(
    ("answer", "gold", "prompt"),
    [
        (r"\int_0^1 x^2 dx", "1/3", "Evaluate."),
        (r"\sum_{k=1}^{3} k", "6", "Evaluate."),
        (r"\lim_{x\to 0} x + 1", "1", "Evaluate."),
        (r"19 \cdot 21", "399", "Multiply."),
        (r"21 * 19", "399", r"What is $19 \times 21$?"),
        ("7+1", "8", "What is 7 plus 1?"),
        (r"\frac{16}{2}", "8", "Simplify $16/2$."),
        ("x^2-1", "(x-1)(x+1)", "Factor $x^2 - 1$."),
        ("2x + 3x", "5x", "Simplify $2x+3x$."),
    ],
)
def test_restated_question_is_wrong(verifier, answer, gold, prompt):
    assert boxed(verifier, answer, gold, prompt) is Outcome.WRONG


@pytest.mark.parametrize(
    ("answer", "gold", "prompt"),
    [
        (r"\int_0^1 x^2 dx", r"\int_0^1 x^2\,dx", "Write the integral."),
        ("7+1", "8", "How many?"),
        (r"\frac{16}{2}", "8", "How many?"),
        (r"1 \times 10^3", "1000", "Scientific notation."),
        ("3/4", r"\frac{3}{4}", "Which is larger, 3/4 or 2/3?"),
    ],
)
def test_expression_that_is_no_restatement_is_accepted(verifier, answer, gold, prompt):
    assert boxed(verifier, answer, gold, prompt) is Outcome.CORRECT


@pytest.mark.parametrize(
    "answer", ["10^{10^{10}}", "9^{9^{9^9}}", "10000000!", r"\binom{10^9}{5*10^8}", "((9999!)!)!", SLOW]
)
def test_tower_times_out_and_the_pool_serves_on(verifier, answer):
    assert boxed(verifier, answer, "1") in {Outcome.TIMEOUT, Outcome.UNPARSEABLE}
    assert boxed(verifier, "3+x+4", "7+x") is Outcome.CORRECT
    assert len(_pool.shared_pool().pids()) == _pool.shared_pool().size


@pytest.mark.parametrize(
    "answer",
    [r"\frac{1}{" * 400 + "2" + "}" * 400, "{" * 20_000 + "}" * 20_000, "{" * 20_000, "9" * 1_000_000],
    ids=["fractions", "braces", "open-braces", "digits"],
)
def test_oversized_answer_is_refused_without_a_worker(verifier, answer, monkeypatch):
    monkeypatch.setattr(_pool, "shared_pool", lambda: pytest.fail("a worker was asked"))
    assert boxed(verifier, answer, "1") is Outcome.UNPARSEABLE


@pytest.mark.parametrize(
    ("answer", "gold"), [("0.0", "1e-7"), ("0.0", 1e-7), ("0", "0.0000672"), ("0.0000671", "0.0000672")]
)
def test_small_numbers_are_compared_relatively(verifier, answer, gold):
    assert boxed(verifier, answer, gold) is Outcome.WRONG
    assert boxed(verifier, str(gold), gold) is Outcome.CORRECT


def test_digits_of_other_scripts_are_read_as_digits(verifier):
    assert boxed(verifier, "４２", "42") is Outcome.CORRECT
    assert boxed(verifier, "٤٢", "42") is Outcome.CORRECT
    assert boxed(verifier, "٤٣", "42") is Outcome.WRONG


@pytest.mark.parametrize(
    "answer",
    ["nan", "zoo", "oo", r"\infty", "inf", "1/0", r"\frac{42}{0}", "42abc", "4,,,2", ",42",
     r"42\text{ or anything}", r"\text{anything}", r"42 \text{ not}", "42x", "42!", "|", "[]", r"\emptyset"],
)  # fmt: skip
def test_what_is_no_finite_number_is_wrong(verifier, answer):
    assert boxed(verifier, answer, "42") is Outcome.WRONG


def test_infinity_is_right_where_the_gold_answer_is_infinity(verifier):
    assert boxed(verifier, r"\infty", r"\infty") is Outcome.CORRECT
    assert boxed(verifier, r"-\infty", r"\infty") is Outcome.WRONG


def test_number_in_prose_is_no_answer(verifier):
    assert judge(verifier, "So it must be 42.", "42").outcome is Outcome.UNPARSEABLE


def test_only_the_text_after_the_reasoning_counts(verifier):
    assert judge(verifier, r"<think>\boxed{42}</think> \boxed{41}", "42").outcome is Outcome.WRONG
    assert judge(verifier, r"\boxed{41} </think> \boxed{42}", "42").outcome is Outcome.CORRECT
    assert judge(verifier, r"<think> \boxed{42}", "42").outcome is Outcome.UNPARSEABLE
    assert judge(verifier, r"<think>\boxed{42}</think> done", "42").outcome is Outcome.UNPARSEABLE


def test_python_in_an_answer_does_not_run(verifier, tmp_path):
    marker = tmp_path / "marker"
    for payload in (f"__import__('os').system('touch {marker}') or 0", f"open('{marker}','w').write('0')"):
        assert boxed(verifier, payload, "0") is Outcome.WRONG
    assert not marker.exists()


@pytest.mark.parametrize("text", ["", "  \n", r"\boxed{}", r"\boxed{ }", r"\boxed{", "What is 6 times 7?"])
def test_empty_or_echoed_text_is_no_answer(verifier, text):
    assert judge(verifier, text, "42", "What is 6 times 7?").outcome is Outcome.UNPARSEABLE


# how an answer is found


@pytest.mark.parametrize(
    "text",
    [r"\fbox{42}", r"\boxed 42", r"\boxed{\boxed{42}}", "The final answer is 42.", "Answer: $42$", "#### 42",
     "**Answer:** 42", "the ANSWER is $42$ because I say so.", r"It is \( 42 \). \[ \boxed{ 42 } \]"],
)  # fmt: skip
def test_answer_is_found(verifier, text):
    assert judge(verifier, text, "42").outcome is Outcome.CORRECT


def test_latex_span_counts_at_the_end_after_a_cue_and_elsewhere_on_request(verifier):
    for text in ("So we get $8.0$.", r"The result is \[ 8 \]", "Hence $x$ equals $8$.", "This gives: **$8$**", "$8$"):
        assert judge(verifier, text, "8").outcome is Outcome.CORRECT
    for text in ("So we get $8.0$ at first.", "Perhaps $8$.", "We get 8.", "We get $8$ or $9$.", "We get $9$ or $8$."):
        assert judge(verifier, text, "8").outcome is Outcome.UNPARSEABLE
    assert judge(MathVerifier(extract="latex"), "So we get $8.0$ at first.", "8").outcome is Outcome.CORRECT


# the policy per kind of answer: the gold answer, what equals it, what nearly does

POLICY = [
    (r"\$18.90", ["18.90", "18.9", r"\$18.90"], ["18.09", "1890"]),
    (r"90^\circ", ["90", r"90^{\circ}", r"90\text{ degrees}", "90°"], ["9", "91"]),
    (r"864 \mbox{ inches}^2", ["864", r"864\text{ square inches}"], [r"864\text{ inches}", "846"]),
    (r"\frac{270}7\text{ degrees}", [r"\frac{270}{7}", "270/7"], ["38.57", "270"]),
    (r"10,\!080", ["10080", "10,080", "10{,}080"], ["10,80", "10, 080"]),
    ("1000", ["1,000", "1 000", "1e3", "1000.0"], ["1,00", "1 00", "999"]),
    (r"5 \text{ cm}", ["5", r"5\text{ centimeters}", "5 cm"], [r"5\text{ m}", r"5 \text{ cm}^2"]),
    (r"10\%", ["10", "0.1", r"10\%"], ["0.01", "1"]),
    ("5", ["x=5", "x = 5.0", "(5)", r"\text{5}", r"5 \text{ apples}"], ["x=6", "-5", "5x", "55"]),
    ("k = 15", ["15", "k=15", "15=k"], ["m=15", "k=14"]),
    ("4343_6", ["4343_6", "4343_{6}", r"4343_{\text{six}}"], ["4343_7", "4344_6"]),
    (r"\text{Evelyn}", ["evelyn", r"\text{Evelyn}", r"\textbf{Evelyn}"], ["Briana", r"\text{Eve}"]),
    (r"\text{(C)}", ["C", "(C)", r"\text{C}"], ["B", "(D)"]),
    ("3, 5, 7", ["7,5,3", r"\{3,5,7\}", r"3, 5, \text{ and } 7"], ["3,5", "3,5,7,9", "3,5,5", "3,5,8"]),
    ("(3, 5)", [r"\left( 3, 5 \right)", "3,5", r"(3, \frac{10}{2})"], ["(5,3)", "[3,5]", "3", "(3,5,0)"]),
    (r"(2, 5]", ["(2,5]", r"\left(2,5\right]"], ["[2,5]", "(2,5)", "[2,5)"]),
    (r"(-\infty,-8)\cup(8,\infty)", [r"(8,\infty)\cup(-\infty,-8)"], [r"(-\infty,-8]\cup(8,\infty)"]),
    (r"1 \pm \sqrt{19}", [r"1-\sqrt{19}, 1+\sqrt{19}", r"1\pm\sqrt{19}"], [r"1+\sqrt{19}", r"1\pm\sqrt{17}"]),
    ("y = 2x + 3", ["y=3+2x", "2x+3", "y-2x=3"], ["y=3x+2", "y=2x"]),
    ("x^2 - 1", ["(x-1)(x+1)", "-1+x^2", "x^2-1"], ["x^2+1", "(x-1)^2", "y^2-1"]),
    (r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", [r"\begin{bmatrix}1\\-2\end{bmatrix}"],
     [r"\begin{pmatrix}-2\\1\end{pmatrix}", r"\begin{pmatrix}1&-2\end{pmatrix}",
      r"\begin{pmatrix}1\\-2\\0\end{pmatrix}"]),
    (r"\frac{9}{100}", ["0.09", "9/100", r"\dfrac{18}{200}", ".09"], ["0.9", r"\frac{100}{9}"]),
    (r"\frac{1}{3}", [r"0.\overline{3}", "0.3333333"], ["0.33", "0.3", r"0.\overline{33}4"]),
    (r"\frac{23}{36}", [r"\tfrac{23}{36}"], ["0.64", "0.639"]),
    (r"11 \frac{2}{3}", [r"\frac{35}{3}", r"11\frac{2}{3}", "35/3"], [r"\frac{22}{3}"]),
    (r"\sqrt{2}", [r"\sqrt2", r"\frac{2}{\sqrt{2}}", "1.4142135623"], ["1.41", "2"]),
    (r"\frac{\pi}{10^{20}}", [r"\pi \cdot 10^{-20}"], [r"\frac{2\pi}{10^{20}}"]),
    ("4t", ["4t", "t*4"], ["4", "5t"]),
    ("-2-14i", ["-14i-2"], ["-2+14i", "2-14i"]),
    (7, ["7", "7.0"], ["8"]),
    (385670.9999999999, ["385671"], ["385670", "385672"]),
    ([r"\frac{1}{2}", "0.75"], ["0.5", r"\frac34"], ["0.25"]),
    (r"$\boxed{\frac{1}{3}}$", [r"\frac13"], ["3"]),
    (r"x \ge 5", [r"[5, \infty)", r"x\geq 5"], ["x > 5", r"x \le 5"]),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), [(gold, answer) for gold, equal, _ in POLICY for answer in equal], ids=str)
def test_equal_answer_is_correct(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.CORRECT


@pytest.mark.parametrize(("gold", "answer"), [(gold, answer) for gold, _, near in POLICY for answer in near], ids=str)
def test_near_miss_is_wrong(verifier, gold, answer):
    assert boxed(verifier, answer, gold) is Outcome.WRONG


def test_counted_things_of_the_prompt_are_a_unit(verifier):
    assert boxed(verifier, "42 red apples", "42", "How many red apples are left?") is Outcome.CORRECT
    assert boxed(verifier, "42 pears", "42", "How many red apples are left?") is Outcome.WRONG


def test_reason_does_not_tell_the_gold_answer(verifier):
    verdict = judge(verifier, r"\boxed{41}", "8675309")
    assert verdict.outcome is Outcome.WRONG
    assert "8675309" not in verdict.reason


@pytest.mark.parametrize("target", [None, "", r"\boxed{}", "$$", [], [""], True, {"a": 1}])
def test_target_that_is_no_answer_is_refused(verifier, target):
    with pytest.raises(VerifierInputError):
        judge(verifier, r"\boxed{1}", target)


def test_unknown_options_are_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="extract"):
        verifiers.make("math", extrakt="latex")
    with pytest.raises(UnknownNameError, match="latex"):
        verifiers.make("math", extract="latx")


# real data


@pytest.mark.parametrize(
    ("name", "field", "prompt"),
    [
        ("gsm8k/train.jsonl.gz", "final", "question"),
        ("gsm8k/test_first_half.jsonl", "final", "question"),
        ("math500/math500_a.jsonl", "answer", "problem"),
        ("math_hendrycks/train.jsonl.gz", "answer", "problem"),
        ("math_hendrycks/test_minus_heldout.jsonl.gz", "answer", "problem"),
        ("svamp/svamp_a.jsonl", "answer", "question"),
        ("gsm_hard/gsmhard_first.jsonl", "target", "question"),
        ("college_math_ccby/college_math_a.jsonl", "answer", "question"),
    ],
)
def test_every_gold_answer_of_real_data_earns_full_reward(verifier, name, field, prompt):
    golds = [(row[field], row[prompt]) for row in rows(name) if row[field] not in {None, ""}]
    pairs = [(Submission(f"So \\boxed{{{gold}}}."), Task("t", asked, gold)) for gold, asked in golds]
    failed = [
        pair[1].target for pair, verdict in zip(pairs, verifier.verify_many(pairs), strict=True) if verdict.reward != 1
    ]
    assert failed == []


def test_off_by_one_of_every_gsm8k_gold_answer_is_wrong(verifier):
    for row in rows("gsm8k/test_first_half.jsonl"):
        assert boxed(verifier, str(int(row["final"]) + 1), row["final"], row["question"]) is Outcome.WRONG


@pytest.mark.parametrize("extract", ["boxed", "latex"])
def test_rewritten_and_spoiled_answers_are_told_apart(extract):
    pairs = rows("math_answer_pairs/pairs.jsonl")
    submitted = [(Submission(pair["pred"]), Task("t", "", pair["gold"])) for pair in pairs]
    verdicts = MathVerifier(extract=extract).verify_many(submitted)
    agreed = sum((v.reward == 1) == pair["expected"] for v, pair in zip(verdicts, pairs, strict=True))
    assert agreed == len(pairs)


# the pool


def test_many_threads_get_their_own_verdicts(verifier):
    def ask(n: int) -> Outcome:
        return boxed(verifier, f"x + {n} + 1", f"{n + 1} + x" if n % 3 else f"{n} + x")

    with ThreadPoolExecutor(16) as threads:
        outcomes = list(threads.map(ask, range(200)))
    assert outcomes == [Outcome.CORRECT if n % 3 else Outcome.WRONG for n in range(200)]


def test_slow_answers_spend_their_own_time_only(verifier):
    pairs = [(Submission(rf"\boxed{{{SLOW} + {n}}}"), Task("t", "", f"{n}")) for n in range(3)]
    pairs.insert(1, (Submission(r"\boxed{2 + y + 3}"), Task("t", "", "5 + y")))
    outcomes = [verdict.outcome for verdict in verifier.verify_many(pairs)]
    assert outcomes == [Outcome.TIMEOUT, Outcome.CORRECT, Outcome.TIMEOUT, Outcome.TIMEOUT]
    assert len(_pool.shared_pool().pids()) == _pool.shared_pool().size


@pytest.mark.parametrize("seen", [True, False])
def test_killed_workers_are_replaced(verifier, monkeypatch, seen):
    if not seen:  # a busy machine takes its time to end a process
        monkeypatch.setattr("verigym.tasks._pool._Worker.alive", True)
    assert boxed(verifier, "2+z", "z+2") is Outcome.CORRECT
    for pid in _pool.shared_pool().pids():
        os.kill(pid, signal.SIGKILL)
    assert boxed(verifier, "1+z+1+2", "z+4") is Outcome.CORRECT


def test_close_from_another_thread_ends_the_wait_and_spares_the_others(verifier):
    closing = MathVerifier()
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(judge(closing, rf"\boxed{{{SLOW}+a}}", "a")))
    thread.start()
    closing.close()
    thread.join(timeout=60)
    assert [verdict.outcome for verdict in verdicts] == [Outcome.INFRA_ERROR]
    assert "closed" in verdicts[0].reason
    assert boxed(verifier, "3+b", "b+3") is Outcome.CORRECT


def test_closed_pool_leaves_no_process_and_starts_anew(verifier):
    assert boxed(verifier, "4+c", "c+4") is Outcome.CORRECT
    pids = _pool.shared_pool().pids()
    _pool.shared_pool().close()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert boxed(verifier, "5+c", "c+5") is Outcome.CORRECT


def test_forked_child_has_a_pool_of_its_own(verifier):
    assert boxed(verifier, "6+d", "d+6") is Outcome.CORRECT
    before = _pool.shared_pool().pids()
    child = os.fork()
    if child == 0:
        right = boxed(verifier, "7+d", "d+7") is Outcome.CORRECT
        own = not set(before) & set(_pool.shared_pool().pids())
        _pool.shared_pool().close()
        os._exit(0 if right and own else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert _pool.shared_pool().pids() == before
    assert boxed(verifier, "8+d", "d+8") is Outcome.CORRECT


SCRIPT = """
import sys, threading
from verigym import verifiers
from verigym.tasks.task import Task
from verigym.verifiers import Submission, _pool
verifier = verifiers.make("math")
def ask(answer):
    return verifier.verify(Submission("\\\\boxed{" + answer + "}"), Task("t", "", "e+1"))
assert ask("1+e").reward == 1
if sys.argv[1:]:
    threading.Thread(target=ask, args=sys.argv[1:], daemon=True).start()
print(*_pool.shared_pool().pids(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("busy", [False, True])
def test_workers_end_with_their_process_however_it_ends(busy):
    command = [sys.executable, "-c", SCRIPT, *([SLOW] if busy else [])]
    script = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert script.stdout is not None
    workers = [int(pid) for pid in script.stdout.readline().split()]
    assert workers
    script.kill()
    script.communicate()
    assert gone(workers)


def test_workers_end_at_a_normal_exit():
    script = subprocess.Popen([sys.executable, "-c", SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in script.communicate()[0].split()]
    assert script.returncode == 0
    assert workers
    assert gone(workers)


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 30
    while alive := [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
        if time.monotonic() > deadline:
            return not alive
        time.sleep(0.05)
    return True
