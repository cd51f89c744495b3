"""Reward models: the loss by hand, gradients that do not depend on the cut, runs that resume, and the verifier."""

import copy
import json
import math
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from verigym import verifiers
from verigym.agents import reward_model
from verigym.agents.agent import load_chat
from verigym.agents.episode import Episode, Turn
from verigym.agents.learners.pairs import Pair, pair_micro_batches, written_episode
from verigym.agents.learners.preference import bradley_terry_loss, ranked_right
from verigym.agents.learners.reward_model import RewardLearner
from verigym.agents.reward_model import read_conversation
from verigym.agents.scalar import ScalarModel
from verigym.agents.tiny import tiny_model
from verigym.calibration import calibration, expected_calibration_error
from verigym.cli import main
from verigym.config import build
from verigym.envs.mixture import EnvSpec
from verigym.offline_config import RewardModelConfig
from verigym.pairs import as_preference, match, read_preferences, split
from verigym.passes import Passes, resumed
from verigym.reward_model import read_pair, train_reward_model
from verigym.run_folder import RunFolder
from verigym.tasks.errors import ConfigError, RunInterrupted, TaskDataError
from verigym.tasks.task import Task
from verigym.verifiers import Outcome, Submission, Verdict

VOCABULARY = 24
SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1, "max_tokens_per_turn": 8})
TASK = Task("t", "What is 2 + 3?\n\nPut your final answer in \\boxed{}.", "5")


def sums(path: Path, *, tasks: int = 60, **extra: object) -> str:
    """A file of preferences: the right sum above a wrong one, which has as many digits."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(tasks):
        a, b = (int(number) for number in rng.integers(1, 5, 2))
        prompt = f"What is {a} + {b}?\n\nPut your final answer in \\boxed{{}}."
        wrong = (a + b + int(rng.integers(1, 9))) % 10
        rows.append({"prompt": prompt, "chosen": f"\\boxed{{{a + b}}}", "rejected": f"\\boxed{{{wrong}}}", **extra})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["chosen"] != row["rejected"]))
    return str(path)


@pytest.fixture(scope="module")
def trained(warm_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = small(warm_start, folder / "run", pairs=sums(folder / "pairs.jsonl", tasks=200), epochs=12)
    return train_reward_model(config).model


def small(model: Path, run: Path, **changes: object) -> RewardModelConfig:
    values = {"model": str(model), "run": str(run), "lr": 1e-3, "batch_size": 16, "checkpoint_every": 3}
    return build(RewardModelConfig, values | changes)


def readable(ids: list[int], shared: int = 1) -> Episode:
    """A conversation of which the first tokens are computed once with others'."""
    return written_episode(ids, [False] * shared + [True] * (len(ids) - shared))


def make_model(dtype: torch.dtype = torch.float64) -> ScalarModel:
    policy = tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=2, intermediate_size=48).to(dtype)
    model = ScalarModel(policy.base_model)
    torch.nn.init.normal_(model.head.weight, std=0.3, generator=torch.Generator().manual_seed(3))
    return model


def make_pairs(count: int = 7) -> list[Pair]:
    """Pairs of unequal lengths, the first three of one prompt."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(count):
        prompt = [1, 2, 3, 4] if index < 3 else rng.integers(0, VOCABULARY, 3 + index).tolist()
        sides = [prompt + rng.integers(0, VOCABULARY, int(rng.integers(1, 9))).tolist() for _ in range(2)]
        chosen, rejected = (readable(ids, len(prompt)) for ids in sides)
        pairs.append(Pair(chosen, rejected, question=str(prompt)))
    return pairs


def gradients(learner: RewardLearner, pairs: list[Pair]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def step() -> dict[str, float]:
        found.update({n: p.grad.clone() for n, p in learner.model.named_parameters() if p.grad is not None})
        learner.model.zero_grad()
        return {}

    learner.optimizer.step = step
    learner.update(pairs)
    return found


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors") | load_file(folder / "scalar_head.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The loss and its gradient.


def test_the_loss_is_that_of_bradley_and_terry() -> None:
    chosen, rejected = torch.tensor([2.0, 0.5, -1.0, 200.0]), torch.tensor([0.0, 0.5, 2.0, 0.0])
    # -log sigmoid of 2, 0, -3 and 200
    assert bradley_terry_loss(chosen, rejected).tolist() == pytest.approx([0.126928, 0.693147, 3.048587, 0.0], abs=1e-6)
    assert bradley_terry_loss(chosen + 7, rejected + 7).tolist() == pytest.approx(
        bradley_terry_loss(chosen, rejected).tolist(), abs=1e-5
    )
    assert ranked_right(chosen, rejected).tolist() == [1.0, 0.5, 0.0, 1.0]
    with pytest.raises(ValueError, match="shapes differ"):
        bradley_terry_loss(chosen, rejected[:, None])


def test_the_losss_gradient_is_the_probability_of_the_mistake() -> None:
    chosen, rejected = torch.tensor([2.0, 0.0]).requires_grad_(), torch.tensor([0.0, 3.0]).requires_grad_()
    bradley_terry_loss(chosen, rejected).sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-0.119203, -0.952574], abs=1e-6)
    assert rejected.grad.tolist() == pytest.approx([0.119203, 0.952574], abs=1e-6)


def worst_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of any gradient, relative to its largest entry."""
    assert one.keys() == other.keys()
    return max(float((g - other[n]).abs().max()) / max(float(g.abs().max()), 1e-3) for n, g in one.items())


def test_gradients_do_not_depend_on_micro_batches_or_order() -> None:
    pairs = make_pairs()[2:]
    whole = gradients(RewardLearner(make_model()), pairs)
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3
    assert len(list(pair_micro_batches(pairs, 40, torch.device("cpu")))) > 2
    for size, order in ((40, (0, 1, 2, 3, 4)), (40, (4, 0, 2, 1, 3)), (1, (3, 2, 1, 4, 0)), (8192, (1, 0, 4, 3, 2))):
        cut = gradients(RewardLearner(make_model(), tokens_per_forward=size), [pairs[i] for i in order])
        assert worst_difference(whole, cut) <= 1e-12


def test_gradients_do_not_depend_on_shared_prompts() -> None:
    pairs = make_pairs()
    apart = [
        Pair(*(readable(e.token_ids.tolist()) for e in (p.chosen, p.rejected)), str(i)) for i, p in enumerate(pairs)
    ]
    together, alone = (
        gradients(RewardLearner(make_model(), tokens_per_forward=n), p) for n, p in ((999, pairs), (1, apart))
    )
    # the norms of this model compute in float32 whatever its precision
    assert worst_difference(together, alone) <= 1e-6


def test_a_score_is_read_after_the_last_token() -> None:
    learner, pair = RewardLearner(make_model()), make_pairs(4)[3]
    ids = pair.chosen.token_ids.tolist()
    states = learner.model.trunk(
        input_ids=torch.tensor([ids]),
        position_ids=torch.arange(len(ids))[None],
        layout=reward_layout(len(ids)),
        use_cache=False,
    ).last_hidden_state[0]
    expected = float((states[-1] @ learner.model.head.weight[0]).detach())
    assert learner.scores([pair.rejected, pair.chosen])[1] == pytest.approx(expected, abs=1e-12)
    other = replace(pair.chosen, token_ids=pair.chosen.token_ids.copy())
    other.token_ids[-1] = (other.token_ids[-1] + 1) % VOCABULARY
    assert abs(learner.scores([other])[0] - expected) > 1e-6


def reward_layout(length: int) -> object:
    from verigym.agents.attention import PackedLayout

    return PackedLayout([length])


def test_training_ranks_the_pairs_and_centring_sets_the_mean_to_zero() -> None:
    learner, pairs = RewardLearner(make_model(torch.float32), lr=3e-3), make_pairs()
    before = learner.model.head.bias.clone()
    for _ in range(40):
        metrics = learner.update(pairs)
    assert metrics["accuracy"] == 1.0
    assert metrics["loss"] < 0.1
    assert torch.equal(learner.model.head.bias, before)
    learner.centre(pairs)
    assert learner.scores([e for pair in pairs for e in (pair.chosen, pair.rejected)]).mean() == pytest.approx(
        0, abs=1e-5
    )


def test_a_restored_learner_goes_on_to_the_bit() -> None:
    one = RewardLearner(make_model(torch.float32), lr=1e-3)
    one.update(make_pairs())
    other = RewardLearner(make_model(torch.float32), lr=1e-3)
    other.model.trunk.load_state_dict(one.model.trunk.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert one.update(make_pairs()) == other.update(make_pairs())
    assert same(one.model.state_dict(), other.model.state_dict())


# What is reported.


def test_calibration_by_hand() -> None:
    pairs = [Pair(readable([1] * a), readable([1] * b), "") for a, b in ((5, 3), (3, 3), (2, 4), (6, 2))]
    # probabilities .9, .9, .6 and .3 of the chosen one
    found = calibration(pairs, np.log(np.array([9.0, 9.0, 1.5, 3 / 7])))
    assert (found.pairs, found.accuracy, found.longer) == (4, 0.75, 0.625)
    assert found.brier == pytest.approx((0.01 + 0.01 + 0.16 + 0.49) / 4)
    assert found.log_loss == pytest.approx(-math.log(0.9 * 0.9 * 0.6 * 0.3) / 4)
    # bins: {.9, .9} right by 1, {.6} right by 1, {.7} wrong
    assert found.ece == pytest.approx((2 * 0.1 + 0.4 + 0.7) / 4)
    assert calibration(pairs[:1], np.zeros(1)).accuracy == 0.5
    # bins are .05 wide
    assert expected_calibration_error(np.array([0.61, 0.68]), np.array([1.0, 0])) == pytest.approx((0.39 + 0.68) / 2)
    assert expected_calibration_error(np.array([0.75] * 4), np.array([1.0, 1, 1, 0])) == pytest.approx(0)


# Files of preferences.

USER = {"role": "user", "content": "6 * 7?"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "6 * 7?", "chosen": "42", "rejected": "41"},
        {"prompt": [USER], "chosen": [said("42")], "rejected": [said("41")]},
        {"prompt": [USER], "chosen": "42", "rejected": [said("41")]},
        {"chosen": [USER, said("42")], "rejected": [USER, said("41")]},
        {"prompt": "6 * 7?", "chosen": [USER, said("42")], "rejected": [USER, said("41")], "score_chosen": 9.5},
        {"prompt": None, "chosen": [USER, said("42")], "rejected": [USER, said("41")]},
    ],
)
def test_the_common_forms_of_a_pair_are_read_alike(row: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = read_preferences(str(path))
    assert (found.prompt, found.chosen, found.rejected) == ([USER], [said("42")], [said("41")])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "is not JSON"),
        ({"prompt": "a", "chosen": "b"}, "the field 'rejected' is missing"),
        ({"prompt": "a", "chosen": "b", "rejected": 3}, "'rejected' must be text or a list of messages, not int"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "a tie teaches nothing"),
        ({"chosen": "b", "rejected": "c"}, "there is no prompt"),
        ({"chosen": [USER, said("b")], "rejected": [said("c")]}, "the other does not"),
        ({"prompt": "else", "chosen": [USER, said("b")], "rejected": [USER, said("c")]}, "is not what"),
        ({"prompt": [USER, said("a")], "chosen": "b", "rejected": "c"}, "the prompt ends with a turn of the assistant"),
        ({"prompt": "a", "chosen": [said("b"), USER], "rejected": "c"}, "'chosen' must begin and end with a turn"),
        ({"chosen": [USER, said("b")], "rejected": [USER]}, "'rejected' must begin and end with a turn"),
        ({"prompt": "a", "chosen": [{"role": "bot", "content": "b"}], "rejected": "c"}, "a message of 'chosen' has a"),
        ({"prompt": "a", "chosen": [{"role": "assistant"}], "rejected": "c"}, "a message of 'chosen' has a role"),
        ({"prompt": "a", "chosen": "\ud800", "rejected": "c"}, "is not Unicode"),
        ({"prompt": "a", "chosen": [{**said("b"), "tool_calls": [1]}], "rejected": "c"}, "has tool_calls"),
    ],
)
def test_a_wrong_row_is_one_line_with_its_file_and_number(
    row: object, message: str, tmp_path: Path, warm_start: Path
) -> None:
    path = tmp_path / "pairs.jsonl"
    good = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    path.write_text(good + "\n" + (row if isinstance(row, str) else json.dumps(row)) + "\n")
    with pytest.raises(TaskDataError) as caught:
        train_reward_model(small(warm_start, tmp_path / "run", pairs=str(path)))
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert "row 2" in text
    assert message in text
    assert not (tmp_path / "run").exists()


def test_what_is_read_is_the_conversation_in_the_models_own_template(warm_start: Path, tmp_path: Path) -> None:
    tokenizer, chat = load_chat(warm_start)
    (found, *_) = read_preferences(sums(tmp_path / "pairs.jsonl"))
    pair = read_pair(chat, found, 2048)
    ids = pair.chosen.token_ids.tolist()
    whole = [*found.prompt, *found.chosen]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(whole, tokenize=False).removesuffix("\n")
    assert ids == read_conversation(chat, whole).token_ids.tolist()
    start = int(pair.chosen.mask.argmax())
    assert ids[:start] == pair.rejected.token_ids.tolist()[:start]
    with pytest.raises(TaskDataError, match=r"row 1: a conversation has \d+ tokens, the model reads 5"):
        read_pair(chat, found, 5)


# Pairs of episodes.


def played(task: str, outcome: Outcome, answer: str) -> Episode:
    episode = written_episode([1, 2, 3, ord(answer[0])], [False, False, True, True], task)
    messages = ({"role": "user", "content": task}, said(answer))
    reward = math.nan if outcome is Outcome.INFRA_ERROR else float(outcome is Outcome.CORRECT)
    turns = (Turn(2, 4, 0.0, "stop", limit=8),)
    return replace(episode, messages=messages, turns=turns, verdict=Verdict(reward, outcome, "by hand"))


def test_a_right_episode_stands_above_a_wrong_one_of_the_same_task() -> None:
    right, wrong = Outcome.CORRECT, Outcome.WRONG
    episodes = [
        *[played("a", right, text) for text in "123"],
        *[played("a", wrong, text) for text in "45"],
        played("a", Outcome.INFRA_ERROR, "6"),
        played("a", right, "1"),  # said already
        *[played("b", right, text) for text in "12"],  # never wrong
        played("c", Outcome.UNPARSEABLE, "1"),
        played("c", right, "2"),
    ]
    pairs = match(episodes, 10, seed=0)
    texts = sorted((c.task_id, c.messages[1]["content"], r.messages[1]["content"]) for c, r in pairs)
    assert [task for task, _, _ in texts] == ["a", "a", "a", "c"]
    assert sorted(chosen for task, chosen, _ in texts if task == "a") == ["1", "2", "3"]
    assert {rejected for task, _, rejected in texts if task == "a"} == {"4", "5"}
    assert texts[-1] == ("c", "2", "1")
    assert len(match(episodes, 2, seed=0)) == 3
    assert match(episodes, 10, seed=0) == pairs


def test_forks_are_held_out_with_the_task_that_they_are_of() -> None:
    right, wrong = Outcome.CORRECT, Outcome.WRONG
    whole = [played("a", right, "1"), played("a", wrong, "2")]
    before = (*whole[0].messages[:1], said("call"), {"role": "tool", "content": "3"})
    forks = [replace(e, messages=(*before, e.messages[-1]), forked_turn=1) for e in whole]
    pairs = [as_preference(*both) for both in match([*whole, *forks], 4, seed=0)]
    assert [len(pair.prompt) for pair in pairs] == [1, 3]
    assert pairs[0].question == pairs[1].question != as_preference(*[played("b", right, "1")] * 2).question


def test_no_prompt_is_both_learned_and_held_out() -> None:
    names = [str(i % 20) for i in range(100)]
    train, held_out = split(list(range(100)), names, 0.25, seed=0)
    assert (len(train), len(held_out)) == (75, 25)
    assert not {names[i] for i in train} & {names[i] for i in held_out}
    assert split(list(range(100)), names, 0.25, seed=1)[1] != held_out
    assert [len(side) for side in split([1, 2], ["a", "b"], 0.01, seed=0)] == [1, 1]
    with pytest.raises(ConfigError, match="pairs of 1 different prompts"):
        split([1, 2], ["a", "a"], 0.5, seed=0)


# Runs.


def test_every_pass_has_each_example_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    config = small(Path("model"), tmp_path / "run", pairs="pairs.jsonl", epochs=2, batch_size=8)
    passes = Passes(config, RunFolder(config.run), "reward-model", range(20), "")
    assert (passes.per_pass, passes.steps) == (3, 6)
    first, second = ([i for step in steps for i in passes.batch(step)] for steps in ((0, 1, 2), (3, 4, 5)))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert passes.batch(4) == second[8:16]


def test_a_reward_model_learns_sums_and_is_calibrated_on_held_out_pairs(trained: Path) -> None:
    report = json.loads((trained / "report.json").read_text())
    assert report["held_out"]["pairs"] + report["train"]["pairs"] > 150
    assert report["held_out"]["accuracy"] > 0.6
    assert report["train"]["accuracy"] > 0.9


def test_pairs_of_an_environments_own_episodes(warm_start: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options = [f"--{name}={value}" for name, value in (("tasks", 40), ("samples", 6), ("lr", 1e-3), ("batch-size", 16))]
    where = ["--option", "level=1", "--option", "max_tokens_per_turn=8", "--run", str(tmp_path / "run")]
    command = ["reward-model", "--model", str(warm_start), "--env", SUMS.id, *where, *options]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "accuracy" in out
    assert str(tmp_path / "run" / "model") in out
    episodes = list(RunFolder(tmp_path / "run").episodes(0))
    assert len(episodes) == 240
    again = ["reward-model", "--model", str(warm_start), "--episodes", str(tmp_path / "run"), "--run"]
    assert main([*again, str(tmp_path / "again"), *options[2:]]) == 0
    assert same(weights(tmp_path / "run" / "model"), weights(tmp_path / "again" / "model"))


def test_a_resumed_run_equals_one_that_was_not(warm_start: Path, tmp_path: Path) -> None:
    pairs = sums(tmp_path / "pairs.jsonl")
    whole = train_reward_model(small(warm_start, tmp_path / "whole", pairs=pairs, epochs=2))

    def interrupt(step: int, steps: int, metrics: dict[str, float]) -> None:
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RunInterrupted, match="verigym reward-model --resume"):
        train_reward_model(small(warm_start, tmp_path / "part", pairs=pairs, epochs=2), on_step=interrupt)
    config = resumed(RewardModelConfig, tmp_path / "part")
    assert not (tmp_path / "part" / "model").exists()
    part = train_reward_model(config, resume=True)
    assert same(weights(part.model), weights(whole.model))
    assert RunFolder(part.folder).metrics() == RunFolder(whole.folder).metrics()
    assert part.report == whole.report


@pytest.mark.parametrize("step", [1, 4])
def test_a_killed_run_goes_on_from_its_last_checkpoint(warm_start: Path, tmp_path: Path, step: int) -> None:
    changes = {"envs": (SUMS,), "tasks": 24, "samples": 6, "epochs": 3, "batch_size": 8}
    whole = train_reward_model(small(warm_start, tmp_path / "whole", **changes))
    assert len(RunFolder(whole.folder).metrics()) > step

    def die(done: int, steps: int, metrics: dict[str, float]) -> None:
        if done == step:
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        train_reward_model(small(warm_start, tmp_path / "part", **changes), on_step=die)
    part = train_reward_model(resumed(RewardModelConfig, tmp_path / "part"), resume=True)
    assert same(weights(part.model), weights(whole.model))
    assert RunFolder(part.folder).metrics() == RunFolder(whole.folder).metrics()


def test_a_run_does_not_go_on_with_other_pairs(warm_start: Path, tmp_path: Path) -> None:
    pairs = sums(tmp_path / "pairs.jsonl", tasks=30)
    train_reward_model(small(warm_start, tmp_path / "run", pairs=pairs))
    sums(tmp_path / "pairs.jsonl", tasks=31)
    with pytest.raises(ConfigError, match="the data is not what the run"):
        train_reward_model(resumed(RewardModelConfig, tmp_path / "run"), resume=True)
    for changes in ({"lr": 1e-2}, {"batch_size": 8}, {"seed": 1}):
        with pytest.raises(ConfigError, match=r"was .* when the run .* began; of a run that goes on only"):
            train_reward_model(resumed(RewardModelConfig, tmp_path / "run", **changes), resume=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model is missing"),
        (["--model", "{model}"], "no data is given; name one of pairs, episodes, envs"),
        (["--model", "{model}", "--pairs", "x.jsonl", "--env", "a"], "both pairs and envs are given"),
        (["--model", "{model}", "--pairs", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "{model}", "--episodes", "nowhere"], "cannot read 'nowhere'"),
        (["--model", "{model}", "--env", "verigym/Sums-v0"], "no environment 'verigym/Sums-v0'"),
        (["--model", "nowhere/at/all", "--pairs", "x.jsonl"], "no model at 'nowhere/at/all'"),
        (["--model", "{model}", "--pairs", "x.jsonl", "--held-out", "1"], "held_out is a share"),
        (["--model", "{model}", "--pairs", "x.jsonl", "--lr", "0"], "lr must be above 0"),
        (["--model", "{model}", "--pairs", "x.jsonl", "--learning-rate", "1"], "unrecognized"),
        (["--resume", "nowhere"], "no run in 'nowhere'"),
    ],
)
def test_wrong_input_is_one_line_and_status_two(
    arguments: list[str], message: str, warm_start: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = [argument.format(model=warm_start) for argument in arguments]
    run = [] if "--resume" in arguments or not arguments else ["--run", str(tmp_path / "run")]
    assert main(["reward-model", *given, *run]) == 2
    error = capsys.readouterr().err
    assert message.lower() in error.lower()
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


# The verifier.


def answer(number: int) -> Submission:
    return Submission(f"\\boxed{{{number}}}")


def test_the_verifier_gives_what_the_model_gives(trained: Path) -> None:
    verifier = verifiers.make("reward_model", path=str(trained))
    verdicts = [verifier.verify(answer(number), TASK) for number in range(10)]
    assert verdicts[5].reward > 0.5 > np.median([verdict.reward for verdict in verdicts])
    for verdict in verdicts:
        score = verdict.components["score"]
        assert verdict.reward == pytest.approx(1 / (1 + math.exp(-score)))
        assert verdict.outcome is (Outcome.CORRECT if score > 0 else Outcome.WRONG)
    whole = [{"role": "user", "content": TASK.prompt}, said("\\boxed{5}")]
    played = verifier.verify(Submission("\\boxed{5}", whole), Task("other", "another prompt", "0"))
    assert played.reward == pytest.approx(verdicts[5].reward)
    heard = verifier.verify(Submission("\\boxed{5}", [*whole, {"role": "user", "content": "Thanks."}]), TASK)
    assert heard.reward == pytest.approx(verdicts[5].reward)
    verifier.close()


def test_calls_from_many_threads_are_judged_in_batches(trained: Path) -> None:
    verifier = verifiers.make("reward_model", path=str(trained))
    pairs = [(answer(number), TASK) for number in range(200)]
    at_once = verifier.verify_many(pairs)
    before = verifier._scorer.batcher.batches
    with ThreadPoolExecutor(32) as threads:
        one_by_one = list(threads.map(lambda pair: verifier.verify(*pair), pairs))
    assert [v.reward for v in one_by_one] == pytest.approx([v.reward for v in at_once], abs=1e-5)
    assert verifier._scorer.batcher.batches - before < 100
    assert verifier.verify_many([]) == []
    verifier.close()


@pytest.mark.parametrize(
    "text", ["", " ", "\x00", "\ud800", "{" * 5000, "</think>", "9" * 9999, "<tool_call>{", "<|im_end|>"]
)
def test_junk_is_a_verdict_between_zero_and_one(trained: Path, text: str) -> None:
    verifier = verifiers.make("reward_model", path=str(trained))
    verdict = verifier.verify(Submission(text), TASK)
    assert 0 <= verdict.reward <= 1
    assert verdict.reason
    if len(text) > 5000 or text == "\ud800":
        assert (verdict.reward, verdict.outcome) == (0.0, Outcome.UNPARSEABLE)
    verifier.close()


def test_one_at_a_time_is_the_same_to_the_bit_in_any_company(trained: Path) -> None:
    verifier = verifiers.make("reward_model", path=str(trained), batch_size=1)
    pairs = [(answer(number), TASK) for number in range(40)]
    alone = [verifier.verify(*pair) for pair in pairs]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda pair: verifier.verify(*pair), pairs)) == alone
    assert verifier.verify_many(pairs) == alone
    verifier.close()


def test_verifiers_of_one_folder_share_a_model_until_the_last_is_closed(trained: Path) -> None:
    one, two = (verifiers.make("reward_model", path=str(trained)) for _ in range(2))
    assert one._scorer is two._scorer
    one.close()
    one.close()
    assert one.verify(answer(5), TASK).outcome is Outcome.INFRA_ERROR
    assert [v.outcome for v in one.verify_many([(answer(5), TASK)] * 2)] == [Outcome.INFRA_ERROR] * 2
    assert two.verify(answer(5), TASK).outcome is not Outcome.INFRA_ERROR
    two.close()
    assert not reward_model._scorers


def test_closing_ends_what_waits(trained: Path) -> None:
    verifier = verifiers.make("reward_model", path=str(trained))
    with ThreadPoolExecutor(4) as threads, verifier._scorer._lock:  # the model is busy
        waiting = [threads.submit(verifier.verify, answer(number), TASK) for number in range(4)]
        while len(verifier._waiting) < 4:
            pass
        verifier.close()
        assert [future.result(timeout=10).reason for future in waiting] == ["the verifier was closed"] * 4


def test_an_error_of_the_model_is_ours(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verifier = verifiers.make("reward_model", path=str(trained))

    def fail(*_: object) -> None:
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(reward_model, "score", fail)
    for verdict in (verifier.verify(answer(5), TASK), *verifier.verify_many([(answer(5), TASK)] * 2)):
        assert verdict.outcome is Outcome.INFRA_ERROR
        assert verdict.reason == "the reward model failed: RuntimeError: out of memory"
    monkeypatch.setattr(reward_model, "score", lambda *_: np.array([math.nan]))
    assert verifier.verify(answer(5), TASK).outcome is Outcome.INFRA_ERROR
    monkeypatch.undo()
    assert verifier.verify(answer(5), TASK).outcome is not Outcome.INFRA_ERROR
    verifier.close()


def in_a_fork(judge: Callable[[], Verdict]) -> str:
    """The outcome and the reason of a verdict in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        verdict = judge()
        os.write(writing, f"{verdict.outcome.value}: {verdict.reason}".encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        return pipe.read()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_fork_needs_a_verifier_of_its_own(trained: Path) -> None:
    verifier = verifiers.make("reward_model", path=str(trained))
    expected = verifier.verify(answer(5), TASK)
    assert in_a_fork(lambda: verifier.verify(answer(5), TASK)).startswith(
        "infra_error: the reward model was loaded before"
    )
    anew = in_a_fork(lambda: verifiers.make("reward_model", path=str(trained)).verify(answer(5), TASK))
    assert anew == f"{expected.outcome.value}: {expected.reason}"
    verifier.close()


def test_an_environment_and_a_composite_take_it(trained: Path) -> None:
    parts = {"math": 1.0, "reward_model": {"weight": 1.0, "path": str(trained)}}
    env = gym.make("verigym/Arithmetic-v0", level=1, verifier="composite", verifier_options={"parts": parts})
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("\\boxed{-1}")
    assert terminated
    assert info["verdict"].outcome is Outcome.WRONG
    assert 0 < reward == info["verdict"].components["reward_model"] / 2 < 0.5
    env.close()
    assert not reward_model._scorers


def test_a_folder_without_a_reward_model_is_refused(warm_start: Path, tmp_path: Path) -> None:
    for path, message in ((warm_start, "is no scalar model"), (tmp_path, "no model at")):
        with pytest.raises(ConfigError, match=message):
            verifiers.make("reward_model", path=str(path))
    for options, message in (({"batch_size": 0}, "batch_size"), ({"device": "gpu"}, "device"), ({}, "path")):
        with pytest.raises(ConfigError, match=message):
            verifiers.make("reward_model", **({"path": str(warm_start)} | options if options else {}))
