"""What hostile programs get from the sandboxes that isolate: data about themselves, and nothing else.

docs/attacks.md shows the tests by their names. Whether a value is right is the verifier's business, not tested here:
what matters is that a job ends as it should, that its values are plain, and that after each of them the server lives,
no process and no file is left and an honest job passes.
"""

import os
import runpy
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from verigym.verifiers.sandbox import Call, Job, Limits, Return, Sandbox, Status

_SANDBOXES = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))
CANARY = "expected-" + os.urandom(12).hex()
QUICK = Limits(cpu_seconds=0.5, wall_seconds=120)
BRIEF = Limits(cpu_seconds=1, wall_seconds=0.7)
OK, ERROR, TIMEOUT, MEMORY, OUTPUT = Status.OK, Status.ERROR, Status.TIMEOUT, Status.MEMORY, Status.OUTPUT


@pytest.fixture(scope="module", params=_SANDBOXES["ISOLATING"])
def pool(request) -> Iterator[Sandbox]:
    os.environ["CANARY"] = CANARY
    made = _SANDBOXES["make"](request.param, workers=1)
    del os.environ["CANARY"]
    yield made
    made.close()


@pytest.fixture
def box(pool) -> Iterator[Sandbox]:
    """The sandbox, of which every test must leave nothing but an idle server."""
    yield pool
    result = pool.run(Job("import os\nprint(os.listdir('.'))\ndef f(x): return x + 1", calls=(Call("f", (41,)),)))
    assert (result.status, result.returns[0].value, result.stdout) == (OK, 42, b"[]\n")
    (worker,) = pool._all
    assert inhabitants(worker) == 1, "a process was left"


def inhabitants(worker):
    """How many processes are in a worker's sandbox."""
    if hasattr(worker.transport, "container"):
        return len(worker.transport._api.top(worker.transport.container)["Processes"])
    return 1 + len(psutil.Process(worker.transport.server).children(recursive=True))


def function(body):
    """A module whose `f` has this body."""
    return "import os, sys, time\ndef f():\n" + "".join(f"    {line}\n" for line in body.strip().splitlines())


def run(box, source, *, limits=None, script=False):
    return box.run(Job(source, calls=() if script else (Call("f"),), limits=limits or Limits()))


def refusals(box, attempts):
    """Runs each attempt in one job; what each of them got, as text."""
    lines = [f"attempt({name!r}, lambda: {text})" for name, text in attempts.items()]
    source = f"""
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
got = {{}}
def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "it worked"
def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect(address)
    return "connected"
def attempt(name, what):
    try:
        got[name] = "did: " + repr(what())
    except Exception as error:
        got[name] = type(error).__name__
{chr(10).join(lines)}
def f(): return got
"""
    result = run(box, source)
    assert result.status is OK, result
    return result.returns[0].value


# 1, 2


@pytest.mark.parametrize("base", ["object", "int", "str", "float", "list", "dict", "tuple", "set", "bytes"])
def test_rows_1_and_2_a_value_equal_to_everything_is_refused(box, base):
    source = f"""
class Equal({base}):
    __eq__ = lambda *_: True
    __ne__ = lambda *_: False
    __hash__ = lambda _: 1
    __class__ = property(lambda _: {base})
def f(): return [Equal()]
"""
    (returned,) = run(box, source).returns
    assert (returned.ok, returned.value) == (False, None)
    assert "not a plain value" in returned.error


# 3, 4, 5


@pytest.mark.parametrize(
    "source",
    [
        "import sys\ndef f(): return 1\nsys.exit(0)",
        function("os._exit(0)"),
        "import posix\ndef f(): posix._exit(0)",
        "print('all tests passed')\nimport os, sys\nsys.stdout.flush()\nos._exit(0)",
    ],
)
def test_rows_3_to_5_an_exit_is_an_error(box, source):
    result = run(box, source)
    assert (result.status, result.returns) == (ERROR, ())


# 6, 7


def test_row_6_nothing_of_the_trainer_is_in_reach(box):
    source = """
import gc, os, re, sys
def f(backwards):
    canary, seen = backwards[::-1], []
    frame = sys._getframe()
    while frame is not None:
        seen.append(repr(frame.f_globals.keys()) + repr([v for k, v in frame.f_locals.items() if frame.f_back]))
        frame = frame.f_back
    seen += [repr(dict(os.environ)), repr(sys.argv)]
    seen += [str(x) for x in gc.get_objects() if isinstance(x, (dict, list, tuple)) and len(x) < 500]
    for name in ("environ", "cmdline", "mem"):
        for process in ("self", "1", os.getppid()):
            try:
                seen.append(open(f"/proc/{process}/{name}", "rb").read(1 << 20).decode("latin-1"))
            except OSError:
                pass
    return sum(text.count(canary) for text in seen) - sum(text.count(backwards[::-1]) for text in [repr(locals())[:0]])
"""
    result = box.run(Job(source.replace("repr([v for k, v in frame.f_locals.items() if frame.f_back])", "''"),
                         calls=(Call("f", (CANARY[::-1],)),)))  # fmt: skip
    (returned,) = result.returns
    # the function's own frame, found by gc, may hold the canary that it was given backwards and turned around
    assert returned.ok, returned
    assert returned.value == 0


def test_row_6_the_address_space_holds_no_expected_value(box):
    source = """
import re
def f(start, end):
    start, end, found = start.encode()[::-1], end.encode(), 0
    try:
        maps, memory = open("/proc/self/maps").read(), open("/proc/self/mem", "rb", 0)
    except OSError:
        return 0
    for first, last in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) r", maps, re.M):
        try:
            memory.seek(int(first, 16))
            data = memory.read(int(last, 16) - int(first, 16))
        except (OSError, OverflowError, ValueError):
            continue
        found += sum(data[m.end() : m.end() + len(end)][::-1] == end for m in re.finditer(re.escape(start), data))
    return found
"""
    half = len(CANARY) // 2
    arguments = (CANARY[:half][::-1], CANARY[half:][::-1])
    (returned,) = box.run(Job(source, calls=(Call("f", arguments),))).returns
    assert (returned.ok, returned.value) == (True, 0)


def test_row_7_the_parent_can_be_neither_read_nor_traced(box):
    parent = "max(os.getppid(), 1)"
    got = refusals(
        box,
        {
            "mem": f"open(f'/proc/{{{parent}}}/mem', 'rb').read(1)",
            "environ": f"open(f'/proc/{{{parent}}}/environ', 'rb').read(1)",
            "fd": f"os.listdir(f'/proc/{{{parent}}}/fd')",
            "ptrace": f"call(101, 16, {parent}, 0, 0)",
            "process_vm_readv": f"call(310, {parent}, 0, 0, 0, 0, 0)",
            "pidfd_getfd": "call(438, 3, 0, 0)",
        },
    )
    assert set(got.values()) <= {"PermissionError", "FileNotFoundError"}, got


# 8, 9, 10


@pytest.mark.parametrize(
    "patch",
    [
        "import json; json.dumps = lambda *a, **k: '1'",
        "import builtins; builtins.len = lambda x: 10**9; builtins.isinstance = lambda *_: True",
        "import sys; sys.settrace(lambda frame, *_: frame.f_locals.clear())",
        "import sys; sys.modules.clear()",
        "import sys\nfor m in list(sys.modules.values()):\n"
        "    if hasattr(m, 'to_text'): m.to_text = lambda v: '{\"a\": 1}'",
        "import gc\nfor d in gc.get_objects():\n"
        "    if isinstance(d, dict) and 'to_text' in d: d['to_text'] = lambda v: 'NaN'",
        "import os; os.write = lambda fd, data: len(data)",
        "import struct; struct.pack = lambda *a: b'R\\0\\0\\0\\1'",
    ],
)
def test_row_8_patching_the_driver_yields_plain_data_or_an_error(box, patch):
    result = run(box, f"{patch}\ndef f(): return [1]")
    assert result.status in (OK, ERROR)
    for returned in result.returns:
        assert not returned.ok or returned.value in (1, [1])


FORGED = r"""
import os, struct
def frame(kind, text): return struct.pack(">cI", kind, len(text)) + text
def f():
    for number in range(256):
        try:
            os.write(number, %s)
        except OSError:
            pass
    %s
"""


@pytest.mark.parametrize(
    ("data", "end"),
    [
        ('frame(b"R", b"true") * 3', "os._exit(0)"),
        ('frame(b"R", b"true") + frame(b"D", b"") * 2', "os._exit(1)"),
        ('b"x" + bytes(40)', "os._exit(0)"),
        ('b"\\xff" * 9000', "os._exit(0)"),
        ('struct.pack(">cI", b"R", 2**32 - 1)', "os._exit(0)"),
        ('frame(b"X", b"\\xff\\xfe") + frame(b"T", b"")', "os._exit(0)"),
        ('frame(b"P", b"[[[[[1")', "os._exit(0)"),
        ('"{\\"ok\\": true, \\"passed\\": true}".encode()', "os._exit(0)"),
    ],
)
def test_row_9_a_forged_result_on_every_descriptor_is_an_error(box, data, end):
    result = run(box, FORGED % (data, end))
    assert result.status is ERROR, result


def test_row_10_a_forged_result_before_a_hang_is_a_timeout(box):
    result = run(box, FORGED % ('frame(b"R", b"true") + frame(b"D", b"")', "while True: pass"), limits=QUICK)
    assert result.status is TIMEOUT


def test_asking_the_supervisor_without_end_ends_the_job(box):
    source = """
import json, os, struct
text = json.dumps(["g", '{"tuple":[{"tuple":[]},{"dict":[]}]}']).encode()
def f():
    while True:
        os.write(3, struct.pack(">cI", b"P", len(text)) + text)
"""
    asked = []

    def answer(call):
        asked.append(call)
        return Return(True, "x" * 100_000)

    result = box.run(Job(source, calls=(Call("f"),), proxies=("g",)), answer=answer)
    assert result.status in (ERROR, OUTPUT)
    assert len(asked) < 1000


@pytest.mark.parametrize("flood", [1, 100_000])
def test_a_session_that_forges_the_end_of_its_turns_fools_only_itself(box, flood):
    session = box.session(QUICK)
    try:
        session.execute("import os")
        forged = "b'T' + bytes([0, 0, 0, 1]) + str(turn).encode()"
        session.execute(f"for turn in (1, 2, 3): os.write(3, ({forged}) * {flood})")
        for _ in range(3):
            if session.alive:
                session.execute("print(1)")
        assert box.run(Job("print(6 * 7)")).stdout == b"42\n"
    finally:
        session.close()


# 11


@pytest.mark.parametrize("target", ["os.getppid()", "-1", "1", "0"])
@pytest.mark.parametrize("number", [9, 15, 19])
def test_row_11_no_signal_leaves_the_job(box, target, number):
    result = run(box, function(f"os.kill({target}, {number})"))
    assert (result.status, [r.ok for r in result.returns]) in [(OK, [False]), (ERROR, [])], result


# 12, 13, 14

DAEMON = """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        %s
        time.sleep(600)
    os._exit(0)
os.wait()
return 7
"""


@pytest.mark.parametrize("body", ["pass", "os.closerange(0, 256)"])
def test_rows_12_and_13_a_daemon_does_not_outlive_the_job(box, body):
    result = run(box, function(DAEMON % body))
    assert (result.status, result.returns[0].value) == (OK, 7)
    assert result.wall_seconds < 20


def test_row_14_a_daemon_does_not_meet_the_next_job(box):
    wait = "os.closerange(0, 256); [(time.sleep(0.01), open('/tmp/here', 'w').write('x')) for _ in range(10**6)]"
    for _ in range(3):
        assert run(box, function(DAEMON % wait)).status is OK
        assert run(box, function("time.sleep(0.1)\nreturn os.listdir('/tmp')")).returns[0].value == []


# 15 to 21


def test_row_15_a_fork_bomb_is_stopped(box):
    bomb = "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert run(box, function(bomb), limits=QUICK).status is TIMEOUT
    assert run(box, function(bomb), limits=QUICK).status is TIMEOUT


def test_row_16_a_thread_bomb_is_an_error(box):
    bomb = "import threading\nwhile True: threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"
    result = run(box, function(bomb), limits=Limits(wall_seconds=60))
    assert (result.status, [r.ok for r in result.returns]) in [(OK, [False]), (ERROR, [])], result


@pytest.mark.parametrize(
    "source",
    [
        function("x = bytearray(10 << 30)"),
        function("x = []\nwhile True: x.append('x' * 100000)"),
        "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n"
        "        x = b'x' * (200 << 20)\n        time.sleep(60)\ndef f(): time.sleep(60)",
    ],
)
def test_rows_17_and_18_memory_is_limited(box, source):
    assert run(box, source, limits=Limits(wall_seconds=60)).status is MEMORY


def test_rows_19_and_20_output_is_limited_to_a_megabyte(box):
    endless = run(box, "while True: print('x' * 999)", script=True)
    assert (endless.status, len(endless.stdout)) == (OUTPUT, 1 << 20)
    honest = run(box, "print('x' * 899_999)", script=True)
    assert (honest.status, len(honest.stdout)) == (OK, 900_000)


@pytest.mark.parametrize(
    "source",
    [
        "with open('big', 'wb') as file:\n    for _ in range(1024): file.write(bytes(1 << 20))",
        "import os\nos.truncate(os.open('big', os.O_CREAT | os.O_RDWR), 1 << 30)",
        "for i in range(100):\n    with open(f'part{i}', 'wb') as file: file.write(bytes(1 << 20))",
        "for i in range(1_000_000): open(f'{i}', 'w').close()",
        "import os\nfor i in range(1_000_000): os.mkdir(f'{i}'); os.chmod(f'{i}', 0)",
        "import os\nfor i in range(1_000_000): os.mkdir('d'); os.chdir('d')",
    ],
)
def test_row_21_files_are_limited(box, source):
    assert run(box, source, script=True).status is ERROR


# 22


@pytest.mark.parametrize(
    "text",
    [
        "b'[' * 500000",
        "b'1' * 1000000",
        "b'NaN'",
        "b'1e999'",
        "b'-Infinity'",
        'b\'{"int": "0x1", "int": "0x2"}\'',
        "b'{\"dict\": [[1, 2], [1, 3]]}'",
        "b'{\"dict\": [[[], 2]]}'",
        "b'{\"set\": [1, 1]}'",
        "b'\"\\\\ud800\"'",
        "b'\\xff'",
        "b''",
        "b'{}'",
        "b'{\"tuple\": 1}'",
        "b'{\"object\": []}'",
        "b'[1,]'",
        "b'\"' + b'x' * 1500000 + b'\"'",
        "b'{\"tuple\": [' * 100 + b']}' * 100",
        'b\'{"float": "nan"}\'',
    ],
)
def test_row_22_a_forged_text_is_no_value(box, text):
    source = FORGED % ("b''", f"os.write(3, frame(b'R', {text}) + frame(b'D', b'')); os._exit(0)")
    result = run(box, source)
    assert result.status is OK, result
    assert [(r.ok, r.value) for r in result.returns] == [(False, None)]
    assert len(result.returns[0].error) < 600


# 23, 24


def test_row_23_no_file_of_the_host_is_read(box):
    source = function("""
import threading
def swap():
    for i in range(2000):
        for target in ("/etc/passwd", "/etc/hostname", "x"):
            try:
                os.symlink(target, f"link{i}")
                os.replace(f"link{i}", "result.json")
            except OSError:
                pass
thread = threading.Thread(target=swap)
thread.start()
thread.join()
try:
    return open("/etc/passwd").read() + open("result.json").read()
except OSError:
    return ""
""")
    result = run(box, source)
    assert result.status is OK
    told = f"{result.returns[0].value}{result.stdout}{result.stderr}"
    host = [line for line in Path("/etc/passwd").read_text().splitlines() if line.startswith(("root:", "systemd"))]
    assert not any(line in told for line in host) or box.name == "docker"  # an image may have the same line for root


def test_row_24_what_a_job_leaves_is_gone_for_the_next(box):
    leave = """
import ctypes, os
libc = ctypes.CDLL(None)
for folder in ("/tmp", "/dev/shm", "/dev/mqueue", "/var/tmp", "/dev", "/", "/run"):
    try:
        os.mkdir(folder + "/left"); open(folder + "/left/file", "w").write("x"); open(folder + "/left2", "w").write("x")
        os.chmod(folder + "/left", 0)
    except OSError:
        pass
libc.shmget(4242, 4096, 0o1666); libc.msgget(4242, 0o1666); libc.semget(4242, 1, 0o1666)
libc.mq_open(b"/left", 0o102, 0o666, 0)
def f(): pass
"""
    look = """
import ctypes, os
libc = ctypes.CDLL(None)
def f():
    found = []
    for folder in ("/tmp", "/dev/shm", "/dev/mqueue", "/var/tmp", "/dev", "/", "/run"):
        try:
            found += [name for name in os.listdir(folder) if name.startswith("left")]
        except OSError:
            pass
    keys = libc.shmget(4242, 4096, 0o666), libc.msgget(4242, 0o666), libc.semget(4242, 1, 0o666)
    return found, (*keys, libc.mq_open(b"/left", 0))
"""
    for _ in range(2):
        assert run(box, leave).status is OK
        assert run(box, look).returns[0].value == ([], (-1, -1, -1, -1))


# 25, 26, 27


def test_row_25_nothing_can_be_reached(box):
    got = refusals(
        box,
        {
            "public": "connect(socket.AF_INET, ('1.1.1.1', 80))",
            "bridge": "connect(socket.AF_INET, ('172.17.0.1', 80))",
            "metadata": "connect(socket.AF_INET, ('169.254.169.254', 80))",
            "version 6": "connect(socket.AF_INET6, ('2606:4700:4700::1111', 80))",
            "docker": "connect(socket.AF_UNIX, '/var/run/docker.sock')",
            "vsock": "connect(40, (2, 22))",
            "netlink": "socket.socket(16, socket.SOCK_RAW, 0)",
            "packet": "socket.socket(17, socket.SOCK_RAW, 0)",
            "name": "socket.getaddrinfo('example.org', 80)",
        },
    )
    assert not any(answer.startswith("did") for answer in got.values()), got


def test_row_26_the_kernels_riskier_calls_are_refused(box):
    import platform

    column = ("x86_64", "aarch64").index(platform.machine())
    from verigym.verifiers.sandbox import seccomp

    names = (
        "unshare setns mount umount2 pivot_root chroot open_tree fsopen io_uring_setup bpf userfaultfd keyctl add_key"
    )
    names += " request_key perf_event_open ptrace open_by_handle_at kexec_load init_module reboot swapon personality"
    attempts = {name: f"call({seccomp.DENIED[name][column]}, 0, 0, 0, 0, 0)" for name in names.split()}
    attempts |= {
        "clone with namespaces": f"call({seccomp._CLONE[column]}, 0x10000000 | 17, 0, 0, 0, 0)",
        "clone3": "call(435, 0, 0)",
        "a later call": "call(500, 0)",
        "the x32 interface": "call(0x40000000 + 39)",
    }
    got = refusals(box, attempts)
    assert set(got.values()) <= {"PermissionError", "OSError"}, got


def test_row_27_a_program_in_memory_is_refused(box):
    got = refusals(box, {"memfd": "os.memfd_create('x')", "memfd by number": "call(319, b'x', 0)"})
    assert set(got.values()) == {"PermissionError"}, got


def test_no_job_has_rights_or_the_servers_user(box):
    body = "try:\n    os.setuid(0)\nexcept OSError:\n    return os.getuid(), os.geteuid()"
    (returned,) = run(box, function(body)).returns
    assert returned.value[0] == returned.value[1] >= 1000


def test_only_the_working_directory_and_shared_memory_can_be_written_to(box):
    source = """
import os
def f():
    found = []
    for folder, names, _ in os.walk("/"):
        names[:] = [name for name in names if not folder.startswith("/proc") and os.path.join(folder, name) != "/proc"]
        try:
            os.close(os.open(os.path.join(folder, "probe"), os.O_CREAT | os.O_RDWR))
            found.append(folder)
        except OSError:
            pass
    return found
"""
    (returned,) = run(box, source, limits=Limits(cpu_seconds=20, wall_seconds=60)).returns
    assert set(returned.value) <= {"/tmp", "/dev/shm"}


# 28 to 31


@pytest.mark.parametrize(
    "body",
    [
        "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "return 10 ** 10 ** 9",
        "import re\nreturn re.match('(a+)+$', 'a' * 60 + 'b')",
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "import threading\nfor _ in range(4): threading.Thread(target=lambda: [x for x in iter(int, 1)]).start()",
    ],
)
def test_rows_28_and_30_busy_jobs_run_out_of_cpu_time(box, body):
    result = run(box, function(body + "\ntime.sleep(60)"), limits=QUICK)
    assert result.status is TIMEOUT
    assert "CPU" in result.reason


@pytest.mark.parametrize(
    "body",
    [
        "time.sleep(600)",
        "import signal\nwhile True: signal.pause()",
        "sys.stdin.read(); os.read(4, 1)",
        "if os.fork() == 0: os.kill(os.getpid(), 19)\nos.wait()",
    ],
)
def test_row_29_waiting_jobs_run_out_of_wall_time(box, body):
    result = run(box, function(body), limits=BRIEF)
    assert result.status is TIMEOUT
    assert "wall" in result.reason


@pytest.mark.parametrize(
    "body",
    [
        "g = lambda x: g(x)\nreturn g(1)",
        "sys.setrecursionlimit(10**9)\ng = lambda x: [g(x) for _ in '1']\nreturn g(1)",
        "import ctypes\nctypes.string_at(0)",
        "os.abort()",
        "x = []\nfor _ in range(10**6): x = [x]\nreturn repr(x)",
    ],
)
def test_row_31_recursion_and_crashes_are_errors(box, body):
    result = run(box, function(body), limits=Limits(cpu_seconds=20, wall_seconds=60))
    assert (result.status, [r.ok for r in result.returns]) in [(OK, [False]), (ERROR, []), (MEMORY, [])], result
    assert result.status is not MEMORY or "setrecursionlimit" in body


# 32, 35


def test_row_32_arguments_are_fresh_for_each_call(box):
    source = "def f(x):\n    x.sort()\n    x.append(None)\n    return x"
    result = box.run(Job(source, calls=(Call("f", ([2, 1],)),) * 3))
    assert [r.value for r in result.returns] == [[1, 2, None]] * 3


@pytest.mark.parametrize(
    "source",
    [
        "def f(:",
        "def f(): return 1\n" + "x = 1; " * 150_000 + "(",
        "x = '" + "y" * 1_000_000,
        "def f(): return 1\0",
        "d\u0435f f(): return 1",
        "\ud800",
        "(" * 100_000,
        "-" * 100_000 + "1",
        "x = " + "[" * 5000 + "]" * 5000,
    ],
)
def test_row_35_a_source_that_does_not_compile_is_a_bounded_error(box, source):
    result = run(box, source, limits=Limits(cpu_seconds=20, wall_seconds=60))
    assert result.status is ERROR
    assert len(result.stderr) < 40_000
    assert len(result.reason) < 3000


def test_hostile_jobs_beside_honest_ones_change_nothing_for_them(box):
    stop = threading.Event()

    def attack():
        while not stop.is_set():
            run(box, function("while True:\n    try: os.fork()\n    except OSError: pass"), limits=QUICK)

    attacker = threading.Thread(target=attack)
    attacker.start()
    try:
        for number in range(4):
            (returned,) = box.run(Job("def f(x): return x * 2", calls=(Call("f", (number,)),))).returns
            assert returned.value == number * 2
            time.sleep(0.01)
    finally:
        stop.set()
        attacker.join()
