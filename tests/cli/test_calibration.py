"""`evaluate --calibrate-to`, `--keep-precision`, and runs with `--calibration`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sklearn.isotonic import IsotonicRegression

from rerank_cli.cli import main
from tests.conftest import TINY_CHECKPOINT, read_lines, write_lines

SAMPLES = Path(__file__).parents[2] / "samples"
QRELS = SAMPLES / "qrels.txt"
ADDED = ("rank", "logit", "index", "probability")
TINY = ("--model", str(TINY_CHECKPOINT), "--max-tokens", "64")  # what it scores does not matter here
OTHER_MODEL = TINY_CHECKPOINT.parents[1] / "bert-types-open" / "checkpoint"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A scored file, and the isotonic calibration that was fitted on it."""
    folder = tmp_path_factory.mktemp("fitted")
    scored, calibration = folder / "scored.jsonl", folder / "model.json"
    assert main(["rerank-file", str(SAMPLES / "python-docs.jsonl"), "-o", str(scored), "-q", *TINY]) == 0
    assert main(["evaluate", str(scored), "--qrels", str(QRELS), "--calibrate-to", str(calibration), "-q",
                 "--calibrator", "isotonic"]) == 0  # fmt: skip
    return scored, calibration


def rerank(out: Path, *options: str | Path, source: str = "python-docs.jsonl") -> int:
    return main(["rerank-file", str(SAMPLES / source), "-o", str(out), "-q", "--limit", "3", *TINY, *map(str, options)])


def judged(path: Path) -> tuple[list[float], list[float]]:
    """Every logit of a scored file, and whether its passage is relevant."""
    grades = {(query, name): int(grade) for query, _, name, grade in map(str.split, QRELS.read_text().splitlines())}
    found = [(one["logit"], row["query_id"], one["id"]) for row in read_lines(path) for one in row["passages"]]
    return [one[0] for one in found], [float(grades.get(one[1:], 0) > 0) for one in found]


def test_probabilities_are_those_of_scikit_learn_on_the_same_judgements(
    fitted: tuple[Path, Path], tmp_path: Path
) -> None:
    scored, calibration = fitted
    assert rerank(tmp_path / "out.jsonl", "--calibration", calibration) == 0
    reference = IsotonicRegression(out_of_bounds="clip").fit(*judged(scored))
    passages = [one for row in read_lines(tmp_path / "out.jsonl") for one in row["passages"]]
    assert [one["probability"] for one in passages] == pytest.approx(
        reference.predict([one["logit"] for one in passages]).tolist(), abs=1e-9
    )
    assert [one for one in passages[0] if one in ADDED] == list(ADDED)


def test_tables_and_flat_rows_and_pairs_have_them_too(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    def value_of(passage: dict[str, Any]) -> float:
        return float(passage["probability"])

    given = ("--calibration", fitted[1])
    assert rerank(tmp_path / "lists.parquet", *given, source="python-docs.parquet") == 0
    assert rerank(tmp_path / "rows.parquet", *given, source="python-docs-flat.parquet") == 0
    assert rerank(tmp_path / "out.csv", *given) == 0
    lists = [one for row in pq.read_table(tmp_path / "lists.parquet").to_pylist() for one in row["passages"]]
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert all(0 <= value_of(one) <= 1 for one in (*lists, *rows))
    assert "probability" in (tmp_path / "out.csv").read_text().splitlines()[0]
    pairs = ["score", str(SAMPLES / "pairs.jsonl"), "-o", str(tmp_path / "pairs.jsonl"), "-q", "--limit", "2", *TINY]
    assert main([*pairs, "--calibration", str(fitted[1])]) == 0
    assert all(0 <= value_of(one) <= 1 for one in read_lines(tmp_path / "pairs.jsonl"))


def test_a_run_with_another_calibration_is_another_run(
    fitted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rerank(tmp_path / "out.jsonl") == 0
    assert rerank(tmp_path / "out.jsonl", "--calibration", fitted[1]) == 4  # it is there, and not of this run
    assert rerank(tmp_path / "out.jsonl", "--calibration", fitted[1], "--overwrite") == 0
    before = (tmp_path / "out.jsonl").read_bytes()
    assert rerank(tmp_path / "out.jsonl", "--calibration", fitted[1]) == 0  # nothing to do
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", str(OTHER_MODEL)], "was fitted on scores of "),
        (["--truncate", "error"], "was fitted with --truncate end, and this run has error"),
        (["--out-format", "nim"], "rows of the shape nim have no place for a probability"),
    ],
)
def test_what_was_not_fitted_is_refused(
    options: list[str], said: str, fitted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rerank(tmp_path / "out.jsonl", "--calibration", fitted[1], *options) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def _other_schema(document: dict[str, Any]) -> None:
    document["schema"] = "something/1"


def _falling(document: dict[str, Any]) -> None:
    document["scores"] = document["scores"][::-1]


def _beyond(document: dict[str, Any]) -> None:
    document["probabilities"][-1] = 1.5


def _no_model(document: dict[str, Any]) -> None:
    del document["model"]["sha256"]


@pytest.mark.parametrize("damage", [_other_schema, _falling, _beyond, _no_model])
def test_a_damaged_file_is_refused(
    damage: Callable[[dict[str, Any]], None],
    fitted: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = json.loads(fitted[1].read_text())
    damage(document)
    (tmp_path / "bad.json").write_text(json.dumps(document))
    assert rerank(tmp_path / "out.jsonl", "--calibration", tmp_path / "bad.json") == 4
    assert str(tmp_path / "bad.json") in capsys.readouterr().err


def test_texts_that_the_model_cannot_read_are_warned_of(fitted: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [
        {"query_id": f"q{place}", "query": "𓀀 𓀁", "passages": [{"id": "a", "text": "𓂀 𓃀 𓄀"}, {"id": "b", "text": "𓅀"}]}
        for place in range(3)
    ]
    write_lines(tmp_path / "in.jsonl", rows)
    out = tmp_path / "out.jsonl"
    page = ["--report", str(tmp_path / "out.html")]
    given = [
        "rerank-file",
        str(tmp_path / "in.jsonl"),
        "-o",
        str(out),
        "-q",
        "--calibration",
        str(fitted[1]),
        *page,
        *TINY,
    ]
    assert main(given) == 0
    report = json.loads(Path(f"{out}.report.json").read_text())
    assert any("are unknown to the model" in one for one in report["probability"]["warnings"])
    assert "are unknown to the model" in (tmp_path / "out.html").read_text()


def test_only_a_file_with_its_report_is_calibrated(
    fitted: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(fitted[0].read_bytes())
    given = ["evaluate", str(copy), "--qrels", str(QRELS), "--calibrate-to", str(tmp_path / "c.json"), "-q"]
    assert main(given) == 4
    assert "does not exist; it would say which model has scored" in capsys.readouterr().err
    assert main([*given, "--run-report", f"{fitted[0]}.report.json"]) == 0
    model = json.loads((tmp_path / "c.json").read_text())["model"]
    assert model == json.loads(fitted[1].read_text())["model"]
    copy.write_bytes(b"".join(copy.read_bytes().splitlines(keepends=True)[:-1]))
    Path(f"{copy}.report.json").write_bytes(Path(f"{fitted[0]}.report.json").read_bytes())
    (tmp_path / "c.json").unlink()
    assert main(given) == 4
    assert "is the report of another output" in capsys.readouterr().err


def test_a_threshold_keeps_the_precision(capsys: pytest.CaptureFixture[str]) -> None:
    scored = SAMPLES / "expected" / "python-docs.top3.jsonl"
    given = ["evaluate", str(scored), "--qrels", str(QRELS), "--format", "json", "-q"]
    assert main([*given, "--keep-precision", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)["systems"][0]["threshold"]
    logits, relevant = judged(scored)
    kept = [mark for logit, mark in zip(logits, relevant, strict=True) if logit >= found["threshold"]]
    assert sum(kept) / len(kept) >= 0.5
    assert found["kept"] == pytest.approx(len(kept) / len(logits))
    assert found["low"] <= found["precision"] <= found["high"]


@pytest.mark.parametrize("option", ["--calibrate-to", "--keep-precision", "--per-query"])
def test_what_needs_judgements_says_so(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    value = "0.5" if option == "--keep-precision" else str(tmp_path / "x.tsv")
    files = [str(SAMPLES / "expected" / "python-docs.top3.jsonl"), str(SAMPLES / "bm25.trec")]
    assert main(["evaluate", *files, option, value]) == 2
    assert f"{option}: changes nothing without `--qrels FILE`" in capsys.readouterr().err
