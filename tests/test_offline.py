"""Policies that learn offline: DPO against hand-worked numbers and TRL, right episodes as they were sampled."""

import copy
import json
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from verigym.agents.agent import load_chat, load_model
from verigym.agents.attention import PackedLayout
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.episode import Episode, Truncation, Turn
from verigym.agents.learners.dpo import DPO
from verigym.agents.learners.pairs import Pair, written_episode
from verigym.agents.learners.preference import dpo_loss, implicit_rewards
from verigym.agents.tiny import tiny_model
from verigym.cli import main
from verigym.config import SFTConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.offline import dpo, rft, write_turns
from verigym.offline_config import DPOConfig, OfflineConfig, RFTConfig
from verigym.pairs import asked, read_episodes, right_episodes
from verigym.passes import resumed
from verigym.run_folder import RunFolder
from verigym.supervised import sft
from verigym.tasks.errors import ConfigError, RunError, TaskDataError
from verigym.verifiers import Outcome, Verdict

VOCABULARY = 24
SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1, "max_tokens_per_turn": 8})
CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24})
RUNS: list[tuple[Callable[..., Any], type[OfflineConfig]]] = [(dpo, DPOConfig), (rft, RFTConfig)]


@pytest.fixture(scope="module")
def stored(warm_start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with episodes of both environments."""
    folder = tmp_path_factory.mktemp("stored") / "run"
    return rft(small(RFTConfig, warm_start, folder, envs=(CALCULATOR, SUMS), tasks=60, samples=8)).folder


def small(kind: type[OfflineConfig], model: Path, run: Path, **changes: object) -> Any:
    values = {"model": str(model), "run": str(run), "lr": 3e-4, "batch_size": 8, "checkpoint_every": 2}
    return build(kind, values | changes)


def make_model(dtype: torch.dtype = torch.float64) -> Any:
    return tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=2, intermediate_size=48).to(dtype)


def make_pairs(count: int = 6) -> list[Pair]:
    """Pairs of unequal lengths; each answer has two turns, with words between them that are not the policy's."""
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(count):
        prompt = rng.integers(0, VOCABULARY, 3 + index).tolist()
        sides = []
        for _ in range(2):
            first, second = (int(n) for n in rng.integers(1, 6, 2))
            ids = prompt + rng.integers(0, VOCABULARY, first + 2 + second).tolist()
            sides.append(written_episode(ids, [False] * len(prompt) + [True] * first + [False] * 2 + [True] * second))
        pairs.append(Pair(*sides, question=str(prompt)))
    return pairs


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# DPO.


def test_the_loss_is_that_of_the_paper() -> None:
    chosen, rejected = torch.tensor([-3.0, -5.0]).requires_grad_(), torch.tensor([-4.0, -2.0]).requires_grad_()
    ref_chosen, ref_rejected = torch.tensor([-4.0, -5.0]), torch.tensor([-3.0, -4.0])
    # log-ratios 1 and -1, 0 and 2: -log sigmoid of .5 * 2 and .5 * -2
    losses = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.5)
    assert losses.tolist() == pytest.approx([0.313262, 1.313262], abs=1e-6)
    assert implicit_rewards(chosen, ref_chosen, beta=0.5).tolist() == [0.5, 0.0]
    losses.sum().backward()
    assert chosen.grad.tolist() == pytest.approx([-0.5 * 0.268941, -0.5 * 0.731059], abs=1e-6)
    assert rejected.grad.tolist() == pytest.approx([0.5 * 0.268941, 0.5 * 0.731059], abs=1e-6)
    same_as_reference = dpo_loss(ref_chosen, ref_rejected, ref_chosen, ref_rejected, beta=0.5)
    assert same_as_reference.tolist() == pytest.approx([math.log(2)] * 2)
    with pytest.raises(ValueError, match="shapes differ"):
        dpo_loss(chosen, rejected, ref_chosen[:1], ref_rejected, beta=0.5)


def trl_loss(logprobs: Tensor, mask: Tensor, ref: Tensor, beta: float) -> Tensor:
    """TRL's loss of a batch that is chosen then rejected; `logprobs` and `mask` are (2 P, T), `ref` is (P, 2)."""
    trl = pytest.importorskip("trl", reason="TRL is the oracle of this test: install verigym[dev]")
    if not trl.__version__.startswith("1.16."):
        pytest.skip(f"the stub follows TRL 1.16, not {trl.__version__}")
    from trl.trainer.dpo_trainer import DPOTrainer

    outputs = SimpleNamespace(
        log_probs=logprobs * mask,
        entropy=torch.zeros_like(logprobs),
        mean_logits=torch.zeros_like(logprobs),
        is_top1=mask.bool(),
    )
    stub = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=beta,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    shifted = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1).long()
    inputs = {
        "input_ids": torch.zeros_like(shifted),
        "attention_mask": torch.ones_like(shifted),
        "completion_mask": shifted,
        "ref_chosen_logps": ref[:, 0],
        "ref_rejected_logps": ref[:, 1],
    }
    return DPOTrainer._compute_loss(stub, lambda **_: outputs, inputs, False)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_the_loss_is_that_of_trl(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(8, 7, generator=generator, dtype=torch.float64) * 3
    mask = (torch.arange(7) < torch.tensor([7, 5, 6, 2, 7, 3, 1, 6])[:, None]).double()
    ref = -10 * torch.rand(4, 2, generator=generator, dtype=torch.float64)
    sums = (logprobs * mask).sum(1)
    ours = dpo_loss(sums[:4], sums[4:], ref[:, 0], ref[:, 1], beta=beta).mean()
    assert float(ours) == pytest.approx(float(trl_loss(logprobs, mask, ref, beta)), abs=1e-12)


def test_an_answers_log_probability_is_that_of_the_policys_tokens() -> None:
    learner, pair = DPO(make_model()), make_pairs(1)[0]
    expected = []
    for episode in (pair.chosen, pair.rejected):
        ids = torch.from_numpy(episode.token_ids)[None]
        layout = PackedLayout([ids.shape[1]])
        logits = learner.model(input_ids=ids, position_ids=layout.position_ids, layout=layout, use_cache=False).logits
        chosen = logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        expected.append(float(chosen[torch.from_numpy(episode.mask[1:])].sum().detach()))
    assert learner.logprobs([pair])[0].tolist() == pytest.approx(expected, abs=1e-6)


def gradients(learner: DPO, pairs: list[Pair]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def step() -> dict[str, float]:
        found.update({name: p.grad.clone() for name, p in learner.model.named_parameters() if p.grad is not None})
        learner.model.zero_grad()
        return {}

    learner.optimizer.step = step
    reference = np.random.default_rng(0).normal(-20, 3, (len(pairs), 2))
    named = {pair.question: row for pair, row in zip(make_pairs(), reference, strict=True)}
    learner.update(pairs, np.array([named[pair.question] for pair in pairs]))
    return found


def test_gradients_do_not_depend_on_micro_batches_or_order() -> None:
    pairs = make_pairs()
    whole = gradients(DPO(make_model(), beta=0.5), pairs)
    assert max(float(gradient.abs().max()) for gradient in whole.values()) > 1e-3
    for size, order in ((50, range(6)), (50, (3, 1, 5, 0, 4, 2)), (1, (5, 4, 3, 2, 1, 0))):
        cut = gradients(DPO(make_model(), beta=0.5, tokens_per_forward=size), [pairs[i] for i in order])
        assert whole.keys() == cut.keys()
        for name, gradient in whole.items():
            assert float((gradient - cut[name]).abs().max()) <= 1e-12 * max(float(gradient.abs().max()), 1e-3), name


def test_words_that_are_not_the_policys_have_no_say() -> None:
    learner, pair = DPO(make_model()), make_pairs(1)[0]
    reference = learner.logprobs([pair])
    first = learner.update([pair], reference)
    assert (first["loss"], first["margin"], first["accuracy"]) == (pytest.approx(math.log(2)), pytest.approx(0), 0.5)
    last = replace(pair.chosen, mask=np.where(np.arange(len(pair.chosen.mask)) < 4, pair.chosen.mask, False))
    assert learner.logprobs([replace(pair, chosen=last)])[0, 0] > learner.logprobs([pair])[0, 0]


def test_dpo_comes_to_prefer_the_chosen_answers_and_is_held_by_beta() -> None:
    moved = {}
    for beta in (0.1, 5.0):
        learner, pairs = DPO(make_model(torch.float32), beta=beta, lr=1e-3), make_pairs()
        reference = learner.logprobs(pairs)
        for _ in range(30):
            metrics = learner.update(pairs, reference)
        assert metrics["accuracy"] == 1.0
        assert metrics["loss"] < math.log(2)
        assert (learner.margins(pairs, reference) > 0).all()
        moved[beta] = float(np.abs(learner.logprobs(pairs) - reference).mean())
    assert moved[5.0] < moved[0.1]


def test_a_restored_learner_goes_on_to_the_bit() -> None:
    one, pairs = DPO(make_model(torch.float32), lr=1e-3), make_pairs()
    reference = one.logprobs(pairs)
    one.update(pairs, reference)
    other = DPO(make_model(torch.float32), lr=1e-3)
    other.model.load_state_dict(one.model.state_dict())
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    assert one.update(pairs, reference) == other.update(pairs, reference)
    assert same(one.model.state_dict(), other.model.state_dict())


def test_a_written_pair_has_the_tokens_of_a_played_one(warm_start: Path, stored: Path) -> None:
    _, chat = load_chat(warm_start)
    sums = [e for e in read_episodes([str(stored)]) if e.env_id == SUMS.id and e.terminated]
    assert len(sums) > 20
    alike = 0
    for episode in sums:
        prompt = asked(episode)
        written = write_turns(chat, prompt, episode.messages[len(prompt) :])
        assert (
            written.token_ids[: written.mask.argmax()].tolist() == episode.token_ids[: episode.mask.argmax()].tolist()
        )
        alike += written.token_ids.tolist() == episode.token_ids.tolist()
    assert alike > len(sums) / 2  # the others were sampled in tokens that the tokenizer would not choose


def test_what_was_heard_between_two_turns_is_not_learned(warm_start: Path) -> None:
    tokenizer, chat = load_chat(warm_start)
    answer = [
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "two"},
    ]
    written = write_turns(chat, [{"role": "user", "content": "count"}], answer)
    own = tokenizer.decode(written.token_ids[written.mask])
    assert own == "one<|im_end|>two<|im_end|>"
    assert "and?" in tokenizer.decode(written.token_ids[~written.mask])


# Right episodes.


def played(task: str, outcome: Outcome, token: int, truncation: Truncation | None = None) -> Episode:
    messages = ({"role": "user", "content": task}, {"role": "assistant", "content": str(token)})
    return replace(
        written_episode([1, ord(task), 3, token], [False, False, True, True], task),
        messages=messages,
        turns=(Turn(2, 4, 0.0, "stop", limit=8),),
        truncation=truncation,
        verdict=Verdict(float(outcome is Outcome.CORRECT), outcome, "by hand"),
    )


def test_right_episodes_are_kept_once_each_and_evenly_by_task() -> None:
    right = Outcome.CORRECT
    episodes = [
        *[played("a", right, token) for token in (5, 5, 6, 7, 8)],
        played("a", Outcome.WRONG, 9),
        played("b", right, 5),
        played("b", right, 6, Truncation.TOKENS),
        played("c", Outcome.UNPARSEABLE, 5),
    ]
    kept = right_episodes(episodes, 10, seed=0)
    assert sorted((e.task_id, int(e.token_ids[-1])) for e in kept) == [("a", 5), ("a", 6), ("a", 7), ("a", 8), ("b", 5)]
    assert [e.task_id for e in right_episodes(episodes, 2, seed=0)] == ["a", "a", "b"]


def test_forks_count_among_the_right_episodes_of_their_task() -> None:
    whole = [played("a", Outcome.CORRECT, token) for token in (5, 6)]
    before = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "5"}, {"role": "tool", "content": "3"})
    forks = [replace(played("a", Outcome.CORRECT, token), forked_turn=1) for token in (7, 8)]
    forks = [replace(fork, messages=(*before, fork.messages[-1])) for fork in forks]
    assert len(right_episodes([*whole, *forks], 2, seed=0)) == 2


def likelihood(model: Path, episodes: list[Episode]) -> float:
    """The mean log-probability of the policy's tokens."""
    scores = TransformersEngine(load_model(model)).score([episode.token_ids.tolist() for episode in episodes])
    own = [score[episode.mask[1:]] for score, episode in zip(scores, episodes, strict=True)]
    return float(np.concatenate(own).mean())


def test_what_is_learned_are_the_tokens_as_they_were_sampled(warm_start: Path, stored: Path, tmp_path: Path) -> None:
    seen: list[Episode] = []
    config = small(RFTConfig, warm_start, tmp_path / "run", episodes=(str(stored),), epochs=2, episodes_per_task=2)
    from verigym import offline

    update = offline._Resumable.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(offline._Resumable, "update", lambda self, batch: seen.extend(batch) or update(self, batch))
        run = rft(config)
    stored_ids = {
        tuple(e.token_ids.tolist()) for e in read_episodes([str(stored)]) if e.verdict.outcome is Outcome.CORRECT
    }
    ids = [tuple(e.token_ids.tolist()) for e in seen]
    assert set(ids) <= stored_ids
    assert len(ids) == 2 * len(set(ids)) == 2 * run.report["learned"]
    assert likelihood(RunFolder(run.folder).latest(), seen) > likelihood(warm_start, seen) + 0.01


def test_episodes_of_another_tokenizer_are_refused(warm_start: Path, stored: Path, tmp_path: Path) -> None:
    sft(SFTConfig(envs=(SUMS,), output=str(tmp_path / "other"), steps=1, batch_size=4, demonstrations=32))
    for kind, learn in ((RFTConfig, rft), (DPOConfig, dpo)):
        with pytest.raises(ConfigError, match="played with another tokenizer"):
            learn(small(kind, tmp_path / "other", tmp_path / "run", episodes=(str(stored),)))
        assert not (tmp_path / "run").exists()


# Runs.


@pytest.mark.parametrize(("learn", "kind"), RUNS)
@pytest.mark.parametrize("step", [1, 3])
def test_a_killed_run_goes_on_to_the_bit(
    learn: Callable[..., Any], kind: type[OfflineConfig], step: int, warm_start: Path, stored: Path, tmp_path: Path
) -> None:
    changes = {"episodes": (str(stored),), "epochs": 3}
    whole = learn(small(kind, warm_start, tmp_path / "whole", **changes))
    assert len(RunFolder(whole.folder).metrics()) > step
    assert not same(weights(whole.model), weights(warm_start))

    def die(done: int, steps: int, metrics: dict[str, float]) -> None:
        if done == step:
            raise OSError("killed")

    with pytest.raises(OSError, match="killed"):
        learn(small(kind, warm_start, tmp_path / "part", **changes), on_step=die)
    part = learn(resumed(kind, tmp_path / "part"), resume=True)
    assert same(weights(part.model), weights(whole.model))
    assert RunFolder(part.folder).metrics() == RunFolder(whole.folder).metrics()
    assert part.report == whole.report


def test_dpo_learns_what_holds_for_pairs_that_it_has_not_seen(warm_start: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n} + 1?", "chosen": f"\\boxed{{{n + 1}}}", "rejected": f"{n + 1}"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = dpo(small(DPOConfig, warm_start, tmp_path / "run", pairs=str(path), epochs=2, held_out=0.25))
    assert (run.report["held_out"]["pairs"], run.report["held_out"]["accuracy"]) == (10, 1.0)
    assert run.report["held_out"]["log_loss"] < math.log(2)
    first = RunFolder(run.folder).metrics()[0]
    assert (first["loss"], first["margin"]) == (pytest.approx(math.log(2)), pytest.approx(0, abs=1e-5))


def test_the_commands_train_and_say_where_the_model_is(
    warm_start: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{n} + 1?", "chosen": f"\\boxed{{{n + 1}}}", "rejected": "\\boxed{0}"} for n in range(8)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, common = str(tmp_path / "run"), ["--model", str(warm_start), "--run"]
    assert main(["dpo", *common, run, "--pairs", str(pairs), "--batch-size", "4", "--epochs", "2"]) == 0
    assert f"model {run}/model" in capsys.readouterr().out
    assert main(["dpo", "--resume", run, "--epochs", "3"]) == 0
    assert [row["step"] for row in RunFolder(run).metrics()] == [1, 2, 3, 4, 5, 6]
    capsys.readouterr()
    for arguments, message in (
        (["dpo", *common, run, "--pairs", str(pairs)], "holds a run already"),
        (["dpo", "--resume", run, "--epochs", "1"], "has done 6 steps already"),
        (["dpo", *common, f"{run}2", "--pairs", str(pairs), "--beta", "0"], "beta must be above 0"),
        (["rft", *common, f"{run}2", "--pairs", str(pairs)], "no field of verigym rft named 'pairs'"),
        (["rft", *common, f"{run}2", "--episodes", str(pairs)], "row 1 is no episode"),
        (["rft", *common, f"{run}2", "--episodes", str(tmp_path)], "is no run with episodes"),
        (["rft", "--resume", run], "no field of config.yaml named"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_episodes_that_cannot_be_judged_stop_a_run(warm_start: Path, tmp_path: Path) -> None:
    broken = replace(SUMS, kwargs={**SUMS.kwargs, "verifier": "reasoning_gym"})
    with pytest.raises(RunError, match="episodes could not be judged"):
        rft(small(RFTConfig, warm_start, tmp_path / "run", envs=(broken,), tasks=4, samples=2))
    never = replace(SUMS, kwargs={"level": 5, "max_tokens_per_turn": 2})
    with pytest.raises(ConfigError, match="none of 8 episodes is right"):
        rft(small(RFTConfig, warm_start, tmp_path / "run", envs=(never,), tasks=4, samples=2))


def test_files_of_episodes_name_the_row_that_is_none(stored: Path, tmp_path: Path) -> None:
    episodes = read_episodes([str(stored)])
    path = tmp_path / "episodes.jsonl"
    path.write_text("".join(json.dumps(e.to_json()) + "\n" for e in episodes[:3]) + "{}\n")
    with pytest.raises(TaskDataError, match=r"episodes.jsonl: row 4 is no episode \(KeyError"):
        read_episodes([str(path)])
