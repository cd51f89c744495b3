"""Environment workers on a real Ray cluster of this machine: they play as environments here do, and may be lost."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from verigym.agents._workers import Workers
from verigym.agents.agent import LocalAgent, load_chat, save_checkpoint
from verigym.agents.collect import Collection, Collector
from verigym.agents.engines.config import EngineConfig, RayConfig
from verigym.agents.engines.make import make_engine
from verigym.agents.env_workers import EnvWorkers, RemoteEnv
from verigym.agents.episode import Episode, Plan
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.config import build
from verigym.envs.mixture import EnvSpec
from verigym.task_sampler import TaskSampler
from verigym.tasks.activity import doing
from verigym.tasks.errors import ConfigError, EngineError, EnvLostError, UnknownNameError
from verigym.verifiers.verdict import Outcome

SPECS = (EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 8}), EnvSpec("verigym/Desk-v0"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'verigym[ray]')")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def workers(cluster: None) -> Iterator[EnvWorkers]:
    workers = EnvWorkers(RayConfig(env_workers=2))
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> LocalAgent:
    folder, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    save_checkpoint(folder, tiny_model(len(tokenizer), layers=2, eos_token_id=tokenizer.eos_token_id), tokenizer)
    engine = make_engine(EngineConfig(), folder, dtype=torch.float32, slots=8)
    return LocalAgent(load_chat(folder)[1], engine, max_new_tokens=8)


def plans() -> list[Plan]:
    sampler = TaskSampler(SPECS, 0)
    return sampler.plan(sampler.start, 6, 4)[0]


def play(agent: LocalAgent, workers: EnvWorkers | None, **options: object) -> list[Episode]:
    collector = Collector(agent, SPECS, deterministic=True, env_workers=workers, **options)
    try:
        return collector.collect(plans())
    finally:
        collector.close()


def kill(workers: EnvWorkers, number: int) -> None:
    os.kill(workers.ask(workers._workers[number], "pid"), signal.SIGKILL)


def plain(episodes: Sequence[Episode]) -> list[dict]:
    return [episode.to_json() for episode in episodes]


def test_workers_play_what_is_played_here(agent: LocalAgent, workers: EnvWorkers) -> None:
    assert plain(play(agent, workers, snapshots=True)) == plain(play(agent, None, snapshots=True))
    assert workers.lost == 0


def test_episodes_of_a_lost_worker_are_played_again_and_none_is_lost_or_doubled(
    agent: LocalAgent, workers: EnvWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker is killed when twenty answers were given: episodes are in play and others wait, in both workers."""
    quiet, lost, answers, victims = play(agent, None), workers.lost, 0, [0]
    ask = workers.ask

    def count(worker: object, method: str, *arguments: object) -> object:
        nonlocal answers
        answers += method in ("reset", "step")
        if answers >= 20 and victims:
            kill(workers, victims.pop())
        return ask(worker, method, *arguments)

    monkeypatch.setattr(workers, "ask", count)
    # what else is in a batch changes the last digits of log-probabilities
    assert [row | {"logprobs": None} for row in plain(play(agent, workers, concurrency=10))] == [
        row | {"logprobs": None} for row in plain(quiet)
    ]
    assert answers > sum(1 + len(episode.turns) for episode in quiet)  # some were played again
    assert workers.lost == lost + 1


def test_workers_that_are_all_lost_before_an_episode_are_replaced(agent: LocalAgent, workers: EnvWorkers) -> None:
    quiet, lost = play(agent, None, snapshots=True), workers.lost
    for number in range(2):
        kill(workers, number)
    played = play(agent, workers, snapshots=True)
    # what else is in a batch changes the last digits of log-probabilities
    assert [row | {"logprobs": None} for row in plain(played)] == [row | {"logprobs": None} for row in plain(quiet)]
    assert workers.lost == lost + 2


def test_an_environment_whose_worker_does_not_answer_waits_for_that_worker(workers: EnvWorkers) -> None:
    env = workers.make(SPECS[0])
    number, calls = env._worker.number, Workers(1, timeout=float("inf"))
    pid = workers.ask(env._worker, "pid")
    os.kill(pid, signal.SIGSTOP)
    try:
        calls.submit("episode", lambda: env.reset(seed=3))
        activity = calls.open_calls()["episode"].activity
        while not activity.stack:
            time.sleep(0.01)
        waits = [(one.kind, one.name) for one in activity.stack]
    finally:
        os.kill(pid, signal.SIGCONT)
    while not calls.take(0.1):
        pass
    calls.close()
    env.close()
    assert waits == [("environment worker", str(number))]


class Stuck(gym.Env[str, str]):
    """Waits for a file to go."""

    def __init__(self, file: str) -> None:
        self.file = file

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[str, dict]:
        with doing("tool", "search"):
            while os.path.exists(self.file):
                time.sleep(0.01)
        return "found", {}


class StuckSpec(EnvSpec):
    def make(self) -> Stuck:
        return Stuck(**self.kwargs)


def test_what_goes_on_in_a_worker_is_told(agent: LocalAgent, workers: EnvWorkers, tmp_path: Path) -> None:
    import ray

    (file := tmp_path / "file").touch()
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    collector = Collector(agent, [StuckSpec("test/Stuck", kwargs={"file": str(file)})], env_workers=workers)
    try:
        collection = Collection(collector)
        collection.add([Plan(0, "task", 0, 0, 0)])
        waits = []
        deadline = time.monotonic() + 300
        while (not waits or waits[-1][0] != "tool") and time.monotonic() < deadline:
            collection.advance()
            ((episode,), _) = collection.playing()
            waits = [(one.kind, one.name) for one in episode.stack]
    finally:
        file.unlink()
        ray.cloudpickle.unregister_pickle_by_value(module)
    assert [kind for kind, _ in waits] == ["environment", "environment worker", "tool"]
    assert (waits[0][1], waits[2][1]) == ("reset", "search")
    collection.abandon()
    collector.close()


def test_an_environment_that_was_idle_when_its_worker_was_lost_is_made_again(workers: EnvWorkers) -> None:
    env = workers.make(SPECS[0])
    first, lost = env.reset(seed=3), workers.lost
    worker = env._worker
    kill(workers, worker.number)
    with pytest.raises(EnvLostError, match=f"environment worker {worker.number} was lost"):
        env.step("1")
    assert env.reset(seed=3) == first
    assert workers.lost == lost + 1
    env.close()


def test_an_episode_that_ends_its_worker_again_and_again_is_an_infrastructure_error_and_no_other_is(
    cluster: None, agent: LocalAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others have begun in the same worker."""
    workers = EnvWorkers(RayConfig(env_workers=1))
    others = [plan for plan in plans() if plan.group_id != 1]
    poison = next(plan for plan in plans() if plan.group_id == 1)
    reset = RemoteEnv.reset

    def deadly(env: RemoteEnv, *, seed: int | None = None, options: dict | None = None) -> object:
        if seed == poison.seed:
            kill(workers, 0)
        return reset(env, seed=seed, options=options)

    monkeypatch.setattr(RemoteEnv, "reset", deadly)
    collector = Collector(agent, SPECS, deterministic=True, env_workers=workers)
    try:
        episodes = collector.collect([*others, poison])
    finally:
        collector.close()
        workers.close()
    broken = [episode for episode in episodes if episode.verdict.outcome is Outcome.INFRA_ERROR]
    assert [episode.seed for episode in broken] == [poison.seed]
    assert len(episodes) == len(others) + 1
    assert "EnvLostError: environment worker" in broken[0].verdict.reason
    assert workers.lost == 4


def test_what_an_environment_raises_is_raised_as_it_is(workers: EnvWorkers) -> None:
    with pytest.raises(UnknownNameError, match="no environment 'verigym/Clculator-v0'; did you mean"):
        workers.make(EnvSpec("verigym/Clculator-v0"))


class TwoWords(Exception):  # noqa: N818 - many clients of servers have one like this
    """Can be pickled, and not unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


class Troubled(gym.Env[str, str]):
    """Raises or gives what cannot be sent from one process to another."""

    def __init__(self, trouble: str) -> None:
        self.trouble = trouble

    def reset(self, *, seed: int | None = None, options: object = None) -> tuple[str, dict]:
        if self.trouble == "exit":
            sys.exit("I am done")
        if self.trouble == "raise":
            raise TwoWords("no", "answer")
        return "hello", {"given": {"lock": threading.Lock(), "error": TwoWords("no", "answer")}[self.trouble]}


class TroubledSpec(EnvSpec):
    def make(self) -> Troubled:
        return Troubled(**self.kwargs)


@pytest.mark.parametrize(
    ("trouble", "said"),
    [
        ("raise", "TwoWords: no answer"),
        ("exit", "SystemExit: I am done"),
        ("lock", r"cannot pickle '_thread\.lock' object"),
        ("error", r"TwoWords\.__init__\(\) missing"),
    ],
)
def test_what_cannot_be_sent_costs_its_own_episode_and_no_worker(workers: EnvWorkers, trouble: str, said: str) -> None:
    import ray

    module, lost = sys.modules[__name__], workers.lost
    ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import this file
    try:
        env = workers.make(TroubledSpec("test/Troubled", kwargs={"trouble": trouble}))
    finally:
        ray.cloudpickle.unregister_pickle_by_value(module)
    with pytest.raises((RuntimeError, TypeError), match=said):
        env.reset(seed=0)
    env.close()
    assert workers.lost == lost


def test_workers_without_room_are_told(cluster: None, workers: EnvWorkers) -> None:
    with pytest.raises(EngineError, match=r"of 9 environment workers started within 0\.5 s; each needs a CPU core"):
        EnvWorkers(RayConfig(env_workers=9, timeout=0.5))


def test_a_negative_number_of_workers_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"engine\.ray\.env_workers must be at least 0, not -1"):
        build(EngineConfig, {"kind": "ray", "ray": {"env_workers": -1}}, "engine")
