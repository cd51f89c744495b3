"""Runs the PPO of TRL 1.12 on given tensors: `python trl_ppo.py CASES RESULTS`, with its folder in PYTHONPATH.

Nothing is typed over: the statements between two named ones are cut out of the installed `PPOTrainer.train` and
executed. CASES and RESULTS are files of `torch.save`, lists with a dict for each case.
"""

import ast
import inspect
import sys
import textwrap
from types import CodeType, SimpleNamespace
from typing import Any

import torch
import trl
from torch import Tensor
from trl.experimental.ppo import ppo_trainer

# B episodes, T tokens of a response, V vocabulary; the prompt is one token


def cut(first: str, last: str) -> CodeType:
    """The statements of `PPOTrainer.train` from the one that begins with `first` to the one that begins with `last`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(ppo_trainer.PPOTrainer.train)))
    for node in ast.walk(tree):
        body = node.body if isinstance(node, ast.With) else []
        texts = [ast.unparse(statement) for statement in body]
        starts, ends = ([i for i, text in enumerate(texts) if text.startswith(name)] for name in (first, last))
        if starts and ends:
            block = ast.Module(body[starts[0] : ends[-1] + 1], [])
            return compile(block, ppo_trainer.__file__, "exec")
    raise SystemExit(f"TRL {trl.__version__} has no statements from '{first}' to '{last}' in PPOTrainer.train")


ROLLOUT = cut("response_idxs =", "advantages = torch.masked_fill")
MINIBATCH = cut("mb_advantage =", "loss = pg_loss")


def run(case: dict[str, Any]) -> dict[str, Tensor]:
    """What TRL's loop has after the advantages, and after the loss of one minibatch of the whole batch."""
    args = SimpleNamespace(**case["args"], whiten_rewards=False, vf_coef=1.0)
    logits, values = (case[name].clone().requires_grad_() for name in ("logits", "all_values"))  # (B, T+1, V or 1)
    names = {
        **vars(ppo_trainer),
        **{name: case[name] for name in ("responses", "sequence_lengths", "logprobs", "ref_logprobs", "values")},
        "scores": case["scores"],
        "args": args,
        "context_length": 1,
        "processing_class": SimpleNamespace(pad_token_id=0),
        "query_responses": torch.cat([torch.zeros_like(case["responses"][:, :1]), case["responses"]], 1),
        "model": None,
        "micro_batch_inds": torch.arange(len(logits)),
        # times 1, because TRL divides the logits in place
        "forward": lambda *_: (SimpleNamespace(logits=logits * 1), values * 1),
    }
    exec(ROLLOUT, names)
    exec(MINIBATCH, names)
    found = ("kl", "rewards", "values", "returns", "advantages", "pg_loss", "vf_loss", "new_logprobs")
    gradients = torch.autograd.grad(names["loss"], (logits, values))
    results = {name: names[name].detach() for name in found}
    return {**results, "logits_gradient": gradients[0], "values_gradient": gradients[1]}


if __name__ == "__main__":
    if not trl.__version__.startswith("1.12."):
        raise SystemExit(f"the oracle is TRL 1.12, not {trl.__version__}")
    torch.save([run(case) for case in torch.load(sys.argv[1], weights_only=True)], sys.argv[2])
