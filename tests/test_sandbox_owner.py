"""What is left when the owner of a sandbox is killed, when the Docker engine stops, and where there are no rights."""

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from verigym.tasks.errors import SandboxError
from verigym.verifiers.sandbox import Job, Limits, Status, cgroup
from verigym.verifiers.sandbox.owner import Owner

_SANDBOXES = runpy.run_path(str(Path(__file__).with_name("sandboxes.py")))
OWNER = """
import sys, threading, time
from verigym.verifiers import sandbox
from verigym.verifiers.sandbox import Job
box = sandbox.make(sys.argv[1], workers=2, allow_unsafe=True)
session = box.session()
session.execute("x = 1")
daemon = "import os, time\\nif os.fork() == 0: os.setsid()\\ntime.sleep(600)"
for _ in range(2):
    threading.Thread(target=box.run, args=(Job(daemon),), daemon=True).start()
print("running", flush=True)
time.sleep(600)
"""


def descendants(process):
    return psutil.Process(process).children(recursive=True)


def containers(owner):
    """The containers that a process owns."""
    from verigym.verifiers.sandbox import docker

    found = docker.connect().containers.list(all=True, filters={"label": docker.OWNER_LABEL}, ignore_removed=True)
    return [c.id for c in found if c.labels[docker.OWNER_LABEL].startswith(f"{owner}-")]


def inside(names):
    """The ids on the host of all processes in these containers."""
    from verigym.verifiers.sandbox import docker

    api = docker.connect().api
    return [psutil.Process(int(row[1])) for name in names for row in api.top(name)["Processes"]]


def folders(owner):
    temporary = Path("/tmp").glob(f"verigym-job-{owner}-*")
    return [*temporary, *(path for parent in cgroup._parents() for path in parent.glob(f"verigym-{owner}-*"))]


@pytest.mark.parametrize("name", _SANDBOXES["EVERY"])
def test_nothing_is_left_of_an_owner_that_is_killed(name):
    _SANDBOXES["make"](name, workers=1).close()
    owner = subprocess.Popen([sys.executable, "-c", OWNER, name], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "running\n"
        deadline = time.monotonic() + 60
        processes = []
        while len(processes) < 3 + 1 + 4 and time.monotonic() < deadline:  # servers, a session, two jobs, two daemons
            time.sleep(0.1)
            processes = inside(containers(owner.pid)) if name == "docker" else descendants(owner.pid)
        assert len(processes) >= 8
        assert name != "docker" or len(containers(owner.pid)) == 3
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    restarted = _SANDBOXES["make"](name, workers=1)
    try:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline and (
            any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)
            or folders(owner.pid)
            or (name == "docker" and containers(owner.pid))
        ):
            time.sleep(0.05)
        assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []
        assert folders(owner.pid) == []
        assert name != "docker" or containers(owner.pid) == []
        assert restarted.run(Job("print(1)")).stdout == b"1\n"
    finally:
        restarted.close()


def test_a_clean_up_leaves_the_running_alone():
    from verigym.verifiers.sandbox.clean import remove_orphans

    boxes = [_SANDBOXES["make"](name, workers=1) for name in _SANDBOXES["EVERY"]]
    sessions = [box.session() for box in boxes]
    try:
        remove_orphans()
        assert [session.execute("print(1)").stdout for session in sessions] == [b"1\n"] * 3
        assert [box.run(Job("print(2)")).stdout for box in boxes] == [b"2\n"] * 3
    finally:
        for box in boxes:
            box.close()


def test_an_owner_is_told_apart_from_a_later_process_with_its_number():
    owner = Owner.current()
    assert Owner.parse(str(owner)) == owner
    assert owner.alive
    assert not Owner(owner.process, owner.started + 1, owner.world).alive
    assert not Owner.parse("nonsense").alive
    assert Owner(owner.process, owner.started + 1, "elsewhere").alive  # who cannot be seen is not taken for dead


def test_closing_a_sandbox_leaves_no_process_and_no_folder():
    for name in _SANDBOXES["EVERY"]:
        # another test may have opened a sandbox that the whole process shares
        before = {process.pid for process in descendants(os.getpid())}
        kept = [set(folders(os.getpid())), set(containers(os.getpid())) if name == "docker" else set()]
        box = _SANDBOXES["make"](name, workers=2)
        session = box.session()
        assert session.execute("1").status is Status.OK
        assert box.run(Job("import time; time.sleep(60)", limits=Limits(wall_seconds=0.2))).status is Status.TIMEOUT
        box.close()
        assert {process.pid for process in descendants(os.getpid())} <= before
        assert set(folders(os.getpid())) <= kept[0]
        assert name != "docker" or set(containers(os.getpid())) <= kept[1]


def test_an_engine_that_is_gone_gives_infrastructure_errors_and_no_verdicts():
    box = _SANDBOXES["make"]("docker", workers=1)
    try:
        from docker.errors import APIError

        def refuse(*_, **__):
            raise APIError("the engine is stopping")

        assert box.run(Job("print(1)")).status is Status.OK
        box._client.api.create_container = refuse
        for worker in list(box._all):
            worker.kill()
        for _ in range(3):
            result = box.run(Job("print(1)"))
            assert result.status is Status.INFRA_ERROR
            assert "the engine is stopping" in result.reason
        del box._client.api.create_container
        assert box.run(Job("print(1)")).stdout == b"1\n"
    finally:
        box.close()


def test_without_an_engine_docker_says_what_to_install(monkeypatch):
    pytest.importorskip("docker")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    from verigym.verifiers import sandbox

    with pytest.raises(SandboxError, match=r"finds no Docker engine: .*apt-get install docker\.io"):
        sandbox.make("docker")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_whoever_may_not_use_the_engine_is_told_how_to():
    pytest.importorskip("docker")
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as engine:
        os.chmod(folder, 0o755)
        engine.bind(f"{folder}/socket")
        os.chmod(f"{folder}/socket", 0o600)
        engine.listen()
        code = "import os\nfrom verigym.verifiers.sandbox import docker\nos.setuid(65534)\ndocker.connect()"
        environment = {**os.environ, "DOCKER_HOST": f"unix://{folder}/socket"}
        result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "may not use the Docker engine: join its group" in result.stderr.splitlines()[-1]


def test_without_bwrap_bubblewrap_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    from verigym.verifiers import sandbox

    with pytest.raises(SandboxError, match="apt-get install bubblewrap"):
        sandbox.make("bubblewrap")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_bubblewrap_enforces_as_much_for_a_user_who_may_make_no_cgroup():
    _SANDBOXES["make"]("bubblewrap", workers=1).close()
    from verigym.verifiers.sandbox import doctor
    from verigym.verifiers.sandbox.bubblewrap import BubblewrapSandbox

    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            box = BubblewrapSandbox(1)
            findings = [f"{f.area} {f.sentence}" for f in doctor.examine(box) if not f.enforced]
            os.write(writer, "; ".join([box.reason, *findings]).encode())
            box.close()
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    told = os.read(reader, 10_000).decode()
    assert told.endswith("memory by address space per process and polling, CPU time by polling of /proc"), told


# the command line


def test_the_command_line_names_its_actions(capsys):
    from verigym.cli import main

    for arguments in (["sandbox"], ["sandbox", "--help"]):
        with pytest.raises(SystemExit):
            main(arguments)
        assert all(action in capsys.readouterr().out for action in ("build", "doctor", "clean")[:1])
    assert main(["sandbox", "bild"]) == 2
    assert "did you mean 'build'" in capsys.readouterr().err
    assert main(["sandbox", "build", "--from-host", "--debootstrap"]) == 2
    assert main(["sandbox", "clean"]) == 0
    assert capsys.readouterr().out.startswith("removed ")


def test_the_doctor_finds_that_what_isolates_enforces_everything(capsys):
    import json

    from verigym.cli import main

    _SANDBOXES["make"]("docker", workers=1).close()
    assert main(["sandbox", "doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)
    assert {finding["sandbox"] for finding in findings} == set(_SANDBOXES["EVERY"])
    assert [f for f in findings if f["sandbox"] in _SANDBOXES["ISOLATING"] and not f["enforced"]] == []
    open_doors = {f["area"] for f in findings if f["sandbox"] == "process" and f["enforced"] is False}
    assert {"files", "network", "io_uring", "user namespaces"} <= open_doors
