"""Episodes: token-exact, one environment's trouble is its own, and nothing is left behind."""

import math
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import verigym  # noqa: F401 - registers the environments
from verigym.agents.agent import LocalAgent
from verigym.agents.chat import Chat
from verigym.agents.collect import Collector, demonstrations
from verigym.agents.engines.transformers import TransformersEngine
from verigym.agents.episode import Episode, Plan, Truncation, derive_seed
from verigym.agents.tiny import tiny_model, tiny_tokenizer
from verigym.envs import Budget, Reply, TextEnv
from verigym.envs.mixture import EnvSpec
from verigym.tasks import Task, TaskSet
from verigym.tasks.errors import RunInterrupted
from verigym.verifiers.verdict import Outcome

TOKENIZER = tiny_tokenizer()
CALCULATOR = EnvSpec("verigym/Calculator-v0", kwargs={"level": 1, "max_tokens_per_turn": 12})


class Counting(gym.Env[str, str]):
    """An environment of `turns` turns with nothing but reset and step."""

    made: list["Counting"]

    def __init__(self, turns: int = 3, answer: str = "and then?") -> None:
        self.turns, self.answer, self.taken, self.closed = turns, answer, 0, False
        type(self).made.append(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken = 0
        return f"start {self.np_random.integers(100)}", {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        return self.answer, 0.5, self.taken == self.turns, False, {}

    def close(self) -> None:
        self.closed = True


class Troubled(Counting):
    """One that fails, hangs, is slow or talks nonsense for some tasks, named by the first seed."""

    def __init__(self, trouble: str, when: int) -> None:
        super().__init__()
        self.trouble, self.when, self.troubled = trouble, when, False
        self.released = threading.Event()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        self.troubled = seed == self.when
        if self.troubled and self.trouble == "reset":
            raise RuntimeError("no reset today")
        return super().reset(seed=seed)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        answer = super().step(action)
        if self.troubled:
            if self.trouble == "step":
                raise RuntimeError("no step today")
            if self.trouble == "exit":
                sys.exit("no step today")
            if self.trouble == "hang":
                self.released.wait()
            if self.trouble == "slow":
                time.sleep(0.1)
            if self.trouble == "nonsense":
                return "too", "short"  # type: ignore[return-value]
            if self.trouble == "messages":
                return answer[0], 0.5, False, False, {"messages": [{"content": "by whom?"}]}
        return answer

    def close(self) -> None:
        super().close()
        self.released.set()


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    for cls in (Counting, Troubled):
        cls.made = []
        gym.register(f"test/{cls.__name__}", entry_point=cls, disable_env_checker=True)
    yield
    for cls in (Counting, Troubled):
        del gym.registry[f"test/{cls.__name__}"]


def make_agent(*, max_context: int = 2048, max_new_tokens: int = 6, slots: int = 8) -> LocalAgent:
    model = tiny_model(len(TOKENIZER), hidden_size=32, layers=2, heads=2, intermediate_size=48, max_context=max_context)
    return LocalAgent(Chat(TOKENIZER), TransformersEngine(model, slots=slots), max_new_tokens=max_new_tokens)


@pytest.fixture
def agent() -> LocalAgent:
    return make_agent()


@pytest.fixture
def make_collector() -> Iterator[Callable[..., Collector]]:
    made: list[Collector] = []

    def make(agent: LocalAgent, *specs: EnvSpec, **options: Any) -> Collector:
        made.append(Collector(agent, specs, **options))
        return made[-1]

    yield make
    for collector in made:
        collector.close()


def plans(count: int, group: int = 2, env: int = 0) -> list[Plan]:
    """Groups of `group` members with one start; the seed is the group's number."""
    return [
        Plan(env, f"train-{index // group}", index // group, index // group, derive_seed("sampling", index))
        for index in range(count)
    ]


def calculator_plans(count: int, spec: EnvSpec = CALCULATOR) -> list[Plan]:
    tasks = spec.make().unwrapped.tasks
    return [
        Plan(0, tasks[index // 4].id, index // 4, derive_seed(index // 4), derive_seed("sampling", index))
        for index in range(count)
    ]


def text_of(ids: np.ndarray) -> str:
    return TOKENIZER.decode(ids.tolist(), clean_up_tokenization_spaces=False)


def check_columns(agent: LocalAgent, episode: Episode) -> None:
    """The columns agree with each other, with the turns, and with the engine's own scores."""
    length = len(episode.token_ids)
    assert len(episode.mask) == len(episode.logprobs) == len(episode.versions) == length
    of_turns = np.zeros(length, bool)
    for turn in episode.turns:
        assert not of_turns[turn.start : turn.end].any()
        assert turn.end > turn.start
        of_turns[turn.start : turn.end] = True
    assert (of_turns == episode.mask).all()
    assert (episode.logprobs[~episode.mask] == 0).all()
    assert (episode.logprobs[episode.mask] < 0).all()
    assert (episode.versions == np.where(episode.mask, agent.engine.version, -1)).all()
    (scores,) = agent.engine.score([episode.token_ids.tolist()])
    assert np.allclose(scores[episode.mask[1:]], episode.logprobs[episode.mask], rtol=0, atol=1e-5)


def rebuilt(agent: LocalAgent, episode: Episode, tools: Any = ()) -> list[int]:
    """The ids from the prompt, the sampled turns and the suffixes of the messages after each."""
    messages = list(episode.messages)
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    ids = agent.chat.prompt(messages[: turns[0]], tools)
    for turn, index, following in zip(episode.turns, turns, [*turns[1:], None], strict=True):
        sampled = episode.token_ids[turn.start : turn.end].tolist()
        assert turn.start == len(ids)
        assert messages[index]["content"] == agent.chat.canonical(sampled)
        ids += sampled
        if following is not None:
            ids += agent.chat.suffix(messages[index + 1 : following], sampled[-1])
    return ids


def same(first: Episode, second: Episode) -> bool:
    arrays = [(getattr(first, name), getattr(second, name)) for name in ("token_ids", "mask", "logprobs", "versions")]
    return first.to_json() == second.to_json() and all(np.array_equal(one, two) for one, two in arrays)


# What an episode holds.


@pytest.mark.parametrize("deterministic", [False, True])
def test_calculator_episodes_are_token_exact(
    agent: LocalAgent, make_collector: Callable[..., Collector], deterministic: bool
) -> None:
    asked = calculator_plans(16)
    episodes = make_collector(agent, CALCULATOR, deterministic=deterministic).collect(asked)
    assert [(episode.task_id, episode.group_id) for episode in episodes] == [(p.task_id, p.group_id) for p in asked]
    tools = CALCULATOR.make().unwrapped.tools
    for episode in episodes:
        check_columns(agent, episode)
        assert rebuilt(agent, episode, tools) == episode.token_ids.tolist()
        assert episode.verdict.outcome in (Outcome.UNPARSEABLE, Outcome.WRONG, Outcome.CORRECT)
    starts = {episode.group_id: set() for episode in episodes}
    for episode in episodes:
        starts[episode.group_id].add(tuple(episode.token_ids[: episode.turns[0].start]))
    assert all(len(prompts) == 1 for prompts in starts.values())
    assert len({episode.token_ids.tobytes() for episode in episodes}) == len(episodes)


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_environment_with_only_reset_and_step_gives_token_exact_episodes(
    agent: LocalAgent, make_collector: Callable[..., Collector], deterministic: bool
) -> None:
    collector = make_collector(agent, EnvSpec("test/Counting"), deterministic=deterministic)
    for episode in collector.collect(plans(12)):
        assert len(episode.turns) == 3
        check_columns(agent, episode)
        assert rebuilt(agent, episode) == episode.token_ids.tolist()
        assert (episode.terminated, episode.truncated) == (True, False)
        assert episode.reward == episode.verdict.reward == 1.5
        assert text_of(episode.token_ids).count("and then?<|im_end|>") == 2


def test_demonstrated_episodes_are_right_and_mask_the_environments_words(agent: LocalAgent) -> None:
    asked = calculator_plans(8)
    episodes = demonstrations(agent.chat, [EnvSpec("verigym/Calculator-v0", kwargs={"level": 1})], asked)
    for episode in episodes:
        for turn in episode.turns:
            assert episode.token_ids[turn.end - 1] == agent.chat.end_token_id
            assert episode.mask[turn.start : turn.end].all()
        assert episode.mask.sum() == sum(turn.end - turn.start for turn in episode.turns)
        assert episode.terminated


# Schedules.


def test_lockstep_twice_gives_the_same_bits(make_collector: Callable[..., Collector]) -> None:
    spec = EnvSpec("test/Counting")
    collector = make_collector(make_agent(), CALCULATOR, spec, deterministic=True, concurrency=7)
    asked = calculator_plans(8) + plans(8, env=1)
    first, second = collector.collect(asked), collector.collect(asked)
    anew = make_collector(make_agent(), CALCULATOR, spec, deterministic=True, concurrency=7).collect(asked)
    for one, two, three in zip(first, second, anew, strict=True):
        assert same(one, two)
        assert same(one, three)


def test_lockstep_asks_in_the_order_of_the_plans_whoever_answers_first(
    agent: LocalAgent, make_collector: Callable[..., Collector], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    submit = agent.engine.submit
    monkeypatch.setattr(agent.engine, "submit", lambda request: (asked.append(request.episode_id), submit(request)))
    spec = EnvSpec("test/Troubled", kwargs={"trouble": "slow", "when": 0})
    make_collector(agent, spec, deterministic=True).collect(plans(6))
    assert asked == sorted(asked[:6]) * 3


def test_overlapped_plays_the_same_tasks_with_the_same_seeds(make_collector: Callable[..., Collector]) -> None:
    asked = plans(12)
    lockstep = make_collector(make_agent(), EnvSpec("test/Counting"), deterministic=True).collect(asked)
    overlapped = make_collector(make_agent(), EnvSpec("test/Counting"), concurrency=5).collect(asked)
    for one, two in zip(lockstep, overlapped, strict=True):
        assert (one.task_id, one.group_id, one.seed) == (two.task_id, two.group_id, two.seed)
        assert one.token_ids.tolist() == two.token_ids.tolist()


# Trouble.


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("trouble", ["reset", "step", "exit", "hang", "nonsense", "messages"])
def test_a_broken_environment_loses_only_its_own_episodes(
    agent: LocalAgent, make_collector: Callable[..., Collector], trouble: str, deterministic: bool
) -> None:
    spec = EnvSpec("test/Troubled", kwargs={"trouble": trouble, "when": 2})
    collector = make_collector(agent, spec, deterministic=deterministic, env_timeout=0.5)
    episodes = collector.collect(plans(12))
    for episode in episodes:
        lost = episode.group_id == 2
        assert (episode.verdict.outcome is Outcome.INFRA_ERROR) is lost
        assert math.isnan(episode.reward) is lost
        if not lost:
            check_columns(agent, episode)
            assert episode.terminated
    reasons = {episode.verdict.reason for episode in episodes if episode.group_id == 2}
    expected = {"reset": "no reset today", "step": "no step today", "hang": "no answer within 0.5 s"}
    expected |= {"exit": "SystemExit: no step today"}
    assert all("test/Troubled" in reason and expected.get(trouble, "") in reason for reason in reasons)
    assert agent.engine.pending == 0
    assert not agent.engine._paused
    again = collector.collect(plans(4))  # the workers and the engine are fit for more
    assert all(episode.terminated for episode in again)


def test_a_slow_environment_delays_its_own_episodes_and_nothing_else(
    agent: LocalAgent, make_collector: Callable[..., Collector]
) -> None:
    spec = EnvSpec("test/Troubled", kwargs={"trouble": "slow", "when": 0})
    finished: list[int] = []
    collector = make_collector(agent, spec)
    episodes = collector.collect(plans(8), lambda: finished.append(collector.progress[0]))
    assert all(episode.terminated for episode in episodes)
    assert finished == list(range(1, 9))


def test_the_process_ends_though_an_environment_hangs() -> None:
    script = """
        import threading, gymnasium as gym
        from verigym.agents.agent import LocalAgent
        from verigym.agents.chat import Chat
        from verigym.agents.collect import Collector
        from verigym.agents.engines.transformers import TransformersEngine
        from verigym.agents.episode import Plan
        from verigym.agents.tiny import tiny_model, tiny_tokenizer
        from verigym.envs.mixture import EnvSpec

        class Hanging(gym.Env):
            def reset(self, *, seed=None, options=None):
                return "start", {}
            def step(self, action):
                threading.Event().wait()
            def close(self):
                threading.Event().wait()

        gym.register("test/Hanging", entry_point=Hanging, disable_env_checker=True)
        tokenizer = tiny_tokenizer()
        model = tiny_model(len(tokenizer), hidden_size=32, layers=1, heads=2, intermediate_size=32)
        agent = LocalAgent(Chat(tokenizer), TransformersEngine(model), max_new_tokens=3)
        collector = Collector(agent, [EnvSpec("test/Hanging")], env_timeout=0.2)
        (episode,) = collector.collect([Plan(0, "a", 0, 0, 0)])
        collector.close()
        print(episode.verdict.outcome.name)
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stdout.split()[-1:]) == (0, ["INFRA_ERROR"]), result.stderr


@pytest.mark.parametrize("deterministic", [False, True])
def test_an_interruption_raises_and_leaves_nothing_behind(
    agent: LocalAgent, make_collector: Callable[..., Collector], deterministic: bool
) -> None:
    rounds = 0

    def interrupted() -> bool:
        nonlocal rounds
        rounds += 1
        return rounds == 9

    collector = make_collector(agent, EnvSpec("test/Counting"), deterministic=deterministic, interrupted=interrupted)
    with pytest.raises(RunInterrupted):
        collector.collect(plans(12))
    assert agent.engine.pending == 0
    assert not agent.engine._paused
    assert not agent.engine.prompts.lengths
    assert collector.waiting() == {"engine": 0, "environment": 0}
    assert all(episode.terminated for episode in collector.collect(plans(12)))


# Budgets.


def test_a_conversation_that_fills_the_context_is_truncated_after_a_whole_turn(
    make_collector: Callable[..., Collector],
) -> None:
    agent = make_agent(max_context=120, max_new_tokens=10)
    spec = EnvSpec("test/Counting", kwargs={"turns": 50, "answer": "thirty characters of an answer"})
    for episode in make_collector(agent, spec).collect(plans(6)):
        assert episode.truncation is Truncation.CONTEXT
        assert len(episode.token_ids) <= 120
        assert len(episode.turns) > 1
        assert episode.mask[-1]
        assert "120 tokens" in episode.verdict.reason
        assert episode.reward == 0.5 * len(episode.turns)
        check_columns(agent, episode)


def test_a_prompt_longer_than_the_context_is_an_episode_without_turns(
    make_collector: Callable[..., Collector],
) -> None:
    agent = make_agent(max_context=5)
    (episode,) = make_collector(agent, EnvSpec("test/Counting")).collect(plans(1))
    assert (episode.turns, episode.truncation, episode.num_policy_tokens) == ((), Truncation.CONTEXT, 0)


def test_a_turn_cut_by_its_budget_truncates_the_episode(
    agent: LocalAgent, make_collector: Callable[..., Collector]
) -> None:
    spec = EnvSpec("verigym/Calculator-v0", kwargs={"level": 1, "max_tokens_per_turn": 3})
    for episode in make_collector(agent, spec).collect(calculator_plans(8)):
        (turn,) = episode.turns
        assert turn.end - turn.start <= 3
        assert turn.limit == 3
        assert episode.truncation is (Truncation.TOKENS if turn.stop_reason == "length" else None)
        assert episode.terminated is not episode.truncated


class Asking(TextEnv):
    """Asks on, whatever it is told."""

    def __init__(self, turns: int) -> None:
        tasks = TaskSet([Task(f"train-{index}", "Well?", "so") for index in range(9)], name="asking", split="train")
        super().__init__(tasks, "exact", budget=Budget(turns))

    def respond(self, action: str) -> Reply:
        return Reply([{"role": "user", "content": "And?"}])


def test_an_episode_out_of_turns_says_so(make_collector: Callable[..., Collector]) -> None:
    gym.register("test/Asking", entry_point=Asking, disable_env_checker=True)
    spec = EnvSpec("test/Asking", kwargs={"turns": 2})
    episodes = make_collector(make_agent(max_new_tokens=400), spec).collect(plans(4))
    del gym.registry["test/Asking"]
    for episode in episodes:
        stopped = all(turn.stop_reason == "stop" for turn in episode.turns)
        assert episode.truncation is (Truncation.TURNS if stopped else Truncation.TOKENS)
    assert Truncation.TURNS in {episode.truncation for episode in episodes}


def test_a_turn_cut_by_the_context_names_the_context(make_collector: Callable[..., Collector]) -> None:
    spec = EnvSpec("verigym/Arithmetic-v0", kwargs={"max_tokens_per_turn": 10_000})
    probe = make_collector(make_agent(max_new_tokens=1), spec)
    prompt = int(np.argmax(probe.collect(calculator_plans(1, spec))[0].mask))
    agent = make_agent(max_context=prompt + 2, max_new_tokens=50)
    for episode in make_collector(agent, spec).collect(calculator_plans(4, spec)):
        cut = episode.turns[0].stop_reason == "length"
        assert episode.truncation is (Truncation.CONTEXT if cut else None)
        assert episode.turns[0].limit == 2


# Environments.


def test_environments_are_used_again_and_closed(agent: LocalAgent, make_collector: Callable[..., Collector]) -> None:
    collector = make_collector(agent, EnvSpec("test/Counting"), concurrency=3)
    for _ in range(2):
        collector.collect(plans(10))
    assert 1 <= len(Counting.made) <= 3
    assert not any(env.closed for env in Counting.made)
    collector.close()
    assert all(env.closed for env in Counting.made)


def test_a_mixture_plays_each_plan_in_its_own_environment(
    agent: LocalAgent, make_collector: Callable[..., Collector]
) -> None:
    short, long = (EnvSpec("test/Counting", kwargs={"turns": turns}) for turns in (1, 4))
    asked = [plan for pair in zip(plans(4, env=0), plans(4, env=1), strict=True) for plan in pair]
    episodes = make_collector(agent, short, long).collect(asked)
    assert [len(episode.turns) for episode in episodes] == [1, 4] * 4
