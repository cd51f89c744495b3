"""The page of a run: what it holds, that nothing in a run can act in it, and how it works in a browser."""

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from verigym.agents.episode import Episode, Truncation, Turn
from verigym.agents.tiny import tiny_tokenizer
from verigym.cli import main
from verigym.run_folder import RunFolder
from verigym.tasks.canonical import render_call
from verigym.verifiers.verdict import Outcome, Verdict
from verigym.view import RunReader, ViewServer, write_page
from verigym.view.episodes import read_step
from verigym.view.tokens import TokenTexts

ROOT = Path(__file__).parents[1]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
TOKENIZER = tiny_tokenizer()
HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
    "<svg onload='window.hacked = 3'></svg><!-- &amp; {{blobs}} javascript:alert(1)"
)
CALL = f"<think>Six times seven.</think>\n{render_call('calculator', {'expression': '6 * 7'})}"


def play(*, group: int, reward: float, answer: str, task: str = "", seed: int = 0, **changes: Any) -> Episode:
    """Two turns, a call and an answer, with log-probabilities -0.5, -1, -1.5, ... on the policy's tokens."""
    messages = [
        {"role": "user", "content": "What is 6 * 7?"},
        {"role": "assistant", "content": CALL},
        {"role": "tool", "name": "calculator", "content": "42"},
        {"role": "assistant", "content": answer},
    ]
    ids: list[int] = []
    mask: list[bool] = []
    turns: list[Turn] = []
    for message in messages:
        own = message["role"] == "assistant"
        new = TOKENIZER.encode(message["content"], add_special_tokens=False)
        if own:
            turns.append(Turn(len(ids), len(ids) + len(new), reward if turns else 0.0, "stop", 64))
        ids, mask = ids + new, mask + [own] * len(new)
    policy = np.array(mask)
    outcome = Outcome.CORRECT if reward else Outcome.WRONG
    values = {
        "env_id": "verigym/Calculator-v0",
        "task_id": task or f"products/{group}",
        "group_id": group,
        "seed": 2**62 + seed,
        "sampling_seed": 2**62 + seed + 1,
        "token_ids": np.array(ids, np.int64),
        "mask": policy,
        "logprobs": np.where(policy, -0.5 * np.cumsum(policy), 0).astype(np.float32),
        "versions": np.where(policy, 3, -1),
        "turns": tuple(turns),
        "messages": tuple(messages),
        "truncation": None,
        "verdict": Verdict(reward, outcome, f"the answer is {answer}", {"answer": reward}),
    }
    return Episode(**(values | changes))


def write_step(run: RunFolder, step: int) -> None:
    """Two groups of two, of which one has learner's columns, and their metrics."""
    played = [
        play(group=2 * step, reward=1.0, answer="\\boxed{42}"),
        play(group=2 * step, reward=0.0, answer=f"{HOSTILE} step-{step}"),
        play(group=2 * step + 1, reward=0.0, answer="naïve 🦉", task=HOSTILE, truncation=Truncation.TURNS),
        play(group=2 * step + 1, reward=0.0, answer="", verdict=Verdict.infra_error("the sandbox is gone")),
    ]
    columns = {
        e: {"advantages": np.full(e.num_policy_tokens, sign * 0.75), "logprobs": e.logprobs[e.mask] - 0.125}
        for e, sign in zip(played[:2], (1, -1), strict=True)
    }
    columns[played[0]]["values"] = np.arange(played[0].num_policy_tokens) / 4
    run.write_episodes(step, played, columns)
    run.log({"step": step, "reward": 0.25 * step, "pass_rate": 0.25, "entropy": 1 / step, "unset": float("nan")})


def make_run(folder: Path, steps: int = 3) -> RunFolder:
    run = RunFolder(folder)
    run.create({"model": "tiny", "learner": "ppo", "note": HOSTILE})
    TOKENIZER.save_pretrained(run.checkpoints_path / "000000")
    for step in range(1, steps + 1):
        write_step(run, step)
    return run


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return make_run(tmp_path / "a <b>run")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["view", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix("verigym view: ").strip()


# What the page holds.


def test_the_command_writes_one_page_that_asks_nothing_of_the_network(run: RunFolder, capsys: Any) -> None:
    assert main(["view", str(run.path), "--no-open"]) == 0
    page = (run.path / "view.html").read_text()
    assert capsys.readouterr().out.startswith(f"{run.path / 'view.html'}: 12 episodes")
    assert re.findall(r"""(?:src|href|action)\s*=\s*"(?!data:,|#)[^"]*""", page) == []
    assert set(re.findall(r"https?://[\w./]+", page)) == {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in page


def test_nothing_that_a_run_says_stands_in_the_page_as_markup(run: RunFolder, tmp_path: Path) -> None:
    write_page(run.path, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "hacked" not in page
    assert "<b>run" not in page
    assert "<title>a &lt;b&gt;run · verigym</title>" in page


def test_an_episode_file_holds_what_the_learner_knew_of_each_token(run: RunFolder) -> None:
    step = read_step(run.episodes_path / "000001.jsonl.gz")
    first, second, third, fourth = json.loads(gzip.decompress(step.chunks[0]))
    count = sum(first["mask"])
    assert first["learner"]["advantages"] == [0.75] * count
    assert first["learner"]["logprobs"] == pytest.approx([-0.5 * (k + 1) - 0.125 for k in range(count)])
    assert first["learner"]["values"][:3] == [0, 0.25, 0.5]
    assert second["learner"].keys() == {"advantages", "logprobs"}
    assert third["learner"] == fourth["learner"] == {}
    assert first["seed"] == str(2**62)  # as text: a browser's numbers have fewer digits
    assert first["sampling_seed"] == str(2**62 + 1)
    assert [row[6] for row in step.rows] == [1.0, 0.0, 0.0, None]


def test_large_steps_are_cut_into_chunks_that_the_index_names(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("verigym.view.episodes.CHUNK_BYTES", 3000)
    run = make_run(tmp_path / "run", steps=1)
    reader = RunReader(run.path)
    names = [name for name, _ in reader.chunks()]
    index = reader.data()["index"]
    assert len(names) > 1
    assert sorted({f"1.{chunk}" for chunk in index["chunk"]}) == names
    assert reader.chunk(names[-1]) == dict(reader.chunks())[names[-1]]
    assert reader.chunk("1.99") is reader.chunk("7.0") is None


def test_parts_of_a_character_are_shown_as_their_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=1)
    ids = TOKENIZER.encode("naïve 🦉\n", add_special_tokens=False)
    texts = TokenTexts(run.path).of(frozenset(ids))
    assert "".join(texts[token] for token in ids) == "na\\xC3\\xAFve \\xF0\\x9F\\xA6\\x89\n"


def test_a_token_keeps_its_leading_space_where_a_decoder_drops_that_of_the_first(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    words = Tokenizer(
        models.Unigram([("<unk>", 0.0), ("▁the", -1.0), ("▁a", -1.0), ("a", -3.0), ("▁", -4.0)], unk_id=0)
    )
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    words.save(str(tmp_path / "checkpoints" / "best" / "tokenizer.json"))
    assert words.decode([1]) == "the"
    assert TokenTexts(tmp_path).of({1, 3}) == {1: " the", 3: "a"}


def test_without_a_tokenizer_the_page_says_that_it_shows_ids(run: RunFolder) -> None:
    shutil.rmtree(run.checkpoints_path)
    data = RunReader(run.path).data()
    assert data["texts"] == {}
    assert data["notes"] == ["no tokenizer.json in the run's checkpoints: tokens are shown by their ids"]


# Bad input.


def test_a_file_that_is_cut_short_is_shown_as_far_as_it_goes(run: RunFolder) -> None:
    path = run.episodes_path / "000002.jsonl.gz"
    # Written line by line, as a log that is flushed: a cut loses the last lines only.
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines), compresslevel=0)[:-400])
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "rewa')
    (run.episodes_path / "000003 (copy).jsonl.gz").write_bytes(b"")  # not the file of a step
    data = RunReader(run.path).data()
    assert data["index"]["step"].count(2) == 3
    assert data["series"]["reward"] == [[1, 2, 3], [0.25, 0.5, 0.75]]
    assert data["notes"] == [
        "metrics.jsonl: 1 of its lines cannot be read and are left out",
        "episodes/000002.jsonl.gz is cut short: 3 of its episodes could be read",
    ]


@pytest.mark.parametrize(
    "damage",
    [b"", b"\x1f\x8b\x08", b"not gzip at all", gzip.compress(b'[1]\n{"env_id": 3}\n')],
    ids=["empty", "magic alone", "no gzip", "no episodes"],
)
def test_a_file_without_episodes_is_told_and_the_rest_is_shown(run: RunFolder, damage: bytes) -> None:
    (run.episodes_path / "000002.jsonl.gz").write_bytes(damage)
    data = RunReader(run.path).data()
    assert data["index"]["step"] == [1] * 4 + [3] * 4
    (note,) = data["notes"]
    assert note.startswith("episodes/000002.jsonl.gz")


def test_numbers_that_json_has_not_are_null(run: RunFolder) -> None:
    path = run.episodes_path / "000001.jsonl.gz"
    text = gzip.decompress(path.read_bytes()).decode().replace('"logprobs": [0.0', '"logprobs": [-Infinity')
    path.write_bytes(gzip.compress(text.encode()))
    rows = json.loads(gzip.decompress(read_step(path).chunks[0]))
    assert rows[0]["logprobs"][:2] == [None, 0.0]


def test_wrong_input_is_one_clear_line(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, str(tmp_path / "none")) == f"no run in '{tmp_path / 'none'}': there is no such folder"
    assert refused(capsys, str(tmp_path)) == f"no run in '{tmp_path}': it has no config.yaml"
    output = tmp_path / "missing" / "page.html"
    assert refused(capsys, str(run.path), "--output", str(output)).startswith(f"cannot write '{output}': No such file")
    assert refused(capsys, str(run.path), "--serve", "--output", "x") == "--serve writes no page: leave out --output"
    assert refused(capsys, str(run.path), "--port", "80") == "--port goes with --serve"
    assert refused(capsys, str(run.path), "--serve", "--port", "70000").endswith("from 0 to 65535, not 70000")
    assert refused(capsys, str(run.path), "--no-opne").endswith("did you mean --no-open?")


def test_a_run_too_large_for_a_page_is_refused(run: RunFolder, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr("verigym.view.page._MAX_BYTES", 1000)
    assert refused(capsys, str(run.path), "--output", str(tmp_path / "page.html")).endswith("look at them with --serve")
    assert not (tmp_path / "page.html").exists()


def test_the_files_of_the_page_are_shipped() -> None:
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["verigym.view"]
    folder = ROOT / "src" / "verigym" / "view"
    known = {path.name for pattern in shipped for path in folder.glob(pattern)}
    assert {path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".py"} == known
    assert {"page.html", "page.css", "app.js"} <= known


# The server of a live run.


@pytest.fixture
def server(run: RunFolder) -> Iterator[ViewServer]:
    with ViewServer(RunReader(run.path)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(url: str, **headers: str) -> tuple[int, bytes, str | None]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status, answer.read(), answer.headers["ETag"]
    except urllib.error.HTTPError as error:
        return error.code, b"", None


def test_the_server_answers_anew_when_the_run_has_grown(run: RunFolder, server: ViewServer) -> None:
    status, page, _ = ask(server.url)
    assert (status, b'id="data"' in page) == (200, False)
    _, packed, tag = ask(f"{server.url}data")
    assert json.loads(gzip.decompress(packed))["index"]["step"] == [1] * 4 + [2] * 4 + [3] * 4
    assert ask(f"{server.url}data", **{"If-None-Match": str(tag)})[0] == 304
    write_step(run, 4)
    status, packed, other = ask(f"{server.url}data", **{"If-None-Match": str(tag)})
    assert (status, other == tag) == (200, False)
    assert json.loads(gzip.decompress(packed))["index"]["step"][-1] == 4
    assert len(json.loads(gzip.decompress(ask(f"{server.url}chunk/4.0")[1]))) == 4


@pytest.mark.parametrize("path", ["chunk/9.0", "chunk/1.9", "chunk/../config.yaml", "config.yaml", "chunk/1.0/../.."])
def test_the_server_gives_nothing_else(server: ViewServer, path: str) -> None:
    assert ask(f"{server.url}{path}")[0] == 404


def test_the_server_is_for_this_machine_alone(server: ViewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    connection = HTTPConnection("127.0.0.1", server.server_address[1])
    connection.request("GET", "/data", headers={"Host": "elsewhere.example:80"})
    assert connection.getresponse().status == 403


def test_a_port_that_is_taken_is_one_clear_line(run: RunFolder, server: ViewServer, capsys: Any) -> None:
    port = str(server.server_address[1])
    line = refused(capsys, str(run.path), "--serve", "--no-open", "--port", port)
    assert line == f"cannot serve on port {port}: Address already in use"


def test_the_command_follows_a_run_until_it_is_interrupted(run: RunFolder) -> None:
    command = [sys.executable, "-m", "verigym.cli", "view", str(run.path), "--serve", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        assert line.endswith(f" follows {run.path}; Ctrl-C ends it\n")
        assert ask(line.split()[0])[0] == 200
        process.send_signal(signal.SIGINT)
        assert (process.wait(), process.stderr.read()) == (0, "")


# In a browser.


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver on the PATH (Debian: apt-get install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing (extra dev)")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"):
        options.add_argument(f"--{flag}")
    for flag in ("disable-background-networking", "disable-component-update", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield browser
    browser.quit()


class Page:
    """A page in the browser: what a person sees and does."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser, self.url = browser, url
        self.open("")

    def open(self, address: str) -> None:
        self.browser.get("about:blank")
        self.browser.get(self.url + address)
        self.wait(lambda: self.run("return document.body.dataset.ready") == "true")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], Any]) -> Any:
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.browser, 120).until(lambda _: condition())

    def all(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def texts(self, selector: str) -> list[str]:
        return list(self.run("return [...document.querySelectorAll(arguments[0])].map((n) => n.textContent)", selector))

    def click(self, selector: str) -> None:
        self.wait(lambda: self.all(selector))[0].click()

    def shows(self, selector: str, *expected: str) -> None:
        self.wait(lambda: self.texts(selector) == list(expected))

    def emulate(self, media: str = "", **features: str) -> None:
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": named})


@pytest.fixture
def page(run: RunFolder, chromium: Any, tmp_path: Path) -> Iterator[Page]:
    write_page(run.path, tmp_path / "page.html")
    chromium.get_log("browser")
    yield Page(chromium, (tmp_path / "page.html").as_uri())
    assert chromium.execute_script("return window.hacked") is None
    assert [entry["message"] for entry in chromium.get_log("browser")] == []


def test_episodes_are_found_filtered_and_read_in_a_browser(page: Page, tmp_path: Path) -> None:
    page.click("nav a[href*=episodes]")
    page.shows("#count", "12 episodes")
    page.click(".chip[data-outcome=wrong]")
    page.shows("#count", "6 of 12 episodes")
    page.all("input[name=text]")[0].send_keys("STEP-2")  # in the text of one of them, whatever its case
    page.shows("#count", "1 of 12 episodes")
    page.browser.save_screenshot(str(tmp_path / "list.png"))
    page.click(".episodes tbody tr")
    page.wait(lambda: page.run("return location.hash") == "#episode=2.1")
    page.wait(lambda: page.all(".message"))
    names = [text.split("turn")[0] for text in page.texts(".message h3")]
    assert names == ["User", "Agent", "Tool · calculator", "Agent"]
    assert page.texts(".call .name") == ["calculator"]
    assert json.loads(page.texts(".call pre")[0]) == {"expression": "6 * 7"}
    assert page.texts(".reasoning .text") == ["Six times seven."]
    assert page.texts(".message:last-child .text") == [f"{HOSTILE} step-2"]
    assert page.texts(".verdict .badge") == ["wrong"]
    assert page.texts(".verdict .reason") == [f"the answer is {HOSTILE} step-2"]
    page.browser.save_screenshot(str(tmp_path / "chat.png"))
    assert (tmp_path / "chat.png").stat().st_size > 10_000
    page.click(".crumbs a")
    page.shows("#count", "1 of 12 episodes")  # the way back leads to the list as it was


@pytest.mark.parametrize(
    ("address", "ids"),
    [
        ("&from=2&to=2", ["2.0", "2.1", "2.2", "2.3"]),
        ("&min=0.5", ["1.0", "2.0", "3.0"]),
        ("&truncation=turns&from=2", ["2.2", "3.2"]),
        ("&outcome=infra_error,correct&to=1", ["1.0", "1.3"]),
        ("&task=PRODUCTS/4", ["2.0", "2.1"]),
        ("&text=sandbox&from=3", ["3.3"]),
        ("&sort=-reward&to=1", ["1.0", "1.1", "1.2", "1.3"]),
        ("&text=nowhere", []),
    ],
)
def test_a_link_leads_to_a_filtered_list(page: Page, address: str, ids: list[str]) -> None:
    page.open(f"#view=episodes{address}")
    page.wait(lambda: page.all("#count"))
    rows = "return [...document.querySelectorAll('tr[data-episode]')].map((row) => row.dataset.episode)"
    assert page.run(rows) == ids


def test_tokens_show_what_sampler_and_learner_knew_of_them(page: Page, tmp_path: Path) -> None:
    page.open("#episode=1.0&tab=tokens")
    page.wait(lambda: page.all(".details"))
    assert "".join(page.texts(".flow .token")).startswith("What is 6 * 7?<think>Six times")
    page.all(".flow")[0].send_keys("\ue014")  # the right arrow: from the policy's first token to its second
    facts = dict(zip(page.texts(".details dt"), page.texts(".details dd"), strict=True))
    assert {name: facts[name] for name in ("mask", "version", "advantage", "value")} == {
        "mask": "1 · sampled",
        "version": "3",
        "advantage": "0.75",
        "value": "0.25",
    }
    assert (facts["log-prob., sampler"], facts["log-prob., learner"]) == ("-1", "-1.125")
    page.browser.save_screenshot(str(tmp_path / "tokens.png"))
    page.open("#episode=1.2&tab=tokens&as=table")  # an episode of which the learner said nothing
    page.wait(lambda: page.all(".dense"))
    assert page.texts(".dense th")[3:] == ["Mask", "Log-prob., sampler", "Version"]
    assert page.texts(".hint")[0].startswith("This episode was not learned from")


def test_a_long_prompt_is_folded_until_it_is_asked_for(run: RunFolder, chromium: Any, tmp_path: Path) -> None:
    played = play(group=0, reward=1.0, answer="42")
    prompt, rest = TOKENIZER.encode("x" * 300, add_special_tokens=False), len(played.token_ids)
    columns = {name: np.concatenate([np.zeros(300), getattr(played, name)]) for name in ("logprobs", "versions")}
    ids, mask = np.concatenate([prompt, played.token_ids]), np.concatenate([np.zeros(300, bool), played.mask])
    run.write_episodes(9, [replace(played, token_ids=ids, mask=mask, **columns)])
    write_page(run.path, tmp_path / "page.html")
    page = Page(chromium, (tmp_path / "page.html").as_uri())
    page.open("#episode=9.0&tab=tokens")
    page.wait(lambda: page.all(".flow"))
    before = 300 + int(played.mask.argmax()) - 60
    assert (len(page.all(".token")), page.texts(".unfold")) == (
        300 + rest - before,
        [f"Show the {before} tokens before"],
    )
    page.click(".unfold")
    assert (len(page.all(".token")), page.texts(".unfold")) == (300 + rest, [])


def test_a_group_stands_side_by_side(page: Page, tmp_path: Path) -> None:
    page.open("#episode=1.1&tab=group")
    page.wait(lambda: page.all(".member"))
    assert page.texts(".member .badge") == ["correct", "wrong"]
    assert page.texts(".member.current h2 a") == ["Episode 1.1"]
    assert page.texts(".group > .chat .text") == ["What is 6 * 7?"]  # what they share is said once
    assert page.texts(".member .facts div:nth-child(2) dd") == ["0.75", "-0.75"]
    left, right = (box.rect for box in page.all(".member"))
    assert (left["y"], left["x"] < right["x"]) == (right["y"], True)
    page.browser.save_screenshot(str(tmp_path / "group.png"))


def test_curves_are_drawn_and_read_with_the_keyboard(page: Page, tmp_path: Path) -> None:
    assert len(page.all("figure[data-metric='reward pass_rate'] polyline")) == 2
    assert "unset" not in page.texts(".check")
    chart = page.all("figure[data-metric=entropy]")[0]
    assert page.texts("figure[data-metric=entropy] .readout") == ["0.333   step 3"]
    chart.send_keys("\ue012")  # the left arrow
    page.shows("figure[data-metric=entropy] .readout", "0.5   step 2")
    page.browser.save_screenshot(str(tmp_path / "curves.png"))
    chart.send_keys("\ue007")  # Enter: the episodes of this step
    page.shows("#count", "4 of 12 episodes")


def test_the_page_suits_dark_rooms_phones_and_paper(page: Page, tmp_path: Path) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    page.emulate(prefers_color_scheme="light")
    light = page.run(colour)
    page.emulate(prefers_color_scheme="dark")
    assert page.run(colour) != light
    page.browser.save_screenshot(str(tmp_path / "dark.png"))
    page.emulate(media="print")
    assert page.run("return getComputedStyle(document.getElementById('nav')).display") == "none"
    page.emulate(prefers_color_scheme="light")
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    try:
        for address in ("", "#view=episodes", "#episode=1.1", "#episode=1.1&tab=tokens", "#episode=1.1&tab=group"):
            page.open(address)
            assert page.run("return document.documentElement.scrollWidth") <= 390, address
        page.browser.save_screenshot(str(tmp_path / "phone.png"))
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_of_a_live_run_grows(run: RunFolder, server: ViewServer, chromium: Any) -> None:
    page = Page(chromium, server.url)
    page.open("#view=episodes&outcome=correct")
    page.shows("#count", "3 of 12 episodes")
    write_step(run, 4)
    page.shows("#count", "4 of 16 episodes")
    page.click(".episodes tbody tr:last-child a")
    page.shows(".call .name", "calculator")


def test_a_run_without_episodes_says_so(tmp_path: Path, chromium: Any) -> None:
    make_run(tmp_path / "run", steps=0)
    write_page(tmp_path / "run", tmp_path / "page.html")
    page = Page(chromium, (tmp_path / "page.html").as_uri())
    assert page.texts(".empty") == ["No metrics yet: the first step has not ended."]
    page.open("#view=episodes")
    assert page.texts(".empty") == ["No episodes yet: they are written as each step ends."]
    page.open("#episode=1.1")
    assert page.texts(".empty") == ["This run has no episode 1.1."]
