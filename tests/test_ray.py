"""Engine actors on a real Ray cluster of this machine: what they play, how they learn, and that they may be lost."""

import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from verigym.agents.agent import load_model, save_checkpoint
from verigym.agents.engines.config import EngineConfig, RayConfig
from verigym.agents.engines.engine import Engine, Generation, Request, Sampling
from verigym.agents.engines.make import make_engine
from verigym.agents.engines.ray import RayEngine
from verigym.agents.tiny import tiny_model, tiny_tokenizer

PLAIN = partial(make_engine, EngineConfig(), dtype=torch.float32, slots=8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    save_checkpoint(folder, tiny_model(len(tokenizer), layers=2, eos_token_id=tokenizer.eos_token_id), tokenizer)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine, to which the engines of these tests connect."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'verigym[ray]')")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def engine(cluster: None, checkpoint: Path) -> Iterator[RayEngine]:
    engine = RayEngine(PLAIN, checkpoint, RayConfig(), dtype=torch.float32)
    yield engine
    engine.close()


def ask(number: int, ids: list[int], tokens: int = 12) -> Request:
    return Request(number, number, ids, number, Sampling(tokens))


def drive(engine: Engine) -> list[Generation]:
    done: list[Generation] = []
    while engine.pending:
        done += engine.step()
    return done


def kill(engine: RayEngine, number: int) -> None:
    started = engine._seats[number].started
    assert started is not None
    os.kill(started.pid, signal.SIGKILL)


@torch.no_grad()
def moved(model: PreTrainedModel, size: float = 1e-2) -> PreTrainedModel:
    """The model with every weight changed."""
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * size)
    return model


def test_actors_play_what_one_engine_plays(engine: RayEngine, checkpoint: Path) -> None:
    requests = [ask(i, [1, 2, 3, i // 4]) for i in range(24)]
    seen = [set(seat.episodes) for seat in engine._seats]
    assert seen == [set(), set()]
    played = engine.run(requests)
    assert [len(seat.episodes) for seat in engine._seats] == [12, 12]
    # members of a group are together
    assert all(len({engine._homes[i] for i in range(first, first + 4)}) == 1 for first in range(0, 24, 4))
    plain = PLAIN(checkpoint).run(requests)
    assert [generation.token_ids for generation in played] == [generation.token_ids for generation in plain]
    for request, generation in zip(requests, played, strict=True):
        engine.release(request.episode_id)
        assert set(generation.versions) == {0}
    assert engine._homes == {}


def test_a_group_of_many_is_divided(engine: RayEngine) -> None:
    requests = [ask(i, [1, 2, 3], 1) for i in range(64)]
    engine.run(requests)
    sizes = [len(seat.episodes) for seat in engine._seats]
    for request in requests:
        engine.release(request.episode_id)
    assert min(sizes) >= 24


def test_weights_reach_every_actor_and_running_requests(engine: RayEngine, checkpoint: Path) -> None:
    requests = [ask(i, [4, 5, i % 3], 200) for i in range(6)]
    for request in requests:
        engine.submit(request)
    while not all(seat.call for seat in engine._seats):  # both are playing
        assert not engine.step()
    model = moved(load_model(checkpoint))
    engine.update_weights(model.named_parameters(), 3)
    models = {0: load_model(checkpoint), 3: model}
    for generation in drive(engine):
        assert list(generation.versions) == sorted(generation.versions)
        assert set(generation.versions) <= {0, 3}
        assert generation.versions[-1] == 3
        ids, start = [*requests[generation.id].token_ids, *generation.token_ids], 3
        with torch.no_grad():
            full = {v: model(torch.tensor([ids])).logits[0].log_softmax(-1) for v, model in models.items()}
        for i, (token, logprob) in enumerate(zip(generation.token_ids, generation.logprobs, strict=True)):
            assert float(full[generation.versions[i]][start + i - 1, token]) == pytest.approx(logprob, abs=1e-4)
        engine.release(generation.id)
    assert engine.version == 3
    assert len(engine.held()) == len(list(model.parameters()))  # the same of both actors
    engine.update_weights(models[0].named_parameters(), 0)


def test_cancelled_requests_return_nothing(engine: RayEngine) -> None:
    for number in range(6):
        engine.submit(ask(number, [7, 8, number], 60))
    engine.step()
    for number in (0, 3, 99):
        engine.cancel(number)
    assert {generation.id for generation in drive(engine)} <= {1, 2, 4, 5}
    for number in range(6):
        engine.release(number)


def test_a_killed_actor_loses_and_doubles_nothing(engine: RayEngine, checkpoint: Path) -> None:
    """Its requests are drawn again from the same seeds: the result is that of a quiet run, with the newest weights."""
    model = moved(load_model(checkpoint))
    engine.update_weights(model.named_parameters(), 5)
    requests = [ask(i, [1, 2, 3, i], 40) for i in range(24)]
    for request in requests:
        engine.submit(request)
    engine.step()
    lost = engine.lost
    kill(engine, 0)
    done = drive(engine)
    assert sorted(generation.id for generation in done) == list(range(24))
    again = [Request(100 + request.id, request.id, *_rest(request)) for request in requests]
    assert sorted(generation.id for generation in engine.run(again)) == [request.id for request in again]
    plain = PLAIN(checkpoint)
    plain.update_weights(model.named_parameters(), 5)
    quiet = {generation.id: generation.token_ids for generation in plain.run(requests)}
    assert {generation.id: generation.token_ids for generation in done} == quiet
    # the new actor is asked too
    assert len(engine.held()) == len(list(model.parameters()))
    assert engine.lost == lost + 1
    assert {seat.serial for seat in engine._seats} == {engine._updates[-1].serial}


def _rest(request: Request) -> tuple:
    return request.token_ids, request.seed, request.sampling
