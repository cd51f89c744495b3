"""What an episode with a customer of tau-bench earns: golds all, golds that were changed nothing."""

import copy
import json
import pickle
from functools import cache
from pathlib import Path

import gymnasium as gym
import pytest

from verigym import tasks, verifiers
from verigym.envs.validation import mean_reward
from verigym.tasks import Task
from verigym.tasks.canonical import parse_turn, render_call
from verigym.tasks.errors import VerifierInputError
from verigym.tasks.tau import chance
from verigym.tasks.worlds import world_of
from verigym.tasks.worlds.customer import Customer
from verigym.verifiers import Outcome, Submission
from verigym.verifiers.service import problem_of_outputs

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
SETS = [("retail", "train", 500), ("retail", "dev", 20), ("retail", "test", 37), ("airline", "test", 19)]
each_set = pytest.mark.parametrize(("domain", "split", "count"), SETS)
SERVICE = verifiers.make("service")
READS = ("get_", "find_", "list_", "search_", "calculate", "think", "transfer_")


@cache
def load(domain, split):
    return tasks.load(f"tau_{domain}", split=split, source=str(DATA / "tau_bench"))


@cache
def make(domain, split):
    return gym.make(f"verigym/Tau{domain.title()}-v0", split=split, source=str(DATA / "tau_bench")).unwrapped


def calls_and_words(task):
    turns = task.target["turns"]
    calls = [call for turn in turns if not isinstance(turn, str) for call in turn]
    return calls, " ".join(turn for turn in turns if isinstance(turn, str))


def earned(task, calls, words):
    text = "".join(render_call(**call) for call in calls) + words
    return SERVICE.verify(Submission(text), task)


def changing(task):
    """The indices of the gold calls that change something."""
    world, found = world_of(task), []
    for index, call in enumerate(calls_and_words(task)[0]):
        world.call(**call)
        if world.events[-1].touched:
            found.append(index)
    return found


def test_nothing_is_run_after_a_user_was_handed_over():
    env = make("retail", "test")
    env.reset(seed=0)
    transfer, thought = (
        render_call(*call) for call in (("transfer_to_human_agents", {"summary": ""}), ("think", {"thought": ""}))
    )
    *_, terminated, _, info = env.step(transfer + thought)
    assert terminated
    told = [message["content"] for message in info["messages"] if message["role"] == "tool"]
    assert told == ["Transfer successful", "error: not run, as think was called after the end"]


@each_set
def test_gold_episodes_earn_1_in_the_environment(domain, split, count):
    env = make(domain, split)
    assert len(env.tasks) == count
    for task in env.tasks:
        env.reset(seed=0, options={"task": task.id})
        for turn in env.gold_episodes(task)[0]:
            *_, terminated, truncated, info = env.step(turn)
        assert (terminated, truncated, info["verdict"].reward) == (True, False, 1.0), (task.id, info)


@each_set
def test_a_gold_episode_without_one_of_its_changes_earns_0(domain, split, count):
    earning = []
    for task in load(domain, split):
        calls, words = calls_and_words(task)
        for index in changing(task):
            if earned(task, calls[:index] + calls[index + 1 :], words).reward:
                earning.append((task.id, calls[index]["name"]))
    # the address that is changed first is changed back at the end: who leaves it out ends in the same place
    undone = [("retail-test-22", "modify_user_address")] if split == "test" else []
    assert [found for found in earning if found not in undone] == []
    assert all(found in earning for found in undone if domain == "retail")


@each_set
def test_a_gold_episode_with_another_value_in_a_change_earns_0(domain, split, count):
    for task in load(domain, split):
        calls, words = calls_and_words(task)
        for index in changing(task)[-1:]:
            for name, value in calls[index]["arguments"].items():
                changed = copy.deepcopy(calls)
                changed[index]["arguments"][name] = other(value)
                if changed[index]["arguments"][name] != value:
                    verdict = earned(task, changed, words)
                    assert verdict.reward == 0, (task.id, name, value)
                    assert verdict.outcome is Outcome.WRONG


def other(value):
    """Another value of the same kind, for ids of items and enumerations one that exists."""
    swapped = {"no longer needed": "ordered by mistake", "ordered by mistake": "no longer needed", "yes": "no"}
    if isinstance(value, str):
        return swapped.get(value, f"{value}0")
    if isinstance(value, list):
        return value[:-1]
    return value + 1


@each_set
def test_a_gold_episode_with_one_more_change_earns_0_even_if_it_is_undone(domain, split, count):
    for task in load(domain, split):
        calls, words = calls_and_words(task)
        user_id = list(task.metadata["state"]["users"])[-1]  # of whom no task speaks
        if domain == "airline":
            more = [{"name": "send_certificate", "arguments": {"user_id": user_id, "amount": 100}}]
        else:
            address = task.metadata["state"]["users"][user_id]["address"]
            more = [{"name": "modify_user_address", "arguments": {"user_id": user_id, **address, "zip": zip_code}}
                    for zip_code in ("00000", address["zip"])]  # fmt: skip
        verdict = earned(task, [*more, *calls], words)
        assert verdict.reward == 0
        assert verdict.components["log"] == 0
        assert "changed what nobody asked it to" in verdict.reason


@each_set
def test_what_is_owed_must_be_said(domain, split, count):
    for task in load(domain, split):
        said = earned(task, calls_and_words(task)[0], "It is done.")
        assert said.reward == ("outputs" not in task.target and "closing" not in task.target), task.id


@pytest.mark.parametrize(("domain", "split", "count"), SETS[2:])
def test_who_does_nothing_or_always_the_same_earns_at_most_the_chance(domain, split, count):
    env = make(domain, split)
    transfer = render_call("transfer_to_human_agents", {"summary": ""})
    always = ["", "[changes: none]", "I am done.", transfer, "[changes: none]" + transfer]
    always += [" ".join(map(str, range(200))), " ".join(map(str, range(20)))]
    earning = {turn: mean_reward(env, lambda rng, seen, info, turn=turn: turn, env.tasks) for turn in always}
    assert max(earning.values()) == 0, earning
    assert 0 < chance(env.tasks) < 0.5


def test_who_refuses_everybody_after_a_look_earns_the_chance():
    env = make("airline", "test")
    total = 0.0
    for task in env.tasks:
        user_id = task.target["known"][0][1] if "known" in task.target else "x"
        total += earned(task, [{"name": "get_user_details", "arguments": {"user_id": user_id}}],
                        "[changes: none]").reward  # fmt: skip
    assert total / len(env.tasks) == pytest.approx(chance(env.tasks))


def test_a_closing_that_is_not_so_earns_0():
    task = next(task for task in load("retail", "train") if changing(task))
    calls, words = calls_and_words(task)
    assert earned(task, calls, f"{words} [Changes: none]").components["closed"] == 0
    env = make("retail", "train")
    env.reset(seed=0, options={"task": task.id})
    for turn in ["[changes: none] Is that right?", *env.gold_episodes(task)[0]]:
        *_, info = env.step(turn)
    assert info["verdict"].reward == 1  # it was so when it was said
    task = load("airline", "test").get("airline-test-49")
    calls, words = calls_and_words(task)
    assert earned(task, calls, words).reward == 1
    assert earned(task, calls, words.replace("none", "two")).reward == 0
    handed_over = {"name": "transfer_to_human_agents", "arguments": {"summary": ""}}
    assert earned(task, [*calls, handed_over], words).components["human"] == 0
    assert earned(task, [], words).components["known"] == 0


def test_a_user_is_handed_over_where_the_gold_does_so():
    task = load("retail", "test").get("retail-test-50")
    calls, words = calls_and_words(task)
    assert earned(task, calls, words).reward == 1
    assert earned(task, calls[:-1], words).components["human"] == 0
    assert earned(task, calls[-1:], words).components["known"] == 0


def test_an_answer_is_looked_up_and_not_guessed():
    task = load("retail", "test").get("retail-test-24")  # of what T-shirts are made; nothing is to be changed
    calls, words = calls_and_words(task)
    assert earned(task, calls, words).reward == 1
    guessed = earned(task, [], "Cotton, polyester, wool or leather.")
    assert (guessed.reward, guessed.components["told"], guessed.components["known"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("output", "said", "told"),
    [
        ("54.04", "You get $54.04.", True),
        ("54.04", "You get $54.040, that is all", True),
        ("54.04", "You get 154.04 or 54.041 or 54.0.4 or 54.04.1", False),
        ("1939.05", "In total $1,939.05!", True),
        ("1939.05", "In total 19,39.05", False),
        ("625.60", "It is 625.6 dollars", True),
        ("10", "There are 10 options.", True),
        ("10", "There are 10.00 options", True),
        ("10", "10. a blue one\n  11) a red one", False),
        ("10", "There are 100, 10.5, 1,010, #W10, A10 and -10", False),
        ("-16.63", "the difference is -16.63", True),
        ("polyester", "One is cotton, one is **Polyester**.", True),
        ("polyester", "polyesters", False),
        ("943 Maple Drive", "sent to 943 Maple\nDrive, Suite 356", True),
        ("943 Maple Drive", "943 Maple Road, 1 Maple Drive", False),
        ("64GB", "It has 64 GB.", True),
        ("64GB", "It has 64GB.", True),
        ("64GB", "It has 164GB or 64GBit", False),
        ("IL", "Chicago, IL 60621", True),
        ("IL", "will", False),
        ("286422338955", "Tracking number: 286422338955", True),
        ("credit_card_12", "by credit_card_12.", True),
        ("credit_card_12", "by credit_card_123", False),
        ("a.b@c.com", "write to a.b@c.com!", True),
    ],
)
def test_an_output_is_told_by_whole_words_and_by_value(output, said, told):
    assert (problem_of_outputs([said], [output]) == "") is told


def test_who_tells_everything_has_told_nothing():
    spray = " ".join(map(str, range(1, 22)))
    assert problem_of_outputs([spray], ["10"]) == "1 of 1 facts that the user asked for were not told"
    assert problem_of_outputs([spray, "It is 10."], ["10"]) == ""
    assert problem_of_outputs(["a," + ",a,".join(map(str, range(1, 30)))], ["10"]) != ""
    assert problem_of_outputs([",".join(map(str, range(1, 30)))], ["10"]) != ""
    many = [" ".join(map(str, range(start, start + 20))) for start in range(0, 120, 20)]
    assert problem_of_outputs(many, ["10"]) == "the user was told 120 numbers, so none was an answer"
    words = " ".join(f"w{letter}{other}" for letter in "abcdefghijklmn" for other in "abcdefghijklmnop")
    assert problem_of_outputs([f"{words} cotton"], ["cotton"]) != ""
    ids = " ".join(f"#W{number} {number}{number}" for number in range(1000, 1060))
    assert problem_of_outputs([f"{ids} 10"], ["10"]) == ""


def test_what_is_told_beside_a_call_or_thought_is_not_heard():
    task = load("retail", "test").get("retail-test-21")
    calls, _ = calls_and_words(task)
    env = make("retail", "test")

    def play(*last):
        env.reset(seed=0, options={"task": task.id})
        for turn in [*(render_call(**call) for call in calls), *last]:
            *_, terminated, _, info = env.step(turn)
            if terminated:
                return info["verdict"].reward

    offer = "Is there anything else?"
    assert play(f"Your balance is $44.08. {offer}", offer) == 1
    assert play(f"<think>$44.08</think> {offer}", offer, offer) == 0
    assert play("$44.08" + render_call("think", {"thought": ""}), offer, offer) == 0


def test_the_data_base_is_shared_never_written_and_never_copied():
    one, other = make("retail", "train"), gym.make("verigym/TauRetail-v0", source=str(DATA / "tau_bench")).unwrapped
    state = one.tasks[0].metadata["state"]
    assert all(task.metadata["state"] is state for task in [*one.tasks, *other.tasks])
    before = json.dumps(state)
    task = next(task for task in one.tasks if changing(task))
    for env in (one, other):
        env.reset(seed=0, options={"task": task.id})
    one.step(one.gold_episodes(task)[0][0])
    call = render_call("get_order_details", {"order_id": task.target["turns"][0][0]["arguments"]["order_id"]})
    assert one.step(call)[0] != other.step(call)[0]
    assert json.dumps(state) == before
    assert copy.deepcopy(task).metadata["state"] is state
    assert pickle.loads(pickle.dumps(task)).metadata["state"] is state
    assert len(pickle.dumps(task)) < 20_000


def test_a_task_without_a_gold_episode_or_a_world_is_refused():
    task = load("retail", "dev")[0]
    for broken in (Task("x", "", {"turns": [[{"call": 1}]]}, task.metadata), Task("x", "", task.target, {})):
        with pytest.raises(VerifierInputError, match="task x "):
            SERVICE.verify(Submission("done"), broken)


def test_a_turn_of_the_gold_has_one_call_as_the_policy_asks():
    for domain, split, _ in SETS:
        for turn in (turn for task in load(domain, split) for turn in make(domain, split).gold_episodes(task)[0]):
            parsed = parse_turn(turn)
            assert len(parsed.calls) + bool(parsed.content) == 1


HOSTILE = [
    "x" + "?" * 200_000 + "a",
    "1,111" * 60_000 + "a",
    "1," * 100_000,
    "0." + "0" * 200_000 + "a",
    "[changes: " * 20_000,
    "[" + " " * 200_000,
    "\n" * 200_000,
    "please " * 30_000,
    "I need " * 30_000,
    "a.b" * 70_000,
]


def test_a_hostile_message_takes_time_in_proportion_to_its_length():
    """Quadratic time would be many minutes."""
    task = load("airline", "test").get("airline-test-8")
    for text in HOSTILE:
        assert SERVICE.verify(Submission(text), task).reward == 0.0
        assert Customer(task.metadata["user"]).reply(text)[0]
