"""Log-probabilities in chunks: the same numbers and gradients, and never all logits at a time."""

import copy

import numpy as np
import pytest
import torch

from verigym.agents.attention import install
from verigym.agents.episode import Episode, Turn
from verigym.agents.learners import scoring
from verigym.agents.learners.batch import MicroBatch, Sequences
from verigym.agents.learners.scoring import score_tokens
from verigym.agents.tiny import tiny_model
from verigym.tasks.errors import EngineError
from verigym.verifiers import Outcome, Verdict

VOCABULARY = 40


def make_model() -> torch.nn.Module:
    model = tiny_model(VOCABULARY, hidden_size=32, layers=2, heads=2, intermediate_size=48).double()
    install(model)
    return model


def make_micro() -> MicroBatch:
    rng = np.random.default_rng(0)
    episodes = []
    for length in (9, 12, 7):
        mask = np.arange(length) >= 3
        episodes.append(
            Episode(
                env_id="t",
                task_id="t",
                group_id=0,
                seed=0,
                token_ids=rng.integers(0, VOCABULARY, length),
                mask=mask,
                logprobs=np.zeros(length, np.float32),
                versions=np.zeros(length, np.int64),
                turns=(Turn(3, length, 1.0, "stop", limit=20),),
                messages=(),
                truncation=None,
                verdict=Verdict(1.0, Outcome.CORRECT, "by hand"),
            )
        )
    (micro,) = Sequences.of(episodes).micro_batches(1000, torch.device("cpu"))
    return micro


def gradients(model: torch.nn.Module, entropies: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    micro = make_micro()
    logprobs, spread = score_tokens(model, micro, 0.7, entropies=entropies)
    weights = torch.linspace(-1, 1, len(logprobs), dtype=torch.float64)
    (weights * logprobs + 0.1 * spread).sum().backward()
    return logprobs.detach(), spread.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("entropies", ["none", "value", "gradient"])
@pytest.mark.parametrize("rows", [1, 4, 7])
def test_chunks_give_the_same_scores_and_gradients(monkeypatch: pytest.MonkeyPatch, entropies: str, rows: int) -> None:
    whole = gradients(make_model(), entropies)
    monkeypatch.setattr(scoring, "MAX_LOGITS", rows * VOCABULARY)
    seen: list[int] = []
    model = make_model()
    model.lm_head.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-2]))
    chunked = gradients(model, entropies)
    assert max(seen) <= max(rows, 2)  # two for the proof of the head
    assert torch.allclose(chunked[0], whole[0], rtol=1e-12, atol=1e-12)
    assert torch.allclose(chunked[1], whole[1], rtol=1e-12, atol=1e-12)
    assert chunked[2].keys() == whole[2].keys()
    for name, gradient in whole[2].items():
        assert torch.allclose(chunked[2][name], gradient, rtol=1e-10, atol=1e-12), name


def test_a_model_that_scales_its_logits_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    plain = copy.deepcopy(model.forward)

    def scaled(*arguments: object, **options: object) -> object:
        output = plain(*arguments, **options)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(model, "forward", scaled)
    monkeypatch.setattr(scoring, "MAX_LOGITS", VOCABULARY)
    with pytest.raises(EngineError, match="model type 'qwen3' does more to its logits than its head"):
        score_tokens(model, make_micro(), 1.0)
