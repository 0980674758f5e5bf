"""Reads what a checkpoint is from its files; no weight is read, and no code of the checkpoint is run.

A checkpoint is a folder with `config.json`, `tokenizer.json`, `tokenizer_config.json` and safetensors weights: one
file, or shards listed by `*.safetensors.index.json`. The kind of model follows from `architectures` in config.json,
never from a name.

Pickle weights (`.bin`, `.pt`) are never read.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rerank_cli.checkpoint.declared import UNDECLARED, Declaration, find_model_folder, read_declaration
from rerank_cli.checkpoint.json_file import read_json_file
from rerank_cli.checkpoint.quantisation import check_quantisation
from rerank_cli.checkpoint.refusals import (
    refuse_architecture,
    refuse_code,
    refuse_modules,
    refuse_other_kinds,
    refuse_other_readings,
    refuse_pickle,
    refuse_pointers,
    refuse_special_files,
    refuse_weights,
    some_names,
)
from rerank_cli.checkpoint.safetensors_header import TensorInfo, read_safetensors_header
from rerank_cli.errors import ModelError
from rerank_cli.storage import fetch_model, is_url

BUILTIN_MODEL = "ms-marco-MiniLM-L-12-v2-int8"
"""The model inside the package, used when none is named."""

_BUILTIN_DIR = Path(__file__).parent / "builtin"
_MAX_LAYERS = 10_000  # ten times the deepest models; layers are built one by one, and 10^9 of them would take for ever
_LAYER_COUNT = re.compile(r"(?:num_|n_)?(?:\w+_)?layers?|depth")
_OUT_OF_RANGE = 2**63  # for numbers of config.json: sizes have 64 bits, and no other number comes near
# What transformers may read beside tokenizer.json when it makes the tokenizer (`encoding/tokenizer.py`).
_TOKENIZER_FILES = (
    "added_tokens.json", "merges.txt", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tokenizer.model",
    "vocab.json", "vocab.txt",
)  # fmt: skip
_COMPANIONS = (".scale", ".zero", ".weight_scale", ".input_scale", ".k_scale", ".v_scale")  # of 8-bit tensors
_SHARD = re.compile(r"-0*([0-9]+)-of-0*([2-9]|[0-9]{2,})\.safetensors$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's configuration and the headers of its weights."""

    path: Path
    """The folder of the model itself."""
    name: str
    """What the user called it."""
    config: Mapping[str, Any]
    """config.json, or one object in it (`section`)."""
    tokenizer_config: Mapping[str, Any]
    """tokenizer_config.json, with the special tokens of older checkpoints (see `_read_tokenizer_config`)."""
    tensors: Mapping[str, TensorInfo]
    processor_config: Mapping[str, Any] = field(default_factory=dict)
    """How a vision model's inputs are made; empty for others."""
    declared: Declaration = UNDECLARED
    """How further files say that the score is computed."""
    root: Path | None = None
    """The folder that was named; `path` is that or lies in it."""
    taken_as: str | None = None
    """The family of rerankers that the user says it is (`recipes.py`)."""
    section: str = ""
    """The key of config.json whose object `config` is; empty for the whole file."""
    blank: bool = False
    """There are no files, only a shape to be measured (`models/measure.py`)."""
    label: int | None = None
    """Which of several labels the user wants as the score (`labels.py`)."""

    @property
    def config_place(self) -> str:
        """The file, and the key in it, that `config` was read from; for messages."""
        return f"{self.path / 'config.json'}{self.section and f': `{self.section}`'}"

    def within(self, key: str) -> Checkpoint:
        """The same checkpoint with the object under `key` as its `config`."""
        value = self.config.get(key)
        if not isinstance(value, dict):
            raise ModelError(f"{self.config_place}: `{key}` must be an object: {value!r}")
        return replace(self, config=value, section=key)

    @property
    def architecture(self) -> str:
        """The one entry of `architectures` in config.json; it decides the family."""
        names = self.config.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise ModelError(f"{self.path / 'config.json'}: `architectures` must name one class: {names!r}")
        return names[0]

    @property
    def tokenizer_file(self) -> Path:
        """Path of tokenizer.json (checked to exist by `read_checkpoint`)."""
        return self.path / "tokenizer.json"

    @property
    def weight_files(self) -> list[Path]:
        """The safetensors files that hold the weights, sorted by name."""
        return sorted({tensor.file for tensor in self.tensors.values()})

    @property
    def parameters(self) -> int:
        """Number of weights; scales and zero points of 8-bit tensors are not counted."""
        return sum(math.prod(tensor.shape) for name, tensor in self.tensors.items() if not name.endswith(_COMPANIONS))

    @property
    def files(self) -> Mapping[str, Path]:
        """The files that decide a score, by name in the folder: configuration, tokenizer, weights, modules."""
        root = self.root or self.path
        beside = [
            self.path / "config.json",
            self.tokenizer_file,
            self.path / "tokenizer_config.json",
            self.path / "special_tokens_map.json",
            *(self.path / name for name in _TOKENIZER_FILES),
            self.path / "processor_config.json",
            self.path / "hf_quant_config.json",
        ]
        declared = [root / name for name in self.declared.files]
        found = [*(path for path in beside if path.exists()), *self.weight_files, *declared]
        return {str(path.relative_to(root)): path for path in dict.fromkeys(found)}

    @cached_property
    def sha256(self) -> str:
        """One digest over the files that decide a score, by name and content."""
        digest = hashlib.sha256()
        for name, path in self.files.items():
            with path.open("rb") as stream:
                digest.update(f"{name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
        return digest.hexdigest()

    def read_json(self, name: str) -> Mapping[str, Any]:
        """The JSON object in the file `name` of the folder; empty if there is no such file."""
        path = self.path / name
        return read_json_file(path) if path.exists() else {}

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of config.json; `ModelError` if it is something else, or missing without a default."""
        value = self.config.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) >= _OUT_OF_RANGE:
            raise ModelError(f"{self.config_place}: `{key}` must be a whole number: {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        """A number of config.json."""
        value = self.config.get(key, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < _OUT_OF_RANGE:
            raise ModelError(f"{self.config_place}: `{key}` must be a number: {value!r}")
        return float(value)

    def text(self, key: str, default: str) -> str:
        """A word of config.json."""
        value = self.config.get(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self.config_place}: `{key}` must be text: {value!r}")
        return value


def locate_checkpoint(model: str | None, *, revision: str | None = None, online: bool = False) -> Path:
    """The folder of `model`: a directory, a copy of a URL, a Hugging Face id in the cache, or (None) the built-in one.

    online: may download what the cache lacks; without it no connection is made.
    """
    if model is None or model == BUILTIN_MODEL:
        return _BUILTIN_DIR / BUILTIN_MODEL
    if is_url(model):
        return fetch_model(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"{model}: not a directory", hint="name the folder that holds config.json")
    if model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise ModelError(
            f"{model}: no such directory", hint="name a folder that holds config.json, or a Hugging Face id"
        )
    # Imported here because it costs 0.1 s, which a directory or the built-in model need not pay.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    # `*` also matches files in folders: each module of sentence-transformers has its own.
    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=not online, allow_patterns=wanted))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        why = next(iter(str(error).splitlines()), type(error).__name__)
        reason = "not in the local Hugging Face cache" if not online else f"cannot be downloaded ({why})"
        raise ModelError(
            f"{model}: {reason}", hint=None if online else "pass a folder, or `--online` to download it"
        ) from error


def read_checkpoint(path: Path, *, name: str | None = None) -> Checkpoint:
    """Read config.json, tokenizer_config.json and the safetensors headers in the folder `path`.

    Raises `ModelError` for anything that is missing, unsafe or contradictory.
    """
    root = path
    refuse_special_files(root)
    path = root / find_model_folder(root)
    refuse_pointers(root, path)
    refuse_weights(root, path)
    refuse_other_kinds(root, path)
    config = read_json_file(path / "config.json")
    _refuse_endless(path / "config.json", config)
    refuse_architecture(root, path, config)
    refuse_other_readings(path, config)
    declared = read_declaration(root)
    refuse_modules(root, config, declared)
    refuse_code(path, config, declared)
    check_quantisation(path, config)
    weight_files = _weight_files(path)
    tokenizer_config = _read_tokenizer_config(path)
    processor = path / "processor_config.json"
    if not (path / "tokenizer.json").is_file():
        raise ModelError(
            f"{path}: no tokenizer.json",
            hint="save the tokenizer in its fast form: `AutoTokenizer.from_pretrained(...).save_pretrained(...)`",
        )
    tensors: dict[str, TensorInfo] = {}
    for file, expected in weight_files.items():
        found = read_safetensors_header(file)
        missing = [tensor for tensor in expected if tensor not in found]
        if missing:
            raise ModelError(f"{file}: the index promises tensors that are not in it: {some_names(missing)}")
        doubled = [tensor for tensor in found if tensor in tensors]
        if doubled:
            raise ModelError(f"{file}: tensors that another shard holds too: {some_names(doubled)}")
        tensors.update(found)
    for file in declared.module_weights:
        if not (root / file).is_file():
            raise ModelError(
                f"{root / file}: missing, and modules.json names a module with weights there; pickle is not read",
                hint="convert its weights with safetensors",
            )
        for stored, info in read_safetensors_header(root / file).items():  # named `2_Dense/linear.weight`
            tensors[f"{file.parent.as_posix()}/{stored}"] = replace(info, stored_name=stored)
    return Checkpoint(
        path=path,
        name=name or root.name,
        config=config,
        tokenizer_config=tokenizer_config,
        tensors=tensors,
        processor_config=read_json_file(processor) if processor.is_file() else {},
        declared=declared,
        root=root,
    )


def _refuse_endless(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a number of layers that no model has, at any depth of a configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            _refuse_endless(path, value)
        elif isinstance(value, int) and value > _MAX_LAYERS and _LAYER_COUNT.fullmatch(key):
            raise ModelError(f"{path}: `{key}` is {value}: at most {_MAX_LAYERS:,} layers are built")


def _read_tokenizer_config(path: Path) -> dict[str, Any]:
    """tokenizer_config.json, updated from special_tokens_map.json if transformers still reads that file.

    Source: transformers 5.23, PreTrainedTokenizerBase._from_pretrained: only without an `added_tokens_decoder`.
    """
    config = read_json_file(path / "tokenizer_config.json") if (path / "tokenizer_config.json").exists() else {}
    old = path / "special_tokens_map.json"
    return config | read_json_file(old) if "added_tokens_decoder" not in config and old.exists() else config


def _weight_files(path: Path) -> dict[Path, list[str]]:
    """The safetensors files of a folder, each with the tensors that an index lists for it.

    As in transformers `model.safetensors` comes first: an index beside it may list shards of an earlier state.
    """
    standard = path / "model.safetensors"
    if standard.is_file():
        return {standard: []}
    indexes = sorted(path.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise ModelError(f"{path}: several weight indexes: {some_names([index.name for index in indexes])}")
    if indexes:
        return _sharded_files(indexes[0])
    files = sorted(path.glob("*.safetensors"))
    if not files:
        refuse_pickle(path)
    if len(files) > 1:
        raise ModelError(f"{path}: several safetensors files and no index: {some_names([file.name for file in files])}")
    if part := _SHARD.search(files[0].name):
        raise ModelError(
            f"{files[0]}: shard {part[1]} of {part[2]}, and neither the others nor an index are there",
            hint="all files of the checkpoint's repository are needed",
        )
    return {files[0]: []}


def _sharded_files(index: Path) -> dict[Path, list[str]]:
    weight_map = read_json_file(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index}: no `weight_map`")
    files: dict[Path, list[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ModelError(f"{index}: a shard must be a file beside the index: {shard!r}")
        files.setdefault(index.parent / shard, []).append(tensor)
    for file in files:
        if not file.is_file():
            raise ModelError(f"{file}: this shard is missing (named by {index.name})")
    return files
