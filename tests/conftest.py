"""Models and sandboxes that several test files use, made once."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from verigym.verifiers.sandbox import Sandbox

make_sandbox = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))["make"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was never trained: what it says means nothing, and is the same everywhere."""
    from verigym.agents.agent import save_checkpoint
    from verigym.agents.tiny import tiny_model, tiny_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("checkpoint"), tiny_tokenizer()
    save_checkpoint(folder, tiny_model(len(tokenizer), layers=2, eos_token_id=tokenizer.eos_token_id), tokenizer)
    return folder


@pytest.fixture(scope="session")
def warm_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that knows the form of answers and calls, and answers one sum in five right: groups differ."""
    from verigym.config import SFTConfig
    from verigym.envs.mixture import EnvSpec
    from verigym.supervised import sft

    calculator = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24})
    sums = EnvSpec("verigym/Arithmetic-v0", weight=3.0, kwargs={"level": 1, "max_tokens_per_turn": 8})
    folder = tmp_path_factory.mktemp("warm-start") / "model"
    sft(SFTConfig(envs=(calculator, sums), output=str(folder), steps=80, batch_size=64, demonstrations=512))
    return folder


@pytest.fixture(scope="module")
def box() -> Iterator[Sandbox]:
    """A sandbox of bubblewrap, for the tests of one file."""
    sandbox = make_sandbox("bubblewrap")
    yield sandbox
    sandbox.close()
