"""The worlds of BFCL's multi-turn tasks, from the documents of their functions: eight services in one world."""

from verigym.tasks.worlds.bfcl.bulk import lengthened
from verigym.tasks.worlds.bfcl.world import ACTS, APIS, FILES, NAVIGATION, Services, tables_of

__all__ = ["ACTS", "APIS", "FILES", "NAVIGATION", "Services", "lengthened", "tables_of"]
