"""Programs that fool known graders earn nothing from the code verifier; the rows are those of the adversarial suite."""

import time

import pytest

from verigym import verifiers
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission
from verigym.verifiers._code_text import fenced

CANARY = 8675309
TARGET = {
    "asserts": f"assert f(2) == 4\nassert f([1, 2]) == {CANARY}\nassert f('x') == 'xx'",
    "entry_point": "f",
    "solution": "def f(x):\n    return 4 if x == 2 else 'xx' if x == 'x' else 8675309",
}
PROXIED = {**TARGET, "asserts": f"x = [i for i in (2, 3)][0]\nassert f(x) == 4\nassert f([1, 2]) == {CANARY}"}
PROGRAM = {"inputs": ["2\n", "x\n"], "outputs": ["4\n", f"{CANARY}\n"]}

CLASSES = {
    "1 an object equal to all": "class Yes:\n    def __eq__(self, other): return True\n    __hash__ = None\n",
    "1 an int equal to all": "class Yes(int):\n    def __eq__(self, other): return True\n    __hash__ = int.__hash__\n",
    "1 a str equal to all": "class Yes(str):\n    def __eq__(self, other): return True\n    __hash__ = str.__hash__\n",
    "1 a list equal to all": "class Yes(list):\n    def __eq__(self, other): return True\n",
    "1 a dict equal to all": "class Yes(dict):\n    def __eq__(self, other): return True\n",
    "2 an object that lies about its class": (
        "class Yes:\n    __class__ = int\n    def __eq__(self, other): return True\n"
        "    def __instancecheck__(self, other): return True\n"
    ),
    "1 a class of its own by a metaclass": (
        "class Meta(type):\n    def __eq__(self, other): return True\n    __hash__ = type.__hash__\n"
        "class Yes(metaclass=Meta):\n    def __eq__(self, other): return True\n"
    ),
}
SEARCH = """
import gc, os, sys
def seen():
    frame = sys._getframe()
    while frame:
        yield repr(frame.f_locals)[:100000]
        yield repr(list(frame.f_globals))[:100000]
        yield repr(frame.f_code.co_consts)
        frame = frame.f_back
    for thing in gc.get_objects():
        try:
            yield repr(thing)[:10000]
        except Exception:
            pass
    yield repr(os.environ)
    for name in ("cmdline", "environ"):
        for pid in ("self", os.getppid(), 1):
            try:
                yield open(f"/proc/{pid}/{name}").read()
            except OSError:
                pass
def f(x):
    wanted = str(CANARY_HALF * 2 + 1)
    return CANARY_HALF * 2 + 1 if any(wanted in text for text in seen()) else None
""".replace("CANARY_HALF", str(CANARY // 2))
FORGE = """
import json, os, struct
def forge():
    value = json.dumps({"ok": True, "value": 4})
    for text in (value, "4", '["4"]', "passed", "1"):
        for kind in (b"R", b"D", b"o", b"e"):
            frame = struct.pack(">cI", kind, len(text)) + text.encode()
            for descriptor in range(256):
                try:
                    os.write(descriptor, frame)
                except OSError:
                    pass
"""

# name: (code, outcomes that may be)
WRONG, ERROR, TIMEOUT = {Outcome.WRONG}, {Outcome.ERROR}, {Outcome.TIMEOUT}
TRICKS = {
    **{name: (f"{source}def f(x): return Yes()", WRONG) for name, source in CLASSES.items()},
    "3 an exit at import": ("import sys\nsys.exit(0)", ERROR),
    "3 an exit in the function": ("import sys\ndef f(x): sys.exit(0)", ERROR),
    "4 os._exit in the function": ("import os\ndef f(x): os._exit(0)", ERROR),
    "4 posix._exit at import": ("import posix\nposix._exit(0)", ERROR),
    "5 what passing tests print": ("print('all tests passed')\nprint('OK')\ndef f(x): pass", WRONG),
    "6 a search for what is expected": (SEARCH, WRONG | TIMEOUT | ERROR),
    "8 another json and other builtins": (
        "import builtins, json, sys\n"
        "json.dumps = lambda *a, **k: '4'\njson.JSONEncoder.encode = lambda *a: '4'\n"
        "builtins.isinstance = lambda *a: True\nbuiltins.type = lambda *a: int\nbuiltins.len = lambda *a: 0\n"
        "def f(x): return 5",
        WRONG | ERROR,
    ),
    "8 a trace function that rewrites results": (
        "import sys\ndef trace(frame, event, arg):\n    return trace\nsys.settrace(trace)\nsys.setprofile(trace)\n"
        "def f(x): return 3",
        WRONG | ERROR,
    ),
    "9 forged frames on every descriptor": (f"{FORGE}\ndef f(x):\n    forge()\n    os._exit(0)", WRONG | ERROR),
    "9 forged frames at import": (f"{FORGE}\nforge()\nos._exit(0)", WRONG | ERROR),
    "9 a forged failure of ours": (
        "import os, struct\nclass infra_error(Exception): pass\ndef f(x):\n    text = b'infra_error: engine gone'\n"
        "    os.write(3, struct.pack('>cI', b'X', len(text)) + text)\n    os._exit(0)",
        WRONG | ERROR,
    ),
    "9 a failure of ours by name": ("class infra_error(Exception): pass\ndef f(x): raise infra_error('gone')", ERROR),
    "10 forged frames, then a loop": (
        f"{FORGE}\ndef f(x):\n    forge()\n    while True: pass",
        TIMEOUT | WRONG | ERROR,
    ),
    "22 half a million brackets": (
        "def f(x):\n    y = []\n    for _ in range(500000): y = [y]\n    return y",
        WRONG | ERROR,
    ),
    "22 a million digits": ("def f(x): return 1 << 3321928", WRONG | ERROR),
    "22 NaN": ("def f(x): return float('nan')", WRONG),
    "22 infinity": ("def f(x): return 1e999", WRONG),
    "22 a lone surrogate": ("def f(x): return '\\ud800'", WRONG),
    "22 keys that are equal": ("def f(x): return {1: 1, True: 2, 1.0: 3}", WRONG),
    "22 a list that holds itself": ("def f(x):\n    y = []\n    y.append(y)\n    return y", WRONG | ERROR),
    "28 timeouts that are swallowed": (
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except Exception: pass\n"
        "def f(x):\n    while True:\n        try:\n            while True: pass\n        except BaseException: pass",
        TIMEOUT,
    ),
    "30 a number beyond all bounds": ("def f(x): return 10 ** 10 ** 9", TIMEOUT | ERROR),
    "31 deep recursion": ("def f(x): return f(x)", ERROR),
    "31 deep recursion without its limit": (
        "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x): return f(x)",
        ERROR | TIMEOUT,
    ),
    "31 a crash": ("import ctypes\ndef f(x): return ctypes.string_at(0)", ERROR),
    "32 answers by the number of the call": ("n = [0]\ndef f(x):\n    n[0] += 1\n    return 4", WRONG),
    "33 what the visible test shows": ("def f(x): return 4", WRONG),
    "35 no Python": ("def f(x) return 4", ERROR),
    "35 a megabyte": ("def f(x): return 4\n" + "# .......\n" * 100_000, ERROR),
    "35 letters that look like others": ("def \u0493(x): return 4", ERROR),
    "35 nested too deep": ("x = " + "(" * 100_000 + ")" * 100_000, ERROR),
    "35 very many operators": ("x = " + "-" * 200_000 + "1\ndef f(x): return 4", ERROR | WRONG),
}


def verdict_on(box, code, target, cpu_seconds=5.0):
    verifier = verifiers.make("code", sandbox=box, cpu_seconds=cpu_seconds)
    return verifier.verify(Submission(fenced(code)), Task("t", "", target))


def expect_alive(box):
    right = verdict_on(box, TARGET["solution"], TARGET)
    assert right.outcome is Outcome.CORRECT, right


@pytest.mark.parametrize("name", TRICKS)
def test_a_trick_earns_nothing_and_the_next_submission_is_judged(box, name):
    code, outcomes = TRICKS[name]
    verdict = verdict_on(box, code, TARGET, cpu_seconds=0.5 if Outcome.TIMEOUT in outcomes else 5.0)
    assert verdict.reward == 0
    assert verdict.outcome in outcomes, verdict
    expect_alive(box)


@pytest.mark.parametrize("name", [name for name in TRICKS if name.split()[0] in ("1", "2", "4", "9", "10", "22", "31")])
def test_a_trick_earns_nothing_where_tests_run_in_a_process_of_their_own(box, name):
    verdict = verdict_on(box, TRICKS[name][0], PROXIED)
    assert verdict.reward == 0
    assert verdict.outcome is not Outcome.INFRA_ERROR, verdict


def test_tests_in_a_process_of_their_own_pass_for_who_is_right(box):
    assert verdict_on(box, TARGET["solution"], PROXIED).outcome is Outcome.CORRECT


@pytest.mark.parametrize(
    ("name", "code", "outcome"),
    [
        ("3 an exit", "import sys\nsys.exit(0)", Outcome.WRONG),
        ("5 a claim", "print('all tests passed')", Outcome.WRONG),
        ("9 forged frames", f"{FORGE}\nforge()", Outcome.WRONG),
        ("10 early output", "print(4, flush=True)\nwhile True: pass", Outcome.TIMEOUT),
        ("19 endless output", "while True: print('4')", Outcome.ERROR),
        ("33 the visible example", "print(4)", Outcome.WRONG),
        ("35 no Python", "print 4", Outcome.ERROR),
    ],
)
def test_a_trick_of_a_program_earns_nothing(box, name, code, outcome):
    verdict = verdict_on(box, code, PROGRAM)
    assert (verdict.reward, verdict.outcome) == (0.0, outcome), verdict


def test_a_helper_of_the_task_is_not_replaced_by_the_submissions_own(box):
    """As HumanEval/38 and 50: the tests encode, the submission decodes, and brings another `encode` along."""
    asserts = "import random\nfor _ in range(3):\n    s = str(random.random())\n    assert decode(encode(s)) == s"
    helper = "def encode(s):\n    return s[::-1]\n"
    target = {"asserts": asserts, "entry_point": "decode", "prelude": helper, "solution": f"{helper}decode = encode"}
    assert verdict_on(box, "def decode(s): return s[::-1]", target).outcome is Outcome.CORRECT
    assert verdict_on(box, "def encode(s): return s\ndef decode(s): return s", target).outcome is Outcome.WRONG


def test_inputs_that_are_changed_stay_the_verifiers_own(box):
    target = "x = [3, 1, 2]\nassert f(x) == [1, 2, 3]\nassert f(x) == [1, 2, 3]\nassert f([x, x]) == [x, x]"
    code = "def f(x):\n    if x and isinstance(x[0], int): x.sort()\n    return x"
    assert verdict_on(box, code, target).outcome is Outcome.CORRECT
    assert verdict_on(box, "def f(x):\n    x.clear()\n    return x", target).outcome is Outcome.WRONG


def test_expected_values_never_enter_the_submissions_process(box):
    """The driver, the module and the calls hold the inputs alone."""
    jobs = []

    class Spy(type(box)):
        def __init__(self):
            self.name, self.isolated = "spy", True

        def run(self, job, **kwargs):
            jobs.append(job)
            return box.run(job, **kwargs)

        def session(self, limits=None):
            session = box.session(limits)
            execute = session.execute
            session.execute = lambda source: jobs.append(source) or execute(source)
            return session

        def close(self):
            pass

    for target in (TARGET, PROXIED, PROGRAM):
        verdict_on(Spy(), "def f(x): return 4", target)
    of_submissions = [job for job in jobs if "def f(x): return 4" in repr(job)]
    assert len(of_submissions) >= 3
    assert not any(str(CANARY) in repr(job) for job in of_submissions)


def test_a_verdict_comes_soon_after_the_limit_whatever_is_left_running(box):
    code = (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(300)\n    os._exit(0)\n"
        + TARGET["solution"]
    )
    started = time.monotonic()
    assert verdict_on(box, code, TARGET).outcome is Outcome.CORRECT
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I do not know.",
        "<think>\n```python\ndef f(x): return 4\n```\n</think> Done.",
        "```python\n```",
        "<think>" * 1000,
        "```" * 10_000,
        "`" * 1_000_000,
        "```json\n" * 1000,
    ],
)
def test_a_text_without_code_has_no_answer(box, text):
    verdict = verifiers.make("code", sandbox=box).verify(Submission(text), Task("t", "", TARGET))
    assert (verdict.reward, verdict.outcome) == (0.0, Outcome.UNPARSEABLE)


def test_of_two_blocks_the_last_one_counts(box):
    verifier = verifiers.make("code", sandbox=box)
    right, wrong = fenced(TARGET["solution"]), fenced("def f(x): return 0")
    assert verifier.verify(Submission(f"{wrong}\nor rather\n{right}"), Task("t", "", TARGET)).reward == 1
    assert verifier.verify(Submission(f"{right}\nor rather\n{wrong}"), Task("t", "", TARGET)).reward == 0
