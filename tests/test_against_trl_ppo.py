"""Our PPO against that of TRL 1.12, on the same tensors: the reward's KL, GAE, whitening, both losses, their gradients.

TRL's own statements run in a process of their own (`trl_ppo.py`). What had to be bridged between the conventions:

- TRL judges a response one token late: where it is shorter than the widest, its score lies on the padding after its
  last token, which then has a value, a return and a place in the value loss, but none in the policy loss. Ours puts it
  on the last token. Our functions are given TRL's masks, one with that place and one without; with gamma and lambda 1
  it makes no difference to the tokens' advantages.
- TRL has no mask within a response: ours with a tool's words in the middle is compared with TRL's without the words.
- TRL knows no bootstrap at a budget: the value after the last token is 0.
- TRL divides by sqrt(var + 1e-8) to whiten, ours by std + 1e-8: 5e-9 of the advantage.
- TRL adds 1e-7 to the temperature, which is therefore 1 - 1e-7 there.
- TRL averages over the tokens of a micro-batch, here the whole batch: that is `sum / N`.
- TRL's whitening of rewards, its penalty for a missing end token and its weight of the value loss are not ours: off.
"""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from verigym.agents.learners.advantages import generalized_advantages, whiten
from verigym.agents.learners.losses import kl_estimate, policy_loss, token_logprobs, value_loss

# B responses, T tokens of the widest, V vocabulary

ROOT = Path(__file__).resolve().parents[1]
TRL = ROOT / "build" / "trl-1.12"
if not (TRL / "trl").is_dir():
    pytest.skip("TRL 1.12 is the oracle of these tests: make build/trl-1.12/.installed", allow_module_level=True)

B, T, V = 6, 8, 11
RAGGED, FULL = (3, 8, 1, 6, 7, 8), (8,) * B
SETTINGS = list(product([(1.0, 1.0), (1.0, 0.95), (0.9, 0.8)], ["k1", "k3"], [RAGGED, FULL]))
NAMES = [f"gamma {g} lambda {lam} {kl} {'ragged' if n is RAGGED else 'full'}" for (g, lam), kl, n in SETTINGS]
Case = dict[str, Any]


def a_case(seed: int, discounts: tuple[float, float], kl: str, lengths: tuple[int, ...]) -> Case:
    """A batch that crosses both clips. Position t of `logits` and `all_values` is the state before token t."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    logits, values = noise(B, T + 1, V), noise(B, T + 1, 1)
    responses = torch.randint(V, (B, T), generator=generator)
    logprobs = token_logprobs(logits[:, :-1], responses, 1.0)
    gamma, lam = discounts
    return {
        "logits": logits,
        "all_values": values,
        "responses": responses,
        "sequence_lengths": torch.tensor(lengths) - 1,  # TRL's is the index of the last token
        "logprobs": logprobs + 0.3 * noise(B, T),
        "ref_logprobs": logprobs + 0.5 * noise(B, T),
        "values": values[:, :-1, 0] + 0.3 * noise(B, T),
        "scores": noise(B),
        "args": {
            "gamma": gamma,
            "lam": lam,
            "kl_coef": 0.3,
            "kl_estimator": kl,
            "cliprange": 0.2,
            "cliprange_value": 0.2,
            "temperature": 1 - 1e-7,
        },
    }


CASES = [a_case(seed, *setting) for seed, setting in enumerate(SETTINGS)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Tensor]]:
    """What TRL 1.12 makes of each case."""
    folder = tmp_path_factory.mktemp("trl")
    torch.save(CASES, folder / "cases.pt")
    command = [sys.executable, str(ROOT / "tests" / "trl_ppo.py"), str(folder / "cases.pt"), str(folder / "results.pt")]
    environment = {**os.environ, "PYTHONPATH": str(TRL), "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results: list[dict[str, Tensor]] = torch.load(folder / "results.pt", weights_only=True)
    return results


def masks(case: Case) -> tuple[Tensor, Tensor]:
    """The response's own tokens, and those with the place of TRL's score: both (B, T)."""
    last = case["sequence_lengths"][:, None]
    return torch.arange(T) <= last, torch.arange(T) <= last + 1


def kl_rewards(case: Case) -> Tensor:
    kind, (own, _) = case["args"]["kl_estimator"], masks(case)
    return -case["args"]["kl_coef"] * torch.where(own, kl_estimate(case["logprobs"], case["ref_logprobs"], kind), 0.0)


def rewards_as_in_trl(case: Case) -> Tensor:
    place = (case["sequence_lengths"] + 1).clamp(max=T - 1)
    return kl_rewards(case).index_put((torch.arange(B), place), case["scores"], accumulate=True)


def gae(case: Case, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    discounts = {name: case["args"][name] for name in ("gamma", "lam")}
    return generalized_advantages(rewards, values, mask, torch.zeros(B, dtype=torch.float64), **discounts)


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> bool:
    return torch.allclose(actual, expected, rtol=0, atol=tolerance)


def with_tool_text(columns: Tensor, filler: float) -> Tensor:
    """(B, T) with three columns of a tool's words after the second, and one after the fourth."""
    words = torch.full((B, 1), filler, dtype=columns.dtype)
    return torch.cat([columns[:, :2], words, words, words, columns[:, 2:4], words, columns[:, 4:]], 1)


@pytest.mark.parametrize("index", range(len(CASES)), ids=NAMES)
def test_the_reward_less_its_kl_equals_that_of_trl(index: int, expected: list[dict[str, Tensor]]) -> None:
    case, trl = CASES[index], expected[index]
    assert close(-kl_rewards(case), case["args"]["kl_coef"] * trl["kl"])
    assert close(rewards_as_in_trl(case), trl["rewards"])


@pytest.mark.parametrize("index", range(len(CASES)), ids=NAMES)
def test_generalised_and_whitened_advantages_equal_those_of_trl(index: int, expected: list[dict[str, Tensor]]) -> None:
    case, trl = CASES[index], expected[index]
    own, judged = masks(case)
    advantages, returns = gae(case, rewards_as_in_trl(case), case["values"], judged)
    assert close(returns, trl["returns"])
    assert close(advantages, trl["returns"] - trl["values"])
    assert close(whiten(advantages, own), trl["advantages"], 1e-7)


@pytest.mark.parametrize("index", range(len(CASES)), ids=NAMES)
def test_words_of_a_tool_in_between_change_nothing_of_what_trl_finds_without(
    index: int, expected: list[dict[str, Tensor]]
) -> None:
    case, trl = CASES[index], expected[index]
    own, judged = masks(case)
    mask = with_tool_text(judged, False)
    rewards, values = with_tool_text(rewards_as_in_trl(case), 7.0), with_tool_text(case["values"], -5.0)
    advantages, returns = gae(case, rewards, values, mask)
    assert close(returns[mask], trl["returns"][judged])
    whitened = whiten(advantages, with_tool_text(own, False))
    assert close(whitened[with_tool_text(own, False)], trl["advantages"][own], 1e-7)
    assert not returns[~mask].any()


@pytest.mark.parametrize("index", range(len(CASES)), ids=NAMES)
def test_both_losses_and_their_gradients_equal_those_of_trl(index: int, expected: list[dict[str, Tensor]]) -> None:
    case, trl = CASES[index], expected[index]
    own, judged = masks(case)
    logits, all_values = (case[name].clone().requires_grad_() for name in ("logits", "all_values"))
    advantages, returns = gae(case, rewards_as_in_trl(case), case["values"], judged)
    logprobs = token_logprobs(logits[:, :-1], case["responses"], 1.0)
    clip = case["args"]["cliprange"]
    whitened = whiten(advantages, own)
    policy = policy_loss(logprobs, case["logprobs"], whitened, own, clip_low=clip, clip_high=clip).sum() / own.sum()
    values, clip = all_values[:, :-1, 0], case["args"]["cliprange_value"]
    value = value_loss(values, case["values"], returns, judged, clip=clip).sum() / judged.sum()
    gradients = torch.autograd.grad(policy + value, (logits, all_values))
    assert close(logprobs[own].detach(), trl["new_logprobs"][own])
    assert close(policy.detach(), trl["pg_loss"], 1e-7)
    assert close(value.detach(), trl["vf_loss"])
    assert close(gradients[0], trl["logits_gradient"], 1e-7)
    assert close(gradients[1], trl["values_gradient"])
    assert min(float(gradient.abs().max()) for gradient in gradients) > 1e-3


@pytest.mark.parametrize(
    "index", [pytest.param(i, id=name) for i, name in enumerate(NAMES) if "gamma 1.0 lambda 1.0" in name]
)
def test_a_score_on_the_last_token_gives_the_advantages_of_trl_undiscounted(
    index: int, expected: list[dict[str, Tensor]]
) -> None:
    case, trl = CASES[index], expected[index]
    own, _ = masks(case)
    place = (torch.arange(B), case["sequence_lengths"])
    rewards = kl_rewards(case).index_put(place, case["scores"], accumulate=True)
    advantages, returns = gae(case, rewards, case["values"], own)
    assert close(returns[own], trl["returns"][own])
    assert close(whiten(advantages, own), trl["advantages"], 1e-7)
