"""What changes over a run: the learning rate and the weight of the KL, also across a resume."""

import copy
import io
import math
import shutil
from pathlib import Path

import pytest
import torch

from verigym.agents.learners.optimizer import Optimizer
from verigym.agents.learners.schedules import adapt_kl_coefficient, lr_schedule
from verigym.config import TrainConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.run_folder import RunFolder
from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.training import resume, train

# One-digit sums are answered right one time in five after the warm start: groups differ.
SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs={"level": 1, "max_tokens_per_turn": 8})


@pytest.mark.parametrize(
    ("kind", "warmup", "expected"),
    [
        ("constant", 0, [1, 1, 1, 1, 1, 1]),
        ("constant", 2, [1 / 2, 1, 1, 1, 1, 1]),
        ("linear", 0, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("linear", 2, [1 / 2, 1, 1, 3 / 4, 2 / 4, 1 / 4]),
        ("cosine", 3, [1 / 3, 2 / 3, 1, 1, 3 / 4, 1 / 4]),
    ],
)
def test_learning_rates_over_six_steps_worked_by_hand(kind: str, warmup: int, expected: list[float]) -> None:
    factor = lr_schedule(kind, warmup=warmup, steps=6)
    assert [factor(step) for step in range(6)] == pytest.approx(expected)
    assert factor(7) == (1 if kind == "constant" else pytest.approx(0))


def test_a_fall_without_an_end_and_an_unknown_schedule_are_refused() -> None:
    assert lr_schedule("constant", warmup=4, steps=None)(9) == 1
    for steps in (None, 4):
        with pytest.raises(ConfigError, match="the linear schedule needs more steps than the 4 of its warm-up"):
            lr_schedule("linear", warmup=4, steps=steps)
    with pytest.raises(UnknownNameError, match="did you mean 'cosine'"):
        lr_schedule("cosin", warmup=0, steps=4)


def a_network() -> torch.nn.Linear:
    return torch.nn.Linear(3, 1, bias=False).requires_grad_()


def steps_of(network: torch.nn.Linear, optimizer: Optimizer, steps: range) -> list[float]:
    rates = []
    for step in steps:
        (network(torch.tensor([1.0, step, -step])) - 1).square().sum().backward()
        optimizer.step()
        rates.append(optimizer.lr)
        optimizer.advance()
    return rates


def test_the_optimizer_follows_the_schedule_and_resumes_to_the_bit() -> None:
    schedule = lr_schedule("cosine", warmup=2, steps=9)
    start = a_network()
    whole, part = copy.deepcopy(start), copy.deepcopy(start)
    one = Optimizer(whole, 1e-2, schedule=schedule)
    rates = steps_of(whole, one, range(9))
    assert rates == pytest.approx([1e-2 * schedule(step) for step in range(9)])
    first = Optimizer(part, 1e-2, schedule=schedule)
    steps_of(part, first, range(4))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = Optimizer(part, 1e-2, schedule=schedule)
    second.load_state_dict(torch.load(file, weights_only=True))
    assert steps_of(part, second, range(4, 9)) == rates[4:]
    assert torch.equal(part.weight, whole.weight)


def test_a_run_that_is_resumed_for_more_steps_goes_on_at_the_rate_of_the_longer_one() -> None:
    network = a_network()
    first = Optimizer(network, 1.0, schedule=lr_schedule("linear", warmup=0, steps=4))
    steps_of(network, first, range(4))
    second = Optimizer(network, 1.0, schedule=lr_schedule("linear", warmup=0, steps=8))
    second.load_state_dict(first.state_dict())
    assert steps_of(network, second, range(4, 8)) == pytest.approx([4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_settings_that_change_when_a_run_is_resumed_are_followed() -> None:
    network = a_network()
    first = Optimizer(network, 1.0)
    steps_of(network, first, range(2))
    second = Optimizer(network, 0.5, beta2=0.99, weight_decay=0.1, schedule=lr_schedule("linear", warmup=0, steps=4))
    second.load_state_dict(first.state_dict())
    (group,) = second.adamw.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (0.25, (0.9, 0.99), 0.1)
    second.advance()
    assert second.lr == 0.125


@pytest.mark.parametrize(
    ("kl", "episodes", "expected"),
    [
        (0.011, 100, 0.5 * (1 + 0.1 * 0.1)),
        (0.008, 100, 0.5 * (1 - 0.2 * 0.1)),
        (5.0, 100, 0.5 * (1 + 0.2 * 0.1)),  # the error is clipped at a fifth
        (0.0, 100, 0.5 * (1 - 0.2 * 0.1)),
        (0.01, 100, 0.5),
        (0.0, 0, 0.5),  # nothing was learned, nothing is known
        (0.0, 9_000, 0.5 * 0.8),  # at most one horizon: the weight stays positive
    ],
)
def test_the_kl_coefficient_follows_the_error_of_the_kl(kl: float, episodes: int, expected: float) -> None:
    found = adapt_kl_coefficient(0.5, kl, target=0.01, episodes=episodes, horizon=1000)
    assert found == pytest.approx(expected, rel=1e-12)


def small(model: Path, run: Path, **changes: object) -> TrainConfig:
    values = {"model": str(model), "run": str(run), "envs": (SUMS,), "steps": 4, "groups": 4, "group_size": 4}
    return build(TrainConfig, values | {"deterministic": True, "checkpoint_every": 2, "tensorboard": False} | changes)


def figures(run: Path) -> list[dict[str, object]]:
    rows = RunFolder(run).metrics()
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.mark.parametrize("learner", ["grpo", "ppo"])
def test_schedule_and_adaptive_kl_resume_to_the_bit(warm_start: Path, tmp_path: Path, learner: str) -> None:
    settings = {"lr": 1e-3, "lr_schedule": "cosine", "lr_warmup": 1, "kl_coefficient": 0.1, "minibatches": 2}
    settings |= {"kl_control": "adaptive", "kl_target": 1e-3, "kl_horizon": 32}
    settings |= {"critic_warmup": 0} if learner == "ppo" else {"loss": "gspo", "correction": "token"}
    whole = train(small(warm_start, tmp_path / "whole", learner=learner, **{learner: settings}))
    # As if it had been killed between the checkpoint of step 2 and that of step 4.
    shutil.copytree(whole.folder, tmp_path / "part")
    shutil.rmtree(RunFolder(tmp_path / "part").latest())
    resume(tmp_path / "part")
    rows = figures(tmp_path / "part")
    assert rows == figures(whole.folder)
    one, other = (
        (RunFolder(run).latest() / "model.safetensors").read_bytes() for run in (whole.folder, tmp_path / "part")
    )
    assert one == other
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 1e-3, 0.75e-3, 0.25e-3])
    weights = [row["kl_coefficient"] for row in rows]
    for row, now, after in zip(rows, weights, weights[1:], strict=False):
        kl = float(row["kl"])
        assert after == pytest.approx(now * (1 + min(max(kl / 1e-3 - 1, -0.2), 0.2) * 16 / 32))
    assert weights[0] == 0.1
    assert not math.isclose(weights[1], 0.1)


def test_a_warm_up_longer_than_the_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the learning rate never falls"):
        small(tmp_path, tmp_path / "run", grpo={"lr_schedule": "linear", "lr_warmup": 4})
