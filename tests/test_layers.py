"""Layers that are computed again or compiled: the same gradients, and the memory that it saves."""

import copy
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PhiConfig, PhiForCausalLM, PreTrainedModel

from verigym.agents.attention import install
from verigym.agents.episode import Episode, Turn
from verigym.agents.learners.batch import Sequences
from verigym.agents.learners.config import GRPOConfig, LoRAConfig, PPOConfig
from verigym.agents.learners.grpo import GRPO
from verigym.agents.learners.layers import compile_layers, recompute_layers, require_compiler
from verigym.agents.learners.ppo import PPO
from verigym.agents.learners.scoring import score_tokens
from verigym.agents.lora import add_adapter
from verigym.agents.scalar import ScalarModel
from verigym.agents.tiny import tiny_model
from verigym.tasks.errors import ConfigError, EngineError
from verigym.verifiers import Outcome, Verdict

VOCABULARY = 40


def make_model(layers: int = 2) -> PreTrainedModel:
    return tiny_model(VOCABULARY, hidden_size=32, layers=layers, heads=4, intermediate_size=48).eval()


def adapted_model() -> PreTrainedModel:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    model = make_model()
    add_adapter(model, LoRAConfig(rank=2), seed=0)
    return model


def model_with_dropout() -> PreTrainedModel:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PhiForCausalLM(PhiConfig(vocab_size=VOCABULARY, **shape, **ends, resid_pdrop=0.5, embd_pdrop=0.5))


def make_episodes() -> list[Episode]:
    """A group of four, of which one is right."""
    rng, episodes = np.random.default_rng(0), []
    for number, length in enumerate((9, 12, 7, 30)):
        mask, reward = np.arange(length) >= 3, float(number == 0)
        episodes.append(
            Episode(
                env_id="t",
                task_id="t",
                group_id=0,
                seed=0,
                token_ids=rng.integers(0, VOCABULARY, length),
                mask=mask,
                logprobs=np.where(mask, -3.0, 0).astype(np.float32),
                versions=np.where(mask, 0, -1),
                turns=(Turn(3, length, reward, "stop", limit=40),),
                messages=(),
                truncation=None,
                verdict=Verdict(reward, Outcome.CORRECT, "by hand"),
            )
        )
    return episodes


def backward(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor], int]:
    """Log-probabilities of a batch, the gradients of their sum, and bytes that were kept for them."""
    (micro,) = Sequences.of(make_episodes()).micro_batches(1000, torch.device("cpu"))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    weights = {parameter.data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs, _ = score_tokens(model, micro, 1.0)
    logprobs.sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logprobs.detach(), found, sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("make", [make_model, adapted_model, model_with_dropout])
def test_recomputed_layers_give_the_same_gradients_to_the_bit_and_keep_less(
    make: Callable[[], PreTrainedModel],
) -> None:
    plain, recomputed = make(), make()
    forwards = [0, 0]
    for index, model in enumerate((plain, recomputed)):

        def count(*_: object, index: int = index) -> None:
            forwards[index] += 1

        model.base_model.layers[0].input_layernorm.register_forward_hook(count)
        install(model)
    recompute_layers(recomputed)
    forwards[:] = [0, 0]
    one, two = backward(plain), backward(recomputed)
    assert forwards == [1, 2]
    assert torch.equal(one[0], two[0])
    assert one[1].keys() == two[1].keys()
    assert all(torch.equal(gradient, two[1][name]) for name, gradient in one[1].items())
    assert two[2] < one[2] / 2


def test_nothing_is_recomputed_where_no_gradient_is_wanted() -> None:
    model = make_model()
    install(model)
    expected = copy.deepcopy(model)
    recompute_layers(model)
    with torch.no_grad():
        (micro,) = Sequences.of(make_episodes()).micro_batches(1000, torch.device("cpu"))
        assert torch.equal(score_tokens(model, micro, 1.0)[0], score_tokens(expected, micro, 1.0)[0])


def learner_gradients(kind: str, **settings: bool) -> tuple[dict[str, Tensor], list[int]]:
    """Gradients of policy and critic of one update, and how often the first layer of each was computed."""
    critic = ScalarModel(make_model().base_model)
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    options = {"max_grad_norm": 1e9, **settings}
    if kind == "grpo":
        learner, networks = GRPO(make_model(), GRPOConfig(**options)), {}
    else:
        once = {"epochs": 1, "minibatches": 1, "critic_warmup": 0}
        learner = PPO(make_model(), PPOConfig(**options, **once), critic=critic)
        networks = {"critic": (critic, learner.critic_optimizer, critic.trunk)}
    networks["policy"] = (learner.model, learner.optimizer, learner.model.base_model)
    found: dict[str, Tensor] = {}
    forwards = dict.fromkeys(networks, 0)
    for name, (network, optimizer, trunk) in networks.items():

        def step(name: str = name, network: torch.nn.Module = network) -> dict[str, float]:
            found.update({f"{name}.{n}": p.grad.clone() for n, p in network.named_parameters() if p.grad is not None})
            network.zero_grad()
            return {"grad_norm": 0.0, "skipped": 0.0}

        def count(*_: object, name: str = name) -> None:
            forwards[name] += 1

        optimizer.step = step
        trunk.layers[0].input_layernorm.register_forward_hook(count)
    episodes = make_episodes()
    learner.update(episodes, learner.advantages(episodes))
    return found, list(forwards.values())


@pytest.mark.parametrize("kind", ["grpo", "ppo"])
def test_learners_recompute_policy_and_critic_when_asked(kind: str) -> None:
    plain, recomputed = learner_gradients(kind), learner_gradients(kind, gradient_checkpointing=True)
    assert [after - before for before, after in zip(plain[1], recomputed[1], strict=True)] == [1] * len(plain[1])
    assert plain[0].keys() == recomputed[0].keys()
    assert all(torch.equal(gradient, recomputed[0][name]) for name, gradient in plain[0].items())


def test_a_model_whose_layers_are_not_marked_is_refused_by_name() -> None:
    model = make_model()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(EngineError, match="model type 'qwen3' does not mark its layers"):
        recompute_layers(model)


# Compiled.


@pytest.fixture
def compiler() -> None:
    try:
        require_compiler("cpu")
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("compiler")
def test_compiled_layers_give_the_same_log_probabilities_and_gradients() -> None:
    plain = make_model(layers=1)
    compiled, both = copy.deepcopy(plain), copy.deepcopy(plain)
    for model in (plain, compiled, both):
        install(model)
    compile_layers(compiled)
    compile_layers(both)
    recompute_layers(both)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    expected = backward(plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    for model in (compiled, both):
        logprobs, gradients, _ = backward(model)
        assert torch.allclose(logprobs, expected[0], atol=1e-5)
        assert gradients.keys() == expected[1].keys()
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, expected[1][name], rtol=1e-4, atol=1e-5), name
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > graphs


def test_without_a_compiler_the_error_is_one_line_that_says_what_to_do() -> None:
    code = "from verigym.agents.learners.layers import require_compiler; require_compiler('cpu')"
    command = ["env", "CXX=/nowhere/g++", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "ConfigError: compile does not work on this machine (InvalidCxxCompiler" in last
    assert last.endswith("install a C++ compiler, or set compile to false")
