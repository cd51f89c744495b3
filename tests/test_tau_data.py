"""tau-bench's data: the layouts of a source, tau2-bench, and what is said of bad rows and folders."""

import copy
import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import gymnasium as gym
import pytest

from verigym import tasks
from verigym.envs.validation import validate
from verigym.tasks.errors import TaskDataError, UnknownNameError
from verigym.tasks.worlds import world_of

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
NEEDS_DATA = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")

USER = {
    "name": {"first_name": "Ana", "last_name": "Li"},
    "address": {"address1": "1 Elm", "address2": "", "city": "Bath", "state": "ME", "zip": "19122", "country": "USA"},
    "email": "ana.li1@example.com",
    "payment_methods": {"paypal_1": {"source": "paypal", "id": "paypal_1"}},
    "orders": ["#W1"],
}
ORDER = {
    "order_id": "#W1",
    "user_id": "ana_li_1234",
    "items": [],
    "status": "pending",
    "payment_history": [{"transaction_type": "payment", "amount": 5, "payment_method_id": "paypal_1"}],
}
CANCEL = {"name": "cancel_pending_order", "kwargs": {"order_id": "#W1", "reason": "no longer needed"}}
LAMP = {"1": {"name": "Lamp", "variants": {}}}
ROW = {"id": "a", "user_id": "ana_li_1234", "instruction": "You are Ana Li. You want to cancel your order #W1.",
       "actions": [CANCEL], "outputs": ["5"]}  # fmt: skip


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "retail"
    folder.mkdir()
    tables = {
        "users": {"ana_li_1234": USER},
        "orders": {"#W1": ORDER},
        "products": {"1": {"name": "Lamp", "variants": {}}},
    }
    for name, table in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(table))
    (folder / "wiki.md").write_text("Be kind.")
    write(folder / "tasks_test.jsonl", ROW)
    return folder


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def load(source, split="test", **options):
    return tasks.load("tau_retail", split=split, source=str(source), **options)


def test_a_source_is_the_folder_of_a_domain_the_one_above_or_a_file_of_tasks(shop):
    for source in (shop, shop.parent, shop / "tasks_test.jsonl"):
        (task,) = load(source)
        assert (task.id, task.metadata["policy"]) == ("a", "Be kind.")
        assert task.target["turns"][0] == [{"name": CANCEL["name"], "arguments": CANCEL["kwargs"]}]
        assert task.target["outputs"] == ["5"]


def test_a_source_is_a_checkout_of_tau_bench_whose_tasks_are_read_and_not_run(shop, tmp_path):
    envs = tmp_path / "checkout" / "tau_bench" / "envs" / "retail"
    (envs / "data").mkdir(parents=True)
    for path in shop.glob("*.json"):
        shutil.copy(path, envs / "data")
    shutil.copy(shop / "wiki.md", envs)
    (envs / "tasks_test.py").write_text(
        "from tau_bench.types import Action, Task\n"
        "raise SystemExit\n"
        "TASKS_TEST = [\n"
        '    Task(annotator="0", user_id="ana_li_1234", instruction="You are Ana Li. " "You want to cancel #W1.",\n'
        f"         actions=[Action(name={CANCEL['name']!r}, kwargs={CANCEL['kwargs']!r})], outputs=[]),\n"
        "]\n"
    )
    (task,) = load(tmp_path / "checkout")
    assert (task.id, task.prompt) == ("retail-test-0", "I want to cancel #W1.")
    assert task.target["turns"][0] == [{"name": CANCEL["name"], "arguments": CANCEL["kwargs"]}]
    (envs / "tasks_test.py").write_text("TASKS = [Task(instruction=open('x'))]")
    with pytest.raises(TaskDataError, match=r"tasks_test.py: "):
        load(tmp_path / "checkout" / "tau_bench" / "envs" / "retail")


def test_gzipped_tables_are_read(shop):
    text = (shop / "orders.json").read_bytes()
    (shop / "orders.json").unlink()
    (shop / "orders.json.gz").write_bytes(gzip.compress(text))
    assert load(shop)[0].metadata["state"]["orders"]["#W1"] == ORDER


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"user_id": "x"}, "there is no user 'x' in the data base"),
        ({"user_id": 1}, "the field 'user_id' must be text"),
        ({"instruction": ""}, "the field 'instruction' is empty"),
        ({"actions": None}, "'actions' must be a list of calls"),
        ({"actions": [{"name": "x"}]}, 'an action must have a name and kwargs, not {"name": "x"}'),
        ({"actions": [{"name": "cancel", "kwargs": {}}]}, "there is no tool 'cancel'"),
        ({"outputs": [5]}, "what the user must be told must be a list of texts"),
        ({"outputs": "5"}, "what the user must be told must be a list of texts"),
        ({"outputs": ["$"]}, "what the user must be told must have a letter or digit, not '\\$'"),
    ],
)
def test_a_bad_row_is_named(shop, change, error):
    write(shop / "tasks_test.jsonl", ROW, {**ROW, "id": "b", **change})
    with pytest.raises(TaskDataError, match=rf"tasks_test.jsonl: row 2: {error}"):
        load(shop)


def test_a_bad_record_of_a_user_is_named(shop):
    broken = {**USER, "address": {**USER["address"], "zip": 19122}}
    (shop / "users.json").write_text(json.dumps({"ana_li_1234": broken}))
    with pytest.raises(TaskDataError, match=r"row 1: the record of user 'ana_li_1234' has no address with 'zip'"):
        load(shop)


def test_what_is_missing_is_named_with_what_to_do(shop, tmp_path):
    with pytest.raises(TaskDataError, match="tau-bench has no public hub id; give source=PATH"):
        tasks.load("tau_retail", split="test")
    with pytest.raises(TaskDataError, match=r"no file or folder '.*nowhere'"):
        load(tmp_path / "nowhere")
    with pytest.raises(TaskDataError, match=r"no wiki.md with the data of the airline domain in"):
        tasks.load("tau_airline", split="test", source=str(shop))
    with pytest.raises(UnknownNameError, match="no split of 'tau_retail' named 'tst'; did you mean 'test'"):
        load(shop, split="tst")
    with pytest.raises(UnknownNameError, match="no benchmark of 'tau_retail' named 'tau3'"):
        load(shop, benchmark="tau3")
    with pytest.raises(TaskDataError, match="holds no tasks of this split"):
        load(shop, split="train")
    (shop / "orders.json").write_text(json.dumps({"#W1": {**ORDER, "items": None}}))
    with pytest.raises(TaskDataError, match=r"retail: the record '#W1' of orders has no right 'items'; fetch"):
        load(shop)
    (shop / "orders.json").write_text("[1]")
    with pytest.raises(TaskDataError, match=r"orders.json: must hold an object of objects"):
        load(shop)
    (shop / "orders.json").write_text("{")
    with pytest.raises(TaskDataError, match=r"orders.json: cannot be read as JSON"):
        load(shop)
    (shop / "orders.json").unlink()
    with pytest.raises(TaskDataError, match=r"no orders.json or orders.json.gz; fetch the data again"):
        load(shop)


def test_a_data_base_that_was_changed_is_read_anew(shop):
    task = load(shop)[0]
    first = task.metadata["state"]
    (shop / "orders.json").write_text(json.dumps({"#W1": {**ORDER, "status": "delivered"}}))
    assert load(shop)[0].metadata["state"]["orders"]["#W1"]["status"] == "delivered"
    assert first["orders"]["#W1"]["status"] == "pending"
    assert copy.deepcopy(task).metadata["state"] is first


def test_a_shop_can_be_played_without_the_real_data(shop):
    env = gym.make("verigym/TauRetail-v0", split="test", source=str(shop)).unwrapped
    found = validate(env)
    assert (found.golds, found.failures, found.earning) == (1, (), [])


# tau2-bench.


def task_2(task_id, known, actions):
    instructions = {"domain": "retail", "reason_for_call": "You want it cancelled.", "known_info": known,
                    "unknown_info": None, "task_instructions": "Be short."}  # fmt: skip
    criteria = {"actions": actions, "communicate_info": None}
    return {"id": task_id, "user_scenario": {"instructions": instructions}, "evaluation_criteria": criteria}


def test_the_user_of_tau2_bench_is_found_by_the_instructions_or_the_actions_or_the_task_is_left_out(tmp_path):
    folder = tmp_path / "retail"
    folder.mkdir()
    tables = {"users": {"ana_li_1234": USER, "bo_li_1234": USER}, "orders": {"#W1": ORDER}, "products": LAMP}
    (folder / "db.json").write_text(json.dumps(tables))
    (folder / "policy.md").write_text("Be kind.")
    (folder / "split_tasks.json").write_text(json.dumps({"train": ["1", "2", "3"]}))
    cancel = {"name": CANCEL["name"], "arguments": CANCEL["kwargs"]}
    rows = [task_2("1", "You are bo_li_1234.", []), task_2("2", "You are Ana.", [cancel]), task_2("3", "Ana.", [])]
    (folder / "tasks.json").write_text(json.dumps([*rows, task_2("4", "", [])]))
    found = load(folder, split="train", benchmark="tau2")
    assert [task.metadata["user"]["facts"]["user"] for task in found] == [
        "My user id is bo_li_1234.", "My user id is ana_li_1234."]  # fmt: skip
    assert found.ids == ["retail-1", "retail-2"]
    (left_out,) = found.left_out
    assert "tasks.json: row 3: neither its instructions nor its actions tell who" in left_out
    with pytest.raises(TaskDataError, match=r"split_tasks.json: does not tell the ids of the split 'test'"):
        load(folder, benchmark="tau2")


TAU2 = [("retail", 74), ("airline", 30)]


@NEEDS_DATA
@pytest.mark.parametrize(("domain", "count"), TAU2)
def test_golds_of_tau2_bench_earn_1_and_null_policies_stay_below_chance(domain, count):
    source = str(DATA / "tau2_bench")
    env = gym.make(f"verigym/Tau{domain.title()}-v0", split="train", source=source, benchmark="tau2").unwrapped
    found = validate(env)
    assert (found.golds, found.failures, found.earning) == (count, (), [])
    assert env.tasks[0].metadata["world"] == f"tau2_{domain}"
    # 16 airline tasks have nothing to do, and one only a number to be told: "4"
    assert env.chance == {"retail": 3 / 74, "airline": 17 / 30}[domain]
    told = [task.id for task in env.tasks if "outputs" in task.target]
    assert len(told) == {"retail": 25, "airline": 5}[domain]


# Gold calls that the world refuses: the tasks want it so, the airline's none though its data are tau-bench's.
REFUSED = {
    "retail-2": ["get_product_details"],  # with an id of tau-bench's first data
    "retail-3": ["get_product_details"],
    "retail-4": ["get_product_details"],
    "retail-35": ["find_user_id_by_email"],  # the user gives a wrong email first
    "retail-37": ["find_user_id_by_email"],
    "retail-46": ["get_order_details", "get_order_details"],  # numbers without their W
    "retail-47": ["get_order_details", "get_order_details"],
    "retail-54": ["find_user_id_by_email"],
    "retail-67": ["find_user_id_by_name_zip", "find_user_id_by_name_zip"],  # zip codes that the user gets wrong
    "retail-105": ["exchange_delivered_order_items"],  # the gift card has too little on it
}


@NEEDS_DATA
def test_the_gold_calls_of_tau2_bench_that_are_refused_are_these():
    refused = {}
    for domain, _ in TAU2:
        for task in tasks.load(f"tau_{domain}", source=str(DATA / "tau2_bench"), split="train", benchmark="tau2"):
            world = world_of(task)
            for call in (call for turn in task.target["turns"] if not isinstance(turn, str) for call in turn):
                world.call(**call)
            if failed := [event.name for event in world.events if event.failed]:
                refused[task.id] = failed
    assert refused == REFUSED


@NEEDS_DATA
def test_an_order_of_tau2_bench_gets_another_address_after_its_items_were_changed():
    task = tasks.load("tau_retail", source=str(DATA / "tau2_bench"), split="train", benchmark="tau2").get("retail-41")
    calls = [call for turn in task.target["turns"] if not isinstance(turn, str) for call in turn]
    items, address = [call for call in calls if call["arguments"].get("order_id") == "#W4082615"][:0:-2]
    for name, earned in (("tau2_retail", 2), ("tau_retail", 1)):
        world = world_of(dataclasses.replace(task, metadata={**task.metadata, "world": name}))
        for call in (items, address):
            world.call(**call)
        assert sum(not event.failed for event in world.events) == earned


@NEEDS_DATA
def test_tau2_bench_notes_the_class_that_was_paid_for():
    change = {"reservation_id": "XEHM4B", "cabin": "economy", "payment_id": "credit_card_2408938",
              "flights": [{"flight_number": "HAT005", "date": "2024-05-20"},
                          {"flight_number": "HAT178", "date": "2024-05-30"}]}  # fmt: skip
    cabins = []
    for benchmark, split in (("tau", "test"), ("tau2", "train")):
        source = str(DATA / f"{benchmark}_bench")
        task = tasks.load("tau_airline", split=split, source=source, benchmark=benchmark)[0]
        cabins.append(json.loads(world_of(task).call("update_reservation_flights", change))["cabin"])
    assert cabins == ["basic_economy", "economy"]
