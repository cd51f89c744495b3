"""What is asked: tasks, task sets, and the loaders and generators that make them."""

from verigym.tasks._generate import generator, make_set, split_by
from verigym.tasks.load import load, options, register, registered
from verigym.tasks.task import GeneratedTaskSet, Task, TaskSet

__all__ = [
    "GeneratedTaskSet",
    "Task",
    "TaskSet",
    "generator",
    "load",
    "make_set",
    "options",
    "register",
    "registered",
    "split_by",
]
