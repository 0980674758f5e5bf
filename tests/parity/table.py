"""The table of model families, with the largest difference from their authors' code, made from the goldens.

    python -m tests.parity.table            prints the table
    python -m tests.parity.table --record   measures anew, through the command line, and writes worst.json
    python -m tests.parity.table --write    puts the table into the page

worst.json holds, for each golden, the largest difference of any case, alone or in one batch, rounded up to one digit.
The parity tests fail where a difference grows to ten times that, and a test compares the page with this table.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from rerank_cli.checkpoint import read_checkpoint

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "reference" / "models.md"
RECORD = HERE / "worst.json"
BEGIN, END = (
    "<!-- parity: begin (made by `python -m tests.parity.table --write`; a test compares) -->",
    "<!-- parity: end -->",
)
GROWTH = 10  # times the recorded worst: other processors add in another order, and that is no change of the code

FAMILIES = {
    "BertForSequenceClassification": "BERT cross-encoders",
    "XLMRobertaForSequenceClassification": "XLM-R cross-encoders",
    "ModernBertForSequenceClassification": "ModernBERT cross-encoders",
    "ModernBertModel": "ModernBERT with a declared head (ettin)",
    "NewForSequenceClassification": "gte-multilingual-reranker",
    "DebertaV2ForSequenceClassification": "DeBERTa-v2 cross-encoders",
    "LlamaBidirectionalForSequenceClassification": "Nemotron and AutoModel rerankers",
    "LlamaNemotronVLForSequenceClassification": "Nemotron page-image rerankers",
    "LlamaNemotronVLModel": "Nemotron page-image embedders",
    "Qwen3ForCausalLM": "Qwen3-Reranker",
    "Qwen2ForCausalLM": "mxbai-rerank v2",
    "GemmaForCausalLM": "bge-reranker-v2-gemma",
    "Qwen3ForSequenceClassification": "Qwen3 classifiers",
    "LlamaForSequenceClassification": "Llama classifiers",
}
# What a checkpoint declares decides more than its architecture.
DECLARED = {
    "zerank2-open": "one LogitScore, roles in a chat template (zerank-2)",
    "qwen3-st-open": "Qwen3-Reranker with a LogitScore and a default prompt",
    "ctxl-open": "document before query, one LogitScore (ctxl-rerank)",
    "qwen3-seqcls-open": "Qwen3 classifier with a chat template and a default prompt",
    "llama-seqcls-st-open": "Llama classifier of plain pairs",
    "bert-prompt-open": "BERT with a default prompt",
    "bert-types-open": "BERT without token types",
    "bert-stcfg-open": "BERT with a limit and lower-casing of its own",
    "bert-left-open": "BERT that is cut on the left",
    "jina-v2-open": "jina-reranker-v2 (flash XLM-R)",
    "monobert-2label-open": "monoBERT (two labels)",
}


def recorded() -> dict[str, float]:
    """The largest difference of each golden when it was last measured."""
    found: dict[str, float] = json.loads(RECORD.read_text())
    return found


def limit(name: str, tolerance: float) -> float:
    """How far a case of a golden may be off: its tolerance, or less where the product has come nearer."""
    return min(tolerance, GROWTH * recorded().get(name, math.inf))


def render() -> str:
    """The table in Markdown."""
    lines = [
        "| family | `architectures` | golden | cases | compared | tolerance | largest difference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    worst = recorded()
    for name in sorted(worst, key=lambda name: (list(FAMILIES).index(_architecture(name)), name)):
        architecture, row = _architecture(name), _facts(name)
        cases = f"{row['cases']}, {row['images']} with images" if row["images"] else f"{row['cases']}"
        family = DECLARED.get(name, FAMILIES[architecture]) + row["more"]
        lines.append(
            f"| {family} | `{architecture}` | `{name}` | {cases} | {row['what']} | "
            f"{_number(row['tolerance'])} | {_number(worst[name])} |"
        )
    return "\n".join(lines)


def _architecture(name: str) -> str:
    return read_checkpoint(HERE / name / "checkpoint").architecture


def _facts(name: str) -> dict[str, Any]:
    from tests.parity.conftest import GOLDENS, read_jsonl
    from tests.parity.test_embedding_golden import TOLERANCE

    cases = read_jsonl(HERE / name / "cases.jsonl")
    facts = {"cases": len(cases), "images": sum(1 for case in cases if case.get("image"))}
    more = ", FP8" if (HERE / name / "checkpoint" / "hf_quant_config.json").exists() else ""
    if name in GOLDENS:
        return facts | {"tolerance": GOLDENS[name].tolerance, "what": "logit", "more": more}
    return facts | {"tolerance": TOLERANCE, "what": "vector", "more": more}


def _number(value: float) -> str:
    return f"{value:.0e}".replace("e-0", "e-")


def measure() -> dict[str, float]:
    """The largest difference of each golden, now, rounded up to one digit."""
    from tests.parity import test_embedding_golden as embedding
    from tests.parity.conftest import GOLDENS
    from tests.parity.test_golden import differences, scored

    worst: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for budget in ("1", "1000000"):
            for golden in GOLDENS.values():
                for group in golden.groups:
                    found = differences(golden, scored(golden, group, folder, "--token-budget", budget))
                    worst[golden.name] = max(worst.get(golden.name, 0.0), *found.values())
            for label in embedding.GOLDENS:
                one = embedding.load(label)
                vectors = embedding.vectors_of(one, folder, "--token-budget", budget, "--overwrite")
                worst[label] = max(worst.get(label, 0.0), *embedding.differences(one, vectors).values())
    return {name: _rounded_up(value) for name, value in sorted(worst.items())}


def _rounded_up(value: float) -> float:
    unit = 10.0 ** math.floor(math.log10(value)) if value else 1e-9
    return float(f"{math.ceil(value / unit) * unit:.0e}")


def main(arguments: list[str]) -> None:
    """Print, record or write."""
    if "--record" in arguments:
        RECORD.write_text(json.dumps(measure(), indent=2) + "\n")
    if "--write" in arguments:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{render()}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    print(render())  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
