"""The verifiers numeric, format and composite, and the options of the math verifier."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from verigym import verifiers
from verigym.cli import main
from verigym.tasks.errors import ConfigError, UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict, Verifier
from verigym.verifiers._latex import COMMA, split_top

OLYMPIAD = Path(__file__).parent.parent.parent / "shared/data/olympiadbench_oe_to_maths_en/olympiadbench_even.jsonl"


def judge(verifier: Verifier, text: str, target: Any = "42", **metadata: Any) -> Verdict:
    return verifier.verify(Submission(text), Task("t", "What is it?", target, metadata))


def boxed(verifier: Verifier, answer: str, target: Any, **metadata: Any) -> bool:
    return judge(verifier, f"\\boxed{{{answer}}}", target, **metadata).reward == 1


# numeric


def test_number_within_either_tolerance_is_right():
    absolute, relative = verifiers.make("numeric", tolerance=0.01), verifiers.make("numeric", relative=0.01)
    assert boxed(absolute, "3.15", "3.14")
    assert not boxed(absolute, "3.16", "3.14")
    assert boxed(relative, "3110", "3140")
    assert not boxed(relative, "3100", "3140")
    assert boxed(relative, "0", 0)
    assert not boxed(relative, "0.001", 0)


def test_without_tolerance_only_rounding_of_decimals_is_allowed():
    exact = verifiers.make("numeric")
    assert boxed(exact, "0.3333333", "1/3")
    assert not boxed(exact, "0.33", "1/3")
    assert not boxed(exact, "43", 42)


def test_tolerance_of_the_task_stands_in_for_the_option():
    verifier = verifiers.make("numeric", tolerance=5)
    assert not boxed(verifier, "4.4", "4.2", tolerance=0.1)
    assert boxed(verifier, "4.3", "4.2", tolerance=0.1)
    assert boxed(verifier, r"4.25\%", "4.2", tolerance=0.1)


@pytest.mark.parametrize("answer", [r"\sqrt{16}", "2+2", "4 or 5", "x", "nan", r"\infty", "4,5", "x=3=4", ""])
def test_answer_that_is_no_plain_number_earns_nothing(answer):
    assert not boxed(verifiers.make("numeric", tolerance=0.5), answer, "4")


@pytest.mark.parametrize("bound", [-1, math.inf, math.nan, "wide", True])
def test_tolerance_that_is_none_is_refused(bound):
    with pytest.raises(ConfigError, match="tolerance"):
        verifiers.make("numeric", tolerance=bound)
    for name in ("numeric", "math"):
        with pytest.raises(VerifierInputError, match="tolerance"):
            boxed(verifiers.make(name), "4", "4", tolerance=bound)


@pytest.mark.parametrize("target", [r"\sqrt{2}", "x", None, "", [], True])
def test_target_that_is_no_number_is_refused(target):
    with pytest.raises(VerifierInputError):
        boxed(verifiers.make("numeric"), "1", target)


# options of math


def test_math_honours_the_tolerance_of_a_task():
    verifier = verifiers.make("math")
    assert boxed(verifier, "4.3", "4.2", tolerance=0.1)
    assert not boxed(verifier, "4.31", "4.2", tolerance=0.1)
    assert not boxed(verifier, "4.3", "4.2")
    assert boxed(verifier, r"3\sqrt{2}", "4.2", tolerance=0.1)
    assert not boxed(verifier, r"3\sqrt{2}", "4.2")
    assert boxed(verifier, "8.1, 4.3", "$4.2$,$8$", tolerance=0.1)
    assert not boxed(verifier, "8.2, 4.3", "4.2, 8", tolerance=0.1)


def test_units_are_optional_or_required():
    optional, required = verifiers.make("math"), verifiers.make("math", units="required")
    for gold, with_unit in [(r"5 \text{ cm}", "5 cm"), (r"90^\circ", "90°"), (r"\$5", r"5 \text{ dollars}"),
                            (r"5 \text{ apples}", r"5\text{ apples}")]:  # fmt: skip
        bare = "90" if "90" in gold else "5"
        assert boxed(optional, with_unit, gold)
        assert boxed(optional, bare, gold)
        assert boxed(required, with_unit, gold)
        assert not boxed(required, bare, gold)
        assert not boxed(required, rf"{bare} \text{{ pears}}", gold)
    assert boxed(required, "5", "5")
    assert boxed(required, r"10\%", r"10\%")
    assert not boxed(optional, "5 m", "5 cm")


def test_percent_is_either_or_strict():
    either, strict = verifiers.make("math"), verifiers.make("math", percent="strict")
    assert [boxed(either, answer, r"10\%") for answer in (r"10\%", "0.1", "10", "1")] == [True, True, True, False]
    assert [boxed(strict, answer, r"10\%") for answer in (r"10\%", "0.1", "10", "1")] == [True, True, False, False]
    assert [boxed(strict, answer, "x/100") for answer in (r"x\%", "x")] == [True, False]


def test_unknown_way_to_treat_units_and_percent_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'required'"):
        verifiers.make("math", units="require")
    with pytest.raises(UnknownNameError, match="did you mean 'strict'"):
        verifiers.make("math", percent="strikt")


@pytest.mark.parametrize(
    ("answer", "gold"),
    [(r"\frac{2\pi}{3}", r"120^\circ"), (r"60^\circ", r"\pi/3"), ("(3, \\infty)", r"\{x \mid x > 3\}"),
     ("|x| < 3", "-3 < x < 3"), ("|x| < 3", "(-3, 3)"), ("five", "5"), (r"\text{twelve}", "12"), ("1000,99", "1000.99"),
     ("0,111", "0.111"),
     (r"\{108, 135\}", "$108$,$135$")],
)  # fmt: skip
def test_other_spelling_is_equal(answer, gold):
    assert boxed(verifiers.make("math"), answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [(r"\frac{\pi}{3}", r"120^\circ"), (r"\{x \mid x \ge 3\}", r"(3, \infty)"), ("|x| < 3", "[-3, 3]"), ("fifty", "5"),
     ("1,234", "1.234"), ("41,0", "41"), ("five, six", "5")],
)  # fmt: skip
def test_near_spelling_is_not(answer, gold):
    assert not boxed(verifiers.make("math"), answer, gold)


def test_boxes_joined_by_and_are_one_list():
    verifier = verifiers.make("math")
    assert judge(verifier, r"$\boxed{(98, 2)} \quad \text{and} \quad \boxed{(99, 503)}$", "(99,503),(98,2)").reward == 1
    assert judge(verifier, r"$\boxed{41} \text{ or } \boxed{42}$", "42").outcome is Outcome.WRONG
    assert judge(verifier, r"\boxed{41} and then \boxed{42}", "42").reward == 1


def test_answer_block_is_where_the_answer_is_sought():
    for name in ("math", "numeric", "exact"):
        verifier = verifiers.make(name)
        assert judge(verifier, "<think>41</think>\n<answer>42</answer>").reward == 1
        assert judge(verifier, "<answer>41</answer> 42").reward == 0
    assert judge(verifiers.make("math"), r"<answer>So it is \boxed{42}</answer>").reward == 1
    assert judge(verifiers.make("math"), "<answer>41</answer><answer>42</answer>").outcome is Outcome.UNPARSEABLE


def olympiad() -> list[tuple[dict[str, Any], Task]]:
    if not OLYMPIAD.exists():
        pytest.skip(f"no real data at {OLYMPIAD}")
    rows = [json.loads(line) for line in OLYMPIAD.read_text().splitlines()]
    tolerances = [{"tolerance": float(row["error"])} if row["error"] else {} for row in rows]
    return [
        (row, Task(str(row["id"]), row["question"], row["final_answer"][0], tolerance))
        for row, tolerance in zip(rows, tolerances, strict=True)
    ]


def test_golds_of_olympiadbench_earn_full_reward_with_their_unit_and_in_any_order():
    verifier, pairs = verifiers.make("math"), []
    for row, task in olympiad():
        pairs += [(Submission(gold), task) for gold in verifier.golds(task)]
        plain = task.target.replace("$", "").strip(" .")
        if row["unit"]:
            pairs.append((Submission(rf"\boxed{{{plain} {row['unit'].replace('%', chr(92) + '%')}}}"), task))
        if row["is_multiple_answer"]:
            pairs.append((Submission(rf"\boxed{{{', '.join(reversed(split_top(plain, COMMA)))}}}"), task))
    assert len(pairs) > 380
    assert [pair for pair, verdict in zip(pairs, verifier.verify_many(pairs), strict=True) if verdict.reward != 1] == []


def test_one_answer_of_several_is_wrong():
    verifier = verifiers.make("math")
    several = [task for row, task in olympiad() if row["is_multiple_answer"]]
    parts = [(task, split_top(task.target.replace("$", "").strip(" ."), COMMA)) for task in several]
    pairs = [(Submission(rf"\boxed{{{', '.join(answers[1:])}}}"), task) for task, answers in parts]
    assert {verdict.reward for verdict in verifier.verify_many(pairs)} == {0.0}


# format

R1 = ("think", "answer")


@pytest.mark.parametrize(
    ("require", "text"),
    [
        (("think", "boxed"), r"<think>6 * 7</think> So it is \boxed{42}."),
        (("think", "boxed"), r"<think>\boxed{41}?</think> \boxed{42}"),
        (R1, "<think>\na\n</think>\n<answer>\n42\n</answer>\n"),
        (("think",), "<think>a</think>This is my answer."),
        (("plan", "code", "answer"), "<plan>p</plan><code>c</code> <answer>a</answer>"),
        (("boxed",), r"It is \fbox{42}"),
    ],
)
def test_required_structure_earns_full_reward(require, text):
    assert judge(verifiers.make("format", require=list(require)), text).reward == 1


@pytest.mark.parametrize(
    ("require", "text"),
    [
        (("think", "boxed"), r"\boxed{42}"),
        (("think", "boxed"), r"<think>a</think> 42"),
        (("think", "boxed"), r"<think>a \boxed{42}</think>"),
        (("think", "boxed"), r"<think>a</think> \boxed{42} \boxed{42}"),
        (("think", "boxed"), r"<think>a</think> \boxed{ }"),
        (("think", "boxed"), r"<think>a</think> \boxed{42"),
        (("think", "boxed"), r"<think> </think> \boxed{42}"),
        (("think", "boxed"), "<think>\u200b</think> \\boxed{42}"),
        (("think", "boxed"), "<think>a</think> \\boxed{\u200b}"),
        (("think",), "<think>a</think>\ufeff"),
        (("think", "boxed"), r"Hm. <think>a</think> \boxed{42}"),
        (("think", "boxed"), r"<think>a \boxed{42}"),
        (R1, "<answer>42</answer><think>a</think>"),
        (R1, "<think>a</think><answer>42</answer> and more"),
        (R1, "<think>a</think> well <answer>42</answer>"),
        (R1, "<think>a<answer>42</answer></think>"),
        (R1, "<think>a</think><answer>42</answer><answer>43</answer>"),
        (R1, "<think>a<think>b</think></think><answer>42</answer>"),
        (R1, "</think>a<think><answer>42</answer>"),
        (("think",), "<think>Only thinking</think>"),
        (("think",), ""),
    ],
)
def test_other_structure_is_wrong(require, text):
    verdict = judge(verifiers.make("format", require=list(require)), text)
    assert (verdict.reward, verdict.outcome) == (0.0, Outcome.WRONG)


@pytest.mark.parametrize("require", [[], "think", ["think", "think"], ["boxed", "think"], ["<think>"], [""], [1], None])
def test_parts_that_are_none_are_refused(require):
    with pytest.raises(ConfigError, match="require"):
        verifiers.make("format", require=require)


# composite


def test_reward_of_a_composite_is_the_weighted_mean_of_its_named_parts():
    verifier = verifiers.make("composite", parts={"math": 3, "style": {"verifier": "format", "weight": 1}})
    verdict = judge(verifier, r"\boxed{42}")
    assert (verdict.reward, verdict.outcome) == (0.75, Outcome.CORRECT)
    assert dict(verdict.components) == {"math": 1.0, "style": 0.0}
    assert "style: there must be exactly one <think>" in verdict.reason
    assert judge(verifier, r"<think>a</think>\boxed{41}").reward == 0.25
    assert judge(verifier, r"<think>a</think>\boxed{41}").outcome is Outcome.WRONG
    assert judge(verifier, r"<think>a</think>\boxed{42}").reward == 1.0


def test_golds_of_a_composite_satisfy_all_parts():
    for require in (["think", "boxed"], ["think", "answer"], ["think"]):
        verifier = verifiers.make("composite", parts={"math": 0.7, "format": {"weight": 0.1, "require": require}})
        for target in ("42", [r"\frac{1}{3}", "0.3333333"]):
            task = Task("t", "?", target)
            assert [verifier.verify(Submission(gold), task).reward for gold in verifier.golds(task)] in (
                [1.0],
                [1.0] * 2,
            )


class Broken(Verifier):
    """Fails, and says whether it was closed."""

    closed = 0

    def verify(self, submission, task):
        return Verdict.infra_error("no judge answers")

    def close(self):
        Broken.closed += 1


def test_infrastructure_error_of_any_part_is_one_of_the_whole(monkeypatch):
    monkeypatch.setitem(verifiers.verifier._REGISTRY, "broken", Broken)
    verifier = verifiers.make("composite", parts={"math": 1, "broken": 1})
    verdict = judge(verifier, r"\boxed{42}")
    assert verdict.outcome is Outcome.INFRA_ERROR
    assert math.isnan(verdict.reward)
    assert verdict.reason == "broken: no judge answers"
    verifier.close()
    assert Broken.closed == 1


@pytest.mark.parametrize("parts", [{}, [], {"math": 0}, {"math": -1}, {"math": "x"}, {"math": True}, {"math": {}}])
def test_parts_without_a_weight_are_refused(parts):
    with pytest.raises(ConfigError):
        verifiers.make("composite", parts=parts)


def test_wrong_names_in_a_composite_are_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'math'"):
        verifiers.make("composite", parts={"maths": 1})
    with pytest.raises(UnknownNameError, match="did you mean 'require'"):
        verifiers.make("composite", parts={"format": {"weight": 1, "requires": ["think"]}})


# rows of `verigym verify`


@pytest.mark.parametrize(
    ("name", "option", "row"),
    [
        ("choice", None, {"completion": r"\boxed{21.5}", "target": "B", "metadata": {"options": ["21", "21.5"]}}),
        ("numeric", None, {"completion": r"\boxed{4.3}", "target": 4.2, "metadata": {"tolerance": 0.1}}),
        ("math", "units=required", {"completion": r"\boxed{5 \text{ m}}", "target": r"5\text{ m}"}),
        ("format", "require=[think, answer]", {"completion": "<think>a</think><answer>b</answer>", "target": None}),
        ("composite", "parts={math: 1, format: 0.1}", {"completion": r"<think>a</think>\boxed{42}", "target": 42}),
    ],
)  # fmt: skip
def test_verify_command_takes_rows_of_every_verifier(tmp_path, capsys, name, option, row):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": 1, **row}) + "\n")
    assert main(["verify", name, str(file), *(["--option", option] if option else [])]) == 0
    assert json.loads(capsys.readouterr().out)["reward"] == 1.0


def test_verify_command_refuses_metadata_that_is_no_object(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"id": 1, "completion": "B", "target": "B", "metadata": ["A"]}) + "\n")
    assert main(["verify", "choice", str(file)]) != 0
    assert "the field 'metadata' must be an object, not a list" in capsys.readouterr().err
