"""The table of environment ids. Importing it registers them with Gymnasium and loads nothing heavy.

A package adds ids of its own by a plugin that calls `register`: see `tasks.plugins`.
"""

from typing import Any

import gymnasium as gym

from verigym.tasks.plugins import claim

BOXED = "Put your final answer in \\boxed{}."
CODE = "Put the complete Python code into one fenced block, which begins with a line ```python."
FUNCTION = f"Write the function in Python. {CODE}"
PROGRAM = f"Write a Python program that reads standard input and writes standard output. {CODE}"
CONTEST = f"Write what is asked for in Python: a program that reads standard input, or the class or function. {CODE}"
QUESTION = "verigym.envs.question:QuestionEnv"
WORLD = "verigym.envs.world:WorldEnv"
DESK = (
    "Act by calls; the user hears what you write without a call. When you are asked to tell the price of order N, say "
    "[price of order N: the price]. Of what cannot be done, such as to sing, say [sing: cannot]. Write nothing else in "
    "brackets, and ask for what you must know."
)
SERVICE = (
    "The user reads what you write in a turn without a call. Where you close without a change, without anything that "
    "you were asked to tell, and without handing over to a human, say [changes: none] to the user; else do not say it."
)

TURNS = (
    "Act by calls; the user hears only what you write without a call, and then goes on. Of what the user wants to know "
    'quote the whole result of the call that tells it, as [wc: {"count": 9, "type": "words"}], in each message anew, '
    "and quote nothing that no call gave. If you cannot do what is asked, as a function or a fact is missing, change "
    "nothing and say [cannot: what is missing]."
)

_IDS: list[str] = []


def register(env_id: str, *, entry_point: str = QUESTION, kwargs: dict[str, Any]) -> None:
    """Registers one id. `gym.make(id, **overrides)` replaces any of `kwargs`."""
    claim("environment", env_id, gym.registry)
    # PassiveEnvChecker would warn about every text space that is not its own Text; check_env covers it.
    gym.register(
        env_id,
        entry_point=entry_point,
        kwargs=kwargs,
        vector_entry_point=f"verigym.envs.vector:{env_id}",  # see its __getattr__
        disable_env_checker=True,
    )
    if env_id not in _IDS:
        _IDS.append(env_id)


def registered_ids() -> list[str]:
    """The ids that verigym and its plugins have registered."""
    return [env_id for env_id in _IDS if env_id in gym.registry]  # those of a plugin that failed are not


register(
    "verigym/GSM8K-v0",
    kwargs={
        "task_set": "gsm8k",
        "instructions": BOXED,
        "max_tokens_per_turn": 1024,
        "chance": 0.031,  # the most common answer: 210 of 7,473 in train (4), 20 of the first 660 in test (6, 10)
    },
)
register(
    "verigym/MATH500-v0",
    kwargs={
        "task_set": "math500",
        "split": "test",
        "instructions": BOXED,
        "max_tokens_per_turn": 4096,
        "chance": 0.042,  # the most common answer, 3: 10 of 242
    },
)
# The chance of a real set is the share of its most common answer, in the half of it that was at hand.
register(
    "verigym/MATH-v0",
    kwargs={"task_set": "math", "instructions": BOXED, "max_tokens_per_turn": 4096, "chance": 0.0281},
)
register(
    "verigym/SVAMP-v0",
    kwargs={"task_set": "svamp", "split": "test", "instructions": BOXED, "chance": 0.0861},
)
register(
    "verigym/GSMHard-v0",
    kwargs={"task_set": "gsm_hard", "split": "test", "instructions": BOXED, "chance": 0.0137},
)
register(
    "verigym/AQuA-v0",
    kwargs={
        "task_set": "aqua",
        "verifier": "choice",
        "instructions": "Put the letter of the right option in \\boxed{}.",
        "chance": 0.272,  # five options, but not equally often right: 69 of 254 are A
    },
)
register(
    "verigym/OlympiadBench-v0",
    kwargs={
        "task_set": "olympiadbench",
        "split": "test",
        "instructions": "Put your final answer in \\boxed{}; several answers go into one box, separated by commas.",
        "max_tokens_per_turn": 8192,
        "chance": 0.0344,
    },
)
register(
    "verigym/CollegeMath-v0",
    kwargs={
        "task_set": "college_math",
        "split": "test",
        "instructions": BOXED,
        "max_tokens_per_turn": 4096,
        "chance": 0.0129,
    },
)
register(
    "verigym/Countdown-v0",
    kwargs={"task_set": "countdown", "verifier": "countdown", "instructions": BOXED},
)
register(
    "verigym/ReasoningGym-v0",
    kwargs={
        "task_set": "reasoning_gym",
        "verifier": "reasoning_gym",
        "instructions": "Put your final answer between <answer> and </answer>.",
        "max_tokens_per_turn": 4096,
        "chance": "verigym.tasks.reasoning_gym:chance",
    },
)
for name, task_set, split, instructions, tokens in (
    ("HumanEval", "humaneval", "test", FUNCTION, 2048),
    ("HumanEvalPlus", "humanevalplus", "test", FUNCTION, 2048),
    ("MBPP", "mbpp", "train", FUNCTION, 2048),
    ("MBPPSanitized", "mbpp_sanitized", "train", FUNCTION, 2048),
    ("MBPPPlus", "mbppplus", "test", FUNCTION, 2048),
    ("CodeContests", "code_contests", "train", PROGRAM, 8192),
    ("LiveCodeBench", "livecodebench", "test", CONTEST, 8192),
    ("APPS", "apps", "train", CONTEST, 8192),
):
    register(
        f"verigym/{name}-v0",
        kwargs={
            "task_set": task_set,
            "split": split,
            "verifier": "code",
            "instructions": instructions,
            "feedback": "public",  # which takes max_turns of more than one
            "max_tokens_per_turn": tokens,
        },
    )
register(
    "verigym/TinyCode-v0",
    kwargs={
        "task_set": "tiny_code",
        "verifier": "code",
        "instructions": "Put it into one fenced block, which begins with a line ```python.",
        "feedback": "public",
        "chance": "verigym.tasks.tiny_code:chance",
        "demonstrate": "verigym.tasks.tiny_code:demonstrate",
        "max_tokens_per_turn": 256,
    },
)
register(
    "verigym/PythonTool-v0",
    kwargs={
        "task_set": "math",
        "instructions": f"You may run Python to work it out. {BOXED}",
        "tools": ("verigym.envs.python_tool:python_tool",),
        "chance": 0.0281,  # as MATH-v0
        "max_turns": 8,
        "max_tokens_per_turn": 2048,
    },
)
register(
    "verigym/BFCL-v0",
    entry_point="verigym.envs.calls:CallEnv",
    kwargs={
        "task_set": "bfcl",
        "split": "test",
        "instructions": "Call the functions that do what is asked, all in one turn. "
        "If none of them can do it, call none and answer \\boxed{no function}.",
        "chance": "verigym.tasks.bfcl:chance",
    },
)
register(
    "verigym/BFCLMultiTurn-v0",
    entry_point=WORLD,
    kwargs={
        "task_set": "bfcl_multi_turn",
        "split": "test",
        "verifier": "bfcl_turns",
        "instructions": TURNS,
        "max_turns": 100,
        "max_calls": 200,
        "max_reply": 20_000,
        "max_tokens_per_turn": 8192,
    },
)
register("verigym/Custom-v0", kwargs={"task_set": "custom", "instructions": BOXED})
register(
    "verigym/Arithmetic-v0",
    kwargs={
        "task_set": "arithmetic",
        "instructions": BOXED,
        "max_tokens_per_turn": 256,
        "chance": "verigym.tasks.arithmetic:chance",
    },
)
register(
    "verigym/Calculator-v0",
    kwargs={
        "task_set": "calculator",
        "instructions": BOXED,
        "tools": ("verigym.tasks.calculator:calculator",),
        "chance": "verigym.tasks.calculator:chance",
        "demonstrate": "verigym.tasks.calculator:demonstrate",
        "max_turns": 4,
        "max_tokens_per_turn": 256,
    },
)
register(
    "verigym/Desk-v0",
    entry_point=WORLD,
    kwargs={
        "task_set": "desk",
        "instructions": DESK,
        "chance": "verigym.tasks.desk:chance",
        "demonstrate": "verigym.tasks.desk:demonstrate",
        "max_turns": 16,
        "max_calls": 40,
        "max_tokens_per_turn": 512,
    },
)
for domain, split in (("Retail", "train"), ("Airline", "test")):
    register(
        f"verigym/Tau{domain}-v0",
        entry_point=WORLD,
        kwargs={
            "task_set": f"tau_{domain.lower()}",
            "split": split,
            "verifier": "service",
            "system_prompt": SERVICE,
            "chance": "verigym.tasks.tau:chance",
            "max_turns": 60,
            "max_reply": 100_000,  # what is cut cannot be acted on: searches for flights are long
            "max_tokens_per_turn": 2048,
        },
    )
# The environments of other packages, each given by its name there.
register("verigym/TextArena-v0", entry_point="verigym.envs.adapters.textarena:TextArenaEnv", kwargs={})
register("verigym/GEM-v0", entry_point="verigym.envs.adapters.gem:GEMEnv", kwargs={})
register("verigym/PrimeVerifiers-v0", entry_point="verigym.envs.adapters.prime:PrimeVerifiersEnv", kwargs={})
