"""What is asked: tasks, task sets, and the loaders and generators that make them."""

from verigym.tasks.load import load, options, register, registered
from verigym.tasks.task import GeneratedTaskSet, Task, TaskSet

__all__ = ["GeneratedTaskSet", "Task", "TaskSet", "load", "options", "register", "registered"]
