"""What a worker does for reasoning-gym: makes its tasks and asks its scorers, apart from the trainer's process.

Generators seed NumPy's global state, and some scorers evaluate the answer as Python. So none of it runs in the
process that asks, and what a scorer would evaluate is a literal or plain arithmetic, or is not shown to it.
Loaded by `_worker`; imports nothing of the package.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from dataclasses import fields
from functools import lru_cache
from typing import Any

ATTEMPTS = 64  # draws for a task of the split; one in five is test
CHUNK = 1000
# These scorers call eval or sympy's parse_expr, which evals, on the answer.
EVALUATE_LITERALS = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"}
EVALUATE_EXPRESSIONS = {
    "countdown",
    "puzzle24",
    "polynomial_multiplication",
    "simple_integration",
    "intermediate_integration",
}
PREGENERATED = {"acre", "gsm_symbolic", "list_functions"}  # as many as their size are drawn when the data set is made
FUNCTIONS = {"sin", "cos", "tan", "exp", "log", "ln", "sqrt", "asin", "acos", "atan", "sinh", "cosh", "tanh", "Abs"}
BEFORE, AFTER, NONSENSE = "the answer is ", " or so", "qq"
_FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "socket.", "ctypes.", "shutil.")


def load() -> Any:
    """The function of a request to a reply."""
    import reasoning_gym

    forbidden = [False]
    sys.addaudithook(lambda event, arguments: _refuse(event, arguments) if forbidden[0] else None)

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "describe":
            return _describe(reasoning_gym, request["dataset"], request["config"])
        if request["do"] == "make":
            return _make(request)
        dataset = _dataset(request["dataset"], json.dumps(request["config"], sort_keys=True), request["seed"])
        forbidden[0] = True
        try:
            return {"score": dataset.score(request["index"], request["answer"])}
        finally:
            forbidden[0] = False

    return answer


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event.startswith(_FORBIDDEN):
        raise PermissionError(f"a scorer may not do {event}")


def _describe(library: Any, name: str, config: dict[str, Any]) -> dict[str, Any]:
    """What is wrong with a data set's name or configuration; {} if nothing is."""
    known = library.factory.DATASETS
    if name not in known:
        return {"datasets": sorted(known)}
    names = [field.name for field in fields(known[name][1]) if field.name not in ("seed", "size")]
    if set(config) - set(names):
        return {"fields": names}
    try:
        library.create_dataset(name, seed=0, size=1, **config)
    except Exception as error:  # the data sets raise whatever they like, mostly AssertionError
        return {"problem": " ".join(str(error).split()) or type(error).__name__}
    return {}


def _make(request: dict[str, Any]) -> dict[str, Any]:
    """The first draw that belongs to the split: its index, question and answer; {} if there is none.

    A few generators fail on a few indices, or name an answer that their own scorer does not pay in full: those
    draws are passed over.
    """
    dataset = _dataset(request["dataset"], json.dumps(request["config"], sort_keys=True), request["seed"])
    problem: dict[str, Any] = {}
    for index in range(request["number"] * ATTEMPTS, (request["number"] + 1) * ATTEMPTS):
        try:
            entry = dataset.entry(index)
        except Exception as error:  # whatever a generator raises
            problem = {"failed": "generator", "error": repr(error)[:300]}
            continue
        gold = entry["answer"]
        if _split(entry["question"]) == request["split"] and (gold is None or dataset.score(index, str(gold)) >= 1):
            return {"index": index, "question": entry["question"], "answer": None if gold is None else str(gold)}
    return problem


def _split(question: str) -> str:
    number = int.from_bytes(hashlib.sha256(question.encode("utf-8", "replace")).digest()[:8], "big")
    return "test" if number % 5 == 0 else "train"


class _Dataset:
    """A data set of any length, and its scorer with what it pays for a substring taken away."""

    def __init__(self, name: str, config: dict[str, Any], seed: int) -> None:
        self.name, self.config, self.seed = name, config, seed
        self.part = lru_cache(maxsize=4)(self._part)
        self.entry = lru_cache(maxsize=256)(self._entry)
        self.pays = lru_cache(maxsize=256)(self._pays)

    def _part(self, number: int) -> Any:
        import reasoning_gym

        seed = (self.seed + number * CHUNK) % 2**31
        dataset = reasoning_gym.create_dataset(self.name, seed=seed, size=CHUNK, **self.config)
        if self.name in EVALUATE_LITERALS:
            sys.modules[type(dataset).__module__].eval = ast.literal_eval  # type: ignore[attr-defined]
        return dataset

    def _entry(self, index: int) -> dict[str, Any]:
        if self.name in PREGENERATED:
            number, index = divmod(index, CHUNK)
            return dict(self.part(number)[index])
        dataset = self.part(0)
        dataset.size = sys.maxsize  # an entry is a function of its index; the size only ends the iteration
        return dict(dataset[index])

    def score(self, index: int, answer: str) -> float:
        """What the scorer pays; what it pays for a gold answer among other words counts only in full."""
        gold = self.entry(index)["answer"]
        given = self._own(index, answer)
        if given <= 0:
            return 0.0
        anything, wrapped = self.pays(index)
        if anything >= 1:  # it pays for whatever it is shown
            return given if gold is not None and _plain(answer) == _plain(gold) else 0.0
        if wrapped >= 1 and not _alike(answer, str(gold)):
            return 0.0
        return given if given >= 1 or wrapped <= anything else 0.0

    def _pays(self, index: int) -> tuple[float, float]:
        """For nonsense, and for the gold answer in a sentence."""
        gold = self.entry(index)["answer"]
        anything = max(self._own(index, NONSENSE), self._own(index, BEFORE + NONSENSE))
        if gold is None:
            return anything, 0.0
        return anything, max(self._own(index, f"{BEFORE}{gold}"), self._own(index, f"{gold}{AFTER}"))

    def _own(self, index: int, answer: str) -> float:
        if self.name in EVALUATE_EXPRESSIONS and not _is_arithmetic(answer):
            return 0.0
        dataset, entry = self.part(0), self.entry(index)  # a failure here is ours, not the answer's
        try:
            return float(dataset.score_answer(answer, entry))
        except MemoryError:
            raise
        except Exception:  # a scorer that fails on a text does not pay for it
            return 0.0


@lru_cache(maxsize=8)
def _dataset(name: str, config: str, seed: int) -> _Dataset:
    return _Dataset(name, json.loads(config), seed)


def _plain(text: Any) -> str:
    return "".join(str(text).split()).casefold()


def _alike(answer: str, gold: str) -> bool:
    """Whether an answer is made of what the gold answer is made of, and is not the gold answer and more."""
    same = _plain(answer) == _plain(gold)
    return same or (set(answer) <= set(gold) | set(" \n") and _plain(gold) not in _plain(answer))


def _is_arithmetic(text: str) -> bool:
    """Whether a text is numbers, short names and known functions, with + - * / ** ^ between them."""
    if len(text) > 2000 or re.search(r"\d{40}|__|\*\*\s*\(?\s*\d{4}", text):
        return False
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_harmless(node) for node in ast.walk(tree))


def _is_harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float)
    if isinstance(node, ast.Name):
        return node.id in FUNCTIONS | {"pi", "E", "C"} or len(node.id) == 1
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and not node.keywords
    kinds = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop, ast.expr_context)
    refused = (ast.BitOr, ast.BitAnd, ast.LShift, ast.RShift, ast.MatMult, ast.Not, ast.Invert)
    return isinstance(node, kinds) and not isinstance(node, refused)
