"""Environments with one defect each, by the rules of the conformance checker that they break.

They stand in a module of their own because the checker makes them in another process.
"""

import os
import random
import subprocess
import threading
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from verigym import verifiers
from verigym.envs import QuestionEnv, Reply, register
from verigym.envs.spaces import TextSpace
from verigym.tasks.errors import EnvClosedError, EnvUsageError, UnknownNameError
from verigym.verifiers import Outcome, Submission, Verdict
from verigym.verifiers.exact import ExactVerifier

BROKEN: dict[str, set[str]] = {}
CALCULATOR = {
    "task_set": "calculator",
    "verifier": "exact",  # the quickest
    "tools": ("verigym.tasks.calculator:calculator",),
    "max_turns": 4,
    "chance": "verigym.tasks.calculator:chance",
}


def breaks(*rules, **kwargs):
    """Registers a class as an environment that breaks these rules."""

    def add(cls):
        env_id = f"broken/{cls.__name__}-v0"
        register(env_id, entry_point=f"broken_envs:{cls.__name__}", kwargs={**CALCULATOR, **kwargs})
        BROKEN[env_id] = set(rules)
        return cls

    return add


def judged_by(verifier):
    """Registers a verifier under its class's name."""
    verifiers.register(verifier.__name__, verifier)
    return verifier


REPEATS = "the same seed and actions give the same episode"
LEAK = "with the gold replaced by a canary, the canary is nowhere before the verdict nor in its reason"
HOSTILE = "no text raises an exception or earns what is no number"
CLOSE = "close from another thread ends what step waits for"
CLOSED = "a closed environment says so, and may be closed again"
FORK = "a snapshot is plain data, and restoring it goes on like the original, which it leaves alone"
GOLDS = "gold answers earn full reward, and with another value in them none"
CHANCE = "a chance score from 0 to 1 is declared, and policies that know nothing earn at most that and 0.02"
ENDS = "the end of the task terminates, a budget truncates, and never both"
GLOBAL = "no global random generator is touched"


@breaks(GLOBAL)
class DrawsFromGlobalRandom(QuestionEnv):
    def opening(self, task):
        random.random()
        return super().opening(task)


@breaks(GLOBAL)
class SeedsGlobalNumpy(QuestionEnv):
    def reset(self, *, seed=None, options=None):
        np.random.seed(0)
        return super().reset(seed=seed, options=options)


@breaks("nothing of an episode is left after a reset")
class CountsTheCallsOfABrokenOffEpisode(QuestionEnv):
    _count = 0

    def respond(self, action):
        reply = super().respond(action)
        self._count = 0 if reply.final else self._count + 1
        return Reply(
            [{**message, "content": f"{self._count}: {message['content']}"} for message in reply.messages], reply.final
        )


@breaks(
    "members of a group start from one and the same state",
    "Gymnasium's own checker passes without a warning",
    "the same seed and actions give the same episode",
    "the same seed and actions give the same episode in another process with another hash seed",
    "resets without a seed go on from the environment's own generator",
    "nothing of an episode is left after a reset",
    "what a caller does to an info changes nothing inside",
    "a snapshot is plain data, and restoring it goes on like the original, which it leaves alone",
    "gym.make_vec in sync mode gives what single environments give",
    "gym.make_vec in async mode gives what single environments give",
    "stepped in threads, it gives what single environments give",
)
class CountsEpisodesOverAllInstances(QuestionEnv):
    count: ClassVar[list[int]] = [0]

    def opening(self, task):
        self.count[0] += 1
        return [{"role": "user", "content": f"Question {self.count[0]}: {task.prompt}"}]


@breaks(LEAK)
class TellsTheGoldInItsInfo(QuestionEnv):
    def step(self, action):
        *said, info = super().step(action)
        return *said, {**info, "expected": self._task.target}


@breaks(LEAK)
class TellsTheGoldInItsSnapshot(QuestionEnv):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._answers = {task.id: task.target for task in self.tasks[:50]}

    def snapshot(self):
        return {**super().snapshot(), "answer": self._answers.get(self._task.id, "")}


@judged_by
class TellsTheGold(ExactVerifier):
    def verify(self, submission, task):
        verdict = super().verify(submission, task)
        return Verdict(verdict.reward, verdict.outcome, f"{verdict.reason}; expected {task.target}")


@breaks(LEAK, verifier="TellsTheGold")
class TellsTheGoldInItsReason(QuestionEnv):
    pass


@breaks("the same seed and actions give the same episode in another process with another hash seed")
class WordsByHash(QuestionEnv):
    def opening(self, task):
        return [{"role": "user", "content": f"{task.prompt} ({hash(task.prompt)})"}]


@breaks(ENDS)
class TerminatesAndTruncates(QuestionEnv):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, truncated, info


@breaks(ENDS)
class TerminatesWhenABudgetIsSpent(QuestionEnv):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, False, info


@breaks(FORK)
class RestoresOneTurnTooFew(QuestionEnv):
    def snapshot(self):
        taken = super().snapshot()
        return {**taken, "turns": taken["turns"][:-1], "messages": taken["messages"][:1]}


@breaks(FORK, "a snapshot that was changed is refused")
class TakesAnySnapshot(QuestionEnv):
    def reset(self, *, seed=None, options=None):
        if options and "snapshot" in options:
            return super().reset(seed=seed)
        return super().reset(seed=seed, options=options)


@breaks(HOSTILE)
class RaisesOnALoneSurrogate(QuestionEnv):
    def respond(self, action):
        action.encode()
        return super().respond(action)


@breaks(HOSTILE)
class EndsItsProcessOnNUL(QuestionEnv):
    def respond(self, action):
        if "\x00" in action:
            os._exit(3)
        return super().respond(action)


@judged_by
class GivesUpOnSurrogates(ExactVerifier):
    def verify(self, submission, task):
        if "\ud800" in submission.text:
            return Verdict.infra_error("cannot read this")
        return super().verify(submission, task)


@breaks(HOSTILE, verifier="GivesUpOnSurrogates")
class BlamesItselfForSurrogates(QuestionEnv):
    pass


@breaks(CLOSE)
class WaitsForItsVerifierWhateverHappens(QuestionEnv):
    def _judge(self, submission, task):
        return self.verifier.verify(submission, task)


@breaks(CLOSE, CLOSED)
class IgnoresClose(QuestionEnv):
    def close(self):
        pass


@breaks(CLOSED, "Gymnasium's own checker passes without a warning")
class CannotBeClosedTwice(QuestionEnv):
    def close(self):
        if self._closed.is_set():
            raise ValueError("already closed")
        super().close()


@judged_by
class PaysForTheQuestion(ExactVerifier):
    def verify(self, submission, task):
        if task.prompt in submission.text:
            return Verdict(1.0, Outcome.CORRECT, "on topic")
        return super().verify(submission, task)


@breaks(CHANCE, verifier="PaysForTheQuestion")
class PaysAnEcho(QuestionEnv):
    pass


@breaks(CHANCE)
class DeclaresAnImpossibleChance(QuestionEnv):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.chance = 1.5


@judged_by
class WantsTheWord(ExactVerifier):
    def verify(self, submission, task):
        return super().verify(Submission(submission.text.replace("5", "")), task)


@breaks(GOLDS, verifier="WantsTheWord")
class RefusesSomeGolds(QuestionEnv):
    pass


@breaks("an unknown keyword argument fails at once, named, with the one that is like it")
class SwallowsUnknownKeywords(QuestionEnv):
    def __init__(self, max_turns=4, max_tokens_per_turn=256, **options):
        known = {name: value for name, value in options.items() if name in {*CALCULATOR, "render_mode", "verifier"}}
        super().__init__(max_turns=max_turns, max_tokens_per_turn=max_tokens_per_turn, **known)


@breaks("an observation is the text of the messages that are not from the system, joined by a blank line")
class ShowsOnlyTheFirstMessage(QuestionEnv):
    def opening(self, task):
        return [{"role": "system", "content": "Be brief."}, *super().opening(task)]

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        restored = options and "snapshot" in options
        return observation if restored else info["messages"][0]["content"], info


@breaks("the last reward is the verdict's, and only an infrastructure error has none")
class AddsABonus(QuestionEnv):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + 0.01 * terminated, terminated, truncated, info


@breaks("an unknown reset option or task is refused, and the environment can still be used")
class IgnoresUnknownOptions(QuestionEnv):
    def reset(self, *, seed=None, options=None):
        known = {name: value for name, value in (options or {}).items() if name in ("task", "snapshot")}
        return super().reset(seed=seed, options=known)


@breaks("a step before the first reset or after the end raises EnvUsageError")
class StepsOnAfterTheEnd(QuestionEnv):
    def step(self, action):
        if self._task is not None and self._over and not self._closed.is_set() and isinstance(action, str):
            return "", 0.0, True, False, {"task_id": self._task.id, "messages": []}
        return super().step(action)


@breaks("what a caller does to an info changes nothing inside")
class HandsOutItsSchemas(QuestionEnv):
    @property
    def tools(self):
        self._schemas = getattr(self, "_schemas", None) or super().tools
        return self._schemas

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        return observation, {**info, "tools": self.tools}


@breaks("a tool is described by a JSON schema, and a call in canonical syntax is answered by a message of its own")
class RunsCallsInReasoning(QuestionEnv):
    def respond(self, action):
        return super().respond(action.replace("<think>", "").replace("</think>", ""))


@breaks("nothing that it started outlives its process")
class LeavesAProcess(QuestionEnv):
    _left: ClassVar[list[Any]] = []

    def reset(self, *, seed=None, options=None):
        if not self._left:
            self._left.append(subprocess.Popen(["sleep", "60"]))
        return super().reset(seed=seed, options=options)


@breaks("the spaces hold every text, the empty one too, and nothing else")
class TakesShortTexts(QuestionEnv):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.action_space = gym.spaces.Text(100, min_length=1)


@breaks("an action that is no text raises EnvUsageError")
class TakesAnyObject(QuestionEnv):
    def step(self, action):
        return super().step(str(action))


@breaks("reset and step return a text and an info: task_id, messages, tools at the start, a verdict at the end")
class ForgetsItsTask(QuestionEnv):
    def step(self, action):
        *said, info = super().step(action)
        return *said, {**info, "task_id": ""}


@breaks("Gymnasium's wrappers TimeLimit and RecordEpisodeStatistics work on it")
class KeepsItsOwnStatistics(QuestionEnv):
    def step(self, action):
        *said, info = super().step(action)
        return *said, {**info, "episode": len(self._turns)}


class Hangs(QuestionEnv):
    """Waits for ever on an answer."""

    def respond(self, action):
        threading.Event().wait()


class NoSecondStep(gym.Env):
    """Not a TextEnv, and in order: asks for a letter, of which any is right with a chance of one half."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}
    render_mode = None
    chance = 0.5

    def __init__(self, letters="ab"):
        self.letters, self.asked, self.closed = letters, None, False
        self.action_space = self.observation_space = TextSpace()

    def reset(self, *, seed=None, options=None):
        if self.closed:
            raise EnvClosedError("the environment was closed")
        super().reset(seed=seed)
        for name in options or {}:
            if name != "task":
                raise UnknownNameError.of("reset option", name, ["task"])
        task = (options or {}).get("task") or self.letters[int(self.np_random.integers(len(self.letters)))]
        if task not in self.letters:
            raise UnknownNameError.of("task", task, self.letters)
        self.asked = task
        message = {"role": "user", "content": "Which letter?"}
        return message["content"], {"task_id": task, "tools": [], "messages": [message]}

    def step(self, action):
        if self.closed:
            raise EnvClosedError("the environment was closed")
        if not isinstance(action, str) or self.asked is None:
            raise EnvUsageError("an action is a text, after a reset")
        right, task, self.asked = action == self.asked, self.asked, None
        verdict = Verdict(float(right), Outcome.CORRECT if right else Outcome.WRONG, "right" if right else "wrong")
        return "", verdict.reward, True, False, {"task_id": task, "messages": [], "verdict": verdict}

    def close(self):
        self.closed = True


register("broken/Hangs-v0", entry_point="broken_envs:Hangs", kwargs=CALCULATOR)
register("broken/NoTextEnv-v0", entry_point="broken_envs:NoSecondStep", kwargs={})
