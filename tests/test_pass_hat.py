"""pass^k: what it is, that its estimate is unbiased, and that several episodes of a task are played and counted."""

import json
import math
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from verigym.cli import main
from verigym.envs.mixture import EnvSpec
from verigym.estimates import over_tasks, pass_hat
from verigym.task_sampler import evaluation_plans

ARITHMETIC = EnvSpec("verigym/Arithmetic-v0")


def mean_pass_hat(counts, k):
    return over_tasks([(total, passed) for passed, total in counts], pass_hat, k)


def test_pass_hat_k_is_the_mean_share_of_the_choices_of_k_episodes_that_all_pass():
    counts = [(2, 4), (4, 4), (0, 4)]
    assert [mean_pass_hat(counts, k).value for k in (1, 2, 3, 4)] == pytest.approx([1 / 2, 7 / 18, 1 / 3, 1 / 3])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_hat_k_is_unbiased(k):
    chances = [math.comb(5, passed) * 0.3**passed * 0.7 ** (5 - passed) for passed in range(6)]
    mean = sum(chance * pass_hat(5, passed, k) for passed, chance in enumerate(chances))
    assert mean == pytest.approx(0.3**k)


def test_a_task_with_too_few_judged_episodes_is_left_out():
    assert (mean_pass_hat([(1, 1), (1, 2)], 2).value, mean_pass_hat([(1, 1), (1, 2)], 2).tasks) == (0, 1)
    assert mean_pass_hat([(1, 1), (1, 2)], 3) is None
    with pytest.raises(ValueError, match="2 episodes of a task say nothing of 3"):
        pass_hat(2, 1, 3)


def test_the_episodes_of_a_task_are_a_group_that_differs_in_sampling_only():
    plans = evaluation_plans([ARITHMETIC], 3, seed=1, samples=4)
    once = evaluation_plans([ARITHMETIC], 3, seed=1)
    assert plans[::4] == once
    assert [plan.group_id for plan in plans] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({plan.seed for plan in plans}) == 3
    assert len({plan.sampling_seed for plan in plans}) == 12


@contextmanager
def right_at_first():
    """An endpoint that adds rightly, but not when it is asked the same again."""
    asked, lock = Counter(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            with lock:
                asked[question] += 1
            answer = answers[question] if asked[question] == 1 else "none"
            message = {"role": "assistant", "content": f"\\boxed{{{answer}}}"}
            reply = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 3}}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *_):
            pass

    env = ARITHMETIC.with_split("test").make().unwrapped
    answers = {env.reset(options={"task": task.id})[0]: task.target for task in env.tasks[:4]}
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_command_tells_pass_hat_k_of_several_episodes(capsys):
    arguments = ["eval", "--model", "m", "--env", ARITHMETIC.id, "--tasks", "4", "--samples", "3"]
    with right_at_first() as url:
        assert main([*arguments, "--endpoint", url, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["environments"][0]["models"]
    assert found["pass@k"]["1"]["value"] == pytest.approx(1 / 3)
    assert [found["pass^k"][k]["value"] for k in ("2", "3")] == [0, 0]
    assert found["tasks"] == 4
    assert main([*arguments[:-1], "0", "--endpoint", url]) == 2
