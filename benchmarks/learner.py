"""Memory of a learner's step at a large vocabulary: log-probabilities in chunks against all logits at once.

    python benchmarks/learner.py [--vocabulary 152000] [--tokens 800] [--repeats 3]

Each measure is a process of its own, the two ways interleaved: forward and backward of the summed log-probabilities,
entropies as a metric, of a model that is all vocabulary (random weights, hidden size 64).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from statistics import median
from typing import Literal

import numpy as np
import torch
import tyro

from verigym.agents.attention import install
from verigym.agents.episode import Episode, Turn
from verigym.agents.learners import scoring
from verigym.agents.learners.batch import Sequences
from verigym.agents.tiny import tiny_model
from verigym.verifiers import Outcome, Verdict

PROMPT = 3


@dataclass(frozen=True)
class Options:
    """Peak memory and seconds of one forward and backward."""

    vocabulary: int = 152_000
    """Tokens of the vocabulary."""
    tokens: int = 800
    """Policy tokens, in four episodes."""
    repeats: int = 3
    """Measures of each way."""
    way: Literal["both", "plain", "chunked"] = "both"
    """Measure one way only, in this process, and print it as JSON."""


def measure(options: Options) -> dict[str, float]:
    """The peak of memory above what was in use before, in MB, and seconds."""
    if options.way == "plain":
        scoring.MAX_LOGITS = 2**62
    model = tiny_model(options.vocabulary, hidden_size=64, layers=2, heads=2, intermediate_size=96)
    install(model)
    rng = np.random.default_rng(0)
    episodes = [episode(rng, options.vocabulary, options.tokens // 4) for _ in range(4)]
    (micro,) = Sequences.of(episodes).micro_batches(10**9, torch.device("cpu"))
    before, started = peak(), time.perf_counter()
    logprobs, _ = scoring.score_tokens(model, micro, 1.0, entropies="value")
    logprobs.sum().backward()
    return {"mb": peak() - before, "seconds": time.perf_counter() - started}


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
    sizes = ["--vocabulary", str(options.vocabulary), "--tokens", str(options.tokens)]
    command = [sys.executable, __file__, "--way", way, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main(options: Options) -> None:
    if options.way != "both":
        print(json.dumps(measure(options)))
        return
    ways = ("plain", "chunked")
    found = [{way: in_process(options, way) for way in ways} for _ in range(options.repeats)]
    print(f"vocabulary {options.vocabulary}, {options.tokens} policy tokens, float32; torch {torch.__version__}")
    print(f"{'':<10}{'peak MB':>10}{'seconds':>10}   (medians of {options.repeats})")
    for way in ways:
        mb, seconds = (median(pair[way][name] for pair in found) for name in ("mb", "seconds"))
        print(f"{way:<10}{mb:>10.0f}{seconds:>10.1f}")
    ratios = [pair["plain"]["mb"] / pair["chunked"]["mb"] for pair in found]
    print(f"plain / chunked, memory: median {median(ratios):.1f}, lowest {min(ratios):.1f}")


if __name__ == "__main__":
    main(tyro.cli(Options))
