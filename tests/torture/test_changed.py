"""Between a kill and the next run something is changed: the next run refuses with exit code 8 and says what."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_CHECKPOINT, write_lines
from tests.torture.conftest import outputs
from tests.torture.runs import Asked, Runs

DECLARED = TINY_CHECKPOINT.parents[1] / "zerank2-open" / "checkpoint"
SHARED = {"modules.json", "config_sentence_transformers.json"}
LINES = [json.dumps({"id": n, "query": "two roads", "passage": f"a yellow wood {n}"}) for n in range(200)]


def rewrite(change: Callable[[list[str]], None]) -> Callable[[Path], None]:
    """A change of the input's lines."""

    def apply(folder: Path) -> None:
        lines = [*LINES]
        change(lines)
        (folder / "in.jsonl").write_text("".join(f"{line}\n" for line in lines))

    return apply


def edit_behind_the_same_time(folder: Path) -> None:
    path = folder / "in.jsonl"
    found = path.stat()
    path.write_bytes(path.read_bytes().replace(b"wood 150", b"wool 150"))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def flip(name: str, place: int = -1) -> Callable[[Path], None]:
    """Another byte in a file of the model."""

    def apply(folder: Path) -> None:
        data = bytearray((folder / "model" / name).read_bytes())
        data[place] ^= 1
        (folder / "model" / name).write_bytes(data)

    return apply


def add_space(name: str) -> Callable[[Path], None]:
    """A file of the model that says the same in other bytes."""

    def apply(folder: Path) -> None:
        with (folder / "model" / name).open("a") as stream:
            stream.write(" ")

    return apply


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "row inserted": (rewrite(lambda lines: lines.insert(7, LINES[0])), "input 1"),
    "row removed": (rewrite(lambda lines: lines.pop()), "input 1"),
    "row edited": (rewrite(lambda lines: lines.__setitem__(3, LINES[3].replace("wood", "wool"))), "input 1"),
    "rows swapped": (rewrite(lambda lines: lines.reverse()), "input 1"),
    "edited, with the size and time of before": (edit_behind_the_same_time, "content has changed"),
    "weights": (flip("model.safetensors"), "model file `model.safetensors`"),
    "tokenizer": (add_space("tokenizer.json"), "model file `tokenizer.json`"),
    "tokenizer's settings": (add_space("tokenizer_config.json"), "model file `tokenizer_config.json`"),
    "configuration": (add_space("config.json"), "model file `config.json`"),
    "file of the model gone": (lambda folder: (folder / "model" / "special_tokens_map.json").unlink(), "is gone"),
}
OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "prob": ({"selection": {"prob": True}}, "`--prob` was not given, is 'given'"),
    "threshold": ({"selection": {"threshold": 0.5}}, "`--threshold` was not given, is 0.5"),
    "top-n": ({"selection": {"top_n": 3}}, "`--top-n` was not given, is 3"),
    "truncate": ({"truncate": "error"}, "`--truncate` was 'end', is 'error'"),
    "special tokens": ({"special_tokens": "allow"}, "`--special-tokens` was 'neutral', is 'allow'"),
    "pool": ({"truncate": "chunk", "pool": "mean"}, "`--pool` was 'max', is 'mean'"),
    "max tokens": ({"request": {"max_tokens": 64}}, "`--max-tokens` was not given, is 64"),
    "token budget": ({"request": {"token_budget": 1000}}, "`--token-budget` was not given, is 1000"),
    "precision": ({"request": {"precision": "bf16"}}, "`--precision` was 'auto', is 'bf16'"),
    "limit": ({"limit": 150}, "`--limit` was not given, is 150"),
    "skip": ({"skip": 1}, "`--skip` was 0, is 1"),
    "query": ({"query": "another"}, "`--query` was not given, is 'another'"),
    "field": ({"fields": {"text": "passage"}}, "`--text-field` was not given, is 'passage'"),
    "shard": ({"shard": [1, 2]}, "`--shard` was not given, is '1/2'"),
}


@pytest.fixture
def stopped(tmp_path: Path, runs: Runs) -> Asked:
    """A run that was killed after its first windows."""
    write_lines(tmp_path / "in.jsonl", [line.encode() for line in LINES])
    shutil.copytree(TINY_CHECKPOINT, tmp_path / "model")
    options = {"pairs": True, "model": str(tmp_path / "model")}
    asked = Asked((str(tmp_path / "in.jsonl"),), str(tmp_path / "out.jsonl"), options)
    assert runs.run(asked, at=20).code == -9
    assert (tmp_path / "out.jsonl.job" / "journal").read_bytes().count(b"\n") > 1
    return asked


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_refused(tmp_path: Path, runs: Runs, stopped: Asked, name: str) -> None:
    change, said = FILES[name]
    change(tmp_path)
    refused(runs, stopped, said)


def test_a_changed_declaration_is_refused(tmp_path: Path, runs: Runs) -> None:
    """Each file that declares how a checkpoint is scored, in a model that has all of them."""
    write_lines(tmp_path / "in.jsonl", [line.encode() for line in LINES])
    model = Path(shutil.copytree(DECLARED, tmp_path / "model"))
    own = model / "0_Transformer"
    own.mkdir()
    for file in [path for path in model.iterdir() if path.is_file() and path.name not in SHARED]:
        file.rename(own / file.name)
    modules = json.loads((model / "modules.json").read_text())
    modules[0]["path"] = own.name
    (model / "modules.json").write_text(json.dumps(modules))
    (own / "additional_chat_templates").mkdir()
    for name in ("additional_chat_templates/rag.jinja", "special_tokens_map.json", "added_tokens.json"):
        (own / name).write_text("{}")
    options = {"pairs": True, "model": str(model)}
    asked = Asked((str(tmp_path / "in.jsonl"),), str(tmp_path / "out.jsonl"), options)
    assert runs.run(asked, at=20).code == -9
    job = outputs(tmp_path / "out.jsonl.job")
    files = sorted(path for path in model.rglob("*") if path.is_file())
    assert {path.name for path in files} >= {"chat_template.jinja", "sentence_bert_config.json", *SHARED}
    for file in files:
        kept = file.read_bytes()
        file.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]) if file.suffix == ".safetensors" else kept + b" ")
        done = runs.run(asked)
        assert done.code == 8, (file, done.said)
        assert f"model file `{file.relative_to(model)}`" in done.said
        file.write_bytes(kept)
    (own / "added_tokens.json").unlink()
    assert runs.run(asked).code == 8
    (own / "added_tokens.json").write_text("{}")
    after = outputs(tmp_path / "out.jsonl.job")
    assert {**job, "lock": b""} == {**after, "lock": b""}
    assert runs.run(asked).code == 0


@pytest.mark.parametrize("name", OPTIONS)
def test_a_changed_option_is_refused(runs: Runs, stopped: Asked, name: str) -> None:
    options, said = OPTIONS[name]
    refused(runs, stopped, said, options={**stopped.options, **options})


def refused(runs: Runs, asked: Asked, said: str, **changes: Any) -> None:
    job = Path(f"{asked.output}.job")
    before = outputs(job)
    done = runs.run(asked, **changes)
    assert done.code == 8, done.said
    assert said in done.said
    assert "--restart" in done.said
    assert outputs(job) == {**before, "lock": outputs(job)["lock"]}
    assert not Path(asked.output).exists()
    restarted = runs.run(asked, options={**asked.options, **changes.get("options", {}), "restart": True})
    assert restarted.code in (0, 5), restarted.said  # 5: a model that was damaged


def test_what_does_not_change_bytes_does_not_matter(tmp_path: Path, runs: Runs, stopped: Asked) -> None:
    (tmp_path / "in.jsonl").rename(tmp_path / "moved.jsonl")
    (tmp_path / "model").rename(tmp_path / "moved")
    options = {
        **stopped.options,
        "model": str(tmp_path / "moved"),
        "checkpoint_every": 60.0,
        "error_limit": {"rows": 3},
    }
    done = runs.run(stopped, inputs=(str(tmp_path / "moved.jsonl"),), options=options)
    assert done.code == 0, done.said
    assert "resumes after" in done.said
