"""What `mem-estimate` learns only with torch or a tokenizer: a tracked or measured forward, the lengths of a file."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError, UsageError
from rerank_cli.planning.known_model import KnownModel
from rerank_cli.planning.memory.question import MemoryQuestion, MemoryRow
from rerank_cli.planning.profiles import ModelProfiles

_PAIRS_AT_A_TIME = 512


class MeasuringTools:
    """The tools that `answer_memory` is handed; each imports what it needs when it is called."""

    def has_cuda(self) -> bool:
        """Whether torch finds a CUDA device here."""
        import torch

        return torch.cuda.is_available()

    def follow(
        self, rows: tuple[MemoryRow, ...], question: MemoryQuestion, checkpoint: Checkpoint | None
    ) -> tuple[MemoryRow, ...]:
        """The rows of a model that transformers runs: the forward as a tracker followed it, in place of the bound."""
        if checkpoint is None:
            return rows
        from rerank_cli.models import DTYPES
        from rerank_cli.models.tracker import padded_peak

        place = question.place
        dtype = DTYPES.get(place.precision, DTYPES["fp16"])
        done = []
        for row in rows:
            batch = question.batch(row.batch_size, row.max_tokens)
            peak = padded_peak(checkpoint, pairs=batch.pairs, length=batch.longest, dtype=dtype)
            done.append(question.judge(row.with_forward(peak, place.constants.slack_share)))
        return tuple(done)

    def measure(self, row: MemoryRow, question: MemoryQuestion, known: KnownModel) -> MemoryRow:
        """The row with what a forward at its point really needed; without a checkpoint, of the profile's shape."""
        from rerank_cli.models.measure import blank_checkpoint, measure_forward

        place, checkpoint = question.place, known.checkpoint
        if checkpoint is None:
            assert isinstance(known.profiles, ModelProfiles), "a model without a checkpoint has a profile file"
            checkpoint = blank_checkpoint(known.profiles.model)
        assert row.estimate is not None, "what is measured has a shape"
        lengths = question.lengths and [min(length, row.max_tokens) for length in question.lengths[: row.batch_size]]
        measured = measure_forward(
            checkpoint,
            lengths or [row.max_tokens] * row.batch_size,
            device="cpu" if place.cpu else "cuda:0",
            precision=place.precision,
            attention=place.attention if place.cpu else "varlen",
            threads=place.cores,
        )
        document = {
            "device": measured.device,
            "kernels": measured.kernels,
            "forward_bytes": measured.forward_bytes,
            "estimated_forward_bytes": row.estimate.forward,
            "ratio": round(row.estimate.forward / measured.forward_bytes, 4) if measured.forward_bytes else None,
            "reserved_bytes": measured.reserved_bytes,
            "total_bytes": measured.total_bytes,
        }
        return replace(row, measured=document)

    def file_lengths(self, path: str, known: KnownModel) -> tuple[tuple[int, ...], dict[str, Any]]:
        """Tokens of every pair of a file, longest first, cut at the model's maximum; and a summary."""
        if known.checkpoint is None:
            raise ModelError(
                f"--from-file: the tokenizer of {known.name} is not here", hint="pass the folder of its checkpoint"
            )
        # Imported here: tokenizer and readers cost 0.4 s that the arithmetic need not pay.
        from rerank_cli.encoding.encoder import EncodingProblem, encode_pairs, open_encoder
        from rerank_cli.formats.inputs import ReadOptions, open_lists, resolve_inputs
        from rerank_cli.formats.shapes import FieldNames
        from rerank_cli.records import CandidateList

        shape, items = open_lists(resolve_inputs([path]), FieldNames(), ReadOptions(), "auto")
        encoder = open_encoder(known.checkpoint, max_tokens=known.max_tokens)
        pairs = (pair for item in shape.group(items) if isinstance(item, CandidateList) for pair in item.pairs)
        lengths: list[int] = []
        unscorable = 0
        while some := list(islice(pairs, _PAIRS_AT_A_TIME)):
            for entry in encode_pairs(some, encoder):
                if isinstance(entry, EncodingProblem):
                    unscorable += 1
                else:
                    lengths += [len(pair.input_ids) for pair in entry]
        if not lengths:
            raise UsageError(f"--from-file {path}: no pair that can be scored")
        lengths.sort(reverse=True)
        places = {"longest": 0, "p90": len(lengths) // 10, "p50": len(lengths) // 2, "shortest": len(lengths) - 1}
        summary = {"path": path, "pairs": len(lengths), "unscorable": unscorable}
        return tuple(lengths), {**summary, "tokens": {name: lengths[place] for name, place in places.items()}}
