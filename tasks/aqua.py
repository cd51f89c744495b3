r"""AQuA-RAT: algebraic word problems with five options each (Ling et al., arXiv:1705.04146).

A row (dev, the second):

    {"question": "A ship is leaving a port. It takes 240 seconds to passes through a 750m channel to get to the port
     gates, and takes 60 seconds to pass through the gates of the port. What is its length?",
     "options": ["A)100 m", "B)150 m", "C)200 m", "D)250 m", "E)300 m"],
     "rationale": "Let the length of the ship be x metres ... Answer D", "correct": "D"}

The prompt is the question and, a line each, its options; the target is "D"; `metadata["options"]` has the options'
texts in order. A correct answer is `\boxed{D}` or `\boxed{250 m}`.
Splits: train (97,467 rows), validation (254, named dev in the original) and test (254).
Public home: `deepmind/aqua_rat`, configuration `raw`.
"""

import os
import re
from types import MappingProxyType

from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet

_LETTERED = re.compile(r"\s*\(?([A-Z])\s*[).:]\s*(.*)", re.DOTALL)


def load(split: str = "train", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks of one split; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    options = _options(row)
    correct = row.text("correct").strip().upper()
    letters = [chr(ord("A") + index) for index in range(len(options))]
    if correct not in letters:
        raise row.error(f"the field 'correct' must be one of {', '.join(letters)}, not {correct[:20]!r}")
    lines = [f"{letter}) {option}" for letter, option in zip(letters, options, strict=True)]
    prompt = "\n".join([row.text("question").strip(), *lines])
    return Task(row.id("id", default=default_id), prompt, correct, MappingProxyType({"options": options}))


def _options(row: Row) -> tuple[str, ...]:
    """The options' texts, without their letters: all of them have one, or none has."""
    options = row.values.get("options")
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(option, str) for option in options):
        raise row.error("the field 'options' must be a list of at least two texts")
    found = [_LETTERED.fullmatch(option) for option in options]
    if not any(found):
        return tuple(option.strip() for option in options)
    for index, match in enumerate(found):
        if match is None or match[1] != chr(ord("A") + index):
            raise row.error(
                f"option {index + 1} must begin with '{chr(ord('A') + index)})', not {options[index][:20]!r}"
            )
    return tuple(match[2].strip() for match in found if match)


_DATA_SET = DataSet("aqua", ("train", "validation", "test"), "deepmind/aqua_rat", "raw", _to_task)
