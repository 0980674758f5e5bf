"""Profile files: what is published about running a model on some GPUs, read from TOML and checked.

One file for each model, `profiles/<model>.toml`. To add a GPU, a precision or a published number, edit its file; no
code knows a model by name.

    [model]            identity, limit and, where known, the shape, so that planning needs no checkpoint
    [engines]          loaded copies on a device: by default, and for performance on a large card
    [selection]        automatic: whether anything but the default precision may be chosen without being asked for
    [[profile]]        in order of preference, the first that matches wins; exactly one fallback, last
    [[memory]]         published memory tables, quoted; `values` and `headings` carry their own certainty
    [sources.<key>]    where it was read; every block names one

The values are those of `model_profiles.py`. A profile that no machine and no request could ever reach, because earlier
ones of its precision match all that it does, is an error, so order never surprises. Every message names file, entry and
key. Nothing here imports more than the standard library.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

from rerank_cli.errors import ProfileError
from rerank_cli.planning.profiles import schema
from rerank_cli.planning.profiles.model_profiles import (
    GB,
    Engines,
    LanguageFacts,
    ModelFacts,
    ModelProfiles,
    Profile,
    PublishedFit,
    PublishedRow,
    PublishedTable,
    SelectionRule,
    Source,
    VisionFacts,
    plain_sku,
    show_capability,
)
from rerank_cli.planning.profiles.schema import known_names, read_block, show_value

_PACKAGED = Path(__file__).parents[2] / "_profiles"
_CHECKOUT = Path(__file__).parents[3] / "profiles"


def profiles_dir() -> Path:
    """The folder of the profiles that ship with the program: inside the package, or the checkout's."""
    return _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT


def load_profiles(path: Path) -> ModelProfiles:
    """Read and check one file; `ProfileError` names file, entry and key of whatever is wrong."""
    try:
        document = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ProfileError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # ValueError: TOML, UTF-8, and whole numbers of 4,300 digits
        raise ProfileError(f"{path}: not TOML: {error}") from error
    return parse_profiles(document, file=str(path))


def load_all_profiles(folder: Path | None = None) -> tuple[ModelProfiles, ...]:
    """Every file of a folder (the shipped one), by name; `ProfileError` where two describe the same model."""
    folder = folder or profiles_dir()
    if not folder.is_dir():
        raise ProfileError(f"{folder}: no such folder")
    models = tuple(load_profiles(path) for path in sorted(folder.glob("*.toml")))
    seen: dict[str, str] = {}
    for model in models:
        for name in (model.model.id, *model.model.aliases):
            if name.casefold() in seen:
                raise ProfileError(f"{model.file}: model: `{name}` is already in {seen[name.casefold()]}")
            seen[name.casefold()] = model.file
    return models


def find_profiles(
    model: str | None,
    *,
    architecture: str | None = None,
    layers: int | None = None,
    hidden_size: int | None = None,
    folder: Path | None = None,
) -> tuple[ModelProfiles | None, str]:
    """The profiles of a model, or None; and why.

    model: an id, an alias, or a path whose last part is the last part of one. architecture, layers, hidden_size: of its
    checkpoint, where there is one. They come before the name: a name with another architecture is not believed, and a
    checkpoint of the same architecture and shape has the same profiles under any name.
    """
    known = load_all_profiles(folder)
    name = (model or "").rstrip("/").casefold()
    for found in known:
        names = {one.casefold() for one in (found.model.id, *found.model.aliases)}
        short_names = {one.rpartition("/")[2] for one in names}
        if (name and name in names) or name.rpartition("/")[2] in short_names:
            if architecture in (None, found.model.architecture):
                return found, f"profiles of {found.model.id}: {found.file}"
            return None, f"no profiles: {model} is a {architecture}, {found.file} is for {found.model.architecture}"
    for found in known:
        shape = found.model.language
        if shape and (found.model.architecture, shape.layers, shape.hidden_size) == (architecture, layers, hidden_size):
            return found, f"profiles of {found.model.id}: the same architecture and shape ({found.file})"
    return None, f"no profiles for {model or 'this model'} in {folder or profiles_dir()}"


def parse_profiles(document: Mapping[str, Any], *, file: str) -> ModelProfiles:
    """Check a parsed document and make it plain values; file: how messages call it."""
    if document.get("schema") != schema.SCHEMA or isinstance(document.get("schema"), bool):
        raise ProfileError(f"{file}: `schema` must be {schema.SCHEMA}: {show_value(document.get('schema', 'missing'))}")
    top = read_block(f"{file}: top level", document, schema.TOP)
    sources = {
        key: Source(key=key, **read_block(f"{file}: sources.{key}", block, schema.SOURCE))
        for key, block in top["sources"].items()
    }
    reader = _Reader(file, sources)
    profiles = tuple(reader.profile(number, block) for number, block in enumerate(top["profile"], 1))
    _check_profiles(file, profiles)
    groups = enumerate(top.get("memory", []), 1)
    memory = tuple(table for number, block in groups for table in reader.memory_group(number, block))
    _check_memory(file, memory)
    return ModelProfiles(
        file=file,
        model=reader.model(top["model"]),
        engines=reader.engines(top["engines"]),
        selection=SelectionRule(**reader.read("selection", top["selection"], schema.SELECTION)),
        profiles=profiles,
        memory=memory,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """Turns the blocks of one file into values; `source` keys become the sources they name."""

    file: str
    sources: Mapping[str, Source]

    def read(self, entry: str, block: Any, keys: schema.Keys) -> dict[str, Any]:
        where = f"{self.file}: {entry}"
        values = read_block(where, block, keys)
        if "source" in values:
            key = values["source"]
            if key not in self.sources:
                raise ProfileError(
                    f"{where}: `source` names no [sources.{key}]", hint=known_names(key, list(self.sources), "sources")
                )
            values["source"] = self.sources[key]
        return values

    def model(self, block: Any) -> ModelFacts:
        values = self.read("model", block, schema.MODEL)
        language, vision = values.pop("language", None), values.pop("vision", None)
        if language is not None:
            language = LanguageFacts(**self.read("model.language", language, schema.LANGUAGE))
        if vision is not None:
            vision = VisionFacts(**self.read("model.vision", vision, schema.VISION))
        return ModelFacts(aliases=values.pop("aliases", ()), language=language, vision=vision, **values)

    def engines(self, block: Any) -> Engines:
        values = self.read("engines", block, schema.ENGINES)
        engines = Engines(performance_min_bytes=round(values.pop("performance_min_gb") * GB), **values)
        if engines.performance < engines.default:
            raise ProfileError(
                f"{self.file}: engines: `performance` must not be below `default`: "
                f"{engines.performance} < {engines.default}"
            )
        return engines

    def profile(self, number: int, block: Any) -> Profile:
        name = block.get("name") if isinstance(block, dict) else None
        entry = f"profile `{name}`" if isinstance(name, str) and name else f"profile {number}"
        values = self.read(entry, block, schema.PROFILE)
        capabilities, skus = values.pop("compute_capability", ()), values.pop("sku", ())
        keyed = bool(capabilities) + bool(skus)
        if values["kind"] == "optimized" and keyed != 1:
            raise ProfileError(f"{self.file}: {entry}: needs `compute_capability` or `sku`, one of the two")
        if values["kind"] == "fallback" and keyed:
            unwanted = "compute_capability" if capabilities else "sku"
            raise ProfileError(f"{self.file}: {entry}: a fallback matches any GPU: remove `{unwanted}`")
        if values["kind"] == "fallback" and values.get("on_request"):
            raise ProfileError(f"{self.file}: {entry}: a fallback cannot be `on_request`")
        for unit, key in (("min_memory_gb", "min_memory_bytes"), ("disk_gb", "disk_bytes")):
            if unit in values:
                values[key] = round(values.pop(unit) * GB)
        return Profile(compute_capabilities=capabilities, skus=skus, **values)

    def memory_group(self, number: int, block: Any) -> list[PublishedTable]:
        values = self.read(f"memory {number}", block, schema.MEMORY)
        tables = values.pop("table")
        confidence = values.pop("confidence", None)
        if confidence is not None:
            self.read(f"memory {number}: confidence", confidence, schema.CONFIDENCE)
        elif values["headings"] != "certain":
            raise ProfileError(f"{self.file}: memory {number}: headings that are not certain need `confidence`")
        values.setdefault("note", None)
        return [
            self._memory_table(f"memory {number}, table {place}", table, values)
            for place, table in enumerate(tables, 1)
        ]

    def _memory_table(self, entry: str, block: Any, group: dict[str, Any]) -> PublishedTable:
        values = self.read(entry, block, schema.TABLE)
        rows = tuple(self._memory_row(f"{entry}, row {number}", row) for number, row in enumerate(values["rows"], 1))
        fit = values.get("fit")
        if fit is not None and any(row.max_batch_size is None for row in rows):
            raise ProfileError(f"{self.file}: {entry}: `fit` needs rows with batch size and length")
        values.update(
            rows=rows,
            fit=None if fit is None else PublishedFit(**self.read(f"{entry}: fit", fit, schema.FIT)),
            sku=values.get("sku"),
        )
        return PublishedTable(**values, **group)

    def _memory_row(self, entry: str, block: Any) -> PublishedRow:
        values = self.read(entry, block, schema.ROW)
        batch_size, length = values.get("max_batch_size"), values.get("max_sequence_length")
        if (batch_size is None) != (length is None):
            raise ProfileError(
                f"{self.file}: {entry}: `max_batch_size` and `max_sequence_length` stand together or not at all"
            )
        return PublishedRow(max_batch_size=batch_size, max_sequence_length=length, gib=values["gib"])


def _check_profiles(file: str, profiles: Sequence[Profile]) -> None:
    """Unique names, one fallback at the end, one way of matching, none hidden by earlier ones."""
    names = [profile.name for profile in profiles]
    for name in names:
        if names.count(name) > 1:
            raise ProfileError(f"{file}: profile `{name}`: the name is there twice")
    fallbacks = [profile.name for profile in profiles if profile.kind == "fallback"]
    if len(fallbacks) != 1:
        raise ProfileError(f'{file}: there must be exactly one profile of `kind` "fallback": found {len(fallbacks)}')
    if profiles[-1].kind != "fallback":
        raise ProfileError(f"{file}: profile `{fallbacks[0]}`: the fallback must be the last profile")
    optimized = profiles[:-1]
    by_sku = next((profile.name for profile in optimized if profile.skus), None)
    by_capability = next((profile.name for profile in optimized if profile.compute_capabilities), None)
    if by_sku and by_capability:
        raise ProfileError(
            f"{file}: profile `{by_sku}`: `sku` must not decide where `compute_capability` does (`{by_capability}`)",
            hint="key all optimized profiles of a file by the same",
        )
    for place, profile in enumerate(optimized):
        # Those before it that may hide it; a profile on request hides only another on request.
        same_precision = [other for other in optimized[:place] if other.precision == profile.precision]
        hiding = [other for other in same_precision if profile.on_request or not other.on_request]
        capabilities = {capability for other in hiding for capability in other.compute_capabilities}
        skus = {plain_sku(sku) for other in hiding for sku in other.skus}
        if capabilities.issuperset(profile.compute_capabilities) and skus.issuperset(map(plain_sku, profile.skus)):
            before = ", ".join(f"`{other.name}`" for other in hiding)
            raise ProfileError(
                f"{file}: profile `{profile.name}`: never chosen, {before} before it match all that it does"
            )


def _check_memory(file: str, tables: Sequence[PublishedTable]) -> None:
    """No heading twice; within one, more pairs or longer ones never need less."""
    seen = set()
    for table in tables:
        of = table.sku or show_capability(table.compute_capability)
        heading = (plain_sku(of), table.precision, table.source.key)
        where = f"{file}: memory of {of} {table.precision}"
        if heading in seen:
            raise ProfileError(f"{where}: the heading is there twice")
        seen.add(heading)
        if len(table.rows) > 1 and any(row.max_batch_size is None for row in table.rows):
            raise ProfileError(f"{where}: several rows need `max_batch_size` and `max_sequence_length`")
        points = [(row.max_batch_size or 0, row.max_sequence_length or 0, row.gib) for row in table.rows]
        for (batch_size, length, gib), (other_size, other_length, other_gib) in permutations(points, 2):
            if batch_size > other_size or length > other_length:
                continue
            if (batch_size, length) == (other_size, other_length):
                raise ProfileError(f"{where}: `rows` has batch size {batch_size}, length {length} twice")
            if gib > other_gib:
                raise ProfileError(
                    f"{where}: `gib` falls from {gib} at batch size {batch_size}, length {length} to {other_gib} at "
                    f"batch size {other_size}, length {other_length}"
                )
