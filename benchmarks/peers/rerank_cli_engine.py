"""This project: the pipeline's own encoder and engine, a window at a time. Settings: checkpoint, precision, device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rerank_cli.machine.this_process import keep_freed_memory, prepare_process

prepare_process(online=False)
keep_freed_memory()

import numpy as np  # noqa: E402 (after the settings that torch reads)
import torch  # noqa: E402

from benchmarks.peers.serving import Lists, Tokens, pairs_of, serve  # noqa: E402
from rerank_cli import __version__  # noqa: E402
from rerank_cli.checkpoint import Checkpoint, read_checkpoint  # noqa: E402
from rerank_cli.encoding.encoder import open_encoder  # noqa: E402
from rerank_cli.engine.local import LocalEngine  # noqa: E402
from rerank_cli.job.image_parts import pairs_of as encoded_pairs  # noqa: E402
from rerank_cli.machine.cpu import detect_cpu  # noqa: E402
from rerank_cli.machine.detect import Machine, detect_machine  # noqa: E402
from rerank_cli.planning.choices import ProfileRequest  # noqa: E402
from rerank_cli.planning.known_model import KnownModel  # noqa: E402
from rerank_cli.planning.profiles import GenericFacts  # noqa: E402
from rerank_cli.planning.run_plan import Plan, plan_model, plan_run  # noqa: E402
from rerank_cli.records import EncodedPair  # noqa: E402

MAX_TOKENS = 512


class OurEngine:
    """See `Adapter`. Its batches are of tokens, so `batch_size` is for others."""

    version = f"rerank-cli {__version__}, torch {torch.__version__}"

    def __init__(self, settings: dict[str, Any], tokens: Tokens) -> None:
        checkpoint = read_checkpoint(Path(settings["checkpoint"]))
        self._plan = _plan(checkpoint, settings["precision"], settings["threads"], settings.get("device", "cpu"))
        self._engine = LocalEngine(self._plan, checkpoint)
        self._encoder = None if settings.get("ids") else open_encoder(checkpoint, max_tokens=MAX_TOKENS)
        self._tokens = tokens

    def score(self, work: Any, batch_size: int | None) -> list[float]:
        """See `Adapter`; int8 is calibrated on the first window, as a run does it."""
        del batch_size
        logits: list[float] = []
        for begin in range(0, self._count(work), self._plan.window_pairs):
            window = self._window(work, begin)
            if self._engine.needs_calibration:
                self._engine.calibrate(window)
            logits += self._engine.score(window).tolist()
            self._tokens.real += sum(len(pair.input_ids) for pair in window)
        self._tokens.computed = self._tokens.real  # packed
        return logits

    def _count(self, work: Any) -> int:
        return len(pairs_of(work)) if self._encoder else len(work)

    def _window(self, work: Any, begin: int) -> list[EncodedPair]:
        end = begin + self._plan.window_pairs
        if self._encoder:
            lists: Lists = work
            return encoded_pairs(self._encoder.encode(pairs_of(lists)[begin:end]))
        return [EncodedPair(np.array(ids, dtype=np.int32), len(ids), len(ids)) for ids in work[begin:end]]


def _plan(checkpoint: Checkpoint, precision: str, threads: int, device: str) -> Plan:
    known = KnownModel(checkpoint.name, GenericFacts(checkpoint.name, MAX_TOKENS), "measured here", checkpoint)
    cpu = replace(detect_cpu(), cores=threads)
    here = Machine(cpu=cpu) if device == "cpu" else replace(detect_machine(), cpu=cpu)
    request = ProfileRequest(device=device, precision=precision)
    return plan_run(plan_model(request, known, here), cuda_devices=torch.cuda.device_count())


if __name__ == "__main__":
    serve(OurEngine)
