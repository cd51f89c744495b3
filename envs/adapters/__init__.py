"""Environments of other packages as verigym's own: TextArena's games, GEM's and those of Prime Intellect's verifiers.

They run in worker processes: what they do to global random state, and what pins they have, stays there.
"""
