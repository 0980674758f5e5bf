from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from rerank_cli.errors import InputError
from rerank_cli.formats import text_index
from rerank_cli.formats.text_index import Missing, open_texts


def write(folder: Path, content: str | bytes, name: str = "texts") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def code(found: str | Missing) -> str | None:
    return found.code if isinstance(found, Missing) else None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("7\ta text\n", "a text"),
        ("7\ta text", "a text"),
        ("7\ta text\r\n", "a text"),
        ("\ufeff7\ta text\n", "a text"),
        ("7\ttitle\ttext\n", "title\ttext"),
        ("header\n\n7\t\n", ""),
        ('{"_id": "7", "text": "a text"}\n', "a text"),
        ('{"_id": "7", "title": "A title", "text": "a text", "metadata": {}}\n', "A title a text"),
        ('{"_id": "7", "title": "", "text": " a text "}\n', "a text"),  # stripped, as BEIR does
        ('{"_id": "7", "title": "A title", "text": ""}\n', "A title"),
        ('{"id": 7, "contents": "a text"}\n', "a text"),
        ('{"docid": "7", "text": "a text", "title": null}\n', "a text"),
        ('{"_id": "7", "text": "\\ud83d\\ude00"}\n', "\U0001f600"),
    ],
)
def test_a_text_is_found_by_its_id(tmp_path: Path, content: str, text: str) -> None:
    assert open_texts(write(tmp_path, content)).find("7") == text


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_every_id_of_a_file_is_found_in_any_order(tmp_path: Path, count: int) -> None:
    texts = open_texts(write(tmp_path, "".join(f"d{n}\ttext of {n} é\n" for n in range(count))))
    assert len(texts) == count
    assert [texts.find(f"d{n}") for n in reversed(range(count))] == [f"text of {n} é" for n in reversed(range(count))]


def test_packed_files_are_read_whatever_their_names(tmp_path: Path) -> None:
    packed = gzip.compress(b"a\tone\nb\ttwo\n")
    assert [open_texts(write(tmp_path, packed, name)).find("b") for name in ("c.tsv.gz", "c.tsv")] == ["two", "two"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('{"_id": "8", "text": "a"}\n', "unknown-id"),
        ('{"_id": "7"}\n', "no-text"),
        ('{"_id": "7", "text": null}\n', "no-text"),
        ('{"_id": "7", "text": ["a"]}\n', "no-text"),
        ('{"_id": "7", "text": "a"}\n{"_id": "7", "text": "b"}\n', "ambiguous-id"),
        ('{"_id": "7", "text": "a"}\n{"_id": "7", "text": "a"}\n', None),
        ('{"_id": "7", "text": "\\ud800"}\n', "lone-surrogate"),
    ],
)
def test_an_id_without_one_text_is_told(tmp_path: Path, content: str, found: str | None) -> None:
    assert code(open_texts(write(tmp_path, content)).find("7")) == found


@pytest.mark.parametrize("line", [b"{", b"[" * 100_000, b"\xff\xfe", b"[1]", b"5", b'{"_id": ["7"], "text": "a"}', b""])
def test_a_bad_line_is_passed_over(tmp_path: Path, line: bytes) -> None:
    path = write(tmp_path, b'{"_id": "1", "text": "a"}\n' + line + b'\n{"_id": "2", "text": "b"}\n')
    texts = open_texts(path)
    assert (len(texts), texts.find("1"), texts.find("2")) == (2, "a", "b")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"no tab\n", b"{}\n", b"\x00" * 100])
def test_a_file_without_texts_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InputError, match="texts: no texts found"):
        open_texts(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        open_texts(str(tmp_path / "nowhere"))


def test_two_ids_with_the_same_digest_are_told_apart(tmp_path: Path) -> None:
    """The same line in the index under both digests, as if they were one."""
    path = write(tmp_path, "a\tone\nb\ttwo\n")
    texts = open_texts(path)
    digest = texts._digests[0]
    texts._digests[:] = digest
    known = "a" if text_index.digest_of_id("a") == digest else "b"
    assert texts.find(known) == {"a": "one", "b": "two"}[known]


def test_ten_million_passages_take_less_than_a_gibibyte(tmp_path: Path) -> None:
    """At its peak, which is while the index is made; what the file holds besides ids does not count."""
    count = 50_000
    with (tmp_path / "corpus.jsonl").open("w") as corpus:
        for number in range(count):
            corpus.write(json.dumps({"_id": str(number), "text": "word " * 40}) + "\n")
    open_texts(write(tmp_path, "a\tb\n"))  # what is loaded on first use is not of the index
    tracemalloc.start()
    texts = open_texts(str(tmp_path / "corpus.jsonl"))
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(texts) == count
    assert held / count < 20
    assert peak / count * 10_000_000 < 2**30 / 2
