"""The sizing table of docs/scale.md: of what the formulas say, which count what transformers makes."""

import runpy
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from verigym.agents.engines.config import EngineConfig
from verigym.config import TrainConfig, build, read_recipe

ROOT = Path(__file__).parents[1]
SIZING = runpy.run_path(str(ROOT / "benchmarks" / "sizing.py"))


@pytest.mark.parametrize("name", SIZING["SHAPES"])
def test_a_shape_has_the_parameters_of_the_model(name: str) -> None:
    shape = SIZING["Shape"](*SIZING["SHAPES"][name])
    config = Qwen3Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    assert shape.parameters == model.num_parameters()
    assert shape.trunk == model.model.num_parameters()


def test_sizes_worked_by_hand() -> None:
    """A GPU of 1 GB, a model of 24M parameters: 8M of embedding, tied, and 2 layers of 8M."""
    shape = SIZING["Shape"](1000, 2, 10, 10, 100, 1_332, 8_000, True)
    assert shape.parameters == 8_000_000 + 2 * (4_000_000 + 200 + 3_996_000 + 2_000) + 1_000
    needed = SIZING["need"](shape, SIZING["Options"](gpu=1.0, context=1000, sequences=10, tokens_per_forward=1000))
    assert needed.grpo == pytest.approx(16 * 23.9974e-3, abs=1e-6)
    assert needed.ppo == pytest.approx(2 * needed.grpo)
    assert needed.forward == pytest.approx(2 * 23.9974e-3 + 4 * 1000 * 2 * 1000 / 1e9, abs=1e-6)
    assert needed.kv == pytest.approx(10 * 1000 * 2 * 2 * 2 * 1000 / 1e9)
    gpus = SIZING["gpus"]
    assert [gpus(state, needed, SIZING["Options"](gpu=1.0)) for state in (0.84, 0.85, 1.7, 3.5, 3.6)] == [1, 2, 2, 4, 8]


def test_the_docs_have_the_table_that_the_script_prints() -> None:
    assert SIZING["table"](SIZING["Options"]()) in (ROOT / "docs" / "scale.md").read_text()


@pytest.mark.parametrize("name", ["one_gpu", "one_node", "many_nodes"])
def test_a_recipe_for_gpus_says_how_it_is_started_and_is_in_the_docs(name: str) -> None:
    path = ROOT / "recipes" / f"{name}.yaml"
    config = build(TrainConfig, read_recipe(path), str(path))
    assert config.engine != EngineConfig()
    for spec in config.envs:
        spec.find()
    assert f"train recipes/{name}.yaml" in path.read_text()
    assert f"train recipes/{name}.yaml`" in (ROOT / "docs" / "scale.md").read_text()
