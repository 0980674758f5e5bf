"""A message that names the file that was cut, where the system would end the process without one (SIGBUS).

The weights of a model are read through a memory map. When such a file is cut, a read beyond the cut raises SIGBUS,
which ends the process. So does memory that is shared through a full file system (`/dev/shm`). A handler of Python's
runs only after the instruction that failed, which never ends. So this one is C's: it runs in the middle of that
instruction, says what it can, and ends the process.
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
    """Inside, a bus error ends the process with the message and the exit code of the error that `check` raises.

    If `check` raises nothing, the signal ends the process as usual. There is one handler for a process: a call inside
    another one replaces it meanwhile.
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
        library.signal(number, None)  # the default; the instruction fails once more, and ends the process

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(answer)
    before = library.signal(signal.SIGBUS, ctypes.cast(handler, ctypes.c_void_p))
    try:
        yield
    finally:
        library.signal(signal.SIGBUS, before)
