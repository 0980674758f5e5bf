"""`rerank-cli evaluate`: verdict, use, limits and likeness of files of ranked lists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ir_measures
import numpy as np
import pytest
import scipy.stats

from rerank_cli.cli import evaluate_text, main
from rerank_cli.evaluation.recommended_command import recommended_command
from tests.conftest import write_lines

ROOT = Path(__file__).parents[2]
COLLECTIONS = Path(os.environ.get("RERANK_COLLECTIONS", ROOT.parent / "shared" / "collections"))
DEPTH = 20


def make(
    folder: Path, *, queries: int = 80, skill: float = 1.5, seed: int = 0, name: str = "new.jsonl"
) -> tuple[Path, Path]:
    """A scored file and judgements: one relevant candidate in five, whose logit is higher by `skill`."""
    generator = np.random.default_rng(seed)
    relevant = np.random.default_rng(99).random((queries, DEPTH)) < 0.2
    logits = generator.normal(size=(queries, DEPTH)) + skill * relevant
    rows, qrels = [], []
    for query in range(queries):
        order = np.argsort(-logits[query])
        passages = [
            {"id": f"d{place}", "text": "t", "rank": rank, "logit": float(logits[query, place]), "index": int(place)}
            for rank, place in enumerate(order, 1)
        ]
        rows.append({"query_id": f"q{query}", "query": "t", "passages": passages})
        qrels += [f"q{query} 0 d{place} {int(relevant[query, place])}\n" for place in range(DEPTH)]
    write_lines(folder / name, rows)
    (folder / "qrels.txt").write_text("".join(qrels))
    return folder / name, folder / "qrels.txt"


def found(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    assert main(["evaluate", *map(str, arguments), "--format", "json"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_good_reranker_ships(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, qrels = make(tmp_path)
    document = found(capsys, file, "--qrels", qrels)
    (measure,) = document["systems"][0]["measures"]
    assert measure["verdict"] == "ship"
    assert measure["sentence"].startswith("ship: ")
    assert document["headline"][0].startswith("Ship it: on the whole new.jsonl puts good passages higher up")
    assert len(document["headline"]) == 3


def test_a_bad_one_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, qrels = make(tmp_path, skill=-1.5)
    document = found(capsys, file, "--qrels", qrels)
    assert document["systems"][0]["measures"][0]["verdict"] == "don't ship"
    assert document["headline"][0].startswith("Don't ship it: on the whole new.jsonl puts good passages further down")
    assert f"is now {document['systems'][0]['measures'][0]['value']:.3f}" in document["headline"][1]


def test_one_without_an_effect_stays_undecided(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, qrels = make(tmp_path, skill=0)
    measure = found(capsys, file, "--qrels", qrels)["systems"][0]["measures"][0]
    assert measure["verdict"] == "undecided"
    assert measure["sentence"].startswith(f"undecided: {measure['more_queries']:,} more judged queries: ")


def orders(file: Path) -> dict[str, tuple[Sequence[str], Sequence[str]]]:
    """Given and new order of each query, without the product."""
    out = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        new = row.get("passages") or row.get("candidates")
        given = sorted(new, key=lambda one: one["index"])
        out[str(row["query_id"])] = ([one["id"] for one in given], [one["id"] for one in new])
    return out


def measured(qrels: Path, run: Mapping[str, Sequence[str]], metric: str) -> dict[str, float]:
    judged = list(ir_measures.read_trec_qrels(str(qrels)))
    docs = [
        ir_measures.ScoredDoc(query, name, -float(at)) for query, names in run.items() for at, name in enumerate(names)
    ]
    values = ir_measures.iter_calc([ir_measures.parse_measure(metric)], judged, docs)
    return {one.query_id: one.value for one in values if one.query_id in run}


@pytest.mark.parametrize("metric", ["nDCG@10", "RR@10", "P@5", "AP", "Judged@10"])
@pytest.mark.parametrize("skill", [0.0, 0.3, 1.0])
def test_measures_and_tests_are_those_of_ir_measures_and_scipy(
    metric: str, skill: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, qrels = make(tmp_path, skill=skill, queries=40)
    facts = found(capsys, file, "--qrels", qrels, "--metric", metric)["systems"][0]["measures"][0]
    both = orders(file)
    old = measured(qrels, {query: one[0] for query, one in both.items()}, metric)
    new = measured(qrels, {query: one[1] for query, one in both.items()}, metric)
    assert facts["baseline"] == pytest.approx(np.mean([*old.values()]), abs=1e-9)
    assert facts["value"] == pytest.approx(np.mean([*new.values()]), abs=1e-9)
    if metric != "Judged@10":
        test = scipy.stats.ttest_rel([new[one] for one in both], [old[one] for one in both])
        assert facts["p_t"] == pytest.approx(test.pvalue, abs=1e-9)
        low, high = test.confidence_interval(0.95)
        assert (facts["low"], facts["high"]) == pytest.approx((low, high), abs=1e-9)


def test_runs_are_held_against_a_baseline_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, qrels = make(tmp_path)
    for place, name in enumerate(("old.run", "new.run")):
        lines = [
            f"{query} Q0 {passage} {rank} {100 - rank} tag\n"
            for query, both in orders(file).items()
            for rank, passage in enumerate(both[place], 1)
        ]
        (tmp_path / name).write_text("".join(lines))
    run = found(capsys, tmp_path / "new.run", "--baseline", tmp_path / "old.run", "--qrels", qrels)
    ours = found(capsys, file, "--qrels", qrels)
    for name in ("baseline", "value", "p_t", "verdict"):
        assert run["systems"][0]["measures"][0][name] == ours["systems"][0]["measures"][0][name]
    assert main(["evaluate", str(tmp_path / "new.run"), "--qrels", str(qrels)]) == 2
    assert "--baseline" in capsys.readouterr().err


def test_repeats_count_once_and_missing_queries_as_nothing_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, qrels = make(tmp_path, queries=6)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row in rows:
        row["passages"].append({**row["passages"][0], "rank": 21})
    write_lines(tmp_path / "short.jsonl", [*rows[:5], rows[0]])
    document = found(capsys, tmp_path / "short.jsonl", file, "--qrels", qrels)
    short, whole = document["systems"]
    assert (short["missing_queries"], short["repeated_lists"], short["repeated_passages"]) == (1, 1, 5)
    last = measured(qrels, {"q5": orders(file)["q5"][1]}, "nDCG@10")["q5"]
    gap = whole["measures"][0]["value"] - short["measures"][0]["value"]
    assert gap == pytest.approx(last / 6, abs=1e-9)


def test_several_systems_are_one_family(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [make(tmp_path, seed=seed, name=f"{seed}.jsonl", skill=0.5)[0] for seed in range(3)]
    document = found(capsys, *files, "--qrels", tmp_path / "qrels.txt", "--metric", "nDCG@10", "--metric", "RR")
    measures = [one for system in document["systems"] for one in system["measures"]]
    assert {one["family"] for one in measures} == {6}
    assert all(one["p_corrected"] >= max(one["p_t"], one["p_randomisation"]) for one in measures)
    assert document["together"]["queries"] == 80
    assert len(document["likeness"]) == 6


def test_orders_are_compared_without_judgements(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, _ = make(tmp_path, name="one.jsonl", seed=1)
    other, _ = make(tmp_path, name="other.jsonl", seed=2)
    document = found(capsys, one, other)
    assert "systems" not in document
    assert document["headline"][0].startswith("No verdict: without judgements")
    assert "`--qrels`" in document["headline"][2]
    (both,) = (pair for pair in document["likeness"] if (pair["one"], pair["other"]) == (str(one), str(other)))
    first, second = orders(one), orders(other)
    taus = []
    for query in first:
        places = [[run[query][1].index(f"d{at}") for at in range(DEPTH)] for run in (first, second)]
        taus.append(scipy.stats.kendalltau(*places).statistic)
    assert both["kendall_tau"] == pytest.approx(np.mean(taus))
    overlaps = [len(set(first[query][1][:10]) & set(second[query][1][:10])) / 10 for query in first]
    assert both["overlap"] == pytest.approx(np.mean(overlaps))


def test_a_blend_that_helps_is_recommended_with_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Here the given order is good, and the model knows something else."""
    generator = np.random.default_rng(8)
    rows, qrels = [], []
    for query in range(120):
        relevant = generator.random(DEPTH) < 0.2
        first = generator.normal(size=DEPTH) + 1.2 * relevant
        relevant = relevant[np.argsort(-first)]
        logits = generator.normal(size=DEPTH) + 1.2 * relevant
        passages = [
            {"id": f"d{at}", "text": "t", "rank": rank, "logit": float(logits[at]), "index": int(at)}
            for rank, at in enumerate(np.argsort(-logits), 1)
        ]
        rows.append({"query_id": f"q{query}", "query": "t", "passages": passages})
        qrels += [f"q{query} 0 d{at} {int(relevant[at])}\n" for at in range(DEPTH)]
    write_lines(tmp_path / "new.jsonl", rows)
    (tmp_path / "qrels.txt").write_text("".join(qrels))
    use = found(capsys, tmp_path / "new.jsonl", "--qrels", tmp_path / "qrels.txt")["systems"][0]["use"]
    assert use["recommended"].startswith("--")
    assert "--blend" in use["recommended"]
    out = tmp_path / "new.blended.jsonl"
    assert use["command"] == f"rerank-cli rerank-file IN -o {out} {use['recommended']}"
    assert use["gain_of_choosing"] > 0.02
    assert use["depths"][-1] == {"depth": DEPTH, "read": 1.0, "value": use["plain"], "of_gain": pytest.approx(1)}


def test_what_limits_a_system_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, qrels = make(tmp_path, queries=30)
    limits = found(capsys, file, "--qrels", qrels)["systems"][0]["limits"]
    both = orders(file)
    judged = {line.split()[0] + line.split()[2]: int(line.split()[3]) for line in qrels.read_text().splitlines()}
    perfect = {q: sorted(one[1], key=lambda name, q=q: -judged[q + name]) for q, one in both.items()}
    assert limits["perfect_order"] == pytest.approx(np.mean([*measured(qrels, perfect, "nDCG@10").values()]))
    assert limits["judged_in_top_10"] == 1
    without = [q for q in both if not any(judged[q + name] for name in both[q][1])]
    assert limits["without_relevant_candidate"] == len(without)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new.jsonl"], None),
        (["new.jsonl", "new.jsonl", "--qrels", "qrels.txt"], "named twice"),
        (["none.jsonl", "--qrels", "qrels.txt"], "none.jsonl"),
        (["new.jsonl", "--qrels", "other.txt"], "no query of the judgements"),
        (["new.jsonl", "--qrels", "qrels.txt", "--metric", "nDGC@10"], "did you mean nDCG@10"),
        (["new.jsonl", "--metric", "nDCG@10"], "--qrels"),
    ],
)
def test_what_cannot_be_answered_is_refused(
    arguments: list[str], message: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make(tmp_path, queries=3)
    (tmp_path / "other.txt").write_text("x 0 d1 1\n")
    monkeypatch.chdir(tmp_path)
    code = main(["evaluate", *arguments])
    if message is None:
        assert code == 0  # its own given order is there to compare with
    else:
        assert code in (2, 4)
        assert message in capsys.readouterr().err


def test_no_model_is_loaded(tmp_path: Path) -> None:
    file, qrels = make(tmp_path, queries=5)
    code = (
        "import sys; from rerank_cli.cli import main; assert main(sys.argv[1:]) == 0; "
        "assert not {'torch', 'transformers', 'scipy', 'sklearn'} & set(sys.modules), 'loaded'"
    )
    arguments = [sys.executable, "-c", code, "evaluate", str(file), "--qrels", str(qrels)]
    subprocess.run(arguments, check=True, capture_output=True, cwd=ROOT)


def test_values_of_each_query_and_the_document_go_to_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, qrels = make(tmp_path, queries=30)
    other, _ = make(tmp_path, queries=30, skill=0.5, seed=1, name="other.jsonl")
    given = ("--per-query", tmp_path / "q.tsv", "-o", tmp_path / "all.json", "--metric", "nDCG@10", "--metric", "RR@10")
    document = found(capsys, file, other, "--qrels", qrels, *given)
    assert json.loads((tmp_path / "all.json").read_text()) == document
    head, *lines = (line.split("\t") for line in (tmp_path / "q.tsv").read_text().splitlines())
    assert head == ["file", "query_id", "metric", "given", "reranked", "difference"]
    assert len(lines) == 2 * 2 * 30
    for system in document["systems"]:
        for measure in system["measures"]:
            mine = [line for line in lines if line[0] == system["file"] and line[2] == measure["metric"]]
            assert np.mean([float(line[4]) for line in mine]) == pytest.approx(measure["value"], abs=1e-12)
            assert np.mean([float(line[5]) for line in mine]) == pytest.approx(measure["difference"], abs=1e-12)
    assert main(["evaluate", str(file), "--qrels", str(qrels), "-o", str(tmp_path / "all.json")]) == 4
    assert "`--overwrite` replaces it" in capsys.readouterr().err


def test_queries_that_changed_most_come_with_their_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, qrels = make(tmp_path, queries=30)
    document = found(capsys, file, "--qrels", qrels)
    limits, lists = document["systems"][0]["limits"], document["lists"][str(file)]
    both = orders(file)
    for one in (*limits["best"], *limits["worst"], *({"query": q} for q in document["likeness"][0]["most_different"])):
        shown = lists[one["query"]]
        assert [each["id"] for each in shown["given"]] == list(both[one["query"]][0][:5])
        assert [each["id"] for each in shown["new"]] == list(both[one["query"]][1][:5])
        assert [each["place"] for each in shown["new"]] == [
            both[one["query"]][0].index(each["id"]) + 1 for each in shown["new"]
        ]


def test_the_recommended_command_is_the_one_that_made_the_file(tmp_path: Path) -> None:
    file, _ = make(tmp_path)
    line = f"rerank-cli rerank-file 'my file.jsonl' --output={file} --overwrite --model m --report r.html"
    report = {"command": {"line": line, "folder": str(Path.cwd())}, "output": {"bytes": file.stat().st_size}}
    Path(f"{file}.report.json").write_text(json.dumps(report))
    out = tmp_path / "new.blended.jsonl"
    assert recommended_command(str(file), "--depth 40") == (
        f"rerank-cli rerank-file 'my file.jsonl' -o {out} --model m --depth 40"
    )
    report["command"]["folder"] = str(tmp_path)
    Path(f"{file}.report.json").write_text(json.dumps(report))
    assert recommended_command(str(file), "--depth 40").startswith(f"cd {tmp_path} && rerank-cli rerank-file ")
    report["output"] = {"bytes": 1}  # of another file
    Path(f"{file}.report.json").write_text(json.dumps(report))
    assert recommended_command(str(file), "--depth 40") == f"rerank-cli rerank-file IN -o {out} --depth 40"


def test_the_recommended_command_runs_as_it_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With names that a shell would cut: blanks, quotes, `$`, `&`, a bracket, a line that is longer than a terminal."""
    folder = tmp_path / "it's $HOME & (more)"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_lines(
        folder / 'my "lists" $1 [a].jsonl',
        [{"query": "t", "passages": [{"id": str(at), "text": f"t {at}"} for at in range(6)]}],
    )
    checkpoint = str(ROOT / "tests" / "parity" / "bert-ce-open" / "checkpoint")
    given = ["rerank-file", 'my "lists" $1 [a].jsonl', "-o", "the 'new' one.jsonl", "--model", checkpoint, "-q"]
    assert main(given) == 0
    capsys.readouterr()
    command = recommended_command("the 'new' one.jsonl", "--depth 3 --blend rrf:0.5")
    evaluate_text.write_command(command)
    printed = capsys.readouterr().out.strip()
    assert "\n" not in printed
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", printed], capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, (printed, done.stderr)
    new = [json.loads(line) for line in (folder / "the 'new' one.blended.jsonl").read_text().splitlines()]
    assert [one["logit"] is None for one in new[0]["passages"]].count(False) == 3


def test_the_page_says_the_verdict_first_and_has_no_script(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, qrels = make(tmp_path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["query"] = "<script>alert(1)</script>"
    rows = [{**row, "passages": [{**one, "text": "<b>& bold"} for one in row["passages"]]} for row in rows]
    write_lines(file, rows)
    given = ("--qrels", qrels, "--keep-precision", "0.5", "-o", tmp_path / "page.html", "--title", "Of <spring>")
    document = found(capsys, file, *given)
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<b>&amp; bold" not in page
    assert "&lt;b&gt;&amp; bold" in page
    assert "Of &lt;spring&gt;" in page
    titles = [
        "Ship it: ", "Should it ship?", "Queries that changed most", "Change of nDCG@10 by query", "relevant passages",
        "How far passages moved", "How deep", "What a score says", "What limits it", "How alike",
    ]  # fmt: skip
    places = [page.index(title) for title in titles]
    assert places == sorted(places)
    first = document["systems"][0]["limits"]["best"][0]["query"]
    assert f'<span class="id">{first}</span>' in page
    assert main(["evaluate", str(file), "--qrels", str(qrels), "-o", str(tmp_path / "page.txt")]) == 2
    assert main(["evaluate", str(file), "--qrels", str(qrels), "--title", "x"]) == 2


@pytest.mark.parametrize("mode", ["text", "json"])
def test_ids_do_not_act_on_the_terminal(mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evil = "evil\x1b]0;owned\x07\x9b2J\u202e\nid"
    for name, logits in (("one.jsonl", (2.0, 1.0)), ("other.jsonl", (1.0, 2.0))):
        passages = [{"id": place, "index": place, "logit": logit} for place, logit in enumerate(logits)]
        write_lines(tmp_path / name, [{"query_id": evil, "query": "t", "passages": passages}])
    files = [str(tmp_path / "one.jsonl"), str(tmp_path / "other.jsonl")]
    assert main(["evaluate", *files, "--format", mode]) == 0
    shown = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(shown)
    assert "evil" in shown
    if mode == "json":
        assert json.loads(shown)["likeness"][0]["most_different"] == [evil]
