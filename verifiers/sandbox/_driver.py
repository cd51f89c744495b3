"""What runs in a job's own process: its script, its calls or its session, and nothing that knows a verdict.

Runs inside the sandbox. All that it writes is data that the job could have written itself.
Frames on both pipes are a letter, a length of 4 bytes and so many bytes.
"""

from __future__ import annotations

import ast
import atexit
import base64
import builtins
import io
import itertools
import json
import linecache
import os
import resource
import struct
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any

from verigym.verifiers.sandbox import values

RESULTS, REQUESTS = 3, 4  # the descriptors of the two pipes
MAX_ERROR = 500
MAX_TRACEBACK = 16384

_lock = threading.RLock()


def send(kind: bytes, text: str = "") -> None:
    """One frame to the supervisor."""
    body = text.encode("utf-8", "replace")
    frame = memoryview(struct.pack(">cI", kind, len(body)) + body)
    while frame:
        frame = frame[os.write(RESULTS, frame) :]


def receive() -> Any:
    """The next frame's JSON; ends the process when there is none to come."""
    size = struct.unpack(">I", _read(5)[1:])[0]
    return json.loads(_read(size))


def _read(size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(REQUESTS, min(size - len(data), 1 << 20))
        if not chunk:
            os._exit(0)
        data += chunk
    return bytes(data)


def warm_up() -> None:
    """Does in the server what is the same for every job: each page that a job touches is copied for it."""
    _open_standard_streams()
    for name in [name for name in sys.modules if name.split(".")[0] == "verigym"]:
        del sys.modules[name]
    sys.argv = ["main.py"]


def main() -> None:
    """Does what the first request says; the process is shut in already."""
    request = receive()
    _prepare(request)
    send(b"B")
    kind = {"script": _run_script, "calls": _run_calls, "session": _run_session}[request["kind"]]
    kind(request)


def _prepare(request: dict[str, Any]) -> None:
    for name, content in request["files"].items():
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "wb") as file:
            file.write(base64.b64decode(content))
    _give_standard_input(base64.b64decode(request["stdin"]))
    resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)  # as in any Python before 3.11; CPU time is limited anyway
    sys.path.insert(0, os.getcwd())


def _give_standard_input(content: bytes) -> None:
    if not content:
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)
        return
    with tempfile.TemporaryFile(dir=".") as file:  # as judges give it: contest programs read what os.fstat tells
        file.write(content)
        file.seek(0)
        os.dup2(file.fileno(), 0)
    sys.stdin = sys.__stdin__ = _stream(0, "r", errors="surrogateescape")  # type: ignore[misc]


def _open_standard_streams() -> None:
    sys.stdin = sys.__stdin__ = _stream(0, "r", errors="surrogateescape")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "w", errors="surrogateescape")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, "w", errors="backslashreplace", buffering=1)  # type: ignore[misc]


def _stream(descriptor: int, mode: str, **options: Any) -> Any:
    return open(descriptor, mode, encoding="utf-8", closefd=False, **options)


def _module(name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__dict__.update(__builtins__=builtins, __file__="main.py")
    sys.modules[name] = module
    return module


def _compile(source: str, name: str = "main.py") -> types.CodeType:
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    try:
        return compile(source, name, "exec", dont_inherit=True)
    except MemoryError:  # what the parser says of too deep a nesting
        raise SyntaxError("too deeply nested to be compiled") from None


# a script


def _run_script(request: dict[str, Any]) -> None:
    code = 0
    try:
        exec(_compile(request["source"]), _module("__main__").__dict__)
    except SystemExit as end:
        code = _exit_code(end)
    except BaseException as error:
        code = 1
        _report(error)
    _end(code)


def _exit_code(end: SystemExit) -> int:
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return int(end.code) & 0xFF
    print(end.code, file=sys.stderr)
    return 1


def _report(error: BaseException) -> None:
    """Prints the traceback, without our own frames."""
    if isinstance(error, MemoryError):
        send(b"M")
    trace = error.__traceback__.tb_next if error.__traceback__ else None
    text = "".join(traceback.format_exception(type(error), error, trace))
    if len(text) > MAX_TRACEBACK:
        text = f"{text[: MAX_TRACEBACK // 2]}\n...\n{text[-MAX_TRACEBACK // 2 :]}"
    sys.stderr.write(text)


def _end(code: int) -> None:
    """Ends the process as an interpreter does: threads, exit functions, buffers."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException as error:
        code = code or 1
        _report(error)
    os._exit(code)


# calls


def _run_calls(request: dict[str, Any]) -> None:
    module = _module("solution")
    _add_proxies(module, request["proxies"])
    try:
        exec(_compile(request["source"]), module.__dict__)
    except BaseException as error:
        _report(error)
        send(b"I", describe(error))
        _end(1)
    for call in request["calls"]:
        _call(module, call)
    _flush()
    send(b"D")
    os._exit(0)


def _call(module: types.ModuleType, call: dict[str, str]) -> None:
    try:
        args, kwargs = values.from_text(call["arguments"], allow_nonfinite=True)
        text = values.to_text(_find(module, call["function"])(*args, **kwargs))
    except values.NotPlain as error:
        send(b"X", str(error)[:MAX_ERROR])
    except BaseException as error:
        if isinstance(error, MemoryError):
            send(b"M")
        send(b"X", describe(error))
    else:
        send(b"R", text)


def _find(module: types.ModuleType, path: str) -> Callable[..., Any]:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name.removesuffix("()"))
        if name.endswith("()"):
            found = found()
    if found is module:
        raise AttributeError(path)
    return found  # type: ignore[no-any-return]


def describe(error: BaseException) -> str:
    """`ValueError: ...`, bounded, whatever the exception's own methods do."""
    try:
        return f"{type(error).__name__}: {error}"[:MAX_ERROR]
    except BaseException:
        return "an exception that cannot be printed"


def _flush() -> None:
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # the job may have put anything in their place
        return


def _add_proxies(module: types.ModuleType, names: list[str]) -> None:
    for name in names:
        module.__dict__[name] = _proxy(name)


def _proxy(name: str) -> Callable[..., Any]:
    def proxy(*args: Any, **kwargs: Any) -> Any:
        with _lock:
            send(b"P", json.dumps([name, values.to_text((args, kwargs))]))
            reply = receive()
        if reply["ok"]:
            return values.from_text(reply["value"], allow_nonfinite=True)
        raise _exception(reply["error"])

    proxy.__name__ = proxy.__qualname__ = name
    return proxy


def _exception(text: str) -> Exception:
    """An exception of the named built-in type, so that `except ValueError` holds across the border."""
    name, _, message = text.partition(": ")
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # UnicodeDecodeError and the like want more
            return RuntimeError(text)
    return RuntimeError(text)


# a session


def _run_session(request: dict[str, Any]) -> None:
    module = _module("__main__")
    _add_proxies(module, request["proxies"])
    for turn in itertools.count(1):
        sys.stdin = io.StringIO()
        step = receive()
        if "source" in step:
            _execute(step["source"], module, turn)
        else:
            _call(module, step)
        _flush()
        send(b"T", str(turn))


def _execute(source: str, module: types.ModuleType, turn: int) -> None:
    """As a REPL: the value of a last expression is printed."""
    name = f"<input {turn}>"
    try:
        tree = ast.parse(source, name)
        linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec", dont_inherit=True), module.__dict__)
        if isinstance(last, ast.Expr):
            expression = ast.Expression(last.value)
            value = eval(compile(expression, name, "eval", dont_inherit=True), module.__dict__)
            if value is not None:
                print(repr(value))
    except BaseException as error:
        _report(error)
        send(b"I", describe(error))
