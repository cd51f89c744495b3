"""The coding sets with their real data: canonical solutions pass, mutants earn what plain Python says of them."""

import ast
import base64
import json
import runpy
from pathlib import Path

import pytest

from verigym import tasks, verifiers
from verigym.tasks._code import before
from verigym.tasks.errors import TaskDataError, UnknownNameError
from verigym.verifiers import Outcome, Submission
from verigym.verifiers._asserts import compile_tests
from verigym.verifiers._code_text import code_in, fenced
from verigym.verifiers._evaluate import Unsupported
from verigym.verifiers.sandbox import Job, Limits, Status

HERE = Path(__file__).parent
ROWS = HERE / "code_rows"
DATA = HERE.parents[1] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
MUTANTS = runpy.run_path(str(HERE / "mutants.py"))

# name, source, tasks, tests that are rows, tasks whose tests run in a process of their own
SETS = [
    ("humaneval", "humaneval/HumanEval_even.jsonl", 82, 575, ["HumanEval/32", "HumanEval/38", "HumanEval/50"]),
    ("mbpp", "mbpp/mbpp_prompt_train_val.jsonl", 474, 1419, ["596"]),
    ("mbpp", "mbpp/mbpp_test_11_260.jsonl", 250, 766, []),
    ("mbpp_sanitized", "mbpp_sanitized/sanitized.jsonl", 298, 934, ["596"]),
]


def load(name, source, split="test"):
    return tasks.load(name, split=split, source=str(DATA / source))


def golds_of(verifier, task_set):
    pairs = [(Submission(verifier.golds(task)[0]), task) for task in task_set]
    verdicts = zip(task_set, verifier.verify_many(pairs), strict=True)
    return {task.id: verdict for task, verdict in verdicts if verdict.outcome is not Outcome.CORRECT}


@NEEDS_DATA
@pytest.mark.parametrize(("name", "source", "count", "rows", "proxied"), SETS)
def test_canonical_solutions_pass_and_tests_compile_as_documented(box, name, source, count, rows, proxied):
    task_set = load(name, source)
    assert len(task_set) == count
    assert golds_of(verifiers.make("code", sandbox=box), task_set) == {}
    compiled = {task.id: number_of_rows(task) for task in task_set}
    assert [task_id for task_id, number in compiled.items() if number is None] == proxied
    assert sum(number or 0 for number in compiled.values()) == rows


@NEEDS_DATA
@pytest.mark.parametrize(
    ("name", "source", "each"), [(*SETS[0][:2], 1), (*SETS[1][:2], 5), (*SETS[3][:2], 5), ("mbppplus", "mbppplus", 5)]
)
def test_canonical_solutions_pass_what_is_shown_of_the_tests(box, name, source, each):
    verifier, task_set = verifiers.make("code", sandbox=box), load(name, source)
    unusual = [task for task in task_set if task.id in ("596", "Mbpp/596")]
    for task in [*task_set[::each], *unusual]:
        assert verifier.feedback(Submission(verifier.golds(task)[0]), task) is None, task.id


def number_of_rows(task):
    try:
        return len(compile_tests(task.target["asserts"], frozenset({task.target["entry_point"]})))
    except Unsupported:
        return None


@NEEDS_DATA
@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("humanevalplus", 82), ("mbppplus", 271)])
def test_canonical_solutions_of_evalplus_pass(box, name, count):
    task_set = load(name, name)
    assert len(task_set) == count
    assert golds_of(verifiers.make("code", sandbox=box), task_set) == {}


# Mutants.


def with_tests(task, code):
    """A module that fails exactly if `code` does not pass the task's own tests."""
    return "\n".join([code, task.target.get("setup", ""), task.target["asserts"]])


def changes_helpers(task, code):
    """Whether a mutant differs before the function asked for: tests use the task's own helpers, not an answer's."""
    if task.target.get("prelude", "").count("def ") == 0:
        return False
    name = task.target["entry_point"]
    return before(code, name) != before(ast.unparse(ast.parse(task.target["solution"])), name)


def expect_as_plain_python(box, task_set, each):
    """The verifier must say of every mutant what plain Python says; returns how many fail."""
    mutants = [(task, code) for task in task_set for code in MUTANTS["mutants"](task.target["solution"], each)]
    pairs = [pair for pair in mutants if not changes_helpers(*pair)]
    passing = MUTANTS["pass_in_plain_python"]([with_tests(*pair) for pair in pairs])
    pairs = [pair for pair, passes in zip(pairs, passing, strict=True) if passes is not None]
    passing = [passes for passes in passing if passes is not None]
    verifier = verifiers.make("code", sandbox=box, cpu_seconds=10 * MUTANTS["SECONDS"])
    verdicts = verifier.verify_many([(Submission(fenced(code)), task) for task, code in pairs])
    differing = {
        task.id: (code, passes, verdict.reason)
        for (task, code), passes, verdict in zip(pairs, passing, verdicts, strict=True)
        if verdict.reward != passes
    }
    assert differing == {}
    return len(pairs) - sum(passing)


@NEEDS_DATA
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of the data set's own code
@pytest.mark.parametrize(
    ("name", "source", "fewest"), [("humaneval", SETS[0][1], 50), ("mbpp", SETS[1][1], 90), ("mbpp", SETS[2][1], 50)]
)
def test_a_mutated_solution_earns_something_only_if_its_tests_pass_in_plain_python(box, name, source, fewest):
    task_set = load(name, source)
    assert expect_as_plain_python(box, task_set if name == "humaneval" else task_set[::3], 1) >= fewest


@NEEDS_DATA
@pytest.mark.slow
@pytest.mark.parametrize(("name", "source"), [row[:2] for row in SETS])
def test_many_mutated_solutions_earn_something_only_if_their_tests_pass(box, name, source):
    assert expect_as_plain_python(box, load(name, source), 5) > 100


@NEEDS_DATA
@pytest.mark.parametrize(("name", "tried"), [("humanevalplus", 24), ("mbppplus", 60)])
def test_mutants_that_fail_a_shown_test_fail_those_of_evalplus(box, name, tried):
    task_set = [task for task in load(name, name) if "public" in task.metadata and len(task.target["inputs"]) < 20_000]
    verifier = verifiers.make("code", sandbox=box, cpu_seconds=MUTANTS["SECONDS"])
    pairs = [(task, code) for task in task_set[:tried] for code in MUTANTS["mutants"](task.target["solution"], 2)]
    passing = MUTANTS["pass_in_plain_python"]([f"{code}\n{task.metadata['public']}" for task, code in pairs])
    failing = [pair for pair, passes in zip(pairs, passing, strict=True) if passes is False]
    verdicts = verifier.verify_many([(Submission(fenced(code)), task) for task, code in failing])
    assert {v.reward for v in verdicts} == {0.0}
    assert len(failing) > tried / 5


# Cases of other sandboxes.


def cases(*fields):
    if not DATA.is_dir():
        return []
    rows = map(json.loads, (DATA / "sandbox_cases" / "cases.jsonl").read_text().splitlines())
    return [pytest.param(row, id=row["id"]) for row in rows if kind_of(row) in fields]


def kind_of(row):
    if row.get("kind") == "code_extraction":
        return "extraction"
    if "inputs" in row:
        return "programs"
    return "tests" if "accepted" in row["expected"] else "jobs"


def test_there_are_25_cases():
    assert len(cases("extraction", "programs", "tests", "jobs")) == (25 if DATA.is_dir() else 0)


@pytest.mark.parametrize("row", cases("extraction"))
def test_code_is_extracted_as_in_sandbox_fusion(row):
    assert code_in(row["completion"]).answer == row["expected"]["code"]


@pytest.mark.parametrize("row", cases("tests"))
def test_solutions_are_accepted_as_elsewhere(box, row):
    verifier = verifiers.make("code", sandbox=box, wall_seconds=row.get("run_timeout", 20.0))
    task = tasks.Task(row["id"], "", row.get("test", "assert True"))
    verdict = verifier.verify(Submission(fenced(row["code"])), task)
    assert verdict.reward == row["expected"]["accepted"], verdict
    if row["expected"].get("status") == "timeout":
        assert verdict.outcome is Outcome.TIMEOUT


@pytest.mark.parametrize("row", cases("programs"))
def test_programs_are_judged_as_elsewhere(box, row):
    verifier = verifiers.make("code", sandbox=box, wall_seconds=row.get("run_timeout", 20.0))
    outcomes = {True: Outcome.CORRECT, False: Outcome.WRONG}
    named = {"runtime error (-2)": [Outcome.ERROR], "timeout (-3)": [Outcome.TIMEOUT]}
    results = row["expected"]["results"]
    expected = named[results] if isinstance(results, str) else [outcomes[result] for result in results]
    for given, output, outcome in zip(row["inputs"], row["outputs"], expected, strict=True):
        task = tasks.Task(row["id"], "", {"inputs": [given], "outputs": [output]})
        assert verifier.verify(Submission(fenced(row["code"])), task).outcome is outcome


@pytest.mark.parametrize("row", cases("jobs"))
def test_scripts_end_as_elsewhere(box, row):
    files = {name: base64.b64decode(content) for name, content in row.get("files_base64", {}).items()}
    limits = Limits(wall_seconds=row.get("run_timeout", 20.0))
    result = box.run(Job(row["code"], stdin=row.get("stdin", "").encode(), files=files, limits=limits))
    expected = row["expected"]
    assert result.status is Status(expected["status"])
    assert expected.get("stdout", result.stdout.decode()) == result.stdout.decode()
    assert expected.get("stdout_contains", "") in result.stdout.decode()
    assert expected.get("stderr_contains", "") in result.stderr.decode()


# Loaders.


@NEEDS_DATA
@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("mbpp", "train", 374),
        ("mbpp", "validation", 90),
        ("mbpp", "test", 250),
        ("mbpp", "prompt", 10),
        ("mbpp_sanitized", "train", 120),
        ("mbpp_sanitized", "test", 128),
        ("code_contests", "test", 60),
    ],
)
def test_a_folder_is_split_by_the_ids_of_its_rows(name, split, count):
    assert len(load(name, name, split)) == count


@NEEDS_DATA
def test_mbpp_shows_its_first_tests_and_hides_the_others():
    task = load("mbpp", "mbpp").get("11")
    assert task.prompt.endswith('such as this:\n\nassert remove_Occ("hello","l") == "heo"')
    assert task.metadata["public"] == 'assert remove_Occ("hello","l") == "heo"'
    assert 'remove_Occ("","l")' in task.target["asserts"]
    shown = tasks.load("mbpp", split="test", source=str(DATA / "mbpp"), shown=3).get("11")
    assert shown.metadata["public"].count("assert") == shown.prompt.count("assert") == 3


@NEEDS_DATA
def test_the_answer_made_of_shown_tests_earns_nothing(box):
    verifier = verifiers.make("code", sandbox=box)
    earned = []
    for task in load("mbpp", "mbpp")[:100]:
        if len(set(task.target["asserts"].splitlines())) == 1:
            continue  # task 37 has one test, three times
        (check,) = compile_tests(task.metadata["public"], frozenset({task.target["entry_point"]}))
        code = f"def {task.target['entry_point']}(*args): return {check.expected or None}"
        earned.append(verifier.verify(Submission(fenced(code)), task).reward)
    assert sum(earned) == 0


@NEEDS_DATA
def test_problems_whose_tests_are_all_shown_are_left_out():
    left_out = load("code_contests", "code_contests").left_out
    assert len(left_out) == 23
    assert all("every test stands in the problem's text" in why for why in left_out)


def test_rows_of_the_public_sets_become_tasks():
    contests = tasks.load("code_contests", source=str(ROWS / "code_contests.jsonl"))
    assert [task.metadata.get("public", {}).get("inputs") for task in contests] == [["3\n"], None]
    assert contests[0].target["solution"] == "print(2 * int(input()))"
    benchmark = tasks.load("livecodebench", split="test", source=str(ROWS / "livecodebench.jsonl"))
    assert benchmark[0].target["inputs"] == ["1 2 3\n", "10 -4\n", "7\n", "0 0 0\n"]
    assert benchmark[1].target["fn_name"] == "largestGap"
    assert benchmark[1].prompt.endswith("def largestGap(self, nums: List[int]) -> int:")
    apps = tasks.load("apps", source=str(ROWS / "apps.jsonl"))
    assert apps[0].metadata["public"]["inputs"] == ["2\na\nb\n"]
    assert (apps[1].target["inputs"][0], apps[1].target["outputs"][0]) == ("[1, 1, 2, 2, 2]", "true")
    assert apps.left_out == (f"{ROWS / 'apps.jsonl'}: row 4: a problem without tests",)


def test_a_problem_with_a_number_that_python_does_not_read_is_left_out(tmp_path):
    rows = [json.loads(line) for line in (ROWS / "apps.jsonl").read_text().splitlines()[:2]]
    rows[1]["input_output"] = '{"fn_name": "f", "inputs": [[%s]], "outputs": [1]}' % ("9" * 5000)
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(map(json.dumps, rows)))
    loaded = tasks.load("apps", source=str(source))
    assert len(loaded) == 1
    assert loaded.left_out == (f"{source}: row 2: a number of more digits than Python reads",)


def test_packed_tests_that_would_run_code_are_refused(tmp_path):
    import pickle
    import zlib

    class Runs:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "touched",))

    packed = base64.b64encode(zlib.compress(pickle.dumps(Runs()))).decode()
    row = json.loads((ROWS / "livecodebench.jsonl").read_text().splitlines()[0])
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({**row, "private_test_cases": packed}))
    with pytest.raises(TaskDataError, match="row 1: the field 'private_test_cases' holds no tests"):
        tasks.load("livecodebench", split="test", source=str(source))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("code_contests", {"private_tests": {"input": ["1"], "output": []}}, "equally many texts"),
        ("code_contests", {"public_tests": [{"input": "1", "output": "2"}]}, "'public_tests' must hold the texts"),
        ("code_contests", {"solutions": ["print(1)"]}, "'solutions' must hold languages and solutions"),
        ("apps", {"input_output": "{"}, "is not JSON"),
        ("livecodebench", {"public_test_cases": "[3]"}, "list of tests with input and output"),
        ("livecodebench", {"question_content": None}, "must be text, not null"),
    ],
)
def test_a_bad_row_is_named_in_one_line(tmp_path, name, change, message):
    row = json.loads((ROWS / f"{name}.jsonl").read_text().splitlines()[0])
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({**row, **change}))
    with pytest.raises(TaskDataError, match=message) as caught:
        tasks.load(name, split="test", source=str(source))
    assert "\n" not in str(caught.value)


def test_a_wrong_split_or_option_is_refused():
    with pytest.raises(UnknownNameError, match="split of 'mbpp'"):
        tasks.load("mbpp", split="tset", source=str(ROWS))
    with pytest.raises(UnknownNameError, match="did you mean 'shown'"):
        tasks.load("mbpp", source=str(ROWS), show=3)
