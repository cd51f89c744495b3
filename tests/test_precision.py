"""Forwards in bfloat16 over float32 weights: what is rounded, and what must not be."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import PreTrainedModel

from verigym.agents.agent import save_checkpoint
from verigym.agents.episode import Episode, Turn
from verigym.agents.learners.batch import Sequences
from verigym.agents.learners.config import GRPOConfig, PPOConfig
from verigym.agents.learners.grpo import GRPO
from verigym.agents.learners.policy import PolicyLearner
from verigym.agents.learners.ppo import PPO
from verigym.agents.scalar import ScalarModel, load_scalar_model
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.config import TrainConfig, build
from verigym.run_folder import RunFolder
from verigym.run_models import load_policy
from verigym.training import train
from verigym.verifiers import Outcome, Verdict

VOCABULARY = 40
BF16 = torch.bfloat16


def make_model() -> PreTrainedModel:
    return tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=4, intermediate_size=48).eval()


def make_episodes() -> list[Episode]:
    """A group of four, of which one is right."""
    rng, episodes = np.random.default_rng(0), []
    for number, length in enumerate((9, 12, 7, 30)):
        mask, reward = np.arange(length) >= 3, float(number == 0)
        episodes.append(
            Episode(
                env_id="t",
                task_id="t",
                group_id=0,
                seed=0,
                token_ids=rng.integers(0, VOCABULARY, length),
                mask=mask,
                logprobs=np.where(mask, -3.7, 0).astype(np.float32),
                versions=np.where(mask, 0, -1),
                turns=(Turn(3, length, reward, "stop", limit=40),),
                messages=(),
                truncation=None,
                verdict=Verdict(reward, Outcome.CORRECT, "by hand"),
            )
        )
    return episodes


def make_learner(kind: str = "grpo", *, lr: float = 1e-3, autocast: torch.dtype | None = BF16) -> PolicyLearner:
    if kind == "grpo":
        return GRPO(make_model(), GRPOConfig(lr=lr), autocast=autocast)
    config = PPOConfig(lr=lr, critic_lr=lr, critic_warmup=0, epochs=1, minibatches=1)
    return PPO(make_model(), config, critic=ScalarModel(make_model().base_model), autocast=autocast)


def gradients(learner: PolicyLearner) -> dict[str, Tensor]:
    """Those of the policy in one update."""
    found: dict[str, Tensor] = {}

    def step() -> dict[str, float]:
        found.update({name: p.grad.clone() for name, p in learner.model.named_parameters()})
        return {"grad_norm": 0.0, "skipped": 0.0}

    learner.optimizer.step = step
    episodes = make_episodes()
    learner.update(episodes, learner.advantages(episodes))
    return found


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_the_gradient_in_bfloat16_is_near_that_in_float32_and_kept_in_float32(kind: str) -> None:
    rounded, exact = gradients(make_learner(kind)), gradients(make_learner(kind, autocast=None))
    assert all(gradient.dtype is torch.float32 for gradient in rounded.values())
    flat, expected = (torch.cat([g.flatten() for g in found.values()]) for found in (rounded, exact))
    assert 1e-4 < float((flat - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_layers_run_in_bfloat16_while_weights_optimizer_and_log_probabilities_are_float32(kind: str) -> None:
    learner, episodes, seen = make_learner(kind), make_episodes(), set()
    projection = learner.model.base_model.layers[0].mlp.up_proj
    projection.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    before = copy.deepcopy(learner.model.state_dict())
    learner.update(episodes, learner.advantages(episodes))
    assert seen == {BF16}
    states = [learner.optimizer, *([learner.critic_optimizer] if isinstance(learner, PPO) else [])]
    moments = [tensor for state in states for kept in state.adamw.state.values() for tensor in kept.values()]
    weights = learner.model.state_dict()
    assert {tensor.dtype for tensor in [*weights.values(), *moments]} == {torch.float32}
    assert not all(torch.equal(weights[name], before[name]) for name in before)
    (micro,) = Sequences.of(episodes).micro_batches(1000, torch.device("cpu"))
    logprobs, entropies = learner._scores(learner.model, micro, "gradient")
    assert logprobs.dtype is entropies.dtype is torch.float32
    if isinstance(learner, PPO):
        assert learner._judge(micro).dtype is torch.float32


def test_steps_below_the_resolution_of_bfloat16_add_up() -> None:
    learner, episodes = make_learner(lr=1e-7), make_episodes()
    weight, visible = learner.model.base_model.layers[0].mlp.up_proj.weight, []
    first = weight.detach().clone()
    large = first.abs() > 0.01  # where bfloat16 tells no two numbers apart that are nearer than 3e-5
    for _ in range(100):
        learner.update(episodes, learner.advantages(episodes))
        visible.append((weight.to(BF16) != first.to(BF16))[large].float().mean())
    moved = (weight - first).abs()[large].mean()
    assert visible[0] < 0.01
    assert 3e-6 < moved < 3e-5
    assert visible[-1] > 0.03


def test_a_checkpoint_in_bfloat16_is_learned_from_in_float32(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", make_model().to(BF16), tiny_tokenizer())
    assert {tensor.dtype for tensor in load_file(tmp_path / "model" / "model.safetensors").values()} == {BF16}
    config = run_config(tmp_path)
    policy = load_policy(config, RunFolder(config.run), "cpu", resume=False)
    critic = load_scalar_model(config.model, trained=False)
    assert {parameter.dtype for model in (policy, critic) for parameter in model.parameters()} == {torch.float32}


def run_config(folder: Path, **changes: object) -> TrainConfig:
    sums = {"id": "verigym/Arithmetic-v0", "kwargs": {"level": 1, "max_tokens_per_turn": 8}}
    # Untrained, it is never right: the entropy is what it learns from.
    settings = {"lr": 1e-4, "critic_warmup": 0, "entropy_coefficient": 0.01}
    values = {
        "model": str(folder / "model"),
        "run": str(folder / "run"),
        "envs": [sums],
        "steps": 2,
        "groups": 2,
        "group_size": 2,
        "learner": "ppo",
        "ppo": settings,
        "deterministic": True,
        "dtype": "bfloat16",
        "tensorboard": False,
    }
    return build(TrainConfig, values | changes)


def test_a_run_in_bfloat16_learns_and_leaves_float32_weights_and_state(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = tiny_model(len(tokenizer), hidden_size=32, layers=2, heads=4, intermediate_size=48)
    save_checkpoint(tmp_path / "model", model, tokenizer)
    run = train(run_config(tmp_path))
    rows = [row for row in run.metrics if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(math.isfinite(row["loss"]) and row["skipped_steps"] == 0 < row["grad_norm"] for row in rows)
    assert 0 < rows[0]["sampler_gap_mean"] < 0.1  # the engine's rounding is not the learner's
    weights = load_file(run.checkpoint / "model.safetensors")
    file = tmp_path / "learner.pt"
    dcp_to_torch_save(run.checkpoint / "learner", file)
    learner = torch.load(file, weights_only=True)
    moments = [
        tensor
        for name in ("optimizer", "critic_optimizer")
        for kept in learner[name]["moments"].values()
        for tensor in kept.values()
    ]
    assert {t.dtype for t in [*weights.values(), *moments, *learner["critic"].values()]} == {torch.float32}
    assert not torch.equal(weights["lm_head.weight"], model.lm_head.weight)
