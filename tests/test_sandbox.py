"""What every sandbox keeps to, whatever its backend: one suite for docker, bubblewrap and process."""

import os
import runpy
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from verigym.tasks.errors import SandboxError, UnknownNameError
from verigym.verifiers import sandbox
from verigym.verifiers.sandbox import Call, Job, Limits, Return, Sandbox, Status

_SANDBOXES = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))
MIB = 1 << 20
PLAIN = [
    None,
    True,
    0,
    -(2**63),
    2**64,
    10**5000,
    0.1,
    -0.0,
    "h\u00e9 \U0001f600 \x00",
    b"\x00\xff",
    1 + 2j,
    [1, [2.0, "3"]],
    (1, (2,), []),
    {1, "a", (2, 3)},
    frozenset({frozenset(), 1.5}),
    {1: "a", "1": b"b", (1, 2): {None: True}, 1.5: {}},
]


@pytest.fixture(scope="module", params=_SANDBOXES["EVERY"])
def box(request) -> Iterator[Sandbox]:
    made = _SANDBOXES["make"](request.param, workers=2)
    yield made
    made.close()


def call(box, source, *args, function="f", **job):
    """The one return of a function."""
    result = box.run(Job(source, calls=(Call(function, args),), **job))
    assert result.status is Status.OK, result
    return result.returns[0]


def same(first, second):
    """Equal, and of the same types all the way down."""
    if type(first) is not type(second) or first != second:
        return False
    if type(first) in (list, tuple):
        return all(map(same, first, second))
    if type(first) is dict:
        return all(map(same, first.items(), second.items()))
    if type(first) in (set, frozenset):
        return {type(item) for item in first} == {type(item) for item in second}
    return type(first) is not float or str(first) == str(second)


def test_a_script_reads_and_prints(box):
    result = box.run(Job("import sys\nprint(input()[::-1])\nprint('oops', file=sys.stderr)", stdin=b"abc\n"))
    assert (result.status, result.stdout, result.stderr, result.exit_code) == (Status.OK, b"cba\n", b"oops\n", 0)


@pytest.mark.parametrize("text", ["", "1 2\n", "x" * 100_000])
@pytest.mark.parametrize(
    "read", ["os.read(0, os.fstat(0).st_size)", "open(0, 'rb').read()", "sys.stdin.buffer.read()", "sys.stdin.read()"]
)
def test_standard_input_is_read_in_any_way(box, read, text):
    result = box.run(Job(f"import os, sys\nprint(len({read}))", stdin=text.encode()))
    assert (result.status, result.stdout) == (Status.OK, f"{len(text)}\n".encode())


def test_a_script_is_the_main_module_and_runs_its_exit_functions(box):
    source = "import atexit\natexit.register(print, 'bye')\nif __name__ == '__main__': print(__file__, end=' ')"
    assert box.run(Job(source)).stdout == b"main.py bye\n"


@pytest.mark.parametrize(("source", "code"), [("raise SystemExit", 0), ("exit(3)", 3), ("1/0", 1), ("exit('no')", 1)])
def test_a_script_ends_with_the_exit_code_that_python_gives(box, source, code):
    result = box.run(Job(f"import sys\nexit = sys.exit\n{source}"))
    assert (result.exit_code, result.status) == (code, Status.OK if code == 0 else Status.ERROR)


def test_a_traceback_shows_the_line_and_nothing_of_ours(box):
    text = box.run(Job("def f():\n    return 1 / 0\nf()")).stderr.decode()
    assert "return 1 / 0" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "_driver" not in text


def test_long_input_and_output_pass_whole(box):
    data = b"0123456789" * 90_000
    result = box.run(Job("import sys\nsys.stdout.write(sys.stdin.read())", stdin=data))
    assert result.status is Status.OK
    assert result.stdout == data


@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_values_come_back_as_they_went_in(box, value):
    returned = call(box, "def f(x): return x", value)
    assert returned.ok, returned
    assert same(returned.value, value)


@pytest.mark.parametrize(
    "source",
    [
        "class X(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\ndef f(): return X(1)",
        "class X(str):\n    __eq__ = lambda *_: True\n    __hash__ = str.__hash__\ndef f(): return [X('a')]",
        "class X:\n    __class__ = property(lambda self: int)\n    __eq__ = lambda *_: True\ndef f(): return {1: X()}",
        "import enum\nX = enum.IntEnum('X', 'A')\ndef f(): return X.A",
        "import collections\ndef f(): return collections.OrderedDict()",
        "def f(): return f",
        "def f(): return (x for x in ())",
        "def f(): return '\\ud800'",
        "def f(): return float('nan')",
        "def f(): return [float('inf')]",
        "def f():\n    x = []\n    x.append(x)\n    return x",
        "def f():\n    x = []\n    for _ in range(31): x = [x, x]\n    return x",
        "def f(): return 'x' * (1 << 21)",
        "def f(): return 1 << (1 << 24)",
    ],
)
def test_what_is_no_plain_value_is_an_error_of_that_call(box, source):
    returned = call(box, source)
    assert not returned.ok
    assert returned.value is None
    assert 0 < len(returned.error) < 600


def test_infinite_values_pass_where_the_job_allows_them(box):
    returned = call(box, "def f(): return [float('inf'), -float('inf'), float('nan')]", allow_nonfinite=True)
    assert [str(value) for value in returned.value] == ["inf", "-inf", "nan"]


def test_each_call_gets_fresh_arguments(box):
    job = Job("def f(x):\n    x.append(len(x))\n    return x", calls=(Call("f", ([5],)),) * 3)
    assert [returned.value for returned in box.run(job).returns] == [[5, 1]] * 3


def test_an_error_in_one_call_leaves_the_others(box):
    source = "import sys\ndef f(x):\n    if x == 1: raise ValueError('bad')\n    if x == 2: sys.exit(0)\n    return x"
    result = box.run(Job(source, calls=tuple(Call("f", (x,)) for x in range(4))))
    assert result.status is Status.OK
    assert [r.value for r in result.returns] == [0, None, None, 3]
    assert [r.error for r in result.returns] == ["", "ValueError: bad", "SystemExit: 0", ""]


def test_methods_keyword_arguments_and_printing(box):
    source = (
        "class Solution:\n    def add(self, a, *, b):\n        print(a)\n        return a + b\nclass S:\n    f = abs"
    )
    job = Job(source, calls=(Call("Solution().add", (1,), {"b": 2}), Call("S.f", (-4,))))
    result = box.run(job)
    assert [r.value for r in result.returns] == [3, 4]
    assert result.stdout == b"1\n"


@pytest.mark.parametrize(
    ("source", "returns"),
    [
        ("syntax error", 0),
        ("x = '\0'", 0),
        ("def f(x): return x\nraise SystemExit(0)", 0),
        ("def f(x): return x\nimport os; os._exit(0)", 0),
        ("import os\ndef f(x):\n    if x: os._exit(0)\n    return x", 1),
        ("import posix\ndef f(x):\n    if x: posix._exit(0)\n    return x", 1),
        ("import ctypes\ndef f(x):\n    if x: ctypes.string_at(0)\n    return x", 1),
        ("def f(x):\n    import os\n    os.kill(os.getpid(), 9) if x else None", 1),
    ],
)
def test_ending_before_all_calls_have_returned_is_an_error(box, source, returns):
    if "kill" in source and box.name == "bubblewrap":
        source = source.replace("os.kill(os.getpid(), 9)", "os.abort()")
    result = box.run(Job(source, calls=(Call("f", (0,)), Call("f", (1,)))))
    assert result.status is Status.ERROR
    assert len(result.returns) == returns
    assert len(result.reason) < 3000


def test_nothing_of_one_job_is_seen_by_the_next(box):
    dirty = """
import builtins, json, os, random, sys
builtins.leak = json.leak = sys.leak = 1
random.random = lambda: 4
os.environ["LEAK"] = "1"
open("leak", "w").write("1"); open("/tmp/leak", "w").write("1") if os.getcwd() == "/tmp" else None
"""
    look = """
import builtins, json, os, random, sys
print([hasattr(x, "leak") for x in (builtins, json, sys)], random.random() == 4, "LEAK" in os.environ, os.listdir("."))
"""
    for _ in range(2 * box.size):
        assert box.run(Job(dirty)).status is Status.OK
    for _ in range(2 * box.size):
        assert box.run(Job(look)).stdout == b"[False, False, False] False False []\n"


def test_the_server_keeps_no_text_of_an_earlier_job(box):
    secret = os.urandom(20).hex()
    job = Job(f"S = '{secret}'\ndef f(x): return x + S", calls=(Call("f", (secret,)),), stdin=secret.encode())
    for _ in range(2 * box.size):
        assert box.run(job).returns[0].value == secret * 2
    # the secret is given in two reversed halves, and never put together, so that the search does not find itself
    search = """
import re
def f(start, end):
    start, end, found = start.encode()[::-1], end.encode(), 0
    try:
        maps = open("/proc/self/maps").read()
    except OSError:
        return 0  # no process of this sandbox can see memory this way
    memory = open("/proc/self/mem", "rb", 0)
    for first, last in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw", maps, re.M):
        memory.seek(int(first, 16))
        try:
            data = memory.read(int(last, 16) - int(first, 16))
        except OSError:
            continue
        found += sum(data[m.end() : m.end() + 20][::-1] == end for m in re.finditer(start, data))
    return found
"""
    for _ in range(2 * box.size):
        assert call(box, search, secret[:20][::-1], secret[20:][::-1]) == Return(True, 0)


def test_cpu_time_is_limited_and_counted(box):
    result = box.run(Job("while True: pass", limits=Limits(cpu_seconds=0.2)))
    assert result.status is Status.TIMEOUT
    assert 0.15 < result.cpu_seconds < 3
    assert result.exit_code is None


def test_cpu_time_of_child_processes_counts(box):
    source = "import os\nfor _ in range(3): os.fork()\nwhile True: pass"
    result = box.run(Job(source, limits=Limits(cpu_seconds=0.4)))
    assert result.status is Status.TIMEOUT
    assert "CPU" in result.reason


def test_waiting_is_limited_by_the_wall(box):
    result = box.run(Job("import time; time.sleep(60)", limits=Limits(wall_seconds=0.3)))
    assert result.status is Status.TIMEOUT
    assert result.cpu_seconds < 0.3


def test_results_written_before_a_hang_do_not_count(box):
    source = "import os, time\ndef f(): return 1\nos._exit = lambda code: time.sleep(60)"
    result = box.run(Job(source, calls=(Call("f"),), limits=Limits(wall_seconds=0.5)))
    assert result.status is Status.TIMEOUT


@pytest.mark.parametrize("source", ["x = bytearray(10 << 30)", "x = []\nwhile True: x.append(bytes(1 << 20))"])
def test_memory_is_limited(box, source):
    assert box.run(Job(source)).status is Status.MEMORY
    calls = box.run(Job(f"def f():\n    {source.replace(chr(10), chr(10) + '    ')}", calls=(Call("f"),)))
    assert calls.status is Status.MEMORY


def test_memory_of_all_processes_together_is_limited(box):
    source = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        x = b"x" * (60 << 20)
        time.sleep(60)
time.sleep(60)
"""
    result = box.run(Job(source, limits=Limits(memory_bytes=128 * MIB, wall_seconds=60)))
    assert result.status is Status.MEMORY


def test_memory_of_a_smaller_or_larger_limit_is_held(box):
    source = "x = b'x' * (100 << 20)\nprint(len(x))"
    assert box.run(Job(source, limits=Limits(memory_bytes=64 * MIB))).status is Status.MEMORY
    assert box.run(Job(source, limits=Limits(memory_bytes=128 * MIB))).status is Status.OK
    larger = box.run(Job("x = b'x' * (400 << 20)", limits=Limits(memory_bytes=512 * MIB)))
    assert larger.status is Status.OK


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_is_limited(box, stream):
    source = f"import sys\nwhile True: sys.{stream}.write('x' * 1000)"
    result = box.run(Job(source, limits=Limits(output_bytes=10_000)))
    assert result.status is Status.OUTPUT
    assert len(getattr(result, stream)) == 10_000


def test_results_are_limited(box):
    job = Job("def f(): return 'x' * 1000000", calls=(Call("f"),) * 40)
    assert box.run(job).status is Status.OUTPUT


def test_files_are_given_and_limited_in_size(box):
    files = {"a.txt": b"1", "folder/b.bin": b"\xff"}
    result = box.run(Job("print(open('a.txt').read(), open('folder/b.bin', 'rb').read())", files=files))
    assert result.stdout == b"1 b'\\xff'\n"
    source = "open('big', 'wb').write(bytes(1 << 21))"
    assert box.run(Job(source, limits=Limits(file_bytes=1 << 20))).status is Status.ERROR
    assert box.run(Job(source, limits=Limits(file_bytes=1 << 22))).status is Status.OK


def test_child_processes_threads_and_temporary_files_work(box):
    source = """
import subprocess, sys, tempfile, threading
thread = threading.Thread(target=print, args=("thread",)); thread.start(); thread.join()
with tempfile.NamedTemporaryFile() as file: file.write(b"x")
command = [sys.executable, "-c", "print(6 * 7)"]
print(subprocess.run(command, capture_output=True, text=True).stdout, end="")
"""
    result = box.run(Job(source))
    assert result.stdout == b"thread\n42\n", result


def test_proxied_functions_are_answered_outside(box):
    source = """
def f():
    total = [g(x, y=x) for x in range(3)]
    try:
        g(-1)
    except ValueError as error:
        total.append(str(error))
    return total
"""

    def answer(asked):
        if asked.args[0] < 0:
            return Return(False, error="ValueError: below zero")
        return Return(True, (asked.function, asked.args, dict(asked.kwargs)))

    result = box.run(Job(source, calls=(Call("f"),), proxies=("g",)), answer=answer)
    expected = [("g", (0,), {"y": 0}), ("g", (1,), {"y": 1}), ("g", (2,), {"y": 2}), "below zero"]
    assert result.returns == (Return(True, expected),)


def test_the_order_of_a_set_of_texts_is_always_the_same(box):
    source = "print(list({'alpha', 'beta', 'gamma', 'delta', 'epsilon'}))"
    with ThreadPoolExecutor(4) as threads:
        outputs = {result.stdout for result in threads.map(lambda _: box.run(Job(source)), range(8))}
    assert len(outputs) == 1


def test_many_threads_get_their_own_results(box):
    def square(number):
        return call(box, "def f(x): return x * x", number).value

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(square, range(60))) == [number * number for number in range(60)]


def test_a_job_that_is_called_off_ends(box):
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    result = box.run(Job("import time; time.sleep(60)"), cancelled=cancelled)
    assert (result.status, result.reason) == (Status.INFRA_ERROR, "the job was called off")
    assert box.run(Job("print(1)")).status is Status.OK


def test_a_job_whose_worker_dies_runs_once_more_in_a_fresh_one(box):
    assert box.run(Job("")).status is Status.OK
    killed = []

    def answer(asked):
        if not killed:
            killed.append(1)
            for worker in list(box._all):
                worker.kill()
        return Return(True, 7)

    result = box.run(Job("def f(): return g()", calls=(Call("f"),), proxies=("g",)), answer=answer)
    assert result.returns == (Return(True, 7),), result
    assert box.run(Job("print(1)")).stdout == b"1\n"


def test_a_worker_that_dies_twice_is_an_infrastructure_error(box):
    def answer(asked):
        for worker in list(box._all):
            worker.kill()
        return Return(True, 7)

    result = box.run(Job("def f(): return g()", calls=(Call("f"),), proxies=("g",)), answer=answer)
    assert result.status is Status.INFRA_ERROR
    assert result.returns == ()
    assert box.run(Job("print(1)")).stdout == b"1\n"


# sessions


def test_variables_of_a_session_live_on(box):
    session = box.session()
    try:
        assert session.execute("import math\nx = 3").status is Status.OK
        assert session.execute("print('x is', x)\nmath.sqrt(x * 12)").stdout == b"x is 3\n6.0\n"
        failed = session.execute("y = 1\nprint(2)\nz")
        assert (failed.status, failed.stdout) == (Status.ERROR, b"2\n")
        assert b"NameError: name 'z' is not defined" in failed.stderr
        assert session.execute("def f(a): return a + x + y").status is Status.OK
        assert session.call(Call("f", (10,))) == Return(True, 14)
        assert session.call(Call("f", ("a",))).error.startswith("TypeError")
        assert session.alive
    finally:
        session.close()


def test_sessions_do_not_see_each_other(box):
    first, second = box.session(), box.session()
    try:
        first.execute("x = 1; open('file', 'w').write('1')")
        assert b"NameError" in second.execute("x").stderr
        assert second.execute("import os; os.listdir('.')").stdout == b"[]\n"
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize(
    ("source", "limits", "status"),
    [
        ("while True: pass", Limits(cpu_seconds=0.5, wall_seconds=60), Status.TIMEOUT),
        ("import time; time.sleep(60)", Limits(wall_seconds=3), Status.TIMEOUT),
        ("while True: print('x' * 1000)", Limits(output_bytes=10_000), Status.OUTPUT),
        ("import os; os._exit(0)", Limits(), Status.ERROR),
    ],
)
def test_a_session_that_ends_says_how_and_takes_no_more(box, source, limits, status):
    session = box.session(limits)
    assert session.execute("x = 1").status is Status.OK
    assert session.execute(source).status is status
    assert not session.alive
    with pytest.raises(SandboxError, match="open another one"):
        session.execute("x")


def test_limits_of_a_session_hold_for_each_step(box):
    session = box.session(Limits(cpu_seconds=1.0))
    busy = "import time\nstart = time.process_time()\nwhile time.process_time() < start + 0.4: pass"
    try:
        assert [session.execute(busy).status for _ in range(4)] == [Status.OK] * 4
    finally:
        session.close()


def test_a_session_that_was_closed_takes_no_more(box):
    session = box.session()
    session.close()
    session.close()
    with pytest.raises(SandboxError):
        session.execute("1")


# the pool


@pytest.fixture(params=_SANDBOXES["EVERY"])
def own(request) -> Iterator[Sandbox]:
    made = _SANDBOXES["make"](request.param, workers=1)
    yield made
    made.close()


def test_jobs_are_served_in_the_order_of_arrival(own):
    release = threading.Event()
    wait = Job("def f(): g()", calls=(Call("f"),), proxies=("g",), limits=Limits(wall_seconds=60))
    with ThreadPoolExecutor(6) as threads:
        first = threads.submit(own.run, wait, answer=lambda call: release.wait() and Return(True))
        while not own._all or own._idle:
            time.sleep(0.01)
        jobs = []
        for number in range(5):
            jobs.append(threads.submit(own.run, Job("import time; print(time.monotonic_ns())")))
            while len(own._waiting) <= number:
                time.sleep(0.01)
        release.set()
        began = [int(job.result().stdout) for job in jobs]
        assert first.result().status is Status.OK
    assert began == sorted(began)


def test_closing_ends_what_runs_and_what_waits(own):
    with ThreadPoolExecutor(3) as threads:
        running = [threads.submit(own.run, Job("import time; time.sleep(60)")) for _ in range(3)]
        time.sleep(0.5)
        own.close()
        results = [future.result(20) for future in running]
    assert {result.status for result in results} == {Status.INFRA_ERROR}
    assert own.run(Job("")).status is Status.INFRA_ERROR
    with pytest.raises(SandboxError):
        own.session()


def test_a_worker_that_has_served_enough_is_replaced(own):
    own.max_jobs = 3
    for _ in range(8):
        assert own.run(Job("print(1)")).stdout == b"1\n"
    assert own.replaced >= 2


# choosing


def test_an_unsafe_sandbox_is_made_only_when_asked_for():
    with pytest.raises(SandboxError, match="allow_unsafe=True"):
        sandbox.make("process")
    with pytest.raises(SandboxError, match="allow_unsafe=True"):
        sandbox.shared("process")


def test_an_unknown_sandbox_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'docker'"):
        sandbox.make("dokcer")


def test_auto_takes_one_that_isolates_and_says_which():
    _SANDBOXES["make"]("bubblewrap").close()
    made = sandbox.make("auto")
    try:
        assert made.isolated
        assert made.name in ("docker", "bubblewrap")
        assert made.reason
    finally:
        made.close()


def test_without_any_that_isolates_auto_names_what_to_install(monkeypatch):
    def missing(workers):
        raise SandboxError("sandbox needs more: apt-get install more")

    monkeypatch.setitem(sandbox.base._REGISTRY, "docker", missing)
    monkeypatch.setitem(sandbox.base._REGISTRY, "bubblewrap", missing)
    with pytest.raises(SandboxError, match="apt-get install more"):
        sandbox.make("auto")


def test_a_backend_of_ones_own_is_made_by_name():
    made = object()
    sandbox.register("own", lambda workers: made)
    try:
        assert sandbox.make("own", workers=1) is made
    finally:
        del sandbox.base._REGISTRY["own"]


def test_the_shared_sandbox_is_one_for_all_and_a_forked_child_gets_its_own():
    first = sandbox.shared("process", allow_unsafe=True)
    assert sandbox.shared("process", allow_unsafe=True) is first
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            second = sandbox.shared("process", allow_unsafe=True)
            os.write(writer, second.run(Job("print(second is None)" if second is first else "print(5)")).stdout)
            second.close()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"5\n"
    assert first.run(Job("print(6)")).stdout == b"6\n"


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\0b"])
def test_a_file_outside_the_working_directory_is_refused(name):
    with pytest.raises(SandboxError, match="working directory"):
        Job("", files={name: b""})


def test_limits_are_above_zero():
    with pytest.raises(SandboxError, match="cpu_seconds"):
        Limits(cpu_seconds=0)


def test_arguments_that_are_no_plain_values_are_the_callers_error():
    made = sandbox.make("process", allow_unsafe=True, workers=1)
    try:
        with pytest.raises(SandboxError, match="cannot enter a sandbox"):
            made.run(Job("", calls=(Call("f", (object(),)),)))
        assert made.run(Job("print(1)")).stdout == b"1\n"
    finally:
        made.close()
