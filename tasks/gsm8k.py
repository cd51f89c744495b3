"""GSM8K: grade-school word problems whose answer is one number (Cobbe et al., arXiv:2110.14168).

A row (train, the first):

    {"question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in
                  May. How many clips did Natalia sell altogether in April and May?",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\\nNatalia sold 48+24 = <<48+24=72>>72 clips
                altogether in April and May.\\n#### 72"}

The prompt is the question as it stands; the target is "72"; a correct answer is `\\boxed{72}`.
Splits: train (7,473 rows) and test (1,319 rows). Public home: `openai/gsm8k`, configuration `main`.
"""

import os
import re
from types import MappingProxyType

from verigym.tasks._rows import DataSet, Row
from verigym.tasks.task import Task, TaskSet


def load(split: str = "train", source: str | os.PathLike[str] | None = None) -> TaskSet:
    """The tasks of one split; see `tasks.load`."""
    return _DATA_SET.load(split, source)


def final_answer(solution: str) -> str:
    """The number after the last `####`, without `,`, `$` and spaces in it ("" if there is none)."""
    _, _, answer = solution.rpartition("####") if "####" in solution else ("", "", "")
    bare = " ".join(answer.replace(",", "").replace("$", "").split())
    return re.sub(r"(?<=[-\d]) (?=\d)", "", bare)


def _to_task(row: Row, default_id: str) -> Task:
    question, solution = row.text("question"), row.text("answer")
    target = final_answer(solution)
    if not target:
        raise row.error("the field 'answer' has no final answer after '####'")
    return Task(row.id("id", default=default_id), question, target, MappingProxyType({"solution": solution}))


_DATA_SET = DataSet("gsm8k", ("train", "test"), "openai/gsm8k", "main", _to_task)
