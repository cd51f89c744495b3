"""`verigym verify`: judges a file of answers with a verifier, or by playing them in an environment."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import gymnasium as gym
import tyro

from verigym import verifiers
from verigym.commands._answers import AnswerFile, EnvironmentJudge, Judge, Judged, VerifierJudge
from verigym.commands._arguments import Options, Source, Split, key_values
from verigym.commands._environment import text_env
from verigym.envs import registered_ids
from verigym.tasks.errors import ConfigError
from verigym.tasks.plugins import unknown
from verigym.verifiers.verdict import Outcome


@dataclass(frozen=True)
class Verify:
    """Judge a file of answers.

    NAME is a verifier (rows {"id", "completion", "target"}, "prompt", "metadata" and "tools" if wanted) or an
    environment (rows {"id", "task", "completion"}; the completion is a text, or a list of texts: the turns). The file
    is JSONL or gzipped JSONL. It is checked as a whole before anything is judged. Written are JSON
    lines, an object {"id", "reward", "outcome", "reason"} for each row and in the same order, not one document as
    --json of other commands; the reward is null where we failed (infra_error; the exit status is then 1).
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """A verifier, such as math, or an environment, such as verigym/GSM8K-v0."""
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The answers, a JSON object a line."""
    source: Source = None
    """Where an environment's data is read from: a hub id, a file or a folder."""
    split: Split = None
    """The split of an environment's tasks."""
    output: Annotated[str | None, tyro.conf.arg(metavar="OUT", help_behavior_hint="(default: standard output)")] = None
    """File to write; it appears when it is complete."""
    option: Options = ()
    """A keyword argument of the verifier or environment, such as extract=latex or max_turns=8."""

    def run(self) -> int:
        """Writes the verdicts and a summary; returns the exit status."""
        judge = self._judge()
        with contextlib.closing(judge), AnswerFile(self.file, judge.row) as answers:
            count = answers.check()
            started = time.perf_counter()
            with _writer(self.output) as out:
                outcomes, rewards = _write(judge.judge(answers.rows()), out)
            seconds = time.perf_counter() - started
        summary = sys.stderr if self.output is None else sys.stdout
        print(_summary(count, outcomes, rewards, seconds), file=summary)
        return 1 if outcomes[Outcome.INFRA_ERROR] else 0

    def _judge(self) -> Judge:
        kwargs = key_values(self.option)
        if self.name in verifiers.registered():
            for name, value in (("source", self.source), ("split", self.split)):
                if value is not None:
                    raise ConfigError(f"--{name} is for environments; the verifier '{self.name}' reads no data")
            return VerifierJudge(verifiers.make(self.name, **kwargs))
        if self.name.rpartition(":")[2] not in gym.registry and ":" not in self.name:
            known = [*verifiers.registered(), *registered_ids()]
            if self.name not in known:
                raise unknown("verifier or environment", self.name, known)
        return EnvironmentJudge(lambda: text_env(self.name, kwargs, source=self.source, split=self.split))


def _write(judged: Iterable[Judged], out: IO[str]) -> tuple[Counter[Outcome], list[float]]:
    """Writes the lines; the outcomes' counts, and [sum, number] of the rewards."""
    outcomes: Counter[Outcome] = Counter()
    rewards = [0.0, 0.0]
    for found in judged:
        outcomes[found.outcome] += 1
        if found.reward is not None:
            rewards = [rewards[0] + found.reward, rewards[1] + 1]
        line: dict[str, Any] = {"id": found.id, "reward": found.reward, "outcome": found.outcome.value}
        _put(out, json.dumps({**line, "reason": found.reason}) + "\n")
    _put(out, "")
    return outcomes, rewards


def _put(out: IO[str], text: str) -> None:
    """Writes, or flushes if there is nothing to write. Raises ConfigError for a full disk and the like."""
    try:
        out.write(text) if text else out.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ConfigError(f"cannot write the verdicts: {error.strerror}") from error


def _summary(count: int, outcomes: Counter[Outcome], rewards: list[float], seconds: float) -> str:
    counts = ", ".join(f"{outcome.value} {outcomes[outcome]}" for outcome in Outcome if outcomes[outcome])
    mean = f"mean reward {rewards[0] / rewards[1]:.4f}" if rewards[1] else "no reward"
    return f"{count} answers in {seconds:.1f} s ({count / max(seconds, 1e-9):.0f}/s): {counts}; {mean}"


@contextlib.contextmanager
def _writer(output: str | None) -> Iterator[IO[str]]:
    """Standard output, or a file that takes its name when all is written. Raises ConfigError."""
    if output is None:
        yield sys.stdout
        return
    target = Path(os.path.realpath(output))
    # a device or a pipe is written to, not replaced
    special = target.exists() and not stat.S_ISREG(target.stat().st_mode)
    place = target if special else target.with_name(f".{target.name[:100]}.{os.getpid()}.part")
    try:
        out = place.open("w", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot write '{output}': {getattr(error, 'strerror', None) or error}") from error
    try:
        yield out
        out.close()
        if not special:
            place.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # what could not be written cannot be on closing
            out.close()
        if not special:
            place.unlink(missing_ok=True)
        raise
