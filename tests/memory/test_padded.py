"""The bound for classifiers that transformers runs: the storages that their own code keeps alive, and real memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from rerank_cli.checkpoint import Checkpoint, read_checkpoint
from rerank_cli.models.tracker import padded_peak
from rerank_cli.planning.memory import BatchSize, Execution, MemoryModel, Placement, estimate, peak, read_model_shape
from rerank_cli.planning.memory.shape import _FUSED, _SCORES

SIZES: dict[str, Any] = {
    "hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 2, "intermediate_size": 1536,
    "vocab_size": 100, "max_position_embeddings": 1026, "type_vocab_size": 2, "pad_token_id": 0, "num_labels": 1,
}  # fmt: skip
ALLOWED = 8 * 2**20  # of small blocks, kernels of oneDNN and code that is run for the first time
DEBERTA = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
DEBERTA_V2 = {**DEBERTA, "position_buckets": 64, "share_att_key": True, "norm_rel_ebd": "layer_norm"}
DISTIL = {"dim": 384, "n_heads": 6, "n_layers": 2, "hidden_dim": 1536, "hidden_size": None,
          "num_attention_heads": None, "num_hidden_layers": None, "intermediate_size": None}  # fmt: skip
MODELS = {
    "Albert": ("albert", {"embedding_size": 64}),
    "DistilBert": ("distilbert", DISTIL),
    "Ernie": ("ernie", {}),
    "Gte": ("gte", {}),
    "XLMRobertaXL": ("xlm-roberta-xl", {}),
    "MPNet": ("mpnet", {}),
    "RoFormer": ("roformer", {}),
    "Deberta": ("deberta", DEBERTA),
    "DebertaV2": ("deberta-v2", DEBERTA_V2),
}


def checkpoint_of(name: str, folder: Path) -> Checkpoint:
    kind, more = MODELS[name]
    facts = {**SIZES, **more, "architectures": [f"{name}ForSequenceClassification"], "model_type": kind}
    config = {key: value for key, value in facts.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return Checkpoint(folder, name, config, {}, {})


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_holds_and_is_not_far_from_what_the_model_takes(name: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(name, tmp_path)
    shape = read_model_shape(checkpoint)
    assert (shape.hidden, shape.heads, shape.layers, shape.intermediate) == (384, 6, 2, 1536)
    for pairs, length in ((4, 512), (1, 1000)):
        taken = padded_peak(checkpoint, pairs=pairs, length=length, dtype=torch.float32)
        bound = peak(shape, BatchSize.of([length] * pairs), Execution(element=4)).total
        assert taken <= bound <= 1.8 * taken, (pairs, length)


def test_transformers_leaves_to_its_kernels_what_is_said_to_be_fused() -> None:
    known = {name: getattr(transformers, name)._supports_sdpa for name in (*_FUSED, *_SCORES)}
    assert {name for name, fused in known.items() if fused} == set(_FUSED)


# As a run has it: the settings of the process, the model, batches of other lengths. Prints bytes beyond the model's.
MEASURES = """
import sys
from pathlib import Path
from rerank_cli.machine.this_process import keep_freed_memory, peak_rss_bytes, prepare_process
prepare_process(online=False)
keep_freed_memory()
import numpy as np
import torch
from rerank_cli.checkpoint import read_checkpoint
from rerank_cli.models.padded import PaddedCrossEncoder
from rerank_cli.records import EncodedPair

def batch(pairs, length):
    return [EncodedPair(np.full(length, 7, dtype=np.int32), length // 2, length) for _ in range(pairs)]

torch.set_num_threads(1)
for folder in sys.argv[1:]:
    model = PaddedCrossEncoder(
        read_checkpoint(Path(folder)), device=torch.device("cpu"), dtype=torch.float32, attention="runs"
    )
    with torch.inference_mode():
        model.forward(batch(1, 8))
        Path("/proc/self/clear_refs").write_text("5")
        before = peak_rss_bytes()
        for pairs, length in ((4, 512), (5, 405), (7, 290), (4, 500), (13, 150), (4, 512)):
            model.forward(batch(pairs, length))
    print(peak_rss_bytes() - before, flush=True)
    del model
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a part of a run")
def test_a_run_takes_no_more_memory_than_is_estimated(tmp_path: Path) -> None:
    folders = []
    for name in ("Albert", "MPNet"):
        folder = tmp_path / name
        folder.mkdir()
        more = MODELS[name][1]
        config = getattr(transformers, f"{name}Config")(**{**SIZES, **more, "num_hidden_layers": 1})
        getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(Path(__file__).parents[1] / "parity" / "bert-ce-open" / "checkpoint" / file, folder)
        folders.append(folder)
    done = subprocess.run(
        [sys.executable, "-c", MEASURES, *map(str, folders)], capture_output=True, text=True, timeout=120, check=True
    )
    for folder, taken in zip(folders, map(int, done.stdout.split()), strict=True):
        found = estimate(
            MemoryModel.of_checkpoint(read_checkpoint(folder)),
            BatchSize.of([512] * 4),
            Placement(cpu=True, precision="fp32"),
        )
        assert taken <= found.forward + found.slack + ALLOWED, (folder.name, taken, found)
