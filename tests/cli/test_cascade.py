"""`--first`: a cheap scorer reads every candidate, the model of the run those that can still matter."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rerank_cli.cli import main
from rerank_cli.job.cascade import run_cascade
from rerank_cli.job.options import First, JobOptions, Names
from rerank_cli.job.run import Watcher, run_job
from rerank_cli.planning.choices import ProfileRequest
from tests.conftest import TINY_CHECKPOINT, read_lines, write_lines, write_table

WORDS = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split()
EMBEDDER = Path(__file__).parents[1] / "parity" / "nemotron-vl-embed-open" / "checkpoint"


def made_rows(lists: int = 30, passages: int = 40) -> list[dict[str, Any]]:
    def text(start: int, words: int) -> str:
        return " ".join(WORDS[(start * 37 + word) % len(WORDS)] for word in range(words))

    return [
        {
            "query_id": f"q{number}",
            "query": text(number, 4),
            "passages": [{"id": f"d{k}", "text": text(number * 101 + k, 3 + k % 9)} for k in range(passages)],
        }
        for number in range(lists)
    ]


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_lines(tmp_path_factory.mktemp("lists") / "in.jsonl", made_rows())


def rerank(source: str, out: Path, *options: str, code: int = 0, model: Path = TINY_CHECKPOINT) -> dict[str, Any]:
    """The report of a run."""
    assert main(["rerank-file", source, "-o", str(out), "--model", str(model), "--overwrite", *options]) == code
    return json.loads(Path(f"{out}.report.json").read_text()) if code in (0, 3) else {}


@pytest.fixture(scope="module")
def full(lists: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("full") / "out.jsonl"
    rerank(lists, out, "--quiet")
    return read_lines(out)


@pytest.fixture(scope="module")
def cheap(lists: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("cheap") / "out.jsonl"
    rerank(lists, out, "--quiet", "--precision", "bf16")
    return read_lines(out)


def test_the_first_passages_are_those_of_a_full_run_and_the_others_follow_in_the_cheap_order(
    lists: str, full: list[dict[str, Any]], cheap: list[dict[str, Any]], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    report = rerank(lists, tmp_path / "out.jsonl", "--first", "bf16", "--first-top", "5")
    for row, whole, low in zip(read_lines(tmp_path / "out.jsonl"), full, cheap, strict=True):
        found = row["passages"]
        logits = {one["index"]: one["logit"] for one in whole["passages"]}
        assert [one["index"] for one in found[:5]] == [one["index"] for one in whole["passages"][:5]]
        assert [one["rank"] for one in found] == list(range(1, len(found) + 1))
        second = [one for one in found if one["scored_by"] == "second"]
        assert found[: len(second)] == second
        assert all(one["logit"] == logits[one["index"]] for one in second)
        rest = [one["index"] for one in found[len(second) :]]
        assert rest == [one["index"] for one in low["passages"] if one["index"] in rest]
        low_logits = {one["index"]: one["logit"] for one in low["passages"]}
        assert all(one["logit"] == low_logits[one["index"]] for one in found[len(second) :])
    both = report["cascade"]
    assert both["first"]["precision"] == "bf16"
    assert both["second"]["precision"] == "fp32"
    assert both["first"]["pairs_scored"] == both["passages"] == 1200
    assert 150 <= both["read_by_second"] < 1200
    assert both["bound"]["pairs"] == 520
    assert both["bound"]["largest"] <= both["bound"]["bound"]
    assert both["agreement"]["lists"] == 13
    assert both["agreement"]["overlap"] == 1.0
    said = capsys.readouterr().err
    assert f"bf16 scored 1,200 passages, fp32 {both['read_by_second']:,} of them" in said
    assert "of 13 sampled lists the first 5 agree with a full run by 1.000" in said


@pytest.mark.parametrize(("keep", "read"), [("10", 10), ("25%", 10), ("39", 39)])
def test_a_number_or_a_share_of_each_list_is_read_again(
    lists: str, full: list[dict[str, Any]], tmp_path: Path, keep: str, read: int
) -> None:
    report = rerank(
        lists, tmp_path / "out.jsonl", "--first", "bf16", "--first-keep", keep, "--first-top", "3", "--quiet"
    )
    assert report["cascade"]["read_by_second"] == 30 * read
    for row in read_lines(tmp_path / "out.jsonl"):
        assert [one["scored_by"] for one in row["passages"]] == ["second"] * read + ["first"] * (40 - read)


def test_another_model_comes_first_and_the_run_says_how_well_they_agree(
    lists: str, full: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = rerank(lists, tmp_path / "out.jsonl", "--first", str(EMBEDDER), "--top-n", "4", "--limit", "14")
    both = report["cascade"]
    assert both["first"]["score"] == "cosine"
    assert both["keep"] == "auto"
    assert both["kept_of_a_list"] >= 8
    # What the sample needed is what is kept, so its lists agree; whether others do is measured on others.
    assert both["agreement"]["overlap"] == 1.0
    for row, whole in zip(read_lines(tmp_path / "out.jsonl")[:13], full, strict=False):
        assert [one["index"] for one in row["passages"]] == [one["index"] for one in whole["passages"][:4]]
        assert {one["scored_by"] for one in row["passages"]} == {"second"}
    rerank(
        lists, tmp_path / "few.jsonl", "--first", str(EMBEDDER), "--top-n", "4", "--limit", "14", "--first-keep", "4"
    )
    assert "warning: of 13 sampled lists the first 4 agree with a full run by 0." in capsys.readouterr().err


def test_a_list_now_and_then_is_sampled_and_written_as_if_it_were_not(
    lists: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--first", "bf16", "--first-keep", "5", "--first-top", "2", "--quiet")
    rare = rerank(lists, tmp_path / "rare.jsonl", *options)
    monkeypatch.setattr(run_cascade, "_EVERY", 1)
    often = rerank(lists, tmp_path / "often.jsonl", *options)
    assert (tmp_path / "rare.jsonl").read_bytes() == (tmp_path / "often.jsonl").read_bytes()
    assert rare["cascade"]["agreement"]["lists"] == 13
    assert often["cascade"]["agreement"]["lists"] == 15  # of each of the two other windows one more
    assert often["cascade"]["read_by_second"] == rare["cascade"]["read_by_second"]


@pytest.mark.parametrize("first", ["bf16", str(EMBEDDER)])
def test_progress_grows_while_either_scorer_reads(tmp_path: Path, first: str) -> None:
    """On one window: what the first has read is not nearly all, and the share grows with the second's batches."""
    source = write_lines(tmp_path / "in.jsonl", made_rows(6, 90))
    options = JobOptions(
        (source,), Names(str(tmp_path / "out.jsonl")), model=str(TINY_CHECKPOINT),
        request=ProfileRequest(token_budget=200), first=First(first),
    )  # fmt: skip
    watcher = Watcher()
    seen: list[float] = []
    watcher.on_batch = lambda pairs, tokens: seen.append(watcher.progress.share or 0.0)
    run_job(options, watcher)
    assert seen == sorted(seen)
    after_first = min(share for share in seen if share >= 0.3)  # where the first has read the window
    assert after_first < 0.35
    of_second = [share for share in seen if share > 0.3]
    assert len(set(of_second)) > 10
    steps = [later - former for former, later in pairwise([0.3, *sorted(set(of_second))])]
    assert max(steps) < 0.2
    assert seen[-1] > 0.9
    assert watcher.progress.pairs == 540


def test_bad_rows_before_the_first_list_make_no_rule(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    bad = json.dumps({"query": "q", "passages": [None]})
    source.write_text(f"{bad}\n" * 520 + "".join(json.dumps(row) + "\n" for row in made_rows(16)))
    report = rerank(str(source), tmp_path / "out.jsonl", "--first", "bf16", "--first-top", "2", "--quiet", code=3)
    assert report["cascade"]["bound"]["pairs"] == 520
    assert report["cascade"]["read_by_second"] < 16 * 40


def test_parquet_says_it_in_a_column_and_csv_too(lists: str, full: list[dict[str, Any]], tmp_path: Path) -> None:
    source = write_table(tmp_path / "in.parquet", made_rows(8))
    options = ("--first", "bf16", "--first-keep", "6", "--first-top", "3", "--quiet")
    rerank(source, tmp_path / "out.parquet", *options)
    rerank(lists, tmp_path / "out.jsonl", *options, "--limit", "8")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    for row, same in zip(rows, read_lines(tmp_path / "out.jsonl"), strict=True):
        names = ("index", "scored_by", "rank")
        assert [[one[name] for name in names] for one in row["passages"]] == [
            [one[name] for name in names] for one in same["passages"]
        ]
    rerank(lists, tmp_path / "out.csv", *options, "--limit", "2")
    assert "scored_by" in (tmp_path / "out.csv").read_text().partition("\n")[0].split(",")


def test_an_output_that_is_read_again_keeps_nothing_of_the_fields_of_before(lists: str, tmp_path: Path) -> None:
    rerank(lists, tmp_path / "once.jsonl", "--first", "bf16", "--first-keep", "5", "--first-top", "3", "--limit", "2")
    rerank(str(tmp_path / "once.jsonl"), tmp_path / "twice.jsonl", "--quiet")
    rerank(lists, tmp_path / "plain.jsonl", "--quiet", "--limit", "2")
    for row, plain in zip(read_lines(tmp_path / "twice.jsonl"), read_lines(tmp_path / "plain.jsonl"), strict=True):
        assert {frozenset(one) for one in row["passages"]} == {frozenset(one) for one in plain["passages"]}


def test_a_run_of_trec_holds_those_of_the_second_scorer_alone(
    lists: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rerank(lists, tmp_path / "out.trec", "--first", "bf16", code=2)
    said = capsys.readouterr().err
    assert "--first: rows of the shape trec are ordered by score" in said
    assert "`--top-n 10`" in said
    rerank(lists, tmp_path / "out.trec", "--first", "bf16", "--top-n", "10", "--quiet")
    rerank(lists, tmp_path / "plain.trec", "--top-n", "10", "--quiet")
    assert (tmp_path / "out.trec").read_bytes() == (tmp_path / "plain.trec").read_bytes()


def test_judgements_measure_the_order_of_both_scorers(lists: str, tmp_path: Path) -> None:
    qrels = tmp_path / "qrels.txt"
    qrels.write_text("".join(f"q{number} 0 d{number % 40} 1\n" for number in range(30)))
    report = rerank(lists, tmp_path / "out.jsonl", "--first", "bf16", "--qrels", str(qrels), "--quiet")
    plain = rerank(lists, tmp_path / "plain.jsonl", "--qrels", str(qrels), "--quiet")
    after = [one["evaluation"]["metrics"][0]["reranked"] for one in (report, plain)]
    assert after[0] == after[1]


def test_a_store_spares_both_scorers(lists: str, tmp_path: Path) -> None:
    options = ("--first", "bf16", "--first-top", "3", "--quiet")
    rerank(lists, tmp_path / "plain.jsonl", *options)
    cold = rerank(lists, tmp_path / "cold.jsonl", *options, "--store", str(tmp_path / "store"))
    warm = rerank(lists, tmp_path / "warm.jsonl", *options, "--store", str(tmp_path / "store"))
    for name in ("cold", "warm"):
        assert (tmp_path / f"{name}.jsonl").read_bytes() == (tmp_path / "plain.jsonl").read_bytes()
    assert cold["store"]["computed"] == cold["store"]["added"] > 1200
    assert warm["store"]["computed"] == 0
    assert warm["store"]["found"] == warm["store"]["asked"] == cold["store"]["asked"]


def test_a_passage_that_the_first_scorer_cannot_read_is_read_by_the_second(tmp_path: Path) -> None:
    rows = made_rows(2, 12)
    rows[0]["passages"][11]["text"] = " ".join(WORDS[:110])
    source = write_lines(tmp_path / "in.jsonl", rows)
    narrow = tmp_path / "narrow"
    shutil.copytree(TINY_CHECKPOINT, narrow)
    for name in ("config.json", "tokenizer_config.json"):
        path = narrow / name
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "max_position_embeddings": 120, "model_max_length": 120})
        )
    import safetensors.numpy

    weights = safetensors.numpy.load_file(narrow / "model.safetensors")
    name = next(name for name in weights if "position_embeddings" in name)
    weights[name] = weights[name][:120].copy()
    safetensors.numpy.save_file(weights, narrow / "model.safetensors")
    options = ("--first", str(narrow), "--first-keep", "3", "--first-top", "3", "--truncate", "error", "--quiet")
    rerank(source, tmp_path / "out.jsonl", *options)
    row = read_lines(tmp_path / "out.jsonl")[0]
    assert {one["index"]: one["scored_by"] for one in row["passages"]}[11] == "second"
    assert [one["scored_by"] for one in row["passages"]].count("second") == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--first-keep", "10"], "--first-keep: changes nothing without `--first MODEL|PRECISION`"),
        (["--first", "bf16", "--blend", "rrf:0.5"], "does not work with --blend"),
        (["--first", "bf16", "--threshold", "1"], "does not work with --threshold"),
        (["--first", "bf16", "--check-precision", "9"], "does not work with --check-precision"),
        (["--first", "fp32"], "is not a lower precision than that of the run, fp32"),
        (["--first", str(TINY_CHECKPOINT), "--first-keep", "exact"], "set no bound on"),
        (["--first", str(TINY_CHECKPOINT), "--prob"], "--prob: the scores of"),
        (["--first", "bf16", "--first-keep", "5"], "fewer than the first 10"),
        (["--first", "bf16", "--first-keep", "none"], "neither a number, a percentage"),
        (["--first", "bf16", "--first-keep", "0%"], "neither a number, a percentage"),
        (["--first", "no/such/model"], "no such directory"),
        (["--first", "bf16", "--engine", "ray"], "--first: does not work with `--engine ray`"),
        (["--first", "bf16", "--model", str(EMBEDDER)], "embeds each text once"),
        (["--first", "bf16", "--out-format", "triplet", "--qrels", "none.txt"], "none.txt"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(
    lists: str, tmp_path: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = [] if "--model" in options else ["--model", str(TINY_CHECKPOINT)]
    assert main(["rerank-file", lists, "-o", str(tmp_path / "out.jsonl"), *model, *options]) in (2, 4, 5)
    assert said in capsys.readouterr().err


def test_score_has_no_head(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "in.jsonl", "--first", "int8"]) == 2
    assert "rows of `score` are single pairs" in capsys.readouterr().err


def test_memory_of_both_models_is_asked_for(lists: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rerank-file", lists, "--model", str(TINY_CHECKPOINT), "--dry-run", "--format", "json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    options = ["--first", "bf16", "--first-top", "5"]
    assert main(["rerank-file", lists, "--model", str(TINY_CHECKPOINT), "--dry-run", "--format", "json", *options]) == 0
    both = json.loads(capsys.readouterr().out)
    assert both["first"]["needed_bytes"] > alone["plan"]["needed_bytes"]
    assert both["first"]["pairs_of_second"] == 30 * 5
