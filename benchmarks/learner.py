"""Memory and time of a learner's step: of the logits, of the layers, of what a weight needs in order to learn.

    python benchmarks/learner.py [--vocabulary 152000] [--tokens 800] [--hidden-size 256] [--layers 8] [--repeats 3]

Each measure is a process of its own, the ways of a table interleaved. A step is forward and backward of the summed
log-probabilities, entropies as a metric, of a model with random weights. Memory is that of the first step (after one of
a few tokens), time that of the third.
"""

from __future__ import annotations

import ctypes
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import psutil
import torch
import tyro

from verigym.agents.attention import install
from verigym.agents.episode import Episode, Turn
from verigym.agents.learners import scoring
from verigym.agents.learners.batch import Sequences
from verigym.agents.learners.config import LoRAConfig
from verigym.agents.learners.layers import compile_layers, recompute_layers
from verigym.agents.learners.optimizer import Optimizer
from verigym.agents.lora import add_adapter
from verigym.agents.tiny import tiny_model
from verigym.verifiers import Outcome, Verdict

PROMPT = 3
NAMES = ("mb", "held", "seconds")
LOGITS = ("all logits", "in chunks")
LAYERS = ("kept", "recomputed", "compiled", "compiled, recomputed")
WEIGHTS = ("all weights", "adapter of rank 16")


@dataclass(frozen=True)
class Options:
    """Sizes of what is measured."""

    vocabulary: int = 152_000
    """Tokens of the vocabulary, in the table of the logits; its model is all vocabulary (hidden size 64)."""
    tokens: int = 800
    """Policy tokens, in four episodes."""
    hidden_size: int = 256
    """Width of the model in the other tables, whose vocabulary is 2000."""
    layers: int = 8
    """Its layers."""
    repeats: int = 3
    """Measures of each way."""
    way: str = ""
    """Measure one way only, in this process, and print it as JSON."""


def measure(options: Options) -> dict[str, float]:
    """The peak of memory above what was in use before, and what the optimizer holds, in MB; seconds."""
    model = make_model(options)
    optimizer = Optimizer(model, 1e-6)
    step(model, options.vocabulary, 16)
    optimizer.adamw.zero_grad(set_to_none=True)
    keep_freed_memory(False)  # else the peak is that of the allocator's habits
    before = psutil.Process().memory_info().rss / 2**20
    step(model, options.vocabulary, options.tokens)
    mb = peak() - before
    learning = [parameter.grad for parameter in optimizer.parameters if parameter.grad is not None]
    optimizer.step()
    learning += [tensor for state in optimizer.adamw.state.values() for tensor in state.values()]
    held = sum(tensor.numel() * tensor.element_size() for tensor in learning) / 2**20
    keep_freed_memory(True)
    step(model, options.vocabulary, options.tokens)
    started = time.perf_counter()
    step(model, options.vocabulary, options.tokens)
    return {"mb": mb, "held": held, "seconds": time.perf_counter() - started}


def keep_freed_memory(keep: bool) -> None:
    """Whether glibc keeps what is freed for the next allocation, as it does by itself."""
    for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        ctypes.CDLL(None).mallopt(option, 2**30 if keep else 2**16)


def make_model(options: Options) -> torch.nn.Module:
    """The model of a way, as the learner would have it."""
    way = options.way
    if way in LOGITS:
        scoring.MAX_LOGITS = 2**62 if way == "all logits" else scoring.MAX_LOGITS
        model = tiny_model(options.vocabulary, hidden_size=64, layers=2, heads=2, intermediate_size=96)
    else:
        size = options.hidden_size
        model = tiny_model(2000, hidden_size=size, layers=options.layers, heads=4, intermediate_size=3 * size)
    if way == "adapter of rank 16":
        add_adapter(model, LoRAConfig(rank=16), seed=0)
    install(model)
    if "compiled" in way:
        compile_layers(model)
    if "recomputed" in way:
        recompute_layers(model)
    return model


def step(model: torch.nn.Module, vocabulary: int, tokens: int) -> None:
    """Forward and backward of four episodes."""
    rng = np.random.default_rng(0)
    episodes = [episode(rng, min(vocabulary, 2000), tokens // 4) for _ in range(4)]
    (micro,) = Sequences.of(episodes).micro_batches(10**9, torch.device("cpu"))
    logprobs, _ = scoring.score_tokens(model, micro, 1.0, entropies="value")
    logprobs.sum().backward()


def episode(rng: np.random.Generator, vocabulary: int, tokens: int) -> Episode:
    """A prompt and one turn of random tokens."""
    length = PROMPT + tokens
    return Episode(
        env_id="benchmark",
        task_id="random",
        group_id=0,
        seed=0,
        token_ids=rng.integers(0, vocabulary, length),
        mask=np.arange(length) >= PROMPT,
        logprobs=np.zeros(length, np.float32),
        versions=np.zeros(length, np.int64),
        turns=(Turn(PROMPT, length, 1.0, "stop", limit=tokens),),
        messages=(),
        truncation=None,
        verdict=Verdict(1.0, Outcome.CORRECT, "random"),
    )


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_process(options: Options, way: str) -> dict[str, float]:
    sizes = ["--vocabulary", options.vocabulary, "--tokens", options.tokens]
    sizes += ["--hidden-size", options.hidden_size, "--layers", options.layers]
    command = [sys.executable, __file__, "--way", way, *map(str, sizes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(options: Options, title: str, ways: Sequence[str]) -> None:
    """Medians of each way, and how many times as much the first takes."""
    found = [{way: in_process(options, way) for way in ways} for _ in range(options.repeats)]
    print(f"\n{title}\n{'':<22}{'peak MB':>10}{'held MB':>10}{'seconds':>10}{'peak':>9}{'held':>9}{'seconds':>9}")
    for way in ways:
        row = [median(one[way][name] for one in found) for name in NAMES]
        ratios = [median(one[ways[0]][name] / one[way][name] for one in found) for name in NAMES]
        print(f"{way:<22}{row[0]:>10.0f}{row[1]:>10.1f}{row[2]:>10.2f}" + "".join(f"{r:>8.1f}x" for r in ratios))


def main(options: Options) -> None:
    if options.way:
        print(json.dumps(measure(options)))
        return
    print(f"{options.tokens} policy tokens, float32, torch {torch.__version__}; medians of {options.repeats}.")
    print(
        "peak: above what was in use before the step; held: gradients and optimizer state; x: the first row's over it."
    )
    table(options, f"logits, vocabulary {options.vocabulary}", LOGITS)
    shape = f"{options.layers} layers, hidden size {options.hidden_size}"
    table(options, f"layers ({shape})", LAYERS)
    table(options, f"weights ({shape})", WEIGHTS)


if __name__ == "__main__":
    main(tyro.cli(Options))
