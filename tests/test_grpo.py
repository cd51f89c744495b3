"""The GRPO learner against a naive loop over episodes, and what it must leave alone."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM, PreTrainedModel

from verigym.agents.attention import AttentionInterface, attention
from verigym.agents.engines.engine import Request, Sampling
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.episode import Episode, Truncation, Turn
from verigym.agents.learners.batch import MicroBatch, Sequences, check_packing, packed_logits
from verigym.agents.learners.config import GRPOConfig
from verigym.agents.learners.grpo import GRPO
from verigym.agents.learners.losses import token_logprobs
from verigym.agents.learners.sft import SFT
from verigym.agents.tiny import tiny_model
from verigym.tasks.errors import ConfigError, EngineError, RunError
from verigym.verifiers.verdict import Outcome, Verdict

VOCABULARY = 24
MAX_POLICY_TOKENS = 10
CPU = torch.device("cpu")
REWARDS = ((1.0, 0.0, 0.25, 0.0), (0.0, 0.0, 1.0), (0.5, 0.5), (1.0, 0.0))


def make_model(seed: int = 0) -> PreTrainedModel:
    model = tiny_model(VOCABULARY, seed=seed, hidden_size=32, layers=2, heads=4, intermediate_size=48)
    return spread(model, seed)


def double_model(seed: int = 0) -> PreTrainedModel:
    """A model whose forward is in float64 throughout (the norms of Qwen and Llama compute in float32)."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PhiForCausalLM(PhiConfig(vocab_size=VOCABULARY, **shape, **ends, **dropout))
    return spread(model.double(), seed)


def spread(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Weights so large that every token matters to the logits."""
    generator = torch.Generator().manual_seed(seed + 100)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.15)
    return model.eval()


def make_episode(
    group: int, reward: float, seed: int, *, prompt: Sequence[int] | None = None, outcome: Outcome = Outcome.CORRECT
) -> Episode:
    """One to three turns of the policy between a prompt and the environment's tokens."""
    rng = np.random.default_rng([group, seed])
    ids = list(np.random.default_rng(group).integers(0, VOCABULARY, 3 + group)) if prompt is None else list(prompt)
    mask, turns = [0] * len(ids), []
    for _ in range(int(rng.integers(1, 4))):
        start, own, others = len(ids), int(rng.integers(1, 4)), int(rng.integers(1, 4))
        ids += rng.integers(0, VOCABULARY, own + others).tolist()
        mask += [1] * own + [0] * others
        turns.append(Turn(start, start + own, reward / 4, "stop", limit=10))
    turns[-1] = replace(turns[-1], reward=reward - sum(turn.reward for turn in turns[:-1]))
    policy = np.array(mask, np.bool_)
    return Episode(
        env_id="test",
        task_id=str(group),
        group_id=group,
        seed=0,
        token_ids=np.array(ids, np.int64),
        mask=policy,
        logprobs=np.where(policy, rng.normal(-3, 0.2, len(ids)), 0).astype(np.float32),
        versions=np.where(policy, 0, -1),
        turns=tuple(turns),
        messages=(),
        truncation=None,
        verdict=Verdict(math.nan if outcome is Outcome.INFRA_ERROR else reward, outcome, "by hand"),
    )


def without_policy_tokens(episode: Episode) -> Episode:
    return replace(episode, mask=np.zeros_like(episode.mask))


def make_batch() -> list[Episode]:
    """Groups of unlike rewards, one of equal ones, one member with another prompt, in mixed order."""
    episodes = [make_episode(g, r, i) for g, rewards in enumerate(REWARDS) for i, r in enumerate(rewards)]
    episodes[1] = make_episode(0, 0.0, 9, prompt=[1, 2, 3, 4, 5, 6, 7])
    return [episodes[i] for i in np.random.default_rng(0).permutation(len(episodes))]


class Recorder:
    """Keeps the gradient and the weights of each step before it passes the step on."""

    def __init__(self, learner: GRPO, *, step: bool) -> None:
        self.learner, self.optimizer_step, self.take = learner, learner.optimizer.step, step
        learner.optimizer.step = self.step
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []

    def step(self) -> dict[str, float]:
        named = dict(self.learner.model.named_parameters())
        self.gradients.append({n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named.items()})
        self.weights.append({name: parameter.detach().clone() for name, parameter in named.items()})
        if self.take:
            return self.optimizer_step()
        self.learner.model.zero_grad()
        return {"grad_norm": 1.0, "skipped": 0.0}


def make_learner(model: PreTrainedModel, *, temperature: float = 0.7, **settings: object) -> GRPO:
    config = GRPOConfig(**{"lr": 1e-2, **settings})
    reference = None
    if config.kl_coefficient:
        reference = spread(copy.deepcopy(model), 7).requires_grad_(False)
    return GRPO(model, config, reference=reference, temperature=temperature, max_policy_tokens=MAX_POLICY_TOKENS)


def gradient(model: PreTrainedModel, episodes: Sequence[Episode], **settings: object) -> dict[str, Tensor]:
    learner = make_learner(copy.deepcopy(model), **settings)
    recorder = Recorder(learner, step=False)
    learner.update(episodes, learner.advantages(episodes))
    (only,) = recorder.gradients
    return only


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest relative difference of two gradients, tensor by tensor."""
    assert one.keys() == other.keys()
    scale = max(float(value.norm()) for value in other.values())
    return max(float((one[n] - other[n]).norm()) / max(float(other[n].norm()), 1e-3 * scale) for n in other)


# The naive loop: every episode alone, through transformers' own attention, the formulas written out.


def plain_logprobs(model: PreTrainedModel, episode: Episode, temperature: float = 0.7) -> Tensor:
    model.set_attn_implementation("sdpa")
    logits = model(torch.from_numpy(episode.token_ids)[None], use_cache=False).logits[0, :-1] / temperature
    every = torch.log_softmax(logits, -1).gather(-1, torch.from_numpy(episode.token_ids)[1:, None])[:, 0]
    return every[torch.from_numpy(episode.mask[1:])]


def plain_advantages(episodes: Sequence[Episode], kind: str) -> list[float]:
    found = []
    for episode in episodes:
        group = [other.reward for other in episodes if other.group_id == episode.group_id]
        group = [reward for reward in group if not math.isnan(reward)]
        found.append((episode.reward - np.mean(group)) / (np.std(group, ddof=1) + 1e-4 if kind == "grpo" else 1.0))
    return found


def plain_losses(config: GRPOConfig, new: Tensor, before: Tensor, sampler: Tensor, advantage: float) -> Tensor:
    """Of the tokens of one episode (T,), as the papers have them."""
    ratio = (new - before).exp()
    if config.loss == "ppo":
        clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
        losses = -torch.minimum(ratio * advantage, clipped * advantage)
    elif config.loss == "gspo":
        whole = ((new - before).sum() / len(new)).exp()
        clipped = whole.clamp(1 - config.gspo_clip_low, 1 + config.gspo_clip_high)
        losses = -torch.minimum(whole * advantage, clipped * advantage).expand(len(new))
    elif config.loss == "cispo":
        losses = -ratio.clamp(max=config.cispo_max).detach() * advantage * new
    else:
        temperature = config.sapo_positive if advantage > 0 else config.sapo_negative
        losses = -4 / temperature / (1 + (-temperature * (ratio - 1)).exp()) * advantage
    gap = before - sampler
    weights = {"none": torch.zeros_like(gap), "token": gap, "sequence": gap.sum().expand(len(gap))}[config.correction]
    return losses * weights.exp().clamp(max=config.correction_max)


def is_masked(config: GRPOConfig, before: Tensor, sampler: Tensor) -> bool:
    gap = before - sampler
    return bool(gap.abs().mean() > config.mask_gap or gap.sum().abs().exp() > config.mask_ratio)


def plain_gradient(
    model: PreTrainedModel,
    episodes: Sequence[Episode],
    advantages: Sequence[float],
    config: GRPOConfig,
    *,
    old: PreTrainedModel | None = None,
    reference: PreTrainedModel | None = None,
) -> dict[str, Tensor]:
    """Of one optimizer step on exactly these episodes."""
    model = copy.deepcopy(model)
    tokens, loss = sum(int(episode.mask.sum()) for episode in episodes), torch.tensor(0.0)
    for episode, advantage in zip(episodes, advantages, strict=True):
        new = plain_logprobs(model, episode)
        before = plain_logprobs(old, episode).detach() if old else new.detach()
        sampler = torch.from_numpy(episode.logprobs[episode.mask]).to(new.dtype)
        losses = plain_losses(config, new, before, sampler, advantage)
        if reference is not None:
            d = plain_logprobs(reference, episode).detach() - new
            losses = losses + config.kl_coefficient * (d**2 / 2 if config.kl == "k2" else d.exp() - d - 1)
        share = {
            "grpo": 1 / (len(episodes) * len(losses)),
            "dapo": 1 / tokens,
            "dr_grpo": 1 / (len(episodes) * MAX_POLICY_TOKENS),
        }[config.reduction]
        loss = loss + losses.sum() * (0.0 if is_masked(config, before, sampler) else share)
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "settings",
    [
        {"reduction": "grpo", "advantages": "grpo"},
        {"reduction": "dapo", "advantages": "dr_grpo"},
        {"reduction": "dr_grpo", "advantages": "dr_grpo"},
        {"reduction": "dapo", "advantages": "grpo", "kl_coefficient": 0.5, "kl": "k2"},
        {"reduction": "grpo", "advantages": "dr_grpo", "kl_coefficient": 0.5, "kl": "k3"},
        {"reduction": "dr_grpo", "advantages": "grpo", "kl_coefficient": 0.5, "kl": "k3"},
        {"reduction": "grpo", "loss": "gspo", "correction": "sequence"},
        {"reduction": "dapo", "loss": "cispo", "correction": "token", "correction_max": 1.5},
        {"reduction": "grpo", "loss": "sapo", "mask_gap": 1.2, "kl_coefficient": 0.5},
        {"reduction": "dr_grpo", "loss": "ppo", "correction": "sequence", "mask_ratio": 30.0},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_the_gradient_is_that_of_a_naive_loop_for_any_cut_and_order(settings: dict, precision: str) -> None:
    model, limit = (make_model(), 1e-5) if precision == "float32" else (double_model(), 1e-12)
    episodes, config = make_batch(), GRPOConfig(**settings)
    reference = spread(copy.deepcopy(model), 7) if config.kl_coefficient else None
    advantages = plain_advantages(episodes, config.advantages)
    expected = plain_gradient(model, episodes, advantages, config, reference=reference)
    for tokens in (1, 40, 100, 10_000):
        assert distance(gradient(model, episodes, tokens_per_forward=tokens, **settings), expected) < limit
    assert distance(gradient(model, episodes[::-1], tokens_per_forward=60, **settings), expected) < limit


OFF_POLICY = [
    {"reduction": "grpo", "clip_low": 0.02, "clip_high": 0.02},
    {"reduction": "dapo", "clip_low": 0.02, "clip_high": 0.02, "correction": "token"},
    {"reduction": "dr_grpo", "clip_low": 0.02, "clip_high": 0.02},
    {"reduction": "grpo", "loss": "gspo", "gspo_clip_low": 0.02, "gspo_clip_high": 0.02},
    {"reduction": "dapo", "loss": "gspo", "gspo_clip_low": 0.05, "gspo_clip_high": 0.05, "correction": "sequence"},
    {"reduction": "dapo", "loss": "cispo", "cispo_max": 1.02},
    {"reduction": "grpo", "loss": "sapo", "sapo_negative": 3.0, "mask_gap": 1.2},
]


@pytest.mark.parametrize("settings", OFF_POLICY, ids=lambda settings: "-".join(map(str, settings.values())))
def test_minibatches_take_whole_groups_and_normalise_by_their_own_episodes_and_tokens(settings: dict) -> None:
    model, episodes = double_model(), make_batch()
    config = GRPOConfig(lr=1e-2, minibatches=2, **settings)
    groups = list(dict.fromkeys(episode.group_id for episode in episodes))
    advantages = plain_advantages(episodes, "grpo")
    for tokens in (30, 10_000):
        cut = replace(config, tokens_per_forward=tokens)
        learner = GRPO(copy.deepcopy(model), cut, temperature=0.7, max_policy_tokens=MAX_POLICY_TOKENS)
        recorder = Recorder(learner, step=True)
        metrics = learner.update(episodes, learner.advantages(episodes))
        assert len(recorder.gradients) == 2
        for step, part in enumerate((groups[:2], groups[2:])):
            mine = [i for i, episode in enumerate(episodes) if episode.group_id in part]
            now = copy.deepcopy(model)
            now.load_state_dict(recorder.weights[step])
            chosen, worth = [episodes[i] for i in mine], [advantages[i] for i in mine]
            expected = plain_gradient(now, chosen, worth, config, old=copy.deepcopy(model))
            assert distance(recorder.gradients[step], expected) < 1e-12
        # The second step no longer stands where the episodes' old log-probabilities were taken.
        assert metrics["approximate_kl"] > 1e-4
        assert (metrics["clip_low_share"] + metrics["clip_high_share"] > 0.05) == (config.loss != "sapo")


def test_more_minibatches_than_groups_take_one_group_each() -> None:
    learner = make_learner(make_model(), minibatches=16)
    recorder = Recorder(learner, step=True)
    learner.update(make_batch(), learner.advantages(make_batch()))
    assert len(recorder.gradients) == len(REWARDS)


def test_one_step_on_the_policys_own_samples_has_a_ratio_of_one() -> None:
    learner = make_learner(make_model())
    metrics = learner.update(make_batch(), learner.advantages(make_batch()))
    assert metrics["clip_low_share"] == metrics["clip_high_share"] == metrics["approximate_kl"] == 0


def test_no_gradient_flows_from_tokens_of_the_environment() -> None:
    model = make_model()
    model.set_attn_implementation("verigym")
    episodes = make_batch()
    before = gradient(model, episodes)
    # What the sampler recorded at masked positions is not read.
    garbled = [replace(e, logprobs=np.where(e.mask, e.logprobs, 99).astype(np.float32)) for e in episodes]
    assert distance(gradient(model, garbled), before) == 0
    # Of all logits, only those that predict a policy token are computed: the loss cannot depend on others.
    batch = Sequences(episodes, [np.ones(e.num_policy_tokens) for e in episodes], len(episodes), 1)
    for micro in batch.micro_batches(80, CPU):
        logits = packed_logits(model, micro)
        wanted = [plain_logprobs(copy.deepcopy(model), episodes[i], 1.0) for i in micro.indices]
        assert torch.allclose(token_logprobs(logits, micro.targets, 1.0), torch.cat(wanted), atol=1e-5)


def test_an_environments_last_words_change_nothing() -> None:
    model, episodes = double_model(), make_batch()
    longer = [
        replace(
            episode,
            token_ids=np.append(episode.token_ids, [3, 1, 4]),
            mask=np.append(episode.mask, [False] * 3),
            logprobs=np.append(episode.logprobs, np.zeros(3, np.float32)),
        )
        for episode in episodes
    ]
    assert distance(gradient(model, longer), gradient(model, episodes)) < 1e-12


def test_an_episode_that_could_not_be_judged_is_as_if_it_had_not_been_played() -> None:
    model, episodes = double_model(), make_batch()
    broken = make_episode(0, 1.0, 50, outcome=Outcome.INFRA_ERROR)
    learner = make_learner(copy.deepcopy(model))
    assert np.isnan(learner.advantages([*episodes, broken])[-1])
    for settings in ({"reduction": "grpo"}, {"reduction": "dapo"}, {"kl_coefficient": 0.1}):
        with_it = gradient(model, [*episodes[:3], broken, *episodes[3:]], **settings)
        assert distance(with_it, gradient(model, episodes, **settings)) < 1e-12


def test_episodes_without_policy_tokens_are_tolerated() -> None:
    model, episodes = double_model(), make_batch()
    silent = without_policy_tokens(make_episode(7, 1.0, 0))
    for reduction in ("grpo", "dapo", "dr_grpo"):
        with_it = gradient(model, [silent, *episodes], reduction=reduction)
        assert distance(with_it, gradient(model, episodes, reduction=reduction)) < 1e-12
    alone = SFT(copy.deepcopy(model)).update([silent, episodes[0]])
    assert alone["tokens"] == episodes[0].num_policy_tokens
    assert SFT(copy.deepcopy(model)).update([silent])["loss"] == 0


def test_a_group_of_equal_rewards_changes_no_weight_and_is_reported() -> None:
    learner = make_learner(make_model())
    before = copy.deepcopy(learner.model.state_dict())
    full = learner.update(make_batch(), learner.advantages(make_batch()))
    assert learner.statistics(make_batch())["zero_variance_share"] == pytest.approx(1 / 4)
    changed = copy.deepcopy(learner.model.state_dict())
    assert any(not torch.equal(before[name], changed[name]) for name in before)
    failed = [make_episode(5, 0.0, seed) for seed in range(4)] + [make_episode(6, 1.0, seed) for seed in range(2)]
    metrics = learner.update(failed, learner.advantages(failed))
    after = learner.model.state_dict()
    assert all(torch.equal(after[name], changed[name]) for name in after)
    assert list(learner.statistics(failed).values()) == [1, 0.5, 0.5, 0]
    assert metrics["loss"] == metrics["grad_norm"] == metrics["skipped_steps"] == 0
    assert metrics.keys() == full.keys()


def overlong_group() -> list[Episode]:
    """Four episodes of one turn, 4 of 10, 9 of 10, and twice 10 of 10 tokens; the last two ran out of them."""
    group = []
    for reward, length, cut in ((1.0, 4, False), (1.0, 9, False), (0.0, 10, True), (1.0, 10, True)):
        episode = make_episode(0, reward, length)
        ids = np.arange(1, 4 + length)
        policy = np.arange(len(ids)) >= 3
        group.append(
            replace(
                episode,
                token_ids=ids,
                mask=policy,
                logprobs=np.where(policy, -3, 0).astype(np.float32),
                versions=np.where(policy, 0, -1),
                turns=(Turn(3, len(ids), reward, "length" if cut else "stop", limit=10),),
                truncation=Truncation.TOKENS if cut else None,
            )
        )
    return group


def test_overlong_episodes_are_judged_as_they_stand_by_default() -> None:
    advantages = make_learner(make_model()).advantages(overlong_group())
    assert advantages == pytest.approx([0.4999, 0.4999, -1.4997, 0.4999], abs=1e-3)


def test_masked_overlong_episodes_have_no_loss_but_stay_in_the_baseline() -> None:
    learner = make_learner(make_model(), overlong="mask")
    episodes = overlong_group()
    advantages = learner.advantages(episodes)
    assert advantages[:2] == pytest.approx([0.4999, 0.4999], abs=1e-3)
    assert np.isnan(advantages[2:]).all()
    judged = make_learner(make_model())
    part = judged.update(episodes[:2], judged.advantages(episodes)[:2])
    assert learner.update(episodes, advantages)["loss"] == pytest.approx(part["loss"])
    context = [replace(episode, truncation=Truncation.CONTEXT) for episode in episodes]
    assert np.isnan(learner.advantages(context)).all()
    turns = [replace(episode, truncation=Truncation.TURNS) for episode in episodes]
    assert not np.isnan(learner.advantages(turns)).any()


def test_a_turn_near_its_budget_is_penalised() -> None:
    # 0 up to 8 of 10 tokens, -.5 at 9, -1 at 10: what the group compares is 1, .5, -1, 0
    learner = make_learner(make_model(), overlong="penalise", overlong_buffer=0.2, advantages="dr_grpo")
    assert learner.advantages(overlong_group()) == pytest.approx([0.875, 0.375, -1.125, -0.125])
    assert [episode.reward for episode in overlong_group()] == [1, 1, 0, 1]


def test_informative_groups_are_those_whose_returns_differ() -> None:
    learner = make_learner(make_model())
    failed = [make_episode(5, 0.0, seed) for seed in range(3)]
    broken = [make_episode(6, 0.0, seed, outcome=Outcome.INFRA_ERROR) for seed in range(2)]
    mixed = [make_episode(7, float(seed == 1), seed) for seed in range(3)]
    broken_member = make_episode(7, 0.0, 9, outcome=Outcome.INFRA_ERROR)
    assert learner.informative([*failed, *mixed, *broken, broken_member]) == [*mixed, broken_member]
    assert learner.informative([]) == []


@pytest.mark.parametrize(
    "settings", [{"minibatches": 1}, {"minibatches": 2}, {"advantages": "turn_fork"}, {"overlong": "penalise"}]
)
def test_batches_without_any_loss_have_all_metrics(settings: dict) -> None:
    learner = make_learner(make_model(), **settings)
    assert learner.informative([]) == []
    keys = learner.update(make_batch(), learner.advantages(make_batch())).keys()
    silent = [without_policy_tokens(episode) for episode in make_batch()]
    broken = [make_episode(0, 0.0, seed, outcome=Outcome.INFRA_ERROR) for seed in range(3)]
    for episodes in (silent, broken, []):
        metrics = learner.update(episodes, learner.advantages(episodes))
        assert metrics.keys() == keys
        assert all(math.isfinite(value) for value in metrics.values())


def test_the_weight_of_the_kl_is_what_the_controller_made_of_it() -> None:
    model = make_model()
    settings = {"kl_control": "adaptive", "kl_target": 1e-9, "kl_horizon": len(make_batch())}
    learner = make_learner(model, kl_coefficient=0.5, **settings)
    recorder = Recorder(learner, step=False)
    weights = []
    for _ in range(2):
        weights.append(learner.update(make_batch(), learner.advantages(make_batch()))["kl_coefficient"])
    # a KL far above the target moves it by a fifth, for a horizon of one batch
    assert (weights, learner.kl_coefficient) == (pytest.approx([0.5, 0.6]), pytest.approx(0.72))
    for used, found in zip(weights, recorder.gradients, strict=True):
        assert distance(found, gradient(model, make_batch(), kl_coefficient=used)) == 0


def test_episodes_that_the_sampler_saw_too_differently_are_counted_and_have_no_loss() -> None:
    model, episodes = double_model(), make_batch()
    episodes = [replace(e, logprobs=e.logprobs - 9 * e.mask * (i == 3)) for i, e in enumerate(episodes)]
    learner = make_learner(copy.deepcopy(model), mask_gap=5.0)
    metrics = learner.update(episodes, learner.advantages(episodes))
    teaching = [episode for episode in episodes if episode.group_id != 2]  # all but the group of equal rewards
    tokens = sum(episode.num_policy_tokens for episode in teaching)
    assert metrics["masked_share"] == pytest.approx(episodes[3].num_policy_tokens / tokens)
    assert metrics["sampler_gap_max"] > 5
    assert metrics["effective_sample_share"] < 0.5
    assert learner.update(make_batch(), learner.advantages(make_batch()))["masked_share"] == 0


def test_a_dropped_episode_has_no_loss_of_any_kind() -> None:
    settings = {"kl_coefficient": 0.5, "entropy_coefficient": 0.1}
    everything = gradient(make_model(), make_batch(), **settings)
    nothing = gradient(make_model(), make_batch(), mask_gap=1e-9, **settings)
    assert max(float(value.abs().max()) for value in everything.values()) > 1e-3
    assert all(not value.any() for value in nothing.values())


def test_the_clip_shares_of_gspo_count_the_tokens_of_whole_episodes() -> None:
    model, episodes = double_model(), [episode for episode in make_batch() if episode.group_id != 2]
    config = GRPOConfig(lr=1e-2, minibatches=2, loss="gspo", gspo_clip_low=0.02, gspo_clip_high=0.02)
    learner = GRPO(copy.deepcopy(model), config, temperature=0.7)
    recorder = Recorder(learner, step=True)
    metrics = learner.update(episodes, learner.advantages(episodes))
    later = copy.deepcopy(model)
    later.load_state_dict(recorder.weights[1])
    groups, low, high = list(dict.fromkeys(episode.group_id for episode in episodes)), 0, 0
    for episode, advantage in zip(episodes, plain_advantages(episodes, "grpo"), strict=True):
        if episode.group_id in groups[2:]:  # the second step; in the first every ratio is 1
            log_ratio = plain_logprobs(later, episode) - plain_logprobs(model, episode)
            ratio = float(log_ratio.detach().mean().exp())
            low += episode.num_policy_tokens * (ratio < 0.98 and advantage < 0)
            high += episode.num_policy_tokens * (ratio > 1.02 and advantage > 0)
    tokens = sum(episode.num_policy_tokens for episode in episodes)
    assert low + high > 0
    assert metrics["clip_low_share"] == pytest.approx(low / tokens)
    assert metrics["clip_high_share"] == pytest.approx(high / tokens)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_the_kl_to_a_reference_of_the_same_weights_is_exactly_zero(kind: str) -> None:
    model = make_model()
    config = GRPOConfig(kl_coefficient=0.3, kl=kind, tokens_per_forward=60)
    learner = GRPO(model, config, reference=copy.deepcopy(model), temperature=0.7)
    first, second = (learner.update(make_batch(), learner.advantages(make_batch())) for _ in range(2))
    assert first["kl"] == 0
    assert second["kl"] > 0


def test_a_reference_goes_with_a_kl_coefficient_and_only_with_it() -> None:
    with pytest.raises(ConfigError, match="a reference model goes with kl_coefficient > 0"):
        GRPO(make_model(), GRPOConfig(kl_coefficient=0.1))
    with pytest.raises(ConfigError, match="and only with it"):
        GRPO(make_model(), GRPOConfig(), reference=make_model())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_the_learner_scores_what_the_engine_sampled(temperature: float) -> None:
    model = make_model()
    engine = TransformersEngine(copy.deepcopy(model))
    episodes = [sample(engine, [3, 1, 4], 6, group=0, seed=seed, temperature=temperature) for seed in range(6)]
    episodes = [scored(episode, float(index % 2)) for index, episode in enumerate(episodes)]
    learner = make_learner(model, temperature=temperature)
    metrics = learner.update(episodes, learner.advantages(episodes))
    assert metrics["sampler_gap_max"] <= 1e-5
    assert metrics["effective_sample_share"] == pytest.approx(1, abs=1e-5)
    other = make_learner(make_model(), temperature=temperature * 1.3)
    assert other.update(episodes, other.advantages(episodes))["sampler_gap_max"] > 0.05


def test_a_gradient_that_is_not_finite_is_skipped_and_the_third_in_a_row_stops_the_run() -> None:
    learner = make_learner(make_model())
    episodes = make_batch()
    advantages = learner.advantages(episodes)
    huge = np.where(np.isnan(advantages), np.nan, 1e38 * np.sign(advantages) * 1e3)
    before = copy.deepcopy(learner.model.state_dict())
    assert [learner.update(episodes, huge)["skipped_steps"] for _ in range(2)] == [1, 1]
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert learner.update(episodes, advantages)["skipped_steps"] == 0
    assert not any(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert [learner.update(episodes, huge)["skipped_steps"] for _ in range(2)] == [1, 1]
    with pytest.raises(RunError, match="not finite in 3 steps in a row"):
        learner.update(episodes, huge)


def leaky_attention(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: object, **options: object):
    """A layer that takes the row for one episode."""
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return out.transpose(1, 2), None


@pytest.mark.parametrize("make", [make_model, lambda: tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=4)])
def test_a_model_whose_attention_ignores_the_layout_is_refused(make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make()
    model.set_attn_implementation("verigym")
    check_packing(model)
    for leaking in (0, 1):

        def one_layer_leaks(module, *states, leaking=leaking, **options):
            return (leaky_attention if module.layer_idx == leaking else attention)(module, *states, **options)

        monkeypatch.setitem(AttentionInterface._global_mapping, "verigym", one_layer_leaks)
        with pytest.raises(EngineError, match="packed episodes contaminate each other"):
            check_packing(model)


def test_a_shared_prompt_is_fed_once() -> None:
    episodes = [make_episode(2, 1.0, seed) for seed in range(3)]
    batch = Sequences(episodes, [np.ones(e.num_policy_tokens) for e in episodes], 3, 1)
    micro = MicroBatch(batch, [0, 1, 2], CPU)
    assert micro.token_ids.shape[1] == sum(len(e.token_ids) for e in episodes) - 2 * 5
    for episode, places in zip(episodes, micro.layout.places, strict=True):
        assert np.array_equal(micro.layout.token_ids[places], episode.token_ids)
        assert np.array_equal(micro.layout.position_ids[0].numpy()[places], np.arange(len(episode.token_ids)))


def sample(
    engine: TransformersEngine, prompt: list[int], tokens: int, *, group: int, seed: int, temperature: float = 1.0
) -> Episode:
    """One turn of exactly so many tokens."""
    request = Request(0, 0, prompt, seed, Sampling(tokens, temperature=temperature))
    (turn,) = engine.run([request])
    engine.release(0)
    ids = np.array([*prompt, *turn.token_ids], np.int64)
    blank = make_episode(group, 0.0, seed)
    return replace(
        blank,
        token_ids=ids,
        mask=np.arange(len(ids)) >= len(prompt),
        logprobs=np.array([0.0] * len(prompt) + list(turn.logprobs), np.float32),
        versions=np.array([-1] * len(prompt) + list(turn.versions)),
        turns=(Turn(len(prompt), len(ids), 0.0, "length", limit=tokens),),
    )


def scored(episode: Episode, reward: float) -> Episode:
    verdict = Verdict(reward, Outcome.CORRECT if reward else Outcome.WRONG, "by hand")
    return replace(episode, turns=(replace(episode.turns[-1], reward=reward),), verdict=verdict)


@pytest.mark.parametrize(
    "settings",
    [
        {"reduction": "grpo"},
        {"reduction": "dr_grpo"},
        {"loss": "gspo", "advantages": "rloo"},
        {"loss": "cispo", "advantages": "maxrl", "correction": "token"},
        {"loss": "sapo", "advantages": "reinforce++"},
    ],
    ids=lambda settings: "-".join(settings.values()),
)
def test_a_bandit_of_four_arms_goes_to_its_best_one(settings: dict) -> None:
    arms = {5: 0.2, 6: 1.0, 7: 0.6, 8: 0.0}
    model = tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=4, intermediate_size=48)
    engine = TransformersEngine(copy.deepcopy(model))
    learner = GRPO(model, GRPOConfig(lr=1e-2, **settings), max_policy_tokens=1)
    for step in range(60):
        episodes = [sample(engine, [1, 2], 1, group=i // 8, seed=step * 32 + i) for i in range(32)]
        episodes = [scored(episode, arms.get(int(episode.token_ids[-1]), 0.0)) for episode in episodes]
        if all(episode.token_ids[-1] == 6 for episode in episodes):
            break
        learner.update(episodes, learner.advantages(episodes))
        engine.update_weights(model.named_parameters(), step + 1)
    logprob = float(engine.score([[1, 2, 6]])[0][-1])
    assert step < 59
    assert math.exp(logprob) > 0.8


@pytest.mark.parametrize("minibatches", [1, 3])
def test_after_an_update_the_columns_say_what_was_known_of_each_token_before_it(minibatches: int) -> None:
    learner, episodes = make_learner(double_model(), minibatches=minibatches), make_batch()
    advantages = learner.advantages(episodes)
    before = dict(zip(episodes, learner._logprobs(learner.model, Sequences.of(episodes)), strict=True))
    learner.update(episodes, advantages)
    assert learner.columns.keys() == set(episodes)
    for episode, advantage in zip(episodes, advantages, strict=True):
        columns = learner.columns[episode]
        assert columns["advantages"].tolist() == [advantage] * episode.num_policy_tokens
        assert ("logprobs" in columns) == (advantage != 0)  # without an advantage no forward is spent
        if advantage:
            # later minibatches are scored with the same weights, those before the step
            np.testing.assert_allclose(columns["logprobs"], before[episode], rtol=1e-9)
