"""A trained reward model as a verifier: it scores conversations, in batches, for all environments of a process.

It stands here and not beside the other verifiers because it needs models, and imports go one way; the table of
verifiers names it as text, so that nothing there imports it until `verifiers.make("reward_model", ...)` is called.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from verigym.agents._batcher import Batcher, settle
from verigym.agents.agent import load_chat, resolve_device
from verigym.agents.chat import Chat
from verigym.agents.episode import Episode
from verigym.agents.learners.batch import check_packing
from verigym.agents.learners.pairs import written_episode
from verigym.agents.learners.reward_model import score
from verigym.agents.scalar import load_scalar_model
from verigym.tasks._rows import is_unicode
from verigym.tasks.activity import doing
from verigym.tasks.errors import ConfigError, TemplateError
from verigym.tasks.task import Task
from verigym.verifiers.verdict import Outcome, Submission, Verdict
from verigym.verifiers.verifier import Verifier

Message = Mapping[str, Any]

_TOKENS_PER_FORWARD = 8192


def read_conversation(chat: Chat, messages: Sequence[Message]) -> Episode:
    """What a reward model reads: the messages up to the last turn of the assistant, with the mark that ends it.

    Of conversations that differ only in that turn, what stands before it is computed once.
    In training and in use they are rendered by its own chat template, never taken from the player's tokens, which
    another tokenizer may have made. Tools that were only declared are in no message, and are not read.
    Raises TemplateError if there is no such turn, or the template cannot write it.
    """
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise TemplateError("the conversation has no turn of the assistant")
    if not all(is_unicode(str(message["content"])) for message in messages):
        raise TemplateError("the conversation is not Unicode")
    before = chat.prompt(messages[: turns[-1]])
    turn = chat.turn(str(messages[turns[-1]]["content"]), before)
    return written_episode(before + turn, [False] * len(before) + [True] * len(turn))


class RewardModelVerifier(Verifier):
    """The verdict of a reward model that `verigym reward-model` trained: how good it finds a conversation.

    `path` is its folder. The reward is the sigmoid of the score, from 0 to 1; `components` has the score itself.
    Scores have a zero but no absolute meaning: training puts it at the mean of the conversations it has seen, so
    the outcome, CORRECT above a reward of 0.5 and else WRONG, says "better than those", not "right". The task's
    target is not looked at, and no gold answer is promised anything. A conversation that the model's template
    cannot write, or longer than its context, is UNPARSEABLE with reward 0.

    All verifiers of one folder in a process share one loaded model. What `verify` is asked from many threads while
    the model is busy is its next batch, of at most `batch_size`; `verify_many` makes batches of its own. Scores
    differ in their last bits with the make-up of a batch: a run that must repeat to the bit sets `batch_size` 1.
    An error of the model is an INFRA_ERROR, and so is a call in a process that was forked after the verifier was
    made: make it in the process that uses it (a forked one computes with one thread).
    Raises ConfigError if there is no reward model in the folder.
    """

    def __init__(self, *, path: str, batch_size: int = 64, device: str = "auto") -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        if device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"device must be auto, cpu or cuda, not {device!r}")
        self.batch_size = batch_size
        self._scorer = _borrow((os.path.realpath(Path(path).expanduser()), resolve_device(device), batch_size))
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._waiting: set[Future[float | str]] = set()

    def verify(self, submission: Submission, task: Task) -> Verdict:
        refusal = self._refusal()
        if refusal:
            return refusal
        future = self._scorer.batcher.submit(_conversation(submission, task))
        with self._lock:
            self._waiting.add(future)
        if self._closed.is_set():  # `close` may have missed it
            settle(future, _Closed())
        try:
            with doing("reward model", self._scorer.key[0]):
                return _verdict(future.result())
        except Exception as error:  # whatever the model does wrong is ours, not the submission's
            return _broken(error)
        finally:
            with self._lock:
                self._waiting.discard(future)

    def verify_many(self, pairs: Sequence[tuple[Submission, Task]]) -> list[Verdict]:
        """The verdicts in order, in batches of `batch_size`, in the caller's thread."""
        refusal = self._refusal()
        if refusal:
            return [refusal] * len(pairs)
        conversations = [_conversation(submission, task) for submission, task in pairs]
        verdicts: list[Verdict] = []
        for start in range(0, len(conversations), self.batch_size):
            batch = conversations[start : start + self.batch_size]
            try:
                verdicts += map(_verdict, self._scorer.score(batch))
            except Exception as error:  # as in `verify`
                verdicts += [_broken(error)] * len(batch)
        return verdicts

    def golds(self, task: Task) -> list[str]:
        """None: no text is certain of a high score."""
        return []

    def close(self) -> None:
        with self._lock:
            first, waiting = not self._closed.is_set(), list(self._waiting)
            self._closed.set()
        for future in waiting:
            settle(future, _Closed())
        if first:
            _give_back(self._scorer)

    def _refusal(self) -> Verdict | None:
        if self._scorer.process != os.getpid():
            return Verdict.infra_error("the reward model was loaded before this process was forked; make it in here")
        return _broken(_Closed()) if self._closed.is_set() else None


class _Closed(Exception):  # noqa: N818 - control flow: it ends a wait
    """The verifier was closed."""

    def __str__(self) -> str:
        return "the verifier was closed"


class _Scorer:
    """A loaded reward model and the thread that feeds it."""

    def __init__(self, key: tuple[str, str, int]) -> None:
        path, device, batch_size = key
        self.key, self.users, self.process = key, 0, os.getpid()
        _, self._chat = load_chat(path)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self._model = load_scalar_model(path, dtype=dtype, device=device)
        check_packing(self._model.trunk)
        self._context = int(self._model.trunk.config.get_text_config().max_position_embeddings)
        self._lock = threading.Lock()  # a chat keeps what it has found out, and is no thing for many threads
        self.batcher: Batcher[Sequence[Message], float | str] = Batcher(self.score, batch_size)

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float | str]:
        """The score of each, or why it has none."""
        with self._lock:
            read = [self._read(messages) for messages in conversations]
            episodes = [found for found in read if isinstance(found, Episode)]
            scores = iter(score(self._model, episodes, _TOKENS_PER_FORWARD).tolist())
        return [found if isinstance(found, str) else next(scores) for found in read]

    def _read(self, messages: Sequence[Message]) -> Episode | str:
        try:
            found = read_conversation(self._chat, messages)
        except TemplateError as error:
            return str(error)
        length = len(found.token_ids)
        if length > self._context:
            return f"the conversation has {length} tokens; the reward model reads {self._context}"
        return found


_scorers: dict[tuple[str, str, int], _Scorer] = {}
_lock = threading.Lock()


def _borrow(key: tuple[str, str, int]) -> _Scorer:
    with _lock:
        if key not in _scorers:
            _scorers[key] = _Scorer(key)
        _scorers[key].users += 1
        return _scorers[key]


def _give_back(scorer: _Scorer) -> None:
    with _lock:
        scorer.users -= 1
        if scorer.users == 0 and _scorers.get(scorer.key) is scorer:
            del _scorers[scorer.key]
            scorer.batcher.close()


def _forget() -> None:
    """In a forked process: the threads, and whoever held the lock, stayed behind; so did OpenMP's threads.

    With several threads torch would wait for those of the parent, for ever.
    """
    global _lock
    _lock = threading.Lock()
    _scorers.clear()
    torch.set_num_threads(1)


os.register_at_fork(after_in_child=_forget)


def _conversation(submission: Submission, task: Task) -> Sequence[Message]:
    """The messages; of a text that came without any, the task's prompt and the text."""
    if any(message["role"] == "assistant" for message in submission.messages):
        return submission.messages
    before = submission.messages or [{"role": "user", "content": task.prompt}]
    return [*before, {"role": "assistant", "content": submission.text}]


def _verdict(found: float | str) -> Verdict:
    if isinstance(found, str):
        return Verdict(0.0, Outcome.UNPARSEABLE, f"the reward model cannot read it: {found}")
    if not math.isfinite(found):
        return Verdict.infra_error(f"the reward model's score is {found}")
    reward = 1 / (1 + math.exp(-found)) if found > -700 else 0.0
    outcome = Outcome.CORRECT if reward > 0.5 else Outcome.WRONG
    return Verdict(reward, outcome, f"the reward model's score is {found:.3g}", {"score": found})


def _broken(error: Exception) -> Verdict:
    text = " ".join(str(error).split())[:300]
    reason = text if isinstance(error, _Closed) else f"the reward model failed: {type(error).__name__}: {text}"
    return Verdict.infra_error(reason)
