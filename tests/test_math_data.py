"""The math domain's data: every real set reads whole, in its own form and the hub's, and its gold answers verify."""

import json
from pathlib import Path

import pytest

from verigym import tasks, verifiers
from verigym.tasks import countdown
from verigym.tasks.errors import ConfigError, TaskDataError
from verigym.verifiers import Outcome, Submission

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")

# name, split, folder, rows with an answer, first prompt begins, first target
REAL = [
    ("math", "train", "math_hendrycks", 7470, "Let \\[f(x) =", "0"),
    ("math", "test", "math_hendrycks", 4742, "How many vertical", "2"),
    ("svamp", "test", "svamp", 488, "Paco had 26", 17),
    ("gsm_hard", "test", "gsm_hard", 658, "Janet’s ducks", -9867630),
    ("aqua", "validation", "aqua", 254, "Three birds", "A"),
    ("olympiadbench", "test", "olympiadbench_oe_to_maths_en", 349, "Xenia and Sergey", "2"),
    ("college_math", "test", "college_math_ccby", 622, "Solve the following systems", "$(45,2),(-10,-9)$"),
]


def write(folder: Path, name: str, *rows: object) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@needs_data
@pytest.mark.parametrize(("name", "split", "folder", "count", "prompt", "target"), REAL)
def test_a_real_set_is_read_whole(name: str, split: str, folder: str, count: int, prompt: str, target: object) -> None:
    task_set = tasks.load(name, split, source=DATA / folder)
    assert len(task_set) == count
    assert task_set[0].prompt.startswith(prompt)
    assert task_set[0].target == target
    assert len({task.id for task in task_set}) == count


@needs_data
@pytest.mark.parametrize(("name", "split", "folder"), [case[:3] for case in REAL if case[0] != "aqua"])
def test_the_math_verifier_accepts_every_gold_answer(name: str, split: str, folder: str) -> None:
    verifier = verifiers.make("math")
    task_set = tasks.load(name, split, source=DATA / folder)
    pairs = [(Submission(f"So it is {gold}."), task) for task in task_set for gold in verifier.golds(task)]
    refused = [
        (task.id, submission.text, verdict.reason)
        for (submission, task), verdict in zip(pairs, verifier.verify_many(pairs), strict=True)
        if verdict.reward != 1
    ]
    assert refused == []
    assert len(pairs) == len(task_set)


@needs_data
def test_rows_of_math_without_an_answer_are_left_out_and_listed() -> None:
    left_out = tasks.load("math", source=DATA / "math_hendrycks").left_out
    assert [line.partition(": ")[2] for line in left_out] == [
        f"row {number}: its answer is empty" for number in (887, 1010, 5329, 5331)
    ]


def test_math_takes_the_last_box_of_a_solution_as_on_the_hub(tmp_path: Path) -> None:
    row = {"problem": "p", "level": "Level 4", "type": "Geometry", "solution": r"\boxed{1}, so \boxed{\frac{2}{3}}."}
    task_set = tasks.load("math", source=write(tmp_path, "train.jsonl", row, {**row, "solution": r"\boxed{}"}))
    assert task_set[0].target == r"\frac{2}{3}"
    assert dict(task_set[0].metadata) == {"subject": "Geometry", "level": 4}
    assert "row 2: the last \\boxed{} of its solution is empty" in task_set.left_out[0]
    with pytest.raises(TaskDataError, match=r"row 1: the field 'solution' has no \\boxed{} answer"):
        tasks.load("math", source=write(tmp_path, "t.jsonl", {**row, "solution": "3"}))


def test_svamp_and_gsm_hard_read_the_hub_s_field_names(tmp_path: Path) -> None:
    row = {"ID": "chal-1", "Body": "He has 3 pens", "Question": "How many?", "Answer": "3.0", "Type": "Addition"}
    task = tasks.load("svamp", "test", source=write(tmp_path, "svamp.jsonl", row))[0]
    assert (task.id, task.prompt, task.target) == ("chal-1", "He has 3 pens. How many?", 3)
    row = {"input": "How many?", "target": 2.5, "code": "def solution(): ..."}
    task = tasks.load("gsm_hard", "test", source=write(tmp_path, "hard.jsonl", row))[0]
    assert (task.prompt, task.target) == ("How many?", 2.5)


@pytest.mark.parametrize("value", ["many", None, True, "NaN", float("inf")])
def test_an_answer_that_is_no_number_is_refused(tmp_path: Path, value: object) -> None:
    path = write(tmp_path, "svamp.jsonl", {"id": "a", "question": "q", "answer": value})
    with pytest.raises(TaskDataError, match=r"svamp.jsonl: row 1: the field 'answer' must be"):
        tasks.load("svamp", "test", source=path)


@needs_data
def test_aqua_shows_its_options_and_keeps_their_texts() -> None:
    task = tasks.load("aqua", "validation", source=DATA / "aqua")[1]
    assert task.prompt.endswith("What is its length?\nA) 100 m\nB) 150 m\nC) 200 m\nD) 250 m\nE) 300 m")
    assert task.target == "D"
    assert task.metadata["options"] == ("100 m", "150 m", "200 m", "250 m", "300 m")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"correct": "F"}, "'correct' must be one of A, B, not 'F'"),
        ({"correct": "1"}, "'correct' must be one of A, B, not '1'"),
        ({"options": ["A)1", "C)2"]}, r"option 2 must begin with 'B\)', not 'C\)2'"),
        ({"options": "A)1 B)2"}, "'options' must be a list of at least two texts"),
    ],
)
def test_a_bad_row_of_aqua_is_refused(tmp_path: Path, change: dict, problem: str) -> None:
    row = {"question": "q", "options": ["A)1", "B)2"], "correct": "B"} | change
    with pytest.raises(TaskDataError, match=problem):
        tasks.load("aqua", source=write(tmp_path, "train.jsonl", row))


@needs_data
def test_olympiadbench_keeps_units_tolerances_and_several_answers() -> None:
    task_set = tasks.load("olympiadbench", "test", source=DATA / "olympiadbench_oe_to_maths_en")
    task = task_set.get("2592")
    assert (task.target, task.metadata["unit"], task.metadata["tolerance"]) == ("4.2", "%", 0.1)
    assert sum("tolerance" in task.metadata for task in task_set) == 1


def test_several_final_answers_are_all_wanted_or_any_of_them(tmp_path: Path) -> None:
    row = {"question": "q", "context": "Let $x > 0$.", "final_answer": ["1", "$2$"], "is_multiple_answer": True}
    path = write(tmp_path, "o.jsonl", row, {**row, "is_multiple_answer": False, "context": None})
    every, either = tasks.load("olympiadbench", "test", source=path)
    assert (every.prompt, every.target) == ("Let $x > 0$.\n\nq", "1, $2$")
    assert (either.prompt, either.target) == ("q", ("1", "$2$"))


@pytest.mark.parametrize("level", range(1, 6))
def test_countdown_has_solutions_and_disjoint_splits(level: int) -> None:
    verifier = verifiers.make("countdown")
    seen = {}
    for split in ("train", "test"):
        task_set = tasks.load("countdown", split, level=level, size=200)
        seen[split] = {(tuple(sorted(t.metadata["numbers"])), t.metadata["goal"]) for t in task_set}
        for task in task_set:
            assert verifier.verify(Submission(verifier.golds(task)[0]), task).reward == 1.0
            assert len(task.metadata["numbers"]) == countdown.LEVELS[level - 1].numbers
    assert not seen["train"] & seen["test"]
    assert (
        tasks.load("countdown", level=level, size=9).fingerprint
        == tasks.load("countdown", level=level, size=20)[:9].fingerprint
    )


PUZZLE = tasks.Task("t", "p", "(3 + 4) * 5", {"numbers": [3, 4, 5], "goal": 35})


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (r"(3+4) \times 5", Outcome.CORRECT),
        (r"5 \cdot \left(4 + 3\right) = 35", Outcome.CORRECT),
        ("5*4 + 3*5", Outcome.WRONG),  # 5 twice
        ("5*(4+3) = 36", Outcome.WRONG),
        ("(5-4)*3", Outcome.WRONG),
        ("35", Outcome.WRONG),
        ("3.0 + 4 * 8", Outcome.WRONG),
        ("(3+4)*05", Outcome.CORRECT),
        ("5(3+4)", Outcome.CORRECT),
        ("(3+4)(5)", Outcome.CORRECT),
        ("(3+4)5", Outcome.CORRECT),
        (r"35 = 5 \ast (3+4)", Outcome.CORRECT),
        ("34 = 5*(3+4)", Outcome.WRONG),
        ("5*7 = 35", Outcome.WRONG),
        ("34 5", Outcome.UNPARSEABLE),
        ("(3+4)*5 = 35 = 35", Outcome.UNPARSEABLE),
        ("__import__('os')", Outcome.UNPARSEABLE),
        ("1/0", Outcome.UNPARSEABLE),
        ("9" * 100_000, Outcome.UNPARSEABLE),
        ("(" * 400, Outcome.UNPARSEABLE),
    ],
)
def test_countdown_judges_numbers_and_goal(answer: str, outcome: Outcome) -> None:
    verdict = verifiers.make("countdown").verify(Submission(f"\\boxed{{{answer}}}"), PUZZLE)
    assert verdict.outcome is outcome, verdict


def test_custom_rows_need_a_prompt_and_a_target(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "prompt": "Two or three?", "target": ["2", 3], "metadata": {"tolerance": 0.5}},
        {"prompt": "How many?", "target": 7},
    ]
    path = write(tmp_path, "mine.jsonl", *rows)
    first, second = tasks.load("custom", source=path)
    assert (first.id, first.target, dict(first.metadata)) == ("a", ("2", 3), {"tolerance": 0.5})
    assert (second.id, second.target) == ("custom-train-1", 7)
    renamed = write(tmp_path, "other.jsonl", {"question": "How?", "answer": "so"})
    assert tasks.load("custom", source=renamed, prompt_field="question", target_field="answer")[0].target == "so"
    with pytest.raises(TaskDataError, match="row 1: the field 'prompt' is missing"):
        tasks.load("custom", source=renamed)
    with pytest.raises(ConfigError, match="needs its data: give source=PATH"):
        tasks.load("custom")


@pytest.mark.parametrize("target", [None, "", [], [""], True, {}])
def test_a_custom_target_that_cannot_be_judged_is_refused(tmp_path: Path, target: object) -> None:
    path = write(tmp_path, "mine.jsonl", {"prompt": "How?", "target": target})
    with pytest.raises(TaskDataError, match="row 1: the field 'target' must be a text, a number, a list"):
        tasks.load("custom", source=path)


def test_numbers_lower_case_letters_and_plain_options_are_read(tmp_path: Path) -> None:
    row = {"problem": "p", "answer": 12}
    assert tasks.load("math", source=write(tmp_path, "m.jsonl", row))[0].target == "12"
    assert tasks.load("math500", "test", source=tmp_path / "m.jsonl")[0].target == "12"
    row = {"question": "q", "answer": 0.5}
    assert tasks.load("college_math", "test", source=write(tmp_path, "c.jsonl", row))[0].target == "0.5"
    row = {"question": "q", "options": ["21", "21.5"], "correct": "b"}
    task = tasks.load("aqua", source=write(tmp_path, "a.jsonl", row))[0]
    assert (task.target, task.metadata["options"]) == ("B", ("21", "21.5"))
    row = {"question": "q", "final_answer": "$3$", "error": "1e-2"}
    task = tasks.load("olympiadbench", "test", source=write(tmp_path, "o.jsonl", row))[0]
    assert (task.target, task.metadata["tolerance"]) == ("$3$", 0.01)


@pytest.mark.parametrize("error", ["nan", "-1", "inf", "some"])
def test_a_tolerance_that_cannot_be_is_refused(tmp_path: Path, error: str) -> None:
    path = write(tmp_path, "o.jsonl", {"question": "q", "final_answer": ["3"], "error": error})
    with pytest.raises(TaskDataError, match="row 1: the field 'error' must be a number from 0 on, or null"):
        tasks.load("olympiadbench", "test", source=path)
