"""The shop and the airline of tau-bench: tools over its data bases, as its records show them."""

from verigym.tasks.worlds.tau.airline import Airline, Airline2
from verigym.tasks.worlds.tau.retail import Retail, Retail2

__all__ = ["Airline", "Airline2", "Retail", "Retail2"]
