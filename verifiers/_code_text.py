"""Finds the code in a model's text, and makes a module of it. The code is never parsed here, only searched."""

from __future__ import annotations

import re
from dataclasses import dataclass

from verigym.verifiers.extract import Extraction, answer_text

LANGUAGES = ("", "python", "py", "python3")

_FENCE = re.compile(r"^[ \t]*(?:```|~~~)[^\n]*", re.MULTILINE)
_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)


def code_in(text: str) -> Extraction:
    """The code of a submission: the last fenced block after the reasoning.

    A block begins with a line of three or more backticks or tildes and ends with one of as many, or with the text.
    Blocks marked as another language than Python (```bash) do not count, bare ones do.
    """
    after = answer_text(text)
    if after is None:
        return Extraction(None, "the reasoning never ends: a <think> without its </think>")
    blocks = [code for language, code in _blocks(after) if language in LANGUAGES]
    if not blocks:
        return Extraction(None, "no fenced block of Python code: ```python ... ```")
    if not blocks[-1].strip():
        return Extraction(None, "the last fenced block is empty")
    return Extraction(blocks[-1])


def _blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of all fenced blocks; in one pass."""
    blocks: list[tuple[str, str]] = []
    opened: _Fence | None = None
    for match in _FENCE.finditer(text):
        fence = _Fence.of(match)
        if opened is None:
            opened = fence
        elif fence.closes(opened):
            blocks.append(opened.block(text[opened.end : match.start()]))
            opened = None
    return blocks if opened is None else [*blocks, opened.block(text[opened.end :])]


@dataclass(frozen=True, slots=True)
class _Fence:
    """A line that begins or ends a block: its indentation, its marks, what follows them, and where the line ends."""

    indentation: str
    marks: str
    info: str
    end: int

    @classmethod
    def of(cls, match: re.Match[str]) -> _Fence:
        line = match.group()
        bare = line.lstrip(" \t")
        info = bare.lstrip(bare[0])
        return cls(line[: len(line) - len(bare)], bare[: len(bare) - len(info)], info.strip(), match.end() + 1)

    def closes(self, opened: _Fence) -> bool:
        return self.marks.startswith(opened.marks) and not self.info

    def block(self, code: str) -> tuple[str, str]:
        """(language, code) of the block; one in a list is indented as its fence is."""
        if self.indentation:
            code = re.sub(f"^{re.escape(self.indentation)}", "", code, flags=re.MULTILINE)
        words = self.info.split(maxsplit=1)
        return words[0].lower() if words else "", code.removesuffix("\n").removesuffix("\r")


def fenced(code: str) -> str:
    """A text with `code` in a block of its own, for gold answers."""
    longest = max((len(run) for run in re.findall(r"`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}python\n{code.rstrip()}\n{fence}"


def module(code: str, *, prelude: str = "", stub: str = "", entry_point: str = "") -> str:
    """The module to judge: what the task gives, and the submission's code.

    Code that does not define `entry_point` at its top level completes `stub`, the beginning of a function.
    """
    if stub and not _defines(code, entry_point):
        return f"{stub.rstrip()}\n{code}\n"
    if not prelude.strip():
        return f"{code}\n"
    future = "".join(f"{line}\n" for line in _FUTURE.findall(code))  # only comments may stand before it
    return f"{future}{prelude.rstrip()}\n{_FUTURE.sub('', code)}\n"


def _defines(code: str, name: str) -> bool:
    quoted = re.escape(name)
    pattern = rf"^(?:async[ \t]+)?(?:def|class)[ \t]+{quoted}\b|^{quoted}[ \t]*[:=]"
    return re.search(pattern, code, re.MULTILINE) is not None
