"""Conversations as token ids: each turn is rendered and tokenised once, and ids are never rebuilt from text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from transformers import PreTrainedTokenizerBase

from verigym.agents.syntaxes import SYNTAXES, Piece, PlainText, ToolSyntax, find_syntax, join_text
from verigym.agents.template import PROBE, Message, Template, with_call_ids
from verigym.tasks.canonical import escape, parse_turn
from verigym.tasks.errors import TemplateError

_REASONING = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_THINK = ("<think>", "</think>")
# Texts that look as if a chat template wrote them: <|im_end|>, <｜User｜>, [/INST], <<SYS>>, <tool_response>.
_CONTROL = re.compile(r"<[|｜][^<>\s]{1,40}[|｜]>|\[/?[A-Z_]{2,30}\]|<</?SYS>>|</?[a-z_]{3,30}>")

_HTML = re.compile(r"</?[a-z]+>")


class Chat:
    """A model's chat template, turn by turn, and the way between its token ids and canonical turns.

    `prompt` gives the ids of the first messages; `suffix` the ids that follow a turn of the agent: what the
    template writes after that turn (its end mark, the new messages, the generation prompt), tokenised once and
    independent of the history. `canonical` translates sampled ids by the model's tool syntax, one of
    `agents.syntaxes`: "auto" takes the one in which the template writes calls. A marker that the tokenizer has as
    a whole token counts only where that token was sampled; one that it has not counts where its text was sampled.
    Special tokens and markers that stand in a message's text are made inert, so that a tool's result cannot end
    the turn.

    Raises TemplateError if there is no template, if a suffix depends on the history or lacks the messages, or if
    there are tools and the template does not say how they are called; UnknownNameError for an unknown syntax.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        eos_token_ids: Sequence[int] = (),
        *,
        syntax: str | ToolSyntax = "auto",
    ) -> None:
        self.tokenizer, self.template = tokenizer, Template(tokenizer)
        self._vocabulary = tokenizer.get_added_vocab()
        self._special = self._special_tokens(eos_token_ids)
        self.tools_refused = "" if self.template.renders_tools() else "the chat template leaves out the tools"
        self.syntax = self._detect() if syntax == "auto" else _as_syntax(syntax)
        self._markers, self._text_markers = self._own_markers()
        self._spelled = _any_of(self._special.values())
        self._spelled_beside_markup = _any_of(text for text in self._special.values() if escape(text) == text)
        self.control_texts = self._control_texts()
        self._spelled_or_marked = _any_of(self.control_texts)
        self._suffixes: dict[tuple[str, ...], tuple[int | None, bool]] = {}
        self._openings: set[tuple[int, ...]] = set()
        self.opens_reasoning = self._note_opening(self.template.render([{"role": "user", "content": "x"}]))
        self.stop_token_ids = self._stop_tokens(eos_token_ids)

    def prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Ids of the conversation up to the agent's turn, generation prompt included.

        From the agent's first turn with calls or reasoning on, they are put together turn by turn, as they were
        when it was played.
        """
        if tools and self.tools_refused:
            raise TemplateError(f"{self.tools_refused}; it cannot be used where there are tools")
        played = next((index for index, message in enumerate(messages) if _is_played(message)), len(messages))
        opening = with_call_ids(messages[:played])
        text = self.template.render([self._inert(message) for message in opening], self._plain(list(tools)) or None)
        ids = self._encode(text)
        for turn, answers in _turns(messages[played:]):
            written = [*self._written(turn, ids), self.end_token_id]
            ids += [*written, *self.suffix(answers, self.end_token_id, turn=written)]
        return ids

    def suffix(
        self, messages: Sequence[Message], last_token: int | None = None, *, turn: Sequence[int] = ()
    ) -> list[int]:
        """Ids that follow a turn of the agent, answered by `messages`.

        The turn's end mark is left out if `last_token`, the last one sampled, is a stop token already. Ids of
        calls, where the syntax has them, are taken from the sampled `turn`.
        """
        roles = tuple(str(message["role"]) for message in messages)
        if roles not in self._suffixes:
            self._suffixes[roles] = self._check_suffix(roles)
        mark, with_calls = self._suffixes[roles]
        if "tool" in roles:
            messages = with_call_ids(messages, self._call_ids(turn))
        text = self.template.after_turn([self._inert(message) for message in messages], with_calls=with_calls)
        ids = self._encode(text)
        # A mark that differs by role belongs to the next message: it is left out only if it was sampled itself.
        if mark in ids and (last_token == mark or (last_token in self.stop_token_ids and mark == self.end_token_id)):
            return ids[ids.index(mark) + 1 :]
        return ids

    def turn(self, text: str, before: Sequence[int] | None = None) -> list[int]:
        """Ids of a turn that somebody else wrote (a demonstration), with the template's end mark.

        `before` is as for `canonical`. Raises TemplateError for a turn that the model's syntax cannot express.
        """
        ids = [*self._written(text, before), self.end_token_id]
        if parse_turn(self.canonical(ids, before)) != parse_turn(_apart(text, self._spelled_beside_markup)):
            raise TemplateError(
                f"a turn cannot be written in the model's tool syntax '{self.syntax.name}': {text[:200]!r}"
            )
        return ids

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Ids of a turn: markers are their tokens, and text spells no special token."""
        opening, closing = self._reasoning
        delimiters = {"<think>": opening, "</think>": closing}
        return self._encode(
            "".join(
                delimiters.get(piece.text, piece.text) if piece.kind == "marker" else self._plain(piece.text)
                for piece in pieces
            )
        )

    def canonical(self, token_ids: Sequence[int], before: Sequence[int] | None = None) -> str:
        """The agent's turn as text in canonical syntax; a stop token at its end is no part of it.

        `before` are the ids that it was sampled after, which tell whether they open a block of reasoning; by
        default they are those of a prompt.
        """
        ended = len(token_ids) > 0 and token_ids[-1] in self.stop_token_ids
        pieces = self._pieces(token_ids[:-1] if ended else token_ids)
        if self.is_open(before):
            pieces.insert(0, Piece("<think>", "marker"))
        return self.syntax.to_canonical(_leading_reasoning(pieces) if self._reasons_in_text else pieces)

    def is_open(self, before: Sequence[int] | None = None) -> bool:
        """Whether a turn after these ids (by default a prompt) begins inside a block of reasoning."""
        if before is None:
            return self.opens_reasoning
        return bool(self._openings) and any(tuple(before[-len(opening) :]) == opening for opening in self._openings)

    # Ids and pieces.

    def _pieces(self, ids: Sequence[int]) -> list[Piece]:
        pieces: list[Piece] = []
        markers, start = self._markers, 0
        for index, token in enumerate(ids):
            if token in markers:
                pieces += self._text_pieces(ids[start:index])
                pieces.append(Piece(markers[token], "marker"))
                start = index + 1
        return pieces + self._text_pieces(ids[start:])

    def _text_pieces(self, ids: Sequence[int]) -> list[Piece]:
        """Text, with the markers that the tokenizer has no tokens for."""
        if not ids:
            return []
        if self._text_markers is None:
            return [Piece(self._decode(ids))]
        pieces: list[Piece] = []
        for run in self._runs(ids):
            for index, part in enumerate(self._text_markers.split(self._decode(run))):
                pieces.append(Piece(_CANONICAL.get(part, part), "marker") if index % 2 else Piece(part))
        return join_text(pieces)

    def _runs(self, ids: Sequence[int]) -> list[Sequence[int]]:
        """`ids` cut at special tokens, which decoding drops: a marker is not put together around one."""
        if self._special.keys().isdisjoint(ids):
            return [ids]
        cuts = [-1, *(index for index, token in enumerate(ids) if token in self._special), len(ids)]
        return [ids[start + 1 : end] for start, end in pairwise(cuts) if end > start + 1]

    def _written(self, text: str, before: Sequence[int] | None) -> list[int]:
        """Ids of a canonical turn in the model's own syntax, without an end mark."""
        if self.is_open(before):  # the prompt has the opening tag
            text = text.removeprefix("<think>") if text.startswith("<think>") else f"</think>{text}"
        return self.encode(self.syntax.from_canonical(text))

    def _call_ids(self, turn: Sequence[int]) -> list[str]:
        if not self.syntax.has_call_ids or not turn:
            return []
        given = self.syntax.call_ids(self._pieces(list(turn)))
        return [identity if re.fullmatch(r"[a-zA-Z0-9]{9}", identity) else "" for identity in given]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    # Texts that must not act.

    def _inert(self, message: Message) -> Message:
        """A message with a zero-width space inside each special token and marker that a text in it spells.

        Who writes the system message may speak of markers.
        """
        return _apart(message, self._spelled if message["role"] == "system" else self._spelled_or_marked)  # type: ignore[no-any-return]

    def _plain(self, value: Any) -> Any:
        """Plain data in which no text spells a special token."""
        return _apart(value, self._spelled)

    # What is found out at the start.

    def _detect(self) -> ToolSyntax:
        """The syntax in which the template writes the probe call."""
        written = self.template.written_call()
        for syntax in SYNTAXES.values():
            if syntax.shape.search(written):
                return syntax
        hermes = find_syntax("hermes")
        if not written and all(marker in self._vocabulary for marker in hermes.markers):
            return hermes
        known = ", ".join(SYNTAXES)
        how = "writes tool calls in an unknown syntax" if written else "leaves out tool calls"
        self.tools_refused = self.tools_refused or f"the chat template {how}; known syntaxes: {known}"
        return PlainText()

    def _own_markers(self) -> tuple[dict[int, str], re.Pattern[str] | None]:
        """The tokens that are markers of the syntax or of reasoning, and a pattern for those that have none."""
        own = {text: text for text in self.syntax.markers}
        pairs = [pair for pair in _REASONING if pair[0] in self._vocabulary] or [_REASONING[0]]
        self._reasoning = pairs[0]
        self._reasons_in_text = self._reasoning[0] not in self._vocabulary and self.syntax.name != "hermes"
        if not self._reasons_in_text:
            own |= {text: canonical for pair in pairs for text, canonical in zip(pair, _THINK, strict=True)}
        tokens = {self._vocabulary[text]: canonical for text, canonical in own.items() if text in self._vocabulary}
        texts = [text for text in own if text not in self._vocabulary]
        return tokens, re.compile(f"({'|'.join(map(re.escape, texts))})") if texts else None

    @property
    def control_token_ids(self) -> frozenset[int]:
        """The tokens that no text of a message may become."""
        return frozenset(self._special) | {self._vocabulary[t] for t in self.control_texts if t in self._vocabulary}

    def _control_texts(self) -> frozenset[str]:
        """Special tokens, and texts with which the template or the tokenizer marks turns, tools and reasoning."""
        added = {text for text in self._vocabulary if _CONTROL.fullmatch(text) and not _HTML.fullmatch(text)}
        known = {text for syntax in SYNTAXES.values() for text in syntax.markers} | {*_REASONING[0], *_REASONING[1]}
        own = {text for text in known if text in self._vocabulary or text in self.syntax.markers}
        return frozenset({*self._special.values(), *added, *own, *_CONTROL.findall(self.template.source)})

    def _special_tokens(self, eos_token_ids: Sequence[int]) -> dict[int, str]:
        """Tokens that text must not spell: the tokenizer's special ones, named or only added, and every eos."""
        tokenizer = self.tokenizer
        added = {token: text for text, token in self._vocabulary.items()}
        named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
        marked = {token: text.content for token, text in tokenizer.added_tokens_decoder.items() if text.special}
        return {**named, **marked, **{token: added[token] for token in eos_token_ids if token in added}}

    def _stop_tokens(self, eos_token_ids: Sequence[int]) -> frozenset[int]:
        """Every eos of the model, the ends of its syntax, and the mark with which the template ends a turn."""
        after = self._encode(self.template.after_turn([{"role": "user", "content": PROBE}]).split(PROBE)[0])
        ends = [token for token in after if token in self._special][:1]
        eos = self.tokenizer.eos_token_id
        stops = [*eos_token_ids, *([eos] if eos is not None else [])]
        if not ends and not stops:
            raise TemplateError("neither the tokenizer nor the chat template has a token that ends a turn")
        self.end_token_id = ends[0] if ends else stops[0]
        own = [self._vocabulary[text] for text in self.syntax.stops if text in self._vocabulary]
        found = frozenset([*stops, *own, self.end_token_id])
        self.template.ends = tuple(self._special[token] for token in found if token in self._special)
        return found

    def _check_suffix(self, roles: tuple[str, ...]) -> tuple[int | None, bool]:
        """The stop token with which a suffix for these roles closes the turn before it, if it does, and how it is
        rendered."""
        suffix = self.template.suffix(roles)
        self._note_opening(suffix.text)
        first = self._encode(suffix.text.split(PROBE)[0])
        return next((token for token in first if token in self.stop_token_ids), None), suffix.with_calls

    def _note_opening(self, text: str) -> bool:
        """Whether `text` ends in a tag that opens reasoning; the ids of that end are remembered."""
        tag = next((pair[0] for pair in _REASONING if text.rstrip().endswith(pair[0])), None)
        if tag is None:
            return False
        ids = self._encode(text)
        length = next(n for n in range(1, len(ids) + 1) if tag in self.tokenizer.decode(ids[-n:]))
        self._openings.add(tuple(ids[-length:]))
        return True


_CANONICAL = {text: canonical for pair in _REASONING for text, canonical in zip(pair, _THINK, strict=True)}


def _as_syntax(syntax: str | ToolSyntax) -> ToolSyntax:
    return find_syntax(syntax) if isinstance(syntax, str) else syntax


def _is_played(message: Message) -> bool:
    """Whether a message is a turn with calls or reasoning."""
    content = str(message["content"])
    return message["role"] == "assistant" and escape(content) != content


def _turns(messages: Sequence[Message]) -> list[tuple[str, list[Message]]]:
    """The agent's turns, each with the messages that answer it; silence is an empty message of the user."""
    turns: list[tuple[str, list[Message]]] = []
    for message in messages:
        if message["role"] == "assistant":
            turns.append((str(message["content"]), []))
        else:
            turns[-1][1].append(message)
    return [(text, answers or [{"role": "user", "content": ""}]) for text, answers in turns]


def _leading_reasoning(pieces: Sequence[Piece]) -> list[Piece]:
    """Pieces of a turn whose reasoning is delimited in plain text: only a block at its start is reasoning."""
    opened = bool(pieces) and pieces[0].kind == "marker" and pieces[0].text == "<think>"
    rest = list(pieces[opened:])
    if not opened and not (rest and rest[0].kind == "text" and rest[0].text.lstrip().startswith("<think>")):
        return rest
    if not opened:
        rest[0] = Piece(rest[0].text.lstrip().removeprefix("<think>"))
    found: list[Piece] = [Piece("<think>", "marker")]
    while rest:
        piece = rest.pop(0)
        before, closed, after = piece.text.partition("</think>") if piece.kind == "text" else ("", "", "")
        if closed:
            return [*found, Piece(before), Piece("</think>", "marker"), Piece(after), *rest]
        found.append(piece)
    return found


def _apart(value: Any, pattern: re.Pattern[str]) -> Any:
    """Plain data with a zero-width space after the first character of each match in a text of it."""
    if isinstance(value, str):
        return pattern.sub("\\g<0>\u200b", value) if pattern.search(value) else value
    if isinstance(value, (dict, Mapping)):
        return {key: _apart(item, pattern) for key, item in value.items()}
    return [_apart(item, pattern) for item in value] if isinstance(value, (list, tuple)) else value


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """A pattern for the first character of any of these texts; for nothing if there are none."""
    longest_first = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(f"{re.escape(text[0])}(?={re.escape(text[1:])})" for text in longest_first) or r"(?!)")
