"""Solutions with one thing changed, and what plain Python says of them: the yardstick of the code verifier."""

import ast
import json
import subprocess
import sys

SECONDS = 1.0  # of CPU time, after which nothing is said of a mutant: how long it takes is the machine's own
_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}

# Runs each source in a fork of its own: true if it runs to its end, null if it takes too long. The sources are of the
# data sets, or nearly so.
_RUNNER = """
import json, os, resource, signal, sys
passed = []
for source in json.load(sys.stdin):
    pid = os.fork()
    if not pid:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        code = 1
        try:
            exec(compile(source, "main.py", "exec", dont_inherit=True), {"__name__": "main"})
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(pid, 0)[1]
    late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF
    passed.append(None if late else status == 0)
json.dump(passed, sys.stdout)
"""


def mutants(source, count):
    """Up to `count` versions of `source` with one operator or constant changed, spread over it."""
    sites = [index for index, node in enumerate(ast.walk(ast.parse(source))) if _changes(node)]
    chosen = sites if len(sites) <= count else [sites[(2 * n + 1) * len(sites) // (2 * count)] for n in range(count)]
    return [_mutant(source, site) for site in chosen]


def _mutant(source, site):
    tree = ast.parse(source)
    node = next(node for index, node in enumerate(ast.walk(tree)) if index == site)
    for name, value in _changes(node).items():
        setattr(node, name, value)
    return ast.unparse(tree)


def _changes(node):
    """The fields of a node to change; none for a node that is left as it is."""
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _OPERATORS:
        return {"op": _OPERATORS[type(node.op)]()}
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _OPERATORS:
        return {"ops": [_OPERATORS[type(node.ops[0])](), *node.ops[1:]]}
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return {"value": not node.value}
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return {"value": node.value + 1}
    return {}


def pass_in_plain_python(sources):
    """For each source (a solution and its tests), whether it runs to its end in plain Python; None if it takes long."""
    runner = _RUNNER.replace("SECONDS", str(SECONDS))
    done = subprocess.run(
        [sys.executable, "-I", "-c", runner], input=json.dumps(sources), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)
