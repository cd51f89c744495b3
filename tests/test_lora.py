"""Adapters: what learns, what the reference is, what the engine and a checkpoint get."""

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from verigym.agents.agent import load_model, save_checkpoint
from verigym.agents.attention import install
from verigym.agents.engines.sync import WeightSync
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.episode import Episode, Turn
from verigym.agents.learners import scoring
from verigym.agents.learners.batch import Sequences
from verigym.agents.learners.config import GRPOConfig, LoRAConfig, PPOConfig
from verigym.agents.learners.grpo import GRPO
from verigym.agents.learners.policy import PolicyLearner
from verigym.agents.learners.ppo import PPO
from verigym.agents.lora import Weight, adapter_off, add_adapter, checkpoint_weights, has_adapter, load_adapter
from verigym.agents.scalar import ScalarModel
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.config import TrainConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.run_folder import RunFolder
from verigym.tasks.errors import ConfigError, SyncError, UnknownNameError
from verigym.training import resume, train
from verigym.verifiers import Outcome, Verdict

peft = pytest.importorskip("peft", reason="the extra lora is not installed")

VOCABULARY = 40
RANK_4 = LoRAConfig(rank=4, alpha=8)
SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1, "max_tokens_per_turn": 8})


def base_model(*, tied: bool = False) -> Qwen3ForCausalLM:
    model = tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=4, intermediate_size=48)
    if tied:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Qwen3ForCausalLM(Qwen3Config(**{**model.config.to_dict(), "tie_word_embeddings": True}))
    move(model, 0.1)  # so that the scores depend on every weight
    return model.eval()


def adapted_model(*, tied: bool = False, learned: bool = True, config: LoRAConfig = RANK_4) -> Qwen3ForCausalLM:
    """One with an adapter; that has `learned` if it is no longer zero."""
    model = base_model(tied=tied)
    add_adapter(model, config, seed=1)
    if learned:
        move(model, 0.1)
    return model


def move(model: torch.nn.Module, size: float) -> None:
    """A change of all that learns."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def make_episodes() -> list[Episode]:
    """Two groups of three, with rewards that differ."""
    rng, episodes = np.random.default_rng(0), []
    for number, length in enumerate((9, 12, 7, 11, 8, 13)):
        group, mask = number // 3, np.arange(length) >= 3
        ids = rng.integers(0, VOCABULARY, length)
        ids[:3] = group
        episodes.append(
            Episode(
                env_id="t",
                task_id=str(group),
                group_id=group,
                seed=0,
                token_ids=ids,
                mask=mask,
                logprobs=np.where(mask, -3.0, 0).astype(np.float32),
                versions=np.where(mask, 0, -1),
                turns=(Turn(3, length, float(number % 3 == 0), "stop", limit=20),),
                messages=(),
                truncation=None,
                verdict=Verdict(float(number % 3 == 0), Outcome.CORRECT, "by hand"),
            )
        )
    return episodes


def make_learner(kind: str, model: Qwen3ForCausalLM, **settings: object) -> PolicyLearner:
    if kind == "grpo":
        return GRPO(model, GRPOConfig(lr=1e-2, **settings))
    critic = ScalarModel(base_model().base_model)
    return PPO(model, PPOConfig(lr=1e-2, critic_warmup=0, **settings), critic=critic)


def logprobs(model: torch.nn.Module) -> torch.Tensor:
    """Of the policy tokens, as every learner computes them."""
    install(model)
    (micro,) = Sequences.of(make_episodes()).micro_batches(1000, torch.device("cpu"))
    with torch.no_grad():
        return scoring.score_tokens(model, micro, 1.0)[0]


@pytest.mark.parametrize("max_logits", [2**24, 5 * VOCABULARY], ids=["whole", "chunked"])
def test_a_model_with_its_adapter_off_is_the_base_model_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, max_logits: int
) -> None:
    monkeypatch.setattr(scoring, "MAX_LOGITS", max_logits)
    model = adapted_model()
    with adapter_off(model):
        assert torch.equal(logprobs(model), logprobs(base_model()))
    assert not torch.allclose(logprobs(model), logprobs(base_model()), atol=1e-2)


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_only_the_adapter_learns_and_the_kl_to_the_base_model_begins_at_exactly_zero(kind: str) -> None:
    model, episodes = adapted_model(learned=False), make_episodes()
    before = copy.deepcopy(model.state_dict())
    learner = make_learner(kind, model, kl_coefficient=0.1, minibatches=1)
    kl = [learner.update(episodes, learner.advantages(episodes))["kl"] for _ in range(2)]
    assert kl[0] == 0 < kl[1]
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    adapter = {name for name in before if ".lora_" in name}
    assert len(adapter) == 2 * 2 * 7
    assert moved == adapter
    assert {id(p) for p in learner.optimizer.adamw.state} == {id(p) for n, p in model.named_parameters() if n in moved}


def test_a_kl_to_the_reference_needs_no_second_model_and_takes_none() -> None:
    with pytest.raises(ConfigError, match="a model with an adapter is its own"):
        GRPO(adapted_model(), GRPOConfig(kl_coefficient=0.1), reference=base_model())
    with pytest.raises(ConfigError, match="a model with an adapter is its own"):
        GRPO(base_model(), GRPOConfig(kl_coefficient=0.1))


def test_the_adapter_depends_on_the_seed_alone_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    one, two = adapted_model(learned=False).state_dict(), adapted_model(learned=False).state_dict()
    assert torch.equal(torch.rand(1), expected)
    other = base_model()
    add_adapter(other, RANK_4, seed=2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], tensor) for name, tensor in other.state_dict().items())


# What the engine gets.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("learned", [False, True])
def test_an_engine_without_adapters_follows_every_weight_and_every_adapter(
    learned: bool, tied: bool, dtype: torch.dtype
) -> None:
    sync = make_sync(adapted_model(tied=tied, learned=learned), dtype)
    before = copy.deepcopy(sync.model.state_dict())
    assert sync.prove_each() == ()
    assert all(torch.equal(tensor, before[name]) for name, tensor in sync.model.state_dict().items())
    move(sync.model, 0.05)
    assert sync.send(1).proven


def make_sync(model: Qwen3ForCausalLM, dtype: torch.dtype = torch.float32) -> WeightSync:
    install(model)
    tied = bool(model.config.tie_word_embeddings)
    sync = WeightSync(model, TransformersEngine(base_model(tied=tied).to(dtype)))
    sync.start(0)
    return sync


class Unmerged(Weight):
    """One whose adapter is forgotten on the way."""

    def value(self) -> torch.Tensor:
        return self.tensor


def test_the_proof_names_the_weight_whose_adapter_the_engine_does_not_get() -> None:
    sync = make_sync(adapted_model(learned=False))
    name = "model.layers.1.mlp.up_proj.weight"
    (index,) = [i for i, weight in enumerate(sync.weights) if weight.name == name]
    weight = sync.weights[index]
    sync.weights[index] = Unmerged(name, weight.tensor, weight.layer)
    with pytest.raises(SyncError, match=f"does not follow the tensor '{name}'"):
        sync.prove_each()


def test_the_engine_gets_each_weight_of_the_checkpoint_once_by_its_own_name() -> None:
    weights = checkpoint_weights(adapted_model())
    shapes = {weight.name: weight.value().shape for weight in weights}
    assert len(shapes) == len(weights)
    assert shapes == {name: parameter.shape for name, parameter in base_model().named_parameters()}


# What a checkpoint holds.


@pytest.mark.parametrize("tied", [False, True])
def test_a_checkpoint_is_merged_and_loads_without_peft(tmp_path: Path, tied: bool) -> None:
    model = adapted_model(tied=tied)
    save_checkpoint(tmp_path, model, tiny_tokenizer())
    loaded = load_model(tmp_path)
    assert not has_adapter(loaded)
    assert loaded.state_dict().keys() == base_model(tied=tied).state_dict().keys()
    assert torch.allclose(logprobs(loaded), logprobs(model), atol=1e-5)
    assert not torch.allclose(logprobs(loaded), logprobs(base_model(tied=tied)), atol=1e-2)


def test_the_adapter_beside_a_checkpoint_comes_back_to_the_bit_here_and_in_peft(tmp_path: Path) -> None:
    model = adapted_model()
    save_checkpoint(tmp_path, model, tiny_tokenizer())
    again = adapted_model(learned=False)
    load_adapter(again, tmp_path / "adapter")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in again.state_dict().items())
    theirs = peft.PeftModel.from_pretrained(base_model(), str(tmp_path / "adapter")).get_base_model()
    assert torch.equal(logprobs(theirs), logprobs(model))


# Settings.


def test_named_layers_alone_get_an_adapter() -> None:
    model = adapted_model(config=LoRAConfig(rank=2, targets=("q_proj", "down_proj")))
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert adapted == {"q_proj", "down_proj"}


@pytest.mark.parametrize("target", ["q_porj", "lm_head", "embed_tokens"])
def test_a_layer_that_cannot_have_an_adapter_is_named(target: str) -> None:
    with pytest.raises(UnknownNameError, match=f"no linear layer of model type 'qwen3' named '{target}'"):
        add_adapter(base_model(), LoRAConfig(rank=2, targets=("q_proj", target)), seed=0)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"lora needs peft, which is missing: pip install 'verigym\[lora\]'"):
        add_adapter(base_model(), RANK_4, seed=0)


# Runs.


def small(model: Path, run: Path, learner: str, **changes: object) -> TrainConfig:
    settings = {"lr": 3e-3, "kl_coefficient": 0.01}
    ppo = {"critic_lr": 1e-3, "critic_warmup": 0, "minibatches": 2}
    values = {
        "model": str(model),
        "run": str(run),
        "envs": (SUMS,),
        "steps": 3,
        "groups": 4,
        "group_size": 4,
        "learner": learner,
        "grpo": settings,
        "ppo": settings | ppo,
        "lora": {"rank": 4},
        "deterministic": True,
        "checkpoint_every": 1,
        "eval_every": 3,
        "eval_tasks": 8,
        "tensorboard": False,
    }
    return build(TrainConfig, values | changes)


def figures(run: Path) -> list[dict[str, object]]:
    """Metrics without wall-clock figures."""
    rows = RunFolder(run).metrics()
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def same_files(runs: Sequence[Path], name: str) -> bool:
    one, other = (load_file(RunFolder(run).latest() / name) for run in runs)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("learner", ["grpo", "ppo"])
def test_a_run_with_an_adapter_that_stopped_and_went_on_equals_one_that_did_not(
    warm_start: Path, tmp_path: Path, learner: str
) -> None:
    whole = train(small(warm_start, tmp_path / "whole", learner))
    train(small(warm_start, tmp_path / "half", learner, steps=2))
    stopped = load_file(RunFolder(tmp_path / "half").latest() / "adapter" / "adapter_model.safetensors")
    assert any(tensor.any() for name, tensor in stopped.items() if "lora_B" in name)  # there is something to go on from
    resume(tmp_path / "half", steps=3)
    runs = (whole.folder, tmp_path / "half")
    rows = [[row for row in figures(run) if "loss" in row] for run in runs]
    assert rows[0] == rows[1]
    assert all(same_files(runs, name) for name in ("model.safetensors", "adapter/adapter_model.safetensors"))
    assert rows[0][0]["kl"] == 0 < rows[0][-1]["kl"]
    with pytest.raises(ConfigError, match=r"the run began with lora LoRAConfig\(rank=4"):
        resume(tmp_path / "half", steps=4, lora=LoRAConfig(rank=8))
    whole.save_pretrained(tmp_path / "export")
    assert not (tmp_path / "export" / "adapter").exists()
    exported, best = (load_model(path).state_dict() for path in (tmp_path / "export", whole.checkpoint))
    assert all(torch.equal(exported[name], best[name]) for name in best)
