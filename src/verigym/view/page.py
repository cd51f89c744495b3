"""The page as one file: its template, style, scripts and data put together."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from verigym.tasks.errors import ConfigError
from verigym.view.reader import RunReader

_SCRIPTS = ("dom.js", "data.js", "curves.js", "episodes.js", "episode.js", "tokens.js", "app.js")
# A browser holds a text of about half a gigabyte; with a margin for what stands around the data.
_MAX_BYTES = 400 << 20


def write_page(run: str | Path, path: str | Path) -> int:
    """Writes the page of a run and returns how many episodes it holds.

    Raises ConfigError if there is no run, if it is too large for one file, or if the file cannot be written.
    """
    reader = RunReader(run)
    parts, size = list[str](), 0
    for name, chunk in reader.chunks():
        parts.append(_blob(f"chunk-{name}", chunk))
        size += len(parts[-1])
        if size > _MAX_BYTES:
            raise ConfigError(
                f"the episodes of '{run}' are too many for one page ({_MAX_BYTES >> 20} MB); look at them with --serve"
            )
    data = reader.data()
    try:
        Path(path).write_text(
            page(data["name"], [_blob("data", pack(data)), *parts]), encoding="utf-8", errors="replace"
        )
    except OSError as error:
        raise ConfigError(f"cannot write '{path}': {error.strerror}") from error
    return len(data["index"]["step"])


def page(name: str, blobs: Sequence[str] = ()) -> str:
    """The page for a run of this name; without blobs it asks its server for the data."""
    style = _file("page.css")
    script = '(() => {\n"use strict";\n' + "\n".join(_file(part) for part in _SCRIPTS) + "})();\n"
    # Only these very texts may act: nothing that an episode says can, and nothing can reach another host.
    asks = "" if blobs else " connect-src 'self';"
    policy = f"default-src 'none'; img-src data:;{asks} style-src {_digest(style)}; script-src {_digest(script)}"
    values = {"policy": policy, "name": html.escape(name), "style": style, "script": script, "blobs": "".join(blobs)}
    text = _file("page.html")
    # The template has one mark for each; what replaces one is not searched for the others.
    pieces = text.split("{{")
    return pieces[0] + "".join(values[mark] + rest for mark, rest in (piece.split("}}", 1) for piece in pieces[1:]))


def pack(data: Any) -> bytes:
    """Data as gzip-compressed JSON."""
    return gzip.compress(json.dumps(data, separators=(",", ":"), allow_nan=False).encode(), 6, mtime=0)


def _blob(name: str, data: bytes) -> str:
    return f'<script type="text/plain" id="{name}">{base64.b64encode(data).decode()}</script>\n'


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _file(name: str) -> str:
    return files("verigym.view").joinpath(name).read_text(encoding="utf-8")
