"""Models behind an OpenAI-compatible endpoint as agents: for evaluation, simulated users and judges."""

from __future__ import annotations

import http.client
import json
import re
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigym.agents.agent import Agent
from verigym.envs.text_env import estimate_tokens
from verigym.tasks.activity import doing
from verigym.tasks.canonical import ToolCall, escape, parse_turn, render_call
from verigym.tasks.errors import ConfigError, ContextOverflow, EndpointError

# Answers that another try may better: a time-out, too many requests, a server that is not ready.
_PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
_LONGEST_WAIT = 30.0
_NEWER_LIMIT = "max_completion_tokens"
# How servers say that a conversation is too long for the model.
_OVERFLOW = re.compile(r"context[ _](length|window|size)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """A turn in canonical syntax, how many tokens it has, whether a limit cut it, and how many tokens were read for it.

    Tokens are those that the endpoint counts; if it does not say, `tokens` is an estimate and `prompt_tokens` is 0.
    """

    text: str
    tokens: int
    cut: bool
    prompt_tokens: int = 0


class EndpointAgent(Agent):
    """Asks `POST <url>/chat/completions` for each turn. Any thread may call it.

    Tool calls come from the answer's `tool_calls`. Canonical markup that stands in the answer's text is text; only
    reasoning at its beginning, which many servers leave there, is taken as reasoning.

    Args:
        url: of the API, `/v1` included or not: http://localhost:8000.
        model: as the endpoint calls it.
        api_key: sent as a bearer token.
        temperature: of sampling; 0 takes the most probable token.
        max_new_tokens: of one answer.
        timeout: seconds for one answer.
        retries: further tries when the endpoint is not reached, busy or failing; the pauses double from half a second.
        concurrency: requests at a time; further ones wait.

    Raises ConfigError for what is no address or no such number, and, from `act`, EndpointError.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        temperature: float = 1.0,
        max_new_tokens: int = 1024,
        timeout: float = 600.0,
        retries: int = 4,
        concurrency: int = 64,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"an endpoint is an address such as http://localhost:8000, not '{url}'")
        if retries < 0 or concurrency < 1:
            raise ConfigError(f"retries must be 0 or more and concurrency 1 or more, not {retries} and {concurrency}")
        api_key = api_key.strip() if api_key else None  # a file that it was read from may end in a line break
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("the API key has characters that none can have, such as line breaks")
        self.url = url.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1") + "/v1/chat/completions"
        self.model, self.temperature, self.max_new_tokens = model, temperature, max_new_tokens
        self.timeout, self.retries = timeout, retries
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {api_key}"} if api_key else {}
        )
        self._places = threading.BoundedSemaphore(concurrency)
        self._limit = "max_tokens"
        self._warned: set[str] = set()

    def act(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        return self.answer(messages, tools).text

    def answer(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        max_new_tokens: int | None = None,
        seed: int | None = None,
    ) -> Answer:
        """The next turn, of at most so many tokens."""
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        body = {"model": self.model, "messages": as_openai(messages), "temperature": self.temperature}
        body |= {"tools": list(tools)} if tools else {}
        body |= {} if seed is None else {"seed": seed % (1 << 31)}
        with doing("endpoint", self.url), self._places:
            reply = self._limited(body, limit)
        try:
            choice = reply["choices"][0]
            text = self._canonical(choice["message"])
            tokens, read = self._tokens(reply, text, limit), int((reply.get("usage") or {}).get("prompt_tokens") or 0)
            return Answer(text, tokens, choice["finish_reason"] == "length", read)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
            raise EndpointError(f"{self.url} answered no chat completion: {json.dumps(reply)[:200]}") from error

    def _limited(self, body: Mapping[str, Any], limit: int) -> Any:
        """The endpoint's answer of at most so many tokens, by the limit's older name until it asks for the newer."""
        while True:
            name = self._limit
            try:
                return self._post(json.dumps({**body, name: limit}).encode())
            except EndpointError as error:
                if name == _NEWER_LIMIT or _NEWER_LIMIT not in str(error):
                    raise
                self._limit = _NEWER_LIMIT

    def _tokens(self, reply: Mapping[str, Any], text: str, limit: int) -> int:
        """By the endpoint's count; by the environments' estimate, which is said once, of one that does not count."""
        if usage := reply.get("usage"):
            return int(usage["completion_tokens"])
        self._warn_once(f"{self.url} does not say how many tokens an answer has: they are estimated from its length")
        return min(limit, estimate_tokens(text))

    def _warn_once(self, what: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(what, stacklevel=4)

    def _post(self, body: bytes) -> Any:
        """The endpoint's answer, after as many tries as it takes."""
        for attempt in range(self.retries + 1):
            try:
                request = urllib.request.Request(self.url, body, self._headers)
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                problem, wait = f"answered {error.code}: {_detail(error)}", error.headers.get("Retry-After", "")
                if error.code == 400 and _OVERFLOW.search(problem):
                    raise ContextOverflow(f"{self.url} {problem}") from error
                if error.code not in _PASSING:
                    raise EndpointError(f"{self.url} {problem}") from error
            except json.JSONDecodeError as error:
                raise EndpointError(f"{self.url} answered what is no JSON") from error
            except TimeoutError:
                problem, wait = f"gave no answer within {self.timeout:g} s", ""
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                timed_out = isinstance(reason, TimeoutError)
                problem = f"gave no answer within {self.timeout:g} s" if timed_out else f"cannot be reached: {reason}"
                wait = ""
            if attempt < self.retries:
                time.sleep(_pause(attempt, wait))
        raise EndpointError(f"{self.url} {problem} ({self.retries + 1} tries)")

    def _canonical(self, message: Mapping[str, Any]) -> str:
        """An answer's message as a turn."""
        reasoning, content = _leading_reasoning(message.get("content") or "")
        reasoning = message.get("reasoning_content") or message.get("reasoning") or reasoning
        calls = message.get("tool_calls") or []
        if not calls and "<tool_call>" in content:
            self._warn_once(
                f"{self.url} wrote a tool call as text, which counts as text: let the server parse calls "
                "(vllm serve --enable-auto-tool-choice --tool-call-parser ...)"
            )
        thought = f"<think>{escape(reasoning)}</think>" if reasoning else ""
        return thought + escape(content) + "".join(_call(call["function"]) for call in calls)


def as_openai(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A conversation as the API takes it: calls apart from the text, each result with its call's id.

    Reasoning of earlier turns is left out. A tool's message that answers no call (it was malformed) is the user's.
    """
    found: list[dict[str, Any]] = []
    waiting: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            known = {"role": "tool", "tool_call_id": waiting.pop(0)} if waiting else {"role": "user"}
            found.append({**known, "content": message["content"]})
        elif message["role"] == "assistant":
            turn = parse_turn(message["content"])
            calls = [] if turn.errors else [(f"call{index:04d}{n:02d}", call) for n, call in enumerate(turn.calls)]
            waiting = [identity for identity, _ in calls]
            written = [_written(identity, call) for identity, call in calls]
            content = message["content"] if turn.errors else turn.content
            found.append({"role": "assistant", "content": content, **({"tool_calls": written} if written else {})})
        else:
            found.append({"role": message["role"], "content": message["content"]})
    return found


def _written(identity: str, call: ToolCall) -> dict[str, Any]:
    """A call as the API has it."""
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": identity, "type": "function", "function": function}


def _call(function: Mapping[str, Any]) -> str:
    """A call in canonical syntax. If its arguments are no JSON object it is malformed, for the environment to say."""
    name, arguments = function["name"], function.get("arguments") or "{}"
    try:
        values = json.loads(arguments) if isinstance(arguments, str) else arguments
        return render_call(name, values)
    except (ValueError, TypeError):
        return f"<tool_call>{escape(json.dumps({'name': name, 'arguments': str(arguments)}))}</tool_call>"


def _leading_reasoning(content: str) -> tuple[str, str]:
    """Reasoning that a server left at the beginning of the text, and the rest."""
    reasoning, end, rest = content.partition("</think>")
    if not end:
        reasoning, rest = (content, "") if content.lstrip().startswith("<think>") else ("", content)
    return reasoning.strip().removeprefix("<think>").strip(), rest.lstrip() if reasoning or end else rest


def _pause(attempt: int, wait: str) -> float:
    """Seconds before the next try: what the server asks for, or twice as long as before."""
    asked = float(wait) if wait.replace(".", "", 1).isdigit() else 0.0
    return min(_LONGEST_WAIT, max(asked, 0.5 * 2.0**attempt))


def _detail(error: urllib.error.HTTPError) -> str:
    """What an error's body says, in one line."""
    text = error.read(4096).decode("utf-8", "replace")
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or error.reason
