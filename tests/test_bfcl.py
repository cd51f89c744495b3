"""BFCL's rows: their layouts, what becomes of a row, and its environment by category."""

import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest

from verigym import tasks
from verigym.cli import main
from verigym.envs.validation import validate
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import TaskDataError, UnknownNameError

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
ENV = "verigym/BFCL-v0"

AREA = {
    "name": "geo.area",
    "description": "The area of a shape.",
    "parameters": {
        "type": "dict",
        "properties": {
            "sides": {"type": "tuple", "items": {"type": "float"}, "description": "Lengths."},
            "where": {"type": "dict", "properties": {"unit": {"type": "String", "enum": ["m", "ft"]}}},
            "any": {"type": "any", "optional": True},
        },
        "required": ["sides"],
    },
}
TRUTH = [{"geo.area": {"sides": [[1, 2.5]], "where": ["", {"unit": ["m", ""]}]}}]


def question(row_id: str, text: str = "How large is it?", **changes: Any) -> dict[str, Any]:
    return {"id": row_id, "question": [[{"role": "user", "content": text}]], "function": [AREA], **changes}


def write(path: Path, *rows: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def answer(row_id: str, truth: Any = TRUTH) -> dict[str, Any]:
    return {"id": row_id, "ground_truth": truth}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "simple_python.jsonl", question("s0"), question("s1"))
    write(tmp_path / "simple_python.answer.jsonl", answer("s0"), answer("s1"))
    write(tmp_path / "irrelevance.jsonl", question("i0"), question("i1"), question("i2"))
    return tmp_path


@pytest.mark.parametrize(
    ("questions", "answers"),
    [
        ("simple_python.jsonl", "simple_python.answer.jsonl"),
        ("BFCL_v3_simple.json", "possible_answer/BFCL_v3_simple.json"),
        ("BFCL_v4_simple_python.json", "possible_answer/BFCL_v4_simple_python.json"),
        ("data/BFCL_v4_simple_python.json", "data/possible_answer/BFCL_v4_simple_python.json"),
        ("question/BFCL_v4_simple_python.json", "possible_answer/BFCL_v4_simple_python.json"),
    ],
)
def test_each_layout_is_read_as_a_folder_and_as_a_file(tmp_path, questions, answers):
    write(tmp_path / questions, question("s0"))
    write(tmp_path / answers, answer("s0"))
    for source in (tmp_path, tmp_path / questions):
        for category in ("simple", "simple_python"):
            [task] = tasks.load("bfcl", "test", source, category=category)
            assert (task.id, task.prompt, task.target) == ("s0", "How large is it?", TRUTH)


def test_the_hub_is_read_from_its_own_layout(tmp_path, monkeypatch):
    from huggingface_hub import constants

    home = tmp_path / "datasets--gorilla-llm--Berkeley-Function-Calling-Leaderboard"
    write(home / "snapshots" / "0a1b" / "BFCL_v3_java.json", question("j0"))
    write(home / "snapshots" / "0a1b" / "possible_answer" / "BFCL_v3_java.json", answer("j0"))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0a1b")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert tasks.load("bfcl", "test", category="java").ids == ["j0"]
    with pytest.raises(TaskDataError, match="give source=PATH"):
        tasks.load("bfcl", "test", "nobody/nothing")


def test_a_schema_is_one_that_a_chat_template_takes(folder):
    env = gym.make(ENV, source=str(folder))
    observation, info = env.reset(options={"task": "s0"})
    [tool] = info["tools"]
    assert tool["type"] == "function"
    assert tool["function"]["name"] == "geo_area"
    assert tool["function"]["parameters"] == {
        "type": "object",
        "properties": {
            "sides": {"type": "array", "items": {"type": "number"}, "description": "Lengths."},
            "where": {"type": "object", "properties": {"unit": {"type": "string", "enum": ["m", "ft"]}}},
            "any": {},
        },
        "required": ["sides"],
    }
    assert "no function" in observation


@pytest.mark.parametrize("name", ["geo_area", "geo.area"])
def test_a_function_is_called_by_the_name_that_is_shown_or_its_own(folder, name):
    env = gym.make(ENV, source=str(folder))
    env.reset(options={"task": "s0"})
    _, reward, terminated, _, info = env.step(render_call(name, {"sides": [1, 2.5]}))
    assert (reward, terminated) == (1.0, True), info["verdict"]
    golds = env.unwrapped.golds(env.unwrapped.tasks.get("s0"))
    assert golds[0] == render_call("geo_area", {"sides": [1, 2.5], "where": {"unit": "m"}})
    assert golds[1] == render_call("geo_area", {"sides": [1, 2.5]})


def test_messages_before_the_question_are_kept(tmp_path):
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"},
              {"role": "assistant", "content": "Yes?"}]  # fmt: skip
    write(tmp_path / "live_simple.jsonl", question("l0", question=[[*before, {"role": "user", "content": "Area?"}]]))
    write(tmp_path / "live_simple.answer.jsonl", answer("l0"))
    _, info = gym.make(ENV, source=str(tmp_path), category="live_simple", instructions="").reset(seed=1)
    assert info["messages"] == [*before, {"role": "user", "content": "Area?"}]


def test_irrelevance_is_paired_with_rows_that_can_be_answered(folder):
    env = gym.make(ENV, source=str(folder), category="irrelevance").unwrapped
    assert env.tasks.ids == ["s0", "i0", "s1", "i1", "i2"]
    assert env.chance == 3 / 5
    rewards = []
    for task in env.tasks:
        env.reset(options={"task": task.id})
        rewards.append(env.step(r"None of them can: \boxed{no function}")[1])
    assert rewards == [0, 1, 0, 1, 1]
    (folder / "simple_python.jsonl").unlink()
    with pytest.raises(TaskDataError, match="judged paired"):
        tasks.load("bfcl", "test", folder, category="irrelevance")


@pytest.mark.parametrize(
    ("changes", "truth", "why"),
    [
        ({}, [{"geo.area": {"where": [""]}}], "it leaves out the argument 'sides'"),
        ({}, [{"geo.area": {"sides": 3}}], "must list the values of each argument"),
        ({"function": [{"name": "f"}]}, TRUTH, "must be an object with 'name' and 'parameters'"),
        ({"function": [{"name": "f", "parameters": {"properties": {"x": {"type": "strnig"}}}}]}, TRUTH, "'strnig'"),
        ({"function": [{"name": "f", "parameters": {"properties": {"x": {"type": ["null"]}}}}]}, TRUTH, "['null']"),
        ({"function": [{"name": "f", "parameters": {"properties": {"x": 5}}}]}, TRUTH, "'5' where a schema must be"),
        ({"function": [AREA, {**AREA, "name": "geo_area"}]}, TRUTH, "two of its functions have one name"),
    ],
)
def test_a_bad_row_is_left_out_and_said(folder, changes, truth, why):
    write(folder / "simple_python.jsonl", question("s0"), question("s1", **changes))
    write(folder / "simple_python.answer.jsonl", answer("s0"), answer("s1", truth))
    env = gym.make(ENV, source=str(folder)).unwrapped
    assert env.tasks.ids == ["s0"]
    [line] = env.tasks.left_out
    assert "simple_python.jsonl: row 2: s1 is a bad row: " in line
    assert why in line
    write(folder / "simple_python.jsonl", question("s1", **changes))
    with pytest.raises(TaskDataError, match=r"no rows that can be used \(.*s1 is a bad row"):
        gym.make(ENV, source=str(folder))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (question("s0", question=[[], []]), "must hold one turn"),
        (question("s0", question=[[{"role": "user"}]]), "must hold one turn"),
        (question("other"), "no ground truth for 'other'"),
    ],
)
def test_a_row_of_another_shape_is_refused_by_name(folder, row, why):
    write(folder / "simple_python.jsonl", row)
    with pytest.raises(TaskDataError, match=r"simple_python.jsonl: row 1: ") as error:
        tasks.load("bfcl", "test", folder)
    assert why in str(error.value)


def test_wrong_names_are_answered_with_a_suggestion(folder):
    with pytest.raises(UnknownNameError, match="did you mean 'parallel'"):
        tasks.load("bfcl", "test", folder, category="paralel")
    with pytest.raises(UnknownNameError, match="no split"):
        tasks.load("bfcl", "train", folder)
    with pytest.raises(UnknownNameError, match="'tools'"):
        gym.make(ENV, source=str(folder), tools=())
    with pytest.raises(TaskDataError, match=r"no questions of the category 'multiple' \(multiple.jsonl"):
        tasks.load("bfcl", "test", folder, category="multiple")


def test_the_environment_takes_the_policy_of_the_command(folder, tmp_path, capsys):
    file = tmp_path / "answers.jsonl"
    completion = render_call("geo.area", {"sides": [1, 2.5], "where": {"unit": "M"}})
    write(file, {"id": 1, "task": "s0", "completion": completion})
    rewards = []
    for policy in ("strict", "bfcl"):
        options = ["--source", str(folder), "--option", f"verifier_options={{policy: {policy}}}"]
        assert main(["verify", ENV, str(file), *options]) == 0
        rewards.append(json.loads(capsys.readouterr().out)["reward"])
    assert rewards == [0.0, 1.0]


SIZES = {
    "simple": 400,
    "multiple": 200,
    "java": 100,
    "live_simple": 256,
    "live_parallel": 16,
    "irrelevance": 480,
    "live_relevance": 32,
    "exec_simple": 100,
    "exec_parallel": 50,
}


@NEEDS_DATA
@pytest.mark.parametrize("category", SIZES)
def test_golds_of_the_real_rows_are_right_and_null_policies_stay_below_chance(category):
    source = DATA / ("bfcl_exec" if category.startswith("exec") else "bfcl_v4")
    env = gym.make(ENV, source=str(source), category=category).unwrapped
    found = validate(env)
    assert len(env.tasks) == SIZES[category]
    assert len(env.tasks.left_out) == (2 if category == "live_simple" else 0)
    assert found.failures == ()
    assert found.earning == [], dict(found.null_rewards)
    assert env.chance <= (0.5 if category in ("irrelevance", "live_relevance") else 0.02)
