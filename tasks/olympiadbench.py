r"""OlympiadBench: open-ended olympiad mathematics in English, text only (He et al., arXiv:2402.14008).

A row (the fourth of the even half):

    {"id": 2444, "subfield": "Algebra", "context": null, "question": "Alice takes ...", "final_answer": ["8"],
     "answer_type": "Numerical", "is_multiple_answer": false, "unit": "min", "error": null}

The prompt is the context, if there is one, and the question; the target is "8"; a correct answer is `\boxed{8}`.
Several answers that are all asked for are one target, a list such as "1,3"; several of which any will do are a tuple
of targets. `error` is the absolute tolerance, kept as `metadata["tolerance"]`.
Its only split is test (674 rows). Public home: `Hothan/OlympiadBench`, configuration `OE_TO_maths_en_COMP`, where
the split is called train.
"""

import math
import os
from types import MappingProxyType
from typing import Any

from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet


def load(split: str = "test", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def _to_task(row: Row, default_id: str) -> Task:
    parts = [row.values.get("context"), row.text("question")]
    prompt = "\n\n".join(str(part).strip() for part in parts if part)
    return Task(row.id("id", default=default_id), prompt, _target(row), MappingProxyType(_metadata(row)))


def _target(row: Row) -> str | tuple[str, ...]:
    answers = row.values.get("final_answer")
    answers = [answers] if isinstance(answers, str) else answers
    if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
        raise row.error("the field 'final_answer' must be a text or a list of texts")
    if len(answers) == 1:
        return str(answers[0])
    if row.values.get("is_multiple_answer"):
        return ", ".join(answers)
    return tuple(answers)


def _metadata(row: Row) -> dict[str, Any]:
    """Subfield, kind of answer, unit and tolerance, each only where the row tells it."""
    metadata = {name: row.values.get(name) for name in ("subfield", "answer_type", "unit")}
    if row.values.get("error"):
        metadata["tolerance"] = _tolerance(row)
    return {name: value for name, value in metadata.items() if value}


def _tolerance(row: Row) -> float:
    """The largest tolerance that the row names: "1e-1", or one for each of its answers."""
    try:
        tolerances = [float(part) for part in str(row.values["error"]).split(",")]
    except ValueError:
        tolerances = [math.nan]
    if not all(0 <= tolerance < math.inf for tolerance in tolerances):
        raise row.error(f"the field 'error' must be a number from 0 on, or null, not {row.values['error']!r}")
    return max(tolerances)


_DATA_SET = DataSet(
    "olympiadbench", ("test",), "Hothan/OlympiadBench", "OE_TO_maths_en_COMP", _to_task, {"test": "train"}
)
