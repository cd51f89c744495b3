"""The travel agency of BFCL's multi-turn tasks: flights, bookings, credit cards, insurance and a budget."""

# ruff: noqa: N803 - the documents name two parameters so
from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from verigym.tasks.worlds.bfcl.fares import AIRPORTS, PER_DOLLAR, fare
from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.world import World

ACTS = frozenset(
    {
        "authenticate_travel",
        "book_flight",
        "cancel_booking",
        "contact_customer_support",
        "purchase_insurance",
        "register_credit_card",
        "set_budget_limit",
    }
)
_NONE = "None"  # how the documents write an argument that is left out
_SEED = 141053  # with which numbers come out as the rows' calls name them
_DAY = re.compile(r"\d{4}-\d{1,2}-\d{1,2}", re.ASCII)
_FISCAL_YEAR = "2026"
_NEW_CARD = 50_000.0  # the balance of a card that is registered in an episode


def tables(config: Mapping[str, Any]) -> dict[str, dict[str, Record]]:
    """`cards`, `bookings` and `insurances` by their ids, and the session with its token."""
    cards = {str(key): dict(card) for key, card in config.get("credit_card_list", {}).items()}
    return {
        "cards": {key: {**card, "balance": float(card.get("balance", 0.0))} for key, card in cards.items()},
        "bookings": {str(key): dict(booking) for key, booking in config.get("booking_record", {}).items()},
        "insurances": {},
        "support_calls": {},
        "travel": {
            "session": {
                "access_token": config.get("access_token"),
                "token_type": config.get("token_type", "Bearer"),
                "expires_in": config.get("token_expires_in", 3600),
                "scope": config.get("token_scope"),
            },
            "user": {
                "first_name": config.get("user_first_name"),
                "last_name": config.get("user_last_name"),
            },
            "budget": {"limit": config.get("budget_limit")},
            "numbers": {"drawn": []},
        },
    }


class TravelAPI(World):
    """What a traveller has booked and how it is paid; who acts shows the session's token."""

    def authenticate_travel(
        self,
        client_id: str,
        client_secret: str,
        refresh_token: str,
        grant_type: str,
        user_first_name: str,
        user_last_name: str,
    ) -> dict[str, Any]:
        """Log in to the travel agency, for a token that other calls ask for.

        Args:
            client_id: The id of the client application.
            client_secret: The secret of the client application.
            refresh_token: The token of the first log-in.
            grant_type: What is asked for: read_write, read or write.
            user_first_name: The user's first name.
            user_last_name: The user's last name.
        """
        token = self.__number(6)
        client = {"client_id": client_id, "client_secret": client_secret, "refresh_token": refresh_token}
        session = {"access_token": token, "token_type": "Bearer", "expires_in": 3600, "scope": grant_type}
        self.store.put("travel", "session", {**session, **client})
        self.store.put("travel", "user", {"first_name": user_first_name, "last_name": user_last_name})
        return {"expires_in": 3600, "access_token": token, "token_type": "Bearer", "scope": grant_type}

    def book_flight(
        self,
        access_token: str,
        card_id: str,
        travel_date: str,
        travel_from: str,
        travel_to: str,
        travel_class: str,
    ) -> dict[str, Any]:
        """Book a flight and pay for it by card.

        Args:
            access_token: The token of the session.
            card_id: The id of the card.
            travel_date: The day, YYYY-MM-DD.
            travel_from: The airport of departure, three letters.
            travel_to: The airport of arrival, three letters.
            travel_class: economy, business or first.
        """
        self.__session(access_token)
        cost = fare(travel_from, travel_to, travel_date, travel_class)
        self.__charge(card_id, cost)
        booking_id, transaction_id = self.__number(7), self.__number(8)
        trip = {
            "travel_date": travel_date,
            "travel_from": travel_from,
            "travel_to": travel_to,
            "travel_class": travel_class,
            "travel_cost": cost,
            "transaction_id": transaction_id,
        }
        self.store.put("bookings", booking_id, {**trip, "card_id": card_id})
        history = {"booking_id": booking_id, **trip}
        return {
            "booking_id": booking_id,
            "transaction_id": transaction_id,
            "booking_status": True,
            "booking_history": history,
        }

    def cancel_booking(self, access_token: str, booking_id: str) -> dict[str, Any]:
        """Cancel a booking; what it cost goes back to the card.

        Args:
            access_token: The token of the session.
            booking_id: The id of the booking.
        """
        self.__session(access_token)
        booking = self.__booking(booking_id)
        if self.store.get("cards", str(booking.get("card_id"))) is not None:
            self.__charge(str(booking["card_id"]), -float(booking.get("travel_cost", 0.0)))
        self.store.delete("bookings", booking_id)
        return {"cancel_status": True}

    def compute_exchange_rate(self, base_currency: str, target_currency: str, value: float) -> dict[str, Any]:
        """Convert an amount of money.

        Args:
            base_currency: The currency that it is in: USD, RMB, EUR, JPY, GBP, CAD, AUD, INR, RUB, BRL or MXN.
            target_currency: The currency to convert it to, one of the same.
            value: The amount.
        """
        for currency in (base_currency, target_currency):
            if currency not in PER_DOLLAR:
                raise ValueError(f"no currency '{currency[:20]}'; there are {', '.join(PER_DOLLAR)}")
        exchanged = value * PER_DOLLAR[target_currency] / PER_DOLLAR[base_currency]
        return {"exchanged_value": round(exchanged, 2)}

    def contact_customer_support(self, booking_id: str, message: str) -> dict[str, Any]:
        """Write to the customer support about a booking.

        Args:
            booking_id: The id of the booking.
            message: What is said.
        """
        self.__booking(booking_id)
        number = len(self.store.keys("support_calls")) + 1
        self.store.put("support_calls", str(number), {"booking_id": booking_id, "message": message})
        return {"customer_support_message": "Thank you for your message. We will look into it and contact you soon."}

    def get_all_credit_cards(self) -> dict[str, Any]:
        """Show all credit cards that are registered."""
        cards = {key: self.store.get("cards", key) or {} for key in self.store.keys("cards")}
        return {"credit_card_list": cards}

    def get_booking_history(self, access_token: str) -> dict[str, Any]:
        """Show all bookings.

        Args:
            access_token: The token of the session.
        """
        self.__session(access_token)
        return {"booking_history": {key: self.__booking(key) for key in self.store.keys("bookings")}}

    def get_budget_fiscal_year(self, lastModifiedAfter: str = _NONE, includeRemoved: str = _NONE) -> dict[str, Any]:
        """Tell the fiscal year of the budget.

        Args:
            lastModifiedAfter: Only years that were changed after this time, YYYY-MM-DDTHH:MM:SS (default: all).
            includeRemoved: "true" for removed years too (default: not).
        """
        return {"budget_fiscal_year": _FISCAL_YEAR}

    def get_credit_card_balance(self, access_token: str, card_id: str) -> dict[str, Any]:
        """Tell the balance of a card.

        Args:
            access_token: The token of the session.
            card_id: The id of the card.
        """
        self.__session(access_token)
        return {"card_balance": self.__card(card_id)["balance"]}

    def get_flight_cost(self, travel_from: str, travel_to: str, travel_date: str, travel_class: str) -> dict[str, Any]:
        """Tell what a flight costs, in USD.

        Args:
            travel_from: The airport of departure, three letters.
            travel_to: The airport of arrival, three letters.
            travel_date: The day, YYYY-MM-DD.
            travel_class: economy, business or first.
        """
        return {"travel_cost_list": [fare(travel_from, travel_to, travel_date, travel_class)]}

    def get_nearest_airport_by_city(self, location: str) -> dict[str, Any]:
        """Tell the nearest airport to a city.

        Args:
            location: The name of the city.
        """
        airports = {city.casefold(): code for city, code in AIRPORTS.items()}
        code = airports.get(location.strip().casefold())
        if code is None:
            raise ValueError(f"no airport is known near '{location[:40]}'; there are ones in {', '.join(AIRPORTS)}")
        return {"nearest_airport": code}

    def list_all_airports(self) -> dict[str, Any]:
        """List all airports."""
        return {"airports": list(AIRPORTS.values())}

    def purchase_insurance(
        self,
        access_token: str,
        insurance_type: str,
        insurance_cost: float,
        booking_id: str,
        card_id: str,
    ) -> dict[str, Any]:
        """Buy an insurance for a booking and pay for it by card, even above its balance.

        Args:
            access_token: The token of the session.
            insurance_type: What kind of insurance.
            insurance_cost: What it costs.
            booking_id: The id of the booking.
            card_id: The id of the card.
        """
        self.__session(access_token)
        self.__booking(booking_id)
        if insurance_cost < 0:
            raise ValueError("insurance_cost must be at least 0")
        self.__charge(card_id, float(insurance_cost), on_credit=True)
        insurance_id = self.__number(9)
        bought = {"booking_id": booking_id, "insurance_type": insurance_type, "insurance_cost": float(insurance_cost)}
        self.store.put("insurances", insurance_id, {**bought, "card_id": card_id})
        return {"insurance_id": insurance_id, "insurance_status": True}

    def register_credit_card(
        self,
        access_token: str,
        card_number: str,
        expiration_date: str,
        cardholder_name: str,
        card_verification_number: int,
    ) -> dict[str, Any]:
        """Register a credit card.

        Args:
            access_token: The token of the session.
            card_number: The number of the card.
            expiration_date: When it expires, MM/YYYY.
            cardholder_name: Whose card it is.
            card_verification_number: Its verification number.
        """
        self.__session(access_token)
        card_id = self.__number(12)
        card = {
            "card_number": card_number,
            "expiration_date": expiration_date,
            "cardholder_name": cardholder_name,
            "card_verification_number": card_verification_number,
            "balance": _NEW_CARD,
        }
        self.store.put("cards", card_id, card)
        return {"card_id": card_id}

    def retrieve_invoice(self, access_token: str, booking_id: str = _NONE, insurance_id: str = _NONE) -> dict[str, Any]:
        """Show the invoice of a booking, or of an insurance and its booking.

        Args:
            access_token: The token of the session.
            booking_id: The id of the booking.
            insurance_id: The id of the insurance.
        """
        self.__session(access_token)
        invoice: Record = {}
        if insurance_id != _NONE:
            insurance = self.store.get("insurances", insurance_id)
            if insurance is None:
                raise ValueError(f"there is no insurance {insurance_id[:40]}")
            invoice = {"insurance_id": insurance_id, **insurance}
        if booking_id != _NONE:
            invoice |= {"booking_id": booking_id, **self.__booking(booking_id)}
        if not invoice:
            raise ValueError("give a booking_id or an insurance_id")
        return {"invoice": invoice}

    def set_budget_limit(self, access_token: str, budget_limit: float) -> dict[str, Any]:
        """Set how much the user wants to spend.

        Args:
            access_token: The token of the session.
            budget_limit: The amount in USD.
        """
        self.__session(access_token)
        if budget_limit < 0:
            raise ValueError("budget_limit must be at least 0")
        self.store.put("travel", "budget", {"limit": float(budget_limit)})
        return {"budget_limit": float(budget_limit)}

    def travel_get_login_status(self) -> dict[str, Any]:
        """Tell whether there is a session."""
        return {"status": bool((self.store.get("travel", "session") or {}).get("access_token"))}

    def verify_traveler_information(
        self, first_name: str, last_name: str, date_of_birth: str, passport_number: str
    ) -> dict[str, Any]:
        """Check who travels: the user of the session, who is of age and has a passport of the United States.

        Args:
            first_name: The first name.
            last_name: The last name.
            date_of_birth: The day of birth, YYYY-MM-DD.
            passport_number: The number of the passport.
        """
        user = self.store.get("travel", "user") or {}
        if (first_name, last_name) != (user.get("first_name"), user.get("last_name")):
            return _unverified("the name is not that of the user")
        if not _DAY.fullmatch(date_of_birth):
            return _unverified("the date of birth must be written YYYY-MM-DD")
        if int(_FISCAL_YEAR) - int(date_of_birth[:4]) < 18:
            return _unverified("the traveler must be at least 18 years old")
        if not passport_number.isalnum() or not 6 <= len(passport_number) <= 9:
            return _unverified("the passport number must be of 6 to 9 letters and digits")
        return {"verification_status": True, "verification_failure": None}

    def __session(self, access_token: str) -> None:
        session = self.store.get("travel", "session") or {}
        if not session.get("access_token") or session["access_token"] != access_token:
            raise ValueError("the access token is not valid; authenticate_travel gives a new one")

    def __card(self, card_id: str) -> Record:
        card = self.store.get("cards", card_id)
        if card is None:
            raise ValueError(f"there is no credit card {card_id[:40]}; see get_all_credit_cards")
        return card

    def __booking(self, booking_id: str) -> Record:
        booking = self.store.get("bookings", booking_id)
        if booking is None:
            raise ValueError(f"there is no booking {booking_id[:40]}")
        return booking

    def __charge(self, card_id: str, cost: float, *, on_credit: bool = False) -> None:
        card = self.__card(card_id)
        if cost > card["balance"] and not on_credit:
            raise ValueError(f"the balance of card {card_id} is {card['balance']}, below the cost of {cost}")
        self.store.put("cards", card_id, {**card, "balance": round(card["balance"] - cost, 2)})

    def __number(self, digits: int) -> str:
        """The next id: the numbers drawn so far, by their digits, are drawn again from the seed.

        One that the state gives, by its place in this order, takes the place of the one that is drawn.
        """
        drawn = [*(self.store.get("travel", "numbers") or {"drawn": []})["drawn"], digits]
        self.store.put("travel", "numbers", {"drawn": drawn})
        given = self.store.get("travel", "given") or {}
        if str(len(drawn)) in given:
            return str(given[str(len(drawn))])
        generator = random.Random(_SEED)
        return str([generator.randint(10 ** (each - 1), 10**each - 1) for each in drawn][-1])


def _unverified(why: str) -> dict[str, Any]:
    return {"verification_status": False, "verification_failure": why}
