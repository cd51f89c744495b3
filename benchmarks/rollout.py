"""Rollout speed: the transformers engine against `model.generate`, interleaved in one run.

    python benchmarks/rollout.py [--repeats N] [--threads 2] [--output FILE]

Both generate 64 tokens for each of 256 prompts of 64 tokens (32 groups of 8 with one prompt), on one model of about
5M parameters in float32, from the full softmax at temperature 1 and without an end token.
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import transformers
import tyro
from transformers import PreTrainedModel

from verigym.agents.engines.engine import Request, Sampling
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.tiny import tiny_model

VOCABULARY = 1000


@dataclass(frozen=True)
class Options:
    """Tokens per second of both, and the ratio of each pair of runs."""

    repeats: int = 7
    """Pairs of runs that count, after one pair to warm up."""
    threads: int = 2
    """Threads of torch."""
    groups: int = 32
    """Different prompts."""
    group_size: int = 8
    """Sequences of each prompt."""
    prompt_tokens: int = 64
    """Tokens of a prompt."""
    new_tokens: int = 64
    """Tokens generated for each sequence."""
    output: Path | None = None
    """A JSON file for the figures."""


@dataclass(frozen=True)
class Result:
    """Tokens generated per second."""

    parameters: int
    engine: list[float]
    generate: list[float]

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.engine, self.generate, strict=True)]


def benchmark_model() -> PreTrainedModel:
    return tiny_model(VOCABULARY, hidden_size=256, layers=6, heads=4, intermediate_size=768).eval()


def measure(options: Options) -> Result:
    """Runs both in turn, on copies of one model."""
    torch.set_num_threads(options.threads)
    reference = benchmark_model()
    engine = TransformersEngine(benchmark_model(), slots=options.groups * options.group_size)
    prompts = torch.randint(0, VOCABULARY, (options.groups, options.prompt_tokens), generator=torch.Generator())
    prompts = prompts.repeat_interleave(options.group_size, 0)  # (groups * group_size, prompt_tokens)
    seconds: dict[str, list[float]] = {"engine": [], "generate": []}
    for repeat in range(options.repeats + 1):
        start = time.perf_counter()
        run_engine(engine, prompts.tolist(), options.new_tokens, seed=repeat)
        middle = time.perf_counter()
        run_generate(reference, prompts, options.new_tokens)
        seconds["engine"].append(middle - start)
        seconds["generate"].append(time.perf_counter() - middle)
    tokens = len(prompts) * options.new_tokens
    speeds = {name: [tokens / value for value in values[1:]] for name, values in seconds.items()}
    return Result(reference.num_parameters(), **speeds)


def run_engine(engine: TransformersEngine, prompts: list[list[int]], new_tokens: int, *, seed: int) -> None:
    sampling = Sampling(new_tokens)
    requests = [Request(i, i, ids, seed * len(prompts) + i, sampling) for i, ids in enumerate(prompts)]
    generations = engine.run(requests)
    assert all(len(generation.token_ids) == new_tokens for generation in generations)
    for request in requests:
        engine.release(request.episode_id)


@torch.inference_mode()
def run_generate(model: PreTrainedModel, prompts: torch.Tensor, new_tokens: int) -> None:
    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=0,
    )
    assert output.shape[1] == prompts.shape[1] + new_tokens


def report(result: Result, options: Options) -> str:
    def line(name: str, values: list[float], digits: int) -> str:
        low, middle, high = min(values), statistics.median(values), max(values)
        return f"{name:<28}{middle:>10.{digits}f}{low:>10.{digits}f}{high:>10.{digits}f}"

    sequences = options.groups * options.group_size
    return "\n".join(
        [
            f"{result.parameters / 1e6:.1f}M parameters, float32, {options.threads} threads; "
            f"{sequences} sequences x {options.new_tokens} tokens, prompts of {options.prompt_tokens}; "
            f"torch {torch.__version__}, transformers {transformers.__version__}",
            f"{'':<28}{'median':>10}{'lowest':>10}{'highest':>10}",
            line("engine, tokens/s", result.engine, 0),
            line("model.generate, tokens/s", result.generate, 0),
            line("ratio", result.ratios, 2),
        ]
    )


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    result = measure(options)
    print(report(result, options))
    if options.output:
        figures = {**asdict(result), "ratios": result.ratios, "threads": options.threads}
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
