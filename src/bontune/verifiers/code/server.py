"""A fork server: it forks one isolated child per job, and that child runs a candidate's program or its tests.

Started by path with -I -S; two of them make a worker. The one that forks candidates never sees tests. Standard library
only. Control messages are JSON lines on descriptor 3; a job brings the link between candidate and tests, and for tests
the socket of the verdict, as descriptors.
"""

import array
import ast
import builtins
import collections
import gc
import importlib
import json
import linecache
import os
import select
import selectors
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
LIBRARIES = {
    **{name: name for name in (*COMMON, "json", "asyncio", "uuid", "pathlib", "array", "numpy", "pandas")},
    "np": "numpy", "pd": "pandas",
}  # fmt: skip
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
    without_sockets()
    if settings["role"] == "tests":
        run_tests(job, link, verdict)
    else:
        run_candidate(job, link)
    os._exit(0)


def without_sockets():
    """Let asyncio work where sockets and epoll are refused: its loop wakes itself by a pipe, and polls."""
    selectors.DefaultSelector = selectors.PollSelector
    socket.socketpair = pipe_pair


def pipe_pair(*_, **__):
    """A pipe, as the two ends of what asyncio uses it for: one is read, the other written."""
    return tuple(End(handle) for handle in os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))


class End:
    """One end of a pipe with the methods of a socket that a loop calls."""

    def __init__(self, handle):
        self._handle = handle

    def fileno(self):
        return self._handle

    def setblocking(self, flag):
        """It never blocks."""

    def recv(self, size):
        return os.read(self._handle, size)

    def send(self, data):
        return os.write(self._handle, data)

    def close(self):
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1


# The candidate's side. Whatever happens here, it can only give values or end.


def run_candidate(job, link):
    """Execute the program as a module of its own, then answer what the tests ask."""

    def send(data):
        while data:
            data = data[os.write(link, data) :]

    space = module("candidate", job["program"]).__dict__
    try:
        exec(compile(job["program"], "<candidate>", "exec"), space)
    except BaseException as fault:
        send(codec.encoded({"broken": describe(fault)}))
        return
    send(codec.encoded({"ready": True}))
    while True:
        asked = codec.read(lambda n: os.read(link, n))
        if asked is None:
            return
        send(answer(asked, space))


def module(name, source):
    """A new module, known to pickle, dataclasses and inspect."""
    found = sys.modules[name] = types.ModuleType(name)
    linecache.cache[f"<{name}>"] = (len(source), None, source.splitlines(keepends=True), f"<{name}>")
    found.__dict__["__builtins__"] = builtins
    return found


def answer(asked, space):
    """The bytes of the reply to a question."""
    if "get" in asked:
        value = space.get(asked["get"])
        plain = asked["get"] in space and (not callable(value) or codec.is_known_type(value))
        return codec.encoded(packed(value) if plain else {"function": True})
    if "next" in asked:
        return portion(codec.HELD[asked["next"]], asked["count"])
    if "truth" in asked:
        return outcome(lambda: bool(codec.HELD[asked["truth"]]), {})
    if "await" in asked:
        return outcome(lambda: __import__("asyncio").run(codec.HELD[asked["await"]]), {})
    before = {**dict(enumerate(asked["args"])), **asked["kwargs"]}
    given = {key: codec.unpack(item) for key, item in before.items()}
    places = {key: (given[key], item) for key, item in before.items() if isinstance(item, list)}
    arguments = [given[place] for place in range(len(asked["args"]))]
    named = {key: given[key] for key in asked["kwargs"]}

    def call():
        function = space.get(asked["call"])
        return (eval(asked["call"], space) if function is None else function)(*arguments, **named)

    return outcome(call, places)


def packed(value):
    """The part of a reply that holds a value, or a stand-in for it."""
    try:
        reply = {"result": codec.pack(value, False)}
        codec.encoded(reply)
    except codec.Unproxyable:
        reply = {"result": codec.too_large(value)}
    return reply


def outcome(call, places):
    """What a call returned or raised, and which of its arguments it has changed."""
    try:
        reply = packed(call())
    except BaseException as fault:
        reply = {"raised": describe(fault)}
    try:
        after = {str(key): codec.pack(value, False) for key, (value, _) in places.items()}
        changed = {key: after[str(key)] for key, (_, before) in places.items() if after[str(key)] != before}
        return codec.encoded({**reply, "changed": changed} if changed else reply)
    except codec.Unproxyable:
        return codec.encoded({"large": True})
    except BaseException as fault:
        return codec.encoded({"raised": describe(fault)})


def portion(iterator, count):
    """Up to `count` items of an iterator, and what ended it."""
    items, end = [], None
    try:
        while len(items) < count:
            items.append(codec.pack(next(iterator), False))
    except StopIteration:
        end = {"stop": True}
    except BaseException as fault:
        end = {"raised": describe(fault)}
    try:
        return codec.encoded({"result": ["l", items], "end": end})
    except codec.Unproxyable:
        return codec.encoded({"large": True})


def describe(fault):
    """{"kinds": names of the exception's classes that others know, "text", "args"}."""
    kinds = [
        f"{kind.__module__}.{kind.__name__}" for kind in type(fault).__mro__ if kind.__module__ != "candidate"
    ]
    held = len(codec.HELD)
    try:
        arguments = codec.pack(tuple(fault.args), False)
        codec.encoded({"args": arguments})
    except BaseException:
        arguments = None
    if len(codec.HELD) > held:  # they hold what does not cross
        arguments = None
    return {"kinds": kinds, "text": shown(fault), "args": arguments}


def shown(fault):
    """The text of an exception."""
    try:
        return str(fault)[:500]
    except BaseException:
        return ""


def builtin(kinds):
    """The nearest builtin class among the names of an exception's classes."""
    return next((str(name)[9:] for name in kinds if str(name).startswith("builtins.")), "Exception")


# The tests' side.


class Gone(BaseException):
    """The candidate's process has ended."""


class Candidate:
    """What the tests call: arguments go out, values come back."""

    def __init__(self, link):
        self._link, self.last, self.notes = link, "", []
        codec.ask = self.ask

    def read(self):
        try:
            message = codec.read(lambda n: os.read(self._link, n))
        except (OSError, ValueError, RecursionError) as fault:
            raise Gone(f"a reply that cannot be read: {fault}") from None
        if not isinstance(message, dict):
            raise Gone("no reply")
        return message

    def ask(self, question, given=()):
        """The value of the reply, with changes made to what was `given`; raises what the candidate raised."""
        reply = self._reply(question)
        try:
            for key, value in reply.get("changed", {}).items():
                update(given[key], codec.unpack(value))
            raised = self.exception(reply["raised"]) if "raised" in reply else None
            result = None if raised is not None else codec.unpack(reply["result"])
            if "next" in question:
                end = reply["end"]
                result = (
                    result,
                    end and (StopIteration() if "stop" in end else self.exception(end["raised"])),
                )
        except _MALFORMED as fault:
            raise Gone(f"a reply that is none: {fault}") from None
        if raised is not None:
            raise raised
        return result

    def _reply(self, question):
        try:
            codec.write(lambda data: os.write(self._link, data), question)
        except OSError:
            raise Gone("no one to ask") from None
        reply = self.read()
        if "large" in reply:
            raise codec.Unproxyable("a value too large to cross")
        return reply

    def named(self, name):
        """What a name means that the tests use and do not define: a library, or what the candidate has under it."""
        home = LIBRARIES.get(name)
        reply = self._reply({"get": name})
        try:
            value = codec.unpack(reply["result"]) if "result" in reply else Function(self, name)
        except _MALFORMED as fault:
            raise Gone(f"a reply that is none: {fault}") from None
        if home is None or codec.is_known_type(value):  # as by `from datetime import datetime`
            return value
        return importlib.import_module(home)

    def exception(self, raised):
        """The exception of the nearest class that is known here; those that would end the tests become plain ones."""
        self.last = builtin(raised["kinds"])
        arguments = (raised["text"],) if raised["args"] is None else codec.unpack(raised["args"])
        for name in raised["kinds"]:
            home, _, attribute = str(name).rpartition(".")
            if home.partition(".")[0] in sys.stdlib_module_names:
                kind = getattr(sys.modules.get(home), attribute, None)
                if isinstance(kind, type) and issubclass(kind, Exception):
                    fault = kind.__new__(kind, *arguments)
                    fault.args = tuple(arguments)
                    return fault
        return Exception(str(raised["text"]))


_MALFORMED = (
    KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, ArithmeticError, AssertionError,
)  # fmt: skip


class Function:
    """Stands in for a function of the candidate; what else could be done with one is undecided."""

    def __init__(self, candidate, name):
        self._candidate, self.__name__ = candidate, name

    def __call__(self, *args, **kwargs):
        packed_ = (
            [codec.pack(item, True) for item in args],
            {key: codec.pack(item, True) for key, item in kwargs.items()},
        )
        given = {**{str(place): item for place, item in enumerate(args)}, **kwargs}
        return self._candidate.ask({"call": self.__name__, "args": packed_[0], "kwargs": packed_[1]}, given)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise codec.Unproxyable(f"the tests use {name} of the candidate's {self.__name__}")

    def __instancecheck__(self, value):
        raise codec.Unproxyable(f"the tests ask whether a value is a {self.__name__} of the candidate")


def update(mine, theirs):
    """Give a changed container back to who passed it."""
    if type(mine) is not type(theirs):
        return
    if type(mine).__module__ == "numpy":
        if getattr(mine, "shape", ()) and (mine.shape, mine.dtype) == (theirs.shape, theirs.dtype):
            mine[...] = theirs
    elif isinstance(mine, list | bytearray):
        mine[:] = theirs
    elif isinstance(mine, dict | set):
        mine.clear()
        (dict if isinstance(mine, dict) else set).update(mine, theirs)  # pyright: ignore
    elif isinstance(mine, collections.deque):
        mine.clear()
        mine.extend(theirs)


def run_tests(job, link, verdict):
    """Define the tests, let them check the candidate, and send what came of it."""
    candidate = Candidate(link)
    try:
        found = check_candidate(job, candidate)
    except Gone as fault:
        found = {"verdict": "gone", "reason": str(fault)}
    except MemoryError as fault:
        ours = candidate.last != "MemoryError" and not isinstance(fault, codec.Endless)
        found = {"verdict": "undecided" if ours else "fail", "reason": "out of memory", "last": "MemoryError"}
        found["fault"] = "memory"
    except BaseException as fault:
        kind = builtin([f"{kind.__module__}.{kind.__name__}" for kind in type(fault).__mro__])
        found = {"verdict": "fail", "reason": f"{kind}: {shown(fault)}"[:300], "last": candidate.last}
        if kind == "TypeError" and "catching classes that do not inherit" in shown(fault):
            codec.TROUBLE.append("the tests catch an exception of the candidate's own")
    if codec.TROUBLE and found["verdict"] in ("pass", "fail") and not candidate.notes:
        found = {"verdict": "undecided", "reason": f"cannot be proxied: {codec.TROUBLE[0]}"[:300]}
        found["fault"] = "no-data"
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
        return {
            "verdict": "undecided",
            "reason": f"the tests cannot be read: {fault}"[:300],
            "fault": "tests",
        }
    first = candidate.read()
    if "broken" in first:
        kind, text = builtin(first["broken"]["kinds"]), first["broken"]["text"]
        candidate.last = kind
        return {"verdict": "fail", "reason": f"the program raised {kind}: {text}"[:300], "last": kind}
    space = module("tests", job["tests"]).__dict__
    for name in free_names(tree) - {job["entry_point"]}:
        space[name] = candidate.named(name)
    entry = space[job["entry_point"]] = Function(candidate, job["entry_point"].strip())
    exec(code, space)
    if "check" not in space or not callable(space["check"]):
        return {"verdict": "undecided", "reason": "the tests define no check(candidate)", "fault": "tests"}
    check = space["check"]
    if "check" in getattr(
        getattr(check, "__code__", None), "co_names", ()
    ):  # they call the candidate's of that name
        space["check"] = candidate.named("check")
    result = check(entry)
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
