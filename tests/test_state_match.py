"""Episodes in a world are judged by their end, their log and what was told: golds pass, near misses fail."""

import copy

import gymnasium as gym
import pytest

from verigym import tasks, verifiers
from verigym.envs import WorldEnv
from verigym.tasks import Task, TaskSet
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import VerifierInputError
from verigym.tasks.worlds import Event, World, register
from verigym.verifiers import Outcome, Submission

STATE = {
    "orders": {
        "412": {"price": 30, "day": 12, "status": "open"},
        "598": {"price": 71, "day": 20, "status": "open"},
    },
    "people": {"Ana": {"room": 1}, "Bo": {"room": 2}},
    "calendar": {"Ana": {"day": 12, "hour": 9}},
}


def task(*turns, state=STATE, **target):
    """A task at the desk."""
    return Task("t", "?", {"turns": list(turns), **target}, {"world": "desk", "state": state})


def call(tool, /, **arguments):
    return {"name": tool, "arguments": arguments}


def judged(task, *turns):
    """The verdict on these turns, played in the environment."""
    env = WorldEnv(TaskSet([task], name="one", split="train"))
    env.reset()
    for turn in turns:
        text = turn if isinstance(turn, str) else "".join(render_call(**call) for call in turn)
        _, reward, terminated, _, info = env.step(text)
    assert terminated
    assert reward == info["verdict"].reward
    return info["verdict"]


CANCEL = task([call("cancel_order", order=412)], "Done.")
PRICE = task([call("find_order", order=412)], "[price of order 412: 30]", tell={"price of order 412": "30"})


def test_the_gold_episode_earns_one():
    assert judged(CANCEL, *CANCEL.target["turns"]).reward == 1.0
    verdict = judged(PRICE, *PRICE.target["turns"])
    assert (verdict.reward, verdict.outcome) == (1.0, Outcome.CORRECT)
    assert dict(verdict.components) == {"log": 1.0, "state": 1.0, "seen": 1.0, "told": 1.0}


def test_order_detours_and_failed_calls_do_not_count():
    both = task([call("cancel_order", order=412), call("move_order", order=598, day=9)], "Done.")
    assert (
        judged(both, [call("move_order", order=598, day=9)], [call("cancel_order", order=412)], "So be it.").reward
        == 1.0
    )
    detours = [call("find_order", order=598), call("find_meeting", person="Zoe"), call("cancel_order", order="412")]
    assert judged(CANCEL, detours, "<tool_call>{", [call("cancel_order", order=412)], "Done.").reward == 1.0


def test_a_wrong_end_of_the_world_earns_nothing():
    for turns in (
        ["Done."],
        [[call("cancel_order", order=598)], "Done."],
        [[call("cancel_order", order=412), call("cancel_order", order=598)], "Done."],
        [[call("move_order", order=412, day=9)], "Done."],
    ):
        verdict = judged(CANCEL, *turns)
        assert (verdict.reward, verdict.outcome) == (0.0, Outcome.WRONG), turns
        assert verdict.components["state"] == 0.0


def test_types_in_the_state_are_exact():
    moved = task([call("move_order", order=412, day=1)], "Done.")
    state = {"orders": {"412": {"price": 30, "day": 1, "status": "open"}}}
    events = (Event("move_order", {}, "done", False, (("orders", "412", "day"),)),)
    verifier = verifiers.make("state_match")
    for day in (1, 1.0, True, "1"):
        state["orders"]["412"]["day"] = day
        assert verifier.verify(Submission("", (), [state], events), moved).reward == float(type(day) is int)


def test_row_56_doing_nothing_where_a_message_was_owed_earns_nothing():
    for said in ("Done.", "", "It is 30.", "price of order 412: 30", "[30]"):
        verdict = judged(PRICE, said)
        assert (verdict.reward, dict(verdict.components)) == (0.0, {"log": 1.0, "state": 1.0, "seen": 1.0, "told": 0.0})
        assert verdict.reason == "1 of 1 fields that the user asked for were not told"


def test_row_57_a_side_effect_that_is_undone_earns_nothing():
    undone = [[call("move_order", order=598, day=9)], [call("move_order", order=598, day=20)]]
    verdict = judged(CANCEL, *undone, [call("cancel_order", order=412)], "Done.")
    assert (verdict.reward, dict(verdict.components)) == (0.0, {"log": 0.0, "state": 1.0, "seen": 1.0, "told": 1.0})
    assert verdict.reason == "the agent changed what nobody asked it to: day of 598 in orders"
    other_field = [[call("move_order", order=412, day=9)], [call("move_order", order=412, day=12)]]
    assert judged(CANCEL, *other_field, [call("cancel_order", order=412)], "Done.").components["log"] == 0.0
    came_and_went = [[call("add_meeting", person="Bo", day=9, hour=9)], [call("cancel_meeting", person="Bo")]]
    assert judged(CANCEL, *came_and_went, [call("cancel_order", order=412)], "Done.").components["log"] == 0.0
    went_and_came = [[call("cancel_meeting", person="Ana")], [call("add_meeting", person="Ana", day=12, hour=9)]]
    assert judged(CANCEL, *went_and_came, [call("cancel_order", order=412)], "Done.").components["log"] == 0.0


def test_row_58_telling_the_whole_database_earns_nothing():
    fields = {f"{what} of order {key}": record[what] for key, record in STATE["orders"].items() for what in record}
    for dump in (
        " ".join(f"[{name}: {value}]" for name, value in fields.items()),
        "[price of order 412: 30] [day of order 412: 12]",
        "[price of order 412: 30 12 open 71 20]",
        "[price of order 412: 30] [price of order 412: 71]",
        " ".join(f"[price of order 412: {number}]" for number in range(100)),
        str(STATE),
    ):
        assert judged(PRICE, dump).reward == 0.0, dump


@pytest.mark.parametrize(
    ("said", "reward"),
    [
        ("[price of order 412: 30]", 1.0),
        ("It is this: [The  Price of Order 412:30 ]. And [sic] (so) to say.", 1.0),
        ("[price of order 412: 30] I repeat: [price of order 412: 30]", 1.0),
        ("[price of order 412: 30.0]", 0.0),
        ("[price of order 412: 3]", 0.0),
        ("[price of order 412: 300]", 0.0),
        ("[price of order 413: 30]", 0.0),
        ("[price of order 412: ]", 0.0),
        ("<think>[price of order 412: 30]</think> Done.", 0.0),
        ("[price of order 412: 30", 0.0),
        ("[price of\norder 412: 30]", 0.0),
        ("[price of order 412: 30] [mood: good]", 0.0),
    ],
)
def test_what_is_told_is_told_in_exact_fields(said, reward):
    assert judged(PRICE, said).reward == reward
    assert verifiers.make("communication").verify(Submission(said), PRICE).reward == reward


def test_what_must_be_known_must_have_been_looked_at():
    known = task(*PRICE.target["turns"], tell=PRICE.target["tell"], seen=[["orders", "412"]])
    told = "[price of order 412: 30]"
    assert judged(known, [call("find_order", order=412)], told).reward == 1.0
    guessed = judged(known, [call("find_order", order=598)], told)
    assert (guessed.reward, guessed.components["seen"], guessed.components["told"]) == (0.0, 0.0, 1.0)
    sent = {"orders": {"412": {"price": 30, "day": 12, "status": "sent"}}}
    refused = task("[x: cannot]", tell={"x": "cannot"}, seen=[["orders", "412"]], state=sent)
    assert judged(refused, [call("cancel_order", order=412)], "[x: cannot]").reward == 1.0  # a look in vain
    assert judged(refused, "[x: cannot]").reward == 0.0


def test_what_stands_beside_or_in_a_call_is_not_told():
    told = "[price of order 412: 30]"
    assert judged(PRICE, told + render_call("find_order", {"order": 412}), "Done.").reward == 0.0
    assert judged(PRICE, render_call("find_order", {"order": told}), "Done.").reward == 0.0
    assert judged(CANCEL, [call("cancel_order", order=412)], told).reward == 0.0  # nobody asked


def test_new_records_match_in_any_order_of_creation():
    letters = [call("send_message", person=person, text=text) for person in ("Ana", "Bo") for text in ("a", "b")]
    sent = task(letters, "Done.")
    assert judged(sent, letters[::-1], "Done.").reward == 1.0
    assert judged(sent, letters[:3], "Done.").reward == 0.0
    assert judged(sent, [*letters, letters[0]], "Done.").reward == 0.0


def test_a_task_that_asks_for_nothing_or_has_no_gold_episode_is_refused():
    verifier = verifiers.make("state_match")
    for wrong in (
        task([call("find_order", order=412)], "Done."),
        task([call("cancel_order", order=999)], "Done."),
        task([call("no_such_tool")], "Done."),
        task(["cancel_order"], "Done."),
        task([call("cancel_order", order=412)], "Done.", seen=["order"]),
        task([call("cancel_order", order=412)], "Done.", "Anything else?"),  # after the user's last word
        task([call("cancel_order", order=412)]),  # and no message, so that the user never ends it
        task([call("cancel_order", order=412)], "Done.", tell={"price": 30}),
        Task("t", "?", "cancel it", CANCEL.metadata),
        Task("t", "?", CANCEL.target),
    ):
        with pytest.raises(VerifierInputError, match="task t"):
            verifier.verify(Submission(""), wrong)


def test_who_says_that_something_is_done_must_have_done_it():
    first, second = [call("move_order", order=412, day=9)], [call("move_order", order=412, day=10)]
    changed = task(first, "Done.", second, "Done.")
    changed.metadata["user"] = [{"says": "To day 9."}, {"says": "No, to day 10."}]
    assert judged(changed, first, "Done.", second, "Done.").reward == 1.0
    assert judged(changed, first, "Shall I go on?", "Done.", second, "Done.").reward == 1.0
    assert judged(changed, "Done.", second, "Done.").reward == 0.0
    assert judged(changed, "Done.", first, second, "Done.").reward == 0.0
    assert judged(changed, first, second, "Done.", "Done.").reward == 0.0


def test_a_text_alone_is_judged_by_the_calls_in_it():
    verifier = verifiers.make("state_match")
    right = render_call("cancel_order", {"order": 412})
    assert verifier.verify(Submission(f"{right} Done."), CANCEL).reward == 1.0
    assert verifier.verify(Submission(f"<think>{right}</think> Done."), CANCEL).reward == 0.0
    assert verifier.verify(Submission(f"{right} {render_call('cancel_order', {'order': 598})}"), CANCEL).reward == 0.0


def test_judging_leaves_task_and_submission_alone():
    before = copy.deepcopy((CANCEL.target, dict(CANCEL.metadata)))
    judged(CANCEL, *CANCEL.target["turns"])
    assert (CANCEL.target, dict(CANCEL.metadata)) == before


# The environment.


class Echo(World):
    def say(self, text: str, times: int = 1) -> str:
        """Say a text."""
        return text * times


register("echo", Echo)


def echo(**options):
    one = Task("t", "?", {"tell": {"x": "1"}}, {"world": "echo", "state": {}})
    env = WorldEnv(TaskSet([one], name="one", split="train"), **options)
    env.reset()
    return env


def test_several_calls_of_a_turn_are_answered_in_order_and_errors_last():
    env = echo()
    turn = render_call("say", {"text": "a"}) + "<tool_call>{" + "</tool_call>" + render_call("say", {"txt": "b"})
    messages = env.step(turn)[4]["messages"]
    assert [message["role"] for message in messages] == ["tool"] * 3
    assert messages[0]["content"] == "a"
    assert messages[1]["content"] == "error: no argument of say named 'txt'; did you mean 'text'?"
    assert messages[2]["content"].startswith("error: tool call not run: it is not valid JSON")


def test_calls_and_replies_have_budgets():
    env = echo(max_calls=2, max_reply=5)
    messages = env.step(render_call("say", {"text": "a", "times": 6}) + render_call("say", {"text": "b"}) * 2)[4][
        "messages"
    ]
    assert [message["content"] for message in messages] == [
        "aaaaa\n... (cut: 6 characters)",
        "b",
        "error: not run, as all 2 calls of this task are used up",
    ]


def test_the_end_by_a_budget_is_judged_as_it_stands():
    env = WorldEnv(TaskSet([CANCEL], name="one", split="train"), max_turns=1)
    env.reset()
    *_, truncated, info = env.step(render_call("cancel_order", {"order": 412}))
    assert truncated
    assert info["verdict"].reward == 1.0


# Desk, at each of its levels.

each_level = pytest.mark.parametrize("level", range(1, 6))


def played(env, task, turns):
    env.reset(options={"task": task.id})
    for turn in turns:
        text = turn if isinstance(turn, str) else "".join(render_call(**call) for call in turn)
        _, reward, terminated, truncated, _ = env.step(text)
        if terminated or truncated:
            return reward
    return env.step("Done.")[1]


def spoiled(task):
    """Gold episodes with one of the calls dropped or changed, or with another one that writes."""
    turns = task.target["turns"]
    calls = [(at, place) for at, turn in enumerate(turns) if not isinstance(turn, str) for place in range(len(turn))]
    for at, place in calls:
        yield with_turn(turns, at, turns[at][:place] + turns[at][place + 1 :])
        for argument, value in turns[at][place]["arguments"].items():
            other = value + 1 if isinstance(value, int) else f"{value}x"
            changed = call(turns[at][place]["name"], **{**turns[at][place]["arguments"], argument: other})
            yield with_turn(turns, at, [*turns[at][:place], changed, *turns[at][place + 1 :]])
    bystander = list(task.metadata["state"]["orders"])[-1]
    yield with_turn(turns, len(turns) - 1, [call("cancel_order", order=int(bystander))], turns[-1])


def with_turn(turns, at, *new):
    return [*turns[:at], *(turn for turn in new if turn), *turns[at + 1 :]]


@each_level
def test_golds_of_the_desk_earn_one_and_spoiled_ones_nothing(level):
    env, count = gym.make("verigym/Desk-v0", level=level).unwrapped, 0
    for task in tasks.load("desk", level=level, size=60):
        assert played(env, task, task.target["turns"]) == 1.0, task
        for turns in spoiled(task):
            count += 1
            assert played(env, task, turns) == 0.0, (task, turns)
    assert count >= 180
