"""`verigym rescore`: stored episodes are played again and judged by another verifier, and nothing stored changes."""

import json
from pathlib import Path
from typing import Any

import pytest

from verigym import verifiers
from verigym.agents.agent import load_chat, save_checkpoint
from verigym.agents.collect import demonstrations
from verigym.agents.episode import Episode
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.cli import main
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import play
from verigym.players import LocalPlayer
from verigym.rescoring import rescore
from verigym.run_folder import RunFolder
from verigym.task_sampler import evaluation_plans
from verigym.tasks.errors import ConfigError
from verigym.verifiers import Outcome, Verdict

SUMS = [EnvSpec("verigym/Arithmetic-v0", kwargs={"level": level, "split": "test"}) for level in (1, 3)]
DESK = EnvSpec("verigym/Desk-v0", kwargs={"level": 2, "split": "test", "demonstrate": None})
CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 12, "split": "test"})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    tokenizer = tiny_tokenizer()
    model = tiny_model(len(tokenizer), hidden_size=16, layers=1, heads=1, intermediate_size=16)
    model.config.eos_token_id = tokenizer.eos_token_id
    save_checkpoint(path, model, tokenizer)
    return path


def demonstrated(checkpoint: Path, spec: EnvSpec, tasks: int) -> list[Episode]:
    """Gold episodes, token by token."""
    return demonstrations(load_chat(checkpoint)[1], [spec], evaluation_plans([spec], tasks, seed=3))


def written(path: Path, specs: list[EnvSpec], episodes: list[Episode]) -> Path:
    """A run folder as training leaves it."""
    folder = RunFolder(path)
    folder.create({"envs": [{"id": spec.id, "weight": 1.0, "kwargs": dict(spec.kwargs)} for spec in specs]})
    half = len(episodes) // 2
    folder.write_episodes(1, episodes[:half])
    folder.write_episodes(2, episodes[half:])
    return path


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (path / "episodes").iterdir()}


def lines(path: Path) -> list[dict[str, Any]]:
    (file,) = path.glob("rescored/*/verdicts.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_same_verifier_gives_the_same_verdicts_in_worlds_with_tools_and_of_turns_that_were_cut(
    checkpoint, tmp_path, capsys
):
    played = play(LocalPlayer(checkpoint), CALCULATOR, tasks=4) + demonstrated(checkpoint, CALCULATOR, 4)
    assert {episode.truncated for episode in played} == {True, False}
    for specs, verifier, episodes in (
        ([DESK], "state_match", demonstrated(checkpoint, DESK, 6)),
        ([CALCULATOR], "math", played),
        (SUMS, "math", [episode for spec in SUMS for episode in demonstrated(checkpoint, spec, 4)]),
    ):
        run = written(tmp_path / verifier / specs[0].id, specs, episodes)
        assert main(["rescore", str(run), "--verifier", verifier, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["changed"], found["agreement"], found["episodes"]) == ([], 1.0, len(episodes))
        assert found["kept"] == 0
        assert [line["new"]["reason"] for line in lines(run)] == [episode.verdict.reason for episode in episodes]


def test_another_verifier_is_counted_against_the_old_one_and_written_beside_it(checkpoint, tmp_path, capsys):
    """Demonstrations of sums answer in a box: right for math, and none of them for exact."""
    run = written(tmp_path / "run", SUMS, [one for spec in SUMS for one in demonstrated(checkpoint, spec, 3)])
    before = content(run)
    assert main(["rescore", str(run), "--verifier", "exact", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"correct": {"wrong": 6}}
    assert (found["agreement"], found["reward"]) == (0.0, {"old": 1.0, "new": 0.0})
    assert [(one["file"], one["row"]) for one in found["changed"]] == [
        (f"episodes/00000{step}.jsonl.gz", row) for step in (1, 2) for row in (1, 2, 3)
    ]
    assert content(run) == before
    assert json.loads((run / "rescored/exact/verifier.json").read_text())["verifier"] == "exact"
    assert main(["rescore", str(run), "--verifier", "exact", "--limit", "4"]) == 0
    out = capsys.readouterr().out
    assert "0.0% of 4 episodes pass both times or neither; mean reward 1.000, now 0.000" in out
    assert "episodes/000001.jsonl.gz:1 task" in out
    assert len(lines(run)) == 4


def test_an_episode_that_plays_otherwise_cannot_be_judged(checkpoint, tmp_path, capsys):
    episodes = demonstrated(checkpoint, DESK, 3)
    called = next(episode for episode in episodes if episode.messages[2]["role"] == "tool")
    called.messages[2]["content"] += " and more"
    run = written(tmp_path / "run", [DESK], episodes)
    assert main(["rescore", str(run), "--verifier", "state_match", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"correct": {"correct": 2, "infra_error": 1}}
    assert (
        found["changed"][0]["new"]["reason"]
        == f"task '{called.task_id}' plays otherwise than stored, from message 3 on"
    )
    assert found["agreement"] == 1.0


def test_episodes_whose_end_no_verifier_saw_keep_their_verdict(checkpoint, tmp_path):
    broken = demonstrated(checkpoint, CALCULATOR, 1)[0].to_json()
    broken["messages"], broken["turns"], broken["truncation"] = broken["messages"][:1], [], "failure"
    broken["verdict"] = {"reward": None, "outcome": "infra_error", "reason": "lost", "components": {}}
    run = written(tmp_path / "run", [CALCULATOR], [Episode.from_json(broken)] * 2)
    found = list(rescore(run, verifiers.make("math")))
    assert [(one.kept, one.new.outcome, one.new.reason) for one in found] == [(True, Outcome.INFRA_ERROR, "lost")] * 2


def test_an_endpoints_episode_that_a_budget_of_tokens_ended_is_judged_again(checkpoint, tmp_path):
    """An endpoint's turns bear no tokens; how many there were in all is known."""
    spec = EnvSpec(CALCULATOR.id, kwargs={"split": "test", "max_tokens_per_episode": 6})
    row = demonstrated(checkpoint, CALCULATOR, 1)[0].to_json()
    assert row["messages"][2]["role"] == "tool"
    row |= {"messages": row["messages"][:3], "turns": [[0, 0, 0.0, "stop", 6]], "usage": [10, 6], "mask": []}
    row |= {"token_ids": [], "logprobs": [], "versions": [], "truncation": "tokens"}
    row["verdict"] = {"reward": 1.0, "outcome": "correct", "reason": "taken for right", "components": {}}
    run = written(tmp_path / "run", [spec], [Episode.from_json(row)] * 2)
    found = list(rescore(run, verifiers.make("math")))
    assert [(one.kept, one.new.outcome) for one in found] == [(False, Outcome.UNPARSEABLE)] * 2


def test_what_an_evaluation_keeps_is_rescored_and_a_verifier_with_feedback_says_the_same_again(
    checkpoint, tmp_path, monkeypatch, capsys
):
    class Hinting(verifiers.Verifier):
        def verify(self, submission, task):
            return Verdict(0.0, Outcome.WRONG, "never right")

        def feedback(self, submission, task):
            return f"{len(submission.text)} characters are not right."

    monkeypatch.setitem(verifiers.verifier._REGISTRY, "hinting", Hinting)
    folder = tmp_path / "kept"
    env = f"{SUMS[0].id},turns=2,max_tokens_per_episode=40,verifier=hinting"
    arguments = ["--model", str(checkpoint), "--env", env, "--tasks", "4", "--samples", "2", "--folder", str(folder)]
    assert main(["eval", *arguments]) == 0
    assert main(["rescore", str(folder), "--verifier", "hinting", "--option", "x=1"]) == 2
    capsys.readouterr()
    assert main(["rescore", str(folder), "--verifier", "hinting", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"wrong": {"wrong": 8}}


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["missing", "--verifier", "math"], "no run in 'missing'"),
        (["empty", "--verifier", "math"], "is no run with episodes"),
        (["run", "--verifier", "maths"], "did you mean 'math'?"),
        (["run"], "missing: --verifier"),
        (["run", "--verifier", "math", "--limit", "0"], "limit must be at least 1"),
        (["run", "--verifier", "choice"], "the verifier cannot judge the tasks of this run"),
        (["user", "--verifier", "math"], "is a model, which would not say the same again"),
        (["bad", "--verifier", "math"], "names no environments"),
        (["file", "--verifier", "math"], "cannot tell the environment of"),
    ],
    ids=str,
)
def test_wrong_input_is_one_line(checkpoint, tmp_path, monkeypatch, capsys, arguments, problem):
    monkeypatch.chdir(tmp_path)
    episodes = demonstrated(checkpoint, SUMS[0], 2)
    written(tmp_path / "run", SUMS, episodes)
    (tmp_path / "empty" / "episodes").mkdir(parents=True)
    written(tmp_path / "user", [EnvSpec(SUMS[0].id, kwargs={"user": "module:judge"})], episodes)
    written(tmp_path / "bad", [], episodes)
    (tmp_path / "bad" / "config.yaml").write_text("envs: [1]")
    (tmp_path / "file" / "episodes").mkdir(parents=True)
    (tmp_path / "file" / "episodes" / "x.jsonl").write_text(json.dumps(episodes[0].to_json()) + "\n")
    capsys.readouterr()
    assert main(["rescore", *arguments]) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("*/rescored"))


def test_an_environment_that_is_no_text_environment_is_refused(checkpoint, tmp_path):
    episode = demonstrated(checkpoint, SUMS[0], 1)[0].to_json() | {"env_id": "tests/Plain-v0"}
    run = written(tmp_path / "run", [EnvSpec("verigym/Desk-v0")], [Episode.from_json(episode)] * 2)
    found = list(rescore(run, verifiers.make("math")))
    assert {one.new.reason for one in found} == {"the run's configuration has no environment tests/Plain-v0"}
    with pytest.raises(ConfigError, match="no run in"):
        list(rescore(tmp_path / "none", verifiers.make("math")))
