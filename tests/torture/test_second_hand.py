"""A random second hand against a run: the bytes of an undisturbed run, or exit code 4 or 5 and the name of the file.

A draw is a form of a run, a file of it (of the work folder, read, or written), what is done to that file (`HANDS`), and
before which of the run's calls. All draws of a form have the same paths, so that all bytes can be compared.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import LONG, TINY_CHECKPOINT, write_lines
from tests.torture.conftest import EMBEDDER, TEXT, outputs
from tests.torture.runs import HANDS, Asked, Runs

GROUPS = 8
DRAWS = int(os.environ.get("RERANK_TORTURE_DRAWS", "10000" if LONG else "40"))
WORDS = TEXT.split()
MODEL = ("model.safetensors", "config.json", "tokenizer.json")
AGAIN = 0.3  # of the runs that were ended are begun again


def write_pairs(base: Path) -> list[str]:
    rows: list[object] = []
    for number in range(160):
        rows.append({"id": number, "query": WORDS[number % 7], "passage": " ".join(WORDS[number % 5 : 5 + number % 9])})
        if number % 50 == 20:
            rows += [b"{", b""]
    write_lines(base / "pairs.jsonl", rows)
    return ["pairs.jsonl"]


def write_ids(base: Path) -> list[str]:
    """A run of ids, whose texts are elsewhere, and judgements of it."""
    lines = [f"q{number % 40} Q0 d{number} {number // 40 + 1} {-number} bm25" for number in range(600)]
    (base / "run.trec").write_text("".join(f"{line}\n" for line in sorted(lines)))
    write_lines(base / "queries.jsonl", ({"_id": f"q{n}", "text": WORDS[n % 13]} for n in range(40)))
    write_lines(base / "corpus.jsonl", ({"_id": f"d{n}", "text": " ".join(WORDS[n % 7 :][:4])} for n in range(590)))
    (base / "qrels").write_text("".join(f"q{number % 40} 0 d{number} 1\n" for number in range(0, 590, 3)))
    return ["run.trec", "queries.jsonl", "corpus.jsonl", "qrels"]


# Form: the output, its options, what writes its inputs (and names them), and the files that only its work folder has.
FORMS: dict[str, tuple[str, dict[str, Any], Callable[[Path], list[str]], tuple[str, ...]]] = {
    "pairs": ("out.jsonl", {"pairs": True}, write_pairs, ()),
    "best": ("out.jsonl.gz", {"pairs": True, "selection": {"top_n": 7}}, write_pairs, ()),
    "ids": (
        "out.jsonl",
        {"texts": {"queries": "queries.jsonl", "corpus": "corpus.jsonl"}, "qrels": "qrels", "per_query": "values.tsv"},
        write_ids,
        ("per_query",),
    ),
    "vectors": ("out.jsonl", {"pairs": True, "embeddings": "v.parquet"}, write_pairs, ("vectors", "texts")),
    "parquet": ("out.parquet", {"pairs": True}, write_pairs, ("output",)),
    "csv": ("out.csv", {"pairs": True}, write_pairs, ("output",)),
}
WEIGHTS = {"pairs": 70, "best": 8, "ids": 12, "vectors": 2, "parquet": 2, "csv": 6}


class Form:
    """One form of a run, made anew for each draw in the folder `base`."""

    def __init__(self, name: str, base: Path) -> None:
        self.name = name
        self.base = base
        self.out = base / "run" / FORMS[name][0]
        self.calls = 0
        self.whole: dict[str, bytes] = {}
        self.read: list[Path] = []

    def prepare(self) -> Asked:
        """The files as they are before a run; nothing else is there."""
        shutil.rmtree(self.base, ignore_errors=True)
        (self.base / "run").mkdir(parents=True)
        model = EMBEDDER if self.name == "vectors" else TINY_CHECKPOINT
        shutil.copytree(model, self.base / "model")
        _, given, write, _ = FORMS[self.name]
        self.read = [self.base / name for name in write(self.base)]
        options = {**given, "model": str(self.base / "model")}
        if "qrels" in options:
            options["qrels"] = str(self.base / options["qrels"])
            options["texts"] = {kind: str(self.base / name) for kind, name in options["texts"].items()}
        kinds = [kind for kind in ("per_query", "embeddings") if kind in options]
        options["names"] = {kind: str(self.base / "run" / options.pop(kind)) for kind in kinds}
        return Asked((str(self.read[0]),), str(self.out), options)

    def found(self) -> dict[str, bytes]:
        """The outputs, with what a report says of the files that were read."""
        found = {name: data for name, data in outputs(self.base / "run").items() if ".other" not in name}
        for name in found:
            if name.endswith(".report.json"):
                told = json.loads((self.base / "run" / name).read_bytes())["job"]["files"]
                found[name] = json.dumps({kind: facts["sha256"] for kind, facts in told.items()}).encode()
        return found

    def draw(self, draw: random.Random) -> tuple[str, Path, int]:
        """What is done, to which file, before which call."""
        work = Path(f"{self.out}.job")
        files = [work / name for name in ("lock", "rows", "errors", "journal", "report", *FORMS[self.name][3])]
        files += [*self.read, *self.read, *(self.base / "model" / name for name in MODEL)]
        at = draw.randint(1, self.calls)
        if draw.random() < 0.1:
            names = [self.out, Path(f"{self.out}.errors.jsonl"), Path(f"{self.out}.report.json")]
            return "make", draw.choice(names), at
        if draw.random() < 0.05:
            return draw.choice(["delete", "rename", "link"]), work, at
        return draw.choice(HANDS), draw.choice(files), at


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory, runs: Runs) -> Callable[[str], Form]:
    """A form, whose undisturbed run was done."""
    known: dict[str, Form] = {}

    def form(name: str) -> Form:
        if name not in known:
            made = known[name] = Form(name, tmp_path_factory.mktemp(name) / "base")
            count = made.base.parent / "calls"
            done = runs.run(made.prepare(), at=10**9, count_file=str(count))
            assert done.code == 3, done.said
            made.whole, made.calls = made.found(), int(count.read_text())
        return known[name]

    return form


@pytest.fixture(scope="module")
def tally() -> Counter[str]:
    """How the draws ended."""
    return Counter()


@pytest.mark.timeout(0 if LONG else None)  # a run that hangs ends itself; the next one would get its answer otherwise
@pytest.mark.parametrize("group", range(GROUPS))
def test_what_another_hand_changes_is_noticed_or_does_not_matter(
    runs: Runs, forms: Callable[[str], Form], tally: Counter[str], group: int
) -> None:
    draw = random.Random(f"second hand {group} {os.environ.get('RERANK_TORTURE_SEED', '')}")
    for number in range(DRAWS // GROUPS):
        form = forms(draw.choices([*WEIGHTS], [*WEIGHTS.values()])[0])
        asked = form.prepare()
        what, which, at = form.draw(draw)
        done = runs.run(asked, at=at, hand=(what, str(which)))
        told = f"{number} {form.name}: {what} {which.name} at call {at} of {form.calls}: {done.code}\n{done.said}"
        tally[f"{what}: {done.code}"] += 1
        if done.code in (0, 3):
            assert form.found() == form.whole, told
            continue
        assert done.code in (4, 5), told
        assert which.name in done.said, told
        assert what == "make" or not form.out.exists(), told
        if draw.random() < AGAIN and which not in form.read and "model" not in which.parts and what != "make":
            again = runs.run(asked)
            told += f"\nagain: {again.code}\n{again.said}"
            tally[f"again: {again.code}"] += 1
            if again.code in (0, 3):
                assert form.found() == form.whole, told
            else:
                assert again.code in (4, 8), told
                assert str(form.base) in again.said, told
    if LONG:
        print(group, dict(sorted(tally.items())))
