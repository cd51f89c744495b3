"""What flights cost, and where they go: the airports, fares and currencies of BFCL's travel agency."""

from __future__ import annotations

import re
import zlib

AIRPORTS = {
    "Rivermist": "RMS",
    "Stonebrook": "SBK",
    "Maplecrest": "MPC",
    "Silverpine": "SVP",
    "Shadowridge": "SHR",
    "London": "LHR",
    "Paris": "CDG",
    "Sunset Valley": "SSV",
    "Oakendale": "OKD",
    "Willowbend": "WLB",
    "Crescent Hollow": "CRH",
    "Autumnville": "ATV",
    "Pinehaven": "PHV",
    "Greenfield": "GFD",
    "San Francisco": "SFO",
    "Los Angeles": "LAX",
    "New York": "JFK",
    "Chicago": "ORD",
    "Beijing": "PEK",
    "Hong Kong": "HKG",
    "Rome": "CIA",
    "Tokyo": "HND",
    "Boston": "BOS",
}
_FARES = {"JFK-RMS": 210, "CIA-SFO": 700, "LAX-SFO": 200}  # of economy, where a row tells it
_CLASSES = {"economy": 1, "business": 2, "first": 5}
PER_DOLLAR = {
    "USD": 1.0, "RMB": 7.0, "EUR": 0.8, "JPY": 110.0, "GBP": 0.7, "CAD": 1.3, "AUD": 1.4, "INR": 70.0, "RUB": 60.0,
    "BRL": 3.8, "MXN": 20.0,
}  # fmt: skip
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}", re.ASCII)


def fare(travel_from: str, travel_to: str, travel_date: str, travel_class: str) -> float:
    """The price of a flight: by the route, twice as much in business, five times in first class.

    A day whose digits add up to an even number costs double, as the fares that the rows quote tell.
    """
    for code in (travel_from, travel_to):
        if code not in AIRPORTS.values():
            raise ValueError(f"no airport '{code[:20]}'; see list_all_airports")
    if travel_from == travel_to:
        raise ValueError("a flight goes from one airport to another")
    if not _DATE.fullmatch(travel_date):
        raise ValueError(f"a date is written YYYY-MM-DD, not '{travel_date[:20]}'")
    if travel_class.casefold() not in _CLASSES:
        raise ValueError(f"travel_class must be economy, business or first, not '{travel_class[:20]}'")
    route = "-".join(sorted((travel_from, travel_to)))
    base = _FARES.get(route, 80 + 10 * (zlib.crc32(route.encode()) % 10))
    even = sum(map(int, travel_date.replace("-", ""))) % 2 == 0
    return float(base * _CLASSES[travel_class.casefold()] * (2 if even else 1))
