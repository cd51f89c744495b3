"""Stored episodes judged again by another verifier: what they said is played once more, and no model is needed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from verigym.agents._live import messages_of
from verigym.agents.episode import Episode
from verigym.envs.mixture import EnvSpec
from verigym.envs.text_env import TextEnv
from verigym.pairs import episode_files, stored_episodes
from verigym.run_folder import RunFolder
from verigym.tasks.errors import ConfigError, SnapshotError, UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

_AT_ONCE = 256  # episodes whose verdicts are asked for together


@dataclass(frozen=True)
class Rescored:
    """An episode's place (file and row, from 1), its verdict then, and now; `kept` if no verifier had judged it."""

    file: str
    row: int
    env_id: str
    task_id: str
    old: Verdict
    new: Verdict
    kept: bool = False

    @property
    def changed(self) -> bool:
        return self.old.outcome is not self.new.outcome

    def to_json(self) -> dict[str, Any]:
        place = {"file": self.file, "row": self.row, "env_id": self.env_id, "task_id": self.task_id}
        return {**place, "old": _plain(self.old), "new": _plain(self.new), "kept": self.kept}


@dataclass
class Agreement:
    """How two verifiers judge the same episodes: counts by (outcome then, outcome now), and the rewards of both."""

    counts: Counter[tuple[Outcome, Outcome]] = field(default_factory=Counter)
    changed: list[Rescored] = field(default_factory=list)
    kept: int = 0
    _rewards: list[tuple[float, float]] = field(default_factory=list)

    def add(self, one: Rescored) -> None:
        self.kept += one.kept
        self.counts[one.old.outcome, one.new.outcome] += 1
        if one.changed:
            self.changed.append(one)
        if Outcome.INFRA_ERROR not in (one.old.outcome, one.new.outcome):
            self._rewards.append((one.old.reward, one.new.reward))

    @property
    def episodes(self) -> int:
        return self.counts.total()

    @property
    def unjudged(self) -> int:
        """Episodes that could not be judged now."""
        return sum(count for (_, new), count in self.counts.items() if new is Outcome.INFRA_ERROR)

    @property
    def agreement(self) -> float | None:
        """Of the episodes that were judged then and now, the share that passes both times or neither."""
        judged = {pair: n for pair, n in self.counts.items() if Outcome.INFRA_ERROR not in pair}
        same = sum(n for (old, new), n in judged.items() if (old is Outcome.CORRECT) == (new is Outcome.CORRECT))
        return same / sum(judged.values()) if judged else None

    @property
    def rewards(self) -> tuple[float, float] | None:
        """Mean reward of the verdicts then and now, of the episodes that were judged both times."""
        if not self._rewards:
            return None
        old, new = (sum(column) / len(self._rewards) for column in zip(*self._rewards, strict=True))
        return old, new


def rescore(
    run: str | Path,
    verifier: Verifier,
    *,
    limit: int | None = None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Iterator[Rescored]:
    """The episodes of a run folder, or of `verigym eval --folder`, in order; the first `limit` of them (None: all).

    Each is played again in its environment, with the turns that are stored: tools and worlds answer, the messages have
    to be the same, and what the environment would have had judged goes to `verifier`. An episode that plays otherwise
    is an INFRA_ERROR; one that ended before a verifier was asked keeps its verdict. `on_progress` hears how many are
    done. Raises ConfigError for a folder without environments, an environment that is no TextEnv or whose user is a
    model, or a verifier that cannot judge its tasks.
    """
    folder = Path(run).expanduser()
    stages = Stages()
    done = 0
    try:
        stored = islice(_stored(folder), limit)
        while batch := list(islice(stored, _AT_ONCE)):
            replayed = [stages.replay(specs, episode) for _, _, specs, episode in batch]
            pairs = [found for found in replayed if not isinstance(found, Verdict)]
            try:
                verdicts = iter(verifier.verify_many(pairs))
            except VerifierInputError as error:
                raise ConfigError(f"the verifier cannot judge the tasks of this run: {error}") from error
            for (file, row, _, episode), found in zip(batch, replayed, strict=True):
                new = found if isinstance(found, Verdict) else next(verdicts)
                kept = new is episode.verdict
                yield Rescored(file, row, episode.env_id, episode.task_id, episode.verdict, new, kept)
            done += len(batch)
            on_progress(done)
    finally:
        stages.close()


def _stored(folder: Path) -> Iterator[tuple[str, int, Sequence[EnvSpec], Episode]]:
    """The episodes with their files and rows, and the environments in which each may have been played."""
    if not folder.is_dir():
        raise ConfigError(f"no run in '{folder}': there is no such folder")
    of_run = _specs_of_run(folder) if (folder / "config.yaml").is_file() else None
    for file in episode_files(folder):
        specs = of_run if of_run is not None else [_spec_of_cell(file)]
        for row, episode in enumerate(stored_episodes(file), start=1):
            yield f"episodes/{file.name}", row, [spec for spec in specs if spec.id == episode.env_id], episode


def _specs_of_run(folder: Path) -> list[EnvSpec]:
    listed = RunFolder(folder).read_config().get("envs") or []
    try:
        return [EnvSpec(str(env["id"]), kwargs=dict(env.get("kwargs") or {})) for env in listed]
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ConfigError(f"'{folder / 'config.yaml'}' names no environments: envs is {listed!r}") from error


def _spec_of_cell(file: Path) -> EnvSpec:
    """The environment in the file that `verigym eval --folder` writes beside its episodes."""
    beside = file.with_suffix(".json")
    try:
        env = json.loads(beside.read_text(encoding="utf-8"))["env"]
        return EnvSpec(env["id"], kwargs=env["kwargs"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot tell the environment of '{file}': there is no '{beside.name}' beside it") from error


class Stages:
    """The environments in which episodes are played again, one of each kind."""

    def __init__(self) -> None:
        self._envs: dict[str, tuple[TextEnv, _Recorder]] = {}

    def replay(self, specs: Sequence[EnvSpec], episode: Episode) -> tuple[Submission, Task] | Verdict:
        """What is judged of an episode; or its own verdict if no verifier was asked, or why it cannot be judged."""
        if not specs:
            return Verdict.infra_error(f"the run's configuration has no environment {episode.env_id}")
        problem = ""
        for spec in specs:
            env, recorder = self._stage(spec)
            try:
                return _replay(env, recorder, episode)
            except (SnapshotError, UnknownNameError) as error:
                problem = str(error)
            except Exception as error:  # an environment's own code may raise anything; it costs its own episode only
                self._envs.pop(_name(spec))[0].close()
                problem = f"the environment failed: {type(error).__name__}"
        return Verdict.infra_error(problem)

    def close(self) -> None:
        for env, _ in self._envs.values():
            env.close()

    def _stage(self, spec: EnvSpec) -> tuple[TextEnv, _Recorder]:
        name = _name(spec)
        if name not in self._envs:
            if spec.kwargs.get("user") is not None:
                raise ConfigError(f"the user of {spec.id} is a model, which would not say the same again")
            env = spec.make().unwrapped
            if not isinstance(env, TextEnv):
                raise ConfigError(f"{spec.id} is no TextEnv: its verdicts are its own")
            recorder = _Recorder(env.verifier)
            env.verifier = recorder
            self._envs[name] = env, recorder
        return self._envs[name]


def _name(spec: EnvSpec) -> str:
    return f"{spec.id} {dict(spec.kwargs)!r}"


class _Recorder(Verifier):
    """Stands in an environment for its verifier, and keeps what it would have judged."""

    def __init__(self, inner: Verifier) -> None:
        self._inner = inner
        self.asked: tuple[Submission, Task] | None = None

    def verify(self, submission: Submission, task: Task) -> Verdict:
        self.asked = submission, task
        return Verdict(0.0, Outcome.WRONG, "not judged here")

    def golds(self, task: Task) -> list[str]:
        return self._inner.golds(task)

    def dress(self, gold: str) -> str:
        return self._inner.dress(gold)

    def feedback(self, submission: Submission, task: Task) -> str | None:
        """That of the verifier in its place: it decides whether an episode goes on."""
        return self._inner.feedback(submission, task)

    @property
    def isolated(self) -> bool:
        return self._inner.isolated

    def close(self) -> None:
        self._inner.close()


def _replay(env: TextEnv, recorder: _Recorder, episode: Episode) -> tuple[Submission, Task] | Verdict:
    """Plays the stored turns. Raises SnapshotError where the environment says something else than is stored."""
    recorder.asked = None
    spoken, turns = list(episode.messages), iter(_counts(episode))
    if not spoken:
        return episode.verdict
    new = messages_of(*env.reset(seed=episode.seed, options={"task": episode.task_id}))
    place = _compare(spoken, 0, new, episode)
    while place < len(spoken):
        if spoken[place]["role"] != "assistant":
            raise _other(episode, place)
        tokens, cut = next(turns, (0, False))
        env.announce(tokens, cut=cut)
        observation, _, terminated, truncated, info = env.step(str(spoken[place]["content"]))
        ended = terminated or truncated
        place = _compare(spoken, place + 1, messages_of(observation, info, ended=ended), episode)
        if ended and (place < len(spoken) or recorder.asked is None):
            raise _other(episode, place)
    if recorder.asked is None and episode.terminated:
        raise SnapshotError(f"task '{episode.task_id}' does not end where the stored episode does")
    return recorder.asked or episode.verdict


def _counts(episode: Episode) -> list[tuple[int, bool]]:
    """Tokens of each turn, and whether a limit cut it; those of turns that a fork begins with are not known.

    Of an endpoint's episode their sum is known: it counts with the last turn, where alone a budget may have ended it.
    """
    if episode.usage and episode.turns:
        cuts = [turn.stop_reason == "length" for turn in episode.turns]
        return [*((0, cut) for cut in cuts[:-1]), (episode.usage[1], cuts[-1])]
    before = [(0, False)] * (episode.forked_turn or 0)
    return before + [(turn.end - turn.start, turn.stop_reason == "length") for turn in episode.turns]


def _compare(
    spoken: Sequence[Mapping[str, Any]], place: int, new: Sequence[Mapping[str, Any]], episode: Episode
) -> int:
    """The place after `new`, which stands at `place` of what was spoken."""
    for message in new:
        if place >= len(spoken) or any(spoken[place][key] != message[key] for key in ("role", "content")):
            raise _other(episode, place)
        place += 1
    return place


def _other(episode: Episode, place: int) -> SnapshotError:
    return SnapshotError(f"task '{episode.task_id}' plays otherwise than stored, from message {place + 1} on")


def _plain(verdict: Verdict) -> dict[str, Any]:
    reward = None if verdict.outcome is Outcome.INFRA_ERROR else verdict.reward
    known = {"reward": reward, "outcome": verdict.outcome.value, "reason": verdict.reason}
    return {**known, "components": dict(verdict.components)}
