"""Does a model of the published size load without a second copy, and score its longest pairs? Random weights.

    python -m benchmarks.full_size [--pages] [--pairs 1] [--tokens 8192] [--precision bf16] [--fp8] [--folder DIR]

The checkpoint has the shape of llama-nemotron-rerank-1b-v2 (16 layers, 2,048 and 8,192 wide, 32 and 8 heads, 128,256
tokens; 1.24 G parameters, 2.47 GB in bf16), with `--pages` that of llama-nemotron-rerank-vl-1b-v2 (the same language
model with 128,266 tokens, and a SigLIP 2 tower; 1.68 G, 3.36 GB). It is written in pieces, so that writing it needs no
memory to speak of. Only ids matter, so its tokenizer is the tiny one of a test checkpoint. A process of its own scores
the longest texts, as a user would, and with `--pages` another one as many times a page image of seven tiles.

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

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "parity" / "llama-rerank-open" / "checkpoint"
TINY_PAGES = ROOT / "tests" / "parity" / "nemotron-vl-rerank-open" / "checkpoint"
PAGE = "pages/notice.png"  # of samples/
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
PAGES_VOCABULARY = 128_266  # 10 added tokens; so many make the published number of parameters
TOWER_LAYERS, TOWER_HIDDEN, TOWER_INTERMEDIATE, TOWER_HEADS, PATCH, TILE = 27, 1152, 4304, 16, 16, 512
TOWER = {
    "model_type": "siglip_vision_model",
    "hidden_size": TOWER_HIDDEN,
    "intermediate_size": TOWER_INTERMEDIATE,
    "num_hidden_layers": TOWER_LAYERS,
    "num_attention_heads": TOWER_HEADS,
    "image_size": TILE,
    "patch_size": PATCH,
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


def tensors(*, fp8: bool, pages: bool = False) -> Iterator[Stored]:
    """The tensors of the published shape."""
    if pages:
        yield from _tower("model.vision_model.vision_model")
        wide = 4 * TOWER_HIDDEN  # 2 x 2 patches
        yield from _layer("model.mlp1.0", wide)
        yield from _layer("model.mlp1.1", HIDDEN, wide)
        yield from _layer("model.mlp1.3", HIDDEN, HIDDEN)
        yield from _language("model.language_model", PAGES_VOCABULARY, fp8=fp8)
    else:
        yield from _language("model", VOCABULARY, fp8=fp8)
    yield Stored("score.weight", "BF16", (1, HIDDEN))


def _tower(prefix: str) -> Iterator[Stored]:
    """SigLIP, its unused head included."""
    yield Stored(f"{prefix}.embeddings.patch_embedding.weight", "BF16", (TOWER_HIDDEN, 3, PATCH, PATCH))
    yield Stored(f"{prefix}.embeddings.patch_embedding.bias", "BF16", (TOWER_HIDDEN,))
    yield Stored(f"{prefix}.embeddings.position_embedding.weight", "BF16", ((TILE // PATCH) ** 2, TOWER_HIDDEN))
    for number in range(TOWER_LAYERS):
        name = f"{prefix}.encoder.layers.{number}"
        for norm in ("layer_norm1", "layer_norm2"):
            yield from _layer(f"{name}.{norm}", TOWER_HIDDEN)
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{name}.self_attn.{part}", TOWER_HIDDEN, TOWER_HIDDEN)
        yield from _layer(f"{name}.mlp.fc1", TOWER_INTERMEDIATE, TOWER_HIDDEN)
        yield from _layer(f"{name}.mlp.fc2", TOWER_HIDDEN, TOWER_INTERMEDIATE)
    yield from _layer(f"{prefix}.post_layernorm", TOWER_HIDDEN)
    yield Stored(f"{prefix}.head.probe", "BF16", (1, 1, TOWER_HIDDEN))
    yield Stored(f"{prefix}.head.attention.in_proj_weight", "BF16", (3 * TOWER_HIDDEN, TOWER_HIDDEN))
    yield Stored(f"{prefix}.head.attention.in_proj_bias", "BF16", (3 * TOWER_HIDDEN,))
    yield from _layer(f"{prefix}.head.attention.out_proj", TOWER_HIDDEN, TOWER_HIDDEN)
    yield from _layer(f"{prefix}.head.layernorm", TOWER_HIDDEN)
    yield from _layer(f"{prefix}.head.mlp.fc1", TOWER_INTERMEDIATE, TOWER_HIDDEN)
    yield from _layer(f"{prefix}.head.mlp.fc2", TOWER_HIDDEN, TOWER_INTERMEDIATE)


def _layer(name: str, outputs: int, *inputs: int) -> Iterator[Stored]:
    """A linear layer, or a norm where there are no inputs, with its bias."""
    yield Stored(f"{name}.weight", "BF16", (outputs, *inputs))
    yield Stored(f"{name}.bias", "BF16", (outputs,))


def _language(prefix: str, vocabulary: int, *, fp8: bool) -> Iterator[Stored]:
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
    yield Stored(f"{prefix}.embed_tokens.weight", "BF16", (vocabulary, HIDDEN))
    for layer in range(LAYERS):
        name = f"{prefix}.layers.{layer}"
        for part, shape in linears.items():
            yield Stored(f"{name}.{part}.weight", "F8_E4M3" if fp8 else "BF16", shape)
            if fp8:
                yield Stored(f"{name}.{part}.weight_scale", "F32", ())
                yield Stored(f"{name}.{part}.input_scale", "F32", ())
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield Stored(f"{name}.{norm}.weight", "BF16", (HIDDEN,))
    yield Stored(f"{prefix}.norm.weight", "BF16", (HIDDEN,))


def write_checkpoint(folder: Path, *, fp8: bool = False, pages: bool = False) -> None:
    """Write config, tokenizer and random weights to `folder`."""
    tiny = TINY_PAGES if pages else TINY
    for path in tiny.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    config: dict[str, object] = dict(CONFIG)
    if pages:  # what is not a size is as in the tiny checkpoint
        config = json.loads((tiny / "config.json").read_text())
        config |= {"llm_config": CONFIG | {"vocab_size": PAGES_VOCABULARY}, "vision_config": TOWER}
    if fp8:
        config["quantization_config"] = FP8
    (folder / "config.json").write_text(json.dumps(config))
    stored = list(tensors(fp8=fp8, pages=pages))
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
        value = torch.full_like(random, not tensor.name.endswith("bias")).bfloat16()
    else:
        value = (0.02 * random).bfloat16()
    return value.view(torch.uint8).numpy().tobytes()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", action="store_true", help="the page-image reranker")
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
        write_checkpoint(folder, fp8=options.fp8, pages=options.pages)
        file_bytes = (folder / "model.safetensors").stat().st_size
        print(f"checkpoint of {file_bytes / 1e9:.2f} GB written in {time.perf_counter() - began:.0f} s", flush=True)
        words = " ".join(f"word{number}" for number in range(options.tokens))  # more tokens than words
        passages = [{"passage": words}, *[{"passage": "", "image": PAGE}] * options.pages]
        within = [_score(folder, options, passage) for passage in passages]
    if not all(within):
        raise SystemExit(1)


def _score(folder: Path, options: argparse.Namespace, passage: dict[str, str]) -> bool:
    """Have a process score pairs with this passage, and print what it took; whether its memory is within the limit."""
    rows, out = folder / "rows.jsonl", folder / "out.jsonl"
    with rows.open("w") as file:
        for number in range(options.pairs):
            file.write(json.dumps({"query": f"query {number}", **passage}) + "\n")
    command = [sys.executable, "-m", "rerank_cli", "score", str(rows), "-o", str(out), "-q", "--overwrite"]
    limits = ["--max-tokens", str(options.tokens), "--precision", options.precision]
    subprocess.run([*command, *limits, "--model", str(folder), "--image-root", str(ROOT / "samples")], check=True)
    report = json.loads(Path(f"{out}.report.json").read_text())
    counts, plan = report["counts"], report["plan"]
    weights = report["model"]["parameters"] * _HELD[options.precision]
    limit = 1.15 * weights + 600 * 2**20
    peak, estimate = report["peak_rss_bytes"], plan["needed_bytes"]
    print(
        f"{counts['pairs']} pairs, {counts['tokens']:,} tokens, {counts['tiles']} tiles in "
        f"{report['seconds']['compute']:.0f} s ({options.precision}; {plan['kernels']})\n"
        f"peak RSS {_mib(peak)}, weights {_mib(weights)}; limit {_mib(limit)}: "
        f"{'within' if peak <= limit else 'EXCEEDED'}; the plan's estimate {_mib(estimate) if estimate else 'none'}",
        flush=True,
    )
    return bool(peak <= limit)


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
