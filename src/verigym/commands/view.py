"""`verigym view RUN`: a run's curves, episodes and tokens in the browser."""

from __future__ import annotations

import contextlib
import json
import signal
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from verigym.cli import parse_options
from verigym.tasks.errors import ConfigError


@dataclass(frozen=True)
class View:
    """Look at a run: writes its page, one file that needs no server and no network, and opens it."""

    run_folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run folder."""
    output: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: RUN/view.html)")] = None
    """Where the page is written."""
    open: bool = True
    """Open the page in the browser; --no-open leaves it closed."""
    serve: bool = False
    """Follow a live run: serve the page on this machine until Ctrl-C, instead of writing it."""
    port: int = 0
    """Port to serve on; 0 takes a free one."""
    json: bool = False
    """Print where the page is, and how many episodes it has, as JSON."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> View:
        """Its switches are flags: `--serve`, `--no-open`, `--json`."""
        return parse_options(cls, "view", arguments, flags=True)  # type: ignore[no-any-return]

    def run(self) -> int:
        if self.serve and self.output:
            raise ConfigError("--serve writes no page: leave out --output")
        if self.port and not self.serve:
            raise ConfigError("--port goes with --serve")
        return self._serve() if self.serve else self._write()

    def _write(self) -> int:
        from verigym.view import write_page

        path = Path(self.output or Path(self.run_folder) / "view.html")
        episodes = write_page(self.run_folder, path)
        if self.json:
            print(json.dumps({"page": str(path), "episodes": episodes, "bytes": path.stat().st_size}), flush=True)
        else:
            print(f"{path}: {episodes} episodes, {path.stat().st_size / 2**20:.1f} MB", flush=True)
        if self.open:
            webbrowser.open(path.resolve().as_uri())
        return 0

    def _serve(self) -> int:
        from verigym.view import RunReader, ViewServer

        with ViewServer(RunReader(self.run_folder), self.port) as server:
            for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell had it ignored, in the background
                signal.signal(number, signal.default_int_handler)
            said = f"{server.url} follows {self.run_folder}; Ctrl-C ends it"
            print(json.dumps({"url": server.url}) if self.json else said, flush=True)
            if self.open:
                webbrowser.open(server.url)
            with contextlib.suppress(KeyboardInterrupt):
                server.serve_forever()
        return 0
