"""Learns on one rank and on all: `torchrun --nproc-per-node 2 sharded_learners.py RESULTS`, a file of `torch.save`.

For each case, by name: what a learner on one device has after each update, and what one over all ranks has.
"""

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from verigym.agents.episode import Episode, Truncation, Turn
from verigym.agents.learners import scoring
from verigym.agents.learners.config import GRPOConfig, LoRAConfig, PPOConfig
from verigym.agents.learners.grpo import GRPO
from verigym.agents.learners.policy import PolicyLearner
from verigym.agents.learners.ppo import PPO
from verigym.agents.learners.sharding import ALONE, Ranks
from verigym.agents.lora import add_adapter
from verigym.agents.scalar import ScalarModel
from verigym.agents.shards import whole
from verigym.agents.tiny import tiny_model
from verigym.verifiers import Outcome, Verdict

VOCABULARY = 40

# the settings of a learner, and what is special about its episodes or its model
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    # Three or four packs of a minibatch: the ranks have different numbers of them.
    "grpo": (GRPOConfig(lr=1e-3, minibatches=2, kl_coefficient=0.1, tokens_per_forward=25), {}),
    "means over episodes": (GRPOConfig(lr=1e-3, reduction="grpo", loss="gspo", entropy_coefficient=0.01), {}),
    "adaptive": (GRPOConfig(lr=1e-3, kl_coefficient=0.1, kl_control="adaptive", lr_schedule="linear"), {}),
    "logits in chunks": (GRPOConfig(lr=1e-3, tokens_per_forward=25), {"max_logits": 5 * VOCABULARY}),
    "recomputed": (GRPOConfig(lr=1e-3, gradient_checkpointing=True), {}),
    "tied": (GRPOConfig(lr=1e-3), {"tied": True}),
    # One episode has a loss: a rank has no pack at all.
    "one episode": (GRPOConfig(lr=1e-3, overlong="mask"), {"episodes": [0, 1], "overlong": 1}),
    "no episode": (GRPOConfig(lr=1e-3), {"episodes": [1, 2]}),
    # The gradient of one rank is not finite: no rank takes the step. A third one in a row would end the run.
    "not finite": (GRPOConfig(lr=1e-3), {"infinite": 1, "updates": 2}),
    "adapter": (GRPOConfig(lr=1e-3, kl_coefficient=0.1), {"adapter": True}),
    "ppo": (PPOConfig(lr=1e-3, critic_lr=1e-3, critic_warmup=1, kl_coefficient=0.1, tokens_per_forward=25), {}),
    "ppo by turns": (PPOConfig(lr=1e-3, critic_lr=1e-3, critic_warmup=0, minibatches=1, credit="turn"), {}),
}


def make_model(*, tied: bool = False, adapter: bool = False) -> PreTrainedModel:
    model: PreTrainedModel = tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=4, intermediate_size=48)
    if tied:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Qwen3ForCausalLM(Qwen3Config(**{**model.config.to_dict(), "tie_word_embeddings": True}))
    if adapter:
        add_adapter(model, LoRAConfig(rank=4, alpha=8), seed=1)
    return model.eval()


def make_episodes(*, overlong: int | None = None) -> list[Episode]:
    """Three groups of four, of different lengths and returns."""
    rng, episodes = np.random.default_rng(0), []
    for number in range(12):
        length = 6 + int(rng.integers(0, 9))
        ids, mask = rng.integers(0, VOCABULARY, length), np.arange(length) >= 3
        ids[:3] = group = number // 4
        reward = float(number % 3 == 0)
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
                turns=(Turn(3, length, reward, "stop", limit=20),),
                messages=(),
                truncation=Truncation.TOKENS if number == overlong else None,
                verdict=Verdict(reward, Outcome.CORRECT, "by hand"),
            )
        )
    return episodes


def learn(
    settings: Any,
    ranks: Ranks,
    *,
    updates: int = 3,
    max_logits: int = 2**24,
    episodes: list[int] | None = None,
    infinite: int | None = None,
    **special: Any,
) -> list[dict[str, Any]]:
    """What the learner is and says after each update."""
    scoring.MAX_LOGITS = max_logits
    shapes = {name: special.pop(name) for name in ("tied", "adapter") if name in special}
    model = make_model(**shapes)
    played = make_episodes(**special)
    batch = played if episodes is None else [played[i] for i in episodes]
    options: dict[str, Any] = {"steps": updates, "ranks": ranks}
    if settings.kl_coefficient > 0 and "adapter" not in shapes:
        options["reference"] = copy.deepcopy(model).requires_grad_(False)
    learner: PolicyLearner
    if isinstance(settings, PPOConfig):
        learner = PPO(model, settings, critic=ScalarModel(make_model().base_model), **options)
    else:
        learner = GRPO(model, settings, **options)
    found = []
    for _ in range(updates):
        advantages = learner.advantages(batch)
        if infinite is not None:
            advantages[infinite] = np.float64(np.inf)
        metrics = learner.update(batch, advantages)
        columns = [learner.columns.get(episode, {}) for episode in batch]
        networks = {"policy": learner.model, "critic": getattr(learner, "critic", None)}
        weights = {
            f"{kind} {name}": whole(parameter.detach()).clone()
            for kind, network in networks.items()
            for name, parameter in (network.named_parameters() if network else ())
        }
        found.append({"metrics": metrics, "columns": columns, "weights": weights})
    return found


def main(results: str) -> None:
    dist.init_process_group("gloo")
    ranks = Ranks(init_device_mesh("cpu", (dist.get_world_size(),)))
    make: Callable[..., list[dict[str, Any]]] = learn
    found = {}
    for name, (settings, special) in CASES.items():
        many = make(settings, ranks, **special)
        if ranks.rank == 0:
            found[name] = {"one": make(settings, ALONE, **special), "many": many}
    if ranks.rank == 0:
        torch.save(found, results)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
