"""Environments in the form in which the Environments Hub has them, for the tests: `load_environment` of each kind."""

import random
from typing import Any

from datasets import Dataset

import verifiers as vf


def rows(count: int, first: int = 0) -> Dataset:
    return Dataset.from_list(
        [
            {"question": f"What is {n} + {n}?", "answer": str(2 * n), "info": {"n": n}}
            for n in range(first, first + count)
        ]
    )


async def right(completion: Any, answer: str, **kwargs: Any) -> float:
    return float(completion[-1]["content"].strip() == answer)


def parsed(parser: Any, completion: Any, answer: str) -> float:
    return float(parser.parse_answer(completion) == answer)


def short(completion: Any) -> float:
    return float(len(completion[-1]["content"]) < 10)


def double(number: int) -> int:
    """Double a number.

    Args:
        number: The number to double.
    """
    if number < 0:
        raise ValueError("negative")
    return 2 * number


class Guess(vf.MultiTurnEnv):
    """The agent guesses a number that is drawn at the start, and is told higher or lower."""

    async def setup_state(self, state: Any) -> Any:
        state["drawn"] = random.randint(1, 100)
        return state

    @vf.stop
    async def found(self, state: Any) -> bool:
        return state.get("found", False)

    async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
        guess = int(messages[-1]["content"])
        if guess == state["drawn"]:
            state["found"] = True
            state["final_env_response"] = [{"role": "user", "content": "Yes."}]
            return state["final_env_response"]
        return [{"role": "user", "content": "Higher." if guess < state["drawn"] else "Lower."}]


async def was_found(state: Any) -> float:
    return float(state.get("found", False))


class Rewrites(Guess):
    async def get_prompt_messages(self, state: Any) -> Any:
        messages = await super().get_prompt_messages(state)
        return messages if len(messages) < 3 else messages[-1:]


def breaks(completion: Any, **kwargs: Any) -> float:
    raise KeyError("no such judge")


def as_said(completion: Any, **kwargs: Any) -> float:
    return float(completion[-1]["content"])


async def of_the_group(completions: Any, **kwargs: Any) -> list[float]:
    return [0.0 for _ in completions]


def load_environment(kind: str = "single", weights: list[float] | None = None) -> vf.Environment:
    data = {"dataset": rows(6), "eval_dataset": rows(3, first=50)}
    rubric = vf.Rubric(funcs=[right, short], weights=weights or [1.0, 0.0])
    if kind == "single":
        return vf.SingleTurnEnv(rubric=rubric, system_prompt="Answer with the number.", **data)
    if kind == "empty":
        return vf.SingleTurnEnv(rubric=rubric, dataset=rows(1).select([]))
    if kind == "thinks":
        parser = vf.ThinkParser()
        rubric = vf.Rubric(funcs=[parsed, parser.get_format_reward_func()], weights=[1.0, 0.5], parser=parser)
        return vf.SingleTurnEnv(parser=parser, rubric=rubric, **data)
    if kind == "completes":
        prompts = Dataset.from_list([{"prompt": "Twice 1 is", "answer": "2"}])
        return vf.SingleTurnEnv(message_type="completion", rubric=rubric, dataset=prompts)
    if kind == "tools":
        return vf.ToolEnv(tools=[double], max_turns=4, rubric=rubric, **data)
    if kind in ("guess", "rewrites"):
        made = Guess if kind == "guess" else Rewrites
        return made(max_turns=10, rubric=vf.Rubric(funcs=[was_found]), **data)
    funcs = {"breaks": breaks, "as_said": as_said, "group": of_the_group}
    return vf.SingleTurnEnv(rubric=vf.Rubric(funcs=[funcs[kind]]), **data)
