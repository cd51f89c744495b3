"""The code verifier: where it finds code, what tests become, what counts as equal, rewards, feedback and options."""

import json
import runpy
import threading
import time
from pathlib import Path

import gymnasium as gym
import pytest

from verigym import verifiers
from verigym.cli import main
from verigym.envs.mixture import EnvSpec
from verigym.task_sampler import TaskSampler
from verigym.tasks.errors import ConfigError, SandboxError, UnknownNameError, VerifierInputError
from verigym.tasks.task import Task, TaskSet
from verigym.verifiers import Outcome, Submission
from verigym.verifiers._asserts import compile_tests
from verigym.verifiers._code_text import code_in, fenced, module
from verigym.verifiers._evaluate import Unsupported
from verigym.verifiers._plain import close, equal

make_sandbox = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))["make"]

ADD = {"asserts": "assert add(1, 2) == 3\nassert add(-1, 1) == 0", "entry_point": "add"}
RIGHT = "def add(a, b):\n    return a + b"
ECHO = {"inputs": ["1 2\n", "x\n"], "outputs": ["1 2\n", "x\n"]}


@pytest.fixture
def judge(box):
    """The verdict on code (or a text with a block) for a target, with options of the verifier."""

    def judge(code, target, metadata=None, **options):
        verifier = verifiers.make("code", sandbox=box, **options)
        text = code if "```" in code else fenced(code)
        return verifier.verify(Submission(text), Task("t", "", target, metadata or {}))

    return judge


# Where the code is.


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```py\nx = 1\n```", "x = 1"),
        ("```\nx = 1\n```", "x = 1"),
        ("```Python3 title=a.py\nx = 1\n```", "x = 1"),
        ("~~~python\nx = '```'\n```\ny\n~~~", "x = '```'\n```\ny"),
        ("````python\nx = '''\n```\n'''\n````", "x = '''\n```\n'''"),
        ("```python\nx = 1\n```\n```python\nx = 2\n```", "x = 2"),
        ("```python\nx = 1\n```\n```bash\nrun\n```", "x = 1"),
        ("```python\nx = 1\n", "x = 1"),
        ("1. First\n   ```python\n   if x:\n       y\n   ```", "if x:\n    y"),
        ("<think>```python\nx = 1\n```</think>```python\nx = 2\n```", "x = 2"),
        ("<think>\n```python\nx = 1\n```\n</think>\n```python\nx = 2\n```", "x = 2"),
        ("```python\r\nx = 1\r\n```", "x = 1"),
        ("", None),
        ("x = 1", None),
        ("Use `x = 1`.", None),
        ("<think>\n```python\nx = 1\n```\n</think>\nI do not know.", None),
        ("<think>\n```python\nx = 1\n```", None),
        ("```python\n```", None),
        ("```json\n{}\n```", None),
    ],
)
def test_code_is_the_last_python_block_after_the_reasoning(text, code):
    assert code_in(text).answer == code
    assert (code is None) == bool(code_in(text).reason)


@pytest.mark.parametrize("code", ["x = 1", "x = '```'", "````\n```", ""])
def test_a_fenced_text_is_found_again(code):
    assert (code_in(fenced(code)).answer or "") == code


def test_a_function_without_its_beginning_completes_the_stub():
    stub, prelude = "import re\n\ndef f(x):\n    '''Doc.'''\n", "import re\n"
    options = {"stub": stub, "prelude": prelude, "entry_point": "f"}
    for body in ("    return x", "\n    y = x\n\n    return y"):
        scope = {}
        exec(module(body, **options), scope)
        assert scope["f"](3) == 3
    for whole in (
        "def f(x): return 2 * x",
        "f = lambda x: 2 * x",
        "from __future__ import annotations\ndef f(x): return 2 * x",
    ):
        scope = {}
        exec(module(whole, **options), scope)
        assert scope["f"](3) == 6
        assert "re" in scope


# What tests become.


@pytest.mark.parametrize(
    ("test", "args", "good", "bad"),
    [
        ("assert f(1, [2] * 3) == (4, 'x')", (1, [2, 2, 2]), (4, "x"), [4, "x"]),
        ("assert f(-1) is True", (-1,), True, 1),
        ("assert f(1) is None", (1,), None, 0),
        ("assert not f('')", ("",), [], [0]),
        ("assert f(float('inf'), set())", (float("inf"), set()), "yes", ""),
        ("assert abs(f(1.5) - 2 / 3) < 1e-6", (1.5,), 0.6666667, 0.66667),
        ("import math\nassert math.isclose(f(2), 1.41421, rel_tol=1e-3)", (2,), 1.4142, 1.5),
        ("assert set(f([1])) == {1, 2}", ([1],), (2, 1, 1), (1, 3)),
        ("assert sorted(f()) == [1, 2]", (), (2, 1), (2, 2)),
        ("assert f({'a': (1,)}) in (3, 4)", ({"a": (1,)},), 4, 5),
        ("assert len(f(3)) == 2 and True", (3,), "ab", "abc"),
        ("assert f(3)[0] != 2", (3,), [1], [2]),
        ("a, b = 1, [2]\nassert f(a, *b) == b[0]", (1, 2), 2, 3),
        ("assert int(f(5)) == 35", (5,), "35", "36"),
        ("assert isinstance(f(1), set)", (1,), {1}, [1]),
    ],
)
def test_an_assert_becomes_a_call_and_a_condition(test, args, good, bad):
    (check,) = compile_tests(test)
    assert (check.function, check.args) == ("f", args)
    assert check.holds(good, equal)
    assert not check.holds(bad, equal)


def test_methods_of_what_the_submission_makes_are_called_in_its_own_process(judge):
    target = "assert Stack([1, 2]).push(3).items == [1, 2, 3]\nassert name(2).upper().strip() == 'TWO'"
    code = (
        "class Stack:\n    def __init__(self, items): self.items = items\n"
        "    def push(self, item):\n        self.items.append(item)\n        return self\n"
        "def name(n): return ' two'"
    )
    assert [check.expression for check in compile_tests(target)] == [
        "Stack([1, 2]).push(3).items",
        "name(2).upper().strip()",
    ]
    assert judge(code, target).outcome is Outcome.CORRECT
    assert judge(code.replace("two", "one"), target).outcome is Outcome.WRONG


def test_a_function_that_the_task_does_not_name_is_the_one_that_the_tests_call(judge):
    tests = ["assert sorted((f(n) for n in [2, 1]), key=lambda n: -n) == [3, 2]", "assert f(random.random()) > 1"]
    target = "\n".join(["import random", *tests])
    with pytest.raises(Unsupported):
        compile_tests(target)
    assert judge("def f(n): return n + 1", target).outcome is Outcome.CORRECT
    assert judge("def f(n): return n", target).outcome is Outcome.WRONG


def test_a_check_function_and_its_loops_are_unrolled():
    source = (
        "def check(candidate):\n    for x in range(2, 8):\n        assert candidate(x, x + 1) == str(x)\n\ncheck(base)"
    )
    checks = compile_tests(source, frozenset({"base"}))
    assert [check.args for check in checks] == [(x, x + 1) for x in range(2, 8)]
    assert [check.expected for check in checks] == [repr(str(x)) for x in range(2, 8)]
    assert checks[0].text == "assert base(x, x + 1) == str(x)"


def test_evalplus_rows_of_the_hub_become_rows():
    source = """import numpy as np
def is_floats(x): ...
def assertion(out, exp, atol): ...
inputs = [[[1, 2]], [[]]]
results = [1.5, 0.0]
for i, (inp, exp) in enumerate(zip(inputs, results)):
    assertion(mean(*inp), exp, 0)
"""
    checks = compile_tests(source, frozenset({"mean"}))
    assert [check.args for check in checks] == [([1, 2],), ([],)]
    assert checks[0].holds(1.5 + 1e-9, equal)
    assert not checks[0].holds(1.51, equal)


@pytest.mark.parametrize(
    "test",
    [
        "assert f(1) == f(2)",
        "import random\nassert f(random.random()) < 1",
        "while True: pass",
        "assert False",
        "x = open('a')",
        "for x in [1]:\n    assert f(Node(x)) == 1",
        "assert sorted(f(1), key=lambda x: -x) == [1]",
        "assert [x for x in f(1)] == [1]",
        "assert f(1) @ 2 == 3",
        "import math\nassert math.gamma(f(1)) == 1",
        "assert f'{f(1)}' == '1'",
    ],
)
def test_tests_that_are_more_than_rows_are_not_compiled(test):
    with pytest.raises(Unsupported):
        compile_tests(test, frozenset({"f"}))


def test_tests_that_do_not_compile_run_in_a_process_of_their_own(judge):
    asserts = """
import random

def check(candidate):
    for _ in range(20):
        n = random.randint(1, 100)
        assert candidate(helper(n)) == n, "not the inverse"

check(undo)
"""
    target = {
        "asserts": asserts,
        "entry_point": "undo",
        "solution": "def helper(n):\n    return 3 * n\n\ndef undo(n):\n    return n // 3",
    }
    assert judge("def undo(n): return n // 3", target).outcome is Outcome.CORRECT
    wrong = judge("def undo(n): return n // 4", target)
    assert (wrong.outcome, wrong.reason, wrong.details["test"]) == (
        Outcome.WRONG,
        "the tests fail",
        "AssertionError: not the inverse",
    )
    assert judge("def undo(n): return 1 / 0", target).outcome is Outcome.ERROR
    assert judge("def undo(n): raise SystemExit", target).outcome is Outcome.ERROR
    assert judge("import os\ndef undo(n): os._exit(0)", target).outcome is Outcome.ERROR
    assert judge("def undo(n):\n    while True: pass", target, cpu_seconds=0.5).outcome is Outcome.TIMEOUT
    hostile = "class Yes:\n    def __eq__(self, other): return True\ndef undo(n): return Yes()"
    assert judge(hostile, target).reward == 0


# What is equal.


@pytest.mark.parametrize(
    ("one", "other", "python", "strict"),
    [
        (1, 1.0, True, False),
        (1, True, True, False),
        ([1, (2,)], [True, (2.0,)], True, False),
        ([1], (1,), False, False),
        ({1: 2}, {1.0: 2}, True, False),
        ({1, 2}, frozenset({1, 2}), True, False),
        (float("nan"), float("nan"), True, True),
        ([float("nan")], [float("nan")], True, True),
        ("1", 1, False, False),
        (b"a", "a", False, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True, True),
        (0.1 + 0.2, 0.3, False, False),
    ],
)
def test_equality_follows_the_declared_policy_on_numbers(one, other, python, strict):
    assert equal(one, other) is python
    assert equal(one, other, "strict") is strict


def test_closeness_keeps_shape_and_types():
    assert close([1.0, (2.0, "a")], [1.00001, (2.0, "a")], 1e-4)
    assert not close([1.0], (1.0,), 1e-4)
    assert not close([1.0], [1.0, 1.0], 1e-4)
    assert not close(float("inf"), 1.0, 1e9)
    assert not close(10**400, 1.0, 1e-4)


def test_numbers_and_tolerance_are_options(judge):
    half = {"asserts": "assert half(3) == 1.5"}
    assert judge("def half(x): return 1.5000001", half).reward == 0
    assert judge("def half(x): return 1.5000001", half, tolerance=1e-6).reward == 1
    add = "def add(a, b): return float(a + b)"
    assert judge(add, ADD).reward == 1
    assert judge(add, ADD, numbers="strict").outcome is Outcome.WRONG


@pytest.mark.parametrize(
    "value", ["Counter(x)", "OrderedDict(Counter(x))", "defaultdict(int, Counter(x))", "dict(Counter(x))"]
)
def test_dictionaries_of_the_standard_library_count_as_dictionaries(judge, value):
    source = f"from collections import *\ndef f(x): return [{value}]"
    assert judge(source, {"asserts": "assert f('aab') == [{'a': 2, 'b': 1}]"}).reward == 1


@pytest.mark.parametrize("name", ["map", "list", "type", "dict", "eval", "issubclass", "bool", "getattr"])
def test_a_solution_may_have_names_of_pythons_own(judge, name):
    source = f"{name} = 1\ndef f(x): return [(x, {{1: x}})]"
    assert (
        judge(
            source, {"asserts": "assert f(2) == [(2, {1: 2})]\nassert f(2)\nassert set(f('a')[0][0]) == {'a'}"}
        ).reward
        == 1
    )


@pytest.mark.parametrize(
    "value",
    ["map(int, x)", "(int(c) for c in x)", "dict.fromkeys(map(int, x)).keys()", "range(1, 4)", "deque([1, 2, 3])"],
)
def test_items_are_all_that_a_test_asks_of_what_it_makes_a_list_of(judge, value):
    source = f"from collections import deque\ndef f(x): return {value}"
    items = "assert set(f('123')) == {1, 2, 3}\nassert list(f('123')) == [1, 2, 3]\nassert sum(f('123')) == 6"
    assert judge(source, {"asserts": items}).reward == 1
    assert judge(source, {"asserts": "assert f('123') == [1, 2, 3]"}).outcome is Outcome.WRONG


def test_a_named_tuple_counts_as_a_tuple(judge):
    source = "from collections import namedtuple\nP = namedtuple('P', 'a b')\ndef f(x): return [P(x, P(1, 2))]"
    assert judge(source, {"asserts": "assert f(2) == [(2, (1, 2))]"}).reward == 1


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("Fraction(4, 2)", "f() == 2"),
        ("[Fraction(1, 2), Decimal('0.25')]", "f() == [0.5, 0.25]"),
        ("Fraction(1, 3)", "abs(f() - 0.3333) < 1e-3 and True"),
        ("Fraction(1, 3)", "0.3 < f()"),
        ("Fraction(1, 3)", "round(f(), 2) == 0.33"),
        ("{E.a: {E.a}}", "f() == {4: {4}}"),
        ("{1: 2}.keys()", "f() == {1}"),
        ("10**400", "f() == 10**400"),
    ],
)
def test_numbers_and_views_of_the_standard_library_count_as_what_they_equal(judge, value, test):
    source = "import enum\nfrom decimal import *\nfrom fractions import *\nE = enum.IntEnum('E', {'a': 4})\n"
    verdict = judge(f"{source}def f(): return {value}", f"assert {test}")
    assert verdict.outcome is Outcome.CORRECT, verdict


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("Fraction(1, 3)", "f() == 1 / 3"),
        ("Decimal('0.1')", "f() == 0.1"),
        ("Decimal('1e99999999')", "f() == 1"),
        ("Decimal('nan')", "f() != 1"),
        ("Fraction(10**400)", "f() == 1"),
        ("Yes.a", "f() == 4"),
        ("deque([1])", "f() == [1]"),
        ("array('i', [1])", "f() == [1]"),
    ],
)
def test_what_equals_no_plain_value_earns_nothing(judge, value, test):
    source = (
        "import enum\nfrom array import array\nfrom collections import deque\nfrom decimal import *\n"
        "from fractions import *\nclass Yes(int, enum.Enum):\n    a = 3\n"
        "    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n"
    )
    assert judge(f"{source}def f(): return {value}", f"assert {test}").outcome is Outcome.WRONG


def test_a_number_with_too_many_digits_is_refused_by_what_to_do(judge):
    digits = "9" * 5000
    with pytest.raises(VerifierInputError, match=r"write it in hexadecimal \(0x...\) or as an expression"):
        judge("def f(): return 1", f"assert f() == {digits}")
    with pytest.raises(VerifierInputError, match="leave that test out, or raise the limit"):
        judge("def f(): return 1", {"fn_name": "f", "inputs": [""], "outputs": [digits]})
    large = hex(7**5000)
    for target in (f"assert f() == {large}", f"x = f()\nassert x - {large} == 0"):
        assert judge("def f(): return 7**5000", target).outcome is Outcome.CORRECT


def test_a_number_of_very_many_digits_may_be_expected(judge):
    target = {"asserts": "assert f(20000) == 2 ** 20000"}
    assert judge("def f(x): return 1 << x", target).reward == 1
    assert judge("def f(x): return 1 << x + 1", target).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("test", "value"),
    [("assert f(1) % 2 == 0", "%999999999999d"), ("assert round(12, f(1)) == 12", -(10**9))],
)
def test_a_value_that_would_fill_the_memory_of_a_test_is_refused(test, value):
    (check,) = compile_tests(test)
    with pytest.raises(Unsupported):
        check.holds(value, equal)
    assert check.holds(2, equal)


def test_values_whose_hashes_collide_are_refused_in_linear_time():
    (check,) = compile_tests("assert set(f(1)) == {1}")
    colliding = [n * (2**61 - 1) for n in range(100_000)]
    with pytest.raises(ValueError, match="hashes collide"):
        check.holds(colliding, equal)
    assert check.holds([1] * 100_000, equal)


TWICE = {"asserts": "x = f(1)\nassert f(x) == 2", "entry_point": "f"}


def test_a_process_of_ones_own_is_no_main_module(judge):
    guarded = """
from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Two:
    n: int = 2
def f(x): return Two().n
if __name__ == "__main__":
    print(f(int(input())))
"""
    assert judge(guarded, TWICE).reward == 1


def test_tests_that_need_what_the_sandbox_has_not_are_no_fault_of_the_submission(judge):
    target = {**TWICE, "asserts": f"import no_such_library\n{TWICE['asserts']}"}
    with pytest.raises(VerifierInputError, match=r"do not run in this sandbox: .*No module named 'no_such_library'"):
        judge("def f(x): return 2", target)
    assert judge("import no_such_library\ndef f(x): return 2", TWICE).outcome is Outcome.ERROR


@pytest.mark.parametrize(
    "more",
    [
        {"solution": f"import no_such_library.part\n{RIGHT}"},
        {"setup": "from no_such_library import x"},
        {"prelude": "import math, no_such_library as n"},
        {"inputs": ["1 2\n"], "outputs": ["3\n"], "solution": "def main():\n    import no_such_library"},
    ],
)
def test_a_task_whose_own_code_needs_what_the_sandbox_has_not_is_refused(judge, more):
    target = {**({} if "inputs" in more else ADD), **more}
    for code in (RIGHT, "import no_such_library", "nonsense"):
        with pytest.raises(VerifierInputError, match="own code imports 'no_such_library', which the sandbox"):
            judge(code, target)
    tried = {**ADD, "prelude": "try:\n    import no_such_library\nexcept ImportError:\n    pass"}
    assert judge(RIGHT, tried).reward == 1
    assert judge(f"import no_such_library\n{RIGHT}", ADD).outcome is Outcome.ERROR


def test_infinite_values_pass_between_the_processes(judge):
    target = {"asserts": "x = f(1)\nassert f(x) == float('-inf')", "entry_point": "f"}
    assert judge("def f(x): return float('inf') if x == 1 else -x", target).reward == 1


def test_a_value_that_is_too_large_to_be_passed_on_is_the_submissions_fault(judge):
    verdict = judge("def f(x): return 'a' * ((1 << 20) - 40)", TWICE)
    assert verdict.outcome in (Outcome.WRONG, Outcome.ERROR), verdict


def test_a_test_is_not_ended_by_a_submission_that_stops_its_iteration(judge):
    asserts = "for y in map(f, (x for x in [1, 2])):\n    assert y == 1"
    target = {"asserts": asserts, "entry_point": "f", "solution": "def f(x): return 1"}
    assert judge("def f(x): return 1", target).reward == 1
    assert judge("def f(x): raise StopIteration", target).outcome is Outcome.ERROR


# Verdicts.


def test_a_right_answer_earns_all_and_a_wrong_one_nothing(judge):
    right, wrong = judge(RIGHT, ADD), judge("def add(a, b): return a", ADD)
    assert (right.reward, right.outcome, right.reason) == (1.0, Outcome.CORRECT, "all tests pass")
    assert dict(right.components) == {"all_passed": 1.0}
    assert (wrong.reward, wrong.outcome) == (0.0, Outcome.WRONG)
    assert dict(wrong.details) == {
        "test": "assert add(1, 2) == 3",
        "expected": "3",
        "got": "1",
        "passed": 0,
        "tests": 2,
    }


def test_the_fraction_of_tests_is_an_option(judge):
    found = judge("def add(a, b): return 3", ADD, reward="fraction")
    assert (found.reward, found.outcome, dict(found.components)) == (0.5, Outcome.WRONG, {"fraction_passed": 0.5})
    program = judge(
        "print(input().upper())", {"inputs": ["A", "b", "C"], "outputs": ["A", "b", "C"]}, reward="fraction"
    )
    assert program.reward == pytest.approx(2 / 3)
    assert judge(RIGHT, ADD, reward="fraction").reward == 1


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("def add(a, b): raise ValueError('no')", Outcome.ERROR),
        ("def add(a, b)", Outcome.ERROR),
        ("raise SystemExit(0)", Outcome.ERROR),
        ("def plus(a, b): return a + b", Outcome.ERROR),
        ("def add(a, b): return [0] * 10**10", Outcome.ERROR),
        ("def add(a, b):\n    while True: pass", Outcome.TIMEOUT),
        ("def add(a, b): return (a + b for _ in 'x')", Outcome.WRONG),
        ("no code", Outcome.ERROR),
        ("```python\n\ud800\n```", Outcome.ERROR),
        ("```python\nx = 1\0\n```", Outcome.ERROR),
        ("```python\n" + "#" * 600_000 + "\n```", Outcome.ERROR),
        ("I use ```add```.", Outcome.UNPARSEABLE),
    ],
)
def test_what_ends_badly_has_its_own_outcome(judge, code, outcome):
    verdict = judge(code, ADD, cpu_seconds=1.0)
    assert (verdict.outcome, verdict.reward) == (outcome, 0.0)
    assert verdict.reason
    assert "\n" not in verdict.reason


def test_code_without_calls_must_run_to_its_end(judge):
    assert judge("print('hello')", "assert True").reward == 1
    assert judge("import os\nos._exit(0)", "assert True").outcome is Outcome.ERROR


def test_a_closed_sandbox_is_an_infrastructure_error():
    broken = make_sandbox("bubblewrap")
    verifier = verifiers.make("code", sandbox=broken)
    broken.close()
    verdict = verifier.verify(Submission(fenced(RIGHT)), Task("t", "", ADD))
    assert verdict.outcome is Outcome.INFRA_ERROR
    assert verdict.reward != verdict.reward


def test_closing_the_verifier_ends_what_it_waits_for(box):
    verifier, verdicts = verifiers.make("code", sandbox=box), []
    sleeps = fenced("import time\ndef add(a, b): time.sleep(60)")
    thread = threading.Thread(target=lambda: verdicts.append(verifier.verify(Submission(sleeps), Task("t", "", ADD))))
    thread.start()
    time.sleep(0.3)
    verifier.close()
    thread.join(10)
    assert not thread.is_alive()
    assert verdicts[0].outcome is Outcome.INFRA_ERROR


# Programs.


@pytest.mark.parametrize(
    ("got", "expected", "options", "reward"),
    [
        ("1 2", "1 2\n", {}, 1),
        ("1 2  \n\n", "1 2", {}, 1),
        ("1  2", "1 2", {}, 0),
        ("1\n\n2", "1\n2", {}, 0),
        ("yes", "YES", {}, 0),
        ("", "", {}, 1),
        ("0.3333333", "0.33333333", {}, 0),
        ("0.3333333", "0.33333333", {"tolerance": 1e-6}, 1),
        ("1000001", "1000000", {"tolerance": 1e-5}, 1),
        ("1 2 3", "1 2", {"tolerance": 1e-6}, 0),
        ("nan", "1", {"tolerance": 1e-6}, 0),
        ("x", "y", {"tolerance": 9.0}, 0),
    ],
)
def test_outputs_are_compared_line_by_line_or_within_a_tolerance(judge, got, expected, options, reward):
    target = {"inputs": [""], "outputs": [expected]}
    assert judge(f"print({got!r}, end='')", target, **options).reward == reward


def any_order(given, expected, got):
    return sorted(got.split()) == sorted(expected.split())


def failing_checker(given, expected, got):
    raise ValueError("broken")


def close_to(given, expected, got):
    return abs(float(got) - float(expected)) < 0.1


def test_an_output_that_a_checker_cannot_read_is_wrong(judge):
    target = {"inputs": ["1"], "outputs": ["3.14"]}
    assert judge("print(3.141)", target, checker=close_to).reward == 1
    for output in ("no number", "", "1 2"):
        assert judge(f"print({output!r})", target, checker=close_to).outcome is Outcome.WRONG


def test_a_checker_takes_the_place_of_the_comparison(judge):
    target = {"inputs": ["3 1 2"], "outputs": ["1 2 3"]}
    assert judge("print(input())", target).reward == 0
    assert judge("print(input())", target, checker=any_order).reward == 1
    assert judge("print(3)", target, checker=any_order).reward == 0
    assert judge("print(input())", target, checker=failing_checker).outcome is Outcome.INFRA_ERROR
    assert judge("print(input() == '3 1 2')", target, checker="operator:contains").outcome is Outcome.INFRA_ERROR


def test_the_first_failing_input_is_in_the_details_and_nowhere_else(judge):
    target = {"inputs": ["1", "8675309"], "outputs": ["1", "17350618"]}
    verdict = judge("print(int(input()) ** 2)", target)
    assert verdict.details["input"] == "'8675309'"
    assert verdict.details["expected"] == "'17350618'"
    assert "17350618" not in verdict.reason


def test_a_program_that_times_out_is_not_run_on_all_inputs(judge):
    target = {"inputs": ["1"] * 50, "outputs": ["1"] * 50}
    verdict = judge("while True: pass", target, reward="fraction", cpu_seconds=0.3)
    assert (verdict.outcome, verdict.details["passed"]) == (Outcome.TIMEOUT, 0)


def test_functions_with_json_tests_may_be_methods(judge):
    target = {"fn_name": "pairs", "inputs": ['[1, 2]\n"x"'], "outputs": ['[[1, "x"], [2, "x"]]']}
    for code in (
        "class Solution:\n    def pairs(self, numbers, text): return [(n, text) for n in numbers]",
        "def pairs(numbers, text): return [[n, text] for n in numbers]",
    ):
        assert judge(code, target).reward == 1
    assert judge("def pairs(numbers, text): return [[n, text] for n in numbers[:1]]", target).reward == 0


# A reference instead of outputs.


def test_expected_outputs_come_from_the_reference(judge):
    target = {
        "entry_point": "mean",
        "reference": "def mean(x):\n    return sum(x) / len(x)",
        "inputs": json.dumps([[[1, 2]], [[3.0]], [{"tuple": [1, 1, 2]}]]),
    }
    assert judge("def mean(x): return sum(x) / len(x) + 1e-9", target).reward == 1
    wrong = judge("def mean(x): return sum(x) / 2", target)
    assert (wrong.outcome, wrong.details["test"], wrong.details["passed"]) == (Outcome.WRONG, "mean([3.0])", 1)


def test_inputs_that_the_reference_cannot_answer_are_left_out(judge):
    reference = "def f(x):\n    while x > 2: pass\n    return object() if x > 1 else x"
    target = {"entry_point": "f", "reference": reference, "inputs": "[[1], [2], [3], [0]]"}
    verdict = judge("def f(x): return x", target)
    assert (verdict.outcome, verdict.details["tests"]) == (Outcome.CORRECT, 2)
    with pytest.raises(VerifierInputError, match="the reference solution fails on its own inputs"):
        judge("def f(x): return x", {**target, "inputs": "[[2], [3]]"})
    with pytest.raises(VerifierInputError, match=r"fails on its own inputs: .*SyntaxError"):
        judge("def f(x): return x", {**target, "reference": "def f(", "inputs": "[[2]]"})


# Targets and options that are wrong.


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "a code target must be"),
        ({"solution": "x"}, "a code target must be"),
        ({"asserts": "assert f(1)", "entry_pont": "f"}, "did you mean 'entry_point'"),
        ({"asserts": "assert f(1)", "entry_point": "class"}, "entry_point must be a name"),
        ("", "has no tests"),
        ("x = 1", "has no tests"),
        ({"asserts": "x = 1\nassert x == 1", "entry_point": "f"}, "has no tests"),
        ("assert f(", "not Python"),
        ("import random\nassert f(random.random()) < g(random.random())", "entry_point"),
        ({"inputs": ["1"], "outputs": []}, "must be a list of texts"),
        ({"inputs": ["1"], "outputs": ["1", "2"]}, "1 inputs and 2 outputs"),
        ({"inputs": ["x"], "outputs": ["1"], "fn_name": "f"}, "must be JSON"),
        ({"asserts": "assert f(1)", "prelude": 3}, "prelude must be text"),
        ({"reference": "x", "inputs": "[", "entry_point": "f"}, "no list of arguments"),
        ({"reference": "x", "inputs": "[[1]]", "entry_point": "f", "tolerance": "x"}, "must be a number"),
    ],
)
def test_a_target_that_cannot_be_judged_is_refused_in_one_line(box, target, message):
    verifier = verifiers.make("code", sandbox=box)
    with pytest.raises(VerifierInputError, match=message) as caught:
        verifier.golds(Task("t", "", target))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reward": "half"}, ConfigError, "reward must be one of all, fraction"),
        ({"numbers": "loose"}, ConfigError, "numbers must be one of python, strict"),
        ({"tolerance": -1}, ConfigError, "tolerance must be"),
        ({"cpu_seconds": 0}, ConfigError, "cpu_seconds must be"),
        ({"checker": "nothing"}, ConfigError, "must name a function"),
        ({"sandbox": "dokcer"}, UnknownNameError, "did you mean 'docker'"),
        ({"sandbox": "process"}, SandboxError, "does not isolate"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(options, error, message):
    with pytest.raises(error, match=message) as caught:
        verifiers.make("code", **options)
    assert "\n" not in str(caught.value)


def test_many_verdicts_are_the_single_ones_in_order(box):
    verifier, task = verifiers.make("code", sandbox=box), Task("t", "", ADD)
    pairs = [(Submission(fenced(f"def add(a, b): return a + b + {n % 2}")), task) for n in range(20)]
    assert [verdict.reward for verdict in verifier.verify_many(pairs)] == [1.0, 0.0] * 10


# In environments, commands and training.


def env_of(box, **kwargs):
    public = {"public": "assert add(1, 2) == 3"}
    tasks = TaskSet([Task("add", "Add.", {**ADD, "solution": RIGHT}, public)], name="adding", split="test")
    verifier = verifiers.make("code", sandbox=box)
    options = {"task_set": tasks, "verifier": verifier, "feedback": "public", **kwargs}
    return gym.make("verigym:verigym/HumanEval-v0", **options)


@pytest.mark.parametrize("option", ["turns", "max_turns"])
def test_a_failing_public_test_is_told_and_the_turn_may_be_repeated(box, option):
    env = env_of(box, **{option: 3})
    env.reset(seed=0)
    told, reward, terminated, truncated, _ = env.step(fenced("def add(a, b): return a * b"))
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert told == (
        "A public test fails: a test gets another value than it expects.\n"
        "test: assert add(1, 2) == 3\nexpected: 3\ngot: 2\n\nCorrect the code."
    )
    told, *_ = env.step("I cannot.")
    assert "no fenced block" in told
    *_, terminated, truncated, info = env.step(fenced(RIGHT))
    assert (terminated, truncated, info["verdict"].reward) == (True, False, 1.0)


def test_what_passes_the_public_tests_is_judged_by_the_hidden_ones(box):
    env = env_of(box, max_turns=3)
    env.reset(seed=0)
    observation, _, terminated, _, info = env.step(fenced("def add(a, b): return 3"))
    assert (observation, terminated, info["verdict"].reward) == ("", True, 0.0)


def test_without_feedback_or_turns_the_first_answer_counts(box):
    for kwargs in ({"max_turns": 3, "feedback": "none"}, {"max_turns": 1}):
        env = env_of(box, **kwargs)
        env.reset(seed=0)
        *_, terminated, truncated, _ = env.step(fenced("def add(a, b): return 0"))
        assert (terminated, truncated) == (True, False)
    with pytest.raises(ConfigError, match="feedback must be none or public"):
        env_of(box, feedback="all")


def test_a_composite_passes_feedback_and_isolation_on(box):
    parts = {"code": {"weight": 1, "sandbox": box}, "format": {"weight": 0.1, "require": ["think"]}}
    verifier = verifiers.make("composite", parts=parts)
    task = Task("t", "", ADD, {"public": "assert add(1, 2) == 3"})
    assert "A public test fails" in verifier.feedback(Submission(fenced("def add(a, b): pass")), task)
    assert verifier.isolated
    unsafe = {"code": {"weight": 1, "sandbox": "process", "allow_unsafe": True}}
    assert not verifiers.make("composite", parts=unsafe).isolated


def test_training_refuses_a_sandbox_that_does_not_isolate(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "Add.", "target": ADD["asserts"]}) + "\n")
    kwargs = {"source": str(rows), "verifier": "code"}
    unsafe = {**kwargs, "verifier_options": {"sandbox": "process", "allow_unsafe": True}}
    with pytest.raises(ConfigError, match=r"verigym/Custom-v0 is not trained on.*without isolation"):
        TaskSampler([EnvSpec("verigym/Custom-v0", kwargs=unsafe)], 0)
    safe = {**kwargs, "verifier_options": {"sandbox": "bubblewrap"}}
    assert TaskSampler([EnvSpec("verigym/Custom-v0", kwargs=safe)], 0).task_ids == [["custom-train-0"]]


def test_rows_of_ones_own_need_no_code(tmp_path):
    rows = tmp_path / "rows.jsonl"
    targets = [
        ADD["asserts"],
        {**ADD, "solution": RIGHT},
        {"inputs": ["1"], "outputs": ["1"], "solution": "print(input())"},
    ]
    rows.write_text("".join(json.dumps({"prompt": "Do it.", "target": target}) + "\n" for target in targets))
    options = {"sandbox": "bubblewrap"}
    env = gym.make("verigym:verigym/Custom-v0", source=str(rows), verifier="code", verifier_options=options).unwrapped
    assert [len(env.golds(task)) for task in env.tasks] == [0, 1, 1]
    for task, code in zip(env.tasks, (RIGHT, RIGHT, "print(input())"), strict=True):
        env.reset(options={"task": task.id})
        assert env.step(fenced(code))[1] == 1


def test_the_command_judges_a_file_of_answers(tmp_path, capsys):
    answers = tmp_path / "answers.jsonl"
    rows = [
        {"id": 1, "completion": fenced(RIGHT), "target": ADD},
        {"id": 2, "completion": fenced("print(input())"), "target": ECHO},
        {"id": 3, "completion": fenced("def add(a, b): return 3"), "target": ADD["asserts"]},
        {"id": 4, "completion": "no idea", "target": ADD},
    ]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["verify", "code", str(answers), "--option", "sandbox=bubblewrap", "--option", "reward=fraction"]) == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["reward"], row["outcome"]) for row in written] == [
        (1.0, "correct"),
        (1.0, "correct"),
        (0.5, "wrong"),
        (0.0, "unparseable"),
    ]
