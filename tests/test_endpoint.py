"""Models behind an endpoint, against real servers on loopback: what they say becomes a turn, a failure one line."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from verigym.agents.agent import LocalAgent, load_chat
from verigym.agents.endpoint import EndpointAgent, as_openai
from verigym.agents.engines.config import EngineConfig
from verigym.agents.engines.make import make_engine
from verigym.agents.episode import Truncation
from verigym.cli import main
from verigym.envs.mixture import EnvSpec
from verigym.evaluation import play, summarise
from verigym.players import EndpointPlayer, LocalPlayer
from verigym.tasks.canonical import parse_turn, render_call
from verigym.tasks.errors import ConfigError, EndpointError, RunError
from verigym.verifiers import Outcome

CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"max_tokens_per_turn": 24, "split": "test"})
SUMS = EnvSpec("verigym/Arithmetic-v0", kwargs={"max_tokens_per_turn": 6, "split": "test"})
CALL = render_call("multiply", {"a": 6, "b": 7})
Answers = Callable[[dict[str, Any]], tuple[int, Any]]


@contextmanager
def serving(answers: Answers) -> Iterator[str]:
    """A server whose answer to each request's body is `answers` of it; the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = answers(body | {"key": self.headers.get("Authorization")})
            data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def completion(message: dict[str, Any], *, tokens: int = 3, reason: str = "stop") -> tuple[int, Any]:
    return 200, {"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": tokens}}


def said(message: dict[str, Any]) -> str:
    with serving(lambda _: completion(message)) as url:
        return EndpointAgent(url, "m").act([{"role": "user", "content": "x"}])


def function(name: str, arguments: str) -> dict[str, Any]:
    return {"id": "1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("message", "turn"),
    [
        ({"content": "42"}, "42"),
        ({"content": None, "tool_calls": [function("multiply", '{"a": 6, "b": 7}')]}, CALL),
        ({"content": "so", "tool_calls": [function("f", ""), function("g", "{}")]}, None),
        ({"content": "42", "reasoning_content": "six </think> times"}, "<think>six &lt;/think> times</think>42"),
        ({"content": "<think>hm</think>\n\n42"}, "<think>hm</think>42"),
        ({"content": "hm</think>42"}, "<think>hm</think>42"),
        ({"content": "<think>hm"}, "<think>hm</think>"),
    ],
)
def test_an_answer_becomes_a_canonical_turn(message: dict[str, Any], turn: str | None) -> None:
    assert said(message) == (turn or "so" + render_call("f", {}) + render_call("g", {}))


def test_a_call_that_stands_in_the_text_is_text_and_what_to_do_is_said() -> None:
    with pytest.warns(UserWarning, match="let the server parse calls"):
        turn = parse_turn(said({"content": f"Write {CALL}"}))
    assert not turn.calls
    assert not turn.errors


@pytest.mark.parametrize("arguments", ["{", "[1]", '{"a": NaN}', '"</tool_call>"'])
def test_arguments_that_are_no_object_reach_the_environment_as_a_malformed_call(arguments: str) -> None:
    turn = parse_turn(said({"content": "", "tool_calls": [function("multiply", arguments)]}))
    assert not turn.calls
    assert len(turn.errors) == 1


def test_a_conversation_is_sent_with_its_calls_their_ids_and_the_tools() -> None:
    seen: list[dict[str, Any]] = []
    conversation = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": f"<think>no</think>Well{CALL}{CALL}"},
        {"role": "tool", "content": "42"},
        {"role": "tool", "content": "43"},
        {"role": "assistant", "content": "<tool_call>{</tool_call>"},
        {"role": "tool", "content": "malformed"},
    ]
    with serving(lambda body: seen.append(body) or completion({"content": "42"})) as url:
        agent = EndpointAgent(f"{url}/v1/", "name", api_key="k", temperature=0.5, max_new_tokens=7)
        assert agent.act(conversation, [{"type": "function", "function": {"name": "multiply"}}]) == "42"
    (body,) = seen
    assert (body["model"], body["temperature"], body["max_tokens"], body["key"]) == ("name", 0.5, 7, "Bearer k")
    assert body["tools"] == [{"type": "function", "function": {"name": "multiply"}}]
    system, user, called, one, other, broken, told = body["messages"]
    assert (system["content"], user["content"], called["content"]) == ("s", "q", "Well")
    assert [json.loads(call["function"]["arguments"]) for call in called["tool_calls"]] == [{"a": 6, "b": 7}] * 2
    assert [one["tool_call_id"], other["tool_call_id"]] == [call["id"] for call in called["tool_calls"]]
    assert one["tool_call_id"] != other["tool_call_id"]
    assert (broken["content"], told["role"]) == ("<tool_call>{</tool_call>", "user")


def test_an_endpoint_that_wants_the_newer_name_of_the_limit_gets_it() -> None:
    seen: list[dict[str, Any]] = []

    def answers(body: dict[str, Any]) -> tuple[int, Any]:
        seen.append(body)
        if "max_tokens" in body:
            problem = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            return 400, {"error": {"message": problem}}
        return completion({"content": "42"})

    with serving(answers) as url:
        agent = EndpointAgent(url, "m", max_new_tokens=7, retries=0)
        assert [agent.act([{"role": "user", "content": "x"}]) for _ in range(2)] == ["42", "42"]
    assert [body.get("max_completion_tokens") for body in seen] == [None, 7, 7]


def test_an_endpoint_that_counts_no_tokens_is_said_once_and_its_tokens_are_estimated() -> None:
    reply = {"choices": [{"message": {"content": "six times seven is 42"}, "finish_reason": "stop"}]}
    with serving(lambda _: (200, reply)) as url:
        agent = EndpointAgent(url, "m")
        with pytest.warns(UserWarning, match="does not say how many tokens") as said_once:
            answers = [agent.answer([{"role": "user", "content": "x"}], max_new_tokens=most) for most in (9, 4)]
    assert [answer.tokens for answer in answers] == [5, 4]
    assert len(said_once) == 1


# Failures.


def asked(answers: Answers, **options: Any) -> str:
    with serving(answers) as url:
        return EndpointAgent(url, "m", **options).act([{"role": "user", "content": "x"}])


def test_a_busy_endpoint_is_asked_again() -> None:
    left = [(503, {})]
    assert asked(lambda _: left.pop() if left else completion({"content": "42"}), retries=1) == "42"
    assert not left


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((404, {"error": {"message": "no model\n'm' here"}}), r"/v1/chat/completions answered 404: no model 'm' here"),
        ((400, b"\xff"), "answered 400"),
        ((500, {"error": "broken"}), r"answered 500: broken \(2 tries\)"),
        ((200, b"<html>"), "answered what is no JSON"),
        ((200, {"choices": []}), "answered no chat completion: "),
        ((200, []), "answered no chat completion: "),
    ],
)
def test_what_fails_is_said_in_one_line(answer: tuple[int, Any], problem: str) -> None:
    with pytest.raises(EndpointError, match=problem) as caught:
        asked(lambda _: answer, retries=1)
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_is_slow_or_away_is_said() -> None:
    waiting = threading.Event()
    with pytest.raises(EndpointError, match=r"gave no answer within 0\.2 s \(1 tries\)"):
        asked(lambda _: (waiting.wait(1) and (200, {})) or (200, {}), timeout=0.2, retries=0)
    with serving(lambda _: (200, {})) as url:
        pass
    with pytest.raises(EndpointError, match="cannot be reached"):
        EndpointAgent(url, "m", retries=0).act([])
    with pytest.raises(ConfigError, match="an address such as"):
        EndpointAgent("localhost:8000", "m")


def test_a_key_with_a_line_break_is_cut_or_refused_and_never_shown() -> None:
    with serving(lambda body: completion({"content": body["key"]})) as url:
        assert EndpointAgent(url, "m", api_key="secret\n").act([]) == "Bearer secret"
        with pytest.raises(ConfigError, match="API key has characters") as caught:
            EndpointAgent(url, "m", api_key="sec\nret")
    assert "ret" not in str(caught.value)


def test_no_more_requests_than_allowed_are_open_at_a_time() -> None:
    lock, running, most = threading.Lock(), [0], [0]

    def answer(_: dict[str, Any]) -> tuple[int, Any]:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.03)
        with lock:
            running[0] -= 1
        return completion({"content": "42"})

    with serving(answer) as url:
        agent = EndpointAgent(url, "m", concurrency=3)
        threads = [threading.Thread(target=agent.act, args=([],)) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [3]


# Episodes.


@pytest.fixture
def local_model(checkpoint: Path) -> Iterator[str]:
    """A checkpoint behind an endpoint, which takes the most probable tokens."""
    tokenizer, chat = load_chat(checkpoint)
    engine = make_engine(EngineConfig(), checkpoint, dtype=torch.float32)
    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        agent = LocalAgent(chat, engine, temperature=body["temperature"], max_new_tokens=body["max_tokens"])
        with lock:
            turn = agent.act([canonical(message) for message in body["messages"]], body.get("tools", ()))
        parsed = parse_turn(turn)
        calls = [function(call.name, json.dumps(call.arguments)) for call in parsed.calls]
        tokens = len(tokenizer.encode(turn)) + 1
        reason = "length" if tokens > body["max_tokens"] else "stop"
        return completion(
            {"content": parsed.content if calls else turn, "tool_calls": calls}, tokens=tokens, reason=reason
        )

    with serving(answer) as url:
        yield url
    engine.close()


def canonical(message: dict[str, Any]) -> dict[str, str]:
    """A message of the API as a conversation has it."""
    calls = [call["function"] for call in message.get("tool_calls", ())]
    text = message["content"] + "".join(render_call(call["name"], json.loads(call["arguments"])) for call in calls)
    return {"role": message["role"], "content": text}


def test_a_model_plays_the_same_behind_an_endpoint_as_here(checkpoint: Path, local_model: str) -> None:
    here = play(LocalPlayer(checkpoint, temperature=0.0), SUMS, tasks=12)
    agent = EndpointAgent(local_model, "m", temperature=0.0)
    there = play(EndpointPlayer(agent, concurrency=8), SUMS, tasks=12)
    assert [episode.messages for episode in there] == [episode.messages for episode in here]
    assert len({episode.messages[-1]["content"] for episode in here}) > 1
    assert [episode.truncation for episode in there] == [episode.truncation for episode in here]
    assert summarise(there) == summarise(here)


def test_an_endpoint_that_calls_tools_gets_their_results_and_solves_the_task() -> None:
    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        *_, last = body["messages"]
        if last["role"] == "tool":
            asked, called = body["messages"][-3:-1]
            assert asked["role"] == "user"
            assert called["tool_calls"][0]["id"] == last["tool_call_id"]
            return completion({"content": f"\\boxed{{{last['content']}}}"})
        assert body["tools"][0]["function"]["name"] == "calculator"
        expression = re.search(r"\d+ \* \d+", last["content"])[0]
        return completion(
            {"content": None, "tool_calls": [function("calculator", json.dumps({"expression": expression}))]}
        )

    with serving(answer) as url:
        episodes = play(EndpointPlayer(EndpointAgent(url, "m"), concurrency=2), CALCULATOR, tasks=6)
    assert summarise(episodes).pass_rate == 1.0
    assert [len(episode.turns) for episode in episodes] == [2] * 6


def test_the_command_evaluates_an_endpoint(local_model: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output = tmp_path / "episodes.jsonl"
    arguments = ["eval", "--endpoint", local_model, "--model", "m", "--tasks", "5", "--output", str(output)]
    arguments += ["--env", SUMS.id, "--option", "max_tokens_per_turn=6", "--slots", "2"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["environments"][0]["models"][0]["tasks"] == 5
    assert len(output.read_text().splitlines()) == 5
    assert main([*arguments, "--deterministic", "True"]) == 2


def test_episodes_that_the_endpoint_fails_are_left_out_and_all_of_them_are_an_error() -> None:
    count = iter(range(100))
    with serving(lambda _: (400, {}) if next(count) % 2 else completion({"content": "42"})) as url:
        episodes = play(EndpointPlayer(EndpointAgent(url, "m"), concurrency=1), CALCULATOR, tasks=10)
    assert summarise(episodes).infra_errors == 5
    with serving(lambda _: (401, {"error": "no key"})) as url:
        episodes = play(EndpointPlayer(EndpointAgent(url, "m")), CALCULATOR, tasks=2)
        with pytest.raises(RunError, match=r"EndpointError: .* answered 401: no key"):
            summarise(episodes)


def test_a_conversation_that_outgrows_the_context_fails_and_a_question_that_does_is_the_endpoints_failure() -> None:
    problem = {"error": {"message": "This model's maximum context length is 64 tokens."}}

    def answers(body: dict[str, Any]) -> tuple[int, Any]:
        begun = len(body["messages"]) > 1
        call = {"content": "", "tool_calls": [function("calculator", '{"expression": "6 * 7"}')]}
        return (400, problem) if begun else completion(call)

    with serving(answers) as url:
        (episode,) = play(EndpointPlayer(EndpointAgent(url, "m")), CALCULATOR, tasks=1)
    assert (episode.verdict.reward, episode.verdict.outcome) == (0.0, Outcome.UNPARSEABLE)
    assert episode.truncation is Truncation.CONTEXT
    assert "64 tokens" in episode.verdict.reason
    assert len(episode.turns) == 1
    with serving(lambda _: (400, problem)) as url:
        (episode,) = play(EndpointPlayer(EndpointAgent(url, "m")), CALCULATOR, tasks=1)
    assert episode.verdict.outcome is Outcome.INFRA_ERROR


@pytest.mark.parametrize("options", [{"retries": -1}, {"concurrency": 0}])
def test_numbers_with_which_nothing_can_be_asked_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="retries must be 0 or more and concurrency 1 or more"):
        EndpointAgent("http://localhost:1", "m", **options)


def test_a_turn_without_calls_is_sent_as_it_is() -> None:
    assert as_openai([{"role": "assistant", "content": "42"}]) == [{"role": "assistant", "content": "42"}]
