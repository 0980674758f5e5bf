"""Which outputs are refused before anything is measured: one that exists, that is an input, or that has no folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rerank_cli.errors import OutputError, UsageError
from rerank_cli.journal import identity_of
from rerank_cli.storage import UrlPath, path_of


def refuse_outputs(outputs: Mapping[str, str | None], read: Iterable[str], *, overwrite: bool) -> None:
    """Refuse an output that exists, whose folder is missing, or that is an input or another output.

    Args:
        outputs: Paths by option; None is not written.
        read: The files that are inputs.
        overwrite: Whether an output may exist.
    """
    taken = {identity_of(path_of(path)) for path in read}
    for name, path in outputs.items():
        if path is None:
            continue
        final = path_of(path)
        if identity_of(final) in taken:
            raise UsageError(f"{name} {path}: is an input or another output")
        taken.add(identity_of(final))
        if not isinstance(final, UrlPath) and not final.parent.is_dir():
            raise OutputError(f"{path}: cannot be written: its folder does not exist")
        if final.is_dir():
            raise OutputError(f"{path}: is a folder")
        if final.exists() and not overwrite:
            raise OutputError(f"{path}: exists", hint="`--overwrite` replaces it")
