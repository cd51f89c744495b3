"""A run to look at: one self-contained page of its curves, episodes and tokens, or the same page served live."""

from verigym.view.page import write_page
from verigym.view.reader import RunReader
from verigym.view.server import ViewServer

__all__ = ["RunReader", "ViewServer", "write_page"]
