"""What every registered environment keeps to, by the checker; and what of it is particular to ours."""

from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import pytest

from verigym.envs import registered_ids
from verigym.envs.conformance import check
from verigym.envs.validation import PLAYED, validate
from verigym.tasks.errors import VerigymError
from verigym.tasks.worlds.bfcl import APIS
from verigym.tasks.worlds.tau import Airline, Retail

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
NEEDS_REASONING_GYM = pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed: pip install 'verigym[reasoning-gym]'"
)
CODE_ROWS = Path(__file__).with_name("code_rows")  # made up, in the shape of the data sets
CALCULATOR = "verigym/Calculator-v0"
TOOLS = {
    CALCULATOR: ["calculator"],
    "verigym/PythonTool-v0": ["python"],
    "verigym/Desk-v0": ["find_order", "cancel_order"],
    "verigym/BFCL-v0": ["find_card_in_deck"],  # the task's own
    "verigym/BFCLMultiTurn-v0": [*APIS["TravelAPI"].tools(), *APIS["MessageAPI"].tools()],  # the task's own, too
    "verigym/TauRetail-v0": list(Retail.tools()),
    "verigym/TauAirline-v0": list(Airline.tools()),
}
POLICIES = ("verigym/TauRetail-v0", "verigym/TauAirline-v0")  # whose tasks have one, for a system's message

# What an id needs beside itself: keyword arguments; a source is a file or folder of the real data.
ARGUMENTS = {
    "verigym/GSM8K-v0": {"source": "gsm8k"},
    "verigym/MATH500-v0": {"source": "math500"},
    "verigym/MATH-v0": {"source": "math_hendrycks"},
    "verigym/SVAMP-v0": {"source": "svamp"},
    "verigym/GSMHard-v0": {"source": "gsm_hard"},
    "verigym/AQuA-v0": {"source": "aqua/dev.jsonl"},
    "verigym/OlympiadBench-v0": {"source": "olympiadbench_oe_to_maths_en"},
    "verigym/CollegeMath-v0": {"source": "college_math_ccby"},
    "verigym/HumanEval-v0": {"source": "humaneval/HumanEval_even.jsonl"},
    "verigym/HumanEvalPlus-v0": {"source": "humanevalplus"},
    "verigym/MBPP-v0": {"source": "mbpp"},
    "verigym/MBPPSanitized-v0": {"source": "mbpp_sanitized"},
    "verigym/MBPPPlus-v0": {"source": "mbppplus"},
    "verigym/CodeContests-v0": {"source": CODE_ROWS / "code_contests.jsonl"},
    "verigym/LiveCodeBench-v0": {"source": CODE_ROWS / "livecodebench.jsonl"},
    "verigym/APPS-v0": {"source": CODE_ROWS / "apps.jsonl"},
    "verigym/BFCL-v0": {"source": "bfcl_v4"},
    "verigym/BFCLMultiTurn-v0": {"source": "bfcl_v4"},
    "verigym/TauRetail-v0": {"source": "tau_bench"},
    "verigym/TauAirline-v0": {"source": "tau_bench/airline"},
    "verigym/PythonTool-v0": {"source": "math_hendrycks"},
    "verigym/ReasoningGym-v0": {"dataset": "chain_sum"},
    "verigym/Custom-v0": {"source": "gsm_hard/gsmhard_first.jsonl", "prompt_field": "question"},
}


def arguments(env_id):
    """The keyword arguments with which an id is checked."""
    given = dict(ARGUMENTS.get(env_id, {}))
    return {**given, "source": str(DATA / given["source"])} if "source" in given else given


def make(env_id, **kwargs):
    return gym.make(env_id, **arguments(env_id), **kwargs)


def marks(env_id):
    if env_id == "verigym/ReasoningGym-v0":
        return NEEDS_REASONING_GYM
    return NEEDS_DATA if "source" in ARGUMENTS.get(env_id, {}) else ()


# Those of other packages name no golds and have test files of their own, to which OTHERS leads.
OTHERS = {"verigym/TextArena-v0": "textarena", "verigym/GEM-v0": "gem", "verigym/PrimeVerifiers-v0": "prime"}
# Other test files register ids of their own, broken ones among them.
OURS = [env_id for env_id in registered_ids() if env_id.startswith("verigym/") and env_id not in OTHERS]
each_id = pytest.mark.parametrize("env_id", [pytest.param(env_id, marks=marks(env_id)) for env_id in OURS])


@each_id
def test_each_environment_keeps_to_every_rule(env_id):
    try:
        found = check(env_id, **arguments(env_id))
    except VerigymError as error:
        pytest.fail(f"{env_id} cannot be made; what it needs stands in ARGUMENTS of this file: {error}")
    assert found.failures == ()
    assert found.unchecked == ()


# Verifying takes longer in a sandbox; the slow tier verifies the real sets as a whole.
SAMPLED = {
    "verigym/HumanEvalPlus-v0": 10,
    "verigym/MBPPPlus-v0": 20,
    "verigym/PythonTool-v0": 10,
    "verigym/TinyCode-v0": 100,
}


def test_the_environments_of_other_packages_have_test_files() -> None:
    assert all(Path(__file__).with_name(f"test_{name}.py").is_file() for name in OTHERS.values())


@each_id
def test_all_gold_answers_verify_and_null_policies_stay_below_chance(env_id):
    limit = SAMPLED.get(env_id)
    found = validate(make(env_id).unwrapped, limit=limit, played=limit or PLAYED)  # the checker looks at some hundred
    assert found.failures == ()
    assert found.golds == (limit or len(make(env_id).unwrapped.tasks))
    assert found.earning == [], dict(found.null_rewards)
    assert set(found.null_rewards) >= {"empty", "echo", "constant", "spray", "random"}


@each_id
def test_first_message_is_the_prompt_and_the_instructions(env_id):
    env = make(env_id)
    observation, info = env.reset(seed=2)
    assert set(info) == {"task_id", "tools", "messages"}
    assert env.unwrapped.tasks.get(info["task_id"]).prompt in observation
    assert env.unwrapped.instructions in observation
    assert [message["role"] for message in info["messages"]] == (["system", "user"] if env_id in POLICIES else ["user"])
    assert [tool["function"]["name"] for tool in info["tools"]] == TOOLS.get(env_id, [])


@each_id
def test_a_statistics_wrapper_records_the_reward_of_a_gold_answer(env_id):
    env = gym.wrappers.RecordEpisodeStatistics(make(env_id))
    _, info = env.reset(seed=4)
    gold = env.unwrapped.gold_episodes(env.unwrapped.tasks.get(info["task_id"]))[0]
    for turn in gold:
        *_, info = env.step(turn)
    assert (info["episode"]["r"], info["episode"]["l"]) == (1.0, len(gold))


@NEEDS_DATA
@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 660)])
def test_chance_of_gsm8k_is_what_the_most_common_answer_earns(split, count):
    env = make("verigym/GSM8K-v0", split=split).unwrapped
    answers = [task.target for task in env.tasks]
    share = max(map(answers.count, set(answers))) / len(answers)
    assert len(answers) == count
    assert share <= env.chance <= 0.04


@pytest.mark.parametrize("level", [1, 2, 3])
def test_chance_of_generated_tasks_follows_the_level(level):
    from verigym.tasks import arithmetic, calculator

    assert gym.make("verigym/Arithmetic-v0", level=level).unwrapped.chance == arithmetic.chance(level)
    assert gym.make(CALCULATOR, level=level).unwrapped.chance == calculator.chance(level)
