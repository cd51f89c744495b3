"""The airline of tau-bench: flights to look for, reservations to book, change and cancel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.tau._service import Service, text
from verigym.tasks.worlds.tool import Refused

_NOW = "2024-05-15T15:00:00"  # as the policy says
_NEW_IDS = ("HATHAT", "HATHAU", "HATHAV")  # of which the last one is given again and again
_CERTIFICATES = tuple(f"certificate_{number}" for number in (3221322, 3221323, 3221324))
_SCHEDULE = (
    "flight_number",
    "origin",
    "destination",
    "scheduled_departure_time_est",
    "scheduled_arrival_time_est",
)
_AIRPORTS = {
    "SFO": "San Francisco",
    "JFK": "New York",
    "LAX": "Los Angeles",
    "ORD": "Chicago",
    "DFW": "Dallas",
    "DEN": "Denver",
    "SEA": "Seattle",
    "ATL": "Atlanta",
    "MIA": "Miami",
    "BOS": "Boston",
    "PHX": "Phoenix",
    "IAH": "Houston",
    "LAS": "Las Vegas",
    "MCO": "Orlando",
    "EWR": "Newark",
    "CLT": "Charlotte",
    "MSP": "Minneapolis",
    "DTW": "Detroit",
    "PHL": "Philadelphia",
    "LGA": "LaGuardia",
}

Cabin = Literal["basic_economy", "economy", "business"]


class Leg(TypedDict):
    """A flight on a day (YYYY-MM-DD)."""

    flight_number: str
    date: str


class Passenger(TypedDict):
    """Who flies; the day of birth is YYYY-MM-DD."""

    first_name: str
    last_name: str
    dob: str


class Payment(TypedDict):
    """What is paid by one of the user's payment methods."""

    payment_id: str
    amount: float


class Airline(Service):
    """`users`, `flights` and `reservations` by id; a flight has its seats and prices by date."""

    def list_all_airports(self) -> str:
        """List all airports with their cities."""
        return text(_AIRPORTS)

    def search_direct_flight(self, origin: str, destination: str, date: str) -> str:
        """Look for flights without a stop between two airports that can be booked on a day.

        Args:
            origin: an airport, such as 'JFK'.
            destination: an airport, such as 'LAX'.
            date: YYYY-MM-DD, such as '2024-01-01'.
        """
        return text(
            self._flights(lambda flight: (flight["origin"], flight["destination"]) == (origin, destination), date)
        )

    def search_onestop_flight(self, origin: str, destination: str, date: str) -> str:
        """Look for flights with one stop between two airports that can be booked on a day.

        Args:
            origin: an airport, such as 'JFK'.
            destination: an airport, such as 'LAX'.
            date: YYYY-MM-DD, such as '2024-05-01', of the first of the two flights.
        """
        firsts = self._flights(lambda flight: flight["origin"] == origin, date)
        days = {date, *(_next_day(date) for flight in firsts if "+1" in flight["scheduled_arrival_time_est"])}
        seconds = {day: self._flights(lambda flight: flight["destination"] == destination, day) for day in days}
        pairs = [
            [{**first, "date": date}, {**second, "date": day}]
            for first in firsts
            for day in [_next_day(date) if "+1" in first["scheduled_arrival_time_est"] else date]
            for second in seconds[day]
            if first["destination"] == second["origin"]
            and first["scheduled_arrival_time_est"] <= second["scheduled_departure_time_est"]
        ]
        return text(pairs)

    def get_reservation_details(self, reservation_id: str) -> str:
        """Show a reservation: flights, passengers, payments and baggage.

        Args:
            reservation_id: such as '8JX2WO'.
        """
        return text(self._record("reservations", reservation_id, "user not found"))

    def book_reservation(
        self,
        user_id: str,
        origin: str,
        destination: str,
        flight_type: Literal["one_way", "round_trip"],
        cabin: Cabin,
        flights: list[Leg],
        passengers: list[Passenger],
        payment_methods: list[Payment],
        total_baggages: int,
        nonfree_baggages: int,
        insurance: Literal["yes", "no"],
    ) -> str:
        """Book flights for a user, once the user has confirmed it.

        Args:
            user_id: who books, such as 'sara_doe_496'.
            origin: an airport, such as 'SFO'.
            destination: an airport, such as 'JFK'.
            flight_type: whether the trip goes back, too.
            cabin: the class of all flights.
            flights: each flight with its day.
            passengers: who flies.
            payment_methods: what each pays; together the price to the cent.
            total_baggages: all bags.
            nonfree_baggages: the bags that cost 50 dollars each.
            insurance: 30 dollars for each passenger.
        """
        user = self._record("users", user_id, "user not found")
        legs = [self._booked(leg, cabin, len(passengers)) for leg in flights]
        price = sum(leg["price"] for leg in legs) * len(passengers) + 50 * nonfree_baggages
        price += 30 * len(passengers) if insurance == "yes" else 0
        for payment in payment_methods:
            method = self._payment_method(user, payment["payment_id"], f"{payment['payment_id']} ")
            if method["source"] != "credit_card" and method["amount"] < payment["amount"]:
                raise Refused(f"Error: not enough balance in payment method {payment['payment_id']}")
        paid = sum(payment["amount"] for payment in payment_methods)
        if paid != price:
            raise Refused(f"Error: payment amount does not add up, total price is {price}, but paid {paid}")
        for payment in payment_methods:
            _spend(user, payment["payment_id"], payment["amount"])
        reservation_id = next((key for key in _NEW_IDS if ("reservations", key) not in self.store), _NEW_IDS[-1])
        user["reservations"].append(reservation_id)
        self.store.put("users", user_id, user)
        return self._keep(
            {
                "reservation_id": reservation_id,
                "user_id": user_id,
                "origin": origin,
                "destination": destination,
                "flight_type": flight_type,
                "cabin": cabin,
                "flights": legs,
                "passengers": passengers,
                "payment_history": payment_methods,
                "created_at": _NOW,
                "total_baggages": total_baggages,
                "nonfree_baggages": nonfree_baggages,
                "insurance": insurance,
            }
        )

    def cancel_reservation(self, reservation_id: str) -> str:
        """Cancel a whole reservation, once the user has confirmed it, and refund it.

        Args:
            reservation_id: such as 'ZFA04Y'.
        """
        reservation = self._reservation(reservation_id)
        payments = reservation["payment_history"]
        payments += [{"payment_id": payment["payment_id"], "amount": -payment["amount"]} for payment in payments]
        reservation["status"] = "cancelled"
        return self._keep(reservation)

    def update_reservation_flights(self, reservation_id: str, cabin: Cabin, flights: list[Leg], payment_id: str) -> str:
        """Change the flights of a reservation or their class, once the user has confirmed it.

        Args:
            reservation_id: such as 'ZFA04Y'.
            cabin: the class of all flights.
            flights: all flights that there are to be, those that stay as they are among them.
            payment_id: pays the difference in price, or gets it back.
        """
        reservation = self._reservation(reservation_id)
        people = len(reservation["passengers"])
        kept = reservation["flights"] if cabin == reservation["cabin"] else []
        legs = [_kept(leg, kept) or self._booked(leg, cabin, people) for leg in flights]
        price = sum(leg["price"] for leg in legs) - sum(leg["price"] for leg in reservation["flights"])
        self._pay(reservation, payment_id, price * people)
        reservation["flights"] = legs
        self._upgrade(reservation, cabin)
        return self._keep(reservation)

    def update_reservation_passengers(self, reservation_id: str, passengers: list[Passenger]) -> str:
        """Change who flies, as many people as before, once the user has confirmed it.

        Args:
            reservation_id: such as 'ZFA04Y'.
            passengers: all who fly.
        """
        reservation = self._reservation(reservation_id)
        if len(passengers) != len(reservation["passengers"]):
            raise Refused("Error: number of passengers does not match")
        reservation["passengers"] = passengers
        return self._keep(reservation)

    def update_reservation_baggages(
        self, reservation_id: str, total_baggages: int, nonfree_baggages: int, payment_id: str
    ) -> str:
        """Change the bags of a reservation, once the user has confirmed it.

        Args:
            reservation_id: such as 'ZFA04Y'.
            total_baggages: all bags that there are to be.
            nonfree_baggages: those of them that cost 50 dollars each.
            payment_id: pays.
        """
        reservation = self._reservation(reservation_id)
        self._pay(reservation, payment_id, 50 * max(0, nonfree_baggages - reservation["nonfree_baggages"]))
        reservation |= {"total_baggages": total_baggages, "nonfree_baggages": nonfree_baggages}
        return self._keep(reservation)

    def send_certificate(self, user_id: str, amount: float) -> str:
        """Send a user a travel certificate. It cannot be taken back.

        Args:
            user_id: such as 'sara_doe_496'.
            amount: dollars.
        """
        user = self._record("users", user_id, "user not found")
        payment_id = next((key for key in _CERTIFICATES if key not in user["payment_methods"]), None)
        if payment_id is None:
            raise Refused("Error: no more certificates can be sent to this user")
        user["payment_methods"][payment_id] = {"source": "certificate", "amount": amount, "id": payment_id}
        self.store.put("users", user_id, user)
        return f"Certificate {payment_id} added to user {user_id} with amount {amount}."

    def _flights(self, test: Callable[[Record], bool], date: str) -> list[Record]:
        """The flights that pass a test and can be booked on a day, each with its seats and prices on that day."""
        return [
            {name: self.store.part("flights", key, name) for name in _SCHEDULE}
            | self.store.part("flights", key, "dates", date)
            for key in self.store.where("flights", lambda flight: test(flight) and _available(flight, date))
        ]

    def _booked(self, leg: Leg, cabin: Cabin, people: int) -> dict[str, Any]:
        """A leg with its price and airports. Raises Refused if it cannot be booked."""
        number, date = leg["flight_number"], leg["date"]
        flight = self._record("flights", number, f"flight {number} not found")
        day = flight["dates"].get(date)
        if day is None:
            raise Refused(f"Error: flight {number} not found on date {date}")
        if day["status"] != "available":
            raise Refused(f"Error: flight {number} not available on date {date}")
        if day["available_seats"][cabin] < people:
            raise Refused(f"Error: not enough seats on flight {number}")
        return {**leg, "price": day["prices"][cabin], "origin": flight["origin"], "destination": flight["destination"]}

    def _pay(self, reservation: Record, payment_id: str, price: float) -> None:
        """Pays or refunds a change of a reservation, and notes it there. Raises Refused."""
        user = self._record("users", reservation["user_id"], "user not found")
        method = self._payment_method(user, payment_id)
        if method["source"] == "certificate":
            raise Refused("Error: certificate cannot be used to update reservation")
        if method["source"] == "gift_card" and method["amount"] < price:
            raise Refused("Error: gift card balance is not enough")
        _spend(user, payment_id, price)
        self.store.put("users", reservation["user_id"], user)
        if price != 0:
            reservation["payment_history"].append({"payment_id": payment_id, "amount": price})

    def _upgrade(self, reservation: Record, cabin: Cabin) -> None:
        """tau-bench's records keep the old class in the reservation, whatever was paid for."""

    def _reservation(self, reservation_id: str) -> Record:
        return self._record("reservations", reservation_id, "reservation not found")

    def _keep(self, reservation: Record) -> str:
        self.store.put("reservations", reservation["reservation_id"], reservation)
        return text(reservation)


class Airline2(Airline):
    """The airline as tau2-bench has it: a new class is noted in the reservation."""

    def get_flight_status(self, flight_number: str, date: str) -> str:
        """Tell the status of a flight on a day.

        Args:
            flight_number: such as 'HAT001'.
            date: YYYY-MM-DD, such as '2024-05-01'.
        """
        flight = self._record("flights", flight_number, f"flight {flight_number} not found")
        if date not in flight["dates"]:
            raise Refused(f"Error: flight {flight_number} not found on date {date}")
        return str(flight["dates"][date]["status"])

    def _upgrade(self, reservation: Record, cabin: Cabin) -> None:
        reservation["cabin"] = cabin


def _available(flight: Record, date: str) -> bool:
    day = flight["dates"].get(date)
    return day is not None and day["status"] == "available"


def _next_day(date: str) -> str:
    """The day after one of May 2024, as tau-bench writes it: "2024-05-2" is none on which there are flights."""
    return f"2024-05-{int(date[-2:]) + 1}"


def _kept(leg: Leg, legs: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The leg as it is in the reservation, if it is there."""
    for old in legs:
        if all(old[name] == leg[name] for name in ("flight_number", "date")):  # type: ignore[literal-required]
            return {**leg, **{name: old[name] for name in ("price", "origin", "destination")}}
    return None


def _spend(user: Record, payment_id: str, amount: float) -> None:
    """Takes an amount from a gift card; a certificate is used up, whatever it is worth."""
    method = user["payment_methods"][payment_id]
    if method["source"] == "gift_card":
        method["amount"] -= amount
    elif method["source"] == "certificate":
        del user["payment_methods"][payment_id]
