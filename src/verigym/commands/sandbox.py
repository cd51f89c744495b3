"""`verigym sandbox build | doctor | clean`: the image, what each backend enforces here, and what killed runs left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro

from verigym.cli import parse_options
from verigym.tasks.errors import ConfigError, UnknownNameError

USAGE = """usage: verigym sandbox build [--base IMAGE | --from-host | --debootstrap]
       verigym sandbox doctor [--json]
       verigym sandbox clean

  build    make the Docker image: on one from a registry, from this host's own Python, or from a Debian mirror
  doctor   measure what each backend enforces on this host
  clean    remove what killed runs left: containers, processes, folders"""


@dataclass(frozen=True)
class Build:
    """Make the image of the Docker sandbox. Without a registry: --from-host or --debootstrap."""

    base: Annotated[str, tyro.conf.arg(metavar="IMAGE")] = "python:3.12-slim"
    """The image to build on; it has a `python3`."""
    from_host: bool = False
    """Pack the Python that runs this command, with the libraries that it loads."""
    debootstrap: bool = False
    """Install Debian with its Python into the image; needs root and a Debian mirror."""

    def run(self) -> int:
        """Builds the image; returns the exit status."""
        if self.from_host and self.debootstrap:
            raise ConfigError("an image is made --from-host or by --debootstrap, not both")
        from verigym.verifiers.sandbox import docker, image

        client = docker.connect()
        if self.from_host:
            image.build_from_host(client)
        elif self.debootstrap:
            image.build_from_debian(client)
        else:
            image.build_from_registry(client, self.base)
        size = client.images.get(docker.IMAGE).attrs["Size"]
        print(f"built {docker.IMAGE} ({size / 1e6:.0f} MB)")
        return 0


@dataclass(frozen=True)
class Doctor:
    """Measure what each backend enforces on this host. Exit status 0 if one that isolates enforces everything."""

    json: bool = False
    """Print the findings as JSON."""

    def run(self) -> int:
        """Prints the findings; returns the exit status."""
        from verigym.verifiers.sandbox import doctor

        findings = doctor.examine_all()
        if self.json:
            print(json.dumps([asdict(finding) for finding in findings], indent=1))
        else:
            _print_table(findings)
        sound = {f.sandbox for f in findings} - {f.sandbox for f in findings if not f.enforced}
        return 0 if sound else 1


@dataclass(frozen=True)
class Clean:
    """Remove what the sandboxes of killed processes left; those of running ones are let be."""

    def run(self) -> int:
        """Prints what was removed; returns the exit status."""
        from verigym.verifiers.sandbox.clean import remove_orphans

        print("removed " + ", ".join(f"{count} {what}" for what, count in remove_orphans().items()))
        return 0


ACTIONS: dict[str, Any] = {"build": Build, "doctor": Doctor, "clean": Clean}
_FLAGS = ("--from-host", "--debootstrap", "--json")


@dataclass(frozen=True)
class SandboxCommand:
    """Build, examine and clean up sandboxes."""

    action: Build | Doctor | Clean

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> SandboxCommand:
        """The action's name and its options."""
        if not arguments or arguments[0] in ("-h", "--help"):
            print(USAGE)
            raise SystemExit(0 if arguments else 2)
        if arguments[0] not in ACTIONS:
            raise UnknownNameError.of("action of sandbox", arguments[0], ACTIONS)
        options = [text for option in arguments[1:] for text in ((option, "True") if option in _FLAGS else (option,))]
        return cls(parse_options(ACTIONS[arguments[0]], f"sandbox {arguments[0]}", options))

    def run(self) -> int:
        """Runs the action."""
        return self.action.run()


def _print_table(findings: Sequence[Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(finding.sandbox for finding in findings))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for finding in findings:
        words = {True: "[green]yes[/]", False: "[red]NO[/]", None: "[yellow]not tried[/]"}
        cells.setdefault((finding.area, finding.sentence), {})[finding.sandbox] = words[finding.enforced]
    table = Table("", "enforced here", *names)
    for (area, sentence), row in cells.items():
        table.add_row(area, sentence, *(row.get(name, "") for name in names))
    console = Console()
    console.print(table)
    for finding in findings:
        if finding.detail:
            console.print(f"{finding.sandbox}, {finding.sentence}: {finding.detail}", markup=False, highlight=False)
