"""Linux isolation by ctypes alone: namespaces, Landlock, seccomp, capabilities, limits. Standard library only.

Loaded by the fork servers, which must stay small; it imports nothing of bontune.
"""

import ctypes
import os
import platform
import resource
import struct

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET, CLONE_THREAD = 0x10000000, 0x20000000, 0x40000000, 0x10000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_DUMPABLE, PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 4, 1, 38, 22, 24
NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")

libc = ctypes.PyDLL(None, use_errno=True)  # PyDLL: a fork must not happen with the interpreter lock released


def check(result, what):
    """The result of a C call; raises OSError that says what failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def machine():
    """ "x86_64" or "aarch64"; raises OSError elsewhere."""
    name = platform.machine()
    if name not in ("x86_64", "aarch64") or struct.calcsize("P") != 8:
        raise OSError(38, f"no system call table for {name}")
    return name


# Namespaces.


def unshare(flags, what):
    """Enter new namespaces."""
    check(libc.unshare(flags), what)


def enter_namespaces(readable, root):
    """A user namespace with a root of its own that holds only `readable`, read-only, and no network.

    root: an empty directory to mount it on. The caller has every capability in there until `drop_capabilities`.
    """
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS, "unshare namespaces")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    mount("tmpfs", root, "tmpfs", MS_NOSUID | MS_NODEV, "size=4m,mode=755")
    for path in _outermost(readable):
        place = root + path
        os.makedirs(place, exist_ok=True)
        mount(path, place, None, MS_BIND | MS_REC)
        read_only(place)
    os.makedirs(root + "/dev")
    for path in DEVICES:
        open(root + path, "w").close()
        mount(path, root + path, None, MS_BIND)
    for link in ("/lib", "/lib64", "/bin"):
        if os.path.islink(link) and not os.path.lexists(root + link):
            os.symlink(os.readlink(link), root + link)
    os.mkdir(root + "/tmp")
    os.chdir(root)
    check(libc.syscall(_NUMBERS[machine()]["pivot_root"], b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount the old root")
    os.chdir("/")
    mount(None, "/", None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)


def _outermost(paths):
    """The directories among `paths` that lie in no other; links are followed."""
    real = sorted({os.path.realpath(path) for path in paths if os.path.isdir(path)})
    return [p for p in real if p != "/" and not any(p.startswith(q + "/") for q in real if q != p)]


def mount(source, target, kind, flags, options=None):
    """mount(2)."""
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    code = libc.mount(encoded[0], encoded[1], encoded[2], ctypes.c_ulong(flags), encoded[3])
    check(code, f"mount {target}")


def read_only(place):
    """Remount a bind mount read-only; flags that the kernel has locked are kept."""
    found = os.statvfs(place).f_flag
    kept = sum(
        flag for flag in (MS_NOSUID, MS_NODEV, 8, 1024, 2048) if found & flag
    )  # and noexec, noatime, nodiratime
    mount(None, place, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | kept)


def fork_in_namespace():
    """Like os.fork, and the child is process 1 of a new process namespace with mounts of its own."""
    flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | 17  # SIGCHLD
    number = _NUMBERS[machine()]["clone"]
    return check(libc.syscall(number, ctypes.c_ulong(flags), 0, 0, 0, 0), "clone")


def private_tmp(size):
    """A file system of its own on /tmp, limited to `size` bytes, which ends with the process."""
    mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=777,nr_inodes=4096")


def drop_capabilities():
    """Give up every capability for good."""
    for capability in range(64):
        if libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 and capability == 0 and os.geteuid() == 0:
            break  # not ours to drop: there are none
    header = struct.pack("Ii", 0x20080522, 0)
    check(libc.capset(header, bytes(24)), "capset")


# Landlock.

_READ, _EXECUTE, _READ_DIR = 1 << 2, 1 << 0, 1 << 3


def landlock_version():
    """Version of the kernel's Landlock; raises OSError where there is none."""
    return check(libc.syscall(444, None, 0, 1), "landlock_create_ruleset")


def restrict_paths(readable, writable):
    """From now on only files below `readable` can be read, and only those below `writable` changed; no TCP."""
    version = landlock_version()
    files = (1 << 13) - 1 if version < 2 else (1 << 14) - 1 if version < 3 else (1 << 15) - 1
    if version >= 5:
        files |= 1 << 15  # ioctl on devices
    net = 3 if version >= 4 else 0
    scope = 3 if version >= 6 else 0
    attributes = struct.pack("QQQ", files, net, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = check(libc.syscall(444, attributes, size, 0), "landlock_create_ruleset")
    for paths, allowed in ((readable, _READ | _READ_DIR | _EXECUTE), (writable, files & ~_EXECUTE)):
        for path in paths:
            if not os.path.exists(path):
                continue
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rights = (
                allowed
                if os.path.isdir(path)
                else allowed & (_READ | _EXECUTE | 2 | (1 << 14 if version >= 3 else 0))
            )
            rule = struct.pack("=Qi", rights, handle)
            check(libc.syscall(445, ruleset, 1, rule, 0), f"landlock_add_rule {path}")
            os.close(handle)
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    check(libc.syscall(446, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)


# seccomp. Numbers: (x86_64, aarch64), -1 where the machine has no such call.

_ALLOWED = {
    "read": (0, 63), "write": (1, 64), "open": (2, -1), "close": (3, 57), "stat": (4, -1), "fstat": (5, 80),
    "lstat": (6, -1), "poll": (7, -1), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "access": (21, -1), "pipe": (22, -1), "select": (23, -1), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, -1), "nanosleep": (35, 101), "getitimer": (36, 102),
    "alarm": (37, -1), "setitimer": (38, 103), "getpid": (39, 172), "exit": (60, 93), "wait4": (61, 260),
    "uname": (63, 160), "fcntl": (72, 25), "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83),
    "truncate": (76, 45), "ftruncate": (77, 46), "getdents": (78, -1), "getcwd": (79, 17), "chdir": (80, 49),
    "fchdir": (81, 50), "rename": (82, -1), "mkdir": (83, -1), "rmdir": (84, -1), "creat": (85, -1),
    "unlink": (87, -1), "readlink": (89, -1), "chmod": (90, -1), "fchmod": (91, 52), "umask": (95, 166),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179),
    "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
    "getppid": (110, 173), "getpgrp": (111, -1), "getgroups": (115, 158), "sigaltstack": (131, 132),
    "statfs": (137, 43), "fstatfs": (138, 44), "arch_prctl": (158, -1), "gettid": (186, 178), "time": (201, -1),
    "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96),
    "restart_syscall": (219, 128), "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "openat": (257, 56), "mkdirat": (258, 34),
    "newfstatat": (262, 79), "unlinkat": (263, 35), "renameat": (264, 38), "readlinkat": (267, 78),
    "fchmodat": (268, 53), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "utimensat": (280, 88), "eventfd2": (290, 19), "dup3": (292, 24), "pipe2": (293, 59),
    "prlimit64": (302, 261), "renameat2": (316, 276), "getrandom": (318, 278), "membarrier": (324, 283),
    "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
_NUMBERS = {
    "x86_64": {"clone": 56, "clone3": 435, "pivot_root": 155, "ioctl": 16, "audit": 0xC000003E},
    "aarch64": {"clone": 220, "clone3": 435, "pivot_root": 41, "ioctl": 29, "audit": 0xC00000B7},
}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _ABOVE, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def seccomp_filter():
    """The program: calls on the list are allowed, threads but no processes, all else fails with EPERM."""
    name = machine()
    numbers = _NUMBERS[name]
    allowed = sorted(n for pair in _ALLOWED.values() if (n := pair[name == "aarch64"]) >= 0)
    code = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, numbers["audit"]), (_RETURN, 0, 0, _KILL),  # the other machine's calls
        (_LOAD, 0, 0, 0), (_ABOVE, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL),  # x32
        (_EQUAL, 0, 1, numbers["clone3"]), (_RETURN, 0, 0, _ERRNO | 38),  # its flags lie in memory: ask for clone
        (_EQUAL, 0, 4, numbers["clone"]), (_LOAD, 0, 0, 16), (_BITS, 0, 1, CLONE_THREAD), (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | 1),
        (_EQUAL, 0, 1, numbers["ioctl"]), (_RETURN, 0, 0, _ERRNO | 25),  # ENOTTY: nothing here is a terminal
    ]  # fmt: skip
    for number in allowed:
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    code.append((_RETURN, 0, 0, _ERRNO | 1))
    return b"".join(struct.pack("HBBI", *line) for line in code)


def install(program):
    """Put the filter on this process, for good."""
    check(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    check(libc.prctl(PR_SET_SECCOMP, 2, header, 0, 0), "seccomp")


# Limits.


def limit(cpu_seconds, memory_bytes, file_bytes=16 << 20):
    """CPU time, address space, file size, open files, no core. The first process of a namespace dies of SIGKILL only."""
    whole = max(1, -int(-cpu_seconds // 1))
    limits = {
        resource.RLIMIT_CPU: (whole, whole),
        resource.RLIMIT_AS: (memory_bytes, memory_bytes),
        resource.RLIMIT_FSIZE: (file_bytes, file_bytes),
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
    }
    for name, value in limits.items():
        resource.setrlimit(name, value)
