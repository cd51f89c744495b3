"""The proof that weights reach the engine, against engines with faults made on purpose."""

import copy
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from verigym.agents.attention import IMPLEMENTATION
from verigym.agents.engines.engine import Held
from verigym.agents.engines.sync import SyncReport, WeightSync
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.tiny import tiny_model
from verigym.tasks.errors import SyncError

VOCABULARY = 40
Tensors = list[tuple[str, Tensor]]


def make_model(*, tied: bool = False, seed: int = 0) -> PreTrainedModel:
    if not tied:
        model = tiny_model(VOCABULARY, seed=seed, hidden_size=32, layers=2, heads=4, intermediate_size=48)
    else:
        config = tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=4, intermediate_size=48).config.to_dict()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = Qwen3ForCausalLM(Qwen3Config(**{**config, "tie_word_embeddings": True}))
    change(model, 0.1, seed=99)  # so that the scores depend on every tensor
    model.set_attn_implementation(IMPLEMENTATION)
    return model.eval()


def change(model: PreTrainedModel, size: float, *, seed: int) -> None:
    """An update of the learner: every weight moves by about `size`."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


class FaultyEngine(TransformersEngine):
    """Takes what a fault makes of the tensors, from the moment that the fault is set."""

    fault: Callable[["FaultyEngine", Tensors], Tensors] | None = None

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        tensors = list(tensors)
        super().update_weights(self.fault(self, tensors) if self.fault else tensors, version)


class Unreadable(FaultyEngine):
    """One whose weights cannot be read back, as those of a server."""

    def held(self) -> list[Held]:
        return []


class Twins(FaultyEngine):
    """Two copies, of which the fault befalls the second."""

    copies = 2

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.twin = Unreadable(copy.deepcopy(model))

    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        tensors = list(tensors)
        TransformersEngine.update_weights(self, tensors, version)
        self.twin.fault = self.fault
        self.twin.update_weights(tensors, version)

    def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        half = len(token_ids) // 2
        return [*super().score(token_ids[:half], temperature), *self.twin.score(token_ids[half:], temperature)]


def make_sync(
    *, tied: bool = False, dtype: torch.dtype = torch.float32, engine: type[TransformersEngine] = FaultyEngine
) -> WeightSync:
    model = make_model(tied=tied)
    sync = WeightSync(model, engine(copy.deepcopy(model).to(dtype)))
    sync.start(0)
    return sync


def drop(*names: str) -> Callable[[FaultyEngine, Tensors], Tensors]:
    return lambda engine, tensors: [(name, tensor) for name, tensor in tensors if name not in names]


def rename(names: dict[str, str]) -> Callable[[FaultyEngine, Tensors], Tensors]:
    return lambda engine, tensors: [(names.get(name, name), tensor) for name, tensor in tensors]


def half_way(engine: FaultyEngine, tensors: Tensors) -> Tensors:
    return [(name, torch.lerp(engine._weights[name].float(), tensor, 0.5)) for name, tensor in tensors]


def scale(factor: float, only: str = "") -> Callable[[FaultyEngine, Tensors], Tensors]:
    return lambda engine, tensors: [(name, tensor * factor if only in name else tensor) for name, tensor in tensors]


def transpose_square(engine: FaultyEngine, tensors: Tensors) -> Tensors:
    return [(n, t.T if t.dim() == 2 and t.shape[0] == t.shape[1] else t) for n, t in tensors]


def only_in_full_updates(fault: Callable[[FaultyEngine, Tensors], Tensors]) -> Callable[..., Tensors]:
    return lambda engine, tensors: fault(engine, tensors) if len(tensors) > 1 else tensors


Q = "model.layers.{}.self_attn.q_proj.weight"
LAST = ("model.layers.1.mlp.down_proj.weight", "model.norm.weight", "lm_head.weight")
FAULTS = {
    "stale head": (drop("lm_head.weight"), "lm_head.weight"),
    "stale norm": (drop("model.layers.1.self_attn.k_norm.weight"), "model.layers.1.self_attn.k_norm.weight"),
    "swapped layers": (rename({Q.format(0): Q.format(1), Q.format(1): Q.format(0)}), Q.format(0)),
    "transposed": (transpose_square, Q.format(0)),
    "ignores everything": (lambda engine, tensors: [], "model.embed_tokens.weight"),
    "half an update": (half_way, "model.embed_tokens.weight"),
    "scaled": (scale(1.3, "layers.1.self_attn.v_proj"), "model.layers.1.self_attn.v_proj.weight"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_proof_names_the_tensor_that_the_engine_does_not_follow(fault: str, dtype: torch.dtype) -> None:
    sync = make_sync(dtype=dtype)
    sync.engine.fault, name = FAULTS[fault][0], FAULTS[fault][1]
    before = copy.deepcopy(sync.model.state_dict())
    with pytest.raises(SyncError, match=f"does not follow the tensor '{name}'"):
        sync.prove_each()
    assert all(torch.equal(value, before[key]) for key, value in sync.model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_a_sound_engine_follows_every_tensor_and_both_sides_end_as_they_began(tied: bool, dtype: torch.dtype) -> None:
    sync = make_sync(tied=tied, dtype=dtype)
    learner, engine = (copy.deepcopy(model.state_dict()) for model in (sync.model, sync.engine.model))
    assert sync.prove_each() == ()
    for model, before in ((sync.model, learner), (sync.engine.model, engine)):
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (sync.engine.pending, sync.engine._paused, sync.engine.prompts.lengths) == (0, {}, [])
    assert sync.engine.version == 0


def test_weights_that_differ_at_the_start_are_noticed() -> None:
    model = make_model()
    engine = FaultyEngine(copy.deepcopy(model))
    engine.fault = drop("lm_head.weight")
    change(model, 0.01, seed=1)
    with pytest.raises(
        SyncError, match=r"differ by .* nats on the same weights .* more than the 0\.001 that float32 explains"
    ):
        WeightSync(model, engine).start(0)


@pytest.mark.parametrize(
    "fault",
    [
        lambda engine, tensors: [],
        half_way,
        scale(1.01),
        drop("lm_head.weight"),
        drop(*LAST),
        drop("model.layers.1.self_attn.k_norm.weight"),
        rename({Q.format(0): Q.format(1), Q.format(1): Q.format(0)}),
        lambda engine, tensors: tensors[: len(tensors) // 2],
    ],
    ids=["ignored", "half way", "scaled", "stale head", "stale end", "skipped tensor", "swapped layers", "first half"],
)
@pytest.mark.parametrize("engine", [FaultyEngine, Unreadable])
def test_a_fault_of_full_updates_alone_is_caught_at_the_first_send(
    fault: Callable[..., Tensors], engine: type[FaultyEngine]
) -> None:
    sync = make_sync(engine=engine)
    sync.engine.fault = only_in_full_updates(fault)
    sync.prove_each()
    change(sync.model, 1e-3, seed=1)
    why = "its scores moved" if engine is Unreadable else "it holds another"
    with pytest.raises(SyncError, match=f"version 7 did not reach the engine: {why}"):
        sync.send(7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_stale_tensor_that_no_score_tells_is_named(dtype: torch.dtype) -> None:
    sync = make_sync(dtype=dtype)
    sync.engine.fault = drop("model.layers.1.self_attn.k_norm.weight")
    change(sync.model, 1e-3, seed=1)
    with torch.no_grad():
        sync.model.get_parameter("model.layers.1.self_attn.k_norm.weight").copy_(
            sync.engine.model.get_parameter("model.layers.1.self_attn.k_norm.weight")
        )
        sync.model.get_parameter("model.layers.1.self_attn.k_norm.weight")[0] += 1e-2
    with pytest.raises(SyncError, match=r"it holds another model\.layers\.1\.self_attn\.k_norm"):
        sync.send(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_larger_than_what_is_read_at_a_time_is_read_whole(dtype: torch.dtype) -> None:
    tensor = torch.randn(1500, 1001, generator=torch.Generator().manual_seed(0)).to(dtype).T  # not contiguous
    held = Held.of(("name",), tensor)
    assert held.total == pytest.approx(float(tensor.double().sum()), rel=1e-10)
    assert held.squares == pytest.approx(float(tensor.double().square().sum()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_stale_copy_beside_a_sound_one_is_caught(dtype: torch.dtype) -> None:
    sync = make_sync(engine=Twins, dtype=dtype)
    assert sync.prove_each() == ()
    change(sync.model, 1e-2, seed=1)
    assert sync.send(1).proven
    sync.engine.fault = lambda engine, tensors: []
    change(sync.model, 1e-2, seed=2)
    with pytest.raises(SyncError, match=r"version 2 did not reach the engine: its scores moved -?0\.0"):
        sync.send(2)


def test_a_sync_that_is_resumed_with_more_copies_begins_its_proof_anew() -> None:
    one, two = make_sync(), make_sync(engine=Twins)
    two.load_state_dict(one.state_dict())
    change(two.model, 1e-3, seed=1)
    assert two.send(1).proven


def test_an_engine_that_moves_while_the_learner_stands_still_is_caught() -> None:
    sync = make_sync(engine=Unreadable)
    sync.engine.fault = scale(1.001)
    with pytest.raises(SyncError, match="nats beside a change of 0"):
        sync.send(1)


@pytest.mark.parametrize("moment", ["start", "each", "send"])
def test_scores_that_are_not_numbers_are_an_error(moment: str) -> None:
    class Broken(TransformersEngine):
        broken = False

        def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[NDArray[np.float32]]:
            return [scores * (np.nan if self.broken else 1) for scores in super().score(token_ids, temperature)]

    sync = make_sync(engine=Broken)
    sync.engine.broken = True
    change(sync.model, 1e-3, seed=1)
    call = {"start": lambda: sync.start(1), "each": sync.prove_each, "send": lambda: sync.send(1)}[moment]
    with pytest.raises(SyncError, match="nan"):
        call()


@pytest.mark.parametrize("kept", ["episodes", "prompts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_of_older_weights_are_noticed(kept: str, dtype: torch.dtype) -> None:
    class Hoarder(TransformersEngine):
        def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
            paused, by_slot, by_ids = dict(self._paused), list(self.prompts._by_slot), dict(self.prompts._by_ids)
            super().update_weights(tensors, version)
            if kept == "prompts" or paused:
                self.prompts._by_slot, self.prompts._by_ids = by_slot, by_ids
            if kept == "episodes":
                self._paused = paused

    sync = make_sync(engine=Hoarder, dtype=dtype)
    with pytest.raises(SyncError, match="keys and values of older weights"):
        sync.prove_each()
    change(sync.model, 1e-2 if dtype == torch.float32 else 5e-2, seed=1)
    with pytest.raises(SyncError, match="version 7: the engine goes on with keys and values of older weights"):
        sync.send(7)


def test_a_tensor_that_no_score_depends_on_is_reported() -> None:
    model = make_model()
    model.register_parameter("spare", torch.nn.Parameter(torch.ones(3)))
    sync = WeightSync(model, TransformersEngine(copy.deepcopy(model)))
    sync.start(0)
    assert sync.prove_each() == ("spare",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_tiny_updates_raise_no_false_alarm(tied: bool, dtype: torch.dtype) -> None:
    sync = make_sync(tied=tied, dtype=dtype)
    # As if from a checkpoint in bfloat16: at the start the engine's copy is exact, later it is rounded.
    with torch.no_grad():
        for parameter in sync.model.parameters():
            parameter.copy_(parameter.bfloat16())
    sync.start(0)
    reports = []
    for step, size in enumerate(np.geomspace(1e-7, 3e-3, 50)):
        change(sync.model, float(size), seed=step)
        reports.append(sync.send(step + 1))
    proven = [report.proven for report in reports]
    assert all(abs(report.slope - 1) < 0.15 for report in reports)
    assert not proven[0]
    assert all(proven[-4:])
    assert (sum(proven) > 25) == (dtype == torch.float32)


def drift(sync: WeightSync, steps: int) -> list[SyncReport]:
    """So many small updates, all of them one way, until a report is proven."""
    reports: list[SyncReport] = []
    while len(reports) < steps and not (reports and reports[-1].proven):
        change(sync.model, 1e-4, seed=1)
        reports.append(sync.send(len(reports) + 1))
        assert sync.unproven == (0 if reports[-1].proven else len(reports))
    return reports


def test_changes_below_the_noise_add_up_until_they_are_proven() -> None:
    sync = make_sync(dtype=torch.bfloat16)
    reports = drift(sync, 100)
    assert 3 < len(reports) < 100
    assert {report.slope for report in reports[:-1]} == {1.0}
    assert abs(reports[-1].slope - 1) < 0.15
    deaf = make_sync(dtype=torch.bfloat16)
    deaf.engine.fault = lambda engine, tensors: []
    with pytest.raises(SyncError, match="did not reach the engine"):
        drift(deaf, len(reports))


def test_a_resumed_sync_goes_on_from_the_last_proven_version() -> None:
    one, two = make_sync(dtype=torch.bfloat16), make_sync(dtype=torch.bfloat16)
    for step in range(3):
        change(one.model, 1e-4, seed=1)
        assert not one.send(step + 1).proven
    two.model.load_state_dict(one.model.state_dict())
    two.start(3)
    two.load_state_dict(one.state_dict())
    assert two.prove_each() == ()
    assert two.unproven == 3
    for step in range(3, 40):
        for sync in (one, two):
            change(sync.model, 1e-4, seed=1)
        assert one.send(step + 1) == two.send(step + 1)
        assert one.state_dict() == two.state_dict()
    assert one.unproven < 37
