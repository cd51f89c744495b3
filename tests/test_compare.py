"""`verigym eval` of several models and environments: figures by hand, what is kept, and what is not played twice."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
from rich.console import Console

from verigym.agents.endpoint import EndpointAgent
from verigym.agents.engines.config import EngineConfig
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.cli import COMMANDS, main
from verigym.commands.evaluate import Evaluate
from verigym.comparison import Evaluator
from verigym.comparison_report import label_of, plot, tables
from verigym.envs.mixture import EnvSpec
from verigym.envs.question import QuestionEnv
from verigym.envs.registration import register
from verigym.pairs import read_episodes
from verigym.players import EndpointPlayer, weights_of
from verigym.results import vote_of
from verigym.tasks import Task, TaskSet
from verigym.tasks.errors import ConfigError
from verigym.verifiers import Outcome, Verdict

DOCS = Path(__file__).parents[1] / "docs" / "compare.md"
ARITHMETIC, CALCULATOR = "verigym/Arithmetic-v0", "verigym/Calculator-v0"
Says = Callable[[str, str, int], str | None]


@contextmanager
def serving(says: Says) -> Iterator[tuple[str, Counter]]:
    """An endpoint that answers a model's question, the n-th time that it is asked (None: fails); what it was asked."""
    asked: Counter = Counter()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            with lock:
                asked[body["model"], question] += 1
                number = asked[body["model"], question]
            said = says(body["model"], question, number)
            reply = {"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}
            reply["usage"] = {"prompt_tokens": 10, "completion_tokens": 3}
            self.send_response(400 if said is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps(reply if said is not None else {"error": "broken"}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def gold() -> dict[str, str]:
    """The right answers of the first test tasks, by question."""
    env = EnvSpec(ARITHMETIC).with_split("test").make().unwrapped
    return {env.reset(options={"task": task.id})[0]: task.target for task in env.tasks[:12]}


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def evaluate(capsys: pytest.CaptureFixture, *arguments: str) -> dict[str, Any]:
    assert main(["eval", *arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def models_of(found: dict[str, Any], env: int = 0) -> list[dict[str, Any]]:
    return found["environments"][env]["models"]


def test_figures_of_two_models_are_those_worked_by_hand(gold, capsys, tmp_path):
    """Of four tasks: `good` is right 4, 4, 2 and 0 times of four; `poor` 4, 0, 0 and 0 times."""
    times = {"good": [4, 4, 2, 0], "poor": [4, 0, 0, 0]}
    number = {question: index for index, question in enumerate(gold)}

    def says(model: str, question: str, asked: int) -> str:
        right = asked <= times[model][number[question]]
        return boxed(gold[question] if right else f"{asked}1111")

    with serving(says) as (url, _):
        found = evaluate(
            capsys,
            *("--model", f"good@{url}", "--model", f"poor@{url}", "--env", ARITHMETIC, "--tasks", "4"),
            *("--samples", "4", "--folder", str(tmp_path)),
        )
    good, poor = models_of(found)
    values = {k: one["value"] for k, one in good["pass@k"].items()}
    assert values == pytest.approx({"1": 2.5 / 4, "2": (1 + 1 + 5 / 6 + 0) / 4, "4": 3 / 4})
    assert {k: one["value"] for k, one in good["pass^k"].items()} == pytest.approx({"2": (2 + 1 / 6) / 4, "4": 2 / 4})
    # the third task has two right answers and two different wrong ones: the right one leads; the fourth four wrong ones
    assert good["majority@k"]["4"]["value"] == pytest.approx(3 / 4)
    assert good["difference"] is None
    assert poor["difference"]["value"] == pytest.approx(-1.5 / 4)
    assert poor["difference"]["low"] <= -1.5 / 4 <= poor["difference"]["high"] <= 0
    assert (poor["difference"]["to"], poor["difference"]["tasks"]) == (f"good@{url}", 4)
    assert good["reward"]["value"] == good["pass@k"]["1"]["value"]
    assert (good["cost"]["prompt_tokens"], good["cost"]["generated_tokens"]) == (160, 48)
    assert good["cost"]["seconds"] == pytest.approx(16 * good["cost"]["seconds_per_episode"], abs=0.01)
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_played_twice_and_only_what_is_new_is_played(gold, capsys, tmp_path):
    with serving(lambda model, question, n: boxed(gold[question])) as (url, asked):

        def requests(*arguments: str) -> int:
            before = asked.total()
            evaluate(capsys, "--endpoint", url, "--env", ARITHMETIC, "--folder", str(tmp_path), *arguments)
            return asked.total() - before

        assert requests("--model", "a", "--tasks", "3", "--samples", "2") == 6
        assert requests("--model", "a", "--tasks", "3", "--samples", "2") == 0
        assert requests("--model", "a", "--model", "b", "--tasks", "3", "--samples", "2") == 6
        assert requests("--model", "a", "--tasks", "5", "--samples", "2") == 4
        assert requests("--model", "a", "--tasks", "3", "--samples", "3") == 3
        for changed in (
            ["--temperature", "0.5"],
            ["--seed", "1"],
            ["--max-new-tokens", "9"],
            ["--option", "max_turns=2"],
        ):
            assert requests("--model", "a", "--tasks", "3", "--samples", "2", *changed) == 6, changed


def test_an_episode_that_was_not_judged_is_counted_left_out_and_played_again(gold, capsys, tmp_path):
    broken = list(gold)[1]
    well = threading.Event()

    def says(model: str, question: str, number: int) -> str | None:
        return None if question == broken and not well.is_set() else boxed(gold[question])

    with serving(says) as (url, asked):
        arguments = ["--model", f"a@{url}", "--env", ARITHMETIC, "--tasks", "3", "--folder", str(tmp_path)]
        (one,) = models_of(evaluate(capsys, *arguments))
        assert (one["infra_errors"], one["tasks"], one["pass@k"]["1"]["value"]) == (1, 2, 1.0)
        well.set()
        before = asked.total()
        (one,) = models_of(evaluate(capsys, *arguments))
        assert asked.total() - before == 1
        assert (one["infra_errors"], one["tasks"], one["pass@k"]["1"]["value"]) == (0, 3, 1.0)


def test_a_model_that_fails_does_not_cost_the_figures_of_the_others(gold, capsys):
    with serving(lambda model, question, n: None if model == "dead" else boxed(gold[question])) as (url, _):
        arguments = ["eval", "--endpoint", url, "--model", "dead", "--model", "a", "--env", ARITHMETIC, "--tasks", "2"]
        assert main([*arguments, "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert main(arguments) == 1
        assert "dead on verigym/Arithmetic-v0: no episode of 2 could be judged" in capsys.readouterr().out
    (one,) = models_of(found)
    assert (one["model"], one["pass@k"]["1"]["value"], one["difference"]) == ("a", 1.0, None)
    assert "dead on verigym/Arithmetic-v0" in found["failures"][0]


def test_a_killed_evaluation_goes_on_where_it_was(gold, capsys, tmp_path):
    enough, forever = threading.Event(), threading.Event()

    def says(model: str, question: str, number: int) -> str:
        if asked.total() > 7 and not enough.is_set():
            forever.wait()  # what is asked after the seventh is not answered before the kill
        return boxed(gold[question])

    with serving(says) as (url, asked):
        arguments = ["--model", f"a@{url}", "--env", ARITHMETIC, "--tasks", "12", "--folder", str(tmp_path)]
        command = [sys.executable, "-m", "verigym.cli", "eval", *arguments, "--slots", "2"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while not (files := list(tmp_path.glob("episodes/*.jsonl"))) or files[0].read_bytes().count(b"\n") < 7:
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        enough.set()
        forever.set()
        (file,) = files
        with file.open("ab") as half:
            half.write(b'{"env_id": "cut sho')
        (one,) = models_of(evaluate(capsys, *arguments))
    assert asked.total() <= 12 + 2  # two were asked when the kill came
    assert (one["episodes"], one["pass@k"]["1"]["value"]) == (12, 1.0)
    assert len(read_episodes([str(file)])) == 12


@pytest.mark.parametrize("damage", [b"\0\0", b"\xff", b"null", b'{"evaluation": {"task": "x", "sample": 0}}'], ids=repr)
def test_a_damaged_line_is_named(gold, capsys, tmp_path, damage):
    with serving(lambda model, question, n: boxed(gold[question])) as (url, _):
        arguments = ["--model", f"a@{url}", "--env", ARITHMETIC, "--tasks", "2", "--folder", str(tmp_path)]
        evaluate(capsys, *arguments)
        (file,) = tmp_path.glob("episodes/*.jsonl")
        with file.open("ab") as kept:
            kept.write(damage + b"\n")
        assert main(["eval", *arguments]) == 2
    assert capsys.readouterr().err == f"verigym eval: {file}:3: no episode of an evaluation; remove the line\n"


def checkpoint(path: Path, seed: int) -> Path:
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tiny_model(len(tokenizer), hidden_size=16, layers=1, heads=1, intermediate_size=16, seed=seed)
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_checkpoints_are_known_by_their_content_and_played_on_two_environments(tmp_path, capsys):
    one, other = checkpoint(tmp_path / "one", 0), checkpoint(tmp_path / "other", 1)
    folder = tmp_path / "out"
    envs = ["--env", f"{ARITHMETIC},max_tokens_per_turn=4", "--env", f"{CALCULATOR},max_tokens_per_turn=5,max_turns=1"]
    common = [*envs, "--tasks", "3", "--samples", "2", "--folder", str(folder), "--deterministic", "True"]
    found = evaluate(capsys, "--model", str(one), "--model", f"{other}@transformers", *common)
    assert [entry["env"] for entry in found["environments"]] == envs[1::2]
    assert [entry["cost"]["generated_tokens"] <= 6 * 4 for entry in models_of(found)] == [True, True]
    assert all(entry["cost"]["prompt_tokens"] > 0 for entry in models_of(found, 1))
    assert len(list((folder / "episodes").glob("*.jsonl"))) == 4
    moved = one.rename(tmp_path / "moved")
    stamps = {path: path.stat().st_size for path in folder.glob("episodes/*.jsonl")}
    again = evaluate(capsys, "--model", str(moved), "--model", f"{other}@transformers", *common)
    assert {path: path.stat().st_size for path in folder.glob("episodes/*.jsonl")} == stamps
    assert models_of(again)[0]["file"] == models_of(found)[0]["file"]
    assert len(read_episodes([str(folder)])) == 24


def test_weights_settings_and_tokenizers_name_a_checkpoint_and_training_state_does_not(tmp_path):
    path = checkpoint(tmp_path / "one", 0)
    name = weights_of(path)
    (path / "state.pt").write_bytes(b"the optimizer's")
    assert weights_of(path) == name != weights_of(checkpoint(tmp_path / "other", 1))
    (path / "chat_template.jinja").write_text((path / "chat_template.jinja").read_text() + " ")
    assert weights_of(path) != name


def test_two_evaluations_do_not_write_one_file(tmp_path, capsys, gold):
    with serving(lambda model, question, n: boxed(gold[question])) as (url, _):
        arguments = ["eval", "--model", f"a@{url}", "--env", ARITHMETIC, "--tasks", "1", "--folder", str(tmp_path)]
        assert main(arguments) == 0
        (file,) = tmp_path.glob("episodes/*.jsonl")
        holder = subprocess.Popen(["flock", str(file), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        holder.stdin.write(b"held\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == b"held\n"
        capsys.readouterr()
        assert main(arguments) == 2
        assert "is being written by another verigym eval" in capsys.readouterr().err
        holder.communicate()


def test_the_table_tells_what_the_json_does_and_what_is_left_out(gold, capsys):
    with serving(lambda model, question, n: "I cannot say.") as (url, _):
        arguments = ["--endpoint", url, "--model", "a", "--model", "b[c]", "--env", ARITHMETIC]
        assert main(["eval", *arguments, "--tasks", "2", "--samples", "4"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"pass@1 \(avg@4\) +│ +0\.000 \[0\.000, 0\.658\] +│ +0\.000 \[0\.000, 0\.658\]", out)
    assert re.search(r"majority@4 +│ +- +│ +- ", out)
    assert "b[c]: no majority, no episode has an answer to vote on" in out


def test_many_models_have_columns_that_fit_and_each_its_look(gold, tmp_path):
    with serving(lambda model, question, n: boxed(gold[question])) as (url, _):
        models = [f"model-{n}@{url}" for n in range(8)]
        players = {model: EndpointPlayer(EndpointAgent(url, model)) for model in models}
        specs = {text: EnvSpec(ARITHMETIC, kwargs={"split": "test"}) for text in ("one", "same")}
        evaluator = Evaluator(players, specs, tmp_path, tasks=2, samples=4)
        evaluator.play()
        found = evaluator.compare()
        evaluator.close()
    shown = list(tables(found, 90))
    assert [len(table.columns) - 1 for table in shown] == [2] * 8
    console = Console(width=90, record=True, file=io.StringIO())
    console.print(*shown)
    text = console.export_text()
    assert text.count("1.000 [0.342, 1.000]") >= 16
    assert "0.000 [-0.658, +0.658]" in text
    assert len({label_of(model) for model in models}) == 8
    plot(found, tmp_path / "report.png")


def test_an_environments_options_in_another_order_are_the_same_environment(gold, tmp_path):
    with serving(lambda model, question, n: boxed(gold[question])) as (url, asked):
        one, other = {"split": "test", "max_turns": 1}, {"max_turns": 1, "split": "test"}
        specs = {"one": EnvSpec(ARITHMETIC, kwargs=one), "other": EnvSpec(ARITHMETIC, kwargs=other)}
        evaluator = Evaluator({"m": EndpointPlayer(EndpointAgent(url, "m"))}, specs, tmp_path, tasks=2)
        evaluator.play()
        evaluator.close()
    assert asked.total() == 2


@pytest.mark.parametrize(
    ("verdict", "vote"),
    [
        (Verdict(1.0, Outcome.CORRECT, "", details={"answer": r"\dfrac{1}{2}"}), r"\frac{1}{2}"),
        (Verdict(1.0, Outcome.CORRECT, "", details={"passed": 3}), None),
        (
            Verdict(
                0.0, Outcome.WRONG, "", details={"math": {"reason": "", "answer": " 7 "}, "format": {"reason": ""}}
            ),
            "7",
        ),
        (Verdict(0.0, Outcome.WRONG, "", details={"answer": "9" * 10_000}), "9" * 10_000),
        (Verdict(0.0, Outcome.UNPARSEABLE, "no answer"), None),
    ],
)
def test_an_answer_votes_in_one_spelling(verdict, vote):
    assert vote_of(verdict) == vote


def test_code_has_no_majority_and_says_so(tmp_path, monkeypatch, capsys, gold):
    monkeypatch.setattr("verigym.results.vote_of", lambda verdict: None)
    with serving(lambda model, question, n: boxed(gold[question])) as (url, _):
        (one,) = models_of(
            evaluate(capsys, "--model", f"a@{url}", "--env", ARITHMETIC, "--tasks", "1", "--samples", "3")
        )
    assert (one["majority@k"], one["no_majority"]) == ({}, "the verdicts name no answer to vote on")


class Unsplit(QuestionEnv):
    """Has one set of tasks, which it trains on."""

    def __init__(self) -> None:
        super().__init__("arithmetic", split="train")


class HandsOn(QuestionEnv):
    """Does not name its options."""

    def __init__(self, **options: Any) -> None:
        super().__init__("arithmetic", **options)


@pytest.fixture
def splits() -> Iterator[None]:
    """Environments that take no split, hand it on, and have a TaskSet, of which it says nothing."""
    given = {"task_set": TaskSet([Task("two", "1 + 1?", "2")], name="two", split="train")}
    register("test/Unsplit-v0", entry_point=Unsplit, kwargs={})
    register("test/HandsOn-v0", entry_point=HandsOn, kwargs={})
    register("test/Given-v0", entry_point=QuestionEnv, kwargs=given)
    yield
    for name in ("Unsplit", "HandsOn", "Given"):
        del gym.registry[f"test/{name}-v0"]


def test_the_split_that_was_played_is_told_whatever_an_environment_takes(capsys, splits):
    names = ["test/Unsplit-v0", "test/HandsOn-v0", "test/Given-v0", ARITHMETIC, f"{ARITHMETIC},split=train"]
    with serving(lambda model, question, number: "none") as (url, _):
        arguments = ["--model", f"m@{url}", "--tasks", "1", *(word for name in names for word in ("--env", name))]
        found = evaluate(capsys, *arguments)
        assert main(["eval", *arguments]) == 0
    said = capsys.readouterr().out
    assert [one["split"] for one in found["environments"]] == ["train", "test", "train", "test", "train"]
    assert all(f"{one['env']} (split {one['split']})" in said for one in found["environments"])
    told = re.findall(r"^(.*) is evaluated on tasks of split train, not test: training may", said, re.MULTILINE)
    assert told == ["test/Unsplit-v0", "test/Given-v0"]


@pytest.mark.parametrize("options", [["--split", "test"], ["--option", "split=test"]], ids=" ".join)
def test_a_split_that_an_environment_does_not_have_is_refused(capsys, splits, options):
    for name, problem in (
        ("Unsplit", "test/Unsplit-v0 takes no split: leave split out, its tasks are the same for all"),
        ("Given", "test/Given-v0 has no split 'test': its tasks are of 'train'; leave split out"),
    ):
        assert main(["eval", "--model", "m@http://127.0.0.1:1", "--env", f"test/{name}-v0", *options]) == 2
        assert capsys.readouterr().err == f"verigym eval: {problem}\n"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--env", ARITHMETIC], "missing: --model"),
        (["--model", "m", "--env", ARITHMETIC, "--temperature", "nan"], "temperature must be a number"),
        (["--model", "m"], "missing: --env"),
        (["--model", "m", "--model", "m", "--env", ARITHMETIC], "--model m is given twice"),
        (["--model", "m", "--env", "verigym/Arithmetik-v0"], "did you mean 'verigym/Arithmetic-v0'?"),
        (["--model", "m", "--env", f"{ARITHMETIC},level"], "an option is written key=value, not 'level'"),
        (["--model", "m", "--env", f"{ARITHMETIC},levle=1"], "did you mean 'level'?"),
        (["--model", "/no/such", "--env", ARITHMETIC], "no model at '/no/such'"),
        (["--model", "m@http://x", "--env", ARITHMETIC, "--deterministic", "True"], "promises no bits"),
        (
            ["--model", "m@ray,actors=3", "--env", ARITHMETIC],
            "an engine has one set of settings; give them as",
        ),
        (["--model", "m@vllm-server", "--env", ARITHMETIC], "engine.url goes with engine.kind vllm-server"),
        (["--model", "m@http://127.0.0.1:1", "--env", ARITHMETIC, "--folder", "/dev/null/x"], "cannot make the folder"),
    ],
    ids=str,
)
def test_wrong_input_is_one_line(capsys, arguments, problem):
    assert main(["eval", *arguments]) == 2
    err = capsys.readouterr().err
    assert problem in err
    assert err.count("\n") == 1


def test_models_on_several_engines_have_the_settings_of_their_own_kind():
    command = ["--model", "a", "--model", "b@transformers", "--env", ARITHMETIC]
    evaluation = Evaluate.parse([*command, "--engine.kind", "ray", "--engine.ray.actors", "3"])
    one, other = (evaluation._player(text) for text in evaluation.model)
    assert (one.engine.kind, one.engine.ray.actors) == ("ray", 3)
    assert other.engine == EngineConfig()


def test_a_first_interrupt_keeps_what_was_played(gold, tmp_path, capsys):
    def says(model: str, question: str, number: int) -> str:
        if asked.total() == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return boxed(gold[question])

    with serving(says) as (url, asked):
        arguments = ["--model", f"a@{url}", "--env", ARITHMETIC, "--tasks", "12", "--folder", str(tmp_path)]
        arguments += ["--slots", "1"]
        assert main(["eval", *arguments]) == 130
        assert f"what was played is kept in {tmp_path}; the same command goes on" in capsys.readouterr().err
        kept = len(read_episodes([str(tmp_path)]))
        evaluate(capsys, *arguments)
    assert 4 <= kept < 12
    assert asked.total() <= 12 + 1  # one was asked when the interrupt came


@pytest.mark.parametrize("command", re.findall(r"^    verigym (.*)$", DOCS.read_text(), flags=re.MULTILINE))
def test_the_commands_of_the_document_are_such(command):
    name, *arguments = shlex.split(command)
    module, attribute, _ = COMMANDS[name]
    assert getattr(import_module(f"verigym.commands.{module}"), attribute).parse(arguments)


def test_an_evaluator_refuses_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot make the folder"):
        Evaluator({}, {}, tmp_path / "file")
