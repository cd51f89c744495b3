"""The page of a live run, served on this machine only: it asks for what is new, and the run folder is read again."""

from __future__ import annotations

import hashlib
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from verigym.tasks.errors import ConfigError
from verigym.view.page import pack, page
from verigym.view.reader import RunReader

_CHUNK = re.compile(r"/chunk/(\d{1,9}\.\d{1,9})")


class ViewServer(ThreadingHTTPServer):
    """Serves a run's page on the loopback interface; `port` 0 takes a free one. Raises ConfigError if it is taken."""

    daemon_threads = True

    def __init__(self, reader: RunReader, port: int = 0) -> None:
        if not 0 <= port < 2**16:
            raise ConfigError(f"a port is a number from 0 to 65535, not {port}")
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise ConfigError(f"cannot serve on port {port}: {error.strerror}") from error
        self._reader, self._lock = reader, threading.Lock()
        self._cached: tuple[str, bytes] = ("", b"")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def page(self) -> bytes:
        return page(self._reader.path.resolve().name).encode("utf-8", "replace")

    def data(self) -> tuple[str, bytes]:
        """The packed data and its tag, which changes with it."""
        with self._lock:
            tag = f'"{hashlib.sha256(self._reader.signature().encode()).hexdigest()[:16]}"'
            if self._cached[0] != tag:
                self._cached = (tag, pack(self._reader.data()))
            return self._cached

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def chunk(self, name: str) -> bytes | None:
        return self._reader.chunk(name)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer

    def do_GET(self) -> None:
        try:
            self._give()
        except FileNotFoundError:
            self.send_error(503)  # a run that goes on took a step back while it was read: the page asks again

    def _give(self) -> None:
        # A page of elsewhere whose name was made to lead here says its own name.
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            self.send_error(403)
        elif self.path == "/":
            self._answer(self.server.page(), "text/html; charset=utf-8")
        elif self.path == "/data":
            tag, data = self.server.data()
            known = self.headers.get("If-None-Match") == tag
            self._answer(b"" if known else data, "application/gzip", tag=tag, status=304 if known else 200)
        elif (match := _CHUNK.fullmatch(self.path)) and (chunk := self.server.chunk(match[1])) is not None:
            self._answer(chunk, "application/gzip")
        else:
            self.send_error(404)

    def _answer(self, body: bytes, kind: str, *, tag: str = "", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-cache")
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page that polls would fill the terminal."""
