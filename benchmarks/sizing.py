"""What a model needs, by its shape: memory of the learner and the engine, GPUs, and the speed that a formula gives.

    python benchmarks/sizing.py [--gpu 80] [--context 4096] [--sequences 32] [--tokens-per-forward 8192]

Nothing is run. Sizes are in GB (10^9 bytes), of what the code keeps:

- learner: weights, gradients and AdamW's two moments, each float32: 16 bytes a parameter. A reference model (KL) adds
  its float32 weights, 4. PPO's critic has a trunk of the same shape and an optimizer of its own: 16 again but for the
  head.
- forward: what enters each layer, float32, for each token (`gradient_checkpointing`), and weights in bfloat16: on one
  GPU all of them, which autocast keeps; of a sharded model (FSDP2) those outside of layers. What one layer gathers
  and computes comes on top and is not counted.
- engine: bfloat16 weights, and keys and values of `sequences` conversations of `context` tokens.

A GPU is filled to 90 %. The learner's GPUs are the fewest, doubling, over which its state is cut, each with a forward
of its own; the engines have others. The learner's operations are 8 per parameter and token (2 of them for layers that
are computed again), and those of causal attention. A generated token reads all weights, shared by the sequences, and
its own keys and values, of half a context on average.
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

# hidden size, layers, heads, key-value heads, head size, intermediate size, vocabulary, tied embeddings
SHAPES = {
    "Qwen3-0.6B": (1024, 28, 16, 8, 128, 3072, 151_936, True),
    "Qwen3-1.7B": (2048, 28, 16, 8, 128, 6144, 151_936, True),
    "Qwen3-4B": (2560, 36, 32, 8, 128, 9728, 151_936, True),
    "Qwen3-8B": (4096, 36, 32, 8, 128, 12_288, 151_936, False),
    "Qwen3-32B": (5120, 64, 64, 8, 128, 25_600, 151_936, False),
}
_FULL = 0.9  # of a GPU's memory


@dataclass(frozen=True)
class Options:
    """A GPU, and how it is used."""

    gpu: float = 80.0
    """Its memory, in GB."""
    context: int = 4096
    """Tokens of a conversation."""
    sequences: int = 32
    """Conversations that an engine plays at a time."""
    tokens_per_forward: int = 8192
    """Tokens of a forward of the learner."""
    operations: float = 989e12
    """Dense bfloat16 operations per second that it could do (an H100's)."""
    utilisation: float = 0.3
    """The share of them that the learner is taken to reach."""
    bandwidth: float = 3.35e12
    """Bytes per second that it could read (an H100's)."""
    read_share: float = 0.5
    """The share of them that an engine is taken to reach."""


@dataclass(frozen=True)
class Shape:
    """A model's sizes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    intermediate: int
    vocabulary: int
    tied: bool

    @property
    def trunk(self) -> int:
        """Parameters but for those of the language-model head."""
        attention = self.hidden * self.head * 2 * (self.heads + self.kv_heads) + 2 * self.head
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.vocabulary * self.hidden + self.layers * layer + self.hidden

    @property
    def parameters(self) -> int:
        return self.trunk + (0 if self.tied else self.vocabulary * self.hidden)

    @property
    def kv_bytes(self) -> int:
        """Of a token's keys and values, in bfloat16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head


@dataclass(frozen=True)
class Need:
    """What a shape needs, in GB, and its speed in tokens per second."""

    grpo: float
    reference: float
    ppo: float
    forward: float  # on one GPU
    forward_in_shares: float
    engine: float
    kv: float
    learner_speed: float
    engine_speed: float


def need(shape: Shape, options: Options) -> Need:
    parameters = shape.parameters
    kept = 4 * shape.hidden * shape.layers * options.tokens_per_forward
    outside = (1 if shape.tied else 2) * shape.vocabulary * shape.hidden
    # of a token, in four passes of 2 operations for q k' and 2 for what it weighs, over half a context on average
    attention = 8 * shape.layers * shape.heads * shape.head * options.context
    cached = options.sequences * options.context * shape.kv_bytes
    return Need(
        grpo=16 * parameters / 1e9,
        reference=4 * parameters / 1e9,
        ppo=16 * (parameters + shape.trunk) / 1e9,
        forward=(2 * parameters + kept) / 1e9,
        forward_in_shares=(2 * outside + kept) / 1e9,
        engine=2 * parameters / 1e9,
        kv=cached / 1e9,
        learner_speed=options.utilisation * options.operations / (8 * parameters + attention),
        engine_speed=options.sequences * options.read_share * options.bandwidth / (2 * parameters + cached / 2),
    )


def gpus(state: float, needed: Need, options: Options) -> int:
    """The fewest GPUs, doubling, that hold a learner's sharded state and a forward each."""
    room, count = _FULL * options.gpu, 1
    while state / count + (needed.forward if count == 1 else needed.forward_in_shares) > room and count < 1024:
        count *= 2
    return count


def table(options: Options) -> str:
    """Markdown."""
    titles = ["model", "parameters", "GRPO", "reference", "PPO", "forward: alone, sharded", "engine", "keys, values"]
    titles += ["GRPO on one GPU, with its engine", "learner's GPUs: GRPO, PPO", "learner, tokens/s a GPU"]
    rows = [[*titles, "engine, tokens/s a GPU"], ["---"] * (len(titles) + 1)]
    for name, sizes in SHAPES.items():
        shape, room = Shape(*sizes), _FULL * options.gpu
        needed = need(shape, options)
        whole, engine = needed.grpo + needed.forward + needed.engine + needed.kv, needed.engine + needed.kv
        rows.append(
            [
                name,
                f"{shape.parameters / 1e9:.2f} B",
                *(f"{size:.1f}" for size in (needed.grpo, needed.reference, needed.ppo)),
                f"{needed.forward:.1f}, {needed.forward_in_shares:.1f}",
                *(f"{size:.1f}" for size in (needed.engine, needed.kv)),
                f"{'yes' if whole <= room else 'no'}: {whole:.0f}",
                ", ".join(str(gpus(state, needed, options)) for state in (needed.grpo, needed.ppo)),
                f"{needed.learner_speed:,.0f}",
                f"{needed.engine_speed:,.0f}" if engine <= room else f"does not fit: {engine:.0f}",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    print(table(tyro.cli(Options, description=__doc__)))
