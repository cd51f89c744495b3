"""Learner, rollouts and sync on one GPU: torch and transformers are all that it needs, and no network.

    python benchmarks/gpu.py [--shapes 0.6B 1.7B] [--context 16384] [--output FILE]

Models have the shapes of Qwen3 and random weights. The learner's step is GRPO's on episodes of an eighth of the context
up to all of it; its tokens are those of the episodes, so that padding is lost speed. MFU counts 6 operations per
parameter and token, and causal attention. Without a GPU it runs in float32, for a test with `--shapes tiny`.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
import tyro
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from verigym.agents.attention import install
from verigym.agents.engines.engine import Request, Sampling
from verigym.agents.engines.sync import WeightSync
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.episode import Episode, Turn
from verigym.agents.learners import scoring
from verigym.agents.learners.config import GRPOConfig
from verigym.agents.learners.grpo import GRPO
from verigym.agents.learners.losses import token_logprobs
from verigym.agents.learners.optimizer import Optimizer
from verigym.verifiers import Outcome, Verdict

# hidden size, layers, heads, key-value heads, head size, intermediate size, vocabulary
SHAPES = {
    "0.6B": (1024, 28, 16, 8, 128, 3072, 151_936),
    "1.7B": (2048, 28, 16, 8, 128, 6144, 151_936),
    "tiny": (64, 2, 4, 2, 16, 128, 500),
}
# Dense bfloat16 operations per second, by a part of the device's name.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40": 181e12, "4090": 165e12}


@dataclass(frozen=True)
class Options:
    """What is measured, and at which sizes."""

    shapes: tuple[str, ...] = ("0.6B", "1.7B")
    """Shapes of models."""
    context: int = 16_384
    """Tokens of the longest episode, and of a forward of the learner."""
    episodes: int = 16
    """Episodes of the learner's step."""
    sequences: tuple[int, ...] = (64, 256, 1024)
    """Sequences that are generated at a time, in groups of 8."""
    prompt_tokens: int = 256
    """Tokens of their prompts."""
    new_tokens: int = 256
    """Tokens drawn for each."""
    repeats: int = 3
    """Runs that count, after one to warm up; their fastest is shown."""
    output: Path | None = None
    """A JSON file for the figures."""


@dataclass(frozen=True)
class Row:
    """A line of the table: tokens per second or seconds, and the share of the device's peak."""

    shape: str
    what: str
    tokens_per_second: float | None = None
    mfu: float | None = None
    seconds: float | None = None


class Machine:
    """The device, and what it can do."""

    def __init__(self) -> None:
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.name = torch.cuda.get_device_name() if self.on_gpu else "CPU"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.peak = next((peak for name, peak in PEAKS.items() if name in self.name), None)

    def seconds(self, run: Callable[[], object], repeats: int) -> float:
        """Of the fastest run."""
        times = []
        for _ in range(repeats + 1):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def free(self) -> None:
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def model(self, shape: str, dtype: torch.dtype = torch.float32, context: int = 16_384) -> PreTrainedModel:
        hidden, layers, heads, kv_heads, head, intermediate, vocabulary = SHAPES[shape]
        config = Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head,
            max_position_embeddings=context,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng(), torch.device(self.device):
            torch.manual_seed(0)
            return Qwen3ForCausalLM(config).to(dtype).eval()


def make_episodes(options: Options, vocabulary: int) -> list[Episode]:
    """Two groups of random tokens; every second one is right."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(options.context // 8, options.context, options.episodes, endpoint=True)
    return [_episode(rng, vocabulary, int(length), number) for number, length in enumerate(lengths)]


def _episode(rng: np.random.Generator, vocabulary: int, length: int, number: int) -> Episode:
    start = length // 8
    mask = np.arange(length) >= start
    reward = float(number % 2)
    return Episode(
        env_id="benchmark",
        task_id="random",
        group_id=number // 2 % 2,
        seed=0,
        token_ids=rng.integers(0, vocabulary, length),
        mask=mask,
        logprobs=np.where(mask, -np.log(vocabulary), 0).astype(np.float32),
        versions=np.where(mask, 0, -1),
        turns=(Turn(start, length, reward, "stop", limit=length),),
        messages=(),
        truncation=None,
        verdict=Verdict(reward, Outcome.CORRECT if reward else Outcome.WRONG, "random"),
    )


def operations(model: PreTrainedModel, lengths: list[int]) -> float:
    """Of forward and backward on sequences of these lengths."""
    config = model.config
    attention = 6 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    return 6.0 * model.num_parameters() * sum(lengths) + float(attention) * sum(length**2 for length in lengths)


def learner_rows(machine: Machine, shape: str, options: Options) -> Iterator[Row]:
    """Steps of the learner as it is, with all logits at once, and on padded rows."""
    episodes = make_episodes(options, SHAPES[shape][-1])
    lengths = [len(episode.token_ids) for episode in episodes]
    for what in ("packed, chunked log-probabilities", "packed, plain log-probabilities", "padded, plain"):
        model = machine.model(shape, context=options.context)
        step = (
            padded_step(machine, model, episodes) if what == "padded, plain" else packed_step(machine, model, episodes)
        )
        chunk = scoring.MAX_LOGITS
        scoring.MAX_LOGITS = chunk if "chunked" in what else 2**62
        try:
            seconds = machine.seconds(step, options.repeats)
        except torch.cuda.OutOfMemoryError:
            yield Row(shape, f"learner, {what}: out of memory")
        else:
            share = operations(model, lengths) / seconds / machine.peak if machine.peak else None
            yield Row(shape, f"learner, {what}", sum(lengths) / seconds, share, seconds)
        finally:
            scoring.MAX_LOGITS = chunk
        del model, step
        machine.free()


def packed_step(machine: Machine, model: PreTrainedModel, episodes: list[Episode]) -> Callable[[], object]:
    longest = max(len(episode.token_ids) for episode in episodes)
    autocast = machine.dtype if machine.on_gpu else None
    learner = GRPO(model, GRPOConfig(tokens_per_forward=longest), autocast=autocast)
    return lambda: learner.update(episodes, learner.advantages(episodes))


def padded_step(machine: Machine, model: PreTrainedModel, episodes: list[Episode]) -> Callable[[], object]:
    """The same gradient by rows of one length, as many at a time as the packed step has tokens."""
    longest = max(len(episode.token_ids) for episode in episodes)
    optimizer = Optimizer(model, 1e-6)

    def step() -> None:
        for episode in episodes:
            ids, mask = torch.zeros(1, longest, dtype=torch.long), torch.zeros(1, longest, dtype=torch.long)
            length = len(episode.token_ids)
            ids[0, :length], mask[0, :length] = torch.from_numpy(episode.token_ids), 1
            ids, mask = ids.to(machine.device), mask.to(machine.device)
            with torch.autocast(machine.device.type, dtype=machine.dtype, enabled=machine.on_gpu):
                logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0, :-1]
            logprobs = token_logprobs(logits, ids[0, 1:], 1.0)
            policy = torch.zeros(longest - 1, device=machine.device)
            policy[: length - 1] = torch.from_numpy(episode.mask[1:]).to(machine.device)
            ((0.5 - episode.reward) * logprobs * policy).sum().div(len(episodes) * longest).backward()
        optimizer.step()

    return step


def rollout_rows(machine: Machine, shape: str, options: Options) -> Iterator[Row]:
    """Tokens per second of the transformers engine, by the number of sequences."""
    vocabulary, rng = SHAPES[shape][-1], np.random.default_rng(0)
    for count in options.sequences:
        engine = TransformersEngine(machine.model(shape, machine.dtype), slots=count)
        prompts = rng.integers(0, vocabulary, (count // 8 + 1, options.prompt_tokens)).tolist()
        requests = [Request(i, i, prompts[i // 8], i, Sampling(options.new_tokens)) for i in range(count)]

        def play(engine: TransformersEngine = engine, requests: list[Request] = requests) -> None:
            engine.run(requests)
            for request in requests:
                engine.release(request.episode_id)

        seconds = machine.seconds(play, options.repeats)
        yield Row(shape, f"rollout, {count} sequences", count * options.new_tokens / seconds, None, seconds)
        engine.close()
        del engine, play
        machine.free()


def sync_rows(machine: Machine, shape: str, options: Options) -> Iterator[Row]:
    """Weights from the learner to the engine, without and with the proof that they arrived."""
    model = machine.model(shape)
    install(model)
    engine = TransformersEngine(machine.model(shape, machine.dtype))
    sync = WeightSync(model, engine)
    sync.start(0)
    tensors = list(model.named_parameters())
    yield Row(shape, "sync", seconds=machine.seconds(lambda: engine.update_weights(tensors, 1), options.repeats))
    yield Row(shape, "sync with its proof", seconds=machine.seconds(lambda: sync.send(1), options.repeats))


def report(machine: Machine, rows: list[Row]) -> str:
    lines = [
        f"{machine.name}, {str(machine.dtype).removeprefix('torch.')}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}; {time.strftime('%Y-%m-%d')}",
        f"{'shape':<7}{'':<46}{'tokens/s':>12}{'MFU':>8}{'seconds':>10}",
    ]
    for row in rows:
        speed = "" if row.tokens_per_second is None else f"{row.tokens_per_second:.0f}"
        share = "" if row.mfu is None else f"{row.mfu:.1%}"
        seconds = "" if row.seconds is None else f"{row.seconds:.3f}"
        lines.append(f"{row.shape:<7}{row.what:<46}{speed:>12}{share:>8}{seconds:>10}")
    return "\n".join(lines)


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    machine, rows = Machine(), []
    for shape in options.shapes:
        for part in (learner_rows, rollout_rows, sync_rows):
            rows += list(part(machine, shape, options))
            machine.free()
    print(report(machine, rows))
    if options.output:
        options.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
