"""How models write tool calls, and the way to and from the canonical syntax of environments."""

from verigym.agents.syntaxes.hermes import Hermes, PlainText
from verigym.agents.syntaxes.llama_json import LlamaJSON
from verigym.agents.syntaxes.mistral import Mistral, MistralIds, MistralList
from verigym.agents.syntaxes.pythonic import Pythonic, PythonicLFM2, PythonicLlama4
from verigym.agents.syntaxes.syntax import Call, Piece, ToolSyntax, call_markup, join_text
from verigym.tasks.errors import UnknownNameError

__all__ = ["SYNTAXES", "Call", "Piece", "PlainText", "ToolSyntax", "call_markup", "find_syntax", "join_text"]

SYNTAXES: dict[str, ToolSyntax] = {
    syntax.name: syntax
    for syntax in (
        *(Hermes(), LlamaJSON(), Pythonic(), PythonicLlama4(), PythonicLFM2()),
        *(Mistral(), MistralIds(), MistralList()),
    )
}


def find_syntax(name: str) -> ToolSyntax:
    """The syntax of that name. Raises UnknownNameError."""
    if name not in SYNTAXES:
        raise UnknownNameError.of("tool syntax", name, SYNTAXES)
    return SYNTAXES[name]
