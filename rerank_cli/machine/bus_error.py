"""SIGBUS says which file was cut, where the system would only end the process.

The weights of a model are read through a memory map. When such a file is cut, what was behind the cut is gone, and the
next read of it ends the process: the system knows no milder answer. It does the same where memory is shared through a
file system that is full (`/dev/shm`). Python's own handlers run behind the instruction that failed, which is never, so
this one is C's, and runs in the midst of it: it says what it can say, and ends the process.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rerank_cli.errors import RerankError, printable

_UNKNOWN = "a bus error: a file that is mapped into memory was cut, or /dev/shm is full"


@contextmanager
def explaining_bus_errors(check: Callable[[], None]) -> Iterator[None]:
    """Inside, a bus error ends the process with the message and the exit code of what `check` raises.

    Where it raises nothing the process ends by the signal, as it would have. Once for a process: a call inside of
    another one takes its place for as long as it lasts.
    """
    library = ctypes.CDLL(None)
    library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

    def answer(number: int) -> None:
        try:
            check()
        except RerankError as error:
            lines = [f"error: {error.message}", *([error.hint] if error.hint else [])]
            os.write(2, "".join(f"{printable(line)}\n" for line in lines).encode())
            os._exit(error.exit_code)
        os.write(2, f"error: {_UNKNOWN}\n".encode())
        library.signal(number, None)  # the default; what failed is done again, and ends the process

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)
    before = library.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        library.signal(signal.SIGBUS, before)
