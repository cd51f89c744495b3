"""Conversations as token ids: each turn is rendered and tokenised once, and ids are never rebuilt from text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from verigym.tasks.errors import TemplateError

Message = Mapping[str, Any]

_SENTINEL = "verigym-sentinel-turn"
_PROBE = "verigym-probe-message"
_MARKUP = ("<tool_call>", "</tool_call>", "<think>", "</think>")


class Chat:
    """A model's chat template, turn by turn, and the way from its token ids to a canonical turn.

    `prompt` gives the ids of the first messages; `suffix` the ids that follow a turn of the agent: what the
    template writes after that turn (its end mark, the new messages, the generation prompt), tokenised once and
    independent of the history. `canonical` translates sampled ids: markup that the tokenizer has as whole tokens
    (Hermes/Qwen tool calls, reasoning) counts only where those tokens were sampled, and is escaped elsewhere.
    Special tokens that stand in a message's text are made inert, so that a tool's result cannot end the turn.

    Raises TemplateError if there is no template, or if a suffix depends on the history or lacks the messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Sequence[int] = ()) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise TemplateError("the tokenizer has no chat template; save one in its chat_template.jinja")
        self.tokenizer = tokenizer
        self._special = self._special_tokens(eos_token_ids)
        self._spelled = _any_of(self._special.values())
        vocabulary = tokenizer.get_added_vocab()
        self._markers = {vocabulary[text]: text for text in _MARKUP if text in vocabulary}
        self._impostors = _any_of(self._markers.values())
        self._marks: dict[tuple[str, ...], int | None] = {}
        self._warned = False
        self._opens_reasoning = self._render([{"role": "user", "content": "x"}], None).rstrip().endswith("<think>")
        self.stop_token_ids = self._stop_tokens(eos_token_ids)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of the conversation up to the agent's turn, generation prompt included."""
        return self._encode(self._render(self._inert(list(messages)), self._inert(list(tools)) or None))

    def suffix(self, messages: Sequence[Message], last_token: int | None = None) -> list[int]:
        """Ids that follow a turn of the agent, answered by `messages`.

        The turn's end mark is left out if `last_token`, the last one sampled, is a stop token already.
        """
        roles = tuple(str(message["role"]) for message in messages)
        if roles not in self._marks:
            self._marks[roles] = self._check_suffix(roles)
        mark = self._marks[roles]
        ids = self._encode(self._after_sentinel([{"role": "user", "content": "x"}], self._inert(list(messages))))
        # A mark that differs by role belongs to the next message: it is left out only if it was sampled itself.
        if mark in ids and (last_token == mark or (last_token in self.stop_token_ids and mark == self.end_token_id)):
            return ids[ids.index(mark) + 1 :]
        return ids

    def turn(self, text: str) -> list[int]:
        """Ids of a turn that somebody else wrote (a demonstration), with the template's end mark."""
        if self._opens_reasoning:  # the prompt has the opening tag
            text = text.removeprefix("<think>") if text.startswith("<think>") else f"</think>{text}"
        return [*self._encode(self._inert(text)), self.end_token_id]

    def canonical(self, token_ids: Sequence[int]) -> str:
        """The agent's turn as text in canonical syntax; a stop token at its end is no part of it."""
        ids = list(token_ids)
        if ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        parts: list[str] = []
        plain: list[int] = []
        for token in ids:
            if token in self._markers:
                parts += [self._plain(plain), self._markers[token]]
                plain = []
            else:
                plain.append(token)
        text = "".join([*parts, self._plain(plain)])
        return f"<think>{text}" if self._opens_reasoning else text

    def _plain(self, ids: list[int]) -> str:
        if not ids:
            return ""
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        return self._impostors.sub(lambda match: "&lt;" + match.group()[1:], text)

    def _inert(self, value: Any) -> Any:
        """Plain data with a zero-width space inside each special token that a text in it spells."""
        if isinstance(value, str):
            return self._spelled.sub(lambda match: f"{match.group()[0]}\u200b{match.group()[1:]}", value)
        if isinstance(value, Mapping):
            return {key: self._inert(item) for key, item in value.items()}
        return [self._inert(item) for item in value] if isinstance(value, (list, tuple)) else value

    def _render(self, messages: Sequence[Message], tools: Any) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    tools=tools,
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
        except Exception as error:  # templates raise whatever they like
            roles = ", ".join(str(message["role"]) for message in messages)
            raise TemplateError(f"the chat template fails on messages of {roles}: {error}") from error

    def _after_sentinel(self, history: Sequence[Message], messages: Sequence[Message]) -> str:
        rendered = self._render([*history, {"role": "assistant", "content": _SENTINEL}, *messages], None)
        if _SENTINEL not in rendered:
            raise TemplateError("the chat template leaves out what the assistant said before its last turn")
        return rendered.split(_SENTINEL, 1)[1]

    def _check_suffix(self, roles: tuple[str, ...]) -> int | None:
        """The stop token with which a suffix for these roles closes the turn before it, if it does.

        Refuses a template whose suffix depends on the history or lacks the messages.
        """
        probes = [{"role": role, "content": f"{_PROBE}-{index}."} for index, role in enumerate(roles)]
        text = self._after_sentinel([{"role": "user", "content": "x"}], probes)
        turns = [("user", "a longer question"), ("assistant", "<think>a thought</think>an answer"), ("user", "why?")]
        longer = [{"role": role, "content": content} for role, content in turns]
        if self._after_sentinel(longer, probes) != text:
            raise TemplateError("the chat template renders a turn differently after another history; it cannot be used")
        for probe in probes:
            if probe["content"] not in text:
                raise TemplateError(
                    f"the chat template leaves out messages of role '{probe['role']}'; it cannot be used"
                )
        kept = self._render([*longer, {"role": "assistant", "content": "x"}, *probes], None)
        if "a thought" not in kept and not self._warned:
            self._warned = True
            warnings.warn(
                "the chat template strips reasoning from earlier turns; episodes keep the ids as sampled",
                stacklevel=4,
            )
        return next((token for token in self._encode(text.split(_PROBE)[0]) if token in self.stop_token_ids), None)

    def _special_tokens(self, eos_token_ids: Sequence[int]) -> dict[int, str]:
        """Tokens that text must not spell: the tokenizer's special ones, named or only added, and every eos."""
        tokenizer = self.tokenizer
        added = {token: text for text, token in tokenizer.get_added_vocab().items()}
        named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        marked = {token: text.content for token, text in tokenizer.added_tokens_decoder.items() if text.special}
        return {**named, **marked, **{token: added[token] for token in eos_token_ids if token in added}}

    def _stop_tokens(self, eos_token_ids: Sequence[int]) -> frozenset[int]:
        """Every eos of the model, and the mark with which the template ends a turn."""
        probe = [{"role": "user", "content": _PROBE}]
        after = self._encode(self._after_sentinel([{"role": "user", "content": "x"}], probe).split(_PROBE)[0])
        ends = [token for token in after if token in self._special][:1]
        eos = self.tokenizer.eos_token_id
        stops = [*eos_token_ids, *([eos] if eos is not None else [])]
        if not ends and not stops:
            raise TemplateError("neither the tokenizer nor the chat template has a token that ends a turn")
        self.end_token_id = ends[0] if ends else stops[0]
        return frozenset([*stops, self.end_token_id])

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the longest of these texts at a place; for nothing if there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
