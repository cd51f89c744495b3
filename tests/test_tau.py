"""tau-bench: gold steps as they were recorded, tools as they are documented, and what the service of a user earns."""

import gzip
import json
from functools import cache
from pathlib import Path

import pytest

from verigym.tasks.worlds.base import read_base
from verigym.tasks.worlds.tau import Airline, Retail

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="no real data in ../shared/data beside the repository")
TAU, ORACLE = DATA / "tau_bench", DATA / "tau_bench_oracle"
WORLDS = {"retail": Retail, "airline": Airline}
RECORDED = [("retail", "train", 500), ("retail", "dev", 20), ("retail", "test", 37), ("airline", "test", 19)]
CUT = 4000  # characters of an output that are recorded


def rows(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
        return [json.loads(line) for line in lines]


@cache
def base(domain):
    tables = ("users", "orders", "products") if domain == "retail" else ("users", "flights", "reservations")
    found = {path.name.partition(".")[0]: str(path) for path in (TAU / domain).glob("*.json*")}
    return read_base(tuple((table, found[table]) for table in tables))


def recorded(domain, split):
    return [row for path in sorted((ORACLE / domain).glob(f"tasks_{split}*")) for row in rows(path)]


@pytest.mark.parametrize(("domain", "split", "count"), RECORDED)
def test_every_gold_step_gives_what_was_recorded(domain, split, count):
    found = recorded(domain, split)
    assert len(found) == count
    differing = []
    for row in found:
        world = WORLDS[domain](base(domain))
        for step in row["steps"]:
            result, output = world.call(step["name"], step["kwargs"]), step["output"]
            long = len(output) > CUT
            same = result[:CUT] + "…" == output if long else result == output
            if not same or world.events[-1].failed != output.startswith("Error"):
                differing.append((row["task_id"], step["name"]))
        if world.store.changes() != row["db_changes"]:
            differing.append((row["task_id"], "changes"))
    assert differing == []


def test_the_tools_are_those_that_are_documented():
    for domain, world in WORLDS.items():
        documented = {row["function"]["name"]: row["function"] for row in rows(TAU / domain / "tools.jsonl")}
        assert world.tools().keys() == documented.keys()
        for name, tool in world.tools().items():
            assert shape(tool.parameters) == shape(documented[name]["parameters"]), name


def shape(schema):
    """The names, types, choices and required parts of a schema."""
    found = {name: schema[name] for name in ("type", "enum") if name in schema}
    if "properties" in schema:
        found["properties"] = {name: shape(part) for name, part in schema["properties"].items()}
        found["required"] = sorted(schema.get("required", []))
    return {**found, **({"items": shape(schema["items"])} if "items" in schema else {})}


# Which refusals there are; most of them stand in no record.

ORDER, ITEM = {"order_id": "#W2378156"}, "1151293680"  # delivered, paid by a credit card
PENDING = {"order_id": "#W4776164"}  # of the same user, with a T-shirt
CARD = "credit_card_9513926"
HOME = {"address1": "1", "address2": "", "city": "a", "state": "b", "country": "c", "zip": "d"}
BOOKING = {
    "user_id": "mia_li_3668",
    "origin": "JFK",
    "destination": "SEA",
    "flight_type": "one_way",
    "cabin": "economy",
    "flights": [{"flight_number": "HAT136", "date": "2024-05-20"}, {"flight_number": "HAT039", "date": "2024-05-20"}],
    "passengers": [{"first_name": "Mia", "last_name": "Li", "dob": "1990-04-05"}],
    "payment_methods": [{"payment_id": "certificate_7504069", "amount": 250},
                        {"payment_id": "credit_card_4421486", "amount": 5}],
    "total_baggages": 3,
    "nonfree_baggages": 0,
    "insurance": "no",
}  # fmt: skip
BAGS = {"reservation_id": "HXDUBJ", "total_baggages": 2, "nonfree_baggages": 2}
FLY = {"reservation_id": "HXDUBJ", "cabin": "business", "payment_id": "gift_card_6941833"}


def leg(number, date="2024-05-20"):
    return [{"flight_number": number, "date": date}]


REFUSED = [
    ("retail", "get_user_details", {"user_id": "x"}, "user not found"),
    ("retail", "find_user_id_by_name_zip", {"first_name": "Yusuf", "last_name": "Rossi", "zip": "1"}, "user not found"),
    ("retail", "get_order_details", {"order_id": "W2378156"}, "order not found"),
    ("retail", "cancel_pending_order", {**ORDER, "reason": "no longer needed"},
     "non-pending order cannot be cancelled"),
    ("retail", "modify_pending_order_address", {**ORDER, **HOME}, "non-pending order cannot be modified"),
    ("retail", "modify_pending_order_payment", {**ORDER, "payment_method_id": CARD},
     "non-pending order cannot be modified"),
    ("retail", "modify_pending_order_payment", {**PENDING, "payment_method_id": "x"}, "payment method not found"),
    ("retail", "modify_pending_order_payment", {**PENDING, "payment_method_id": CARD},
     "the new payment method should be different from the current one"),
    ("retail", "modify_pending_order_items", {**PENDING, "item_ids": ["1"], "new_item_ids": ["1"],
                                              "payment_method_id": CARD}, "1 not found"),
    ("retail", "modify_pending_order_items", {**PENDING, "item_ids": ["8349118980"], "new_item_ids": [],
                                              "payment_method_id": CARD},
     "the number of items to be exchanged should match"),
    ("retail", "modify_pending_order_items", {**PENDING, "item_ids": ["8349118980"], "new_item_ids": [ITEM],
                                              "payment_method_id": CARD}, f"new item {ITEM} not found or available"),
    ("retail", "modify_pending_order_items", {**PENDING, "item_ids": ["8349118980"], "new_item_ids": ["9647292434"],
                                              "payment_method_id": "x"}, "payment method not found"),
    ("retail", "return_delivered_order_items", {**PENDING, "item_ids": [], "payment_method_id": CARD},
     "non-delivered order cannot be returned"),
    ("retail", "return_delivered_order_items", {**ORDER, "item_ids": [], "payment_method_id": "x"},
     "payment method not found"),
    ("retail", "return_delivered_order_items", {**ORDER, "item_ids": [ITEM, ITEM], "payment_method_id": CARD},
     "some item not found"),
    ("retail", "exchange_delivered_order_items", {**PENDING, "item_ids": [], "new_item_ids": [],
                                                  "payment_method_id": CARD},
     "non-delivered order cannot be exchanged"),
    ("retail", "exchange_delivered_order_items", {**ORDER, "item_ids": [ITEM, ITEM], "new_item_ids": ["1", "2"],
                                                  "payment_method_id": CARD}, f"{ITEM} not found"),
    ("retail", "modify_user_address", {"user_id": "x", **HOME}, "user not found"),
    ("retail", "calculate", {"expression": "__import__('os')"}, "invalid characters in expression"),
    ("retail", "calculate", {"expression": "2 ** 3"}, "invalid syntax"),
    ("retail", "calculate", {"expression": "1 / (2 - 2)"}, "division by zero"),
    ("airline", "get_reservation_details", {"reservation_id": "x"}, "user not found"),
    ("airline", "cancel_reservation", {"reservation_id": "x"}, "reservation not found"),
    ("airline", "book_reservation", {**BOOKING, "user_id": "x"}, "user not found"),
    ("airline", "book_reservation", {**BOOKING, "flights": leg("HAT999")}, "flight HAT999 not found"),
    ("airline", "book_reservation", {**BOOKING, "flights": leg("HAT136", "2025-05-20")},
     "flight HAT136 not found on date 2025-05-20"),
    ("airline", "book_reservation", {**BOOKING, "flights": leg("HAT136", "2024-05-01")},
     "flight HAT136 not available on date 2024-05-01"),
    ("airline", "book_reservation", {**BOOKING, "passengers": BOOKING["passengers"] * 30},
     "not enough seats on flight HAT136"),
    ("airline", "book_reservation", {**BOOKING, "payment_methods": [{"payment_id": "x", "amount": 5}]},
     "payment method x not found"),
    ("airline", "book_reservation",
     {**BOOKING, "payment_methods": [{"payment_id": "certificate_7504069", "amount": 255}]},
     "not enough balance in payment method certificate_7504069"),
    ("airline", "book_reservation", {**BOOKING, "nonfree_baggages": 1},
     "payment amount does not add up, total price is 305, but paid 255"),
    ("airline", "book_reservation",
     {**BOOKING, "payment_methods": [{"payment_id": "certificate_7504069", "amount": amount} for amount in (250, 5)]},
     "'certificate_7504069'"),
    ("airline", "book_reservation",
     {**BOOKING, "payment_methods": [{"payment_id": "credit_card_4421486", "amount": sum} for sum in (0.5, 10**400)]},
     "int too large to convert to float"),
    ("airline", "update_reservation_baggages", {**BAGS, "payment_id": "x"}, "payment method not found"),
    ("airline", "update_reservation_baggages", {**BAGS, "payment_id": "certificate_2345996"},
     "certificate cannot be used to update reservation"),
    ("airline", "update_reservation_baggages", {**BAGS, "nonfree_baggages": 9, "payment_id": "gift_card_6941833"},
     "gift card balance is not enough"),
    ("airline", "update_reservation_flights", {**FLY, "flights": leg("HAT999")}, "flight HAT999 not found"),
    ("airline", "update_reservation_passengers", {"reservation_id": "HXDUBJ", "passengers": []},
     "number of passengers does not match"),
    ("airline", "send_certificate", {"user_id": "x", "amount": 1}, "user not found"),
]  # fmt: skip


@pytest.mark.parametrize(("domain", "name", "arguments", "error"), REFUSED)
def test_a_call_that_is_refused_says_why_and_changes_nothing(domain, name, arguments, error):
    world = WORLDS[domain](base(domain))
    assert world.call(name, arguments) == f"Error: {error}"
    assert world.events[-1].failed
    assert not world.events[-1].touched
    assert world.store.changes() == {}


def test_a_booking_is_kept_under_new_ids_and_its_certificate_is_used_up():
    world = Airline(base("airline"))
    first = json.loads(world.call("book_reservation", BOOKING))
    assert first["flights"][0] == {"flight_number": "HAT136", "date": "2024-05-20", "price": 152, "origin": "JFK",
                                   "destination": "ATL"}  # fmt: skip
    paid = [{"payment_id": "credit_card_4421486", "amount": 255}]
    assert (
        json.loads(world.call("book_reservation", {**BOOKING, "payment_methods": paid}))["reservation_id"] == "HATHAU"
    )
    user = world.store.changes()["users"]["mia_li_3668"]
    assert user["reservations"][-2:] == ["HATHAT", "HATHAU"]
    assert "certificate_7504069" not in user["payment_methods"]


def test_a_gift_card_pays_and_is_paid_back():
    world = Retail(base("retail"))
    pending = (key for key, order in base("retail")["orders"].items() if order["status"] == "pending")
    found = next(
        key for key in pending if "gift" in base("retail")["orders"][key]["payment_history"][0]["payment_method_id"]
    )
    order = world.store.get("orders", found)
    card, amount = (order["payment_history"][0][name] for name in ("payment_method_id", "amount"))
    before = base("retail")["users"][order["user_id"]]["payment_methods"][card]["balance"]
    world.call("cancel_pending_order", {"order_id": found, "reason": "no longer needed"})
    changed = world.store.changes()
    assert changed["users"][order["user_id"]]["payment_methods"][card]["balance"] == round(before + amount, 2)
    assert changed["orders"][found]["payment_history"][1] == {
        "transaction_type": "refund", "amount": amount, "payment_method_id": card}  # fmt: skip


def test_flights_with_a_stop_meet_and_the_second_may_be_on_the_next_day():
    world = Airline(base("airline"))
    found = json.loads(world.call("search_onestop_flight",
                                  {"origin": "ATL", "destination": "SEA", "date": "2024-05-21"}))  # fmt: skip
    assert len(found) == 22
    for one, two in found:
        assert (one["origin"], one["destination"], two["destination"]) == ("ATL", two["origin"], "SEA")
        assert one["scheduled_arrival_time_est"] <= two["scheduled_departure_time_est"]
        late = "+1" in one["scheduled_arrival_time_est"]
        assert (one["date"], two["date"]) == ("2024-05-21", "2024-05-22" if late else "2024-05-21")
        assert "dates" not in {**one, **two}
