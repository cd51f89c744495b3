"""The command line: a table of commands, each a dataclass whose fields are its options."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from verigym.tasks.errors import ConfigError, RunInterrupted, UnknownNameError, VerigymError

# name: (module, class, what it does)
COMMANDS = {
    "envs": ("envs", "Envs", "list the environments"),
    "validate": ("validate", "Validate", "check an environment's gold answers and null policies"),
    "check": ("check", "Check", "check that environments keep to what every environment promises"),
    "play": ("play", "Play", "play an environment by hand or watch an agent"),
    "verify": ("verify", "Verify", "judge a file of answers"),
    "curate": ("curate", "Curate", "choose the tasks that are worth training on"),
    "new": ("new", "New", "write a package with a task, verifier, environment or tool of your own"),
    "sandbox": ("sandbox", "SandboxCommand", "build, examine and clean up sandboxes for untrusted code"),
    "sft": ("sft", "SFT", "warm-start a model on an environment's demonstrations"),
    "train": ("train", "Train", "train an agent from a recipe"),
    "reward-model": ("offline", "RewardModel", "train a reward model on preferences"),
    "dpo": ("offline", "DPO", "train a policy on preferences"),
    "rft": ("offline", "RFT", "fine-tune a policy on its own right episodes"),
    "eval": ("evaluate", "Evaluate", "measure how often models pass, and compare them"),
    "rescore": ("rescore", "Rescore", "judge a run's episodes with another verifier"),
    "view": ("view", "View", "look at a run: curves, episodes, tokens"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Wrong input is one line on standard error and exit status 2."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()  # a reader that is gone is noticed here, not at the interpreter's end
    except RunInterrupted as interruption:
        print(f"verigym {arguments[0]}: {interruption}", file=sys.stderr)
        return 130
    except VerigymError as error:
        print(f"verigym {arguments[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader of our output is gone, such as `| head`; what is left would fail again at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_overview())
        return 0 if arguments else 2
    name = arguments[0]
    if name == "--version":
        from verigym import __version__

        print(__version__)
        return 0
    if name not in COMMANDS:
        raise UnknownNameError.of("command", name, COMMANDS)
    if name != "train" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("it runs in one process; start it without torchrun, which is for train")
    logging.basicConfig(format="%(message)s")  # on standard error, as every notice
    logging.getLogger("verigym").setLevel(logging.INFO)
    module, attribute, _ = COMMANDS[name]
    command = getattr(import_module(f"verigym.commands.{module}"), attribute)
    return int(_parse(command, name, arguments[1:]).run())


def _parse(command: Any, name: str, arguments: Sequence[str]) -> Any:
    """The command with its options; one whose options depend on a recipe has a `parse` of its own."""
    if hasattr(command, "parse"):
        return command.parse(arguments)
    return parse_options(command, name, arguments)


def parse_options(kind: Any, name: str, arguments: Sequence[str], default: Any = None, *, flags: bool = False) -> Any:
    """A dataclass from command-line options, of which booleans take a value or, as `flags`, none.

    Raises ConfigError where tyro would print a box and exit.
    """
    import tyro

    captured = io.StringIO()
    known = {} if default is None else {"default": default}
    options = (tyro.conf.FlagCreatePairsOff if flags else tyro.conf.FlagConversionOff,)
    try:
        with contextlib.redirect_stderr(captured):
            return tyro.cli(kind, args=list(arguments), prog=f"verigym {name}", config=options, **known)
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ConfigError(one_line(captured.getvalue(), name)) from None


def one_line(box: str, name: str) -> str:
    """What tyro prints in a box of several lines, as one sentence: its title and its help are left out."""
    message, *rest = _parts(box)
    if message.strip().startswith("Missing from"):
        # a required option is a line with its name, and indented under it its help
        indents = re.findall(r"^( +)\S", message.partition("\n")[2], re.MULTILINE)
        names = re.findall(rf"^{min(indents, default='')}(\S+)", message, re.MULTILINE)
        message = f"missing: {', '.join(names)}" if indents else message
    text = " ".join(re.split(r"Got errors:|Argument helptext:", message)[0].split()).rstrip(".")
    text = text.replace("{None}|", "")
    text = re.sub(r"no type matching (.+) could be instantiated from \[(.*)\]", r"expected \1, got \2", text)
    near = re.search(r"Perhaps you meant:\s+(--[\w-]+)", " ".join(rest))
    hint = f"; did you mean {near[1]}?" if near else f"; see verigym {name} --help"
    return (text[:1].lower() + text[1:] or "wrong options") + hint


def _parts(box: str) -> list[str]:
    """The texts between the rules of a box, which has lines around it or, in a terminal without UTF-8, none."""
    lines = [line.strip("\u2502").rstrip() for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    if lines and lines[0].startswith("\u256d"):
        lines = [line for line in lines if not line.startswith(("\u256d", "\u2570"))]
    elif len(lines) > 1 and re.fullmatch(r" *-{3,}", lines[1]):
        lines = lines[2:]
    return re.split(r"^ *[\u2500-]{3,}$", "\n".join(lines), flags=re.MULTILINE)


def _overview() -> str:
    rows = "\n".join(f"  {name:<14}{text}" for name, (_, _, text) in COMMANDS.items())
    return f"usage: verigym COMMAND [options]\n\n{rows}\n\n`verigym COMMAND --help` lists the options."


if __name__ == "__main__":
    sys.exit(main())
