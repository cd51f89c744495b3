"""The conformance checker finds what is wrong with broken environments, and nothing with those that are in order."""

import re
import sys
import threading
from pathlib import Path

import gymnasium as gym
import pytest

from verigym.cli import main
from verigym.envs import conformance, registration
from verigym.envs._conformance_rules import RULES
from verigym.envs.conformance import assert_conforms, check, checks
from verigym.tasks.errors import ConfigError, ConformanceError, UnknownNameError

HERE = str(Path(__file__).parent)
ARITHMETIC = "verigym/Arithmetic-v0"


def broken_envs():
    """The module of the broken environments; tests are no package, so it is found by its folder."""
    if HERE not in sys.path:
        sys.path.insert(0, HERE)
    import broken_envs

    return broken_envs


BROKEN = broken_envs().BROKEN


@pytest.mark.parametrize("env_id", BROKEN)
def test_a_broken_environment_fails_with_the_rule_that_it_breaks(env_id):
    found = check(f"broken_envs:{env_id}")
    assert {check.rule: check.detail for check in found.failures}.keys() == BROKEN[env_id], found.failures
    assert all(check.detail and "\n" not in check.detail for check in found.failures)
    assert not found.ok
    assert found.unchecked == ()


def test_every_rule_is_broken_by_one_of_them():
    assert set().union(*BROKEN.values()) == set(RULES)


def test_an_environment_that_hangs_is_reported_and_soon_left_alone(monkeypatch):
    monkeypatch.setattr(conformance, "SECONDS", 3.0)
    found = check("broken_envs:broken/Hangs-v0")
    assert [check.detail.partition(":")[0] for check in found.failures] == ["it hung"] * 2
    assert len(found.checks) == len(RULES)
    assert all("not tried" in check.detail for check in found.unchecked[-10:])


def test_an_environment_of_any_class_is_checked_as_far_as_it_goes():
    found = check("broken_envs:broken/NoTextEnv-v0")
    assert found.failures == ()
    unchecked = {check.rule: check.detail for check in found.unchecked}
    assert len(unchecked) == 5, unchecked
    assert set(unchecked.values()) == {"it has no method snapshot", "it is no TextEnv"}


def test_assert_conforms_lists_what_is_broken_in_one_line():
    with pytest.raises(AssertionError) as caught:
        assert_conforms("broken_envs:broken/AddsABonus-v0")
    assert isinstance(caught.value, ConformanceError)
    assert str(caught.value).startswith("broken_envs:broken/AddsABonus-v0 breaks 1 of ")
    assert "the last reward is the verdict's" in str(caught.value)
    assert "the last reward is 0.01, the verdict's 0.0" in str(caught.value)


def test_keyword_arguments_reach_the_environment():
    found = {check.rule: check for check in check("verigym:verigym/Arithmetic-v0", level=1, chance=0.0).checks}
    broken = [check.detail for check in found.values() if not check.holds]
    assert len(broken) == 1, broken  # of level 1, a random answer is right too often for a chance of nothing
    assert re.search(r"may be earned on \d+ tasks", broken[0])  # fewer than 500 on a busy machine


@pytest.mark.parametrize(
    ("env_id", "kwargs", "error", "message"),
    [
        ("verigym/Arithmtic-v0", {}, UnknownNameError, "did you mean 'verigym/Arithmetic-v0'"),
        ("no_such_module:X-v0", {}, ConfigError, "cannot import the module"),
        (ARITHMETIC, {"levl": 3}, ConfigError, "cannot make verigym/Arithmetic-v0: no environment option 'levl'"),
        (ARITHMETIC, {"verifier": threading.Lock()}, ConfigError, "cannot be sent to a process"),
    ],
)
def test_what_cannot_be_made_is_told_in_one_line(env_id, kwargs, error, message):
    with pytest.raises(error, match=message) as caught:
        check(env_id, **kwargs)
    assert "\n" not in str(caught.value)


def test_an_id_whose_class_no_other_process_can_import_is_told_in_one_line(monkeypatch, tmp_path):
    (tmp_path / "module_of_this_test.py").write_text("from verigym.envs import QuestionEnv as Env\n")
    monkeypatch.setattr(registration, "_IDS", [])
    registration.register("plain/Gone-v0", entry_point="module_of_this_test:Env", kwargs={"task_set": "arithmetic"})
    with pytest.raises(ConfigError, match="No module named 'module_of_this_test'"):
        next(checks("plain/Gone-v0"))
    del gym.registry["plain/Gone-v0"]


# The command.


def test_the_command_prints_every_rule_of_one_environment(capsys):
    assert main(["check", ARITHMETIC, "--split", "test", "--option", "level=3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["ok"] * len(RULES)
    assert lines[-1].startswith(f"{ARITHMETIC}: {len(RULES)} rules hold, 0 are broken, 0 could not be checked")


def test_the_command_ends_with_status_one_for_a_broken_environment(capsys):
    assert main(["check", "broken_envs:broken/TellsTheGoldInItsInfo-v0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.strip().startswith("FAILED")]
    assert len(failed) == 1
    assert "the canary is nowhere before the verdict" in failed[0]
    assert "7351946208" in failed[0]


def test_without_an_id_the_command_checks_all_and_says_which_it_could_not(capsys, monkeypatch, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"question": "What is {n} + 1000?", "answer": "#### {n + 1000}"}}\n' for n in range(60)))
    ids = [ARITHMETIC, "verigym/GSM8K-v0"]
    monkeypatch.setattr(registration, "_IDS", ids)
    given = ["check", "--option", f"{ARITHMETIC}:level=3", "--source"]
    assert main([*given, f"verigym/GSM8K-v0={rows}"]) == 0
    out = capsys.readouterr().out
    assert out.count("0 are broken") == 2
    assert "2 of 2 environments" in out
    assert main([*given, f"verigym/GSM8K-v0={tmp_path / 'nothing'}"]) == 1
    out = capsys.readouterr().out
    assert "verigym/GSM8K-v0: not checked: cannot make verigym/GSM8K-v0" in out
    assert "no file or folder" in out
    assert "1 of 2 environments" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verigym/Arithmtic-v0"], "did you mean 'verigym/Arithmetic-v0'?"),
        ([ARITHMETIC, "--option", "levl=3"], "did you mean 'level'?"),
        ([ARITHMETIC, "--split", "tset"], "did you mean 'test'?"),
        ([ARITHMETIC, "--source", "a", "--source", "b"], "an environment has one source, not 2"),
        ([ARITHMETIC, "--split", "test", "--option", "split=test"], "split is given twice"),
        (["--split", "test"], "--split needs the ID of an environment"),
        (["--source", "data"], "--source is written ID=..., not 'data'"),
        (["--option", "level=3"], "--option is written ID:..., not 'level=3'"),
        (["--source", "verigym/GSM9K-v0=data"], "did you mean 'verigym/GSM8K-v0'?"),
        ([ARITHMETIC, "--model", "x"], "--model checks a model and nothing else"),
    ],
)
def test_wrong_input_is_one_line_and_status_two(capsys, arguments, message):
    assert main(["check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
