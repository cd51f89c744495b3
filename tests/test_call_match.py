"""The call match: exact by default, BFCL's own checker by policy; every gold of the real rows, and hostile calls."""

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from verigym import verifiers
from verigym.cli import main
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import ConfigError, UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
CATEGORIES = ("simple_python", "multiple", "live_simple", "live_parallel", "simple_java")
BAD_ROWS = {"live_simple_106-63-0", "live_simple_112-68-0"}


def doc(name: str = "f", required: tuple[str, ...] = (), **types: Any) -> dict[str, Any]:
    schemas = {key: {"type": kind} if isinstance(kind, str) else kind for key, kind in types.items()}
    parameters = {"type": "dict", "properties": schemas, "required": list(required)}
    return {"name": name, "description": "Does something.", "parameters": parameters}


def judge(completion: str, target: Any, *docs: dict[str, Any], policy: str = "strict", **metadata: Any) -> Verdict:
    task = Task("t", "", target, {"tools": list(docs), **metadata})
    return verifiers.make("call_match", policy=policy).verify(Submission(completion), task)


def accepts(value: Any, allowed: list[Any], schema: Any, policy: str = "strict", **metadata: Any) -> bool:
    completion = render_call("f", {"x": value})
    return judge(completion, [{"f": {"x": allowed}}], doc(x=schema), policy=policy, **metadata).reward == 1


def calls(*arguments: dict[str, Any]) -> str:
    return "\n".join(render_call("f", given) for given in arguments)


# Values: the schema decides, and what is listed.


@pytest.mark.parametrize(
    ("value", "allowed", "schema", "strict", "bfcl"),
    [
        (1, [1], "integer", True, True),
        (True, [1], "integer", False, False),
        (1.0, [1], "integer", False, False),
        ("1", [1], "integer", False, False),
        (1, [1.0], "float", True, True),
        (1, [1], "float", True, True),
        (1.0, [1], "float", True, True),
        (True, [1], "float", False, False),
        (1, [True], "boolean", False, False),
        ("1", [1, "1"], "integer", True, False),
        ("1", ["1"], "integer", True, True),
        ("15", ["15"], "string", True, True),
        ("1.5", ["15"], "string", False, True),
        ("/a/b", ["ab"], "string", False, True),
        ("New york", ["New York"], "string", False, True),
        (None, [None], "string", True, True),
        (None, ["x"], "string", False, False),
        ([1, 2], [[1, 2]], {"type": "array", "items": {"type": "integer"}}, True, True),
        ([1.0, 2], [[1, 2]], {"type": "array", "items": {"type": "integer"}}, False, False),
        ([1, 2], [[1.0, 2.0]], {"type": "array", "items": {"type": "float"}}, True, False),
        ([2, 1], [[1, 2]], {"type": "tuple", "items": {"type": "integer"}}, False, False),
        (["A"], [["a"]], {"type": "array", "items": {"type": "string"}}, False, True),
        ([], ["", ["a"]], {"type": "array", "items": {"type": "string"}}, False, True),
        ({"a": True}, [{"a": [1]}], "dict", False, True),
        ({"a": 2, "b": "y"}, [{"a": [1, 2], "b": ["x", "y"]}], "dict", True, True),
        ({"a": 1}, [{"a": [1], "b": ["", 2]}], "dict", True, True),
        ({"a": 1}, [{"a": [1], "b": [2]}], "dict", False, False),
        ({"a": 1, "c": 1}, [{"a": [1]}], "dict", False, False),
        ([{"a": 1}], [[{"a": [1, 2]}]], {"type": "array", "items": {"type": "dict"}}, True, True),
        ("", ["", "x"], "string", False, True),
        ("x", ["", "x"], "string", True, True),
        ("mapController", ["mapController"], "any", True, True),
    ],
)
def test_a_value_is_right_by_its_policy(value, allowed, schema, strict, bfcl):
    assert accepts(value, allowed, schema) is strict
    assert accepts(value, allowed, schema, policy="bfcl") is bfcl


def test_the_empty_text_is_a_value_where_the_argument_must_be_given():
    required = doc(x="string", required=("x",))
    assert judge(calls({"x": ""}), [{"f": {"x": [""]}}], required).reward == 1
    assert judge(calls({}), [{"f": {"x": ["", "a"]}}], required).reward == 0


def test_arguments_may_be_left_out_only_where_that_is_allowed():
    target = [{"f": {"x": [1], "y": ["", 2]}}]
    both = doc(x="integer", y="integer", z="integer", required=("x",))
    assert judge(calls({"x": 1}), target, both).reward == 1
    assert judge(calls({"x": 1, "y": 2}), target, both).reward == 1
    assert "'x' is missing" in judge(calls({"y": 2}), target, both).reason
    assert "'z' is not expected" in judge(calls({"x": 1, "z": 3}), target, both).reason


# Several calls.


def test_calls_are_assigned_in_the_best_way_and_by_bfcl_greedily():
    target = [{"f": {"x": [1, 2]}}, {"f": {"x": [1]}}]
    made = calls({"x": 1}, {"x": 2})
    assert judge(made, target, doc(x="integer")).reward == 1
    assert judge(made, target, doc(x="integer"), policy="bfcl").reward == 0
    assert judge(calls({"x": 2}, {"x": 1}), target, doc(x="integer"), policy="bfcl").reward == 1
    twice = judge(calls({"x": 2}, {"x": 2}), target, doc(x="integer"))
    assert twice.reason == "two of its calls are one and the same of those that are asked for"


def test_where_bfcls_checker_fails_on_one_of_several_calls_nothing_is_accepted():
    f = doc(x={"type": "array", "items": {"type": "integer"}})
    target = [{"f": {"x": [[1], 5, ""]}}, {"f": {"x": [[2]]}}]  # it fails on a list beside the 5
    assert judge(calls({}, {"x": [2]}), target, f, policy="bfcl").reward == 1
    assert judge(calls({"x": [2]}, {}), target, f, policy="bfcl").reward == 0
    two = [{"f": {"x": [1]}}, {"g": {"x": [2]}}]  # of one function given, the second is another
    assert judge(calls({"x": 1}, {"x": 2}), two, doc(x="integer"), policy="bfcl").reward == 0


def test_many_calls_that_fit_one_another_are_assigned_at_once():
    target = [{"f": {"x": list(range(size))}} for size in range(1, 31)]
    made = calls(*({"x": number} for number in reversed(range(30))))
    started = time.process_time()
    assert judge(made, target, doc(x="integer")).reward == 1
    assert time.process_time() - started < 5


@pytest.mark.parametrize("policy", ["strict", "bfcl"])
def test_an_extra_call_beside_the_right_one_is_wrong(policy):
    made = render_call("f", {"x": 1}) + render_call("delete_everything", {})
    docs = doc(x="integer"), doc("delete_everything")
    assert judge(made, [{"f": {"x": [1]}}], *docs, policy=policy).outcome is Outcome.WRONG
    assert judge(render_call("g", {"x": 1}), [{"f": {"x": [1]}}], *docs, policy=policy).outcome is Outcome.WRONG


# No call, or any call.


@pytest.mark.parametrize("policy", ["strict", "bfcl"])
def test_where_no_function_fits_no_call_is_right(policy):
    assert judge("None of my functions does that.", [], doc(), policy=policy).reward == 1
    assert judge(render_call("f", {}), [], doc(), policy=policy).outcome is Outcome.WRONG


def test_doing_nothing_where_a_message_is_owed_is_wrong():
    for nothing in ("", " \n", "<think>None of the functions fits.</think>"):
        assert judge(nothing, [], doc()).outcome is Outcome.WRONG
        assert judge(nothing, [], doc(), message="no function").outcome is Outcome.WRONG
    assert judge(r"None does that: \boxed{No function}", [], doc(), message="no function").reward == 1
    for other in ("no function", r"\boxed{4}", r"\boxed{no function} or \boxed{f}", r"\boxed{no function fits, or f}"):
        assert judge(other, [], doc(), message="no function").reward == 0


def test_any_call_that_its_function_takes_is_right_where_any_is_asked_for():
    f = doc(x="integer", required=("x",))
    assert judge(calls({"x": 1}), "any call", f).reward == 1
    for wrong in (calls({}), calls({"x": 1.5}), calls({"x": 1, "y": 1}), render_call("g", {}), "f(1)"):
        assert judge(wrong, "any call", f).reward == 0


# Hostile completions (SANDBOX.md, rows 51 to 60).


@pytest.mark.parametrize("policy", ["strict", "bfcl"])
@pytest.mark.parametrize(
    "completion",
    [
        "",
        'f(x=1+__import__("os").system("touch /tmp/owned"))',
        '<tool_call>f(x=1+__import__("os").system("touch /tmp/owned"))</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1, "x": 1}}</tool_call>',
        '<tool_call>{"name": "f", "name": "f", "arguments": {"x": 1}}</tool_call>',
        '<tool_call>{"name": "f", "arguments": {"x": 1+0}}</tool_call>',
        "<think>" + calls({"x": 1}) + "</think>",
        "I would say " + json.dumps(calls({"x": 1}).replace("<", "&lt;")),
        calls({"x": 1}) + "<tool_call>and more",
        calls(*[{"x": 1}] * 10_000),
        calls({"x": "1" * 1_000_000}),
        "<tool_call>" * 100_000,
    ],
)
def test_what_is_no_call_is_unparseable_at_once(completion, policy):
    started = time.process_time()
    verdict = judge(completion, [{"f": {"x": [1]}}], doc(x="integer"), policy=policy)
    assert verdict.outcome is Outcome.UNPARSEABLE
    assert time.process_time() - started < 2


def test_a_call_inside_an_argument_is_a_text():
    inner = render_call("delete_everything", {})
    assert judge(calls({"x": inner}), [{"f": {"x": [inner]}}], doc(x="string")).reward == 1


def test_source_texts_that_are_slow_to_search_are_not_searched():
    hostile = ["new HashMap<" * 5000, "[[" * 30_000, "{" + "a:b," * 10_000, "new ArrayList<>(Arrays.asList(" * 2000]
    started = time.process_time()
    for text in hostile:
        for kind in ("HashMap", "ArrayList", "array", "dict"):
            spoken = "java" if kind[0].isupper() else "javascript"
            schema = {"type": kind, "items": {"type": "any"}}
            assert not accepts(text, [["a"]], schema, policy="bfcl", language=spoken)
    assert time.process_time() - started < 5


# Java and JavaScript.


@pytest.mark.parametrize(
    ("value", "allowed", "kind", "inner", "language"),
    [
        ("42L", [42], "long", None, "java"),
        ("true", [True], "boolean", None, "java"),
        ("3.5f", [3.5], "float", None, "java"),
        ('new HashMap<String, Object>() {{ put("limit", 50); put("schema", "public"); }}',
         [{"limit": [50], "schema": ["public"]}], "HashMap", None, "java"),
        ('new ArrayList<String>(Arrays.asList("a", "b"))', [["a", "b"]], "ArrayList", "String", "java"),
        ("new ArrayList<>() {{ add(1L); add(2L); }}", [[1, 2]], "ArrayList", "long", "java"),
        ("new int[]{1, 2}", [[1, 2]], "Array", "integer", "java"),
        ("'abc'", ["abc"], "String", None, "javascript"),
        ("5n", [5], "Bigint", None, "javascript"),
        ("true", [True], "Boolean", None, "javascript"),
        ("[1, 2]", [[1, 2]], "array", "integer", "javascript"),
        ("new Array('a', \"b\")", [["a", "b"]], "array", "String", "javascript"),
        ("[[1, 2], [3]]", [[[1, 2], [3]]], "array", "array", "javascript"),
        ("[[1], [[2]]", [[[1], ["[2"]]], "array", "array", "javascript"),
        ("{'a': 'v', n: [1, 2], on: true}", [{"a": ["v"], "n": [[1, 2]], "on": [True]}], "dict", None, "javascript"),
    ],
)  # fmt: skip
def test_bfcl_reads_values_written_in_java_and_javascript(value, allowed, kind, inner, language):
    schema = {"type": kind, **({"items": {"type": inner}} if inner else {})}
    assert accepts(value, allowed, schema, policy="bfcl", language=language)
    assert not accepts(value, allowed, schema)


def test_by_default_java_and_javascript_types_are_those_of_json():
    assert accepts(42, [42], "long")
    assert not accepts(42.0, [42], "long")
    assert accepts(5, [5.0], "double")
    assert accepts({"limit": 50}, [{"limit": [50]}], "HashMap")
    assert accepts(["a"], [["a"]], {"type": "ArrayList", "items": {"type": "String"}})
    assert accepts("EVENT_THREAD", ["EVENT_THREAD"], "integer")  # a constant, which the ground truth lists


def test_calls_written_as_python_are_read_without_being_run():
    f = doc("geo.f", x="integer", y={"type": "array", "items": {"type": "float"}}, z="dict", w="float")
    target = ["geo.f(-1, y=(1, 2.5), z={'a': [None, True]}, w=1/4 + 2*3)"]
    right = {"x": -1, "y": [1, 2.5], "z": {"a": [None, True]}, "w": 6.25}
    assert judge(render_call("geo.f", right), target, f).reward == 1
    for name, value in (("x", 1), ("y", [1]), ("z", {"a": [None, 1]}), ("z", {"a": True}), ("w", 6)):
        assert judge(render_call("geo.f", {**right, name: value}), target, f).reward == 0


# Rows that cannot be judged.


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ([{"g": {}}], "'g', which is not among the functions"),
        ([{"f": {"y": [1]}}], "leaves out the argument 'x'"),
        ([{"f": {"x": []}}], "no value for the argument 'x'"),
        ([{"f": {"x": [1], "z": [1]}}], "'z', which 'f' has not"),
    ],
)
def test_a_bad_row_earns_no_0_in_silence(target, why):
    f = doc(x="integer", y="integer", required=("x",))
    verdict = judge(calls({"x": 1, "y": 1}), target, f)
    assert verdict.outcome is Outcome.INFRA_ERROR
    assert why in verdict.reason
    official = judge(calls({"x": 2, "y": 1}), target, f, policy="bfcl")
    assert official.reward == 0
    assert "the row is bad" in official.reason
    task = Task("t", "", target, {"tools": [f]})
    assert verifiers.make("call_match").golds(task) == []


@pytest.mark.parametrize(
    ("target", "tools", "why"),
    [
        ("f(x=1)", [doc(x="integer")], "must be a list of calls"),
        ([{"f": {"x": 1}}], [doc(x="integer")], "must list the values"),
        ([{"f": {}, "g": {}}], [doc()], "an object of one function"),
        (["f(x=open('/etc/passwd'))"], [doc(x="integer")], "not a call of literals"),
        (["1 + 1"], [doc()], "not a call of literals"),
        (["f(x=10**10**10)"], [doc(x="integer")], "not a call of literals"),
        (["f(x=1/0)"], [doc(x="integer")], "not a call of literals"),
        (["f(x=" + "(" * 5000 + "1)"], [doc(x="integer")], "not a call of literals"),
        ([], [{"name": "f"}], "must be an object with 'name' and 'parameters'"),
        ([], "f", "must be a list of documents"),
        ([], [{"name": "f", "parameters": {"required": 5}}], "no list of names 'required'"),
    ],
)
def test_what_is_no_ground_truth_is_refused(target, tools, why):
    with pytest.raises(VerifierInputError, match=why):
        verifiers.make("call_match").golds(Task("t", "", target, {"tools": tools}))


def test_a_wrong_policy_is_refused():
    with pytest.raises(ConfigError, match="strict or bfcl"):
        verifiers.make("call_match", policy="lax")


# The real rows.


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text().splitlines()]


def real_tasks(category: str) -> Iterator[Task]:
    questions = {row["id"]: row for row in rows(category)}
    for row in rows(f"{category}.answer"):
        yield Task(row["id"], "", row["ground_truth"], {"tools": questions[row["id"]]["function"]})


def cases() -> Iterator[tuple[dict[str, Any], Submission, Task]]:
    tasks = {task.id: task for category in CATEGORIES for task in real_tasks(f"bfcl_v4/{category}")}
    for case in rows("bfcl_ast_checker_cases/cases"):
        made = [render_call(name, given) for call in case["model_output"] for name, given in call.items()]
        yield case, Submission("\n".join(made)), tasks[case["bfcl_id"]]


@NEEDS_DATA
def test_the_bfcl_policy_agrees_with_the_official_checker():
    verifier = verifiers.make("call_match", policy="bfcl")
    found = [(case["case"], verifier.verify(said, task).reward == 1, case["valid"]) for case, said, task in cases()]
    assert len(found) == 2820
    assert [case for case, ours, official in found if ours != official] == []


CAUSES = {"str_upper": "letter case", "list_upper": "letter case", "str_spaced": "spaces and punctuation"}


def strict_differences() -> Counter[str]:
    """How often strict and the official checker differ on the shared cases, by cause."""
    verifier, found = verifiers.make("call_match"), Counter[str]()
    for case, said, task in cases():
        verdict = verifier.verify(said, task)
        if verdict.outcome is Outcome.INFRA_ERROR:
            found["a bad row"] += 1
        elif (verdict.reward == 1) != case["valid"]:
            found[CAUSES[case["mutation"]]] += 1
    return found


@NEEDS_DATA
@pytest.mark.parametrize("category", [*(f"bfcl_v4/{name}" for name in CATEGORIES), "bfcl_exec/exec_simple",
                                      "bfcl_exec/exec_parallel"])  # fmt: skip
def test_every_gold_is_right_or_its_row_is_bad_and_what_is_no_gold_is_wrong(category):
    verifier, bad = verifiers.make("call_match"), set()
    for task in real_tasks(category):
        golds = verifier.golds(task)
        if not golds:
            bad.add(task.id)
        for gold in golds:
            assert verifier.verify(Submission(gold), task).reward == 1, (task.id, gold)
            for wrong in spoilt(gold):
                verdict = verifier.verify(Submission(wrong), task)
                assert verdict.reward == 0, (task.id, wrong)
    assert bad == (BAD_ROWS if category.endswith("live_simple") else set())


def spoilt(gold: str) -> Iterator[str]:
    """The calls with one too many, one too few, and another value for each argument in turn."""
    made = [json.loads(line.removeprefix("<tool_call>").removesuffix("</tool_call>")) for line in gold.splitlines()]
    yield "\n".join([gold, render_call(made[0]["name"], made[0]["arguments"])])
    yield "\n".join(render_call(call["name"], call["arguments"]) for call in made[1:])
    for index, call in enumerate(made):
        for name in call["arguments"]:
            changed = {**call, "arguments": {**call["arguments"], name: ["no such value"]}}
            others = [changed if at == index else other for at, other in enumerate(made)]
            yield "\n".join(render_call(other["name"], other["arguments"]) for other in others)


# The command.


def test_the_command_takes_the_policy_as_an_option(tmp_path, capsys):
    row = {"id": "a", "target": [{"f": {"x": ["New York"]}}], "tools": [doc(x="string")]}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**row, "completion": calls({"x": "new york"})}) + "\n")
    rewards = []
    for options in ([], ["--option", "policy=strict"], ["--option", "policy=bfcl"]):
        assert main(["verify", "call_match", str(file), *options]) == 0
        rewards.append(json.loads(capsys.readouterr().out)["reward"])
    assert rewards == [0.0, 0.0, 1.0]
    assert main(["verify", "math", str(file), "--option", "policy=bfcl"]) == 2
    assert "policy" in capsys.readouterr().err


def test_an_unknown_option_is_named():
    with pytest.raises(UnknownNameError, match="policy"):
        verifiers.make("call_match", polcy="bfcl")
