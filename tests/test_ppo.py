"""PPO: credit of each token worked by hand, gradients that do not depend on the cut, and a critic that learns."""

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from verigym.agents.agent import load_model, save_checkpoint
from verigym.agents.engines.engine import Request, Sampling
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.episode import Episode, Truncation, Turn
from verigym.agents.learners.batch import Sequences
from verigym.agents.learners.config import PPOConfig
from verigym.agents.learners.ppo import PPO
from verigym.agents.scalar import ScalarModel, load_scalar_model
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.tasks.errors import ConfigError
from verigym.verifiers import Outcome, Verdict

VOCABULARY = 24


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    return tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=2, intermediate_size=48, seed=seed).to(dtype)


def make_learner(*, reference: bool = False, bias: float = 0.0, noise: float = 0.0, **config: object) -> PPO:
    model = make_model()
    critic = ScalarModel(copy.deepcopy(make_model(1).base_model))
    torch.nn.init.constant_(critic.head.bias, bias)
    torch.nn.init.normal_(critic.head.weight, std=noise, generator=torch.Generator().manual_seed(3)) if noise else None
    settings = {"critic_warmup": 0, "whiten": False, "kl_coefficient": 0.5 if reference else 0.0} | config
    return PPO(
        model, PPOConfig(**settings), critic=critic, reference=make_model(2) if reference else None, max_policy_tokens=9
    )


def make_episode(
    rewards: tuple[float, ...] = (0.0, 1.0),
    *,
    seed: int = 0,
    tokens: int = 2,
    truncation: Truncation | None = None,
    outcome: Outcome = Outcome.CORRECT,
) -> Episode:
    """A turn of `tokens` policy tokens for each reward, with words of the environment between them."""
    rng = np.random.default_rng(seed)
    ids, mask, turns = list(rng.integers(0, VOCABULARY, 4)), [0] * 4, []
    for reward in rewards:
        turns.append(Turn(len(ids), len(ids) + tokens, reward, "stop", limit=4))
        ids += rng.integers(0, VOCABULARY, tokens + 3).tolist()
        mask += [1] * tokens + [0] * 3
    policy = np.array(mask, np.bool_)
    return Episode(
        env_id="test",
        task_id="t",
        group_id=seed,
        seed=seed,
        token_ids=np.array(ids, np.int64),
        mask=policy,
        logprobs=np.where(policy, rng.normal(-3, 0.2, len(ids)), 0).astype(np.float32),
        versions=np.where(policy, 0, -1),
        turns=tuple(turns),
        messages=(),
        truncation=truncation,
        verdict=Verdict(math.nan if outcome is Outcome.INFRA_ERROR else sum(rewards), outcome, "by hand"),
    )


def make_batch() -> list[Episode]:
    return [make_episode(tuple(np.random.default_rng(i).random(1 + i % 3)), seed=i, tokens=1 + i % 4) for i in range(9)]


def gradients(learner: PPO, episodes: list[Episode]) -> dict[str, Tensor]:
    """Those of the first step, of policy and critic."""
    found: dict[str, Tensor] = {}
    for name, network, optimizer in (
        ("policy", learner.model, learner.optimizer),
        ("critic", learner.critic, learner.critic_optimizer),
    ):

        def step(name: str = name, network: torch.nn.Module = network) -> dict[str, float]:
            found.update({f"{name}.{n}": p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
            network.zero_grad()
            return {"grad_norm": 0.0, "skipped": 0.0}

        optimizer.step = step
    learner.update(episodes, learner.advantages(episodes))
    return found


def test_a_turns_reward_is_credited_to_every_token_before_it() -> None:
    # V is 0 everywhere: with gamma = lam = 1 an advantage is what is still to come
    credit = make_learner().advantages([make_episode((0.25, 1.0), tokens=3)])
    assert credit.advantages[0].tolist() == pytest.approx([1.25] * 3 + [1.0] * 3)
    assert credit.returns[0].tolist() == pytest.approx([1.25] * 3 + [1.0] * 3)


def test_discount_and_trace_decay_count_the_policys_own_tokens() -> None:
    credit = make_learner(gamma=0.5, lam=0.5).advantages([make_episode((0.0, 1.0), tokens=2)])
    assert credit.advantages[0].tolist() == pytest.approx([1 / 64, 1 / 16, 1 / 4, 1.0])
    valued = make_learner(bias=0.5, gamma=0.5, lam=0.0).advantages([make_episode((0.0, 1.0), tokens=2)])
    assert valued.advantages[0].tolist() == pytest.approx([-0.25, -0.25, -0.25, 0.5])


def test_by_turns_the_tokens_of_a_turn_share_one_advantage() -> None:
    learner = make_learner(credit="turn", noise=0.3, gamma=0.5, lam=0.5)
    episode = make_episode((0.25, 1.0), tokens=3)
    credit = learner.advantages([episode])
    first, second = credit.values[0][0], credit.values[0][3]
    last = 1.0 - second
    before = 0.25 + 0.5 * second - first + 0.25 * last
    assert credit.advantages[0].tolist() == pytest.approx([before] * 3 + [last] * 3)
    assert credit.returns[0].tolist() == pytest.approx([before + first] * 3 + [1.0] * 3)


def test_values_are_of_the_state_before_a_token() -> None:
    learner = make_learner(noise=0.5)
    episode = make_episode((0.0, 1.0))
    values = learner.advantages([episode]).values[0]
    place = int(np.flatnonzero(episode.mask)[2])
    other = replace(episode, token_ids=episode.token_ids.copy())
    other.token_ids[place] = (other.token_ids[place] + 1) % VOCABULARY
    changed = learner.advantages([other]).values[0]
    assert changed[:3] == pytest.approx(values[:3])
    assert abs(changed[3] - values[3]) > 1e-6


@pytest.mark.parametrize("truncation", [Truncation.TOKENS, Truncation.TURNS, Truncation.CONTEXT])
def test_an_episode_cut_by_a_budget_ends_there_or_goes_on_with_the_critics_value(truncation: Truncation) -> None:
    cut, ended = make_episode((0.0, 0.0), truncation=truncation), make_episode((0.0, 0.0))
    assert make_learner(bias=0.5).advantages([cut]).returns[0].tolist() == pytest.approx([0.0] * 4)
    goes_on = make_learner(bias=0.5, at_budget="bootstrap")
    assert goes_on.advantages([cut]).returns[0].tolist() == pytest.approx([0.5] * 4)
    assert goes_on.advantages([ended]).returns[0].tolist() == pytest.approx([0.0] * 4)


def test_kl_to_the_reference_is_taken_from_each_tokens_reward() -> None:
    episode = make_episode((0.0, 1.0))
    learner = make_learner(reference=True)
    here, there = (learner._logprobs(model, Sequences.of([episode]))[0] for model in (learner.model, learner.reference))
    credit = learner.advantages([episode])
    per_token = np.array([0, 0, 0, 1.0]) - 0.5 * (here - there)
    assert credit.returns[0] == pytest.approx(np.cumsum(per_token[::-1])[::-1])
    learner.kl_coefficient = 0.25  # as a controller sets it
    per_token = np.array([0, 0, 0, 1.0]) - 0.25 * (here - there)
    assert learner.advantages([episode]).returns[0] == pytest.approx(np.cumsum(per_token[::-1])[::-1])
    learner.reference = learner.model
    same = learner.advantages([episode])
    assert (same.returns[0].tolist(), same.metrics["kl"]) == (pytest.approx([1.0] * 4), 0.0)


def test_whitened_advantages_have_mean_zero_and_deviation_one_over_the_batch() -> None:
    flat = np.concatenate(make_learner(whiten=True).advantages(make_batch()).advantages)
    assert (flat.mean(), flat.std(ddof=1)) == (pytest.approx(0, abs=1e-9), pytest.approx(1))


def test_episodes_without_a_verdict_or_masked_have_no_part() -> None:
    broken = make_episode(outcome=Outcome.INFRA_ERROR, seed=1)
    cut = make_episode(truncation=Truncation.TOKENS, seed=2)
    learner = make_learner(overlong="mask")
    assert learner.advantages([broken, cut, make_episode()]).episodes == [2]
    metrics = learner.update([broken], learner.advantages([broken]))
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss": "gspo", "correction": "sequence", "reduction": "grpo"},
        {"loss": "cispo", "correction": "token"},
        {"loss": "sapo", "mask_gap": 0.3, "reduction": "dr_grpo"},
    ],
    ids=str,
)
def test_gradients_do_not_depend_on_the_micro_batches(settings: dict) -> None:
    common = {"noise": 0.3, "reference": True, "epochs": 1, "minibatches": 1, "entropy_coefficient": 0.01, **settings}
    whole = gradients(make_learner(**common), make_batch())
    cut = gradients(make_learner(**common, tokens_per_forward=20), make_batch())
    assert whole.keys() == cut.keys()
    for name, gradient in whole.items():
        scale = float(gradient.abs().max())
        assert float((gradient - cut[name]).abs().max()) <= 1e-12 * max(scale, 1e-3), name


def test_in_the_warm_up_only_the_critic_learns() -> None:
    learner = make_learner(critic_warmup=1, lr=1e-2, critic_lr=1e-2)
    policy, critic = (copy.deepcopy(network.state_dict()) for network in (learner.model, learner.critic))
    first = learner.update(make_batch(), learner.advantages(make_batch()))
    assert all(torch.equal(policy[name], tensor) for name, tensor in learner.model.state_dict().items())
    assert any(not torch.equal(critic[name], tensor) for name, tensor in learner.critic.state_dict().items())
    second = learner.update(make_batch(), learner.advantages(make_batch()))
    assert any(not torch.equal(policy[name], tensor) for name, tensor in learner.model.state_dict().items())
    assert first.keys() == second.keys()


def test_after_an_update_the_columns_say_what_was_known_of_each_token_before_it() -> None:
    learner, episodes = make_learner(critic_warmup=1), make_batch()
    episodes[2] = make_episode(outcome=Outcome.INFRA_ERROR)
    credit = learner.advantages(episodes)
    learner.update(episodes, credit)
    assert set(learner.columns) == {episode for i, episode in enumerate(episodes) if i != 2}
    for place, i in enumerate(credit.episodes):
        for name, known in (
            ("advantages", credit.advantages),
            ("logprobs", credit.old_logprobs),
            ("values", credit.values),
        ):
            assert learner.columns[episodes[i]][name].tolist() == known[place].tolist()


def test_the_weight_of_the_kl_stays_while_the_policy_is_held() -> None:
    adaptive = {"kl_control": "adaptive", "kl_target": 1e9, "kl_horizon": 1}
    learner = make_learner(reference=True, critic_warmup=2, **adaptive)
    weights = [learner.update(make_batch(), learner.advantages(make_batch()))["kl_coefficient"] for _ in range(4)]
    assert weights == pytest.approx([0.5, 0.5, 0.5, 0.4])


def test_the_learning_rates_of_policy_and_critic_follow_the_run_also_in_the_warm_up() -> None:
    model, critic = make_model(), ScalarModel(copy.deepcopy(make_model(1).base_model))
    config = PPOConfig(lr=1e-4, critic_lr=1e-3, critic_warmup=1, lr_schedule="linear")
    learner = PPO(model, config, critic=critic, steps=4)
    rates = []
    for _ in range(4):
        rates.append(learner.update(make_batch(), learner.advantages(make_batch()))["lr"])
        assert learner.critic_optimizer.lr == pytest.approx(10 * learner.optimizer.lr)
    assert rates == pytest.approx([1e-4, 0.75e-4, 0.5e-4, 0.25e-4])


def test_the_critic_comes_to_explain_the_returns() -> None:
    learner = make_learner(critic_lr=1e-2, critic_warmup=100, epochs=1, minibatches=1, value_clip=math.inf)
    episodes = [make_episode((float(seed % 2),), seed=seed) for seed in range(8)]
    first = learner.update(episodes, learner.advantages(episodes))
    for _ in range(60):
        last = learner.update(episodes, learner.advantages(episodes))
    assert first["explained_variance"] == pytest.approx(0.0)
    assert last["explained_variance"] > 0.95
    assert last["critic_loss"] < 0.05 * first["critic_loss"]


def test_a_restored_learner_goes_on_to_the_bit() -> None:
    config = {"lr": 1e-3, "critic_lr": 1e-3, "noise": 0.1}
    one = make_learner(**config)
    one.update(make_batch(), one.advantages(make_batch()))
    other = make_learner(**config)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    other.model.load_state_dict(one.model.state_dict())
    results = [learner.update(make_batch(), learner.advantages(make_batch())) for learner in (one, other)]
    assert results[0] == results[1]
    for mine, yours in zip(one.critic.state_dict().values(), other.critic.state_dict().values(), strict=True):
        assert torch.equal(mine, yours)


def test_a_bandit_of_four_arms_goes_to_its_best_one() -> None:
    arms = {5: 0.2, 6: 1.0, 7: 0.6, 8: 0.0}
    model = make_model(dtype=torch.float32)
    engine = TransformersEngine(copy.deepcopy(model))
    critic = ScalarModel(copy.deepcopy(model.base_model))
    learner = PPO(model, PPOConfig(lr=1e-2, critic_lr=1e-2, critic_warmup=2), critic=critic, max_policy_tokens=1)
    for step in range(60):
        chosen = engine.run([Request(i, i, [1, 2], step * 32 + i, Sampling(1)) for i in range(32)])
        episodes = []
        for generation in sorted(chosen, key=lambda generation: generation.id):
            engine.release(generation.id)
            token = generation.token_ids[0]
            blank = make_episode((arms.get(token, 0.0),))
            episodes.append(
                replace(
                    blank,
                    token_ids=np.array([1, 2, token]),
                    mask=np.array([False, False, True]),
                    logprobs=np.array([0, 0, generation.logprobs[0]], np.float32),
                    versions=np.array([-1, -1, 0]),
                    turns=(Turn(2, 3, arms.get(token, 0.0), "length", limit=1),),
                )
            )
        chose_best = np.mean([episode.token_ids[-1] == 6 for episode in episodes])
        if chose_best == 1:
            break
        learner.update(episodes, learner.advantages(episodes))
        engine.update_weights(model.named_parameters(), step + 1)
    assert chose_best == 1


def test_a_scalar_model_is_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    save_checkpoint(tmp_path / "policy", tiny_model(len(tokenizer), hidden_size=32, layers=1, heads=2), tokenizer)
    model = load_scalar_model(tmp_path / "policy", trained=False)
    policy = load_model(tmp_path / "policy")
    assert torch.equal(model.trunk.embed_tokens.weight, policy.model.embed_tokens.weight)
    torch.nn.init.normal_(model.head.weight)
    model.save(tmp_path / "critic", tokenizer)
    again = load_scalar_model(tmp_path / "critic")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    with pytest.raises(ConfigError, match="no scalar model"):
        load_scalar_model(tmp_path / "policy")
