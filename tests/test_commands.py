"""The commands that need no training: envs, validate, verify and play, and what wrong input gets."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from verigym import tasks, verifiers
from verigym.cli import COMMANDS, main, one_line
from verigym.envs import registered_ids
from verigym.tasks import Task
from verigym.tasks.canonical import render_call
from verigym.verifiers import Outcome, Submission, Verdict, Verifier

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
CALCULATOR = "verigym/Calculator-v0"
FIRST = "calculator-train-level2-seed0/0"
ROWS = [
    {"id": "right", "completion": "So \\boxed{72}.", "target": "72"},
    {"id": 2, "completion": "\\boxed{73}", "target": "72", "prompt": "How many?"},
    {"id": "none", "completion": "", "target": 72},
    {"id": "either", "completion": "<think>7</think> \\boxed{1/2}", "target": ["3", 0.5]},
    {"id": "odd \ud800", "completion": "\ud800\x00 \\boxed{72}", "target": 72.0, "extra": None},
]


def write(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def refused(capsys, *arguments):
    """The one line that a command refuses its input with."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert err.startswith(f"verigym {arguments[0]}: ")
    return err.strip()


def shell(command, **kwargs):
    program = f"{sys.executable} -m verigym.cli"
    text = command.replace("verigym", program, 1)
    return subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=120, check=False, **kwargs)


# envs


def test_envs_lists_every_id(capsys):
    assert main(["envs"]) == 0
    out = capsys.readouterr().out
    ours = [env_id for env_id in registered_ids() if env_id.startswith("verigym/")]
    assert len(ours) >= 13
    assert all(env_id in out for env_id in ours)


def test_envs_are_one_json_list_for_machines(capsys):
    assert main(["envs", "--json"]) == 0
    rows = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(registered_ids())
    values = {"task_set": "calculator", "split": "train", "turns": 4, "tools": ["calculator"], "plugin": None}
    assert rows[CALCULATOR] == {"id": CALCULATOR, **values}


# validate


@needs_data
@pytest.mark.parametrize(
    ("env_id", "source", "found"),
    [
        ("verigym/GSM8K-v0", "gsm8k", "gsm8k/train: 7473 of 7473 gold answers verify"),
        ("verigym/MATH500-v0", "math500", "math500/test: 242 of 242 gold answers verify"),
    ],
)
def test_validate_verifies_every_gold_answer_of_the_real_data(capsys, env_id, source, found):
    assert main(["validate", env_id, "--source", str(DATA / source)]) == 0
    out = capsys.readouterr().out
    assert found in out
    assert all(policy in out for policy in ("empty", "echo", "constant", "spray", "random"))


def test_validate_takes_split_limit_and_options(capsys):
    arguments = ["validate", CALCULATOR, "--split", "test", "--limit", "7", "--option", "level=1", "--option", "seed=3"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "calculator/test: 7 of 7 gold answers verify" in out
    assert "random call" in out


def test_check_gives_one_json_list_for_machines(capsys):
    assert main(["check", "verigym/Arithmetic-v0", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["env"] == "verigym/Arithmetic-v0"
    assert len(row["checks"]) > 20
    assert all(check["holds"] in (True, None) for check in row["checks"])


def test_curate_gives_one_json_object_for_machines(tmp_path, capsys):
    output = str(tmp_path / "kept.parquet")
    assert main(["curate", "verigym/Arithmetic-v0", "--tasks", "50", "--output", output, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["output"] == output
    assert found["kept"]["tasks"] + sum(found["dropped"].values()) == 50
    assert Path(found["report"]).is_file()


def test_new_gives_one_json_object_for_machines(tmp_path, capsys):
    assert main(["new", "tool", "my_units", "--folder", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["env"] == "my_units/MyUnits-v0"
    there = {str(path.relative_to(found["folder"])) for path in Path(found["folder"]).rglob("*") if path.is_file()}
    assert set(found["files"]) == there


def test_validate_gives_one_json_object_for_machines(tmp_path, capsys):
    rows = [{"problem": "?", "answer": answer, "unique_id": name} for name, answer in (("good", "3"), ("odd", "{{"))]
    source = write(tmp_path / "rows.jsonl", rows)
    assert main(["validate", "verigym/MATH500-v0", "--source", source, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["env"], found["golds"], found["valid"]) == ("verigym/MATH500-v0", 2, False)
    assert [(failure["task_id"], failure["outcome"]) for failure in found["failures"]] == [("odd", "unparseable")]
    assert found["null_rewards"]["empty"] == 0.0


def test_validate_lists_the_golds_that_fail_with_the_reason_and_ends_with_status_one(tmp_path, capsys):
    rows = [{"problem": "?", "answer": answer, "unique_id": name} for name, answer in (("good", "3"), ("odd[/]", "{{"))]
    assert main(["validate", "verigym/MATH500-v0", "--source", write(tmp_path / "rows.jsonl", rows)]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 gold answers verify" in out
    assert "odd[/]" in out
    assert "unparseable" in out
    assert "NOT VALID" in out


def test_validate_ends_with_status_one_if_a_null_policy_earns(monkeypatch, capsys):
    class Generous(Verifier):
        def verify(self, submission, task):
            return Verdict(1.0, Outcome.CORRECT, "for taking part")

    monkeypatch.setitem(verifiers.verifier._REGISTRY, "generous", Generous)
    assert main(["validate", "verigym/Arithmetic-v0", "--limit", "5", "--option", "verifier=generous"]) == 1
    assert "too much" in capsys.readouterr().out


# verify


def test_verify_judges_with_a_verifier_in_the_order_of_the_rows(tmp_path, capsys):
    assert main(["verify", "math", write(tmp_path / "rows.jsonl", ROWS)]) == 0
    out, err = capsys.readouterr()
    found = [json.loads(line) for line in out.splitlines()]
    assert [list(line) for line in found] == [["id", "reward", "outcome", "reason"]] * 5
    assert [(line["id"], line["reward"], line["outcome"]) for line in found] == [
        ("right", 1.0, "correct"),
        (2, 0.0, "wrong"),
        ("none", 0.0, "unparseable"),
        ("either", 1.0, "correct"),
        ("odd \ud800", 1.0, "correct"),
    ]
    assert "72" not in found[1]["reason"]
    assert err.count("\n") == 1
    assert all(part in err for part in ("5 answers", "/s)", "correct 3", "wrong 1", "unparseable 1", "reward 0.6"))


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_verify_writes_the_same_to_a_file_and_the_summary_to_standard_output(tmp_path, capsys, suffix):
    file = write(tmp_path / f"rows{suffix}", ["\ufeff" + json.dumps(ROWS[0]), "", *ROWS[1:], "  "])
    assert main(["verify", "math", file]) == 0
    expected = capsys.readouterr().out
    assert main(["verify", "math", file, "--output", str(tmp_path / "out.jsonl")]) == 0
    out, err = capsys.readouterr()
    assert (tmp_path / "out.jsonl").read_text() == expected
    assert "5 answers" in out
    assert err == ""


def test_verify_passes_options_to_the_verifier(tmp_path):
    rows = [{"id": 1, "completion": "It is $72$", "target": "72"}]
    file, out = write(tmp_path / "rows.jsonl", rows), str(tmp_path / "out")
    assert main(["verify", "math", file, "--output", out]) == 0
    assert read(out)[0]["outcome"] == "unparseable"
    assert main(["verify", "math", file, "--output", out, "--option", "extract=latex"]) == 0
    assert read(out)[0]["outcome"] == "correct"


def test_verify_agrees_with_the_verifier_over_many_rows_in_any_chunks(tmp_path):
    answers = ["\\boxed{%d}", "\\boxed{\\frac{%d}{2}}", "%d", "The answer is %d."]
    rows = [
        {"id": index, "completion": answers[index % 4] % (index % 7), "target": f"{index % 5}", "prompt": "?"}
        for index in range(1100)
    ]
    out = tmp_path / "out.jsonl"
    assert main(["verify", "math", write(tmp_path / "rows.jsonl", rows), "--output", str(out)]) == 0
    verifier = verifiers.make("math")
    for row, line in zip(rows, read(out), strict=True):
        verdict = verifier.verify(Submission(row["completion"]), Task("t", "?", row["target"]))
        assert line == {
            "id": row["id"],
            "reward": verdict.reward,
            "outcome": verdict.outcome.value,
            "reason": verdict.reason,
        }


def test_verify_plays_completions_in_an_environment(tmp_path, capsys):
    task = tasks.load("calculator")[0]
    call, answer = render_call("calculator", {"expression": task.metadata["expression"]}), f"\\boxed{{{task.target}}}"
    completions = [answer, [call, answer], [call], [], "no answer", [answer, "more"], [call] * 9]
    rows = [{"id": index, "task": FIRST, "completion": text} for index, text in enumerate(completions)]
    assert main(["verify", CALCULATOR, write(tmp_path / "rows.jsonl", rows)]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    outcomes = ["correct", "correct", "unparseable", "unparseable", "unparseable", "correct", "unparseable"]
    assert [line["outcome"] for line in found] == outcomes
    assert [line["reward"] for line in found] == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    assert "waits for turn 2" in found[2]["reason"]
    assert "waits for turn 1" in found[3]["reason"]
    assert "not played" in found[5]["reason"]
    assert not any(task.target in line["reason"] for line in found)


@needs_data
def test_verify_plays_the_real_gold_answers(tmp_path, capsys):
    rows = [
        {"id": f"g{index}", "task": task.id, "completion": f"\\boxed{{{task.target}}}"}
        for index, task in enumerate(tasks.load("gsm8k", "test", source=DATA / "gsm8k"))
    ]
    file, out = write(tmp_path / "rows.jsonl.gz", rows), tmp_path / "out.jsonl"
    arguments = ["verify", "verigym/GSM8K-v0", file, "--source", str(DATA / "gsm8k"), "--split", "test"]
    assert main([*arguments, "--output", str(out)]) == 0
    found = read(out)
    assert [line["id"] for line in found] == [row["id"] for row in rows]
    assert {line["reward"] for line in found} == {1.0}


def test_verify_writes_null_where_we_failed_and_ends_with_status_one(tmp_path, monkeypatch, capsys):
    class Failing(Verifier):
        def verify(self, submission, task):
            if submission.text == "break":
                return Verdict.infra_error("no worker")
            if submission.text == "raise":
                raise RuntimeError(str(task.target))
            return Verdict(0.5, Outcome.WRONG, "half")

    monkeypatch.setitem(verifiers.verifier._REGISTRY, "failing", Failing)
    rows = [{"id": text, "completion": text, "target": "x"} for text in ("go", "break", "go")]
    assert main(["verify", "failing", write(tmp_path / "rows.jsonl", rows)]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["reward"] for line in out.splitlines()] == [0.5, None, 0.5]
    assert "mean reward 0.5000" in err
    target = tasks.load("calculator").get(FIRST).target
    rows = [{"id": text, "completion": text, "task": FIRST} for text in ("go", "raise", "go")]
    file = write(tmp_path / "rows.jsonl", rows)
    assert main(["verify", CALCULATOR, file, "--option", "verifier=failing"]) == 1
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outcome"] for line in found] == ["wrong", "infra_error", "wrong"]
    assert target not in found[1]["reason"]


def test_verify_leaves_no_half_written_file(tmp_path, monkeypatch):
    class Raising(Verifier):
        def verify(self, submission, task):
            raise RuntimeError("a bug")

    monkeypatch.setitem(verifiers.verifier._REGISTRY, "raising", Raising)
    file = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["verify", "raising", file, "--output", str(tmp_path / "out.jsonl")])
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_verify_takes_completions_of_many_megabytes(tmp_path, capsys):
    rows = [{"id": index, "completion": "word " * 2_000_000 + "\\boxed{3}", "target": "3"} for index in range(4)]
    assert main(["verify", "math", write(tmp_path / "rows.jsonl", rows)]) == 0
    assert capsys.readouterr().out.count('"correct"') == 4


BAD_ROWS = {
    "not JSON": ("{'id': 1}", "not JSON"),
    "no object": ("[1, 2]", "must be a JSON object, not a list"),
    "not UTF-8": ('{"id": "\udcff"}', "not JSON in UTF-8"),
    "nested too deep": ("[" * 100_000, "not JSON"),
    "no id": ({"completion": "x", "target": "3"}, "the field 'id' is missing"),
    "no completion": ({"id": 1, "target": "3"}, "the field 'completion' is missing"),
    "no target": ({"id": 1, "completion": "x"}, "the field 'target' is missing"),
    "id true": ({"id": True, "completion": "x", "target": "3"}, "'id' must be text or a whole number, not true"),
    "completion number": ({"id": 1, "completion": 3, "target": "3"}, "'completion' must be text, not a whole number"),
    "completion null": ({"id": 1, "completion": None, "target": "3"}, "'completion' must be text, not null"),
    "completion list": ({"id": 1, "completion": ["x"], "target": "3"}, "'completion' must be text, not a list"),
    "prompt number": ({"id": 1, "completion": "x", "target": "3", "prompt": 3}, "'prompt' must be text"),
    "empty target": ({"id": 1, "completion": "x", "target": " "}, "target is empty"),
    "target null": ({"id": 1, "completion": "x", "target": None}, "target must be"),
    "target object": ({"id": 1, "completion": "x", "target": {}}, "target must be"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_by_file_and_line_and_nothing_is_written(tmp_path, capsys, name):
    row, problem = BAD_ROWS[name]
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    lines = [json.dumps(ROWS[0]), "", row if isinstance(row, str) else json.dumps(row)]
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    out.write_text("what was there")
    line = refused(capsys, "verify", "math", str(file), "--output", str(out))
    assert f"{file}:3: " in line
    assert problem in line
    assert out.read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "rows.jsonl"]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": 1, "completion": "x"}, "the field 'task' is missing"),
        ({"id": 1, "task": "no such", "completion": "x"}, "no task 'no such'"),
        ({"id": 1, "task": 3, "completion": "x"}, "'task' must be text, not a whole number"),
        ({"id": 1, "task": FIRST, "completion": 3}, "'completion' must be text or a list"),
        ({"id": 1, "task": FIRST, "completion": ["x", 3]}, "a turn in the list 'completion' must be text"),
    ],
)
def test_a_bad_row_for_an_environment_is_named_too(tmp_path, capsys, row, problem):
    assert problem in refused(capsys, "verify", CALCULATOR, write(tmp_path / "rows.jsonl", [row]))


@pytest.fixture
def files(tmp_path):
    """Files that cannot be read as answers, and one that can."""
    write(tmp_path / "good.jsonl", ROWS)
    (tmp_path / "empty.jsonl").write_text("\n \n")
    (tmp_path / "binary.jsonl").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "broken.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() * 99)[:30])
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["maths", "good.jsonl"], "did you mean 'math'?"),
        (["verigym/Calculater-v0", "good.jsonl"], "did you mean 'verigym/Calculator-v0'?"),
        (["CartPole-v1", "good.jsonl"], "no text environment"),
        (["no_such_module:X-v0", "good.jsonl"], "cannot import the module"),
        (["math", "missing.jsonl"], "cannot read 'missing.jsonl': No such file or directory"),
        (["math", "."], "Is a directory"),
        (["math", "empty.jsonl"], "the file has no rows"),
        (["math", "binary.jsonl"], "binary.jsonl:1: the line is not JSON in UTF-8"),
        (["math", "broken.jsonl.gz"], "cannot read 'broken.jsonl.gz'"),
        (["math", "a\0b"], "cannot read"),
        (["math", "good.jsonl", "--output", "no/such/folder/out"], "cannot write"),
        (["math", "good.jsonl", "--output", "."], "cannot write"),
        (["math", "good.jsonl", "--output", "/dev/full"], "No space left"),
        (["math", "good.jsonl", "--source", "x"], "--source is for environments"),
        (["math", "good.jsonl", "--option", "extract=latx"], "did you mean 'latex'?"),
        (["math", "good.jsonl", "--option", "extrct=latex"], "did you mean 'extract'?"),
        (["math", "good.jsonl", "--option", "extract"], "key=value"),
        (["math", "good.jsonl", "--outptu", "x"], "unrecognized options: --outptu, x; did you mean --output?"),
        (["math"], "missing: FILE; see verigym verify --help"),
        ([], "missing: NAME, FILE"),
        (["math", "good.jsonl", "--output"], "missing value for argument '--output'"),
        ([CALCULATOR, "good.jsonl", "--option", "level=nine"], "not 'nine'"),
        ([CALCULATOR, "good.jsonl", "--option", "max_turn=3"], "did you mean 'max_turns'?"),
        ([CALCULATOR, "good.jsonl", "--split", "x", "--option", "split=x"], "given twice"),
    ],
    ids=str,
)
def test_verify_refuses_wrong_input_in_one_line(files, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(files)
    assert problem in refused(capsys, "verify", *arguments)


def test_a_pipe_is_read_and_a_reader_that_goes_away_is_no_error(tmp_path):
    file = write(tmp_path / "rows.jsonl", ROWS * 3000)
    done = shell(f"verigym verify math <(head -n 3 {file})")
    assert (done.returncode, done.stdout.count("\n")) == (0, 3)
    done = shell(f"set -o pipefail; verigym verify math {file} | head -n 1")
    assert json.loads(done.stdout)["id"] == "right"
    assert done.stderr == ""
    for command in ("envs", "--help", f"validate {CALCULATOR} --limit 3"):
        assert shell(f"verigym {command} | true").stderr == "", command


def test_output_that_is_the_input_or_a_link_or_a_device_is_written_well(tmp_path):
    file = write(tmp_path / "rows.jsonl", ROWS)
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    assert main(["verify", "math", file, "--output", str(tmp_path / "link")]) == 0
    assert (tmp_path / "link").is_symlink()
    assert main(["verify", "math", file, "--output", os.devnull]) == 0
    assert not Path(os.devnull).is_file()
    assert main(["verify", "math", file, "--output", file]) == 0
    assert Path(file).read_text() == (tmp_path / "linked").read_text()


# play


def played(monkeypatch, capsys, text, *arguments):
    data = text if isinstance(text, bytes) else text.encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
    assert main(["play", *arguments]) == 0
    return capsys.readouterr().out


def test_play_shows_the_question_the_tools_the_replies_and_the_verdict(monkeypatch, capsys):
    target = tasks.load("calculator")[0].target
    call = render_call("calculator", {"expression": "2 + 3"})
    out = played(monkeypatch, capsys, f"{call}\n\n\\boxed{{{target}}}\n", CALCULATOR, "--task", FIRST)
    assert f"task {FIRST}" in out
    assert "tool calculator(expression: string)" in out
    assert tasks.load("calculator")[0].prompt in out
    assert "[tool]\n5\n" in out
    assert "correct, reward 1: the answer equals the gold answer" in out


def test_play_takes_a_turn_of_several_lines(monkeypatch, capsys):
    out = played(
        monkeypatch, capsys, '"""\nI think\n\n\\boxed{1}\n"""\n', "verigym/Arithmetic-v0", "--option", "level=5"
    )
    assert "wrong, reward 0: the answer '1' does not equal the gold answer" in out


def test_play_ends_cleanly_with_the_input(monkeypatch, capsys):
    assert "no verdict" in played(monkeypatch, capsys, "", "verigym/Arithmetic-v0", "--seed", "1")
    assert "unparseable" in played(monkeypatch, capsys, '"""\nunclosed', "verigym/Arithmetic-v0")
    assert "unparseable" in played(monkeypatch, capsys, b"\xff\xfe\x00\n", "verigym/Arithmetic-v0")


def test_play_repeats_an_episode_by_its_seed(monkeypatch, capsys):
    outs = [played(monkeypatch, capsys, "1\n", "verigym/Arithmetic-v0", "--seed", "4") for _ in range(2)]
    assert outs[0] == outs[1]


def test_a_model_plays_and_its_conversation_is_shown(tmp_path, monkeypatch, capsys):
    from verigym.agents.tiny import tiny_model, tiny_tokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    model = tiny_model(len(tokenizer), hidden_size=16, layers=1, heads=1, intermediate_size=16)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    outs = [
        played(monkeypatch, capsys, "", CALCULATOR, "--seed", "3", "--model", str(tmp_path), "--option", "max_turns=2")
        for _ in range(2)
    ]
    assert outs[0] == outs[1]
    assert "[assistant]" in outs[0]
    assert "reward 0: " in outs[0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([CALCULATOR, "--task", "no such"], "no task 'no such'"),
        ([CALCULATOR, "--seed", "-1"], "--seed must be at least 0"),
        ([CALCULATOR, "--seed", "x"], "error parsing --seed: expected"),
        ([CALCULATOR, "--model", "/no/such/model"], "no model at '/no/such/model'"),
        (["verigym/GSM8K-v0", "--source", "/no/such/place"], "no file or folder"),
        (["verigym/GSM8K"], "did you mean 'verigym/GSM8K-v0'?"),
    ],
    ids=str,
)
def test_play_refuses_wrong_input_in_one_line(capsys, arguments, problem):
    assert problem in refused(capsys, "play", *arguments)


# The frame.


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["validate"], "missing"),
        (["validate", "verigym/GSM8K-v1"], "did you mean 'verigym/GSM8K-v0'?"),
        (["validate", CALCULATOR, "--limit", "x"], "error parsing --limit: expected INT, got 'x'"),
        (["validate", CALCULATOR, "--limit", "0"], "limit must be at least 1, not 0"),
        (["validate", "verigym/GSM8K-v0", "--source", "/no/such/place"], "no file or folder '/no/such/place'"),
        (["validate", "CartPole-v1"], "no text environment"),
        (["envs", "--foo"], "unrecognized options: --foo; see verigym envs --help"),
        (["verfy", "math", "x"], "no command 'verfy'; did you mean 'verify'?"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_in_one_line(capsys, arguments, problem):
    assert problem in refused(capsys, *arguments)


def test_help_of_every_command_says_what_it_does():
    assert all(text in shell("verigym --help").stdout for _, _, text in COMMANDS.values())
    done = shell("verigym verify --help")
    assert done.returncode == 0
    assert "--output" in done.stdout
    assert "JSON lines" in done.stdout


OPTIONS = [
    *[(command, "--json") for command in ("envs", "validate", "check", "curate", "new", "eval", "rescore", "view")],
    *[("play", "--task"), ("verify", "--output"), ("train", "--grpo.lr"), ("sft", "--demonstrations")],
    *[("dpo", "--beta"), ("rft", "--epochs"), ("reward-model", "--held-out")],
]


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_help_of_a_command_lists_its_options_with_one_default_each(command, option, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # no help is wrapped
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert f"{option} " in said
    assert not re.search(r"\(default: [^)]*\)\. \(default: ", said)


def test_wrong_options_read_the_same_without_utf8():
    ascii_terminal = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for command, line in (
        ("verify", "missing: NAME, FILE; see verigym verify --help"),
        ("verify math x --optoin a=b", "unrecognized options: --optoin, a=b; did you mean --option?"),
    ):
        assert shell(f"verigym {command}", env=ascii_terminal).stderr == f"verigym verify: {line}\n"


def test_a_box_that_is_unknown_is_still_one_line():
    assert one_line("", "train") == "wrong options; see verigym train --help"
    assert one_line("no box\nat all", "train").count("\n") == 0


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_the_sandbox_that_was_taken_is_said_once(tmp_path):
    rows = [
        {"id": n, "completion": "```python\nprint(3)\n```", "target": {"inputs": [""], "outputs": ["3"]}} for n in "ab"
    ]
    command = [sys.executable, "-m", "verigym.cli", "verify", "code", write(tmp_path / "rows.jsonl", rows)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr.splitlines()
    assert len([line for line in said if line.startswith("sandbox ")]) == 1, said
    assert re.match("sandbox (docker|bubblewrap): .*Python 3", said[0])
