"""The text of each token, by the tokenizer that a run's checkpoints hold."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from tokenizers import Tokenizer


class TokenTexts:
    """Texts by token id. Without a tokenizer in the run there are none, and `note` says so.

    It reads `tokenizer.json` alone: no model library is loaded for it.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._known = run, dict[int, str]()
        self._tokenizer: Tokenizer | None = None
        self.note = ""

    def of(self, token_ids: Collection[int]) -> dict[int, str]:
        """The texts of these ids. What is part of a character is written as its bytes, `\\xF0`."""
        tokenizer = self._open()
        if tokenizer is None:
            self.note = "no tokenizer.json in the run's checkpoints: tokens are shown by their ids"
            return {}
        self.note = ""
        for token in token_ids - self._known.keys():
            self._known[token] = _text(tokenizer, token)
        return {token: self._known[token] for token in sorted(token_ids)}

    def _open(self) -> Tokenizer | None:
        """A checkpoint may vanish while a live run replaces it: then the next one is tried."""
        for path in sorted((self._run / "checkpoints").glob("[!.]*/tokenizer.json")):
            if self._tokenizer is None:
                try:
                    self._tokenizer = Tokenizer.from_file(str(path))
                except Exception:  # the library raises this very class
                    continue
        return self._tokenizer


def _text(tokenizer: Tokenizer, token: int) -> str:
    """As it stands after other text: alone, some decoders drop a token's leading space."""
    before = tokenizer.encode("a", add_special_tokens=False).ids
    start = tokenizer.decode(before, skip_special_tokens=False)
    text = tokenizer.decode([*before, token], skip_special_tokens=False)
    text = text[len(start) :] if text.startswith(start) else text
    return _bytes(tokenizer.id_to_token(token) or "") or text if "\ufffd" in text else text


def _bytes(piece: str) -> str:
    """A piece of a byte-level vocabulary as escaped bytes; "" if it is of another kind."""
    codes = _byte_alphabet()
    if not piece or any(character not in codes for character in piece):
        return ""
    return "".join(f"\\x{codes[character]:02X}" for character in piece)


def _byte_alphabet() -> dict[str, int]:
    """Bytes by the character that stands for each in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
