"""`verigym check --model PATH`: what a model's template and tokenizer do with scripted tool episodes."""

from __future__ import annotations

import json

from verigym.agents.agent import load_chat
from verigym.agents.chat import Chat
from verigym.agents.fidelity import Played, check_chat
from verigym.tasks.errors import TemplateError

_SHOWN = 100  # characters of a part, from its start and from its end


def check_model(path: str) -> int:
    """Prints the findings; returns the exit status: 0 if every episode is faithful, else 1.

    Raises ConfigError if there is no checkpoint at `path`. Its weights are not read.
    """
    try:
        _, chat = load_chat(path)
    except TemplateError as error:
        print(f"model {path}\nNOT FAITHFUL: {error}")
        return 1
    print(f"model {path}")
    _describe(chat)
    report = check_chat(chat)
    for episode in report.episodes:
        _show(episode, chat)
    print()
    for note in report.notes:
        print(f"note: {note}")
    failing = [episode for episode in report.episodes if episode.problem]
    if not failing:
        print(f"faithful: {len(report.episodes)} episodes, token by token")
        return 0
    names = ", ".join(episode.name for episode in failing)
    print(f"NOT FAITHFUL: {len(failing)} of {len(report.episodes)} episodes fail ({names}): {failing[0].problem}")
    return 1


def _describe(chat: Chat) -> None:
    stops = chat.tokenizer.convert_ids_to_tokens(sorted(chat.stop_token_ids))
    print(f"  tool syntax: {chat.syntax.name}{f' ({chat.tools_refused})' if chat.tools_refused else ''}")
    print(f"  stop tokens: {', '.join(stops)}")
    print(f"  reasoning is opened in the prompt: {_yes(chat.opens_reasoning)}")
    print(f"  reasoning of earlier turns is stripped: {_yes(chat.template.strips_reasoning())}")


def _show(episode: Played, chat: Chat) -> None:
    print(f"\n{episode.name}: {episode.problem or 'faithful'}")
    for part in episode.parts:
        text = json.dumps(chat.tokenizer.decode(list(part.ids)), ensure_ascii=False)
        if len(text) > 2 * _SHOWN + 5:
            text = f"{text[:_SHOWN]} ... {text[-_SHOWN:]}"
        print(f"  {part.role:<10} {len(part.ids):>5} ids  mask {int(part.sampled)}  {text}")


def _yes(value: bool) -> str:
    return "yes" if value else "no"
