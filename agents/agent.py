"""Who plays: anything that answers messages, and the local model that learns."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # or its successor, whichever the hub is asked by
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.utils import logging as transformers_logging

from verigym.agents.chat import Chat
from verigym.agents.engines.engine import Engine, Request, Sampling, first_line
from verigym.agents.episode import derive_seed
from verigym.agents.lora import ADAPTER, adapter_state, checkpoint_state, save_adapter
from verigym.tasks.errors import ConfigError, EngineError


class Agent(ABC):
    """Answers a conversation with the text of its next turn, in canonical syntax."""

    @abstractmethod
    def act(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        """The next turn, after messages with `role` and `content`; `tools` are JSON schemas, as in `info["tools"]`."""


class LocalAgent(Agent):
    """A local model: its chat template, its rollout engine, and how it samples.

    `act` renders the whole conversation anew, for whoever plays by hand; `agents.collect` appends turn by turn.
    """

    def __init__(
        self,
        chat: Chat,
        engine: Engine,
        *,
        temperature: float = 1.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
    ):
        self.chat, self.engine = chat, engine
        self.temperature, self.max_new_tokens, self.seed = temperature, max_new_tokens, seed
        self._acts = 0

    def sampling(self, max_new_tokens: int) -> Sampling:
        """How a turn of at most this many tokens is drawn."""
        stops = tuple(sorted(self.chat.stop_token_ids))
        return Sampling(max_new_tokens, temperature=self.temperature, stop_token_ids=stops)

    def act(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        ids = self.chat.prompt(messages, tools)
        room = min(self.max_new_tokens, self.engine.max_context - len(ids))
        if room < 1:
            raise EngineError(
                f"the conversation has {len(ids)} tokens; the model's context is {self.engine.max_context}"
            )
        self._acts += 1
        request = Request(-self._acts, -self._acts, ids, derive_seed(self.seed, self._acts), self.sampling(room))
        (generation,) = self.engine.run([request])
        self.engine.release(-self._acts)
        return self.chat.canonical(generation.token_ids, ids)


def resolve_device(device: str) -> str:
    """`auto` as cuda where there is a GPU, else cpu. Raises ConfigError for cuda without one."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch sees no GPU here; set device to cpu or auto")
    return device


def load_model(path: str | Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> PreTrainedModel:
    """A causal language model from a hub id or a folder. Raises ConfigError, in one line, if there is none."""
    return load_checkpoint(AutoModelForCausalLM, path, dtype=dtype).to(device).eval()  # type: ignore[no-any-return]


def load_checkpoint(kind: Any, path: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """What `kind.from_pretrained` makes of a hub id or a folder. Raises ConfigError, in one line."""
    _require_checkpoint(path)
    try:
        with without_progress_bars():
            return kind.from_pretrained(str(path), dtype=dtype)
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(f"cannot load a model from '{path}': {first_line(error)}") from error


def save_checkpoint(path: str | Path, model: PreTrainedModel, tokenizer: Tokenizer) -> None:
    """Writes an ordinary transformers checkpoint; of a model with an adapter the merged one, and the adapter beside."""
    save_model(path, model)
    with without_progress_bars():
        tokenizer.save_pretrained(path)


def save_model(path: str | Path, model: PreTrainedModel, *, writes: bool = True) -> None:
    """`save_checkpoint` without the tokenizer; of a model in shards every rank has to call it, and one `writes`."""
    state = checkpoint_state(model, keep=writes)
    adapter = adapter_state(model)
    if not writes:
        return
    with without_progress_bars():
        model.save_pretrained(path, state_dict=state)
    if adapter:
        save_adapter(model, adapter, Path(path) / ADAPTER)


@contextlib.contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keeps transformers from drawing bars over the run's own display."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def load_chat(path: str | Path) -> tuple[Tokenizer, Chat]:
    """The tokenizer of a checkpoint, and the chat made from it. Raises ConfigError or TemplateError."""
    _require_checkpoint(path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path))
        config = AutoConfig.from_pretrained(str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot load a tokenizer from '{path}': {first_line(error)}") from error
    eos = config.eos_token_id
    with contextlib.suppress(OSError):  # a checkpoint need not have a generation config
        eos = GenerationConfig.from_pretrained(str(path)).eos_token_id or eos
    stops = [] if eos is None else [eos] if isinstance(eos, int) else list(eos)
    return tokenizer, Chat(tokenizer, stops)


def _require_checkpoint(path: str | Path) -> None:
    looks_local = str(path).startswith((".", "/", "~")) or str(path).count("/") != 1
    is_local = looks_local or Path(path).exists()
    if is_local and not (Path(path).expanduser() / "config.json").is_file():
        raise ConfigError(f"no model at '{path}': a checkpoint is a folder with a config.json, or a hub id (org/name)")
    if not is_local:
        _require_hub(str(path))


def _require_hub(model: str) -> None:
    """Raises ConfigError if the hub is out of reach and the cache lacks the model: loading asks again for a minute."""
    try:
        if is_offline_mode() or isinstance(try_to_load_from_cache(model, "config.json"), str):
            return
        get_hf_file_metadata(hf_hub_url(model, "config.json"))
    except httpx.TransportError as error:
        raise ConfigError(
            f"cannot load '{model}': it is no folder, is not in the cache, and {constants.ENDPOINT} is out of reach: "
            f"{first_line(error)}"
        ) from error
    except (HfHubHTTPError, ValueError):
        pass  # the hub answers, or was not asked for what is no id: loading says what is wrong
