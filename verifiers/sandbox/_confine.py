"""How a fork server shuts a job in: rlimits, namespaces or users, system call filter; and how it ends it.

Runs inside the sandbox, on the interpreter there, and imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import stat
import tempfile
import time
from collections.abc import Sequence
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x0002_0000, 0x0400_0000, 0x0800_0000
_CLONE_NEWUSER, _CLONE_NEWPID, _CLONE_NEWNET = 0x1000_0000, 0x2000_0000, 0x4000_0000
_ALL_NAMESPACES = _CLONE_NEWNS | _CLONE_NEWUTS | _CLONE_NEWIPC | _CLONE_NEWUSER | _CLONE_NEWPID | _CLONE_NEWNET
_PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 4, 22, 36, 38
_MS_NOSUID_NODEV, _MS_RDONLY = 2 | 4, 1
_CAPABILITY_VERSION_3 = 0x2008_0522
_INODES = 4096
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _prctl(option: int, value: Any, more: Any = 0) -> None:
    zero = ctypes.c_ulong(0)
    if not isinstance(more, int):
        _check(_LIBC.prctl(option, ctypes.c_ulong(value), more, zero, zero), f"prctl {option}")
    else:
        _check(_LIBC.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(more), zero, zero), f"prctl {option}")


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def filter_system_calls(program: bytes) -> None:
    """Installs a BPF program for this process and all that it starts, for good."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_SECCOMP, 2, ctypes.byref(_Program(len(program) // 8, program)))


def _drop_capabilities() -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_LIBC.capset(header, (ctypes.c_uint32 * 6)()), "capset")


def _mount_tmpfs(target: str, options: str, flags: int = _MS_NOSUID_NODEV) -> None:
    _check(_LIBC.mount(b"tmpfs", target.encode(), b"tmpfs", flags, options.encode()), f"mount {target}")


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)  # a file object would touch some forty pages, each copied for the job
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _open_any(paths: Sequence[str]) -> int | None:
    """A descriptor of the first of these files that can be read."""
    path = next((path for path in paths if os.access(path, os.R_OK)), None)
    return None if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)


class Confinement:
    """The backend without isolation: rlimits, and the job's processes found as descendants.

    A subclass says how the job's process is made, what it may touch, and how all of it ends.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self._directory, self._prefix = "", config.get("directory_prefix", "verigym-job-")
        self._filter = bytes.fromhex(config.get("filter", ""))
        self._cpu_file = _open_any(config.get("cpu_files", ()))
        self._oom_file = _open_any(config.get("oom_files", ()))
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # what a job orphans becomes our child: no child, no process left
        self.take_own_memory()

    def take_own_memory(self) -> None:
        """What every job's process has of the server's, which is not the job's."""
        self._base_rss, self._base_address_space = _own_memory()

    def holds(self) -> dict[str, str]:
        """By what memory and CPU time are held, for people."""
        return {
            "memory": "cgroup" if self._oom_file is not None else "address space per process and polling",
            "cpu": "cgroup" if self._cpu_file is not None else "polling of /proc",
        }

    def spawn(self) -> int:
        """Forks the job's process: 0 in it, its process id in the server."""
        self._directory = tempfile.mkdtemp(prefix=self._prefix)
        return os.fork()

    def enter(self, limits: dict[str, Any]) -> None:
        """Shuts this process, the job's, in."""
        os.setsid()
        os.chdir(self._directory)
        os.environ.update(HOME=self._directory, TMPDIR=self._directory)
        self._limit(limits, processes=False)

    def _limit(self, limits: dict[str, Any], *, processes: bool = True) -> None:
        seconds = int(limits["cpu_seconds"]) + 2  # the second line: the server polls and comes first
        _set_limit(resource.RLIMIT_CPU, seconds)
        _set_limit(resource.RLIMIT_AS, limits["memory_bytes"] + self._base_address_space)
        _set_limit(resource.RLIMIT_CORE, 0)
        _set_limit(resource.RLIMIT_NOFILE, 256)
        _set_limit(resource.RLIMIT_MEMLOCK, 0)
        _set_limit(resource.RLIMIT_MSGQUEUE, 0)  # a queue is a file too where its file system is mounted
        if processes:
            _set_limit(resource.RLIMIT_NPROC, limits["processes"])

    def processes(self) -> list[str]:
        """The process ids of the job's processes, dead ones too that nobody has waited for."""
        found, parents = [], [str(os.getpid())]
        while parents:
            children = _children(parents.pop())
            found += children
            parents += children
        return found

    def usage(self) -> tuple[float, int, int]:
        """What the job's processes have used and hold now: CPU seconds, bytes of memory, how many they are."""
        ticks = pages = 0
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(OSError), open(f"/proc/{process}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
                ticks += sum(map(int, fields[11:15]))
                pages += max(0, int(fields[21]) - self._base_rss)
        return ticks / _TICKS, pages * _PAGE, len(processes)

    def cgroup_cpu_seconds(self) -> float | None:
        """The CPU time of the server and all its children, where a cgroup counts it."""
        if self._cpu_file is None:
            return None
        text = os.pread(self._cpu_file, 4096, 0)
        if text.startswith(b"usage_usec"):
            return int(text.split()[1]) / 1e6
        return int(text) / 1e9

    def out_of_memory_kills(self) -> int:
        """How often the kernel has killed a process here for memory."""
        if self._oom_file is None:
            return 0
        text = os.pread(self._oom_file, 4096, 0)
        return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(b"oom_kill ")), 0)

    def kill(self, process: int) -> None:
        """Ends the job's main process, and with it, or in `sweep`, all others."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def sweep(self) -> bool:
        """Ends what the job's main process left behind. Returns whether there was anything; raises if it lives on."""
        left = False
        deadline = time.monotonic() + 5
        while _has_children():
            left = True
            self._kill_rest()
            if time.monotonic() > deadline:
                raise OSError("a process of the job does not end")
            time.sleep(0.001)
        return left

    def _kill_rest(self) -> None:
        for process in self.processes():
            self.kill(int(process))

    def clean(self) -> None:
        """Removes what the job left on disk. Raises OSError for what stays."""
        if self._directory:
            _remove(self._directory)
            self._directory = ""


class Namespaces(Confinement):
    """Inside bubblewrap: user, process, network, IPC, mount and host-name namespaces of its own for each job."""

    def spawn(self) -> int:
        reader, writer = os.pipe()
        helper = os.fork()
        if helper == 0:
            self._unshare_and_fork(writer)
            os.close(reader)
            os.close(writer)
            return 0
        os.close(writer)
        answer = os.read(reader, 300)
        os.close(reader)
        os.waitpid(helper, 0)
        if not answer.isdigit():
            raise OSError(f"no namespaces for a job: {answer.decode() or 'the helper died'}")
        return int(answer)

    def _unshare_and_fork(self, writer: int) -> None:
        """Returns in the job's process, the first of its namespace; the helper itself ends here."""
        try:
            user, group = os.getuid(), os.getgid()
            _check(_LIBC.unshare(_ALL_NAMESPACES), "unshare")
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{user} {user} 1")
            _write("/proc/self/gid_map", f"{group} {group} 1")
            process = os.fork()
            if process == 0:
                return
            os.write(writer, str(process).encode())
        except OSError as error:
            os.write(writer, str(error).encode()[:300])
        os._exit(0)

    def enter(self, limits: dict[str, Any]) -> None:
        os.setsid()
        options = f"mode=1777,nr_inodes={_INODES}"
        _mount_tmpfs("/tmp", f"{options},size={limits['file_bytes'] + _PAGE * 16}")
        _mount_tmpfs("/dev/shm", f"{options},size={min(limits['file_bytes'], 1 << 20)}")
        _mount_tmpfs("/proc", "mode=555,nr_inodes=1,size=0", _MS_NOSUID_NODEV | _MS_RDONLY)
        os.chdir("/tmp")
        self._limit(limits)
        _drop_capabilities()
        filter_system_calls(self._filter)

    def processes(self) -> list[str]:
        return [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]

    def clean(self) -> None:
        """Nothing: the job's mounts went with its namespace."""


class Users(Confinement):
    """Inside a locked container: a user of its own for each job; the server, root there, may signal all of them."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self._user = int(config["first_user"])
        _prctl(_PR_SET_DUMPABLE, 0)
        os.chmod("/tmp", 0o1777)  # the engine gives a mount the mode of the image's folder

    def spawn(self) -> int:
        self._user += 1
        return os.fork()

    def enter(self, limits: dict[str, Any]) -> None:
        os.setsid()
        os.setgroups([])
        os.setresgid(self._user, self._user, self._user)
        os.setresuid(self._user, self._user, self._user)
        _prctl(_PR_SET_DUMPABLE, 1)
        with contextlib.suppress(OSError):
            _write("/proc/self/oom_score_adj", "1000")  # the job goes before the server
        os.chdir("/tmp")
        self._limit(limits)
        filter_system_calls(self._filter)

    def processes(self) -> list[str]:
        return [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]

    def _kill_rest(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # at once, so that no fork slips through

    def clean(self) -> None:
        leftovers = list(os.scandir("/tmp"))
        if any(entry.is_dir(follow_symlinks=False) for entry in leftovers):
            self._remove_as_user([entry.path for entry in leftovers])
            leftovers = list(os.scandir("/tmp"))
        for entry in leftovers:
            os.unlink(entry.path)

    def _remove_as_user(self, paths: list[str]) -> None:
        """Root without capabilities may not enter a job's folders: a child with the job's user does it."""
        child = os.fork()
        if child == 0:
            try:
                os.setresuid(self._user, self._user, self._user)
                for path in paths:
                    _remove(path)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


KINDS = {"process": Confinement, "namespaces": Namespaces, "users": Users}


def _set_limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _children(process: str) -> list[str]:
    found: list[str] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{task}/children") as file:
                found += file.read().split()
    return found


def _has_children() -> bool:
    """Waits for what has ended; whether any child, and so any descendant, is left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _own_memory() -> tuple[int, int]:
    """Resident pages and bytes of address space of this process."""
    with open("/proc/self/statm") as file:
        size, resident = file.read().split()[:2]
    return int(resident), int(size) * _PAGE


def _remove(path: str) -> None:
    """Removes a file or a folder, also one whose owner took its own rights away. Nothing of the job runs any more."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        os.unlink(path)
        return
    os.chmod(path, 0o700)
    for name in os.listdir(path):
        _remove(os.path.join(path, name))
    os.rmdir(path)
