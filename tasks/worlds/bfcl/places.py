"""Where cities are: the zipcodes and distances of BFCL's car."""

from __future__ import annotations

import re
import zlib

_ZIPCODES = {
    "Rivermist": "83214",
    "Stonebrook": "74532",
    "Maplecrest": "56108",
    "Silverpine": "62947",
    "Shadowridge": "71354",
    "Sunset Valley": "83462",
    "Oakendale": "47329",
    "Willowbend": "52013",
    "Crescent Hollow": "69238",
    "Autumnville": "51479",
    "San Francisco": "94016",
    "Berkeley": "94704",
    "Los Angeles": "90001",
}
_DISTANCES = {  # km, where a row tells it or follows from it
    "74532-83214": 750.0,
    "56108-62947": 320.0,
    "71354-83462": 450.0,
    "47329-52013": 290.0,
    "51479-69238": 630.0,
    "83214-94016": 980.0,
    "47329-62947": 1053.0,
    "62947-94016": 780.0,
    "74532-94016": 880.0,
}


def zipcode(city: str) -> str:
    """The zipcode of a city; one that follows from the name where the rows tell none."""
    codes = {name.casefold(): code for name, code in _ZIPCODES.items()}
    name = city.strip().casefold()
    return codes.get(name, f"{zlib.crc32(name.encode()) % 90_000 + 10_000}")


def distance(one: str, other: str) -> float:
    """The distance between two cities by their zipcodes, in km. Raises ValueError for what is none."""
    for code in (one, other):
        if not re.fullmatch("[0-9]{5}", code):
            raise ValueError(f"'{code[:20]}' is no zipcode; get_zipcode_based_on_city gives those of cities")
    if one == other:
        return 0.0
    route = "-".join(sorted((one, other)))
    return _DISTANCES.get(route, 100.0 + 10.0 * (zlib.crc32(route.encode()) % 150))
