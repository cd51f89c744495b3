"""Chat templates in the shapes of common model families, written for these tests, and tokenizers to go with them."""

import json
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    'What is 6 * 7? The answer is 42.\n\n{"name": "calculator", "arguments": {"expression": "6 * 7"}}\n',
    '[get_weather(city="Paris"), f(x=1)]; {"name": "f", "parameters": {"x": 1}}\n\n<tool_call>\n</tool_call>',
    "I should think about it.\n</think>\n\nuser\nassistant\nsystem\ntool\n",
]


@dataclass(frozen=True)
class Shape:
    """A template, the markers that its tokenizer has as whole tokens, and what is expected of it."""

    template: str
    special: tuple[str, ...]
    eos: str
    plain: tuple[str, ...] = ()  # whole tokens that are not special
    syntax: str = "none"
    metaspace: bool = False

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """A tokenizer trained on a few lines, so that characters merge across what the template writes."""
        core = Tokenizer(models.BPE(byte_fallback=self.metaspace))
        if self.metaspace:
            trainer = trainers.BpeTrainer(show_progress=False, vocab_size=100)
            core.normalizer = normalizers.Sequence([])
            core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            core.decoder = decoders.Sequence(
                [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
            )
        else:
            alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
            trainer = trainers.BpeTrainer(show_progress=False, vocab_size=330, initial_alphabet=alphabet)
            core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            core.decoder = decoders.ByteLevel()
        core.train_from_iterator(CORPUS * 3, trainer)
        if self.metaspace:  # a character that the vocabulary lacks is spelled in bytes
            learned = json.loads(core.to_str())["model"]
            vocab = learned["vocab"] | {f"<0x{byte:02X}>": len(learned["vocab"]) + byte for byte in range(256)}
            core.model = models.BPE(vocab=vocab, merges=[tuple(pair) for pair in learned["merges"]], byte_fallback=True)
        core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in self.special])
        core.add_tokens([AddedToken(text, special=False, normalized=False) for text in self.plain])
        return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=self.eos, chat_template=self.template)


HERMES_TAGS = ("<tool_call>", "</tool_call>")
THINK_TAGS = ("<think>", "</think>")
IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

_CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' + (messages[0].content if messages[0].role == 'system' else 'Be helpful.') }}
    {{- '\\n\\n# Functions\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
    {{- '\\n</tools>\\nAnswer with {"name": ..., "arguments": ...} in tool_call tags.<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '<|im_start|>user\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' + CONTENT }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if message.content or not loop.first else '' }}
            {{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\nOPENING' }}{%- endif %}
"""
CHATML = _CHATML.replace("CONTENT", "message.content").replace("OPENING", "")
_STRIPPED = "(message.content if loop.last else message.content.split('</think>')[-1].lstrip('\\n'))"
QWEN3 = _CHATML.replace("CONTENT", _STRIPPED).replace("OPENING", "")
QWEN3_NO_THINKING = _CHATML.replace("CONTENT", _STRIPPED).replace("OPENING", "<think>\\n\\n</think>\\n\\n")
QWQ = _CHATML.replace("CONTENT", _STRIPPED).replace("OPENING", "<think>\\n")
# Opens reasoning after a user's message alone.
QWQ_ONCE = QWQ.replace("<think>\\n' }}", "' + ('<think>\\n' if messages[-1].role == 'user' else '') }}")
# Takes tool messages only after the call that they answer, and repeats its name.
NAMES_RESULTS = CHATML.replace(
    "{{- '\\n<tool_response>\\n'",
    """{%- set called = namespace(turn=none) %}
        {%- for earlier in messages[:loop.index0] if earlier.role == 'assistant' %}
            {%- set called.turn = earlier %}
        {%- endfor %}
        {%- if not called.turn.tool_calls %}{{- raise_exception('nobody called a tool') }}{%- endif %}
        {{- '\\nfunctions.' + called.turn.tool_calls[0].function.name + '\\n<tool_response>\\n'""",
)

LLAMA3 = """\
{{- '<|begin_of_text|><|start_header_id|>system<|end_header_id|>\\n\\n' }}
{%- if tools %}{{- 'Environment: ipython\\n' }}{%- endif %}
{%- if messages[0].role == 'system' %}
    {{- messages[0].content | trim }}
    {%- set messages = messages[1:] %}
{%- endif %}
{{- '<|eot_id|>' }}
{%- if tools %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nYou may call these functions.\\n\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
    {{- messages[0].content | trim + '<|eot_id|>' }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if message.tool_calls %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at a time') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
        {{- CALL + '<|eot_id|>' }}
    {%- elif message.role == 'tool' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' + message.content | tojson + '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""
LLAMA3_JSON = LLAMA3.replace(
    "CALL", """'{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}'"""
)
_KEYWORDS = "{%- set ns = namespace(parts=[]) %}{%- for key, value in call.arguments.items() %}"
_KEYWORDS += "{%- set ns.parts = ns.parts + [key + '=' + (value | tojson)] %}{%- endfor %}"
LLAMA3_PYTHONIC = LLAMA3.replace("{{- CALL", _KEYWORDS + "{{- '[' + call.name + '(' + ns.parts | join(', ') + ')]'")
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>")

LLAMA4 = """\
{{- '<|begin_of_text|>' }}
{%- if tools %}
    {{- '<|header_start|>system<|header_end|>\\n\\nTools as [name(key="value")].\\n' }}
    {%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}
    {{- '<|eot|>' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|header_start|>' + ('ipython' if message.role == 'tool' else message.role) + '<|header_end|>\\n\\n' }}
    {{- message.content | trim }}
    {%- if message.tool_calls %}
        {{- '<|python_start|>[' }}
        {%- for call in message.tool_calls %}
            {%- set outer = loop %}
            {{- call.function.name + '(' }}
            {%- for key, value in call.function.arguments.items() %}
                {{- key + '=' + (value | tojson) + ('' if loop.last else ', ') }}
            {%- endfor %}
            {{- ')' + ('' if outer.last else ', ') }}
        {%- endfor %}
        {{- ']<|python_end|>' }}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|header_start|>assistant<|header_end|>\\n\\n' }}{%- endif %}
"""
LFM2 = (
    LLAMA4.replace("<|begin_of_text|>", "")
    .replace("<|header_start|>", "<|im_start|>")
    .replace("<|header_end|>\\n", "")
    .replace("<|eot|>", "<|im_end|>\\n")
    .replace("<|python_start|>", "<|tool_call_start|>")
    .replace("<|python_end|>", "<|tool_call_end|>")
)

_ALTERNATE = """\
{%- set system = messages[0].content if messages[0].role == 'system' else none %}
{%- set messages = messages[1:] if messages[0].role == 'system' else messages %}
{%- set ns = namespace(count=0) %}
{%- for message in messages if message.role != 'tool' and not message.tool_calls %}
    {%- if (message.role == 'user') != (ns.count % 2 == 0) %}
        {{- raise_exception('user and assistant must take turns') }}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
{%- endfor %}
"""
MISTRAL_V3 = (
    _ALTERNATE
    + """\
{%- set users = messages | selectattr('role', 'equalto', 'user') | list %}
{{- '<s>' }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and message == users[-1] %}
            {{- '[AVAILABLE_TOOLS] ' + tools | tojson + '[/AVAILABLE_TOOLS]' }}
        {%- endif %}
        {{- '[INST] ' + (system + '\\n\\n' if system and loop.last else '') + message.content + '[/INST]' }}
    {%- elif message.tool_calls %}
        {{- '[TOOL_CALLS] [' }}
        {%- for call in message.tool_calls %}
            {%- if (call.id or '') | length != 9 %}{{- raise_exception('an id has nine characters') }}{%- endif %}
            {{- (call.function | tojson)[:-1] + ', "id": "' + call.id + '"}' + (']</s>' if loop.last else ', ') }}
        {%- endfor %}
    {%- elif message.role == 'assistant' %}
        {{- ' ' + message.content | trim + '</s>' }}
    {%- elif message.role == 'tool' %}
        {%- if (message.tool_call_id or '') | length != 9 %}
            {{- raise_exception('an id has nine characters') }}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content + ', "call_id": "' + message.tool_call_id }}
        {{- '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""
)
_MISTRAL_NEW = (
    _ALTERNATE
    + """\
{{- '<s>' + ('[SYSTEM_PROMPT]' + system + '[/SYSTEM_PROMPT]' if system else '') }}
{%- if tools %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {{- '[INST]' + message.content + '[/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '[TOOL_CALLS]' + call.function.name + CALL_ID + '[ARGS]' + call.function.arguments | tojson }}
        {%- endfor %}
        {{- '</s>' }}
    {%- elif message.role == 'tool' %}
        {{- '[TOOL_RESULTS]' + RESULT_ID + message.content + '[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}
"""
)
MISTRAL_V11 = _MISTRAL_NEW.replace("CALL_ID", "'[CALL_ID]' + call.id").replace(
    "RESULT_ID", "message.tool_call_id + '[TOOL_CONTENT]'"
)
MISTRAL_V13 = _MISTRAL_NEW.replace("CALL_ID", "''").replace("RESULT_ID", "''")
MISTRAL_TOKENS = (
    *("<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]"),
    *("[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
)
MISTRAL_NEW_TOKENS = (*MISTRAL_TOKENS, "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[ARGS]", "[CALL_ID]", "[TOOL_CONTENT]")

R1 = """\
{{- '<|bos|>' }}
{%- set ns = namespace(after_tool=false) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- message.content }}
    {%- elif message.role == 'user' %}
        {%- set ns.after_tool = false %}
        {{- '<｜User｜>' + message.content }}
    {%- elif message.role == 'assistant' %}
        {{- ('' if ns.after_tool else '<｜Assistant｜>') + message.content.split('</think>')[-1] + '<｜end｜>' }}
        {%- set ns.after_tool = false %}
    {%- elif message.role == 'tool' %}
        {%- set ns.after_tool = true %}
        {{- '<｜output｜>' + message.content + '<｜/output｜>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt and not ns.after_tool %}{{- '<｜Assistant｜><think>\\n' }}{%- endif %}
"""
R1_TOKENS = ("<｜User｜>", "<｜Assistant｜>", "<｜output｜>", "<｜/output｜>")
GEMMA = """\
{{- '<bos>' }}
{%- if messages[0].role == 'system' %}{{- raise_exception('there is no system role') }}{%- endif %}
{%- for message in messages if message.role != 'tool' %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
    {{- message.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}
"""
PHI3 = """\
{%- for message in messages %}
    {%- if message.role in ('system', 'user', 'assistant') %}
        {{- '<|' + message.role + '|>\\n' + message.content + '<|end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}
"""
# Tool calls as XML, in nobody's syntax that is known here.
XML_CALLS = CHATML.replace(
    """'<tool_call>\\n{"name": "' + call.function.name + '", "arguments": '""", "'<call><' + call.function.name + '>'"
).replace("""+ '}\\n</tool_call>'""", "+ '</call>'")

SHAPES = {
    "chatml": Shape(CHATML, IM, "<|im_end|>", HERMES_TAGS, "hermes"),
    "qwen3": Shape(QWEN3, IM, "<|im_end|>", HERMES_TAGS + THINK_TAGS, "hermes"),
    "qwen3-no-thinking": Shape(QWEN3_NO_THINKING, IM, "<|im_end|>", HERMES_TAGS + THINK_TAGS, "hermes"),
    "qwq": Shape(QWQ, IM, "<|im_end|>", HERMES_TAGS + THINK_TAGS, "hermes"),
    "qwq-once": Shape(QWQ_ONCE, IM, "<|im_end|>", HERMES_TAGS + THINK_TAGS, "hermes"),
    "names-results": Shape(NAMES_RESULTS, IM, "<|im_end|>", HERMES_TAGS, "hermes"),
    "hermes-text": Shape(CHATML, IM, "<|im_end|>", (), "hermes"),
    "llama3": Shape(LLAMA3_JSON, (*LLAMA3_TOKENS, "<|python_tag|>"), "<|eot_id|>", (), "llama-json"),
    "llama3-pythonic": Shape(LLAMA3_PYTHONIC, LLAMA3_TOKENS, "<|eot_id|>", (), "pythonic"),
    "llama4": Shape(
        LLAMA4,
        ("<|begin_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>"),
        "<|eot|>",
        ("<|python_start|>", "<|python_end|>"),
        "pythonic-llama4",
    ),
    "lfm2": Shape(LFM2, (*IM, "<|tool_call_start|>", "<|tool_call_end|>"), "<|im_end|>", (), "pythonic-lfm2"),
    "mistral-v3": Shape(MISTRAL_V3, MISTRAL_TOKENS, "</s>", (), "mistral-list"),
    "mistral-v3-metaspace": Shape(MISTRAL_V3, MISTRAL_TOKENS, "</s>", (), "mistral-list", metaspace=True),
    "mistral-v11": Shape(MISTRAL_V11, MISTRAL_NEW_TOKENS, "</s>", (), "mistral-ids"),
    "mistral-v13": Shape(MISTRAL_V13, (*MISTRAL_NEW_TOKENS, "[THINK]", "[/THINK]"), "</s>", (), "mistral"),
    "r1": Shape(R1, ("<|bos|>", "<｜end｜>"), "<｜end｜>", (*R1_TOKENS, *THINK_TAGS)),
    "gemma": Shape(GEMMA, ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>"),
    "phi3": Shape(PHI3, ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"), "<|endoftext|>"),
    "xml-calls": Shape(XML_CALLS, IM, "<|im_end|>"),
}
