"""Curation: duplicates, contamination, unsound tasks, pass rates, and the file that the kept tasks are written to."""

import json
import random
import re
from itertools import combinations
from pathlib import Path

import gymnasium as gym
import pytest

from verigym import curation, tasks, verifiers
from verigym.cli import main
from verigym.curation import Difficulty, curate
from verigym.envs.mixture import EnvSpec
from verigym.task_sampler import evaluation_plans
from verigym.tasks import Task, TaskSet, curated
from verigym.tasks.curation import Hit, contaminated, duplicates, words_of
from verigym.tasks.errors import ConfigError, RunError, TaskDataError, UnknownNameError
from verigym.verifiers import Verdict, Verifier

pytest.importorskip("datasketch", reason="the extra curate is not installed")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
LONG = "A farmer has twelve red hens and nine white geese , and sells four of them on each day of the week"


def texts(*prompts: str, first: str = "t") -> list[Task]:
    return [Task(f"{first}{number}", prompt, "1") for number, prompt in enumerate(prompts)]


# Likeness.


def test_texts_are_compared_by_words_and_signs():
    assert words_of("What is (3 + 4)?") == words_of("what IS 3 + 4 .") == ("what", "is", "3", "+", "4")
    assert words_of("3 + 4") != words_of("3 - 4")
    assert words_of("Ｄｅｐｔｈ é") == ("depth", "é")


def test_a_duplicate_is_named_with_what_it_repeats_and_how_like_it_is():
    # 21 words have 19 shingles; another last word changes one of them, another word in the middle three
    assert len(words_of(LONG)) == 21
    last, middle = LONG.replace("week", "month"), LONG.replace("geese", "ducks")
    found = duplicates(texts(LONG, last, LONG.upper() + "!", middle, "What is 3 + 4?", "What is 3 - 4?"), near=0.7)
    assert found == [
        Hit("t1", "near", "t0", 18 / 20),
        Hit("t2", "exact", "t0", 1.0),
        Hit("t3", "near", "t0", 16 / 22),
    ]
    assert [hit.task_id for hit in duplicates(texts(LONG, last, middle), near=0.8)] == ["t1"]
    assert duplicates(texts(LONG, last), near=1.0) == []


def test_no_near_duplicate_of_a_threshold_is_missed():
    rng = random.Random(7)
    words = [f"w{number}" for number in range(400)]
    prompts = []
    for _ in range(60):
        base = rng.choices(words, k=40)
        prompts.append(" ".join(base))
        prompts.append(" ".join(rng.choice(words) if rng.random() < 0.03 else word for word in base))
    sets = [{*zip(p.split(), p.split()[1:], p.split()[2:], strict=False)} for p in prompts]
    like = {j for i, j in combinations(range(120), 2) if len(sets[i] & sets[j]) >= 0.8 * len(sets[i] | sets[j])}
    found = {int(hit.task_id[1:]) for hit in duplicates(texts(*prompts), near=0.8)}
    assert 20 < len(like) < 60
    assert found == like


def test_every_text_of_every_evaluation_set_that_a_task_shares_is_reported():
    evaluations = {
        "a/test": texts(LONG, "What is 3 + 4?", first="a"),
        "b/test": texts("What is 3 + 4?", f"{LONG} . How many are left on the day after that ?", first="b"),
    }
    hits = contaminated(texts("what is 3 + 4", f"Listen: {LONG} or month", "What is 3 - 4?"), evaluations, near=0.8)
    assert [(hit.task_id, hit.kind, hit.other) for hit in hits] == [
        ("t0", "exact", "a/test: a1"),
        ("t0", "exact", "b/test: b0"),
        ("t1", "near", "a/test: a0"),
        ("t1", "ngram", "a/test: a0"),
        ("t1", "ngram", "b/test: b1"),
    ]
    assert [hit.similarity for hit in hits] == pytest.approx([1, 1, 19 / 22, 1, 9 / 18])


def test_a_run_of_words_is_shared_from_its_length_on():
    evaluation = {"a/test": texts(LONG)}
    thirteen = " ".join(words_of(LONG)[3:16])
    assert [hit.kind for hit in contaminated(texts(f"So {thirteen} it"), evaluation)] == ["ngram"]
    assert contaminated(texts(f"So {' '.join(thirteen.split()[:12])} it"), evaluation) == []
    assert contaminated(texts("3 + 4"), {"a/test": texts("What is 3 + 4?")}, ngram=5) == []


@pytest.mark.parametrize(("settings", "problem"), [({"near": 0}, "above 0"), ({"ngram": 1}, "at least 2 words")])
def test_settings_that_cannot_be_are_refused(settings, problem):
    with pytest.raises(ConfigError, match=problem):
        contaminated([], {}, **settings)


# The file.


def test_what_is_written_is_read_again_with_its_types_and_provenance(tmp_path):
    kept = [
        Task("a", "What?", ["1", 2.5], {"options": ["x", None], "deep": {"n": 1}}),
        Task("b", "Who? é", {"tests": []}),
        Task("c", "When?", 3),
    ]
    file = tmp_path / "kept.parquet"
    curated.write(file, TaskSet(kept, name="mine", split="train"), {"near": 0.8}, {"a": (0.25, 8)})
    loaded = tasks.load("curated", source=file)
    assert [(t.id, t.prompt, t.target, dict(t.metadata)) for t in loaded] == [
        (t.id, t.prompt, t.target, dict(t.metadata)) for t in kept
    ]
    assert curated.provenance(file) == {"split": "train", "near": 0.8}
    assert [path.name for path in tmp_path.iterdir()] == ["kept.parquet"]
    with pytest.raises(UnknownNameError, match=r"kept\.parquet holds the split 'train', not 'test'"):
        tasks.load("curated", "test", source=file)


def test_a_row_that_was_changed_and_a_file_of_another_kind_are_refused(tmp_path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "kept.parquet"
    curated.write(file, TaskSet(texts("What?"), name="mine", split="train"), {})
    table = parquet.read_table(file)
    changed = pyarrow.Table.from_pylist([{**table.to_pylist()[0], "target": '"2"'}], schema=table.schema)
    parquet.write_table(changed, file)
    with pytest.raises(TaskDataError, match="row 1: prompt and target are not those that were written"):
        tasks.load("curated", source=file)
    parquet.write_table(pyarrow.table({"id": ["a"]}), file)
    with pytest.raises(TaskDataError, match="no curated set"):
        tasks.load("curated", source=file)
    with pytest.raises(TaskDataError, match="no JSON"):
        curated.write(file, TaskSet([Task("a", "?", {1, 2})], name="mine", split="train"), {})
    with pytest.raises(ConfigError, match="give source=PATH"):
        tasks.load("curated")


# The whole.


ROWS = [
    {"id": "kept", "prompt": f"{LONG} . How many are there ?", "target": "345"},
    {"id": "again", "prompt": f"{LONG} . HOW many are there", "target": "345"},
    {"id": "unreadable", "prompt": "What is broken?", "target": "{{"},
    {"id": "always", "prompt": "What is 2 + 2?", "target": "4"},
    {"id": "asked", "prompt": "What is the sum of 300 and 23?", "target": "323"},
    {"id": "other", "prompt": "What is 300 + 200?", "target": "500"},
    {"id": "third", "prompt": "What is 400 + 200?", "target": "600"},
]


@pytest.fixture
def rows(tmp_path: Path) -> str:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path / "rows.jsonl")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that has learned nothing."""
    from verigym.agents.tiny import tiny_model, tiny_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    model = tiny_model(len(tokenizer), hidden_size=16, layers=1, heads=1, intermediate_size=16)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    return str(folder)


def test_each_task_is_left_out_for_its_own_reason(rows, model, monkeypatch):
    rates = {"kept": (0.5, 4), "other": (0.0, 4)}
    monkeypatch.setattr(curation, "pass_rates", lambda spec, ids, *_: {i: rates[i] for i in ids if i in rates})
    found = curate(
        EnvSpec("verigym/Custom-v0", kwargs={"source": rows}),
        against={"eval/test": texts("what is the sum of 300 and 23")},
        difficulty=Difficulty(model, samples=4),
    )
    assert found.tasks.ids == ["kept"]
    assert [(each.task_id, each.stage) for each in found.dropped] == [
        ("unreadable", "unsound"),
        ("always", "unsound"),
        ("again", "duplicate"),
        ("asked", "contaminated"),
        ("third", "not judged"),
        ("other", "too hard"),
    ]
    why = {each.task_id: each.why for each in found.dropped}
    assert why["always"] == "passed by policies that know nothing: constant"
    assert why["unreadable"].startswith("gold answer: ")
    assert (why["again"], why["asked"]) == ("exact: kept (1.00)", "exact: eval/test: t0 (1.00)")
    assert why["other"] == "pass rate 0.000 of 4 episodes"
    assert found.rates == {"kept": (0.5, 4)}
    assert found.provenance["dropped"] == {
        "unsound": 2,
        "duplicate": 1,
        "contaminated": 1,
        "not judged": 1,
        "too hard": 1,
        "too easy": 0,
    }


def test_a_model_plays_each_task_several_times_and_an_environment_takes_what_is_kept(rows, model, tmp_path, capsys):
    out = tmp_path / "kept.parquet"
    arguments = ["curate", "verigym/Custom-v0", "--source", rows, "--output", str(out), "--model", model]
    arguments += ["--samples", "2", "--max-new-tokens", "4", "--option", "max_tokens_per_turn=4"]
    assert main([*arguments, "--low", "0"]) == 0
    assert "4 tasks are left after: too easy" in capsys.readouterr().out
    env = gym.make("verigym/Custom-v0", task_set="curated", source=str(out)).unwrapped
    assert env.tasks.ids == ["kept", "asked", "other", "third"]
    provenance = curated.provenance(out)
    assert provenance["difficulty"]["samples"] == 2
    assert provenance["kept"] == {"tasks": 4, "fingerprint": env.tasks.fingerprint}
    report = [json.loads(line) for line in (tmp_path / "kept.report.jsonl").read_text().splitlines()]
    assert {line["dropped"] for line in report if "dropped" in line} == {"again", "unreadable", "always"}
    assert [line for line in report if "hit" in line] == [
        {"hit": "again", "kind": "exact", "other": "kept", "similarity": 1.0}
    ]
    assert main(arguments) == 2  # a new model passes nothing
    assert "no task of verigym/Custom-v0 is left: unsound 2, duplicate 1, too hard 4" in capsys.readouterr().err


def test_the_first_of_several_samples_is_that_of_a_single_one():
    spec = EnvSpec("verigym/Arithmetic-v0")
    one, three = evaluation_plans([spec], 5, seed=3), evaluation_plans([spec], 5, seed=3, samples=3)
    assert three[::3] == one
    assert len({plan.sampling_seed for plan in three}) == 15
    assert [plan.group_id for plan in three] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]


@needs_data
def test_real_data_is_curated_against_its_test_set(tmp_path, capsys):
    out = str(tmp_path / "gsm8k.parquet")
    gsm8k = str(DATA / "gsm8k")
    arguments = ["curate", "verigym/GSM8K-v0", "--source", gsm8k, "--tasks", "200", "--output", out]
    arguments += ["--against", f"gsm8k={gsm8k}"]
    assert main([*arguments, "--split", "test"]) == 2
    counts = re.search(
        r"no task of verigym/GSM8K-v0 is left: unsound (\d+), contaminated (\d+)", capsys.readouterr().err
    )
    assert sum(map(int, counts.groups())) == 200
    assert int(counts[2]) > 180
    assert main(arguments) == 0
    assert [*curated.provenance(out)["against"]] == ["gsm8k/test"]
    assert len(tasks.load("curated", source=out)) > 190


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--output", "kept.jsonl"], "name it kept.jsonl.parquet"),
        (["--output", "no/such/kept.parquet"], "cannot write 'no/such/kept.parquet'"),
        (["--output", "a.parquet", "--against", "gsm9k"], "did you mean 'gsm8k'?"),
        (["--output", "a.parquet", "--model", "m", "--low", "0.9", "--high", "0.1"], "the band of pass rates"),
        (["--output", "a.parquet", "--model", "no/such/model"], "no model at 'no/such/model'"),
        (["--output", "a.parquet", "--near", "2"], "above 0 and at most 1"),
        (["--output", "a.parquet", "--tasks", "0"], "tasks must be at least 1"),
    ],
)
def test_wrong_input_is_refused_in_one_line(tmp_path, monkeypatch, capsys, rows, arguments, problem):
    monkeypatch.chdir(tmp_path)
    assert main(["curate", "verigym/Custom-v0", "--source", rows, *arguments]) == 2
    line = capsys.readouterr().err
    assert problem in line
    assert line.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_nothing_left_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "What is 2 + 2?", "target": "4"}\n')
    with pytest.raises(RunError, match="no task of verigym/Custom-v0 is left: unsound 1"):
        curate(EnvSpec("verigym/Custom-v0", kwargs={"source": str(tmp_path / "rows.jsonl")}))


def test_a_gold_that_we_fail_to_judge_stops_instead_of_blaming_the_task(rows, monkeypatch):
    class Lost(Verifier):
        def verify(self, submission, task):
            return Verdict.infra_error("no worker")

    monkeypatch.setitem(verifiers.verifier._REGISTRY, "lost", Lost)
    with pytest.raises(RunError, match="cannot be judged here: gold answer: infra_error, no worker"):
        curate(EnvSpec("verigym/Custom-v0", kwargs={"source": rows, "verifier": "lost"}))
