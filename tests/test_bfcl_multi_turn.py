"""BFCL's multi-turn tasks: golds of the real rows and what is near to them, what is owed, bad rows, null policies."""

import json
from collections import Counter
from copy import deepcopy
from functools import cache
from pathlib import Path

import gymnasium as gym
import pytest

from verigym import tasks, verifiers
from verigym.envs.conformance import check
from verigym.envs.validation import validate
from verigym.tasks.bfcl_multi_turn import CATEGORIES
from verigym.tasks.canonical import render_call
from verigym.tasks.errors import TaskDataError, UnknownNameError, VerifierInputError
from verigym.tasks.task import Task
from verigym.tasks.worlds import Scenario
from verigym.tasks.worlds.bfcl import ACTS
from verigym.verifiers import Submission

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "bfcl_v4"
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
ENV = "verigym/BFCLMultiTurn-v0"
each_category = pytest.mark.parametrize("category", CATEGORIES)

FILES = {"root": {"home": {"type": "directory", "contents": {
    "a.txt": {"type": "file", "content": "one two"},
    "box": {"type": "directory", "contents": {}},
}}}}  # fmt: skip
ROW = {
    "id": "r0",
    "question": [
        [{"role": "user", "content": "Move a.txt into the box, and go there."}],
        [{"role": "user", "content": "How many words does it have?"}],
        [{"role": "user", "content": "Write that number to n.txt."}],
    ],
    "initial_config": {"GorillaFileSystem": FILES},
    "involved_classes": ["GorillaFileSystem"],
}
TRUTH = [
    ["mv('a.txt', 'box')", "cd(folder='box')"],
    ["wc(file_name='a.txt', mode='w')"],
    ["touch('n.txt')", "echo(content='2', file_name='n.txt')"],
]
WORDS = '[wc: {"count": 2, "type": "words"}]'


def write(folder, *rows, truths=None, category="base"):
    truths = truths or {row.get("id"): TRUTH for row in rows}
    answers = ({"id": row_id, "ground_truth": truth} for row_id, truth in truths.items())
    for name, lines in ((f"multi_turn_{category}.jsonl", rows), (f"multi_turn_{category}.answer.jsonl", answers)):
        (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(folder)


@cache
def real(category):
    return gym.make(ENV, source=str(DATA), category=category).unwrapped


def play(env, task, turns):
    """The return of an episode, and its verdict; turns are texts, or lists of calls."""
    env.reset(seed=0, options={"task": task.id})
    total = 0.0
    for turn in turns:
        text = turn if isinstance(turn, str) else "".join(render_call(**call) for call in turn)
        _, reward, terminated, truncated, info = env.step(text)
        total += reward
        if terminated or truncated:
            return total, info["verdict"]
    raise AssertionError("the episode did not end")


def call(name, **arguments):
    return {"name": name, "arguments": arguments}


@pytest.fixture
def made(tmp_path):
    """An environment of the row above, and its task."""
    env = gym.make(ENV, source=write(tmp_path, ROW)).unwrapped
    return env, env.tasks[0]


# The real rows.


@NEEDS_DATA
@each_category
def test_every_gold_trajectory_runs_and_earns_one(category):
    env = real(category)
    assert len(env.tasks) == 100
    assert env.tasks.left_out == ()
    for task in env.tasks:
        assert task.metadata["refused"] == []
        assert play(env, task, env.gold_episodes(task)[0])[0] == 1.0, task.id


@NEEDS_DATA
@each_category
def test_a_gold_trajectory_may_be_played_call_by_call_with_other_words(category):
    env = real(category)
    for task in list(env.tasks)[::3]:
        turns = []
        for turn in task.target["turns"]:
            turns += [f"So it is:\n{turn}\nIs that all?"] if isinstance(turn, str) else [[made] for made in turn]
        assert play(env, task, turns)[0] == 1.0, task.id


def other(value):
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, dict):
        return {name: other(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return value[:-1] or ["other"]
    return f"{value}x" if isinstance(value, str) else value + 1


def changed_acts(turns):
    """Episodes with an act of the gold one left out, or one of its arguments changed."""
    for at, turn in enumerate(turns):
        for index, made in enumerate([] if isinstance(turn, str) else turn):
            if made["name"] not in ACTS | {"cd"}:
                continue
            yield f"no {made['name']}", [*turns[:at], turn[:index] + turn[index + 1 :] or "", *turns[at + 1 :]]
            for name, value in made["arguments"].items():
                changed = deepcopy(turn)
                changed[index]["arguments"][name] = other(value)
                yield f"{name} of {made['name']}", [*turns[:at], changed, *turns[at + 1 :]]


def without_empty(turns):
    return [turn for turn in turns if turn != ""]


@NEEDS_DATA
@each_category
def test_with_an_act_left_out_or_an_argument_changed_a_gold_trajectory_earns_nothing(category):
    """But for a change that changes nothing: in row 98 a door that is locked is not locked again."""
    env = real(category)
    earning, count = [], 0
    for task in list(env.tasks)[:: 1 if category == "base" else 4]:
        for what, turns in changed_acts(task.target["turns"]):
            count += 1
            if play(env, task, without_empty(turns))[0] != 0.0:
                earning.append((task.id, what))
    assert count > 200
    assert [found for found in earning if found != ("multi_turn_base_98", "door of lockDoors")] == []


EXTRA = [
    call("mkdir", dir_name="extra"),
    call("touch", file_name="extra"),
    call("post_tweet", content="extra"),
    call("follow_user", username_to_follow="extra"),
    call("create_ticket", title="extra"),
    call("add_contact", user_name="Extra"),
    call("send_message", receiver_id="USR006", message="extra"),
    call("fund_account", amount=1.0),
    call("add_to_watchlist", stock="GOOG"),
    call("place_order", order_type="Sell", symbol="GOOG", price=1.0, amount=1),
    call("fillFuelTank", fuelAmount=0.1),
    call("set_navigation", destination="extra"),
    call("pressBrakePedal", pedalPosition=0.5),
    call("lockDoors", unlock=True, door=["driver"]),
    call("set_budget_limit", access_token="abc123xyz", budget_limit=77.0),
]


@NEEDS_DATA
@each_category
def test_with_an_extra_act_anywhere_a_gold_trajectory_earns_nothing(category):
    env, used = real(category), Counter()
    for task in list(env.tasks)[:: 4 if category == "base" else 16]:
        turns = task.target["turns"]
        for extra in (extra for extra in EXTRA if extra["name"] in task.metadata["tools"]):
            for at in range(len(turns)):
                reward, _ = play(env, task, [*turns[:at], [extra], *turns[at:]])
                wrote = any(event.arguments == extra["arguments"] and event.touched
                            for event in env.submission("").events)  # fmt: skip
                used[extra["name"]] += wrote
                assert not (wrote and reward), (task.id, extra, at)
    assert len(used.keys() - {name for name, count in used.items() if not count}) >= 10


@NEEDS_DATA
@each_category
def test_what_was_looked_up_must_be_told_in_each_turn(category):
    env, owing = real(category), 0
    for task in list(env.tasks)[:: 1 if category == "base" else 4]:
        turns = task.target["turns"]
        for at, turn in enumerate(turns):
            if isinstance(turn, str) and turn != "Done.":
                owing += 1
                assert play(env, task, [*turns[:at], "Done.", *turns[at + 1 :]])[0] == 0.0, (task.id, turn)
        said = [turn for turn in turns[:-1] if isinstance(turn, str) and turn != "Done."]
        if said:  # and too late is not told
            late = [turn if isinstance(turn, list) else "Done." for turn in turns[:-1]]
            assert play(env, task, [*late, "\n".join([*said, turns[-1]])])[0] == 0.0, task.id
    assert owing > 40


@NEEDS_DATA
@each_category
def test_what_is_acted_on_must_be_looked_up(category):
    """A look-up is left out, unless an earlier one gave the same."""
    env, count = real(category), 0
    for task in list(env.tasks)[:: 1 if category == "base" else 4]:
        turns, known = task.target["turns"], set()
        assert play(env, task, turns)[0] == 1.0
        results = iter([(event.name, event.result) for event in env.submission("").events])
        for at, turn in enumerate(turns):
            for index, made in enumerate([] if isinstance(turn, str) else turn):
                result = next(results)
                if made["name"] not in ACTS | {"cd"} and result not in known:
                    rest = [*turns[:at], turn[:index] + turn[index + 1 :] or "", *turns[at + 1 :]]
                    later = {each["name"] for each in turn[index + 1 :]}
                    if made["name"] not in later:
                        count += 1
                        assert play(env, task, without_empty(rest))[0] == 0.0, (task.id, made)
                known.add(result)
    assert count > 40


@NEEDS_DATA
@each_category
def test_policies_that_know_nothing_earn_nothing(category):
    found = validate(real(category), played=20)  # the checker plays them all
    assert found.ok, found
    assert max(found.null_rewards.values()) == 0.0
    for message in ("Done.", "[cannot: do it]", "I cannot do that.", WORDS, "Which one?"):
        for task in list(real(category).tasks)[::3]:
            lines = len(task.metadata["user"])
            assert play(real(category), task, [message] * lines)[0] == 0.0, (task.id, message)


@NEEDS_DATA
@pytest.mark.parametrize("category", CATEGORIES[1:])
def test_the_other_categories_keep_to_every_rule_too(category):
    found = check(ENV, source=str(DATA), category=category)
    assert found.failures == found.unchecked == ()


@NEEDS_DATA
def test_a_missed_function_is_offered_with_its_document_when_its_line_comes():
    env = real("miss_func")
    for task in env.tasks:
        _, info = env.reset(options={"task": task.id})
        names = {tool["function"]["name"] for tool in info["tools"]}
        for line in task.metadata["user"]:
            for name in line.get("tools", ()):
                assert name not in names
                assert f'"name": "{name}"' in line["says"]
        assert any(line.get("tools") for line in task.metadata["user"])


@NEEDS_DATA
@pytest.mark.parametrize("category", ["miss_func", "miss_param"])
def test_where_something_is_missing_one_must_say_so_and_change_nothing(category):
    env = real(category)
    for task in list(env.tasks)[::5]:
        turns = task.target["turns"]
        at = next(index for index, turn in enumerate(turns) if str(turn).startswith("[cannot"))
        assert play(env, task, [*turns[:at], "Which one do you mean?", *turns[at + 1 :]])[0] == 0.0
        said = "I need to know more. [cannot: which one do you mean?]"
        assert play(env, task, [*turns[:at], said, *turns[at + 1 :]])[0] == 1.0
        later = [turn for turn in turns[at:] if isinstance(turn, list)]
        acts = [[made] for turn in later for made in turn if made["name"] in ACTS][:1]
        reward, _ = play(env, task, [*turns[:at], *acts, *turns[at:]])
        first = env.submission("").events[sum(len(turn) for turn in turns[:at] if isinstance(turn, list))]
        assert not (acts and first.touched and reward), task.id
        for index, turn in enumerate(turns):
            if isinstance(turn, str) and index != at and not turn.startswith("[cannot"):
                assert play(env, task, [*turns[:index], f"{turn} [cannot: it]", *turns[index + 1 :]])[0] == 0.0
                break


@NEEDS_DATA
def test_a_long_context_is_long_and_its_tasks_are_those_of_base():
    short, long = real("base").tasks, real("long_context").tasks
    sizes = [len(json.dumps(task.metadata["state"])) for task in short]
    assert sum(len(json.dumps(task.metadata["state"])) for task in long) > 5 * sum(sizes)
    assert [task.id.split("_")[-1] for task in long] == [task.id.split("_")[-1] for task in short]
    named = long.get("multi_turn_long_context_46")  # removes files that the row does not have
    assert "/dylan/Drafts/image_344822349461074042.jpg" in named.metadata["state"]["files"]


# What a row becomes.


def test_a_row_becomes_a_task_with_a_gold_episode(made):
    env, task = made
    assert task.id == "r0"
    assert task.prompt == "Move a.txt into the box, and go there."
    assert task.target["turns"] == [
        [call("mv", source="a.txt", destination="box"), call("cd", folder="box")],
        "Done.",
        [call("wc", file_name="a.txt", mode="w")],
        WORDS,
        [call("touch", file_name="n.txt"), call("echo", content="2", file_name="n.txt")],
        "Done.",
    ]
    assert play(env, task, env.gold_episodes(task)[0])[0] == 1.0


def test_the_layout_of_the_hub_is_read_too(tmp_path):
    (tmp_path / "possible_answer").mkdir()
    name = "BFCL_v3_multi_turn_base.json"
    (tmp_path / name).write_text(json.dumps(ROW))
    (tmp_path / "possible_answer" / name).write_text(json.dumps({"id": "r0", "ground_truth": TRUTH}))
    for source in (tmp_path, tmp_path / name):
        assert tasks.load("bfcl_multi_turn", "test", source).ids == ["r0"]


def test_a_lookup_that_supplies_an_argument_is_not_owed(tmp_path):
    truths = {"r0": [["get_stock_info('AAPL')", "place_order('Buy', 'AAPL', 10.5, 2)"],
                     ["get_stock_info('AAPL')", "add_to_watchlist('AAPL')"],
                     ["add_to_watchlist('AAPL')"]]}  # fmt: skip
    config = {"TradingBot": {"authenticated": True, "stocks": {"AAPL": {"price": 10.5}}}}
    row = {**ROW, "initial_config": config, "involved_classes": ["TradingBot"]}
    [task] = tasks.load("bfcl_multi_turn", "test", write(tmp_path, row, truths=truths))
    messages = [turn for turn in task.target["turns"] if isinstance(turn, str)]
    assert messages == ["Done.", '[get_stock_info: {"price": 10.5}]', "Done."]


def test_functions_are_withheld_as_the_row_says(tmp_path):
    row = {**ROW, "excluded_function": ["rm"], "missed_function": {"2": ["touch", "echo"]}}
    row["question"] = [*ROW["question"][:2], [], ROW["question"][2]]
    truths = {"r0": [*TRUTH[:2], TRUTH[2], []]}
    env = gym.make(
        ENV, source=write(tmp_path, row, truths=truths, category="miss_func"), category="miss_func"
    ).unwrapped
    task = env.tasks[0]
    turns = task.target["turns"]
    _, info = env.reset(options={"task": "r0"})
    assert not {"rm", "touch", "echo"} & {tool["function"]["name"] for tool in info["tools"]}
    for turn in turns[:3]:
        env.step(turn if isinstance(turn, str) else "".join(render_call(**made) for made in turn))
    assert "no tool 'touch'" in env.step(render_call("touch", {"file_name": "n.txt"}))[0]
    observation = env.step(WORDS)[0]
    documents = [json.loads(line)["function"]["name"] for line in observation.splitlines() if line.startswith("{")]
    assert documents == ["touch", "echo"]
    assert env.step(render_call("touch", {"file_name": "n.txt"}))[0] == "{}"
    assert {"touch", "echo"} <= {tool["function"]["name"] for tool in env.tools}
    assert play(env, task, turns)[0] == 1.0


def test_a_call_that_the_world_refuses_is_listed_and_not_owed(tmp_path):
    truths = {"r0": [TRUTH[0], [*TRUTH[1], "touch('n.txt')"], TRUTH[2]]}
    env = gym.make(ENV, source=write(tmp_path, ROW, truths=truths)).unwrapped
    assert env.tasks[0].metadata["refused"] == ["touch: error: there is a 'n.txt' already"]
    assert play(env, env.tasks[0], env.gold_episodes(env.tasks[0])[0])[0] == 1.0


def test_echo_creates_a_file_only_where_the_ground_truth_takes_it_for_granted(tmp_path):
    truths = {"r0": [*TRUTH[:2], ["echo('2', 'n.txt')"]], "r1": TRUTH}
    env = gym.make(ENV, source=write(tmp_path, ROW, {**ROW, "id": "r1"}, truths=truths)).unwrapped
    echo = render_call("echo", {"content": "2", "file_name": "n.txt"})
    for task, said in zip(env.tasks, ('{"terminal_output": null}', "error: there is no file 'n.txt'"), strict=True):
        assert play(env, task, env.gold_episodes(task)[0])[0] == 1.0
        env.reset(options={"task": task.id})
        assert env.step(echo)[0].startswith(said)


@pytest.mark.parametrize("category", ["base", "long_context"])
def test_files_that_a_ground_truth_takes_for_granted_are_there(tmp_path, category):
    truths = {"r0": [["rm('image.jpg')", "cd('attic')", "cat('old.txt')", "cd('..')"], ["rm('image.jpg')"], []]}
    source = write(tmp_path, ROW, truths=truths, category=category)
    [task] = tasks.load("bfcl_multi_turn", "test", source, category=category)
    files = task.metadata["state"]["files"]
    assert {"/home/image.jpg", "/home/attic", "/home/attic/old.txt"} <= files.keys()
    assert [found.split(":")[0] for found in task.metadata["refused"]] == ["rm"]  # a second time


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"question": None}, "'question' must hold a list of turns"),
        ({"question": [["Hello"], [], []]}, "a list of messages with content"),
        ({"involved_classes": ["Nothing"]}, "no service 'Nothing'"),
        ({"involved_classes": []}, "'involved_classes' must hold"),
        ({"initial_config": None}, "'initial_config' must hold"),
        ({"missed_function": ["sort"]}, "'missed_function' must be such as"),
        ({"excluded_function": "sort"}, "'excluded_function' must hold"),
        ({"id": None}, "'id' must be text"),
        ({"ground_truth": "mv()"}, "no ground truth for 'r0'"),
    ],
)
def test_a_malformed_row_is_an_error_of_one_line(tmp_path, change, error):
    with pytest.raises(TaskDataError, match="row 1") as caught:
        tasks.load("bfcl_multi_turn", "test", write(tmp_path, {**ROW, **change}))
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "truth", "reason"),
    [
        ({}, [["eval('1')"], [], []], "there is no function eval"),
        ({}, [["mv('a', 'b', 'c')"], [], []], "takes 2 arguments"),
        ({}, TRUTH[:2], "has 3 turns, and a ground truth of 2"),
        ({"question": [*ROW["question"][:2], []]}, TRUTH, "no message of the user"),
        (
            {"initial_config": {"GorillaFileSystem": {"root": {"home": 5}}}},
            TRUTH,
            "does not describe GorillaFileSystem",
        ),
        ({"initial_config": {"GorillaFileSystem": 5}}, TRUTH, "does not describe GorillaFileSystem"),
        ({"missed_function": {"1": ["nothing"]}}, TRUTH, "no function 'nothing'"),
        ({"excluded_function": ["catt"]}, TRUTH, "did you mean 'cat'"),
    ],
)
def test_a_row_that_holds_no_task_is_left_out(tmp_path, change, truth, reason):
    rows, truths = (ROW, {**ROW, "id": "bad", **change}), {"r0": TRUTH, "bad": truth}
    found = tasks.load("bfcl_multi_turn", "test", write(tmp_path, *rows, truths=truths))
    assert found.ids == ["r0"]
    [left_out] = found.left_out
    assert reason in left_out
    assert "row 2" in left_out
    alone = tmp_path / "alone"
    alone.mkdir()
    with pytest.raises(TaskDataError, match="holds no rows that can be used"):
        tasks.load("bfcl_multi_turn", "test", write(alone, rows[1], truths=truths))


def test_wrong_options_say_what_there_is(tmp_path):
    source = write(tmp_path, ROW)
    with pytest.raises(UnknownNameError, match="did you mean 'base'"):
        tasks.load("bfcl_multi_turn", "test", source, category="bass")
    with pytest.raises(UnknownNameError, match="test"):
        tasks.load("bfcl_multi_turn", "train", source)
    with pytest.raises(TaskDataError, match=r"no questions of the category 'multi_turn_miss_func'"):
        tasks.load("bfcl_multi_turn", "test", source, category="miss_func")
    with pytest.raises(TaskDataError, match="check the path"):
        tasks.load("bfcl_multi_turn", "test", f"{source}/nowhere")
    with pytest.raises(UnknownNameError, match="categry"):
        gym.make(ENV, source=source, categry="base")


# What is right.


def variant(task, at, *turns):
    gold = task.target["turns"]
    return [*gold[:at], *turns, *gold[at + 1 :]]


def test_other_ways_are_as_right(made):
    env, task = made
    move, count, create = (turn for turn in task.target["turns"] if isinstance(turn, list))
    tell = f"It has two words: {WORDS}. Anything else?"
    renamed = [call("mv", source="a.txt", destination="b.txt"), call("mv", source="b.txt", destination="box"),
               call("cd", folder="box"), call("mv", source="b.txt", destination="a.txt")]  # fmt: skip
    for turns in (
        variant(task, 3, tell),
        variant(task, 3, '<think>[wc: {"count": 3, "type": "words"}]</think>' + WORDS),
        variant(task, 3, WORDS.replace(" ", "  ")),
        variant(task, 0, [call("ls"), call("cat", file_name="a.txt")], *[[each] for each in move]),
        variant(task, 0, [call("cd", folder="nowhere")], move),
        variant(task, 0, renamed),
        variant(task, 2, [call("cat", file_name="a.txt")], count),
        variant(task, 3, f"{WORDS} [a.txt: two] [x]"),
        variant(task, 4, [call("cd", folder=".."), call("cd", folder="box")], create, [call("cd", folder="..")]),
        variant(task, 0, [call("mkdir", dir_name="tmp"), call("rmdir", dir_name="tmp")], move),
    ):  # fmt: skip
        assert play(env, task, turns)[0] == 1.0, turns


@pytest.mark.parametrize(
    ("at", "turns", "component"),
    [
        (0, [[call("mv", source="a.txt", destination="box")]], "state"),  # and stays where it was
        (0, [[call("cd", folder="box")]], "state"),
        (0, [[call("mv", source="a.txt", destination="box"), call("cd", folder="box"), call("touch", file_name="x")]],
         "state"),
        (3, ["There are two words."], "told"),
        (3, ['[wc: {"count": 3, "type": "words"}]'], "told"),
        (3, ['[wc: {"count": 2.0, "type": "words"}]'], "told"),
        (3, [f'{WORDS} [wc: {{"count": 3, "type": "words"}}]'], "told"),
        (3, [f'{WORDS} [cat: {{"file_content": "one two"}}]'], "told"),  # true, but never looked at
        (3, ["[wc: 2]"], "told"),
        (3, [f"<think>{WORDS}</think> Two."], "told"),
        (3, [f"{WORDS} [cannot: say more]"], "told"),
        (2, [WORDS], "told"),
        (4, [[call("touch", file_name="n.txt"), call("echo", content="9", file_name="n.txt"),
              call("echo", content="2", file_name="n.txt")]], "log"),
        (4, [[call("rm", file_name="a.txt"), call("touch", file_name="a.txt"),
              call("echo", content="one two", file_name="a.txt"),
              call("touch", file_name="n.txt"), call("echo", content="2", file_name="n.txt")]], "log"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_by_its_component(made, at, turns, component):
    env, task = made
    gold = task.target["turns"]
    rest = gold[at + 2 :] if turns == [WORDS] and at == 2 else gold[at + 1 :]
    reward, verdict = play(env, task, [*gold[:at], *turns, *rest])
    assert reward == 0.0
    assert verdict.components[component] == 0.0, verdict
    assert "two" not in verdict.reason
    assert "2" not in verdict.reason.replace("of 1", "")


def test_an_act_that_changes_nothing_must_be_made_all_the_same(tmp_path):
    doors = ["driver", "passenger", "rear_left", "rear_right"]
    config = {"VehicleControlAPI": {"fuelLevel": 5.0, "doorStatus": dict.fromkeys(doors, "locked")}}
    lock, fill = call("lockDoors", unlock=False, door=doors), call("fillFuelTank", fuelAmount=2)
    row = {**ROW, "initial_config": config, "involved_classes": ["VehicleControlAPI"], "question": ROW["question"][:1]}
    truths = {"r0": [[f"lockDoors(False, {doors})", "fillFuelTank(2)"]]}
    env = gym.make(ENV, source=write(tmp_path, row, truths=truths)).unwrapped
    task = env.tasks[0]
    assert play(env, task, [[fill, call("lockDoors", unlock=False, door=doors[::-1])], "Done."])[0] == 1.0
    for calls in ([fill], [fill, call("lockDoors", unlock=False, door=doors[:3])]):
        reward, verdict = play(env, task, [calls, "Done."])
        assert (reward, verdict.components["done"]) == (0.0, 0.0)
    fills = [call("fillFuelTank", fuelAmount=1), call("fillFuelTank", fuelAmount=1)]
    assert play(env, task, [[lock, *fills], "Done."])[1].components["log"] == 0.0


def test_doors_may_be_locked_one_by_one_but_none_of_them_twice(tmp_path):
    doors = ["driver", "passenger", "rear_left", "rear_right"]
    config = {"VehicleControlAPI": {"doorStatus": {"driver": "locked"}}}
    row = {**ROW, "initial_config": config, "involved_classes": ["VehicleControlAPI"], "question": ROW["question"][:1]}
    env = gym.make(ENV, source=write(tmp_path, row, truths={"r0": [[f"lockDoors(False, {doors})"]]})).unwrapped
    task = env.tasks[0]
    every = call("lockDoors", unlock=False, door=doors)
    each = [call("lockDoors", unlock=False, door=[door]) for door in doors]
    for calls in ([every], each, [each[0], every], [every, each[3]]):
        assert play(env, task, [calls, "Done."])[0] == 1.0
    reward, verdict = play(env, task, [each[1:], "Done."])  # the driver's was locked already, and is asked for, too
    assert (reward, verdict.components["state"], verdict.components["done"]) == (0.0, 1.0, 0.0)
    assert play(env, task, [[call("lockDoors", unlock=False, door=[*doors, "driver"])], "Done."])[0] == 0.0
    for at in range(1, 4):
        reward, verdict = play(env, task, [[each[at], every], "Done."])
        assert (reward, verdict.components["state"], verdict.components["log"]) == (0.0, 1.0, 0.0)


def test_an_act_of_which_nothing_is_left_to_see_must_be_made_as_it_was(tmp_path):
    config = {
        "TravelAPI": {"access_token": "key", "credit_card_list": {"card": {"balance": 5000}}},
        "VehicleControlAPI": {},
    }
    book = "book_flight('key', 'card', '2026-10-15', 'SFO', 'LAX', 'first')"
    row = {**ROW, "initial_config": config, "involved_classes": [*config], "question": ROW["question"][:2]}
    truths = {"r0": [[book, "cancel_booking('key', '3426812')"], ["setHeadlights('auto')", "setHeadlights('off')"]]}
    env = gym.make(ENV, source=write(tmp_path, row, truths=truths)).unwrapped
    task = env.tasks[0]
    turns = task.target["turns"]
    assert play(env, task, turns)[0] == 1.0
    for at, name, value in ((0, "travel_to", "RMS"), (0, "travel_date", "2026-10-17"), (2, "mode", "on")):
        changed = deepcopy(turns)
        changed[at][0]["arguments"][name] = value
        reward, verdict = play(env, task, changed)
        assert (reward, verdict.components["state"], verdict.components["done"]) == (0.0, 1.0, 0.0), name


def test_tokens_and_bookings_get_the_numbers_by_which_the_ground_truth_names_them(tmp_path):
    config = {"TravelAPI": {}}
    truth = [
        [
            "authenticate_travel('i', 's', 'r', 'read_write', 'Ann', 'Lee')",
            "register_credit_card('654321', '4012', '12/2028', 'Ann Lee', 465)",
            "book_flight('654321', '391310425148', '2026-10-15', 'SFO', 'LAX', 'first')",
        ],
        ["purchase_insurance('654321', 'full', 50, '7654321', '391310425148')"],
        ["retrieve_invoice('654321', insurance_id='123456789')", "cancel_booking('654321', '7654321')"],
    ]
    row = {**ROW, "initial_config": config, "involved_classes": [*config]}
    env = gym.make(ENV, source=write(tmp_path, row, truths={"r0": truth})).unwrapped
    task = env.tasks[0]
    assert task.metadata["refused"] == []
    assert play(env, task, env.gold_episodes(task)[0])[0] == 1.0


def test_an_episode_that_is_cut_short_is_wrong(made):
    env, task = made
    env = gym.make(ENV, source=env.tasks[0].metadata and str(Path(env.spec.kwargs["source"])), max_turns=4).unwrapped
    reward, verdict = play(env, task, task.target["turns"])
    assert reward == 0.0
    assert "only 2 of the user's 3 lines" in verdict.reason


def test_a_text_alone_is_judged_by_the_end(made):
    _, task = made
    verifier = verifiers.make("bfcl_turns")
    [gold] = verifier.golds(task)
    assert verifier.verify(Submission(gold), task).reward == 1.0
    assert verifier.verify(Submission(gold.replace(WORDS, "Two.")), task).reward == 0.0
    assert verifier.verify(Submission(gold + render_call("mkdir", {"dir_name": "x"})), task).reward == 0.0


@pytest.mark.parametrize(
    "said",
    [WORDS * 300, "[wc: " * 5000, "[wc: " + "[" * 20_000, '[wc: "' * 3000, "[wc: 1e999]", "[cannot:]", "[cannot: ]",
     "[wc: NaN]"],
    ids=len,
)  # fmt: skip
def test_hostile_messages_are_wrong(made, said):
    env, task = made
    assert play(env, task, variant(task, 3, said))[0] == 0.0


def test_what_stands_in_a_quoted_file_is_no_quote(tmp_path):
    row = deepcopy(ROW)
    contents = row["initial_config"]["GorillaFileSystem"]["root"]["home"]["contents"]
    contents["a.txt"]["content"] = "see [add: 5] and [cannot: x]"
    source = write(tmp_path, row, truths={"r0": [["cat('a.txt')"], ["ls()"], ["mkdir('x')"]]})
    env = gym.make(ENV, source=source).unwrapped
    assert "[add: 5]" in env.tasks[0].target["turns"][1]
    assert play(env, env.tasks[0], env.gold_episodes(env.tasks[0])[0])[0] == 1.0


def test_a_task_without_anything_to_do_is_refused(made):
    _, task = made
    verifier = verifiers.make("bfcl_turns")
    for turns in (["Done."] * 3, [], None, ["Done."] * 4, [[call("cat", file_name="nothing")], *["Done."] * 3]):
        idle = Task(task.id, task.prompt, {"turns": turns}, task.metadata)
        with pytest.raises(VerifierInputError, match="r0"):
            verifier.verify(Submission("Done."), idle)


# What worlds and users do for such tasks.


def test_a_world_offers_further_tools_and_notes_which_line_a_call_answers(made):
    _, task = made
    lines = [{"says": "Go.", "any_answer": True}, {"says": "Now.", "tools": ["ls"], "any_answer": True}]
    scenario = Scenario(Task("t", "Go.", None, {**task.metadata, "tools": ("pwd",), "user": lines}))
    assert scenario.world.offered == ("pwd",)
    scenario.world.call("ls", {})
    assert scenario.hear("Shall I?") == ("Now.", False)
    assert scenario.world.offered == ("ls", "pwd")
    scenario.world.call("ls", {})
    assert [(event.line, event.failed) for event in scenario.world.events] == [(0, True), (1, False)]
    assert scenario.hear("Shall I?")[1]
    with pytest.raises(UnknownNameError, match="did you mean 'ls'"):
        scenario.world.offer(["lss"])
