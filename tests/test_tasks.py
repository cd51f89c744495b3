"""Task sets: what `load` reads and refuses, and what the generators promise."""

import copy
import gzip
import json
import os
import pickle
import random
import re
import subprocess
import sys
from collections import Counter
from importlib import import_module
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from verigym import tasks, verifiers
from verigym.tasks import _generate, arithmetic, calculator
from verigym.tasks.errors import ConfigError, TaskDataError, UnknownNameError
from verigym.tasks.gsm8k import final_answer
from verigym.verifiers.verdict import Submission

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
GENERATED = ("arithmetic", "calculator")
ROW = {"question": "How many?", "answer": "It is\n#### 1,200"}


def write_rows(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


def refusal(source: object, name: str = "gsm8k", split: str = "train") -> str:
    with pytest.raises(TaskDataError) as caught:
        tasks.load(name, split, source=str(source))
    message = str(caught.value)
    assert "\n" not in message
    return message


@needs_data
def test_gsm8k_of_the_real_files_is_whole_and_agrees_with_their_final_answers() -> None:
    for split, file, count in (("train", "train.jsonl.gz", 7473), ("test", "test_first_half.jsonl", 660)):
        task_set = tasks.load("gsm8k", split=split, source=DATA / "gsm8k")
        path = DATA / "gsm8k" / file
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        rows = [json.loads(line) for line in content.splitlines()]
        assert len(task_set) == len(rows) == count
        assert [(task.id, task.prompt, task.target) for task in task_set] == [
            (row["id"], row["question"], row["final"]) for row in rows
        ]


@needs_data
def test_math500_of_the_real_file_keeps_ids_levels_and_subjects() -> None:
    task_set = tasks.load("math500", split="test", source=DATA / "math500")
    assert len(task_set) == 242
    task = task_set.get("test/algebra/109.json")
    assert (task.target, dict(task.metadata)) == ("0", {"subject": "algebra", "level": 2})
    assert {task.metadata["level"] for task in task_set} == {1, 2, 3, 4, 5}


@needs_data
def test_a_file_gives_the_same_tasks_as_its_folder() -> None:
    file = tasks.load("gsm8k", "test", source=DATA / "gsm8k" / "test_first_half.jsonl")
    assert file.fingerprint == tasks.load("gsm8k", "test", source=DATA / "gsm8k").fingerprint


def test_rows_without_ids_are_numbered_from_zero_across_files(tmp_path: Path) -> None:
    write_rows(tmp_path / "test_b.jsonl", {**ROW, "question": "third"})
    write_rows(tmp_path / "test_a.jsonl.gz", {**ROW, "question": "first"}, {**ROW, "question": "second"})
    write_rows(tmp_path / "train.jsonl", ROW)
    write_rows(tmp_path / "latest.jsonl", ROW)  # holds "test" as letters, not as a word
    found = tasks.load("gsm8k", "test", source=tmp_path)
    assert [(task.id, task.prompt) for task in found] == [
        ("gsm8k-test-0", "first"),
        ("gsm8k-test-1", "second"),
        ("gsm8k-test-2", "third"),
    ]


@pytest.mark.parametrize("place", [".", "data", "main"])
def test_parquet_shards_are_found_in_the_folder_its_data_or_its_configuration(tmp_path: Path, place: str) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / place).mkdir(exist_ok=True)
    for shard in range(2):
        table = pyarrow.Table.from_pylist([{**ROW, "question": f"shard {shard}"}])
        parquet.write_table(table, tmp_path / place / f"train-0000{shard}-of-00002.parquet")
    found = tasks.load("gsm8k", source=tmp_path)
    assert [(task.prompt, task.target) for task in found] == [("shard 0", "1200"), ("shard 1", "1200")]


def test_byte_order_mark_crlf_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    line = json.dumps(ROW).encode()
    (tmp_path / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n  \r\n" + line)
    assert [task.target for task in tasks.load("gsm8k", source=tmp_path)] == ["1200", "1200"]


def test_line_separators_inside_a_string_do_not_break_a_row(tmp_path: Path) -> None:
    question = "one\u2028two\x85three"
    (tmp_path / "train.jsonl").write_text(json.dumps({**ROW, "question": question}, ensure_ascii=False))
    assert tasks.load("gsm8k", source=tmp_path)[0].prompt == question


def test_whole_number_ids_become_text_and_null_ids_are_numbered(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "train.jsonl", {**ROW, "id": 7}, {**ROW, "id": None}, {**ROW, "id": "x"})
    assert [task.id for task in tasks.load("gsm8k", source=path)] == ["7", "gsm8k-train-1", "x"]


def test_a_set_with_one_split_takes_files_that_name_no_split_at_all(tmp_path: Path) -> None:
    write_rows(tmp_path / "part_a.jsonl", {"problem": "p", "answer": "1", "unique_id": "a"})
    assert len(tasks.load("math500", "test", source=tmp_path)) == 1
    assert "data files seen: part_a.jsonl" in refusal(tmp_path, "gsm8k", "test")
    (tmp_path / "part_a.jsonl").rename(tmp_path / "train.jsonl")
    assert "test" in refusal(tmp_path, "math500", "test")


@pytest.mark.parametrize(
    "source",
    ["no/such/file.jsonl", "./none", "/none/at/all", "~/no-such-x", "plain", "a/b/c", "org/x.parquet", ""],
)
def test_a_path_that_does_not_exist_is_refused_by_name(source: str) -> None:
    assert f"no file or folder '{source}'" in refusal(source)


def test_a_folder_without_the_split_tells_what_it_holds_and_what_to_do(tmp_path: Path) -> None:
    write_rows(tmp_path / "data" / "train.jsonl", ROW)
    message = refusal(tmp_path, split="test")
    assert str(tmp_path) in message
    assert "data/train.jsonl" in message
    assert "put 'test' in a file's name" in message


@pytest.mark.parametrize("second", ["train.jsonl.gz", "train-00000-of-00001.parquet"])
def test_a_split_in_two_formats_is_not_read_twice(tmp_path: Path, second: str) -> None:
    write_rows(tmp_path / "train.jsonl", ROW)
    write_rows(tmp_path / second, ROW)
    assert f"two formats ({', '.join(sorted(['train.jsonl', second]))})" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"answer": "#### 1"}, "'question' is missing (fields found: answer)"),
        ({"question": None, "answer": "#### 1"}, "'question' must be text, not null"),
        ({"question": 3, "answer": "#### 1"}, "'question' must be text, not int"),
        ({"question": " ", "answer": "#### 1"}, "'question' is empty"),
        ({"question": "half \ud800", "answer": "#### 1"}, "'question' is not Unicode"),
        ({"question": "q", "answer": "no mark, 5"}, "'answer' has no final answer after '####'"),
        ({"question": "q", "answer": "#### $ "}, "'answer' has no final answer after '####'"),
        ({"question": "q", "answer": "#### 1", "id": True}, "'id' must be text, not bool"),
        ({"question": "q", "answer": "#### 1", "id": ""}, "'id' is empty"),
    ],
)
def test_a_bad_row_is_refused_with_file_row_field_and_advice(tmp_path: Path, row: dict, problem: str) -> None:
    path = write_rows(tmp_path / "train.jsonl", ROW, row)
    message = refusal(path)
    assert message.startswith(f"{path}: row 2: the field {problem}")
    assert message.endswith("correct the row or give another source")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{not json}", "not JSON"),
        (b'{"question": "\xff"}', "not JSON in UTF-8"),
        (b"[1]", "must be a JSON object, not list"),
        (b"[" * 100_000, "not JSON"),
    ],
    ids=["syntax", "encoding", "list", "deep"],
)
def test_a_bad_line_is_refused_with_its_number(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n\n" + line + b"\n")
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert problem in message


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.parquet"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(json.dumps(ROW).encode() * 50)[:40])
    assert "cannot be read" in refusal(tmp_path / name)


def test_a_parquet_row_is_refused_with_its_number(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "train.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([ROW, {**ROW, "question": None}]), path)
    assert refusal(path).startswith(f"{path}: row 2: the field 'question' must be text, not null")


def test_an_empty_file_a_strange_suffix_and_a_double_id_are_refused(tmp_path: Path) -> None:
    assert "holds no rows" in refusal(write_rows(tmp_path / "train.jsonl"))
    assert "not a data file by its name" in refusal(write_rows(tmp_path / "train.csv"))
    assert "task id 'a' occurs twice" in refusal(write_rows(tmp_path / "t.jsonl", *[{**ROW, "id": "a"}] * 2))


def test_an_unreachable_hub_is_one_line_with_the_id_and_the_way_out(tmp_path: Path) -> None:
    code = "from verigym import tasks\ntasks.load('gsm8k')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    last = done.stderr.strip().splitlines()[-1]
    assert "TaskDataError: cannot load 'openai/gsm8k' (split train) from the hub" in last
    assert "give source=PATH" in last


@pytest.mark.parametrize("solution", ["a #### 3 b\n#### -1,234", "####-1,234", "#### $ -1 234\n"])
def test_final_answer_is_the_bare_number_after_the_last_mark(solution: str) -> None:
    assert final_answer(solution) == "-1234"
    assert final_answer("#### 5 apples") == "5 apples"


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (["gsm9k"], {}, "no task set 'gsm9k'; did you mean 'gsm8k'?"),
        (["gsm8k", "tset"], {}, "no split of 'gsm8k' named 'tset'; did you mean 'test'?"),
        (["math500"], {}, "no split of 'math500' named 'train'; known: test"),
        (["arithmetic", "dev"], {}, "no split of 'arithmetic' named 'dev'; known: test, train"),
        (
            ["arithmetic"],
            {"levle": 2},
            "no option of task set 'arithmetic' named 'levle'; did you mean 'level'?",
        ),
        (["gsm8k"], {"seed": 2}, "no option of task set 'gsm8k' named 'seed'; known: none"),
        (
            ["calculator"],
            {"source": "x"},
            "task set 'calculator' is generated and takes no source; its options: level, seed, size",
        ),
    ],
)
def test_wrong_names_are_refused_with_a_suggestion(arguments: list, options: dict, message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        tasks.load(*arguments, **options)
    assert str(caught.value) == message


WRONG_OPTIONS = [("level", 0), ("level", 7), ("level", "1"), ("level", True), ("seed", -1), ("seed", 0.0)]


@pytest.mark.parametrize("name", GENERATED)
@pytest.mark.parametrize(("option", "value"), [*WRONG_OPTIONS, ("size", 0), ("size", 10**10)])
def test_wrong_options_of_a_generated_set_are_refused(name: str, option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: {option} must be a whole number .*, not {value!r}$"):
        tasks.load(name, **{option: value})


def test_a_registered_set_is_loaded_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    table = import_module("verigym.tasks.load")  # as an attribute, `tasks.load` is the function
    monkeypatch.setattr(table, "_REGISTRY", dict(table._REGISTRY))
    made = tasks.TaskSet([tasks.Task("a", "b", "c")], name="mine", split="train")
    tasks.register("mine", lambda split, source=None, hard=False: made)
    assert "mine" in tasks.registered()
    assert tasks.options("mine") == ["hard"]
    assert tasks.load("mine", hard=True, source="anything") is made


def test_importing_tasks_loads_nothing_heavy() -> None:
    code = "import sys, verigym.tasks; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"datasets", "jsonschema", "pyarrow", "torch", "sympy"} & set(done.stdout.split())


def every_question(shape: _generate.Shape) -> list[_generate.Terms]:
    factors = [list(product(*[range(10 ** (count - 1), 10**count) for count in digits])) for digits in shape]
    signs = product((1, -1), repeat=len(shape) - 1)
    return [tuple(zip((1, *sign), chosen, strict=True)) for sign in signs for chosen in product(*factors)]


def numbers_of(prompt: str) -> frozenset:
    """The question as a multiset of terms, worked out from its text alone."""
    text = prompt.removeprefix("What is ").removesuffix("?").replace("- ", "+ -")
    terms = [term.split(" * ") for term in text.split(" + ")]
    signed = [(term[0].startswith("-"), tuple(sorted(part.lstrip("-") for part in term))) for term in terms]
    return frozenset(Counter(signed).items())


@pytest.mark.parametrize("name", GENERATED)
def test_train_and_test_share_no_question_over_seeds_and_levels(name: str) -> None:
    seen: dict[str, set] = {"train": set(), "test": set()}
    for split, level, seed in product(seen, range(1, 6), (0, 1, 2**70)):
        seen[split] |= {numbers_of(task.prompt) for task in tasks.load(name, split, level=level, seed=seed, size=150)}
    assert len(seen["train"]) > 500
    assert len(seen["test"]) > 500
    assert not seen["train"] & seen["test"]


def test_the_order_of_summands_and_factors_does_not_change_the_split() -> None:
    for a, b in product(range(10, 40), repeat=2):
        assert _generate.split_of(((1, (a,)), (1, (b,)))) == _generate.split_of(((1, (b,)), (1, (a,))))
        assert _generate.split_of(((1, (a, b)), (-1, (3,)))) == _generate.split_of(((1, (b, a)), (-1, (3,))))


def test_one_question_in_five_is_held_out() -> None:
    splits = Counter(map(_generate.split_of, every_question(((2,), (2,)))))
    assert 0.19 < splits["test"] / splits.total() < 0.21


@pytest.mark.parametrize(
    ("name", "level"), [*product(["arithmetic"], range(1, 6)), *product(["calculator"], range(1, 7))]
)
def test_generated_targets_are_what_the_calculator_says(name: str, level: int) -> None:
    for split in ("train", "test"):
        for task in tasks.load(name, split, level=level, size=30):
            assert calculator.calculator(task.metadata["expression"]) == task.target
            assert task.prompt == f"What is {task.metadata['expression']}?"


def test_levels_are_what_their_table_shows() -> None:
    shapes = {
        1: "d [+-] d",
        2: "dd [+-] dd",
        3: "dd [+-] dd [+-] dd",
        4: r"dd \* dd [+-] dd",
        5: r"ddd \* ddd [+-] ddd \* ddd [+-] ddd",
    }
    for level, shape in shapes.items():
        expressions = [task.metadata["expression"] for task in tasks.load("arithmetic", level=level, size=50)]
        assert all(re.fullmatch(shape.replace("d", "[0-9]"), text) for text in expressions)
        assert len({"-" in text for text in expressions}) == 2


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_set_is_the_same_in_another_process(name: str) -> None:
    load = f"tasks.load({name!r}, 'test', level=3, seed=9, size=300)"
    code = f"from verigym import tasks; print({load}.fingerprint)"
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == tasks.load(name, "test", level=3, seed=9, size=300).fingerprint


def test_generating_neither_reads_nor_moves_global_random_state() -> None:
    np.random.seed(1)
    random.seed(1)
    first = tasks.load("arithmetic", size=50).fingerprint
    assert (np.random.random(), random.random()) == (
        np.random.RandomState(1).random(),
        random.Random(1).random(),
    )
    assert tasks.load("arithmetic", size=50).fingerprint == first


@pytest.mark.parametrize("name", GENERATED)
def test_a_task_depends_on_seed_and_index_and_not_on_size_or_order(name: str) -> None:
    large, small = tasks.load(name, seed=5, size=1000), tasks.load(name, seed=5, size=10)
    assert [large[9], large[3]] == [small[9], small[3]]
    assert large.get(small[4].id) == small[4]
    assert small.ids == [task.id for task in small] == large.ids[:10]
    others = [tasks.load(name, level=3, seed=seed, size=20) for seed in (5, 6, 5 + 2**32, 5 + 2**64)]
    assert len({other.fingerprint for other in others}) == 4
    assert len({tuple(task.prompt for task in other) for other in others}) == 4
    # numpy takes the words [5, 7] and [5, 7, 0] for one seed
    assert tasks.load(name, level=5, seed=5 + 7 * 2**32)[0].prompt != tasks.load(name, level=5, seed=5)[7].prompt


@pytest.mark.parametrize("number", ["10", "-1", "07", "x", "", "9" * 10_000, "²"])
def test_an_id_of_no_generated_task_is_refused(number: str) -> None:
    task_set = tasks.load("arithmetic", size=10)
    with pytest.raises(UnknownNameError, match="ids are arithmetic-train-level1-seed0/0 to"):
        task_set.get(f"arithmetic-train-level1-seed0/{number}")


@pytest.mark.parametrize(("module", "level"), [(arithmetic, 1), (arithmetic, 2), (calculator, 1), (calculator, 2)])
def test_chance_is_the_counted_share_of_the_most_common_answer(module: object, level: int) -> None:
    answers: dict[str, Counter] = {"train": Counter(), "test": Counter()}
    for terms in every_question(module.LEVELS[level - 1]):
        answers[_generate.split_of(terms)][_generate.value(terms)] += 1
    shares = [counter.most_common(1)[0][1] / counter.total() for counter in answers.values()]
    assert module.chance(level) == pytest.approx(max(shares))


@pytest.mark.parametrize(
    ("module", "level"), [(arithmetic, 3), (arithmetic, 4), (arithmetic, 5), (calculator, 3), (calculator, 6)]
)
def test_no_constant_answer_earns_more_than_chance_on_large_levels(module: object, level: int) -> None:
    name = module.__name__.rpartition(".")[2]
    answers = Counter(task.target for task in tasks.load(name, level=level, seed=3, size=4000))
    # 4000 draws of a share of .0046 deviate by .001
    assert answers.most_common(1)[0][1] / 4000 <= module.chance(level) + 0.003


def test_tasks_and_generated_sets_can_be_pickled_and_copied() -> None:
    task_set = tasks.load("calculator", size=5)
    assert pickle.loads(pickle.dumps(task_set)).fingerprint == task_set.fingerprint
    task = pickle.loads(pickle.dumps(task_set[0]))
    assert task == task_set[0] == copy.deepcopy(task)
    assert hash(task) == hash(task_set[0])
    with pytest.raises(TypeError):
        task.metadata["level"] = 1


def test_demonstrations_call_the_tool_as_often_as_asked_and_else_answer_wrong_in_the_right_form() -> None:
    rng = np.random.default_rng(0)
    called = 0
    for task in tasks.load("calculator", size=2000):
        turns = calculator.demonstrate(task, rng)
        if len(turns) == 2:
            called += 1
            call = json.dumps({"name": "calculator", "arguments": {"expression": task.metadata["expression"]}})
            assert turns == [f"<tool_call>{call}</tool_call>", f"\\boxed{{{task.target}}}"]
            continue
        (turn,) = turns
        number = turn.removeprefix("\\boxed{").removesuffix("}")
        assert number.isdigit()
        assert len(number) == len(task.target)
        assert number != task.target
    assert 0.27 < called / 2000 < 0.33


def test_demonstration_shares_go_to_their_ends() -> None:
    rng = np.random.default_rng(0)
    for task in tasks.load("calculator", size=50):
        assert len(calculator.demonstrate(task, rng, tool_share=1.0)) == 2
        assert calculator.demonstrate(task, rng, tool_share=0.0, right_share=1.0) == [f"\\boxed{{{task.target}}}"]


def test_wrong_numbers_cover_all_others_of_their_length_and_only_those() -> None:
    for target in ("1", "5", "9", "10", "99"):
        rng = np.random.default_rng(0)
        found = {calculator.wrong_number(target, rng) for _ in range(3000)}
        size = len(target)
        assert found == {str(n) for n in range(10 ** (size - 1), 10**size)} - {target}


@pytest.mark.parametrize(
    ("name", "split", "options"),
    [
        pytest.param("gsm8k", "test", {"source": DATA / "gsm8k"}, marks=needs_data),
        pytest.param("math500", "test", {"source": DATA / "math500"}, marks=needs_data),
        ("arithmetic", "train", {"level": 5, "size": 100}),
        ("calculator", "test", {"level": 6, "size": 100}),
    ],
)
def test_the_math_verifier_accepts_every_gold_answer_and_rejects_a_near_miss(
    name: str, split: str, options: dict
) -> None:
    task_set = tasks.load(name, split, **options)
    verifier = verifiers.make("math")
    gold = [(Submission(f"\\boxed{{{task.target}}}"), task) for task in task_set]
    wrong = [
        task.id for (_, task), verdict in zip(gold, verifier.verify_many(gold), strict=True) if verdict.reward != 1
    ]
    assert not wrong
    number = next(task for task in task_set if task.target.isdigit())
    assert verifier.verify(Submission(f"\\boxed{{{int(number.target) + 1}}}"), number).reward == 0
