"""A random second hand against a run: the bytes of an undisturbed run, or an exit code that is neither 0 nor 3."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from tests.conftest import LONG, TINY_CHECKPOINT
from tests.torture.conftest import outputs
from tests.torture.runs import HANDS, Asked, Runs

DRAWS = 10_000 if LONG else 60
WORK = ("lock", "rows", "errors", "journal", "report")
MODEL = ("model.safetensors", "config.json", "tokenizer.json")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, runs: Runs, pairs: str) -> tuple[dict[str, bytes], int]:
    """The outputs of a run, and how many calls it makes."""
    folder = tmp_path_factory.mktemp("undisturbed")
    count = folder.parent / "calls"
    asked = Asked((pairs,), str(folder / "out.jsonl"), {"pairs": True}, at=10**9, count_file=str(count))
    assert runs.run(asked).code == 3
    return outputs(folder), int(count.read_text())


@pytest.mark.parametrize("seed", range(8))
def test_what_another_hand_changes_is_noticed_or_does_not_matter(
    tmp_path: Path, runs: Runs, pairs: str, undisturbed: tuple[dict[str, bytes], int], seed: int
) -> None:
    whole, calls = undisturbed
    draw = random.Random(f"second hand {seed} {os.environ.get('RERANK_TORTURE_SEED', '')}")
    for _ in range(DRAWS // 8 + 1):
        folder = tmp_path / "run"
        folder.mkdir()
        shutil.copy(pairs, tmp_path / "pairs.jsonl")
        shutil.copytree(TINY_CHECKPOINT, tmp_path / "model")
        out = folder / "out.jsonl"
        files = [out.with_name("out.jsonl.job") / name for name in WORK]
        files += [tmp_path / "pairs.jsonl", tmp_path / "pairs.jsonl", *(tmp_path / "model" / name for name in MODEL)]
        which, what, at = draw.choice(files), draw.choice(HANDS), draw.randint(1, calls)
        if draw.random() < 0.1:
            which, what = draw.choice([out, Path(f"{out}.errors.jsonl"), Path(f"{out}.report.json")]), "make"
        options = {"pairs": True, "model": str(tmp_path / "model")}
        asked = Asked((str(tmp_path / "pairs.jsonl"),), str(out), options, at=at, hand=(what, str(which)))
        done = runs.run(asked)
        told = f"{what} {which.name} at call {at} of {calls}: {done.code}\n{done.said}"
        if done.code in (0, 3):
            found = {name: data for name, data in outputs(folder).items() if not name.endswith(".other")}
            assert {**found, **same_path(found, pairs, tmp_path)} == whole, told
        else:
            assert done.code in (4, 5), told
            assert which.name in done.said, told
            assert what == "make" or not out.exists(), told
        shutil.rmtree(tmp_path / "model")
        shutil.rmtree(folder)


def same_path(found: dict[str, bytes], pairs: str, folder: Path) -> dict[str, bytes]:
    """The errors file names the input, which lies elsewhere in the undisturbed run."""
    name = "out.jsonl.errors.jsonl"
    return {name: found[name].replace(str(folder / "pairs.jsonl").encode(), pairs.encode())} if name in found else {}
