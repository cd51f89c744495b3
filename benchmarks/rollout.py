"""Rollout speed: `model.generate`, the transformers engine and vLLM, interleaved in one run on one model.

    python benchmarks/rollout.py [--repeats N] [--threads 2] [--output FILE]

- single turn: 64 tokens for each of 256 prompts of 64 tokens (32 groups of 8 with one prompt), no end token.
- 3 turns: episodes of a Calculator that answers each turn but the last with the product, 24 tokens a turn.
- 3 turns, stragglers: the same, each answer of the environment after 0 to 200 ms.

The model has random weights and about 5M parameters in float32; sampling is from the full softmax at temperature 1. The
engines play through the collector; `generate` computes whole conversations anew each turn, in a batch that waits for
its slowest environment. It steps all environments at once, the collector up to 64.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import transformers
import tyro
from transformers import PreTrainedModel

from verigym import tasks
from verigym.agents.agent import LocalAgent
from verigym.agents.chat import Chat
from verigym.agents.collect import Collector
from verigym.agents.engines.config import EngineConfig
from verigym.agents.engines.engine import Engine, Request, Sampling
from verigym.agents.engines.make import make_engine
from verigym.agents.episode import Plan
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.envs.mixture import EnvSpec
from verigym.envs.spaces import TextSpace
from verigym.tasks.task import Task

VOCABULARY = 1000
TURNS = 3
SINGLE, MULTI, STRAGGLERS = "single turn", f"{TURNS} turns", f"{TURNS} turns, stragglers"
GENERATE, ENGINE, VLLM = "model.generate", "transformers engine", "vLLM"


@dataclass(frozen=True)
class Options:
    """Tokens per second of each, and how many times as fast as `generate` it is in the same repeat."""

    repeats: int = 7
    """Runs of each that count, after one to warm up."""
    threads: int = 2
    """Threads of torch."""
    groups: int = 32
    """Different prompts, or tasks."""
    group_size: int = 8
    """Sequences, or episodes, of each."""
    prompt_tokens: int = 64
    """Tokens of a prompt (single turn)."""
    new_tokens: int = 64
    """Tokens generated for each sequence (single turn)."""
    turn_tokens: int = 24
    """Tokens generated in each turn (3 turns)."""
    delay: float = 0.2
    """Seconds that a straggler's answer takes at most."""
    hidden_size: int = 256
    """Width of the model, which has 6 layers."""
    vllm: bool = importlib.util.find_spec("vllm") is not None
    """Let vLLM take part; by itself where it is installed."""
    output: Path | None = None
    """A JSON file for the figures."""


@cache
def questions() -> dict[str, Task]:
    return {task.id: task for task in tasks.load("calculator")}


@cache
def tools() -> list[dict[str, Any]]:
    return list(gym.make("verigym/Calculator-v0").unwrapped.tools)  # type: ignore[attr-defined]


class Calculator(gym.Env[str, str]):
    """Answers each turn but the last with the product, whatever the turn says, after up to `delay` seconds."""

    observation_space = action_space = TextSpace()

    def __init__(self, delay: float = 0.0) -> None:
        self.delay = delay
        self.tasks = questions()

    def reset(self, *, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.task = self.tasks[(options or {})["task"]]
        self.turn = 0
        messages = [{"role": "user", "content": self.task.prompt}]
        return self.task.prompt, {"messages": messages, "tools": tools()}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.turn += 1
        if self.delay:
            time.sleep(self.np_random.uniform(0.0, self.delay))
        if self.turn == TURNS:
            return "", 0.0, True, False, {}
        result = str(self.task.target)
        return result, 0.0, False, False, {"messages": [{"role": "tool", "content": result}]}


gym.register("benchmark/Calculator-v0", Calculator, disable_env_checker=True, order_enforce=False)


class Endless(LocalAgent):
    """Never stops by itself, so that every way has as many tokens to draw."""

    def sampling(self, max_new_tokens: int) -> Sampling:
        return Sampling(max_new_tokens, temperature=self.temperature)


class Play:
    """What is measured: prompts for a single turn, and planned episodes."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.prompts = torch.randint(
            0, VOCABULARY, (options.groups, options.prompt_tokens), generator=torch.Generator().manual_seed(0)
        ).repeat_interleave(options.group_size, 0)  # (groups * group_size, prompt_tokens)
        some = list(questions())[: options.groups]
        self.plans = [
            Plan(0, some[group], group, group * options.group_size + i, i)
            for group in range(options.groups)
            for i in range(options.group_size)
        ]
        asked = [[{"role": "user", "content": questions()[task].prompt}] for task in some]
        self.chat = Chat(tiny_tokenizer(asked, tools()))
        if len(self.chat.tokenizer) > VOCABULARY:
            raise SystemExit(f"the tokenizer has {len(self.chat.tokenizer)} tokens, the model {VOCABULARY}")

    def tokens(self, kind: str) -> int:
        """How many are drawn."""
        return len(self.prompts) * (self.options.new_tokens if kind == SINGLE else TURNS * self.options.turn_tokens)

    def spec(self, kind: str) -> EnvSpec:
        return EnvSpec("benchmark/Calculator-v0", kwargs={"delay": self.options.delay if kind == STRAGGLERS else 0.0})

    def by_engine(self, engine: Engine, kind: str, repeat: int) -> None:
        if kind == SINGLE:
            sampling, count = Sampling(self.options.new_tokens), len(self.prompts)
            requests = [Request(i, i, ids, repeat * count + i, sampling) for i, ids in enumerate(self.prompts.tolist())]
            generations = engine.run(requests)
            assert sum(len(generation.token_ids) for generation in generations) == self.tokens(kind)
            for request in requests:
                engine.release(request.episode_id)
            return
        collector = Collector(Endless(self.chat, engine, max_new_tokens=self.options.turn_tokens), [self.spec(kind)])
        episodes = collector.collect(self.plans)
        collector.close()
        assert sum(episode.num_policy_tokens for episode in episodes) == self.tokens(kind)

    def by_generate(self, model: PreTrainedModel, kind: str, repeat: int) -> None:
        if kind == SINGLE:
            generate(model, self.prompts.tolist(), self.options.new_tokens)
            return
        with ThreadPoolExecutor(len(self.plans)) as pool:
            envs = list(pool.map(lambda _: self.spec(kind).make(), self.plans))
            begun = [
                env.reset(seed=p.seed, options={"task": p.task_id}) for env, p in zip(envs, self.plans, strict=True)
            ]
            conversations = [self.chat.prompt(info["messages"], info["tools"]) for _, info in begun]
            for _ in range(TURNS):
                turns = generate(model, conversations, self.options.turn_tokens)
                texts = [self.chat.canonical(turn, before) for turn, before in zip(turns, conversations, strict=True)]
                answers = list(pool.map(lambda pair: pair[0].step(pair[1]), zip(envs, texts, strict=True)))
                for ids, turn, answer in zip(conversations, turns, answers, strict=True):
                    ids += turn
                    if not answer[2]:
                        ids += self.chat.suffix(answer[4]["messages"], turn[-1], turn=turn)


@torch.inference_mode()
def generate(model: PreTrainedModel, prompts: Sequence[list[int]], new_tokens: int) -> list[list[int]]:
    """The new tokens of each, padded on the left to one length."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        pad_token_id=0,
    )
    assert output.shape[1] == width + new_tokens
    return [row[width:] for row in output.tolist()]


@contextmanager
def ways(options: Options, play: Play) -> Iterator[dict[str, Callable[[str, int], None]]]:
    """Those that play, each on a copy of one model."""
    with tempfile.TemporaryDirectory() as folder:
        size = options.hidden_size
        model = tiny_model(VOCABULARY, hidden_size=size, layers=6, heads=4, intermediate_size=3 * size).eval()
        model.save_pretrained(folder)
        slots = options.groups * options.group_size
        kinds = {ENGINE: EngineConfig()} | ({VLLM: EngineConfig("vllm")} if options.vllm else {})
        engines = {
            name: make_engine(config, folder, dtype=torch.float32, slots=slots) for name, config in kinds.items()
        }
        played = {name: by(play, engine) for name, engine in engines.items()}
        yield {GENERATE: lambda kind, repeat: play.by_generate(model, kind, repeat), **played}
        for engine in engines.values():
            engine.close()


def by(play: Play, engine: Engine) -> Callable[[str, int], None]:
    return lambda kind, repeat: play.by_engine(engine, kind, repeat)


def measure(options: Options) -> dict[str, dict[str, list[float]]]:
    """Tokens per second of each kind of play and each way, one figure a repeat."""
    torch.set_num_threads(options.threads)
    play = Play(options)
    found: dict[str, dict[str, list[float]]] = {}
    with ways(options, play) as players:
        for kind in (SINGLE, MULTI, STRAGGLERS):
            found[kind] = {name: [] for name in players}
            for repeat in range(options.repeats + 1):
                for name, player in players.items():
                    start = time.perf_counter()
                    player(kind, repeat)
                    speed = play.tokens(kind) / (time.perf_counter() - start)
                    found[kind][name] += [speed] if repeat else []
    return found


def report(found: Mapping[str, Mapping[str, Sequence[float]]], options: Options) -> str:
    vllm = import_module("vllm").__version__ if options.vllm else "left out"
    lines = [
        f"hidden size {options.hidden_size}, float32, {options.threads} threads; "
        f"{options.groups} x {options.group_size} sequences",
        f"torch {torch.__version__}, transformers {transformers.__version__}, vLLM {vllm}",
        f"{'tokens/s':<26}{'':<22}{'median':>9}{'lowest':>9}{'highest':>9}{'x generate':>12}",
    ]
    for kind, speeds in found.items():
        for name, values in speeds.items():
            ratio = statistics.median(ours / base for ours, base in zip(values, speeds[GENERATE], strict=True))
            middle = f"{statistics.median(values):>9.0f}{min(values):>9.0f}{max(values):>9.0f}"
            lines.append(f"{kind:<26}{name:<22}{middle}{ratio:>12.2f}")
    return "\n".join(lines)


def main() -> None:
    options = tyro.cli(Options, description=__doc__, config=(tyro.conf.FlagConversionOff,))
    found = measure(options)
    print(report(found, options))
    if options.output:
        figures = {"tokens_per_second": found, "options": {**asdict(options), "output": str(options.output)}}
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
