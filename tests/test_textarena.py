"""TextArena's games, played by the package itself: words and rewards are the game's, and episodes repeat."""

import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest

from verigym.envs.adapters import _sessions
from verigym.envs.conformance import check
from verigym.tasks.errors import ConfigError, TaskDataError, UnknownNameError
from verigym.verifiers import Outcome

if find_spec("textarena") is None:
    pytest.skip("textarena is not installed: pip install 'verigym[textarena]'", allow_module_level=True)

ID, GUESS, TICTACTOE = "verigym/TextArena-v0", "GuessTheNumber-v0", "TicTacToe-v0"


def make(game: str = GUESS, **options: Any) -> Any:
    return gym.make(ID, game=game, **options).unwrapped


def play(env: Any, index: int, moves: Sequence[str]) -> list[Any]:
    """What the task at `index` says to the moves, up to its end."""
    observation, info = env.reset(options={"task": env.tasks.ids[index]})
    said = [observation]
    for move in moves:
        *turn, info = env.step(move)
        said.append((*turn, info.get("verdict")))
        if turn[2] or turn[3]:
            break
    return said


def bisected(env: Any, index: int) -> list[Any]:
    """The game won by halving the range."""
    low, high, said = 1, 20, [env.reset(options={"task": env.tasks.ids[index]})[0]]
    while True:
        guess = (low + high) // 2
        *turn, info = env.step(f"<think>[1]?</think> I say [{guess}].")
        said.append((*turn, info.get("verdict")))
        if turn[2]:
            return said
        low, high = (guess + 1, high) if "higher" in turn[0] else (low, guess - 1)


class FirstFree:
    """Takes the first square that is free, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def act(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        self.shown.append([dict(message) for message in messages])
        return re.findall(r"\[\d\]", messages[-1]["content"].rpartition("Available Moves")[2])[0]


class Fails:
    def act(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        return "I do not play."


def test_a_game_of_one_player_pays_what_it_pays() -> None:
    env = make(size=5)
    for index in range(5):
        first, *rest, last = bisected(env, index)
        assert "between 1 and 20" in first
        assert all(re.fullmatch(r"The target number is (higher|lower)\.", turn[0]) for turn in rest)
        assert [turn[1] for turn in rest] == [0.0] * len(rest)
        assert last[1:4] == (1.0, True, False)
        verdict = last[4]
        assert (verdict.outcome, dict(verdict.components)) == (Outcome.CORRECT, {"player 0": 1.0})
        assert "guessed the correct number" in verdict.reason


def test_an_invalid_move_is_answered_and_a_second_one_ends_the_game() -> None:
    _, warned, ended = play(make(), 0, ["none", "[99]", "[1]"])
    assert "attempted an invalid move" in warned[0]
    assert (ended[2], ended[4].outcome) == (True, Outcome.UNPARSEABLE)
    assert "outside the range" in ended[4].reason


def test_a_game_that_mixes_up_arguments_plays_and_pays_what_it_means_to() -> None:
    _, moved, warned, ended = play(make("Countdown-v0"), 0, ["[0 1 +]", "none", "none"])
    progress = re.search(r"Current progress score: (\d\.\d+)", moved[0])[1]
    assert "Reason: Invalid action format." in warned[0]
    assert ended[1:4] == (pytest.approx(float(progress), abs=1e-3), True, False)
    assert (ended[4].outcome, ended[4].reason[:36]) == (Outcome.UNPARSEABLE, "Invalid Move: Invalid action format.")


def test_partial_rewards_are_the_games_own() -> None:
    env = make(options={"max_turns": 2})
    env.reset(options={"task": env.tasks.ids[0]})
    for move in ("[18]", "[19]"):  # the game counts a turn only once it has looked at the limit
        env.step(move)
    *_, reward, ended, _, info = env.step("[20]")
    target = int(re.search(r"Target: (\d+)", info["verdict"].reason)[1])
    assert ended
    assert reward == pytest.approx(1 - (20 - target) / 19)
    assert info["verdict"].outcome is Outcome.WRONG


def test_the_agent_takes_each_seat_in_turn_against_random_legal_moves() -> None:
    env = make(TICTACTOE, size=40)
    rng, outcomes = random.Random(0), []
    for index in range(40):
        observation, _ = env.reset(options={"task": env.tasks.ids[index]})
        assert f"You are Player {index % 2} in Tic Tac Toe" in observation
        assert ("Player 0 placed" in observation) == (index % 2 == 1)
        ended = False
        while not ended:
            free = re.findall(r"\[\d\]", observation.rpartition("Available Moves")[2])
            observation, reward, ended, _, info = env.step(rng.choice(free))
        assert "invalid" not in info["verdict"].reason
        assert info["verdict"].components[f"player {index % 2}"] == reward
        outcomes.append(reward)
    assert set(outcomes) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("game", ["ConnectFour-v0", "Nim-v0", "KuhnPoker-v0", "Othello-v0-tiny", "PigDice-v0-50"])
def test_random_moves_are_found_in_other_games(game: str) -> None:
    env = make(game, size=2)
    for index in range(2):
        env.reset(options={"task": env.tasks.ids[index]})
        reply: Mapping[str, Any] = {}
        for _ in range(300):  # the agent, too, makes random moves
            reply = env._others_move(env._session, env._session.move())
            if "over" in reply:
                break
        assert "over" in reply
        assert not reply["invalid"]


@pytest.mark.parametrize("game", [TICTACTOE, "Golf-v0"])  # which refuse one player by an assertion, or a ValueError
def test_as_few_play_as_the_game_can_have(game: str) -> None:
    assert make(game)._spec["players"] == 2


def test_an_agent_may_play_the_opponent() -> None:
    opponent = FirstFree()
    env = make(TICTACTOE, opponent=opponent)
    said = play(env, 0, ["[4]", "[8]", "[2]", "[6]"])
    assert "Player 1 placed their symbol (X) in cell 0." in said[1][0]
    assert [message["role"] for message in opponent.shown[1]] == ["user", "assistant", "user"]
    assert "You are Player 1" in opponent.shown[0][0]["content"]
    assert said[-1][1:3] == (1.0, True)


def test_an_opponent_that_makes_no_move_loses() -> None:
    *_, last = play(make(TICTACTOE, opponent=Fails()), 0, ["[4]"])
    assert last[1:3] == (1.0, True)


def test_a_game_among_several_that_a_budget_ends_is_lost() -> None:
    env = make(TICTACTOE, max_turns=1)
    *_, last = play(env, 0, ["[4]"])
    assert last[1:4] == (-1.0, False, True)
    assert "counts as lost" in last[4].reason
    *_, last = play(make(max_turns=1), 0, ["none"])
    assert last[1:4] == (0.0, False, True)


def test_threads_that_play_at_once_play_as_alone() -> None:
    def episode(index: int) -> Any:
        return play(make("FrozenLake-v0-random"), index, ["[right]", "[down]", "[right]", "[up]", "[down]"] * 4)

    alone = [episode(index) for index in range(8)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(episode, range(8))) == alone
    assert len({said[0] for said in alone}) > 1


class Holds:
    def act(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
        return "[hold]"


def test_the_dice_of_an_episode_are_its_own() -> None:
    def thrown(env: Any) -> list[str]:
        return re.findall(r"history for this turn: .*'(\d)'\n", env.step("[roll]")[0])  # a 1 ends the turn

    envs = [make("PigDice-v0-500", opponent=Holds()) for _ in range(2)]
    alone = []
    for index, env in enumerate(envs):
        env.reset(options={"task": env.tasks.ids[2 * index]})
        alone.append([thrown(env) for _ in range(12)])
    for index, env in enumerate(envs):
        env.reset(options={"task": env.tasks.ids[2 * index]})
    turns = [[thrown(env) for env in envs] for _ in range(12)]
    assert [list(dice) for dice in zip(*turns, strict=True)] == alone
    assert alone[0] != alone[1]
    assert all(len({die for dice in episode for die in dice}) > 2 for episode in alone)


def test_the_same_seed_gives_the_same_game_in_another_process() -> None:
    code = (
        "import gymnasium as gym; env = gym.make('verigym:verigym/TextArena-v0', game='Minesweeper-v0-small');"
        "print([env.reset(seed=3)[0], *[env.step(f'[{i} {i}]') for i in range(3)]])"
    )
    run = [sys.executable, "-c", code]
    said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    env = make("Minesweeper-v0-small")
    assert said == f"{[env.reset(seed=3)[0], *[env.step(f'[{i} {i}]') for i in range(3)]]}\n"


def test_no_global_random_state_is_touched() -> None:
    before = random.getstate(), repr(np.random.get_state())
    bisected(make(), 0)
    assert (random.getstate(), repr(np.random.get_state())) == before
    assert "textarena" not in sys.modules


def test_train_and_test_share_no_game() -> None:
    seeds = [{task.metadata["seed"] for task in make(split=split, size=30).tasks} for split in ("train", "test")]
    assert not seeds[0] & seeds[1]
    assert [len(part) for part in seeds] == [30, 30]
    assert make(seed=1).tasks[0].metadata != make().tasks[0].metadata


def hosts() -> list[psutil.Process]:
    return [psutil.Process(pid) for host in _sessions._hosts.values() for pid in host.pids() if psutil.pid_exists(pid)]


def test_an_episode_goes_on_where_its_worker_was_killed() -> None:
    alone = play(make(), 3, ["[4]", "[8]", "[15]"])
    env = make()
    env.reset(options={"task": env.tasks.ids[3]})
    env.step("[4]")
    for process in hosts():
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert env.step("[8]")[:4] == alone[2][:4]


def test_a_package_that_plays_otherwise_the_second_time_is_an_infrastructure_error() -> None:
    env = make()
    env.reset(options={"task": env.tasks.ids[3]})
    env.step("[4]")
    env._session._replies[0] = {"text": "other words"}
    for process in hosts():
        process.send_signal(signal.SIGKILL)
        process.wait()
    *_, terminated, _, info = env.step("[8]")
    assert terminated
    assert info["verdict"].outcome is Outcome.INFRA_ERROR
    assert "says other things" in info["verdict"].reason


def test_an_exception_of_a_game_is_an_infrastructure_error_and_others_go_on(tmp_path) -> None:
    env, other = make(), make()
    for one in (env, other):
        one.reset(options={"task": one.tasks.ids[0]})
    env._session._start["spec"]["options"]["max_turns"] = "many"  # which the game compares with a number
    env.opening(env._task)
    *_, info = env.step("[4]")
    assert info["verdict"].outcome is Outcome.INFRA_ERROR
    assert re.match(r"textarena failed: TypeError: '>=' not supported", info["verdict"].reason)
    assert other.step("[4]")[0].startswith("The target number is")


def test_close_ends_a_step_that_waits_for_the_game() -> None:
    began = threading.Event()

    class Waits:
        def act(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
            began.set()
            env.close()
            return "[0]"

    env = make(TICTACTOE, opponent=Waits())
    env.reset(options={"task": env.tasks.ids[0]})
    with pytest.raises(_sessions.EnvClosedError):
        env.step("[4]")
    assert began.is_set()


def test_close_ends_a_step_that_waits_for_an_opponent() -> None:
    ended = threading.Event()

    class Ponders:
        def act(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] = ()) -> str:
            env.close()
            assert ended.wait(30)
            return "[0]"

    env = make(TICTACTOE, opponent=Ponders())
    env.reset(options={"task": env.tasks.ids[0]})
    with pytest.raises(_sessions.EnvClosedError):
        env.step("[4]")
    ended.set()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"game": ""}, ConfigError, "needs a name, such as game="),
        ({"game": "TicTacTo-v0"}, UnknownNameError, "did you mean 'TicTacToe-v0'?"),
        ({"game": "Wordle-v0"}, ConfigError, "textarena cannot make 'Wordle-v0': LookupError: Resource"),
        ({"options": {"max_turn": 3}}, ConfigError, "unexpected keyword argument 'max_turn'"),
        ({"players": "2"}, ConfigError, "players must be a whole number of at least 1, not '2'"),
        ({"players": 3}, ConfigError, "The number of players has to be 1, received 3"),
        ({"opponent": "nothing:at_all"}, ConfigError, "must name a function"),
        ({"split": "trian"}, UnknownNameError, "did you mean 'train'?"),
        ({"size": 0}, ConfigError, "size"),
        ({"python": "/no/such/python"}, ConfigError, "No such file or directory"),
    ],
)
def test_wrong_options_are_refused_in_one_line(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        make(**options)
    assert "\n" not in str(caught.value)


def test_an_interpreter_without_the_package_is_told_how_to_get_it(tmp_path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    with pytest.raises(ConfigError, match=r"python' has no textarena \(No module named .*\); .* install textarena"):
        make(python=str(tmp_path / "bin" / "python"))


def test_a_task_that_cannot_begin_is_one_line() -> None:
    env = make()
    env._spec = {**env._spec, "options": {"min_number": 5, "max_number": 1}}
    with pytest.raises(TaskDataError, match=r"textarena cannot begin the task Guess.*/0: ValueError"):
        env.reset(options={"task": env.tasks.ids[0]})


@pytest.mark.parametrize("game", [GUESS, TICTACTOE])
def test_a_game_keeps_to_every_rule_that_needs_no_golds(game: str) -> None:
    found = check(ID, game=game, size=20)
    assert found.failures == ()
    assert all("gold" in unchecked.rule for unchecked in found.unchecked)
    assert len(found.unchecked) == 2
