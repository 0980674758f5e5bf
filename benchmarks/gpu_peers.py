"""How fast beside vLLM and sentence-transformers on one GPU: same checkpoint, same texts, each in its own process.

    python -m benchmarks.gpu_peers [--device cuda:0] [--pairs 20000] [--rounds 3] [--model DIR] [--environments DIR]

Texts go in, so tokenising is part of it, on all cores: real passages of `samples/`, in lists of 50, all different, in
bf16, at most 512 tokens. A file from end to end is a step of `benchmarks.gpu_first_run`. The sides take turns; each
keeps its process over all rounds and its first answer, which warms it up, is not counted. sentence-transformers' batch
sizes are tried in the first round and the fastest is kept. A side that is not installed or fails is told with its
reason, and the others go on. Without a folder of environments all sides run under the Python that runs this. The
default model is the built-in one's first six layers.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.material import SAMPLES, machine, plain_checkpoint, read_pairs
from benchmarks.peers.process import PeerFailedError, PeerProcess
from benchmarks.peers.sides import ENVIRONMENTS, OURS, Side, interpreter
from rerank_cli.machine.cpu import detect_cpu

CANDIDATES = 50
SIDES = (
    Side("rerank-cli bf16", "rerank_cli_engine", "bf16"),
    Side("vLLM bf16, its pooling runner", "vllm_pooling", "bf16", "vllm"),
    Side(
        "sentence-transformers bf16, best batch", "sentence_transformers_ce", "bf16", "sentence-transformers",
        (32, 128, 512), {"backend": "torch"},
    ),
)  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="a cross-encoder's checkpoint")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="folder of the peers' environments")
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder) / "work.json"
        work.write_text(json.dumps(_lists(options.pairs)))
        checkpoint = options.model or plain_checkpoint(Path(folder) / "checkpoint", layers=6)
        common = {"checkpoint": str(checkpoint), "work": str(work), "device": options.device, "precision": "bf16"}
        running: list[_Running] = []
        for side in SIDES:
            settings = common | dict(side.settings) | {"threads": detect_cpu().cores}
            try:
                apart = options.environments.is_dir()
                where = interpreter(side.environment, options.environments) if apart else OURS
                peer = stack.enter_context(
                    PeerProcess(where, f"benchmarks.peers.{side.module}", settings, tokenizer_on_all_cores=True)
                )
                running.append(_Running(side, peer, options.pairs))
            except PeerFailedError as error:
                print(f"{side.name}: {error}", flush=True)
        for _ in range(options.rounds):
            for one in running:
                one.go_on()
    for one in running:
        print(one.told(running[0]), flush=True)


class _Running:
    """A side whose process is up and warm. speeds: pairs a second of each round; fewer where it has failed."""

    def __init__(self, side: Side, peer: PeerProcess, pairs: int) -> None:
        self._side, self._peer, self._pairs = side, peer, pairs
        self._failure = ""
        self._batch: int | None = None
        self.speeds: list[float] = []
        tried = {size: pairs / peer.score(batch_size=size).seconds for size in side.batch_sizes or (None,)}
        self._batch = max(tried, key=lambda size: tried[size])

    def go_on(self) -> None:
        """One round more."""
        if self._failure:
            return
        try:
            self.speeds.append(self._pairs / self._peer.score(batch_size=self._batch).seconds)
        except PeerFailedError as error:
            self._failure = f", then {error}"

    def told(self, first: _Running) -> str:
        """The side's line; `first` is what it is compared with."""
        name = f"{self._side.name} ({self._batch})" if self._batch else self._side.name
        if not self.speeds:
            return f"{name}: nothing{self._failure}"
        spread = f"{statistics.median(self.speeds):,.0f} pairs/s [{min(self.speeds):,.0f}..{max(self.speeds):,.0f}]"
        ratios = [ours / theirs for ours, theirs in zip(first.speeds, self.speeds, strict=False)]
        beside = f", rerank-cli is {statistics.median(ratios):.2f}x" if self is not first else ""
        return f"{name}: {spread}{beside}{self._failure} ({self._peer.ready.version})"


def _lists(pairs: int) -> list[tuple[str, list[str]]]:
    """Lists of real passages, under real queries; one that comes again has its words in another order.

    So no text is tokenised once for two pairs.
    """
    known = read_pairs(SAMPLES, limit=10**6)
    draw = random.Random(0)
    texts = known[:pairs]
    for place in range(len(known), pairs):
        query, passage = known[place % len(known)]
        words = passage.split()
        draw.shuffle(words)
        texts.append((query, " ".join(words)))
    parts = [texts[begin : begin + CANDIDATES] for begin in range(0, pairs, CANDIDATES)]
    return [(part[0][0], [passage for _, passage in part]) for part in parts]


if __name__ == "__main__":
    main()
