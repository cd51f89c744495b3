"""Engine actors on a Ray cluster of several nodes, of which one is lost."""

from functools import partial
from pathlib import Path

import pytest
import torch

from verigym.agents.agent import save_checkpoint
from verigym.agents.engines.config import EngineConfig, RayConfig
from verigym.agents.engines.engine import Generation, Request, Sampling
from verigym.agents.engines.make import make_engine
from verigym.agents.engines.ray import RayEngine
from verigym.agents.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.slow
MEMORY = 100_000_000  # bytes of a node's object store


def test_a_lost_node_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Three nodes of a real cluster, all on this machine: the driver's, and two with room for an actor each."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'verigym[ray]')")
    from ray.cluster_utils import Cluster

    tokenizer = tiny_tokenizer()
    save_checkpoint(tmp_path, tiny_model(len(tokenizer), layers=2, eos_token_id=tokenizer.eos_token_id), tokenizer)
    node = {"num_cpus": 1, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "num_cpus": 0})
    try:
        nodes = [cluster.add_node(**node) for _ in range(2)]
        plain = partial(make_engine, dtype=torch.float32, slots=8)
        engine = plain(EngineConfig("ray", ray=RayConfig(address=cluster.address)), tmp_path)
        assert isinstance(engine, RayEngine)
        requests = [Request(i, i, [1, 2, 3, i], i, Sampling(200)) for i in range(16)]
        for request in requests:
            engine.submit(request)
        engine.step()
        cluster.remove_node(nodes[0], allow_graceful=False)
        cluster.add_node(**node)
        played: list[Generation] = []
        while engine.pending:
            played += engine.step()
        quiet = plain(EngineConfig(), tmp_path).run(requests)
        assert sorted((g.id, g.token_ids) for g in played) == [(g.id, g.token_ids) for g in quiet]
        scores = engine.score([[1, 2, 3, 4]] * 2)  # by the actor that stayed and by the new one
        assert scores[0] == pytest.approx(scores[1], abs=1e-5)
        assert engine.lost == 1
        engine.close()
        assert not ray.is_initialized()
    finally:
        cluster.shutdown()
