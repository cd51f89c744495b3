"""Tests that look at changed arguments or use objects: what crosses the border by handle, what as data, what never."""

import json
import random
import runpy
from collections import Counter, OrderedDict, deque, namedtuple
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import gymnasium as gym
import pytest

from verigym import verifiers
from verigym.envs.mixture import EnvSpec
from verigym.envs.validation import validate
from verigym.task_sampler import TaskSampler
from verigym.tasks.errors import ConfigError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission
from verigym.verifiers._border import OBJECTS, STATE, VALUES, AnsweringSide, AskingSide, NoValue, Unsendable
from verigym.verifiers._code_text import fenced
from verigym.verifiers.sandbox import values

make_sandbox = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))["make"]

STACK = """
class Empty(Exception): pass
class Stack:
    def __init__(self, items=()): self.items = list(items)
    def push(self, x): self.items.append(x)
    def pop(self):
        if not self.items: raise Empty("nothing left")
        return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __add__(self, other): return Stack(self.items + other.items)
    @classmethod
    def of(cls, *items): return cls(items)
"""
STACK_TESTS = """
s = Stack()
s.push(1)
assert s.pop() == 1 and len(s) == 0 and not s
try:
    s.pop()
    assert False
except Empty as error:
    assert str(error) == "nothing left"
s.items.append(5)
assert list(s) == [5] and 5 in s and 3 not in s
assert isinstance(s, Stack) and not isinstance(5, Stack)
assert (s + Stack.of(1, 2)).items == [5, 1, 2]
s.items = [9]
assert s.pop() == 9
"""
LIAR = """
class Yes:
    def __getattr__(self, name): return Yes()
    def __call__(self, *args): return Yes()
    def __eq__(self, other): return True
    def __contains__(self, other): return True
    def __iter__(self): return iter([Yes()])
    def __sub__(self, other): return 0
    __ne__ = __lt__ = __gt__ = __le__ = __ge__ = __eq__
    __rsub__ = __abs__ = __sub__
"""


@pytest.fixture(scope="module")
def judge():
    box = make_sandbox("bubblewrap")
    verifier = verifiers.make("code", sandbox=box)
    yield lambda code, target: verifier.verify(Submission(fenced(code)), Task("t", "", target))
    box.close()


def expect(judge, asserts, right, *wrong, **target):
    target = {"asserts": asserts, **target}
    verdict = judge(right, target)
    assert verdict.outcome is Outcome.CORRECT, verdict
    assert [judge(code, target).reward for code in wrong] == [0.0] * len(wrong)


def test_objects_are_used_by_handle(judge):
    last = STACK.replace("items.pop()", "items.pop() + 1")
    deaf = STACK.replace("self.items.append(x)", "pass")
    expect(judge, STACK_TESTS, STACK, last, deaf, entry_point="Stack", solution=STACK)
    simple = "s = Stack()\ns.push(1)\ns.push([2])\nassert s.pop() == [2]\nassert s.pop() == 1\nassert len(s) == 0"
    expect(judge, simple, STACK, last, deaf)


def test_functions_and_generators_are_objects_too(judge):
    closure = "def make(n):\n    numbers = iter((n + 1, n + 2))\n    return lambda: next(numbers)"
    expect(judge, "c = make(1)\nassert c() == 2\nassert c() == 3", closure)
    generator = "g = f(3)\nassert next(g) == 0\nassert list(g) == [1, 2]\nassert next(g, 7) == 7"
    expect(judge, generator, "def f(n): yield from range(n)", "def f(n): yield from range(n + 1)")


@pytest.mark.parametrize(
    ("asserts", "code"),
    [
        ("a = [3, 1, 2]\nf(a)\nassert a == [1, 2, 3]", "def f(a): a.sort()"),
        ("a = [2, 1]\nassert f(a) is None and a == [1, 2]", "def f(a): a.sort()"),
        ("a = [2, 1]\nassert f(a) is None\nassert [1, 2] == a", "def f(a): a.sort()"),
        ("def check(g):\n    a = {1}\n    g(a, b=2)\n    assert a == {1, 2}\ncheck(f)", "def f(a, b): a.add(b)"),
        ("d = {'y': [set()]}\nf(d)\nassert d == {'x': 1, 'y': [{3}]}", "def f(d): d['x'] = 1; d['y'][0].add(3)"),
        (
            "r = [1]\nm = [r, [2]]\nf(m)\nassert m == [[2, 9], [1]] and m[1] is r",
            "def f(m):\n    m.reverse()\n    m[0].append(9)",
        ),
    ],
)
def test_what_a_call_does_to_its_arguments_is_seen(judge, asserts, code):
    expect(judge, asserts, code, "def f(*args, **kwargs): pass", entry_point="f")


def test_what_a_call_does_is_seen_by_the_next_where_the_solution_needs_it(judge):
    asserts = "a = []\nassert f(a, 1) == [1]\nassert f(a, 2) == [1, 2]"
    code = "def f(a, x):\n    a.append(x)\n    return a"
    expect(
        judge, asserts, code, "def f(a, x): return a + [x]", "def f(a, x): return [x]", entry_point="f", solution=code
    )
    fresh = "a = [2, 1]\nassert f(a) == [1, 2]\nassert f(a) == [1, 2]"
    right = "def f(a): return sorted(a)"
    expect(judge, fresh, right, "def f(a): return a", entry_point="f", solution=right)


def test_a_test_that_arguments_are_left_alone_is_kept(judge):
    asserts = "a = [2, 1]\nassert f(a) == [1, 2]\nassert a == [2, 1]"
    expect(judge, asserts, "def f(a): return sorted(a)", "def f(a):\n    a.sort()\n    return a", entry_point="f")


def test_an_answer_cannot_change_what_is_expected_of_it(judge):
    asserts = "import random\nfor _ in range(9):\n    xs = [random.random()]\n    assert f(xs) == sorted(xs, key=abs)"
    right = "def f(xs): return sorted(xs)"
    expect(judge, asserts, right, "def f(xs):\n    xs.clear()\n    return xs", entry_point="f", solution=right)


@pytest.mark.parametrize(
    "test",
    [
        "f(x) == 3",
        "3 == f(x)",
        "f(x) != 4",
        "abs(f(x) - 3) < 1",
        "3 in f(x)",
        "f(x) in [3]",
        "f(x) > 2",
        "f(x).y() == 3",
    ],
)
def test_the_word_of_an_object_on_itself_is_not_taken(judge, test):
    verdict = judge(f"{LIAR}def f(x): return Yes()", {"asserts": f"x = f(1)\nassert {test}", "entry_point": "f"})
    assert verdict.outcome is Outcome.WRONG, verdict


def test_tests_that_trust_an_objects_word_are_refused(judge):
    vector = "class V:\n    def __init__(self, x): self.x = x\n    def __eq__(self, other): return self.x == other.x"
    target = {"asserts": "assert V(1) == V(1)", "entry_point": "V"}
    with pytest.raises(VerifierInputError, match="must be tried first: give the target a 'solution'") as untried:
        judge(vector, target)
    with pytest.raises(VerifierInputError, match=r"own solution fails .* no plain value") as tried:
        judge(f"{LIAR}V = Yes", {**target, "solution": vector})
    assert "\n" not in f"{untried.value}{tried.value}"


def test_training_and_validation_refuse_a_task_that_cannot_be_judged(tmp_path):
    good = {"asserts": "assert f(1) == 1", "solution": "def f(x): return x"}
    bad = {"asserts": "assert f(1) == f(1)", "entry_point": "f", "solution": "def f(x): return object()"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "Write f.", "target": target}) + "\n" for target in (good, bad)))
    options = {"source": str(rows), "verifier": "code", "verifier_options": {"sandbox": "bubblewrap"}}
    with pytest.raises(ConfigError, match=r"not trained on: task 'custom-train-1' cannot be judged: the task's own"):
        TaskSampler([EnvSpec("verigym/Custom-v0", kwargs=options)], 0)
    found = validate(gym.make("verigym:verigym/Custom-v0", **options).unwrapped)
    assert [(failure.task_id, failure.outcome) for failure in found.failures] == [("custom-train-1", "no verdict")]


def test_tests_that_hand_over_what_cannot_leave_them_are_refused(judge):
    target = {"asserts": "g = [lambda x: x + 1]\nassert f(g[0], 2) == 3", "entry_point": "f"}
    with pytest.raises(VerifierInputError, match="they hand a function to the code"):
        judge("def f(g, x): return g(x)", target)
    with pytest.raises(VerifierInputError, match="the task's own solution fails its tests"):
        judge("def f(g, x): return g(x)", {**target, "solution": "def f(g, x): return g(x)"})


def test_tests_that_never_call_the_code_are_refused(judge):
    with pytest.raises(VerifierInputError, match="has no tests"):
        judge("def f(): pass", {"asserts": "import random\nassert random.random() < 2", "entry_point": "f"})


FORGER = """
import builtins
run = builtins.exec
def spy(source, space=None, *rest):
    run(source, space, *rest)
    if isinstance(space, dict) and "AnsweringSide" in space:
        space["AnsweringSide"].serve = lambda *question: ANSWER
builtins.exec = spy
def f(a): pass
"""


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ("a = [2, 1]\nf(a)\nassert a == [1, 2]", FORGER.replace("ANSWER", "((None, {}), ['NameError', 'forged'])")),
        ("s = f([1])\nassert f(s.items).pop() == 1", "def f(x): return {}"),
        ("for x in f():\n    y = x\nassert all(y > n for n in range(3))", "def f(): return []"),
    ],
)
def test_no_answer_makes_the_tests_look_broken(judge, tests, code):
    assert judge(code, {"asserts": tests, "entry_point": "f"}).outcome is Outcome.WRONG


@pytest.mark.parametrize(
    ("test", "value"),
    [
        ("from fractions import Fraction\nassert f() == Fraction(1, 3)", "fractions.Fraction(2, 6)"),
        ("from decimal import Decimal\nassert f() == Decimal('0.1')", "decimal.Decimal('0.1')"),
        ("from collections import deque\nassert f() == deque([1])", "collections.deque([1])"),
        ("from collections import Counter\nassert f().most_common(1) == [('a', 2)]", "collections.Counter('aab')"),
        ("x = f()\nassert x.a == 1 and x == (1, 2)", "collections.namedtuple('P', 'a b')(1, 2)"),
        ("x = f()\nassert x == 4", "enum.IntEnum('E', {'a': 4}).a"),
        ("import datetime\nassert f() == datetime.date(2020, 2, 1)", "datetime.date(2020, 2, 1)"),
    ],
)
def test_values_of_the_standard_library_are_compared_as_what_they_are(judge, test, value):
    source = "import collections, datetime, decimal, enum, fractions\ndef f(): return "
    expect(judge, test, source + value, source + "0.5", entry_point="f")


# The border itself.


def sides(entry, sharing, names=None):
    """A tests' side whose words reach the other side as the sandbox carries them."""
    code = AnsweringSide(entry)

    def remote(*question):
        return values.from_text(values.to_text(code.serve(*values.from_text(values.to_text(question)))))

    return AskingSide(remote, sharing, names or {})


P = namedtuple("P", "a b")
DATA = [
    [1, "a", None, 2.5, b"x", 1j, True],
    ([], {}, set(), frozenset({(1,)})),
    {1: [2], (3, "x"): {"y": {4}}},
    [Fraction(1, 3), Decimal("1.10"), range(1, 9, 2), timedelta(1, 2, 3)],
    [date(2020, 1, 2), datetime(2020, 1, 2, 3, 4, 5)],
    [Counter("aab"), OrderedDict(a=1), deque([1, [2]]), bytearray(b"abc")],
]


@pytest.mark.parametrize("sharing", [VALUES, OBJECTS, STATE])
@pytest.mark.parametrize("value", DATA)
def test_data_cross_as_they_are_in_both_directions(value, sharing):
    seen = []
    entry = sides(lambda x: seen.append(repr(x)) or x, sharing).entry
    assert repr(entry(value)) == seen[0] == repr(value)


def test_named_tuples_and_deep_and_circular_lists_cross():
    entry = sides(lambda x: x, STATE).entry
    assert (entry(P(1, [2])).b, entry(P(1, 2))) == ([2], (1, 2))
    deep = []
    for _ in range(200):
        deep = [deep]
    assert entry(deep) == deep
    circle = []
    circle.append(circle)
    assert entry(circle) is circle


def test_state_is_shared_only_where_asked_for():
    for sharing in (VALUES, OBJECTS):
        given = [3, 1]
        assert sides(lambda x: x.sort() or x, sharing).entry(given) == [1, 3]
        assert given == [3, 1]
    given = [3, 1]
    assert sides(lambda x: x.sort() or x, STATE).entry(given) is given
    assert given == [1, 3]


def test_objects_stay_behind_where_values_are_asked_for():
    with pytest.raises(NoValue):
        sides(lambda: object(), VALUES).entry()
    with pytest.raises(Unsendable):
        sides(lambda x: x, STATE).entry(object())
    with pytest.raises(NoValue):
        AskingSide(lambda *question: (([0], {0: ("handle", [])}), None), VALUES, {}).entry()
    handle = sides(lambda: object(), OBJECTS).entry()
    with pytest.raises(NoValue):
        assert handle == 3
    with pytest.raises(TypeError):
        handle + 3


def test_exceptions_are_those_that_the_tests_know():
    class MineError(Exception):
        pass

    def fail(kind):
        raise {"MineError": MineError, "StopIteration": StopIteration, "KeyError": KeyError}[kind]("why")

    entry = sides(fail, OBJECTS, {"MineError": MineError}).entry
    for kind, error in [("MineError", MineError), ("KeyError", KeyError), ("StopIteration", RuntimeError)]:
        with pytest.raises(error, match="why"):
            entry(kind)


def test_a_forged_answer_fills_nothing_of_the_tests_own():
    mine = [1, 2]
    chance = random.Random(0)

    def remote(operation, packed, sharing):
        numbers = {n: ("list", [9]) for n in range(50)}
        return (([chance.randrange(50)], numbers), None)

    for sharing in (VALUES, OBJECTS) * 9:
        entry = AskingSide(remote, sharing, {}).entry
        with pytest.raises((NoValue, AssertionError)):
            assert entry(mine) == mine
        assert mine == [1, 2]
