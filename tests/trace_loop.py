"""Count how often a pair's way through the loop changes file: `python tests/trace_loop.py [CHECKOUT] [--calls]`.

One list of two pairs is reranked by a tiny model. From the first call of the loop until the run's last rows are
written, each call of a function of `rerank_cli` is noted, per thread; a change is a call in another file than the call
before. Not counted: comprehensions and lambdas, which stand where they are called, and the forward pass (`models/`),
which is the same for every loop. Whoever follows a pair with a finger opens another file so many times.

The second figure is of somebody who reads the loop alone, and takes encoder, engine, formats, journal and report at
their word: the calls that a function in `job/` makes into another file.
"""

# ruff: noqa: T201 (a script)

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

_FIRST = ("score_windows", "Run.execute")  # the loop today, and before it was a generator
_LAST = ("WindowWriter.finish", "Work._finish")
_ROWS = {"query": "two roads", "passages": ["in a yellow wood", "sorry i could not travel both"]}


def trace(tree: Path) -> dict[str, list[tuple[str, str, str]]]:
    """File, name and caller's file of each function that is called inside the loop, by thread."""
    sys.path.insert(0, str(tree))
    from rerank_cli.cli import main

    root = str(tree / "rerank_cli") + "/"
    found: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    inside = False

    def note(frame: FrameType, event: str, _argument: Any) -> None:
        nonlocal inside
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(root):
            return
        inside = (inside or code.co_qualname in _FIRST) and code.co_qualname not in _LAST
        if inside and "<" not in code.co_name and "/models/" not in code.co_filename:
            caller = frame.f_back
            while caller and not caller.f_code.co_filename.startswith(root):
                caller = caller.f_back
            before = caller.f_code.co_filename.removeprefix(root) if caller else ""
            call = code.co_filename.removeprefix(root), code.co_qualname, before
            calls = found[threading.current_thread().name]
            if not calls or calls[-1][:2] != call[:2]:  # a generator is called anew for each item
                calls.append(call)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.jsonl")
        source.write_text(json.dumps(_ROWS) + "\n")
        model = tree / "tests/parity/bert-ce-open/checkpoint"
        command = ["rerank-file", str(source), "-o", f"{folder}/out.jsonl", "--quiet", "--model", str(model)]
        threading.setprofile(note)
        sys.setprofile(note)
        try:
            assert main(command) == 0
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    return found


def changes(calls: list[tuple[str, str, str]]) -> int:
    """How many of `calls` are in another file than the one before."""
    return sum(before[0] != after[0] for before, after in pairwise(calls))


def calls_out(calls: list[tuple[str, str, str]]) -> int:
    """How many of `calls` are made in `job/` into another file."""
    return sum(before.startswith("job/") and before != file for file, _, before in calls)


def main() -> None:
    """Print the figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tree", type=Path, nargs="?", default=Path(__file__).parents[1])
    parser.add_argument("--calls", action="store_true", help="print every call, those that change file with a star")
    given = parser.parse_args()
    found = trace(given.tree.resolve())
    for thread, calls in found.items():
        print(f"{thread}: {changes(calls)} changes of file in {len(calls)} calls, {calls_out(calls)} calls out of job/")
        if given.calls:
            for before, call in zip([("", "", ""), *calls], calls, strict=False):
                print(f"  {'*' if call[0] != before[0] else ' '} {call[0]}: {call[1]}")
    least = sum(len({file for file, *_ in calls}) - 1 for calls in found.values())
    print(
        f"{sum(map(changes, found.values()))} changes of file (if each thread opened each of its files once: {least}); "
        f"{sum(map(calls_out, found.values()))} calls out of job/"
    )


if __name__ == "__main__":
    main()
