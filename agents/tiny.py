"""A tiny model and tokenizer made from scratch, for demonstrations and tests: an ordinary transformers checkpoint."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHAT_TEMPLATE = """\
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
{{- 'Tools:\\n' }}
{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}
{{- 'Call one by its name and arguments, as JSON in a tool_call block.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>' + message.content + '</tool_response><|im_end|>\\n' }}
{%- elif message.role != 'system' %}
{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>{"name": ' + call.function.name | tojson }}
{{- ', "arguments": ' + call.function.arguments | tojson + '}</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MARKUP = ("<tool_call>", "</tool_call>", "<think>", "</think>")
_ROLES = ("system\n", "user\n", "assistant\n")


def tiny_tokenizer(
    conversations: Sequence[Sequence[dict[str, Any]]] = (), tools: Sequence[dict[str, Any]] | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: single digits, and whole tokens for the scaffolding of `conversations`.

    Scaffolding is what stands between numbers in at least a tenth of the rendered conversations. Any other text
    is spelled in bytes, so nothing is out of vocabulary.
    """
    plain = _byte_tokenizer(())
    rendered = [plain.apply_chat_template(list(messages), tools=tools, tokenize=False) for messages in conversations]
    breaks = re.compile("|".join([r"\d", *map(re.escape, (*_SPECIAL, *_MARKUP, *_ROLES))]))
    counts = Counter(piece for text in rendered for piece in set(breaks.split(str(text))) if len(piece) > 1)
    scaffolding = sorted(piece for piece, count in counts.items() if count * 10 >= len(rendered))
    return _byte_tokenizer(scaffolding)


def _byte_tokenizer(scaffolding: Sequence[str]) -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _SPECIAL])
    core.add_tokens([AddedToken(text, special=False, normalized=False) for text in (*_MARKUP, *_ROLES, *scaffolding)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(
    vocabulary: int,
    *,
    seed: int = 0,
    hidden_size: int = 128,
    layers: int = 4,
    heads: int = 4,
    intermediate_size: int = 384,
    max_context: int = 2048,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
) -> Qwen3ForCausalLM:
    """A Qwen3 of the given shape with random weights that depend on `seed` alone, in float32."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden_size // heads,
        max_position_embeddings=max_context,
        tie_word_embeddings=False,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
