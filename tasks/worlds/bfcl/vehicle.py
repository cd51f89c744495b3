"""The car of BFCL's multi-turn tasks."""

# ruff: noqa: N802, N803 - the documents name functions and parameters so
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from verigym.tasks.worlds.bfcl.places import distance, zipcode
from verigym.tasks.worlds.store import Record
from verigym.tasks.worlds.world import World

ACTS = frozenset(
    {
        "activateParkingBrake",
        "adjustClimateControl",
        "fillFuelTank",
        "lockDoors",
        "pressBrakePedal",
        "releaseBrakePedal",
        "setCruiseControl",
        "setHeadlights",
        "set_navigation",
        "startEngine",
    }
)
_CAPACITY = 50.0  # gallons
_MILES_PER_GALLON = 20.0
_LITERS_PER_GALLON = 3.785412
_PEDAL_FORCE = 1000.0  # newtons at full press
_PARKING_FORCE, _PARKING_SLOPE = 500.0, 10.0
_OUTSIDE = {"google": 25.0, "weather": 25.5}
_TIRE_SHOP = "456 Oakwood Avenue, Rivermist, 83214"
_HEALTHY = (30.0, 35.0)
_DOORS = ("driver", "passenger", "rear_left", "rear_right")
_TIRES = ("frontLeftTirePressure", "frontRightTirePressure", "rearLeftTirePressure", "rearRightTirePressure")
_START: Record = {
    "fuelLevel": 0.0,
    "batteryVoltage": 12.6,
    "engineState": "stopped",
    "doorStatus": {"driver": "unlocked", "passenger": "unlocked", "rear_left": "unlocked", "rear_right": "unlocked"},
    "acTemperature": 25.0,
    "fanSpeed": 50,
    "acMode": "auto",
    "humidityLevel": 50.0,
    "headLightStatus": "off",
    "headLightMode": "off",
    "parkingBrakeStatus": "released",
    "parkingBrakeForce": 0.0,
    "slopeAngle": 0.0,
    "brakePedalStatus": "released",
    "brakePedalForce": 0.0,
    "distanceToNextVehicle": 50.0,
    "cruiseStatus": "inactive",
    "cruiseSpeed": 0.0,
    "currentSpeed": 0.0,
    "destination": "None",
    **dict.fromkeys(_TIRES, 32.0),
}
_PARTS = {  # which fields a display shows, by its option
    "fuel": ("fuelLevel",),
    "battery": ("batteryVoltage",),
    "doors": ("doorStatus",),
    "climate": ("acTemperature", "fanSpeed", "acMode", "humidityLevel"),
    "headlights": ("headLightStatus",),
    "parkingBrake": ("parkingBrakeStatus", "parkingBrakeForce", "slopeAngle"),
    "brakePedal": ("brakePedalStatus", "brakePedalForce"),
    "engine": ("engineState",),
}
_SHOWN_AS = {"acTemperature": "currentACTemperature", "acMode": "climateMode", "headLightStatus": "headlightStatus"}
_PARTS_OF = {
    **{field: part for part, fields in _PARTS.items() for field in fields},
    **dict.fromkeys(_TIRES, "tires"),
    **dict.fromkeys(("distanceToNextVehicle", "cruiseStatus", "cruiseSpeed", "currentSpeed"), "cruise"),
    "headLightMode": "headlights",
    "destination": "navigation",
}


def tables(config: Mapping[str, Any]) -> dict[str, dict[str, Record]]:
    """`car`: the parts of the car, each with the fields that belong to it."""
    config = {"headLightMode": config.get("headLightStatus", "off"), **config}
    car: dict[str, Record] = {}
    for field, default in _START.items():
        value: Any = config.get(field, default)
        car.setdefault(_PARTS_OF[field], {})[field] = float(value) if isinstance(default, float) else value
    car["doors"] = {**_START["doorStatus"], **car["doors"]["doorStatus"]}
    notes = config.get("metadata")
    return {"car": {**car, **({"notes": {"metadata": notes}} if notes else {})}}


class VehicleControlAPI(World):
    """One car, which stands."""

    def activateParkingBrake(self, mode: str) -> dict[str, Any]:
        """Engage or release the parking brake.

        Args:
            mode: "engage" or "release".
        """
        _one_of("mode", mode, ("engage", "release"))
        on = mode == "engage"
        brake = self.__change(
            "parkingBrake",
            parkingBrakeStatus="engaged" if on else "released",
            parkingBrakeForce=_PARKING_FORCE if on else 0.0,
            slopeAngle=_PARKING_SLOPE if on else 0.0,
        )
        return {
            "parkingBrakeStatus": brake["parkingBrakeStatus"],
            "_parkingBrakeForce": brake["parkingBrakeForce"],
            "_slopeAngle": brake["slopeAngle"],
        }

    def adjustClimateControl(
        self, temperature: float, unit: str = "celsius", fanSpeed: int = 50, mode: str = "auto"
    ) -> dict[str, Any]:
        """Set the climate control.

        Args:
            temperature: The temperature.
            unit: "celsius" or "fahrenheit".
            fanSpeed: The speed of the fan, from 0 to 100.
            mode: "auto", "cool", "heat" or "defrost".
        """
        _one_of("unit", unit, ("celsius", "fahrenheit"))
        _one_of("mode", mode, ("auto", "cool", "heat", "defrost"))
        if not 0 <= fanSpeed <= 100:
            raise ValueError(f"fanSpeed must be from 0 to 100, not {fanSpeed}")
        celsius = round((temperature - 32) * 5 / 9, 2) if unit == "fahrenheit" else temperature
        climate = self.__change("climate", acTemperature=float(celsius), fanSpeed=fanSpeed, acMode=mode)
        return {
            "currentTemperature": climate["acTemperature"],
            "climateMode": climate["acMode"],
            "humidityLevel": climate["humidityLevel"],
        }

    def check_tire_pressure(self) -> dict[str, Any]:
        """Show the pressure of the tires, in psi, and whether it is healthy."""
        tires = self.__part("tires")
        low, high = _HEALTHY
        mean = sum(tires[name] for name in _TIRES) / len(_TIRES)
        return {"tirePressure": {**tires, "healthy_tire_pressure": low <= mean <= high, "car_info": {}}}

    def displayCarStatus(self, option: str) -> dict[str, Any]:
        """Show a part of the car.

        Args:
            option: "fuel", "battery", "doors", "climate", "headlights", "parkingBrake", "brakePedal" or "engine".
        """
        _one_of("option", option, tuple(_PARTS))
        part = {"doorStatus": self.__part("doors")} if option == "doors" else self.__part(option)
        status = {_SHOWN_AS.get(field, field): part[field] for field in _PARTS[option]}
        notes = self.store.get("car", "notes")
        return {"status": {**status, **(notes or {})}}

    def display_log(self, messages: list[str]) -> dict[str, Any]:
        """Display messages on the car's screen.

        Args:
            messages: The messages.
        """
        return {"log": messages}

    def estimate_distance(self, cityA: str, cityB: str) -> dict[str, Any]:
        """Estimate the distance between two cities, in km.

        Args:
            cityA: The zipcode of the first city.
            cityB: The zipcode of the second city.
        """
        return {"distance": distance(cityA, cityB), "intermediaryCities": []}

    def estimate_drive_feasibility_by_mileage(self, distance: float) -> dict[str, Any]:
        """Tell whether the fuel in the tank is enough for a distance.

        Args:
            distance: The distance in miles.
        """
        return {"canDrive": self.__part("fuel")["fuelLevel"] * _MILES_PER_GALLON >= distance}

    def fillFuelTank(self, fuelAmount: float) -> dict[str, Any]:
        """Fill fuel into the tank, which holds 50 gallons.

        Args:
            fuelAmount: How many gallons are added.
        """
        level = self.__part("fuel")["fuelLevel"] + fuelAmount
        if fuelAmount < 0:
            raise ValueError("fuelAmount must be at least 0")
        if level > _CAPACITY:
            raise ValueError(f"the tank holds {_CAPACITY} gallons, and there would be {level}")
        return {"fuelLevel": self.__change("fuel", fuelLevel=round(float(level), 6))["fuelLevel"]}

    def find_nearest_tire_shop(self) -> dict[str, Any]:
        """Tell where the nearest tire shop is."""
        return {"shopLocation": _TIRE_SHOP}

    def gallon_to_liter(self, gallon: float) -> dict[str, Any]:
        """Convert gallons to liters.

        Args:
            gallon: How many gallons.
        """
        return {"liter": gallon * _LITERS_PER_GALLON}

    def get_current_speed(self) -> dict[str, Any]:
        """Tell how fast the car goes, in km/h."""
        return {"currentSpeed": self.__part("cruise")["currentSpeed"]}

    def get_outside_temperature_from_google(self) -> dict[str, Any]:
        """Tell the temperature outside, in degrees Celsius, as Google has it."""
        return {"outsideTemperature": _OUTSIDE["google"]}

    def get_outside_temperature_from_weather_com(self) -> dict[str, Any]:
        """Tell the temperature outside, in degrees Celsius, as weather.com has it."""
        return {"outsideTemperature": _OUTSIDE["weather"]}

    def get_zipcode_based_on_city(self, city: str) -> dict[str, Any]:
        """Tell the zipcode of a city.

        Args:
            city: The name of the city.
        """
        return {"zipcode": zipcode(city)}

    def liter_to_gallon(self, liter: float) -> dict[str, Any]:
        """Convert liters to gallons.

        Args:
            liter: How many liters.
        """
        return {"gallon": liter / _LITERS_PER_GALLON}

    def lockDoors(self, unlock: bool, door: list[str]) -> dict[str, Any]:
        """Lock or unlock doors.

        Args:
            unlock: Whether they are unlocked.
            door: Which doors: "driver", "passenger", "rear_left", "rear_right".
        """
        for name in door:
            _one_of("door", name, _DOORS)
        if len(set(door)) < len(door):
            raise ValueError("each door must be named once")
        status = "unlocked" if unlock else "locked"
        doors = self.__change("doors", **dict.fromkeys(door, status))
        return {"lockStatus": status, "remainingUnlockedDoors": list(doors.values()).count("unlocked")}

    def pressBrakePedal(self, pedalPosition: float) -> dict[str, Any]:
        """Press the brake pedal, and keep it pressed.

        Args:
            pedalPosition: How far, from 0 (not at all) to 1 (fully).
        """
        if not 0 <= pedalPosition <= 1:
            raise ValueError(f"pedalPosition must be from 0 to 1, not {pedalPosition}")
        status = "pressed" if pedalPosition else "released"
        return self.__change("brakePedal", brakePedalStatus=status, brakePedalForce=_PEDAL_FORCE * pedalPosition)

    def releaseBrakePedal(self) -> dict[str, Any]:
        """Release the brake pedal."""
        return self.__change("brakePedal", brakePedalStatus="released", brakePedalForce=0.0)

    def setCruiseControl(self, speed: float, activate: bool, distanceToNextVehicle: float) -> dict[str, Any]:
        """Turn the cruise control on or off.

        Args:
            speed: The speed in miles per hour, from 0 to 120, a multiple of 5.
            activate: Whether it is turned on.
            distanceToNextVehicle: The distance to the next vehicle, in meters.
        """
        if not 0 <= speed <= 120 or speed % 5:
            raise ValueError(f"speed must be from 0 to 120 and a multiple of 5, not {speed}")
        if distanceToNextVehicle < 0:
            raise ValueError("distanceToNextVehicle must be at least 0")
        if activate and self.__part("engine")["engineState"] != "running":
            raise ValueError("the engine must run before the cruise control can be turned on")
        cruise = self.__change(
            "cruise",
            cruiseStatus="active" if activate else "inactive",
            cruiseSpeed=float(speed),
            distanceToNextVehicle=float(distanceToNextVehicle),
        )
        return {name: cruise[name] for name in ("cruiseStatus", "currentSpeed", "distanceToNextVehicle")}

    def setHeadlights(self, mode: str) -> dict[str, Any]:
        """Turn the headlights on or off; "auto" turns them on.

        Args:
            mode: "on", "off" or "auto".
        """
        _one_of("mode", mode, ("on", "off", "auto"))
        status = "off" if mode == "off" else "on"
        self.__change("headlights", headLightStatus=status, headLightMode=mode)
        return {"headlightStatus": status}

    def set_navigation(self, destination: str) -> dict[str, Any]:
        """Set where the car is to guide to.

        Args:
            destination: Street, city and state.
        """
        self.__change("navigation", destination=destination)
        return {"status": f"Navigating to {destination}"}

    def startEngine(self, ignitionMode: str) -> dict[str, Any]:
        """Start or stop the engine. To start it, the doors must be locked and the brake pedal fully pressed.

        Args:
            ignitionMode: "START" or "STOP".
        """
        _one_of("ignitionMode", ignitionMode, ("START", "STOP"))
        fuel, battery = self.__part("fuel")["fuelLevel"], self.__part("battery")["batteryVoltage"]
        if ignitionMode == "START":
            if "unlocked" in self.__part("doors").values():
                raise ValueError("all doors must be locked before the engine starts")
            if self.__part("brakePedal")["brakePedalForce"] < _PEDAL_FORCE:
                raise ValueError("the brake pedal must be fully pressed before the engine starts")
            if fuel <= 0:
                raise ValueError("there is no fuel in the tank")
        state = "running" if ignitionMode == "START" else "stopped"
        self.__change("engine", engineState=state)
        return {"engineState": state, "fuelLevel": fuel, "batteryVoltage": battery}

    def __part(self, name: str) -> Record:
        return self.store.get("car", name) or {}

    def __change(self, part: str, **fields: Any) -> Record:
        return self.store.update("car", part, fields)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, not '{value[:40]}'")
