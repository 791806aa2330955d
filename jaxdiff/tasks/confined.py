"""A program that gives its rights up, runs another and tells how that ended. `sandbox.py` starts it; Linux alone.

Started as a file of its own, so that it imports nothing of jaxdiff: what it does before it is confined is done in the
process that will run the other program, and in no thread of the caller's. It needs no privileges, and takes none: what
confines it holds for root too, and nothing that runs in it can undo it.

    limits      of memory, processor time and files (setrlimit)
    Landlock    no file can be opened but Python's own library and those of the system, for reading
    seccomp     no system call but those that a computation needs: no socket, no process, no signal to another process,
                no file opened for writing or changed in any way
"""

import ctypes
import os
import resource
import signal
import struct
import sys
import types

LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

# Linux's numbers, for what ctypes has no names for.
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 1, 22, 38, 2
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF, LANDLOCK_RULE_PATH_BENEATH = 444, 445, 446, 1
READ_FILE, READ_DIR, EVERY_RIGHT = 1 << 2, 1 << 3, (1 << 13) - 1  # of Landlock's first version
LANDLOCK_VERSION, TRUNCATE, KNOWS_TRUNCATE = 1, 1 << 14, 3  # a right of its third
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # instructions of a filter
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # what it returns
EPERM, EACCES, ENOSYS = 1, 13, 38
CLONE_THREAD = 0x10000
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
FCNTL = (0, 1, 2, 3, 1030)  # duplicate, and read flags or whether it is closed on exec: no signals
NEVER = -1  # a call that the processor's Linux does not have

# What a program that computes asks of Linux: its number on x86_64 and on aarch64.
CALLS = {
    **{"read": (0, 63), "write": (1, 64), "close": (3, 57), "lseek": (8, 62), "pread64": (17, 67)},
    **{"readv": (19, 65), "writev": (20, 66), "dup": (32, 23)},
    **{"stat": (4, NEVER), "fstat": (5, 80), "lstat": (6, NEVER), "newfstatat": (262, 79), "statx": (332, 291)},
    **{"access": (21, NEVER), "faccessat": (269, 48), "faccessat2": (439, 439), "getdents64": (217, 61)},
    **{"readlink": (89, NEVER), "readlinkat": (267, 78), "getcwd": (79, 17)},
    **{"mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "mremap": (25, 216)},
    **{"mincore": (27, 232), "madvise": (28, 233)},
    **{"rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "sigaltstack": (131, 132)},
    **{"restart_syscall": (219, 128), "setitimer": (38, 103), "getitimer": (36, 102), "alarm": (37, NEVER)},
    **{"poll": (7, NEVER), "ppoll": (271, 73), "select": (23, NEVER), "pselect6": (270, 72)},
    **{"nanosleep": (35, 101), "clock_nanosleep": (230, 115), "clock_gettime": (228, 113), "clock_getres": (229, 114)},
    **{"gettimeofday": (96, 169), "time": (201, NEVER), "times": (100, 153), "getrusage": (98, 165)},
    **{"getpid": (39, 172), "getppid": (110, 173), "gettid": (186, 178), "uname": (63, 160), "sysinfo": (99, 179)},
    **{"getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177)},
    **{"futex": (202, 98), "set_robust_list": (273, 99), "rseq": (334, 293), "set_tid_address": (218, 96)},
    **{"membarrier": (324, 283), "sched_yield": (24, 124), "sched_getaffinity": (204, 123), "getcpu": (309, 168)},
    **{"arch_prctl": (158, NEVER), "getrandom": (318, 278), "exit": (60, 93), "exit_group": (231, 94)},
}
OPENAT, FCNTL_CALL, CLONE, CLONE3 = (257, 56), (72, 25), (56, 220), (435, 435)


def limit(seconds: int, memory: int) -> None:
    """Of processor seconds, after which it is told to end and a second later killed; of bytes of memory; no file grows.

    Limits that are lower already stay.
    """
    for kind, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_NOFILE, 64, 64),
    ):
        there = resource.getrlimit(kind)[1]
        most = hard if there == resource.RLIM_INFINITY else min(hard, there)
        resource.setrlimit(kind, (min(soft, most), most))


def checked(value: int, what: str) -> int:
    """What a call into Linux gave. Raises OSError for an error."""
    if value < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return value


def read_only(linux: ctypes.CDLL, paths: list[str]) -> None:
    """From now on only these files and folders can be opened, and only be read (Landlock)."""
    version = checked(
        linux.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_VERSION), "this kernel's Landlock"
    )
    denied = EVERY_RIGHT | (TRUNCATE if version >= KNOWS_TRUNCATE else 0)
    rights = ctypes.create_string_buffer(struct.pack("Q", denied), 8)
    rules = checked(linux.syscall(LANDLOCK_CREATE_RULESET, rights, ctypes.c_size_t(8), 0), "this kernel's Landlock")
    for path in filter(os.path.exists, paths):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        own = READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", own, opened), 12)
        checked(linux.syscall(LANDLOCK_ADD_RULE, rules, LANDLOCK_RULE_PATH_BENEATH, rule, 0), f"Landlock of {path}")
        os.close(opened)
    checked(linux.syscall(LANDLOCK_RESTRICT_SELF, rules, 0), "this kernel's Landlock")
    os.close(rules)


def filtered(linux: ctypes.CDLL, machine: str) -> None:
    """From now on only the calls of `CALLS` are answered, and those of four others that change nothing (seccomp)."""
    column = list(AUDIT_ARCH).index(machine)

    def returned(value: int) -> tuple[int, int, int, int]:
        return RETURN, 0, 0, value

    def on(call: tuple[int, int], *then: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
        return [(EQUAL, 0, len(then), call[column]), *then]

    program = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, AUDIT_ARCH[machine]), returned(KILL), (LOAD, 0, 0, 0)]
    for call in CALLS.values():
        if call[column] != NEVER:
            program += on(call, returned(ALLOW))
    program += on(CLONE3, returned(ERRNO | ENOSYS))  # its flags lie in memory; the C library then asks `clone`
    program += on(CLONE, (LOAD, 0, 0, 16), (ANY_BIT, 0, 1, CLONE_THREAD), returned(ALLOW), returned(ERRNO | EPERM))
    program += on(OPENAT, (LOAD, 0, 0, 32), (ANY_BIT, 1, 0, WRITING), returned(ALLOW), returned(ERRNO | EACCES))
    commands = [(EQUAL, len(FCNTL) - place, 0, command) for place, command in enumerate(FCNTL)]
    program += on(FCNTL_CALL, (LOAD, 0, 0, 24), *commands, returned(ERRNO | EPERM), returned(ALLOW))
    program.append(returned(ERRNO | EPERM))
    packed = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    code = ctypes.create_string_buffer(packed, len(packed))
    whole = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)), 16)
    checked(linux.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, whole, 0, 0), "this kernel's seccomp")


def told(error: BaseException) -> str:
    """An exception in a line; its text is the program's, and so may fail."""
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:
        return type(error).__name__


def main() -> None:
    """Standard input: a line of what is asked, then the program. Standard output: one line of how it ended.

    The line asked: a word that nobody can guess, processor seconds, bytes of memory, and folders of packages, between
    tabs. The line told: that word, what became of it, and the exception.
    """
    head, _, program = sys.stdin.buffer.read().partition(b"\n")
    word, seconds, memory, *folders = head.decode().split("\t")
    telling, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    os.close(nothing)

    def tell(verdict: str, detail: str = "", write=os.write, end=os._exit) -> None:  # type: ignore[no-untyped-def]
        """The program may put functions of its own into `os`; these are the system's."""
        write(telling, f"{word}\t{verdict}\t{detail[:1000]}\n".encode("utf-8", "backslashreplace"))
        end(0)

    try:
        linux, machine = ctypes.CDLL(None, use_errno=True), os.uname().machine
        linux.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
        if machine not in AUDIT_ARCH:
            raise OSError(f"found the processor {machine}, expected one of {', '.join(AUDIT_ARCH)}")
        sys.path += folders
        checked(linux.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, None, 0, 0), "this kernel")
        checked(linux.prctl(PR_SET_NO_NEW_PRIVS, 1, None, 0, 0), "this kernel")
        limit(int(seconds), int(memory))
        read_only(linux, [os.path.dirname(os.path.dirname(os.__file__)), *folders, *LIBRARIES, *DEVICES])
        filtered(linux, machine)
    except Exception as error:
        tell("refused", told(error))
    module = types.ModuleType("program")
    sys.modules["program"], sys.argv = module, ["program"]
    try:
        exec(compile(program, "program", "exec"), module.__dict__)
    except MemoryError as error:
        tell("memory", told(error))
    except BaseException as error:
        tell("failed", told(error))
    tell("passed")


if __name__ == "__main__":
    main()
