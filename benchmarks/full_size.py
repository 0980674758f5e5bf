"""Does a model of the published size load without a second copy, and score its longest pairs? Random weights.

    python -m benchmarks.full_size [--pairs 1] [--tokens 8192] [--precision bf16] [--fp8] [--folder DIR]

The checkpoint has the shape of llama-nemotron-rerank-1b-v2 (16 layers, 2,048 and 8,192 wide, 32 and 8 heads, 128,256
tokens; 1.24 G parameters, 2.47 GB in bf16) and is written in pieces, so that writing it needs no memory to speak of.
Only ids matter, so its tokenizer is the tiny one of a test checkpoint. A process of its own scores, as a user would.

The limit on its peak of resident memory is 1.15 times the weights as they are held, and 600 MiB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from benchmarks.material import machine

TINY = Path(__file__).parents[1] / "tests" / "parity" / "llama-rerank-open" / "checkpoint"
LAYERS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY = 16, 2048, 8192, 32, 8, 128_256
CONFIG = {
    "architectures": ["LlamaBidirectionalForSequenceClassification"],
    "model_type": "llama_bidirec",
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": 131_072,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
    "vocab_size": VOCABULARY,
    "id2label": {"0": "LABEL_0"},
    "pooling": "avg",
    "temperature": 1.0,
}
FP8 = {"quant_method": "modelopt", "quant_algo": "FP8"}
_PIECE = 2**22  # weights that are made and written at a time
_BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
_HELD = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a weight in each precision


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of the checkpoint as safetensors describes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * _BYTES[self.dtype]


def tensors(*, fp8: bool) -> Iterator[Stored]:
    """The tensors of the published shape, in the order of the file."""
    heads, kv = HIDDEN, HIDDEN * KV_HEADS // HEADS
    linears = {
        "self_attn.q_proj": (heads, HIDDEN),
        "self_attn.k_proj": (kv, HIDDEN),
        "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, heads),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    yield Stored("model.embed_tokens.weight", "BF16", (VOCABULARY, HIDDEN))
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        for part, shape in linears.items():
            yield Stored(f"{name}.{part}.weight", "F8_E4M3" if fp8 else "BF16", shape)
            if fp8:
                yield Stored(f"{name}.{part}.weight_scale", "F32", ())
                yield Stored(f"{name}.{part}.input_scale", "F32", ())
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Stored(f"{name}.{norm}.weight", "BF16", (HIDDEN,))
    yield Stored("model.norm.weight", "BF16", (HIDDEN,))
    yield Stored("score.weight", "BF16", (1, HIDDEN))


def write_checkpoint(folder: Path, *, fp8: bool = False) -> None:
    """Write config, tokenizer and random weights to `folder`."""
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copyfile(TINY / name, folder / name)
    config = CONFIG | ({"quantization_config": FP8} if fp8 else {})
    (folder / "config.json").write_text(json.dumps(config))
    stored = list(tensors(fp8=fp8))
    header, position = {}, 0
    for tensor in stored:
        offsets = [position, position + tensor.size_bytes]
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    # One block of random numbers serves for all weights: what is measured does not depend on them.
    block = torch.randn(_PIECE, generator=torch.Generator().manual_seed(0))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in stored:
            for count in _pieces(prod(tensor.shape)):
                file.write(_values(tensor, block[:count]))


def _pieces(count: int) -> Iterator[int]:
    while count:
        yield min(count, _PIECE)
        count -= min(count, _PIECE)


def _values(tensor: Stored, random: torch.Tensor) -> bytes:
    if tensor.dtype == "F32":  # the scales of FP8: weights of about 0.02, inputs up to 10
        value = torch.tensor([10 / 448 if tensor.name.endswith("input_scale") else 0.02])
    elif tensor.dtype == "F8_E4M3":
        value = random.to(torch.float8_e4m3fn)
    elif len(tensor.shape) == 1:
        value = torch.ones_like(random).bfloat16()
    else:
        value = (0.02 * random).bfloat16()
    return value.view(torch.uint8).numpy().tobytes()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--precision", choices=_HELD, default="bf16")
    parser.add_argument("--fp8", action="store_true", help="FP8 weights, as ModelOpt stores them")
    parser.add_argument("--folder", help="where the checkpoint goes for a while; default: the system's own")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        began = time.perf_counter()
        write_checkpoint(folder, fp8=options.fp8)
        file_bytes = (folder / "model.safetensors").stat().st_size
        print(f"checkpoint of {file_bytes / 1e9:.2f} GB written in {time.perf_counter() - began:.0f} s", flush=True)
        report = _score(folder, options)
    weights = report["model"]["parameters"] * _HELD[options.precision]
    limit = 1.15 * weights + 600 * 2**20
    peak, seconds = report["peak_rss_bytes"], report["seconds"]["compute"]
    print(
        f"{report['counts']['pairs']} pairs, {report['counts']['tokens']:,} tokens in {seconds:.0f} s "
        f"({options.precision}; {report['plan']['kernels']})\n"
        f"peak RSS {peak / 2**20:,.0f} MiB, weights {weights / 2**20:,.0f} MiB; limit {limit / 2**20:,.0f} MiB: "
        f"{'within' if peak <= limit else 'EXCEEDED'}"
    )
    if peak > limit:
        raise SystemExit(1)


def _score(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """The report of a process that scores pairs which fill the limit."""
    rows, out = folder / "rows.jsonl", folder / "out.jsonl"
    words = " ".join(f"word{number}" for number in range(options.tokens))  # more tokens than words
    with rows.open("w") as file:
        for number in range(options.pairs):
            file.write(json.dumps({"query": f"query {number}", "passage": words}) + "\n")
    command = [sys.executable, "-m", "rerank_cli", "score", str(rows), "-o", str(out), "-q", "--model", str(folder)]
    limits = ["--max-tokens", str(options.tokens), "--precision", options.precision]
    subprocess.run([*command, *limits], check=True)
    document: dict[str, dict[str, object]] = json.loads(Path(f"{out}.report.json").read_text())
    return document


if __name__ == "__main__":
    main()
