"""Compare what two checkouts of this program write: `python tests/same_bytes.py OLD_CHECKOUT NEW_CHECKOUT`.

A change that is not meant to change results must not change a byte of them. Every case below runs in both checkouts
with the Python that runs this script, on the same inputs (the samples and goldens of NEW_CHECKOUT), in folders of the
same name. Exit codes and all files are compared byte for byte; of reports and messages only times, speeds, memory and
paths may differ (`_DIFFERS`). Two kinds of case need two processes:

    killed     the run is ended by SIGKILL when its first windows are on disk, and run again in the same checkout
    left       the same, but OLD_CHECKOUT is killed and NEW_CHECKOUT goes on: same bytes, or a refusal by name

A checkout loads torch once: each case is a fork of a process that has imported it (`--serve`), and runs `python -m
rerank_cli` from there. All cases take about two minutes of one core. The exit code is 1 where something differs.
"""

# ruff: noqa: T201 (a script)

from __future__ import annotations

import argparse
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

_DIFFERS = {
    "seconds", "speed", "peak_rss_bytes", "memory", "timeline", "finished", "continued", "gflops",
    "modified_ns", "mtime_ns", "stat", "settled",
}  # fmt: skip
"""Keys of JSON documents that say when, how fast or where a run went."""

BERT = "tests/parity/bert-ce-open/checkpoint"
EMBEDDER = "tests/parity/nemotron-vl-embed-open/checkpoint"
VISION = "tests/parity/nemotron-vl-rerank-open/checkpoint"
DOCS, FLAT, PAIRS = "samples/python-docs.jsonl", "samples/python-docs-flat.jsonl", "samples/pairs.jsonl"
RERANK = ["rerank-file", "--overwrite"]
SCORE = ["score", "--overwrite"]

IN_PYTHON = """
import json, pandas as pd
from rerank_cli import Reranker
rows = [json.loads(line) for line in open("in/samples/python-docs-flat.jsonl")][:40]
lists = [json.loads(line) for line in open("in/samples/python-docs.jsonl")][:4]
with Reranker("in/{model}", device="cpu", {options}) as reranker:
    frame = pd.DataFrame([{{"query": r["query"], "passage": r["text"] if "text" in r else r["passage"]}} for r in rows])
    reranker.rerank(frame, top_n=4).to_json("frame.jsonl", orient="records", lines=True)
    json.dump(reranker.rerank(lists), open("lists.json", "w"))
    bad = [*lists[:2], {{"query": "q", "passages": [7]}}, lists[2]]
    json.dump(reranker.rerank(bad, on_error="keep", {more}), open("kept.json", "w"))
"""


@dataclass(frozen=True)
class Case:
    """A command line (paths in `in/` are NEW_CHECKOUT's), or a program.

    end: how the run is ended before it is run once more: not at all, `killed` or `left` (see the module's head).
    """

    name: str
    arguments: list[str] = field(default_factory=list)
    program: str = ""
    stdin: str = ""
    end: str = ""


def cases(root: Path) -> Iterator[Case]:  # noqa: PLR0915 (a table)
    """All cases. root: the checkout whose samples and goldens they use."""
    for meta in sorted((root / "tests/parity").glob("*-open/META.json")):
        golden = meta.parent
        source, model = f"in/tests/parity/{golden.name}/cases.jsonl", f"in/tests/parity/{golden.name}/checkpoint"
        seen = ["--image-root", f"in/tests/parity/{golden.name}"] if (golden / "images").exists() else []
        own = ["--text-field", "text", "--id-field", "id"] if "embed" in golden.name else []
        if own:  # single texts: each is its own query
            own += ["--query-field", "text"]
        for budget in ("1", "100000") if golden.name in ("bert-ce-open", "qwen3-reranker-open") else ("2048",):
            yield Case(
                f"golden-{golden.name}-{budget}",
                [*SCORE, source, "-o", "out.jsonl", "--model", model, "--token-budget", budget, *seen, *own],
            )
    docs = [f"in/{DOCS}", "--model", f"in/{BERT}"]
    flat = [f"in/{FLAT}", "--model", f"in/{BERT}"]
    qrels = ["--qrels", "in/samples/qrels.txt", "--metric", "nDCG@10", "--metric", "RR", "--per-query", "per.tsv"]
    yield Case("builtin", [*RERANK, f"in/{DOCS}", "-o", "out.jsonl", "--limit", "1"])
    yield Case("int8", [*SCORE, f"in/{FLAT}", "-o", "out.jsonl", "--precision", "int8", "--limit", "130", "--model",
               f"in/{BERT}", "--check-precision", "40"])  # fmt: skip
    yield Case("qrels", [*RERANK, *docs, "-o", "out.jsonl", *qrels])
    yield Case("page", [*RERANK, *docs, "-o", "out.jsonl", "--report", "page.json", "--limit", "9", "--verbose"])
    yield Case(
        "top", [*RERANK, *docs, "-o", "out.jsonl.gz", "--top-n", "3", "--threshold", "0", "--prob", "--limit", "30"]
    )
    yield Case("zstd", [*RERANK, *docs, "-o", "out.jsonl.zst", "--limit", "12"])
    yield Case("flat", [*RERANK, *flat, "-o", "out.jsonl", "--limit", "233", "--skip", "7"])
    yield Case("chunks", [*RERANK, *docs, "-o", "out.jsonl", "--truncate", "chunk", "--max-tokens", "48", "--pool",
               "mean", "--chunk-overlap", "9", "--limit", "3"])  # fmt: skip
    yield Case("too-long", [*RERANK, *docs, "-o", "out.jsonl", "--truncate", "error", "--max-tokens", "90"])
    yield Case("limit-of-errors", [*RERANK, *docs, "-o", "out.jsonl", "--truncate", "error", "--max-tokens", "90",
               "--max-errors", "2"])  # fmt: skip
    yield Case("engines", [*RERANK, *docs, "-o", "out.jsonl", "--engines", "2", "--limit", "10"])
    for number in (1, 2, 3):
        yield Case(f"shard-{number}", [*RERANK, *flat, "-o", "out.jsonl", "--shard", f"{number}/3", "--limit", "400"])
    for number in (1, 2):
        yield Case(f"shard-int8-{number}", [*SCORE, *flat, "-o", "out.jsonl", "--shard", f"{number}/2", "--precision",
                   "int8", "--limit", "200"])  # fmt: skip
    parquet = "in/samples/python-docs{}.parquet"
    yield Case("parquet", [*RERANK, parquet.format(""), "-o", "out.parquet", "--limit", "15", "--model",
               f"in/{BERT}"])  # fmt: skip
    yield Case("parquet-flat", [*RERANK, parquet.format("-flat"), "-o", "out.parquet", "--model", f"in/{BERT}", *qrels])
    yield Case("parquet-to-json", [*RERANK, parquet.format(""), "-o", "out.jsonl", "--limit", "9", "--model",
               f"in/{BERT}"])  # fmt: skip
    yield Case("json-to-parquet", [*RERANK, *docs, "-o", "out.parquet", "--limit", "7"])
    yield Case(
        "parquet-none", [*RERANK, parquet.format(""), "-o", "out.parquet", "--limit", "0", "--model", f"in/{BERT}"]
    )
    texts = ["--queries", "in/samples/queries.tsv", "--corpus", "in/samples/corpus.jsonl", "--model", f"in/{BERT}"]
    for out in ("out.trec", "out.jsonl"):
        yield Case(f"run-to-{out[4:]}", [*RERANK, "in/samples/bm25.trec", "-o", out, *texts])
    for shape in ("nim", "cohere", "openai-batch"):
        own = [f"in/samples/{shape}.jsonl", "-o", "out.jsonl", "--model", f"in/{BERT}"]
        yield Case(shape, [*RERANK, *own])
        yield Case(f"{shape}-as-list", [*RERANK, *own, "--out-format", "list"])
    yield Case("score", [*SCORE, f"in/{PAIRS}", "-o", "out.jsonl", "--model", f"in/{BERT}"])
    yield Case(
        "score-top", [*SCORE, *flat, "-o", "out.jsonl", "--top-n", "17", "--threshold", "-0.1", "--limit", "300"]
    )
    yield Case("score-piped", ["score", "-", "--model", f"in/{BERT}", "--top-n", "5", "--limit", "150"], stdin=FLAT)
    yield Case("score-streamed", ["score", "-", "--model", f"in/{BERT}", "--report", "report.json", "--limit", "200"],
               stdin=FLAT)  # fmt: skip
    yield Case("score-hurt", ["score", "hurt-pairs.jsonl", "--model", f"in/{BERT}", "-o", "-", "--limit", "120"])
    yield Case("rerank-piped", ["rerank-file", "-", "--model", f"in/{BERT}", "--errors", "errors.jsonl", "-o", "-",
               "--limit", "9"], stdin=DOCS)  # fmt: skip
    yield Case("hurt", [*RERANK, "hurt.jsonl", "-o", "out.jsonl", "--model", f"in/{BERT}", "--report", "page.html"])
    pages = ["in/samples/pages.jsonl", "--image-root", "in/samples", "-o", "out.jsonl", "--max-input-tiles", "2"]
    yield Case("pages", [*RERANK, *pages, "--model", f"in/{VISION}"])
    yield Case("pages-many", [*RERANK, "pages.jsonl", *pages[1:], "--model", f"in/{VISION}"])
    embeds = ["--model", f"in/{EMBEDDER}", "--embeddings", "vectors.parquet"]
    yield Case("pages-embedded", [*RERANK, *pages, "--model", f"in/{EMBEDDER}"])
    yield Case("embedded", [*SCORE, f"in/{FLAT}", "-o", "out.jsonl", "--limit", "130", *embeds])
    yield Case("embedded-piped", ["score", "-", "--limit", "99", *embeds], stdin=FLAT)
    yield Case("dry", ["rerank-file", *docs, "--dry-run", "--limit", "5", "-o", "out.jsonl", "--shape", "flat"])
    yield Case("refused", [*RERANK, *docs, "-o", "nowhere/out.jsonl"])
    for name, text in (("python", "{}"), ("python-cosine", "{}")):
        model = EMBEDDER if name.endswith("cosine") else BERT
        more = "" if name.endswith("cosine") else "prob=True"
        yield Case(name, program=IN_PYTHON.format(model=model, options="", more=text.format(more)))
    yield Case("python-int8", program=IN_PYTHON.format(model=BERT, options='precision="int8"', more=""))
    often = ["--checkpoint-every", "0s"]
    for end in ("killed", "left"):
        yield Case(f"{end}-lists", [*RERANK, *docs, "-o", "out.jsonl.gz", *often, *qrels], end=end)
        yield Case(f"{end}-top", [*SCORE, *flat, "-o", "out.jsonl", "--top-n", "9", "--limit", "300", *often], end=end)
        yield Case(f"{end}-parquet", [*SCORE, parquet.format("-flat"), "-o", "out.parquet", "--limit", "300",
                   "--model", f"in/{BERT}", *often], end=end)  # fmt: skip
        yield Case(f"{end}-hurt", [*SCORE, "hurt-pairs.jsonl", "-o", "out.jsonl", "--limit", "260",
                   "--model", f"in/{BERT}", *often], end=end)  # fmt: skip
        yield Case(f"{end}-int8", [*SCORE, *flat, "-o", "out.jsonl", "--precision", "int8", "--limit", "200",
                   "--check-precision", "100", *often], end=end)  # fmt: skip
        yield Case(
            f"{end}-embedded", [*SCORE, f"in/{FLAT}", "-o", "out.jsonl", "--limit", "200", *embeds, *often], end=end
        )
        yield Case(
            f"{end}-shard", [*SCORE, *flat, "-o", "out.jsonl", "--shard", "2/2", "--limit", "500", *often], end=end
        )


def write_inputs(folder: Path, root: Path) -> None:
    """Files beside the samples: rows that cannot be scored, and a list with more images than one part holds."""
    lines = (root / DOCS).read_text().splitlines()
    bad = ["{", "", '{"query": 7}', '{"query": "q", "passages": []}', '{"query": "\\ud800", "passages": ["a"]}', "[]"]
    (folder / "hurt.jsonl").write_text("\n".join([*lines[:9], *bad, *lines[9:12], lines[3]]) + "\n")
    pairs = (root / FLAT).read_text().splitlines()
    for place, line in enumerate(bad):
        pairs.insert(37 * place, line)
    (folder / "hurt-pairs.jsonl").write_text("\n".join(pairs) + "\n")
    pages = [f"in/samples/pages/{path.name}" for path in sorted((root / "samples/pages").glob("*.png"))]
    mixed = [{"image": page.removeprefix("in/samples/"), "text": f"page {number}"}
             for number in range(6) for page in pages]  # fmt: skip
    rows = [json.loads(line) for line in (root / "samples/pages.jsonl").read_text().splitlines()]
    rows[0]["passages"] = [*mixed[:9], {"text": "no image at all"}, *mixed[9:], {"image": "pages/none.png"}]
    (folder / "pages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[1]]))


# In a checkout


def serve(tree: Path, work: Path, root: Path, names: list[str]) -> None:
    """Run the cases in folders below `work`, each in a fork of this process."""
    for library in ("numpy", "pyarrow", "torch"):
        import_module(library)
    import rerank_cli

    where = Path(rerank_cli.__file__).resolve()
    assert tree.resolve() in where.parents, f"{where} is not of {tree}"
    for case in cases(root):
        if names and not any(name in case.name for name in names):
            continue
        folder = work / case.name
        took_over = case.end == "left" and folder.exists()
        if not took_over:
            folder.mkdir(parents=True)
            (folder / "in").symlink_to(root)
            write_inputs(folder, root)
        if case.end and not took_over:
            _end_early(case, folder)
        if case.end == "left" and not took_over:
            shutil.copytree(folder, work / f"as-{case.name}", symlinks=True)  # for the other checkout
        _wait(_start(case, folder), folder)


def _start(case: Case, folder: Path) -> int:
    """Begin a case in a fork; returns its process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    os.setsid()
    os.chdir(folder)
    source = folder / "in" / case.stdin if case.stdin else Path(os.devnull)
    for number, path, flags in (
        (0, source, os.O_RDONLY),
        (1, Path("stdout"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, Path("stderr"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        os.dup2(os.open(path, flags, 0o644), number)
    code = 70
    try:
        sys.argv = ["rerank-cli", *case.arguments]
        if case.program:
            exec(case.program, {})
        else:
            runpy.run_module("rerank_cli", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 71
    except BaseException:  # noqa: BLE001 (it is shown, and the case has failed)
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pid: int, folder: Path) -> None:
    _, status = os.waitpid(pid, 0)
    (folder / "exit").write_text(str(os.waitstatus_to_exitcode(status)))


def _end_early(case: Case, folder: Path) -> None:
    """Run a case and kill it once its journal knows of finished windows."""
    pid = _start(case, folder)
    output = case.arguments[case.arguments.index("-o") + 1]
    work = folder / f"{output}.job"
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        sizes = {path.name: path.stat().st_size for path in work.glob("*")}
        if sizes.get("journal") and sum(size > 0 for size in sizes.values()) >= 3:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            (folder / "ended").write_text("yes")
            return
        time.sleep(0.002)


# Comparison


def differences(old: Path, new: Path) -> Iterator[str]:
    """What differs between the folders of one case."""
    names = [sorted(str(path.relative_to(folder)) for path in _files(folder)) for folder in (old, new)]
    if names[0] != names[1]:
        yield f"files: {sorted(set(names[0]) - set(names[1]))} before, {sorted(set(names[1]) - set(names[0]))} now"
    for name in sorted(set(names[0]) & set(names[1])):
        before, now = (_comparable(folder / name, folder) for folder in (old, new))
        if before != now:
            yield f"{name}: {_first_difference(before, now)}"


def _files(folder: Path) -> Iterator[Path]:
    """All files but the inputs, and what an unfinished job says of processes and times."""
    own = (path for path in folder.rglob("*") if path.is_file() and not path.is_relative_to(folder / "in"))
    return (path for path in own if path.parent.suffix != ".job" or path.name not in ("journal", "lock"))


def _comparable(path: Path, folder: Path) -> Any:
    data = path.read_bytes()
    if path.name.endswith("report.json") or (path.suffix == ".json" and b'"rerank-cli/' in data[:60]):
        return _without_times(json.loads(data))
    if path.name in ("stdout", "stderr") or path.suffix == ".html":
        text = data.decode(errors="replace")
        if '"schema"' in text[:40] and text.lstrip().startswith("{"):
            return _without_times(json.loads(text))
        return _plain_text(text, is_page=path.suffix == ".html")
    return data


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(item) for name, item in value.items() if name not in _DIFFERS}
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    return _plain_text(value) if isinstance(value, str) else value


def _plain_text(text: str, *, is_page: bool = False) -> str:
    """`text` without numbers that tell times, and without the place of a checkout."""
    for place in (os.environ["OLD_TREE"], os.environ["NEW_TREE"]):
        text = text.replace(place, "TREE")
    text = re.sub(r"TREE/rerank_cli/(\w+/)*builtin/", "TREE/BUILTIN/", text)
    text = re.sub(r"/(old|new)/runs/", "/SIDE/runs/", text)
    if is_page:
        text = re.sub(r"<svg [^>]*over the time of the run.*?</svg>", "", text, flags=re.DOTALL)
        text = re.sub(r"<tr>[^\n]*tokens/s[^\n]*</tr>\n", "", text)
        return re.sub(r"[\d.,:+T-]+", "0", text)
    text = re.sub(r"\r[^\n]*", "", text)
    text = re.sub(r"[\d.,]+ (s|min|GiB|MiB|ms|GFLOP/s|pairs/s)\b", r"N \1", text)
    text = re.sub(r"(about|less than) N (s|min) is left", "N is left", text)
    text = re.sub(r"after [\d,]+ rows \(window \d+\)", "after N rows", text)
    return re.sub(r"\bprocess \d+\b", "process N", text)


def _first_difference(before: Any, now: Any, where: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                return _first_difference(before.get(name), now.get(name), f"{where}.{name}")
    if isinstance(before, (bytes, str)) and isinstance(now, type(before)):
        lines = [value.splitlines() for value in (before, now)]
        for number, pair in enumerate(zip(*lines, strict=False), 1):
            if pair[0] != pair[1]:
                return f"{where} line {number}: {pair[0][:300]!r} before, {pair[1][:300]!r} now"
    return f"{where} {str(before)[-300:]} before, {str(now)[-300:]} now"


def was_refused(folder: Path) -> str:
    """Why an unfinished run was not gone on with; empty where it was."""
    code, said = (folder / "exit").read_text(), (folder / "stderr").read_text()
    return said.strip().splitlines()[0] if code not in ("0", "3") and "out." in said else ""


def main() -> int:
    """Run all cases in both checkouts and compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("names", nargs="*", help="only cases with one of these in their name")
    parser.add_argument("--keep", action="store_true", help="leave what was written, for a look")
    parser.add_argument("--serve", type=Path, nargs=2, metavar=("WORK", "ROOT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    old, new = given.old.resolve(), given.new.resolve()
    if given.serve:
        serve(new, *given.serve, given.names)
        return 0
    os.environ |= {"OLD_TREE": str(old), "NEW_TREE": str(new), "TOKENIZERS_PARALLELISM": "false"}
    scratch = Path(tempfile.mkdtemp(prefix="same-bytes-"))
    for side, tree in (("old", old), ("new", new)):
        work = scratch / side / "runs"  # the same length of paths
        work.mkdir(parents=True)
        if side == "new":
            for left in sorted((scratch / "old/runs").glob("as-left-*")):
                left.rename(work / left.name.removeprefix("as-"))
        command = [sys.executable, __file__, str(old), str(tree), *given.names, "--serve", str(work), str(new)]
        began = time.monotonic()
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(tree)})
        print(f"{side}: {tree}, {time.monotonic() - began:.0f} s", flush=True)
    wrong = count = 0
    for folder in sorted((scratch / "old/runs").iterdir()):
        other = scratch / "new/runs" / folder.name
        count += 1
        if folder.name.startswith("left-") and (why := was_refused(other)):
            print(f"{folder.name}: refused by name: {why}")
            continue
        if folder.name.startswith(("left-", "killed-")) and not (
            (folder / "ended").exists() and (other / "ended").exists()
        ):
            print(f"{folder.name}: WAS NOT ENDED EARLY")
            wrong += 1
        for text in differences(folder, other):
            print(f"{folder.name}: DIFFERS: {text}")
            wrong += 1
    print(f"{count} cases, {wrong} differences" + (f"; everything is in {scratch}" if given.keep else ""))
    if not given.keep:
        shutil.rmtree(scratch)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
