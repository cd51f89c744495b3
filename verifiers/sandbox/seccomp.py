"""The system calls that a job may not make, as a BPF program for the kernel and as a profile for Docker."""

from __future__ import annotations

import errno
import platform
import struct
from typing import Any

from verigym.tasks.errors import SandboxError

# name: (number on x86_64, number on aarch64), -1 where there is none
DENIED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "process_madvise": (440, 440),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "userfaultfd": (323, 282),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "move_mount": (429, 429),
    "open_tree": (428, 428),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264),
    "fanotify_init": (300, 262),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "syslog": (103, 116),
    "personality": (135, 92),
    "vhangup": (153, 58),
    "iopl": (172, -1),
    "ioperm": (173, -1),
    "modify_ldt": (154, -1),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "shmdt": (67, 197),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "semtimedop": (220, 192),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    "mq_timedsend": (242, 182),
    "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184),
    "mq_getsetattr": (245, 185),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
    "vmsplice": (278, 75),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
}
_CLONE, _CLONE3, _SOCKET, _KILL = (56, 220), (435, 435), (41, 198), (62, 129)
_NAMESPACE_FLAGS = (0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000)
_SOCKET_FAMILIES = (1, 2, 10)  # Unix, IPv4, IPv6; vsock reaches the hypervisor from any network namespace
_NOT_TO_SIGNAL = (0, 1, 0xFFFF_FFFF)  # the group, the first process, everyone
_NEWEST = 450  # later calls are unknown to this table
_ARCHITECTURES = {"x86_64": (0, 0xC000_003E), "aarch64": (1, 0xC000_00B7)}

_LOAD, _EQUAL, _ABOVE, _ANY_OF, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_ALLOW, _KILL_PROCESS = 0x7FFF_0000, 0x8000_0000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in what the kernel shows the program


def _refuse(number: int = errno.EPERM) -> bytes:
    return _step(_RETURN, 0x0005_0000 | number)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def job_filter(machine: str | None = None) -> bytes:
    """The BPF program for this machine. Raises SandboxError for a machine that the table does not know."""
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise SandboxError(f"no system call filter for {machine}: sandboxes run on {' and '.join(_ARCHITECTURES)}")
    column, architecture = _ARCHITECTURES[machine]
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL_PROCESS),
        _step(_LOAD, _NUMBER),
        _step(_ABOVE, _NEWEST, 0, 1),  # so too every call of the x32 interface
        _refuse(errno.ENOSYS),
        *_when(_CLONE3[column], [_refuse(errno.ENOSYS)]),  # its flags are out of sight; libc falls back to clone
    ]
    for numbers in DENIED.values():
        if numbers[column] >= 0:
            steps += _when(numbers[column], [_refuse()])
    flags = sum(_NAMESPACE_FLAGS)
    steps += _when(_CLONE[column], [_argument(), _step(_ANY_OF, flags, 0, 1), _refuse(), _allow()])
    steps += _when(_SOCKET[column], [_argument(), *_unless(_SOCKET_FAMILIES), _refuse()])
    steps += _when(_KILL[column], [_argument(), *_among(_NOT_TO_SIGNAL), _allow()])
    return b"".join([*steps, _allow()])


def _allow() -> bytes:
    return _step(_RETURN, _ALLOW)


def _argument() -> bytes:
    return _step(_LOAD, _FIRST_ARGUMENT)


def _when(number: int, steps: list[bytes]) -> list[bytes]:
    """The steps for one system call, skipped by all others."""
    return [_step(_EQUAL, number, 0, len(steps)), *steps]


def _unless(values: tuple[int, ...]) -> list[bytes]:
    return [step for value in values for step in (_step(_EQUAL, value, 0, 1), _allow())]


def _among(values: tuple[int, ...]) -> list[bytes]:
    return [step for value in values for step in (_step(_EQUAL, value, 0, 1), _refuse())]


def docker_profile() -> dict[str, Any]:
    """The same table for a whole container, which holds for its fork server too."""
    refused: list[dict[str, Any]] = [{"names": sorted(DENIED), "action": "SCMP_ACT_ERRNO"}]
    refused.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    for flag in _NAMESPACE_FLAGS:
        masked = {"index": 0, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
        refused.append({"names": ["clone"], "action": "SCMP_ACT_ERRNO", "args": [masked]})
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
        "syscalls": refused,
    }
