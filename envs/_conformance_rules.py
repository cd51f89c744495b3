"""All rules that environments keep to, in the order in which they are checked."""

from verigym.envs import _conformance_episodes, _conformance_trust, _conformance_use  # noqa: F401 - each adds its own
from verigym.envs._conformance_probe import RULES

__all__ = ["RULES"]
