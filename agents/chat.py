"""Conversations as token ids: each turn is rendered and tokenised once, and ids are never rebuilt from text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from verigym.tasks.errors import TemplateError

Message = Mapping[str, Any]

_SENTINEL = "verigym-sentinel-turn"
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
        self._special = re.compile("|".join(re.escape(token) for token in tokenizer.all_special_tokens) or r"(?!)")
        vocabulary = tokenizer.get_added_vocab()
        self._markers = {vocabulary[text]: text for text in _MARKUP if text in vocabulary}
        self._impostors = re.compile("|".join(re.escape(text) for text in self._markers.values()) or r"(?!)")
        self._checked: set[tuple[str, ...]] = set()
        self._opens_reasoning = self._render([{"role": "user", "content": "x"}], None).rstrip().endswith("<think>")
        self.stop_token_ids = self._stop_tokens(eos_token_ids)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of the conversation up to the agent's turn, generation prompt included."""
        return self._encode(self._render([self._inert(message) for message in messages], tools or None))

    def suffix(self, messages: Sequence[Message], last_token: int | None = None) -> list[int]:
        """Ids that follow a turn of the agent, answered by `messages`.

        The turn's end mark is left out if `last_token`, the last one sampled, is a stop token already.
        """
        clean = [self._inert(message) for message in messages]
        history = [{"role": "user", "content": "x"}]
        text = self._after_sentinel(history, clean)
        roles = tuple(str(message["role"]) for message in messages)
        if roles not in self._checked:
            self._check_suffix(text, clean)
            self._checked.add(roles)
        ids = self._encode(text)
        if last_token in self.stop_token_ids:
            end = next((index for index, token in enumerate(ids) if token in self.stop_token_ids), None)
            body = self._encode(text.split(str(clean[0]["content"]), 1)[0]) if clean else ids
            if end is not None and end < len(body):
                ids = ids[end + 1 :]
        return ids

    def turn(self, text: str) -> list[int]:
        """Ids of a turn that somebody else wrote (a demonstration), with the template's end mark."""
        return [*self._encode(text), self.end_token_id]

    def canonical(self, token_ids: Sequence[int]) -> str:
        """The agent's turn as text in canonical syntax; a stop token at its end is no part of it."""
        ids = list(token_ids)
        if ids and ids[-1] in self.stop_token_ids:
            ids.pop()
        parts, plain = [], []
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

    def _inert(self, message: Message) -> dict[str, Any]:
        """The message with a zero-width space inside each special token that its text spells."""
        content = self._special.sub(
            lambda match: f"{match.group()[0]}\u200b{match.group()[1:]}", str(message["content"])
        )
        return {**message, "content": content}

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

    def _check_suffix(self, text: str, messages: Sequence[Message]) -> None:
        """Refuses a template whose suffix depends on the history or lacks the messages."""
        turns = [
            ("user", "a longer question"),
            ("assistant", "<think>a thought</think>an answer"),
            ("user", "why?"),
        ]
        longer = [{"role": role, "content": content} for role, content in turns]
        if self._after_sentinel(longer, messages) != text:
            raise TemplateError("the chat template renders a turn differently after another history; it cannot be used")
        for message in messages:
            if str(message["content"]).strip() not in text:
                raise TemplateError(
                    f"the chat template leaves out messages of role '{message['role']}'; it cannot be used"
                )
        kept = self._render([*longer, {"role": "assistant", "content": "x"}, *messages], None)
        if "a thought" not in kept:
            warnings.warn(
                "the chat template strips reasoning from earlier turns; episodes keep the ids as sampled",
                stacklevel=4,
            )

    def _stop_tokens(self, eos_token_ids: Sequence[int]) -> frozenset[int]:
        """Every eos of the model, and the mark with which the template ends a turn."""
        after = self._encode(
            self._after_sentinel([{"role": "user", "content": "x"}], [{"role": "user", "content": "y"}])
        )
        special = set(self.tokenizer.all_special_ids)
        ends = [token for token in after if token in special][:1]
        eos = self.tokenizer.eos_token_id
        stops = [*eos_token_ids, *([eos] if eos is not None else [])]
        if not ends and not stops:
            raise TemplateError("neither the tokenizer nor the chat template has a token that ends a turn")
        self.end_token_id = ends[0] if ends else stops[0]
        return frozenset([*stops, self.end_token_id])

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
