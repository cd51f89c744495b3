"""The shop of tau-bench: orders that can be cancelled, changed, returned and exchanged."""

from __future__ import annotations

from typing import Any, Literal

from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.tau._service import Service, text
from verigym.tasks.worlds.tool import Refused


class Retail(Service):
    """`users`, `orders` and `products` by id; a product's variants are the items."""

    def find_user_id_by_email(self, email: str) -> str:
        """Find a user's id by the email address.

        Args:
            email: such as 'something@example.com'.
        """
        return self._user_where(lambda user: user["email"].lower() == email.lower())

    def find_user_id_by_name_zip(self, first_name: str, last_name: str, zip: str) -> str:
        """Find a user's id by name and zip code: for users who cannot be found by email.

        Args:
            first_name: such as 'John'.
            last_name: such as 'Doe'.
            zip: such as '12345'.
        """
        name = (first_name.lower(), last_name.lower(), zip)
        return self._user_where(lambda user: _name_zip(user) == name)

    def list_all_product_types(self) -> str:
        """List the names of all products with their ids."""
        products = [(self.store.part("products", key, "name"), key) for key in self.store.keys("products")]
        return text(dict(sorted(products)))

    def get_product_details(self, product_id: str) -> str:
        """Show a product with all its items: options, price, and whether they can be had.

        Args:
            product_id: such as '6086499569', which is not the id of an item.
        """
        return text(self._record("products", product_id, "product not found"))

    def get_order_details(self, order_id: str) -> str:
        """Show an order: its status, items, address and payments.

        Args:
            order_id: such as '#W0000000', with the '#'.
        """
        return text(self._order(order_id))

    def cancel_pending_order(self, order_id: str, reason: Literal["no longer needed", "ordered by mistake"]) -> str:
        """Cancel a pending order and refund it, once the user has confirmed it.

        Args:
            order_id: such as '#W0000000', with the '#'.
            reason: why.
        """
        order = self._order(order_id)
        if order["status"] != "pending":
            raise Refused("Error: non-pending order cannot be cancelled")
        refunds = [{**payment, "transaction_type": "refund"} for payment in order["payment_history"]]
        for refund in refunds:
            if "gift_card" in refund["payment_method_id"]:
                self._add_to_gift_card(order, refund["payment_method_id"], refund["amount"])
        order |= {"status": "cancelled", "cancel_reason": reason}
        order["payment_history"] += refunds
        return self._keep(order)

    def modify_pending_order_address(
        self, order_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str
    ) -> str:
        """Send a pending order to another address, once the user has confirmed it.

        Args:
            order_id: such as '#W0000000', with the '#'.
            address1: the first line, such as '123 Main St'.
            address2: the second line, such as 'Apt 1' or ''.
            city: such as 'San Francisco'.
            state: such as 'CA'.
            country: such as 'USA'.
            zip: such as '12345'.
        """
        order = self._open(order_id)
        order["address"] = _address(address1, address2, city, state, country, zip)
        return self._keep(order)

    def modify_pending_order_payment(self, order_id: str, payment_method_id: str) -> str:
        """Have a pending order paid in another way, once the user has confirmed it.

        Args:
            order_id: such as '#W0000000', with the '#'.
            payment_method_id: such as 'gift_card_0000000', from the user's profile.
        """
        order = self._open(order_id)
        method = self._payment_method(self._user_of(order), payment_method_id)
        payments = order["payment_history"]
        if len(payments) != 1 or payments[0]["transaction_type"] != "payment":
            raise Refused("Error: there should be exactly one payment for a pending order")
        before, amount = payments[0]["payment_method_id"], payments[0]["amount"]
        if before == payment_method_id:
            raise Refused("Error: the new payment method should be different from the current one")
        _refuse_too_little(method, amount, "the order")
        payments += [_transaction("payment", amount, payment_method_id), _transaction("refund", amount, before)]
        if method["source"] == "gift_card":
            self._add_to_gift_card(order, payment_method_id, -amount)
        if "gift_card" in before:
            self._add_to_gift_card(order, before, amount)
        return self._keep(order)

    def modify_pending_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> str:
        """Change items of a pending order for others of the same products, once the user has confirmed it.

        This can be done once in an order: ask first whether these are all items.

        Args:
            order_id: such as '#W0000000', with the '#'.
            item_ids: the items that go, each such as '1008292230'; one may stand there twice.
            new_item_ids: those that come, each at the place of the one that it replaces.
            payment_method_id: pays the difference in price, or gets it back.
        """
        order = self._pending(order_id)
        _refuse_unknown(order, item_ids)
        variants, difference = self._exchange(order, item_ids, new_item_ids)
        method = self._payment_method(self._user_of(order), payment_method_id)
        _refuse_too_little(method, difference, "the new item")
        kind = "payment" if difference > 0 else "refund"
        order["payment_history"].append(_transaction(kind, abs(difference), payment_method_id))
        if method["source"] == "gift_card":
            self._add_to_gift_card(order, payment_method_id, -difference)
        for item_id, variant in zip(item_ids, variants, strict=True):
            _item(order, item_id).update({name: variant[name] for name in ("item_id", "price", "options")})
        order["status"] = "pending (item modified)"
        return self._keep(order)

    def return_delivered_order_items(self, order_id: str, item_ids: list[str], payment_method_id: str) -> str:
        """Take back items of a delivered order, once the user has confirmed it; an email tells the user how.

        Args:
            order_id: such as '#W0000000', with the '#'.
            item_ids: the items, each such as '1008292230'; one may stand there twice.
            payment_method_id: gets the refund: the one that paid, or a gift card.
        """
        order = self._order(order_id)
        if order["status"] != "delivered":
            raise Refused("Error: non-delivered order cannot be returned")
        self._payment_method(self._user_of(order), payment_method_id)
        if "gift_card" not in payment_method_id and payment_method_id != _paid_by(order):
            raise Refused("Error: payment method should be either the original payment method or a gift card")
        _refuse_unknown(order, item_ids, "some item")
        order |= {
            "status": "return requested",
            "return_items": sorted(item_ids),
            "return_payment_method_id": payment_method_id,
        }
        return self._keep(order)

    def exchange_delivered_order_items(
        self, order_id: str, item_ids: list[str], new_item_ids: list[str], payment_method_id: str
    ) -> str:
        """Exchange items of a delivered order for others of the same products, once the user has confirmed it.

        An order can be exchanged or returned once.

        Args:
            order_id: such as '#W0000000', with the '#'.
            item_ids: the items that go, each such as '1008292230'; one may stand there twice.
            new_item_ids: those that come, each at the place of the one that it replaces.
            payment_method_id: pays the difference in price, or gets it back.
        """
        order = self._order(order_id)
        if order["status"] != "delivered":
            raise Refused("Error: non-delivered order cannot be exchanged")
        _refuse_unknown(order, item_ids)
        _, difference = self._exchange(order, item_ids, new_item_ids)
        method = self._payment_method(self._user_of(order), payment_method_id)
        _refuse_too_little(method, round(difference, 2), "the price difference")
        order |= {
            "status": "exchange requested",
            "exchange_items": sorted(item_ids),
            "exchange_new_items": sorted(new_item_ids),
            "exchange_payment_method_id": payment_method_id,
            "exchange_price_difference": round(difference, 2),
        }
        return self._keep(order)

    def modify_user_address(
        self, user_id: str, address1: str, address2: str, city: str, state: str, country: str, zip: str
    ) -> str:
        """Change a user's default address, once the user has confirmed it.

        Args:
            user_id: such as 'sara_doe_496'.
            address1: the first line, such as '123 Main St'.
            address2: the second line, such as 'Apt 1' or ''.
            city: such as 'San Francisco'.
            state: such as 'CA'.
            country: such as 'USA'.
            zip: such as '12345'.
        """
        user = self._record("users", user_id, "user not found")
        user["address"] = _address(address1, address2, city, state, country, zip)
        self.store.put("users", user_id, user)
        return text(user)

    def _user_where(self, test: Any) -> str:
        found = self.store.where("users", test)
        if not found:
            raise Refused("Error: user not found")
        self.store.part("users", found[0], "email")  # the record was looked at
        return found[0]

    def _order(self, order_id: str) -> Record:
        return self._record("orders", order_id, "order not found")

    def _pending(self, order_id: str) -> Record:
        order = self._order(order_id)
        if order["status"] != "pending":
            raise Refused("Error: non-pending order cannot be modified")
        return order

    def _open(self, order_id: str) -> Record:
        """An order that can get another address or payment."""
        return self._pending(order_id)

    def _user_of(self, order: Record) -> Record:
        return self._record("users", order["user_id"], "user not found")

    def _keep(self, order: Record) -> str:
        self.store.put("orders", order["order_id"], order)
        return text(order)

    def _add_to_gift_card(self, order: Record, payment_method_id: str, amount: float) -> None:
        if not amount:
            return
        user = self._user_of(order)
        card = user["payment_methods"][payment_method_id]
        card["balance"] = round(card["balance"] + amount, 2)
        self.store.put("users", order["user_id"], user)

    def _exchange(self, order: Record, item_ids: list[str], new_ids: list[str]) -> tuple[list[dict[str, Any]], float]:
        """The variants that come, and what they cost more than those that go. Raises Refused."""
        if len(item_ids) != len(new_ids):
            raise Refused("Error: the number of items to be exchanged should match")
        variants, difference = [], 0
        for item_id, new_id in zip(item_ids, new_ids, strict=True):
            item = _item(order, item_id)
            variant = self.store.part("products", item["product_id"], "variants", new_id)
            if variant is None or not variant["available"]:
                raise Refused(f"Error: new item {new_id} not found or available")
            variants.append(variant)
            difference += variant["price"] - item["price"]
        return variants, difference


class Retail2(Retail):
    """The shop as tau2-bench has it: an order whose items were changed can get another address."""

    def get_item_details(self, item_id: str) -> str:
        """Show an item: options, price, and whether it can be had.

        Args:
            item_id: such as '1008292230', which is not the id of a product.
        """
        found = self.store.where("products", lambda product: item_id in product["variants"])
        if not found:
            raise Refused("Error: item not found")
        return text(self._record("products", found[0], "item not found")["variants"][item_id])

    def _open(self, order_id: str) -> Record:
        order = self._order(order_id)
        if not order["status"].startswith("pending"):
            raise Refused("Error: non-pending order cannot be modified")
        return order


def _name_zip(user: Record) -> tuple[str, str, str]:
    name = user["name"]
    return name["first_name"].lower(), name["last_name"].lower(), user["address"]["zip"]


def _address(address1: str, address2: str, city: str, state: str, country: str, zip_code: str) -> dict[str, str]:
    return {
        "address1": address1,
        "address2": address2,
        "city": city,
        "state": state,
        "country": country,
        "zip": zip_code,
    }


def _transaction(kind: str, amount: float, payment_method_id: str) -> dict[str, Any]:
    return {"transaction_type": kind, "amount": amount, "payment_method_id": payment_method_id}


def _paid_by(order: Record) -> str:
    return str(order["payment_history"][0]["payment_method_id"])


def _item(order: Record, item_id: str) -> dict[str, Any]:
    """The first item of an order with this id."""
    item: dict[str, Any] = next(item for item in order["items"] if item["item_id"] == item_id)
    return item


def _refuse_unknown(order: Record, item_ids: list[str], what: str = "") -> None:
    """Raises Refused for an item that is not so often in the order."""
    there = [item["item_id"] for item in order["items"]]
    for item_id in item_ids:
        if item_ids.count(item_id) > there.count(item_id):
            raise Refused(f"Error: {what or item_id} not found")


def _refuse_too_little(method: dict[str, Any], amount: float, what: str) -> None:
    if method["source"] == "gift_card" and method["balance"] < amount:
        raise Refused(f"Error: insufficient gift card balance to pay for {what}")
