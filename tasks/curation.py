"""Which tasks of a set repeat each other, and which of them are in an evaluation set.

Texts are compared as sequences of words and signs (as + and <), in lower case; white space, punctuation and brackets
are left out. MinHash (Broder 1997) finds candidates in a time that grows with the number of texts; a hit is then
decided by the exact Jaccard similarity of the sets of shingles (runs of 3 words), so that no hit is an estimate.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from verigym.tasks.errors import ConfigError
from verigym.tasks.task import Task

SHINGLE = 3  # words
NGRAM = 13  # words that two texts share by copying, as in the appendix of the GPT-3 paper (Brown et al. 2020)
NEAR = 0.8  # Jaccard similarity of texts that are near duplicates
_PERMUTATIONS = 256
_LENIENT = 0.75  # MinHash finds pairs of this share of the threshold, as it may underestimate
_WORD = re.compile(r"\w+|[^\w\s.,;:!?'\"`$()\[\]{}]")


@dataclass(frozen=True)
class Hit:
    """A task that is like another text, how it was found, and how like it is (1: the same words)."""

    task_id: str
    kind: str
    """"exact", "near" (shingles) or "ngram" (a run of words)."""
    other: str
    """The task that it is like: an id of the same set, or "name/split: id" of an evaluation set."""
    similarity: float
    """Jaccard similarity of the shingles; of an n-gram, the share of the other text's n-grams that the task has."""


def words_of(text: str) -> tuple[str, ...]:
    """The words and signs that texts are compared by."""
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def duplicates(tasks: Iterable[Task], *, near: float = NEAR) -> list[Hit]:
    """The tasks that repeat one before them, exactly or nearly, each with the one that it is most like.

    What is a duplicate itself is nobody's original.
    """
    originals, hits = _Texts(near), list[Hit]()
    for task in tasks:
        words = words_of(task.prompt)
        found = originals.like(task.id, words)
        if found:
            hits.append(found[0])
        else:
            originals.add(task.id, words)
    return hits


def contaminated(
    tasks: Iterable[Task], evaluations: Mapping[str, Sequence[Task]], *, near: float = NEAR, ngram: int = NGRAM
) -> list[Hit]:
    """All that the tasks share with evaluation sets, which are given by name.

    A task is hit by each text with the same words, by each whose shingles are similar, and by each of which it has a
    run of `ngram` words (texts with fewer words have none). Raises ConfigError for settings that cannot be.
    """
    if ngram < 2:
        raise ConfigError(f"an n-gram has at least 2 words, not {ngram}")
    texts, ngrams, hits = _Texts(near), _Ngrams(ngram), list[Hit]()
    for name, others in evaluations.items():
        for other in others:
            words = words_of(other.prompt)
            texts.add(f"{name}: {other.id}", words)
            ngrams.add(f"{name}: {other.id}", words)
    for task in tasks:
        words = words_of(task.prompt)
        like = texts.like(task.id, words)
        same = {hit.other for hit in like if hit.kind == "exact"}
        hits += [*like, *(hit for hit in ngrams.sharing(task.id, words) if hit.other not in same)]
    return hits


class _Texts:
    """Texts by name, to be asked for those that are like another."""

    def __init__(self, near: float) -> None:
        if not 0 < near <= 1:
            raise ConfigError(f"the similarity of near duplicates is above 0 and at most 1, not {near}")
        self._near, self._lsh = near, _lsh(near * _LENIENT)
        self._names: dict[tuple[str, ...], list[str]] = {}
        self._shingles: dict[tuple[str, ...], frozenset[tuple[str, ...]]] = {}

    def add(self, name: str, words: tuple[str, ...]) -> None:
        if words not in self._names:
            self._shingles[words] = _runs(words, SHINGLE)
            self._lsh.insert(words, _minhash(self._shingles[words]))
        self._names.setdefault(words, []).append(name)

    def like(self, task_id: str, words: tuple[str, ...]) -> list[Hit]:
        """The hits of a text, the most similar first."""
        hits = [Hit(task_id, "exact", name, 1.0) for name in self._names.get(words, ())]
        mine = _runs(words, SHINGLE)
        for others in self._lsh.query(_minhash(mine)):
            similarity = len(mine & self._shingles[others]) / len(mine | self._shingles[others])
            if others != words and similarity >= self._near:
                hits += [Hit(task_id, "near", name, similarity) for name in self._names[others]]
        return sorted(hits, key=lambda hit: (hit.kind, -hit.similarity, hit.other))


class _Ngrams:
    """Runs of words, by the names of the texts that they are in."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._names: dict[tuple[str, ...], list[str]] = {}
        self._count: dict[str, int] = {}

    def add(self, name: str, words: tuple[str, ...]) -> None:
        if len(words) >= self._length:
            runs = _runs(words, self._length)
            self._count[name] = len(runs)
            for run in runs:
                self._names.setdefault(run, []).append(name)

    def sharing(self, task_id: str, words: tuple[str, ...]) -> list[Hit]:
        """The hits of a text, in the order of names."""
        shared = Counter(name for run in _runs(words, self._length) for name in self._names.get(run, ()))
        return [Hit(task_id, "ngram", name, count / self._count[name]) for name, count in sorted(shared.items())]


def _runs(words: tuple[str, ...], length: int) -> frozenset[tuple[str, ...]]:
    """All runs of so many words; of a shorter text, the whole of it."""
    return frozenset(words[start : start + length] for start in range(max(1, len(words) - length + 1)))


def _lsh(threshold: float) -> Any:
    try:
        from datasketch import MinHashLSH
    except ImportError as error:
        raise ConfigError("near duplicates are found by datasketch: pip install 'verigym[curate]'") from error
    return MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS, weights=(0.1, 0.9))  # misses cost more than checks


def _minhash(shingles: frozenset[tuple[str, ...]]) -> Any:
    from datasketch import MinHash

    sketch = MinHash(num_perm=_PERMUTATIONS)
    sketch.update_batch([" ".join(words).encode("utf-8", "surrogatepass") for words in shingles])
    return sketch
