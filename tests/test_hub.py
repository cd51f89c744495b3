"""A checkpoint from the hub: one that works, one that is cached, and a hub that is out of reach."""

import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from verigym.agents.agent import load_chat, load_model, save_checkpoint
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.cli import main
from verigym.tasks.errors import ConfigError

COMMIT = "0123456789" * 4
OUT_OF_REACH = "http://127.0.0.1:1"


def put_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which is read once in a process."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("model"), tiny_tokenizer()
    save_checkpoint(folder, tiny_model(len(tokenizer), layers=1, eos_token_id=tokenizer.eos_token_id), tokenizer)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub out of reach, of which nothing may be asked twice: that is preceded by a sleep."""

    def sleep(seconds: float) -> None:
        raise AssertionError(f"asks again after {seconds} s")

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", sleep)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    put_hub(OUT_OF_REACH, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A hub that has org/tiny."""

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known, (_, _, name) = "/org/tiny/" in self.path, self.path.partition("/resolve/main/")
            file = checkpoint / name
            if not (known and file.is_file()):
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{name}"')
            self.send_header("Content-Length", str(file.stat().st_size))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(file.read_bytes())

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        put_hub(f"http://127.0.0.1:{server.server_port}", monkeypatch)
        yield
        server.shutdown()


def test_a_model_is_loaded_from_a_hub(hub: None, cache: Path) -> None:
    load_chat("org/tiny")
    load_model("org/tiny")
    assert (cache / "models--org--tiny" / "snapshots" / COMMIT / "config.json").is_file()


def test_what_the_hub_does_not_have_is_said(hub: None) -> None:
    with pytest.raises(ConfigError, match="from 'no/such': no/such is not a local folder and is not a valid model"):
        load_chat("no/such")


@pytest.mark.parametrize("load", [load_chat, load_model])
def test_a_hub_out_of_reach_is_asked_once(load: Callable[[str], object]) -> None:
    with pytest.raises(
        ConfigError, match=r"^cannot load 'no/such': .* not in the cache, .*127\.0\.0\.1:1 is out of reach"
    ):
        load("no/such")


def test_a_command_says_in_one_line_that_the_hub_is_out_of_reach(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", "no/such", "--env", "verigym/Arithmetic-v0"]) == 2
    err = capsys.readouterr().err
    assert "cannot load 'no/such'" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("offline", [True, False])
def test_a_cached_model_needs_no_hub(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    if not offline:  # transformers itself asks for further templates, and again, before it takes what is cached
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    model = cache / "models--org--tiny"
    shutil.copytree(checkpoint, model / "snapshots" / COMMIT)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    assert load_chat("org/tiny")[0].get_vocab() == load_chat(checkpoint)[0].get_vocab()
    cached, own = load_model("org/tiny").state_dict(), load_model(checkpoint).state_dict()
    assert cached.keys() == own.keys()
    assert all(torch.equal(cached[name], own[name]) for name in own)


def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"from 'no/such': .* couldn't find them in the cached files"):
        load_chat("no/such")
