"""The same ranking quality as the padded transformers forward: nDCG@10 of both on whole collections, by ir-measures.

    python -m benchmarks.quality [--collection cranfield] [--collection vaswani] [--queries N]

The reference is transformers' own BertForSequenceClassification and tokenizer on the built-in model, dequantised; the
other side is the `rerank-cli rerank-file` command, run as a process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import ir_measures
import torch
from ir_measures import ScoredDoc, nDCG
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.material import COLLECTIONS, machine, plain_checkpoint

BATCH = 16


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collection", action="append")
    parser.add_argument("--queries", type=int, help="take only the first N; default: all")
    parser.add_argument("--model", help="a checkpoint folder; default: the built-in model")
    options = parser.parse_args()
    print(machine())
    for name in options.collection or ["cranfield", "vaswani"]:
        folder = COLLECTIONS / name
        if not folder.exists():
            print(f"{name}: skipped, {folder} is not here")
            continue
        lines = (folder / "candidates.jsonl").read_text(encoding="utf-8").splitlines()
        lists = [json.loads(line) for line in lines[: options.queries]]
        queries = {row["query_id"] for row in lists}
        judged = ir_measures.read_trec_qrels(str(folder / "qrels.txt"))
        qrels = [qrel for qrel in judged if qrel.query_id in queries]
        given = [
            ScoredDoc(row["query_id"], passage["id"], -float(place))
            for row in lists
            for place, passage in enumerate(row["candidates"])
        ]
        ours = _ours(folder / "candidates.jsonl", options.model, len(lists))
        with tempfile.TemporaryDirectory() as plain:
            checkpoint = plain_checkpoint(Path(plain), model=options.model)
            theirs = _reference(lists, checkpoint)
        figures = {
            side: ir_measures.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10]
            for side, run in (("given", given), ("rerank-cli", ours), ("padded transformers", theirs))
        }
        apart = max(abs(a.score - b.score) for a, b in zip(sorted(ours), sorted(theirs), strict=True))
        shown = ", ".join(f"{side} {value:.4f}" for side, value in figures.items())
        print(f"{name}, {len(lists)} queries: nDCG@10 {shown}; max |logit difference| {apart:.1e}", flush=True)


def _ours(candidates: Path, model: str | None, queries: int) -> list[ScoredDoc]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        more = ["--limit", str(queries), *(["--model", model] if model else [])]
        command = [sys.executable, "-m", "rerank_cli", "rerank-file", str(candidates), "-o", str(out), "-q", *more]
        subprocess.run(command, check=True)
        rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    return [ScoredDoc(row["query_id"], entry["id"], entry["logit"]) for row in rows for entry in row["candidates"]]


@torch.inference_mode()
def _reference(lists: list[dict], checkpoint: Path) -> list[ScoredDoc]:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    pairs = [(row["query_id"], row["query"], entry) for row in lists for entry in row["candidates"]]
    pairs.sort(key=lambda pair: len(pair[2]["text"]))
    run = []
    for begin in range(0, len(pairs), BATCH):
        some = pairs[begin : begin + BATCH]
        texts = [query for _, query, _ in some], [entry["text"] for _, _, entry in some]
        inputs = tokenizer(*texts, padding=True, truncation="only_second", max_length=512, return_tensors="pt")
        logits = model(**inputs).logits.squeeze(1).tolist()
        run += [ScoredDoc(query, entry["id"], logit) for (query, _, entry), logit in zip(some, logits, strict=True)]
    return run


if __name__ == "__main__":
    main()
