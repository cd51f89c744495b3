"""A running `vllm serve` as a rollout backend: token ids over HTTP, and weights through a folder that both see."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from verigym.agents.engines import weight_files
from verigym.agents.engines.engine import Engine, Generation, Request, StopReason, WholeLayers, refuse_impossible
from verigym.agents.engines.vllm import parameter_names, refuse_temperature
from verigym.tasks.activity import moved
from verigym.tasks.errors import ConfigError, EngineError

START = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --enable-scale-out --logprobs-mode processed_logprobs --max-logprobs -1 "
    "--generation-config vllm --no-async-scheduling"
)
_VERSION = "0.32"  # whose tokens tell the version of their weights
_GENERATE = "/inference/v1/generate"
_WAIT = 0.1  # seconds that a step waits for the next generation


class VLLMServerEngine(Engine):
    """Each request is a connection of its own; the server batches them.

    Weights go by the server's development endpoints: an update is written as safetensors to a temporary folder
    (TMPDIR says where), which the server must see too, and loaded from there between two of its steps. Running
    requests, those of other clients too, go on with recomputed keys and values; the server tells the version of each
    token. An update that fails half way leaves a server that samples nothing any more.

    Args:
        url: the server's address.
        model: the checkpoint that it serves, whose tensors an update may hold.
        dtype: the server's precision.
        slots: requests that are open at a time; the others wait.
        timeout: seconds for an answer.

    Raises ConfigError for what is no address, EngineError for a server that cannot be reached, is none of vLLM or
    was not started as `START` says.
    """

    whole_layers = True

    def __init__(
        self,
        url: str,
        model: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        slots: int = 256,
        timeout: float = 600.0,
    ) -> None:
        self._host, self._port = _host_and_port(url)
        self.url, self.dtype, self._timeout = f"http://{self._host}:{self._port}", dtype, timeout
        models = self._call("GET", "/v1/models")
        with self._expecting("list of models as a vllm serve does", models):
            self._name, self._limit = str(models["data"][0]["id"]), int(models["data"][0]["max_model_len"])
        self._call("POST", "/update_weight_version", {"new_version": str(self.version)})
        self._layers = WholeLayers(parameter_names(model))
        self._sends_processed: bool | None = None
        self._waiting: SimpleQueue[Request | None] = SimpleQueue()
        self._done: SimpleQueue[tuple[int, Generation | Exception]] = SimpleQueue()
        self._open: dict[int, http.client.HTTPConnection | None] = {}  # by request; None before it is sent
        self._lock = threading.Lock()
        self._slots, self._threads = slots, 0

    # The contract.

    def submit(self, request: Request) -> None:
        refuse_impossible(request, self.max_context)
        refuse_temperature(request)
        if request.sampling.temperature not in (0.0, 1.0):
            self._require_processed()
        self._open[request.id] = None
        if self._threads < min(self._slots, len(self._open)):
            self._threads += 1
            threading.Thread(target=self._work, name="verigym-vllm-server", daemon=True).start()
        self._waiting.put(request)

    def step(self) -> list[Generation]:
        finished: list[Generation] = []
        if not self._open:
            return finished
        try:
            finished += self._take(self._done.get(timeout=_WAIT))
            while True:
                finished += self._take(self._done.get_nowait())
        except Empty:
            return finished

    def cancel(self, request_id: int) -> None:
        with self._lock:
            connection = self._open.pop(request_id, None)
        if connection is not None:
            _hang_up(connection)  # the server drops a request whose client is gone

    def release(self, episode_id: int) -> None:
        pass

    def score(self, token_ids: Sequence[Sequence[int]], temperature: float = 1.0) -> list[NDArray[np.float32]]:
        return [self._score_one([int(token) for token in ids], temperature) for ids in token_ids]

    @torch.no_grad()
    def update_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        folder = Path(tempfile.mkdtemp(prefix="verigym-weights-"))
        try:
            weight_files.write(self._layers.check(tensors), folder)
            self._load(folder, version)
        finally:
            shutil.rmtree(folder)
        self.version = version

    @property
    def pending(self) -> int:
        return len(self._open)

    @property
    def max_context(self) -> int:
        return self._limit

    def close(self) -> None:
        for request_id in list(self._open):
            self.cancel(request_id)
        for _ in range(self._threads):
            self._waiting.put(None)
        self._threads = 0

    # Weights.

    def _load(self, folder: Path, version: int) -> None:
        """Until it resumes the server takes requests, and drops them, but samples nothing."""
        try:
            self._call("POST", "/pause?mode=keep&clear_cache=false")
            self._call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
            answer = self._call("POST", "/reset_prefix_cache?reset_running_requests=true")
            if not (isinstance(answer, dict) and answer.get("success")):
                raise EngineError(f"{self.url} keeps keys and values of older weights: its prefix cache was not reset")
            self._call("POST", "/update_weight_version", {"new_version": str(version)})
            self._call("POST", "/resume")
        except EngineError as error:
            raise EngineError(
                f"{error}; it does not have version {version} and samples nothing any more: start it anew, where it "
                f"sees {folder.parent}"
            ) from error

    # Requests.

    def _work(self) -> None:
        while (request := self._waiting.get()) is not None:
            connection = self._connect()
            with self._lock:
                if request.id not in self._open:
                    continue  # cancelled
                self._open[request.id] = connection
            try:
                answer = self._ask(connection, "POST", _GENERATE, self._question(request))
                self._done.put((request.id, self._generation(request, answer)))
            except Exception as error:  # whatever it is, `step` raises it in the engine's own thread
                self._done.put((request.id, error))
            finally:
                connection.close()

    def _take(self, done: tuple[int, Generation | Exception]) -> list[Generation]:
        with self._lock:
            known = self._open.pop(done[0], False) is not False
        if isinstance(done[1], Exception):
            if known:
                raise done[1]
            return []
        return [done[1]] if known else []

    def _question(self, request: Request) -> dict[str, Any]:
        sampling = request.sampling
        return self._body(
            request.token_ids,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=request.seed,
            stop_token_ids=list(sampling.stop_token_ids),
            logprobs=0,
        )

    def _body(self, ids: Sequence[int], **sampling: Any) -> dict[str, Any]:
        """A request for tokens, each from the full softmax."""
        full = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
        parameters = full | {"ignore_eos": True, "detokenize": False} | sampling
        return {"model": self._name, "token_ids": [int(token) for token in ids], "sampling_params": parameters}

    def _generation(self, request: Request, answer: Mapping[str, Any]) -> Generation:
        with self._expecting("tokens with their log-probabilities and versions", answer):
            choice = answer["choices"][0]
            reason = choice["finish_reason"]
            ids = tuple(int(token) for token in choice["token_ids"])
            logprobs = tuple(float(token["logprob"]) for token in choice["logprobs"]["content"])
            labels = [span["version"] for span in choice["weight_versions"] for _ in range(span["start"], span["end"])]
        if reason not in tuple(StopReason) or not ids or not len(ids) == len(logprobs) == len(labels):
            raise EngineError(f"{self.url} gave up request {request.id}: {reason}")
        if not all(map(str.isdecimal, labels)):
            raise EngineError(f"{self.url} has lost the weights that were sent to it: it was started anew meanwhile")
        return Generation(request.id, ids, logprobs, tuple(map(int, labels)), StopReason(reason))

    def _score_one(self, ids: list[int], temperature: float) -> NDArray[np.float32]:
        if len(ids) < 2:
            return np.zeros(0, np.float32)
        wanted = 0 if temperature == 1.0 else -1
        answer = self._call("POST", _GENERATE, self._body(ids, max_tokens=1, temperature=0.0, prompt_logprobs=wanted))
        with self._expecting("log-probabilities of a prompt", answer):
            positions = answer["prompt_logprobs"][1:]
            own = np.array([at[str(token)]["logprob"] for at, token in zip(positions, ids[1:], strict=True)])
        if temperature == 1.0:
            return own.astype(np.float32)
        every = [np.array([entry["logprob"] for entry in position.values()]) for position in positions]
        totals = [np.logaddexp.reduce(values / temperature) for values in every]
        return np.asarray(own / temperature - np.array(totals), np.float32)

    def _require_processed(self) -> None:
        """Raises EngineError if the server's log-probabilities do not depend on the temperature."""
        if self._sends_processed is None:
            bodies = [self._body([0], max_tokens=1, temperature=t, seed=0, logprobs=5) for t in (0.5, 2.0)]
            answers = [self._call("POST", _GENERATE, body) for body in bodies]
            with self._expecting("most probable tokens", answers):
                cold, hot = map(_highest, answers)
            self._sends_processed = cold != hot
        if not self._sends_processed:
            raise EngineError(f"the log-probabilities of {self.url} leave out the temperature: start it as {START}")

    # HTTP.

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """One request and its answer, from the engine's own thread."""
        connection = self._connect()
        try:
            return self._ask(connection, method, path, body)
        finally:
            connection.close()

    def _ask(self, connection: http.client.HTTPConnection, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode("utf-8", "replace")
            moved()
        except (OSError, http.client.HTTPException) as error:
            raise EngineError(f"{self.url}{path} does not answer: {error or type(error).__name__}") from error
        if response.status in (403, 404):
            raise EngineError(f"{self.url} has no {path}: start vLLM {_VERSION} or newer as {START}")
        if response.status != 200:
            raise EngineError(f"{self.url}{path} answered {response.status}: {' '.join(text.split())[:300]}")
        try:
            return json.loads(text) if text.strip() else None
        except json.JSONDecodeError as error:
            raise EngineError(f"{self.url}{path} answered what is no JSON") from error

    @contextlib.contextmanager
    def _expecting(self, what: str, answer: Any) -> Iterator[None]:
        """Raises EngineError if an answer turns out to be something else."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(f"{self.url} answered no {what}: {json.dumps(answer)[:200]}") from error


def _host_and_port(url: str) -> tuple[str, int]:
    """Raises ConfigError for what is no address."""
    try:
        address = urlsplit(url if "://" in url else f"http://{url}")
        host, port = address.hostname, address.port or 80
    except ValueError:
        host = None
    if not host or address.scheme != "http":
        raise ConfigError(f"engine.url is an address such as http://localhost:8000, not '{url}'")
    return host, port


def _highest(answer: Mapping[str, Any]) -> float:
    """The log-probability of the most probable first token."""
    return max(float(token["logprob"]) for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"])


def _hang_up(connection: http.client.HTTPConnection) -> None:
    """Closes a connection that another thread reads from, which ends the reading."""
    if connection.sock is not None:
        with contextlib.suppress(OSError):  # it is closed already
            connection.sock.shutdown(socket.SHUT_RDWR)
