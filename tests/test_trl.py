"""TRL's GRPOTrainer trains on verigym's environments: its tool calls are their turns, its rewards their verdicts."""

import logging
from typing import Any

import gymnasium as gym
import pytest
import torch
from transformers.utils import get_json_schema

from verigym import verifiers
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.envs import register
from verigym.tasks.canonical import parse_turn, render_call
from verigym.tasks.errors import ConfigError, UnknownNameError
from verigym.trl import environment_factory, environment_reward
from verigym.verifiers import Verdict, Verifier

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'verigym[trl]'")
if not trl.__version__.startswith("1.16."):
    pytest.skip(f"environment_factory is written for TRL 1.16, not {trl.__version__}", allow_module_level=True)

from trl import GRPOConfig, GRPOTrainer  # noqa: E402 - only once TRL is known to be there
from trl.chat_template_utils import qwen3_template  # noqa: E402

CALCULATOR, OPTIONS = "verigym/Calculator-v0", {"level": 1, "size": 2}


def parsed(turn: str) -> dict[str, Any]:
    """A turn in canonical syntax as TRL's message."""
    said = parse_turn(turn)
    calls = [{"type": "function", "function": {"name": call.name, "arguments": call.arguments}} for call in said.calls]
    return {"role": "assistant", "content": said.content, **({"tool_calls": calls} if calls else {})}


def canonical(message: dict[str, Any]) -> list[str]:
    """TRL's message as turns in canonical syntax: one for each call."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    return [render_call(call["name"], call["arguments"]) for call in calls] or [message["content"]]


def demonstrated(rollout: Any, row: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of the gold episode of a row's task."""
    env = gym.make(CALCULATOR, **OPTIONS).unwrapped
    env.reset(options={"task": row["task"]})
    value = env.tasks.get(row["task"])
    turns = [render_call("calculator", {"expression": value.metadata["expression"]}), f"\\boxed{{{value.target}}}"]
    messages = [{"role": "user", "content": rollout.reset(**row)}]
    for turn in turns:
        said, *_ = env.step(turn)
        messages += [parsed(turn), *([{"role": "tool", "name": "calculator", "content": said}] if said else [])]
    return messages


def memorised(tokenizer: Any, model: Any, conversations: list[Any], tools: list[Any]) -> None:
    """Trains the model on the conversations until it knows them fairly well."""
    texts = [tokenizer.apply_chat_template(messages, tools=tools, tokenize=False) for messages in conversations]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(300):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.1:  # the questions' own numbers, which nobody can know, are 0.02 of it
            break


def test_the_trainer_trains_on_the_returns_of_the_environments(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    factory = environment_factory(CALCULATOR, **OPTIONS)
    rows, rollout = list(factory.dataset()), factory()
    tools = [get_json_schema(rollout.calculator)]
    conversations = [demonstrated(rollout, row) for row in rows]
    tokenizer = tiny_tokenizer(conversations, tools)
    tokenizer.response_template = qwen3_template  # TRL has to find the calls in what the model writes
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = tiny_model(len(tokenizer), hidden_size=64, layers=2, heads=2, intermediate_size=128, **ends)
    memorised(tokenizer, model, conversations, tools)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    seen: list[tuple[str, int, Any, float]] = []

    def reward(**given: Any) -> list[float | None]:
        rewards = environment_reward(**given)
        seen.extend(zip(given["task"], given["seed"], given["completions"], rewards, strict=True))
        return rewards

    settings = GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=60,
        temperature=1.4,  # so that some members of a group fail
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    trainer = GRPOTrainer(
        model,
        reward_funcs=reward,
        environment_factory=factory,
        train_dataset=factory.dataset(),
        processing_class=tokenizer,
        args=settings,
    )
    trainer.train()
    assert len(seen) == 24
    assert sum(len(completion) > 2 for *_, completion, _ in seen) > 4  # a call, its answer and another turn
    for task, seed, completion, paid in seen:
        assert paid == played_again(task, seed, completion)
    rewards = torch.tensor([paid for *_, paid in seen]).view(3, 8).mean(1)
    logged = [step["reward"] for step in trainer.state.log_history if "reward" in step]
    assert logged == pytest.approx(rewards.tolist())
    assert 0 < rewards.mean() < 1
    changes = [(new - old).abs().max() for new, old in zip(trainer.model.parameters(), before, strict=True)]
    assert max(changes) > 1e-4


def played_again(task: str, seed: int, completion: list[dict[str, Any]]) -> float:
    """The return of what TRL's model did, stepped by hand; each tool's answer must be what TRL was told."""
    env = gym.make(CALCULATOR, **OPTIONS).unwrapped
    env.reset(seed=seed, options={"task": task})
    total, told, ended = 0.0, [], False
    for message in completion:
        if message["role"] != "assistant":
            continue
        for turn in canonical(message):
            if not ended:
                env.announce(0)
                observation, reward, terminated, truncated, _ = env.step(turn)
                total, ended = total + reward, terminated or truncated
                told.append(observation or "The task is over.")
            else:
                told.append("The task is over.")
    results = [message["content"] for message in completion if message["role"] == "tool"]
    assert told[: len(results)] == results
    if not ended:
        env.announce(0, cut=True)
        total += env.step("")[1]
    return total


def last(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


def without_notes(schema: dict[str, Any]) -> Any:
    """A tool's schema without what transformers has no words for, or adds."""
    parameters = schema["function"]["parameters"]
    plain = {
        name: {key: value for key, value in given.items() if key in ("type", "enum", "items")}
        for name, given in parameters["properties"].items()
    }
    function = schema["function"]
    return function["name"], function["description"].split(), plain, parameters.get("required", [])


@pytest.mark.parametrize("env_id", [CALCULATOR, "verigym/Desk-v0", "verigym/PythonTool-v0"])
def test_the_methods_have_the_schemas_of_the_tools(env_id: str) -> None:
    options = {"task_set": "calculator", "level": 1} if "Python" in env_id else {}
    rollout = environment_factory(env_id, **options)()
    for schema in rollout._schemas:
        method = getattr(rollout, schema["function"]["name"])
        assert without_notes(get_json_schema(method)) == without_notes(schema)


def test_the_members_of_a_group_begin_with_one_task() -> None:
    factory = environment_factory(CALCULATOR, level=1, size=5)
    rows = list(factory.dataset(3))
    assert [row["task"] for row in rows] == gym.make(CALCULATOR, level=1, size=5).unwrapped.tasks.ids[:3]
    one, other = factory(), factory()
    assert [one.reset(**row) for row in rows] == [other.reset(**row) for row in rows]
    assert len({one.reset(**row) for row in rows}) == 3
    for size in (-1, 6):
        with pytest.raises(ConfigError, match=f"size must be a whole number from 1 to 5, not {size}"):
            factory.dataset(size)


def test_an_episode_is_judged_once_and_the_next_one_begins_anew() -> None:
    factory = environment_factory(CALCULATOR, level=1, size=2)
    (row, other), rollout = factory.dataset(), factory()
    golds = [gym.make(CALCULATOR, level=1, size=2).unwrapped.tasks.get(r["task"]).target for r in (row, other)]
    question = rollout.reset(**row)
    assert "boxed" in question
    assert rollout.calculator(expression="6 * 7") == "42"
    assert rollout.calculator(expression="6 **").startswith("error")
    assert "error" in rollout.calculator(wrong=1)
    assert environment_reward([last(f"\\boxed{{{golds[0]}}}")], [rollout]) == [1.0]
    assert rollout.calculator(expression="6 * 7") == "The task is over."
    rollout.reset(**other)
    assert environment_reward([last("\\boxed{0.5}")], [rollout]) == [0.0]
    rollout.reset(**other)
    unanswered = [{"role": "assistant", "content": f"\\boxed{{{golds[1]}}}", "tool_calls": [{}]}]
    assert environment_reward([unanswered], [rollout]) == [0.0]  # what stands beside a call is no answer


def test_where_words_do_not_end_an_episode_the_model_can_say_them() -> None:
    rollout = environment_factory("verigym/Desk-v0", level=4, size=40)()
    assert hasattr(rollout, "say")
    assert not hasattr(environment_factory(CALCULATOR)(), "say")
    factory = environment_factory("verigym/TinyCode-v0", turns=3, size=3)
    (row, *_), rollout = factory.dataset(), factory()
    rollout.reset(**row)
    env = gym.make("verigym/TinyCode-v0", size=3).unwrapped
    (gold,) = env.golds(env.tasks.get(row["task"]))[:1]
    assert rollout.say(text="```python\nno\n```") not in ("", "The task is over.")
    assert environment_reward([last(gold)], [rollout]) == [1.0]


def test_markup_that_is_said_is_no_call() -> None:
    rollout = environment_factory("verigym/Desk-v0", level=1, size=1)()
    (row,) = environment_factory("verigym/Desk-v0", level=1, size=1).dataset()
    rollout.reset(**row)
    rollout.say(text=render_call("find_order", {"order": 1}))
    assert not rollout._env._scenario.world.events


class Lost(Verifier):
    def verify(self, submission: Any, task: Any) -> Verdict:
        if "crash" in submission.text:
            raise OSError("the judge is gone")
        return Verdict.infra_error("no judge answers")


@pytest.mark.parametrize(("text", "why"), [("4", "no judge answers"), ("crash", "OSError: the judge is gone")])
def test_an_infrastructure_error_is_no_reward_of_zero(text: str, why: str, caplog) -> None:
    verifiers.register("lost", Lost)
    factory = environment_factory("verigym/Arithmetic-v0", verifier="lost", size=1)
    (row,), rollout, counted = factory.dataset(), factory(), {}
    rollout.reset(**row)
    with caplog.at_level(logging.WARNING):
        assert environment_reward([last(text)], [rollout], log_metric=counted.__setitem__) == [None]
    assert why in caplog.text
    assert counted == {"infra_errors": 1.0}


def away(task: Any) -> Any:
    raise OSError("no user answers")


def test_an_episode_that_cannot_begin_has_no_reward_and_the_next_one_begins(monkeypatch, caplog) -> None:
    factory = environment_factory(CALCULATOR, **OPTIONS)
    (row, _), rollout = factory.dataset(), factory()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(rollout._env, "opening", away)
        rollout.reset(**row)
        assert environment_reward([last("4")], [rollout]) == [None]
    assert "OSError: no user answers" in caplog.text
    assert "What is" in rollout.reset(**row)
    assert environment_reward([last("none")], [rollout]) == [0.0]
    with pytest.raises(UnknownNameError, match="no task"):
        rollout.reset(task="another/0", seed=0)


def test_what_trl_cannot_play_is_refused() -> None:
    with pytest.raises(ConfigError, match="'reset' of its tool 'reset' is no name for it"):
        environment_factory("verigym/Arithmetic-v0", tools=[_tool_named_reset()])
    with pytest.raises(ConfigError, match=r"needs the columns task and seed: train_dataset=factory.dataset\(\)"):
        environment_factory(CALCULATOR)().reset(prompt=[])
    with pytest.raises(UnknownNameError, match="did you mean 'verigym/Calculator-v0'"):
        environment_factory("verigym/Calculato-v0")
    register("trl/NoTextEnv-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv", kwargs={})
    with pytest.raises(ConfigError, match="is no text environment"):
        environment_factory("trl/NoTextEnv-v0")


def _tool_named_reset() -> Any:
    def reset(order: int) -> str:
        """Reset an order."""
        return str(order)

    return reset
