"""`verigym new KIND NAME`: writes a small package with a task set, verifier, environment or tool of one's own."""

from __future__ import annotations

import json
import keyword
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Annotated, Literal

import tyro

from verigym import __version__, tasks, verifiers
from verigym.cli import parse_options
from verigym.tasks.errors import ConfigError

Kind = Literal["task", "verifier", "env", "tool"]

# what is written in place of the example's own words
SUMMARIES: dict[Kind, str] = {
    "task": "Generated questions on spans of time, for verigym.",
    "verifier": "A verifier of divisors, for verigym.",
    "env": "A number to find in several turns, for verigym.",
    "tool": "A converter of lengths as a tool, and questions that need it, for verigym.",
}


@dataclass(frozen=True)
class New:
    """Write a package with a working example: a task set, a verifier, a multi-turn environment or a tool.

    It has tests and a README, installs with pip, and registers itself by the entry point `verigym.plugins`.
    """

    kind: Annotated[Kind, tyro.conf.Positional, tyro.conf.arg(metavar="{task,verifier,env,tool}")]
    """What the package adds: task, verifier, env or tool."""
    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """The package, such as my_tasks; its environment is my_tasks/MyTasks-v0."""
    folder: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path()
    """Where the package's folder is put."""
    json: bool = False
    """Print the folder, its files and the environment's id as JSON."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> New:
        """Its switch is a flag: `--json`."""
        return parse_options(cls, "new", arguments, flags=True)  # type: ignore[no-any-return]

    def run(self) -> int:
        """Writes the package; says what to do with it."""
        place = self.folder / _valid(self.name)
        _write(place, self.kind, self.name)
        if self.json:
            written = sorted(path for path, _ in contents(self.kind, self.name))
            print(json.dumps({"folder": str(place), "env": env_id(self.name), "files": written}, indent=1))
            return 0
        print(f"wrote {place}: an example to change, as its README.md says\n")
        print(f"    pip install -e {place}\n    pytest {place}\n    verigym check {env_id(self.name)}")
        return 0


def env_id(package: str) -> str:
    """The id of the environment that a new package has: my_tasks/MyTasks-v0."""
    return f"{package}/{_camel(package)}-v0"


def _camel(package: str) -> str:
    return "".join(part.capitalize() for part in package.split("_"))


def _valid(name: str) -> str:
    """The name, if a package can have it. Raises ConfigError."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name) or keyword.issoftkeyword(name):
        like = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
        hint = f"; did you mean '{like}'?" if like != name and re.match(r"[a-z]", like) else ""
        raise ConfigError(f"'{name}' is no name for a package: write it like my_tasks{hint}")
    if name in sys.stdlib_module_names:
        raise ConfigError(f"'{name}' is a module of Python's own; choose another name")
    spec = find_spec(name)  # a folder of that name beside us is none, unless it was installed
    if spec is not None and (spec.origin is not None or name in packages_distributions()):
        raise ConfigError(f"a package '{name}' is installed; choose another name")
    for kind, known in (("task set", tasks.registered()), ("verifier", verifiers.registered())):
        if name in known:
            raise ConfigError(f"there is a {kind} '{name}'; choose another name")
    return name


def _write(place: Path, kind: Kind, package: str) -> None:
    """Writes all files, or none. Raises ConfigError."""
    if place.exists():
        raise ConfigError(f"'{place}' exists; choose another name or --folder")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{package}-", dir=place.parent) as half:
            for path, text in contents(kind, package):
                file = Path(half, package, path)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text, encoding="utf-8")
            Path(half, package).rename(place)
    except OSError as error:
        raise ConfigError(f"cannot write '{place}': {error.strerror}") from error


def contents(kind: Kind, package: str) -> Iterator[tuple[str, str]]:
    """The files of a new package, as (path, text)."""
    templates = files("verigym") / "templates"
    words = {"package": package, "Name": _camel(package), "id": env_id(package), "summary": SUMMARIES[kind]}
    words["version"] = __version__
    words["notes"] = Template((templates / kind / "notes.in").read_text(encoding="utf-8")).substitute(words)
    for folder in (templates / "common", templates / kind):
        for path, template in _files(folder):
            if path != "notes":
                yield path.replace("PACKAGE", package), Template(template).substitute(words)


def _files(folder: Traversable, within: str = "") -> Iterator[tuple[str, str]]:
    """The templates under a folder, as (path without ".in", text)."""
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _files(entry, f"{within}{entry.name}/")
        elif entry.name.endswith(".in"):
            yield within + entry.name.removesuffix(".in"), entry.read_text(encoding="utf-8")
