"""Llama 3: a turn that is `{"name": ..., "parameters": {...}}` and nothing else, or JSON after `<|python_tag|>`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from verigym.agents.syntaxes._json_text import members, objects, rename
from verigym.agents.syntaxes.syntax import PROBE_NAME, Call, Piece, ToolSyntax, call_markup

_SEPARATOR = re.compile(r"\s*;\s*|\s+")
_LOOKS_LIKE_A_CALL = re.compile(r'\{\s*"(?:name|type|function|parameters|arguments)"\s*:')
_NAMES = {'"parameters"': '"arguments"'}


class LlamaJSON(ToolSyntax):
    """Calls stand alone, separated by `;` or white space. JSON within prose, and JSON that is no call, is prose."""

    name = "llama-json"
    openers = ("<|python_tag|>",)
    stops = ("<|eom_id|>",)
    shape = re.compile(rf'^\s*(?:<\|python_tag\|>)?\s*\{{\s*(?:"type":\s*"function",\s*)?"name":\s*"{PROBE_NAME}"')

    def read(self, region: Sequence[Piece]) -> str:
        text = "".join(piece.text for piece in region)
        return self.read_bare(text) or call_markup(text)

    def read_bare(self, text: str) -> str | None:
        inside = text.strip()
        before, _, after = text.partition(inside) if inside else ("", "", "")
        found, rest = objects(inside, _SEPARATOR)
        broken = rest.lstrip("; \t\r\n")
        if not all(_is_call(pairs) for _, pairs in found) or (broken and not _LOOKS_LIKE_A_CALL.match(broken)):
            return None
        calls = [gap.replace(";", "", 1) + call_markup(_canonical(pairs)) for gap, pairs in found]
        if broken:
            calls.append(call_markup(broken))
        return before + "".join(calls) + after if calls else None

    def write(self, calls: Sequence[Call]) -> list[Piece]:
        texts = [(";" if index else "") + space + _native(body) for index, (space, body) in enumerate(calls)]
        return [Piece("".join(texts))]


def _is_call(pairs: Sequence[tuple[str, str]]) -> bool:
    keys = {key for key, _ in pairs}
    return '"name"' in keys and bool(keys & {'"parameters"', '"arguments"'})


def _canonical(pairs: Sequence[tuple[str, str]]) -> str:
    typed = ('"type"', '"function"') in pairs  # {"type": "function", "name": ...}
    return rename([pair for pair in pairs if not (typed and pair[0] == '"type"')], _NAMES)


def _native(body: str) -> str:
    try:
        return rename(members(body)[0], {'"arguments"': '"parameters"'})
    except ValueError:
        return body
