"""A fork server: it forks one isolated child per job, and that child runs a candidate's program or its tests.

Started by path with -I -S; two of them make a worker. The one that forks candidates never sees tests. Standard library
only. Control messages are JSON lines on descriptor 3; a job brings the link between candidate and tests, and for tests
the socket of the verdict, as descriptors.
"""

import array
import ast
import builtins
import gc
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import types

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import codec  # noqa: E402  # pyright: ignore
import isolation  # noqa: E402  # pyright: ignore

sys.path.remove(HERE)

COMMON = (
    "math", "re", "collections", "itertools", "functools", "typing", "heapq", "string", "random", "bisect", "copy",
    "operator", "datetime", "decimal", "fractions", "statistics", "hashlib", "textwrap", "dataclasses", "enum", "abc",
    "cmath", "sys", "threading", "traceback", "unittest", "numbers", "queue", "time",
)  # fmt: skip
TMP_BYTES = 64 << 20
MOST_NOTE = 4000  # characters


def main():
    """Set up the isolation all children share, say so, and serve until the control socket closes."""
    settings = json.loads(sys.argv[1])
    control = socket.socket(fileno=3)
    isolation.libc.prctl(isolation.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    for name in COMMON:
        __import__(name)
    sys.set_int_max_str_digits(0) if settings["role"] == "tests" else None
    try:
        filter_ = prepare(settings)
    except Exception as fault:
        control.sendall(json.dumps({"failed": str(fault) or type(fault).__name__}).encode() + b"\n")
        return
    gc.collect()
    gc.freeze()
    control.sendall(b'{"ready": true}\n')
    inbox = Inbox(control)
    while True:
        message, handles = inbox.next()
        if message is None:
            return
        if "end" in message:
            continue
        report = one_job(control, inbox, settings, filter_, message, handles)
        control.sendall(json.dumps(report).encode() + b"\n")


def prepare(settings):
    """Enter what is entered once; returns the seccomp program, None without isolation."""
    if settings["backend"] == "none":
        return None
    if os.getuid() == 0 and settings["drop"]:
        os.setgroups([])
        os.setresgid(isolation.NOBODY, isolation.NOBODY, isolation.NOBODY)
        os.setresuid(isolation.NOBODY, isolation.NOBODY, isolation.NOBODY)
        isolation.check(isolation.libc.prctl(isolation.PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")
    if settings["backend"] == "namespaces":
        isolation.enter_namespaces(settings["readable"], settings["root"])
    else:
        isolation.landlock_version()
    return isolation.seccomp_filter()


class Inbox:
    """Messages of the control socket, a line each, and the descriptors that came with the jobs among them."""

    def __init__(self, control):
        self._control, self._data, self._handles = control, b"", []

    def pending(self):
        """Whether a whole message has been received already."""
        return b"\n" in self._data

    def next(self):
        """(message, descriptors), or (None, []) where the other side is gone."""
        while b"\n" not in self._data:
            part, ancillary, _, _ = self._control.recvmsg(1 << 16, socket.CMSG_SPACE(8 * 4))
            for _, kind, content in ancillary:
                if kind == socket.SCM_RIGHTS:
                    found = array.array("i")
                    found.frombytes(content[: len(content) - len(content) % found.itemsize])
                    self._handles += list(found)
            if not part:
                return None, []
            self._data += part
        line, _, self._data = self._data.partition(b"\n")
        message, handles = json.loads(line), []
        if "end" not in message:
            handles, self._handles = self._handles, []
        return message, handles


def one_job(control, inbox, settings, filter_, job, handles):
    """Fork the child, wait until it ends or the parent wants it ended; how it went."""
    temporary = tempfile.mkdtemp(dir=settings["temporary"]) if settings["backend"] != "namespaces" else "/tmp"
    pid = isolation.fork_in_namespace() if settings["backend"] == "namespaces" else os.fork()
    if pid == 0:
        try:
            control.close()
            child(settings, filter_, job, handles, temporary)
        finally:
            os._exit(70)
    for handle in handles:
        os.close(handle)
    watch = os.pidfd_open(pid)
    ended = ends_by_itself(watch, control, inbox)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    os.close(watch)
    if settings["backend"] != "namespaces":
        shutil.rmtree(temporary, ignore_errors=True)
    by_signal = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return {
        "id": job["id"],
        "by_itself": ended or by_signal != signal.SIGKILL,  # our signal may come when it has begun to end
        "signal": by_signal,
        "status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "cpu": usage.ru_utime + usage.ru_stime,
    }


def ends_by_itself(watch, control, inbox):
    """Wait until the child has ended, or the parent wants it ended; whether it did so by itself.

    A process that dies closes its sockets first and is gone a little later, on a loaded machine much later. The parent
    may have seen the one before the other has come about, so it says how many seconds of grace the child has.
    """
    if not inbox.pending() and watch in select.select([watch, control.fileno()], [], [])[0]:
        return True
    message, _ = inbox.next()
    grace = 0 if message is None else message["grace"]
    return bool(select.select([watch], [], [], grace)[0])


def child(settings, filter_, job, handles, temporary):
    """Isolate, then run. Never returns."""
    link = os.dup2(handles[0], 10, inheritable=False)
    verdict = os.dup2(handles[1], 11, inheritable=False) if len(handles) > 1 else None
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, 10)
    os.closerange(12 if verdict is not None else 11, 64)
    gc.enable()
    sys.argv = [""]
    sys.path[:] = settings["path"]
    os.environ.clear()
    os.environ.update(
        HOME=temporary, TMPDIR=temporary, PATH="/usr/bin", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1"
    )
    tempfile.tempdir = None
    if settings["backend"] == "namespaces":
        isolation.private_tmp(TMP_BYTES)
    os.chdir(temporary)
    isolation.limit(job["cpu_seconds"], job["memory_bytes"])
    if settings["backend"] == "landlock":
        readable = [*settings["readable"], *isolation.DEVICES]
        isolation.restrict_paths(readable, [temporary, "/dev/null"])
    if filter_ is not None:
        isolation.drop_capabilities()
        isolation.install(filter_)
    if settings["role"] == "tests":
        run_tests(job, link, verdict)
    else:
        run_candidate(job, link)
    os._exit(0)


# The candidate's side. Whatever happens here, it can only give values or end.


def run_candidate(job, link):
    """Execute the program, then answer calls by name."""

    def send(message):
        codec.write(lambda data: os.write(link, data), message)

    space = {"__name__": "candidate", "__builtins__": builtins}
    try:
        exec(compile(job["program"], "<candidate>", "exec"), space)
    except BaseException as fault:
        send({"broken": describe(fault)})
        return
    send({"ready": True})
    while True:
        asked = codec.read(lambda n: os.read(link, n))
        if asked is None:
            return
        arguments, named = codec.unpack(asked["args"]), codec.unpack(asked["kwargs"])
        try:
            result = space[asked["call"]](*arguments, **named)
            reply = {"result": codec.pack(result, False), "args": codec.pack(arguments, False)}
        except BaseException as fault:
            reply = {"raised": describe(fault), "args": None}
        try:
            send(reply)
        except codec.Unproxyable as fault:
            send({"raised": ["ValueError", str(fault)], "args": None})


def describe(fault):
    """[name of the nearest builtin exception, text]."""
    names = [kind.__name__ for kind in type(fault).__mro__ if kind.__module__ == "builtins"]
    try:
        text = str(fault)[:500]
    except BaseException:
        text = ""
    return [names[0] if names else "Exception", text]


# The tests' side.


class Gone(BaseException):
    """The candidate's process has ended."""


class Candidate:
    """What the tests call: arguments go out, values come back."""

    def __init__(self, link):
        self._link, self.last, self.notes = link, "", []

    def read(self):
        try:
            message = codec.read(lambda n: os.read(self._link, n))
        except (OSError, ValueError, RecursionError) as fault:
            raise Gone(f"a reply that cannot be read: {fault}") from None
        if not isinstance(message, dict):
            raise Gone("no reply")
        return message

    def function(self, name):
        """A stand-in for the candidate's function of that name."""

        def call(*args, **kwargs):
            try:
                codec.write(
                    lambda data: os.write(self._link, data),
                    {"call": name, "args": codec.pack(list(args), True), "kwargs": codec.pack(kwargs, True)},
                )
            except OSError:
                raise Gone("no one to ask") from None
            reply = self.read()
            try:
                if "raised" in reply:
                    kind, text = reply["raised"]
                    self.last = str(kind)
                    raise exception(str(kind))(str(text))
                result = codec.unpack(reply["result"])
                update_arguments(args, codec.unpack(reply["args"]))
            except (KeyError, TypeError, ValueError, IndexError, RecursionError, OverflowError) as fault:
                if "raised" in reply:
                    raise
                raise Gone(f"a reply that is none: {fault}") from None
            return result

        call.__name__ = name
        return call


def exception(name):
    """A builtin exception class that tests may expect; those that would end the tests become plain ones."""
    found = getattr(builtins, name, None)
    if (
        isinstance(found, type)
        and issubclass(found, Exception)
        and not issubclass(found, UnicodeError | OSError)
    ):
        return found
    return Exception


def update_arguments(sent, returned):
    """Give changed lists, dictionaries and sets back to who passed them."""
    if not isinstance(returned, list) or len(returned) != len(sent):
        return
    for mine, theirs in zip(sent, returned, strict=True):
        if type(mine) is not type(theirs) or type(mine) not in (list, dict, set) or same(mine, theirs):
            continue
        mine.clear()
        mine.extend(theirs) if type(mine) is list else mine.update(theirs)


def same(a, b):
    try:
        return bool(a == b)
    except Exception:
        return True


def run_tests(job, link, verdict):
    """Define the tests, let them check the candidate, and send what came of it."""
    candidate = Candidate(link)
    try:
        found = check_candidate(job, candidate)
    except Gone as fault:
        found = {"verdict": "gone", "reason": str(fault)}
    except codec.Unproxyable as fault:
        found = {"verdict": "undecided", "reason": f"cannot be proxied: {fault}"}
    except MemoryError:
        of_tests = candidate.last != "MemoryError"
        found = {
            "verdict": "undecided" if of_tests else "fail",
            "reason": "out of memory",
            "last": candidate.last,
        }
    except BaseException as fault:
        kind, text = describe(fault)
        found = {"verdict": "fail", "reason": f"{kind}: {text}"[:300], "last": candidate.last}
    if candidate.notes:
        found["notes"] = candidate.notes  # pyright: ignore
    codec.write(lambda data: os.write(verdict, data), found)


def check_candidate(job, candidate):
    """Run check(candidate). Faults of the tests themselves are told apart from assertions.

    A check that is a generator yields texts, which are kept whatever becomes of the candidate later.
    """
    try:
        tree = ast.parse(job["tests"])
        code = compile(tree, "<tests>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as fault:
        return {"verdict": "undecided", "reason": f"the tests cannot be read: {fault}"[:300]}
    first = candidate.read()
    if "broken" in first:
        kind, text = first["broken"]
        candidate.last = str(kind)
        return {"verdict": "fail", "reason": f"the program raised {kind}: {text}"[:300], "last": str(kind)}
    space = {"__name__": "tests", "__builtins__": builtins}
    for name in free_names(tree):
        space[name] = __import__(name) if name in COMMON else candidate.function(name)
    entry = space[job["entry_point"]] = candidate.function(job["entry_point"])
    exec(code, space)
    if "check" not in space or not callable(space["check"]):
        return {"verdict": "undecided", "reason": "the tests define no check(candidate)"}
    result = space["check"](entry)
    if isinstance(result, types.GeneratorType):
        for note in result:
            candidate.notes.append(str(note)[:MOST_NOTE])
    return {"verdict": "pass", "reason": ""}


def free_names(tree):
    """Names that the tests use and do not define: functions of the program, such as helpers of the prompt."""
    used, bound = set(), set(dir(builtins)) | {"check", "candidate"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    return used - bound


if __name__ == "__main__":
    main()
