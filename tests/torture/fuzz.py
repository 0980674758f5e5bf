"""Bytes that a reader neither reads nor refuses, and the search for them: `python -m tests.torture.fuzz TARGET`.

A target takes any bytes and raises where it finds a fault. The search is atheris', which follows the branches of our
Python (and Pillow's) to new inputs; it ends with a code other than 0 at the first traceback, at an input that takes
longer than 10 s, and at one that takes more than 4 GB. `test_fuzz.py` gives the same targets to hypothesis, which
needs nothing to be installed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

PARITY = Path(__file__).parents[1] / "parity"
SECONDS_OF_AN_INPUT = 10
_MEGABYTES = 4096
IN_MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # hundreds of small files a second
_MAX_BYTES = 8192
_FAMILIES = (
    "bert-ce-open", "modernbert-ce-open", "llama-rerank-open", "qwen3-reranker-open", "nemotron-vl-rerank-open",
    "nemotron-vl-embed-fp8-open",
)  # fmt: skip
_CHECKPOINTS = tuple(PARITY / name / "checkpoint" for name in _FAMILIES)


@dataclass(frozen=True)
class Target:
    """One reader.

    instrumented: the packages whose branches are followed. open: returns the function that takes bytes. seeds: inputs
    that are right. words: what its inputs are made of.
    """

    instrumented: tuple[str, ...]
    open: Callable[[Path], Callable[[bytes], None]]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[str] = ()


def _row(folder: Path) -> Callable[[bytes], None]:
    from rerank_cli.formats.jsonl import dump_row, error_row, parse_row
    from rerank_cli.records import RowError

    def read(data: bytes) -> None:
        raw = data.replace(b"\n", b" ")
        found = parse_row(raw, file="in.jsonl", number=1)
        if isinstance(found, RowError):
            assert json.loads(error_row(found))["row"] == 1
        else:  # what passes can be written and read again
            assert json.loads(dump_row(dict(found.fields))) == json.loads(raw)

    return read


def _rows(folder: Path) -> Callable[[bytes], None]:
    from rerank_cli.errors import RerankError
    from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
    from rerank_cli.formats.jsonl import error_row
    from rerank_cli.formats.scattered_groups import ordered_by_group
    from rerank_cli.formats.shapes import SHAPES, FieldNames, Selection, written_as
    from rerank_cli.records import CandidateList, Gap, RankedList, RankedPassage, RowError

    others = [kind for kind in SHAPES.values() if kind.name != "trec"]

    def read(data: bytes) -> None:
        path = folder / "in.jsonl"
        path.write_bytes(data[1:])
        options = ReadOptions(max_line_bytes=2000)
        inputs = resolve_inputs([str(path)])
        try:
            shape, items = open_lists(inputs, FieldNames(), options, "auto")
            shape = written_as(shape, others[data[0] % len(others)]) if data[:1] else shape
            items = ordered_by_group(inputs, shape, items, options)
        except RerankError as error:
            assert error.message
            return
        lines = 0
        for item in shape.group(items):
            if isinstance(item, RowError):
                json.loads(error_row(item))
                shape.kind.dump_error(item)
            elif isinstance(item, CandidateList):
                order = range(len(item.passages))
                ranking = tuple(RankedPassage(place + 1, place, -float(place), 9, 9) for place in order)
                for line in shape.render(RankedList(item, ranking), Selection(prob=True)):
                    json.loads(shape.kind.dump(line))
            lines += len(item.rows) if isinstance(item, CandidateList) else item is not Gap.IDLE
        assert lines == data[1:].count(b"\n") + bool(data[1:] and not data.endswith(b"\n"))

    return read


def _image(folder: Path) -> Callable[[bytes], None]:
    from rerank_cli.encoding.images import ImageProblem, ImageReader
    from rerank_cli.records import ImageSource

    reader = ImageReader(tile_size=32, max_tiles=6, max_pixels=10_000)

    def read(data: bytes) -> None:
        with contextlib.suppress(ImageProblem):
            image = reader.open(ImageSource(data))
            assert len(reader.cut(image, reader.grid(image)).pixels) >= 1

    return read


def _config(folder: Path) -> Callable[[bytes], None]:
    from rerank_cli.encoding.encoder import open_encoder
    from rerank_cli.engine import open_engine
    from rerank_cli.errors import RerankError
    from rerank_cli.machine.detect import detect_machine
    from rerank_cli.planning.choices import ProfileRequest
    from rerank_cli.planning.known_model import find_model
    from rerank_cli.planning.run_plan import plan_model, plan_run

    machine = detect_machine()
    models, documents = [], []
    for checkpoint in _CHECKPOINTS:
        models.append(folder / checkpoint.parent.name)
        shutil.copytree(checkpoint, models[-1], dirs_exist_ok=True)
        documents.append(json.loads((checkpoint / "config.json").read_bytes()))

    def read(data: bytes) -> None:
        """The first byte says which checkpoint, and whether the others are its config.json or change it."""
        which, changes = divmod(data[0] if data else 0, 2)
        which %= len(models)
        model = models[which]
        (model / "config.json").write_bytes(changed(documents[which], data[1:]) if changes else data[1:])
        try:
            known = find_model(str(model))
            plan = plan_run(plan_model(ProfileRequest(), known, machine), cuda_devices=0)
            assert known.checkpoint is not None
            encoder = open_encoder(known.checkpoint, max_tokens=min(64, plan.max_tokens))
            (encoded,) = encoder.encode([("two roads", "a yellow wood")])
            engine = open_engine(replace(plan, threads=1), known.checkpoint)
            engine.submit(encoded if isinstance(encoded, tuple) else ())
        except RerankError as error:
            assert error.message

    return read


def _header(folder: Path) -> Callable[[bytes], None]:
    from rerank_cli.checkpoint import read_safetensors_header
    from rerank_cli.errors import ModelError

    path = folder / "model.safetensors"

    def read(data: bytes) -> None:
        """The first byte says whether the others are the file, a header and tensors, or changes to a header."""
        kind, body = data[0] % 3 if data else 0, data[1:]
        if kind:
            text, _, tensors = body.partition(b"\0") if kind == 1 else (changed(_HEADER, body), b"", bytes(25))
            body = struct.pack("<Q", len(text)) + text + tensors
        path.write_bytes(body)
        try:
            found = read_safetensors_header(path)
        except ModelError as error:
            assert error.message
        else:
            assert sum(tensor.size_bytes for tensor in found.values()) <= len(body)

    return read


_NUMBERS = [0, 1, -1, 2, 3, 7, 24, 64, 10**6, 2**31, 2**62, 2**64, 10**40, -(2**63), 0.5, -0.0, 1e308, 1e400]
_VALUES: list[Any] = [
    None, True, False, "", "gelu", "F32", "BF16", "\ud800", "a" * 5000, [], [0], [0, 24], [1, None], [[]], [2] * 70,
    {}, {"a": 1}, {"rope_type": "llama3", "factor": 0}, {"quant_method": "modelopt"}, float("nan"), *_NUMBERS,
]  # fmt: skip


def changed(document: Any, changes: bytes) -> bytes:
    """`document` as JSON, with another value, or none, at the places that pairs of bytes name."""
    document = copy.deepcopy(document)
    for place, value in zip(changes[::2], changes[1::2], strict=False):
        paths = list(_paths(document))
        if not paths:
            break
        holder, key = paths[place % len(paths)]
        if value < len(_VALUES):
            holder[key] = copy.deepcopy(_VALUES[value])
        elif value % 2:
            del holder[key]
        else:  # the value of another place
            other, name = paths[value % len(paths)]
            holder[key] = copy.deepcopy(other[name])
    return json.dumps(document).encode()


def _paths(value: Any) -> Iterator[tuple[Any, Any]]:
    """Where a value of a document stands: what holds it, and its key or place in that."""
    names: Iterable[Any] = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for name in list(names):
        yield value, name
        yield from _paths(value[name])


_HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b.weight": {"dtype": "F8_E4M3", "shape": [], "data_offsets": [24, 25]},
}


def _row_seeds() -> list[bytes]:
    return [
        b'{"id": 12, "query": "wo f\xc3\xbchrt der Weg hin?", "passages": ["a \\u00e9", {"text": "b", "x": [1.50]}]}',
        b'{"query": null, "passages": [], "x": [-0, 1e5, 1.10, 12345678901234567890, true, {"a": {"b": []}}]}',
        b'\xef\xbb\xbf{"query": "\\ud83d\\ude00", "passage": "\\ud800"}',
        b"[" * 250,
    ]


def _rows_seeds() -> list[bytes]:
    rows: list[dict[str, Any]] = [
        {"query_id": "q1", "query": "two roads", "passages": [{"id": "a", "text": "b", "image": "c.png"}, "d"]},
        {"query": {"text": "q"}, "passages": [{"text": "a"}], "truncate": "END"},
        {"query": "", "documents": ["a", {"text": ""}], "top_n": 1, "return_documents": True, "max_tokens_per_doc": 4},
        {"custom_id": "1", "method": "POST", "url": "/v1/score", "body": {"text_1": "q", "text_2": ["a"]}},
        {"custom_id": "2", "method": "POST", "url": "/v1/rerank", "body": {"query": "q", "documents": ["a"]}},
        {"query_id": 1, "query": "q", "passage_id": 7, "passage": "a", "rank": 1, "logit": 0.5},
    ]
    lines = [json.dumps(row).encode() + b"\n" for row in rows]
    flat = b"".join(json.dumps({"query": f"q{n % 2}", "passage": f"{n}"}).encode() + b"\n" for n in range(4))
    return [*(bytes([place]) + line + b"\r\n{\n" + line for place, line in enumerate(lines)), b"\1" + flat]


def _image_seeds() -> list[bytes]:
    from tests.unit.images import encoded, picture

    kinds = [("PNG", "RGB"), ("PNG", "P"), ("PNG", "1"), ("PNG", "LA"), ("JPEG", "RGB"), ("JPEG", "CMYK"),
             ("WEBP", "RGBA"), ("GIF", "P")]  # fmt: skip
    return [encoded(picture(mode=mode), format) for format, mode in kinds]


def _config_seeds() -> list[bytes]:
    texts = [(checkpoint / "config.json").read_bytes() for checkpoint in _CHECKPOINTS]
    whole = [bytes([2 * place]) + json.dumps(json.loads(text)).encode() for place, text in enumerate(texts)]
    return whole + [bytes([2 * place + 1]) for place in range(len(texts))]


def _header_seeds() -> list[bytes]:
    text = json.dumps(_HEADER).encode()
    return [b"\0" + struct.pack("<Q", len(text)) + text + bytes(25), b"\1" + text + b"\0" + bytes(25), b"\2"]


def _words_of(seeds: Sequence[bytes]) -> list[str]:
    """The keys and short texts of JSON, as they stand in it."""
    found: set[str] = set()

    def collect(value: Any) -> None:
        if isinstance(value, dict):
            found.update(json.dumps(key) + ": " for key in value)
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)
        elif len(json.dumps(value)) < 40:
            found.add(json.dumps(value))

    for seed in seeds:
        for line in seed[seed.find(b"{") :].splitlines():
            with contextlib.suppress(ValueError):
                collect(json.loads(line.partition(b"\0")[0]))
    return sorted(found)


_JSON = ["null", "true", "-1", "0", "1e400", "1e5", "NaN", "18446744073709551616", '""', "[]", "{}", '"\\ud800"']
TARGETS = {
    "row": Target(("rerank_cli", "json"), _row, _row_seeds, _JSON),
    "rows": Target(("rerank_cli",), _rows, _rows_seeds, [*_JSON, *_words_of(_rows_seeds())]),
    "image": Target(("rerank_cli", "PIL"), _image, _image_seeds),
    "config": Target(("rerank_cli",), _config, _config_seeds, [*_JSON, *_words_of(_config_seeds())]),
    "header": Target(("rerank_cli",), _header, _header_seeds, [*_JSON, *_words_of(_header_seeds())]),
}
"""By name."""


@contextlib.contextmanager
def opened(name: str) -> Iterator[Callable[[bytes], None]]:
    """The function of a target, with a folder for as long as the block."""
    with tempfile.TemporaryDirectory(prefix="rerank-cli-fuzz-", dir=IN_MEMORY) as folder:
        yield TARGETS[name].open(Path(folder))


def main() -> None:
    """Fuzz one target; atheris ends the process, so what was written stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--folder", type=Path, help="for the files of the search; what it finds is kept in `corpus`")
    options = parser.parse_args()
    import atheris

    target = TARGETS[options.target]
    with atheris.instrument_imports(include=list(target.instrumented), enable_loader_override=False):
        folder = options.folder or Path(tempfile.mkdtemp(prefix="rerank-cli-fuzz-", dir=IN_MEMORY))
        read = target.open(folder)
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    words = folder / "words"
    words.write_text("".join(f"{json.dumps(word)}\n" for word in target.words) + '"\\x00"\n')
    arguments = [
        f"-max_total_time={options.seconds}",
        f"-timeout={SECONDS_OF_AN_INPUT}",
        f"-rss_limit_mb={_MEGABYTES}",
        f"-max_len={_MAX_BYTES}",
        f"-artifact_prefix={options.target}-",
        f"-dict={words}",
        "-len_control=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
