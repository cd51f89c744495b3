"""`verigym check`: whether environments keep to what every environment promises."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape

from verigym.cli import parse_options
from verigym.commands._arguments import Options, Split, key_values
from verigym.envs import conformance, registered_ids
from verigym.tasks.errors import ConfigError, UnknownNameError, VerigymError

_WORDS = {True: "[green]ok[/]", False: "[red]FAILED[/]", None: "[yellow]not checked[/]"}


@dataclass(frozen=True)
class Check:
    """Check that environments keep to what every environment promises, rule by rule.

    With an ID the exit status is 0 if no rule is broken, 1 if one is, and 2 if there is no such environment.
    Without one every registered environment is checked, with what --source ID=PATH and --option ID:KEY=VALUE say of
    it; the status is 0 only if each of them could be made and breaks no rule.
    """

    id: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="[ID]", help_behavior_hint="(default: all that are registered)"),
    ] = None
    """The environment, such as verigym/GSM8K-v0 or acme_envs:acme/Sums-v0."""
    source: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="SOURCE")] = ()
    """Where the data is read from: a hub id, a file or a folder; without an ID as ID=SOURCE, for each one."""
    split: Split = None
    """The split of the tasks."""
    option: Options = ()
    """A keyword argument of the environment, such as level=3; without an ID as ID:KEY=VALUE."""
    model: Annotated[str | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: none)")] = None
    """Check a model instead: whether its template and tokenizer can be trained on."""
    json: bool = False
    """Print each environment's rules, and whether they hold (null: not checked), as JSON."""

    @classmethod
    def parse(cls, arguments: Sequence[str]) -> Check:
        """Its switch is a flag: `--json`."""
        return parse_options(cls, "check", arguments, flags=True)  # type: ignore[no-any-return]

    def run(self) -> int:
        """Prints the findings; returns the exit status."""
        if self.model is not None:
            return self._check_model(self.model)
        if self.id is None and self.split is not None:
            raise ConfigError("--split needs the ID of an environment")
        if self.json:
            return self._print_json()
        if self.id is not None:
            return 0 if _show(self.id, self._kwargs(), every_rule=True) else 1
        return 0 if self._check_all() else 1

    def _print_json(self) -> int:
        found: list[dict[str, Any]] = []
        for env_id, kwargs in self._given().items():
            try:
                found.append({"env": env_id, "checks": [asdict(each) for each in conformance.checks(env_id, **kwargs)]})
            except VerigymError as error:
                if self.id is not None:
                    raise
                found.append({"env": env_id, "error": " ".join(str(error).split())})
        print(json.dumps(found, indent=1))
        broken = any("error" in row or any(check["holds"] is False for check in row["checks"]) for row in found)
        return 1 if broken else 0

    def _check_model(self, path: str) -> int:
        if self.id is not None or self.source or self.option or self.split is not None or self.json:
            raise ConfigError("--model checks a model and nothing else: leave the environment and --json out")
        from verigym.commands._check_model import check_model

        return int(check_model(path))

    def _kwargs(self) -> dict[str, Any]:
        """The keyword arguments of the one environment."""
        if len(self.source) > 1:
            raise ConfigError(f"an environment has one source, not {len(self.source)}")
        kwargs = key_values(self.option)
        named = {"source": self.source[0]} if self.source else {}
        if self.split is not None:
            named["split"] = self.split
        for name in named:
            if name in kwargs:
                raise ConfigError(f"{name} is given twice: as --{name} and as --option")
        return {**kwargs, **named}

    def _given(self) -> dict[str, dict[str, Any]]:
        """The keyword arguments of each environment that is to be checked."""
        if self.id is not None:
            return {self.id: self._kwargs()}
        given: dict[str, dict[str, Any]] = {env_id: {} for env_id in registered_ids()}
        for env_id, source in _of_ids("--source", self.source, "=", given):
            given[env_id]["source"] = source
        for env_id, pair in _of_ids("--option", self.option, ":", given):
            given[env_id] |= key_values([pair])
        return given

    def _check_all(self) -> bool:
        """Checks every registered environment; whether all of them could be made and keep to everything."""
        kept = {}
        for env_id, kwargs in self._given().items():
            try:
                kept[env_id] = _show(env_id, kwargs, every_rule=False)
            except VerigymError as error:
                kept[env_id] = False
                _console().print(f"{escape(env_id)}: {_WORDS[None]}: {escape(' '.join(str(error).split()))}")
        _console().print(f"{sum(kept.values())} of {len(kept)} environments were checked and break no rule")
        return all(kept.values())


def _of_ids(name: str, values: Sequence[str], sign: str, known: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The values of an option that is written ID, `sign` and the rest, as (id, rest)."""
    for value in values:
        env_id, _, rest = value.partition(sign)
        if not rest:
            raise ConfigError(f"without an ID, {name} is written ID{sign}..., not '{value}'")
        if env_id not in known:
            raise UnknownNameError.of("environment", env_id, known)
        yield env_id, rest


def _show(env_id: str, kwargs: Mapping[str, Any], *, every_rule: bool) -> bool:
    """Prints the checks of an environment; whether no rule is broken."""
    console, started = _console(), time.perf_counter()
    found = []
    for check in conformance.checks(env_id, **kwargs):
        found.append(check)
        if every_rule or not check.holds:
            detail = f": {escape(check.detail)}" if check.detail else ""
            console.print(f"  {_WORDS[check.holds]}  {escape(check.rule)}{detail}")
    counts = {word: sum(check.holds is word for check in found) for word in _WORDS}
    console.print(
        f"{escape(env_id)}: {counts[True]} rules hold, {counts[False]} are broken, {counts[None]} could not be "
        f"checked ({time.perf_counter() - started:.1f} s)"
    )
    return not counts[False]


def _console() -> Console:
    return Console(soft_wrap=True, highlight=False)
