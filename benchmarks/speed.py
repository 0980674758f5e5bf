"""How fast beside others: the same checkpoint and the same candidate lists, each side in a process of its own.

    python -m benchmarks.speed [--shape minilm|llama|ettin|qwen3] [--layers 6] [--lists 4] [--candidates 50]
                               [--rounds 3] [--cpu-time] [--here] [--only WORD ...] [--environments DIR] [--json FILE]

minilm    the built-in model's first layers as a BERT checkpoint, beside sentence-transformers (torch, ONNX, OpenVINO),
          rerankers, FlashRank's way and infinity; texts go in, tokenising is timed
ettin     10 layers of 384 of ModernBERT, a head in modules, random weights, beside sentence-transformers; texts go in
qwen3     a Qwen3 classifier, 8 layers of 512, 8 heads over 4, random weights, likewise
llama     8 layers of 512, 8 heads over 4, random weights, bidirectional, beside padded transformers; token ids go in

A side's process is started anew in each round, scores one list to warm up and then all of them; the sides take turns.
Where a peer has a batch size, the sizes are tried in the first round and the fastest is kept; its default has a row of
its own where it is slower. Told of each: pairs a second (median, least and most of the rounds), seconds until it can
score, peak RSS, the share of padding among the tokens that it computes, the share of the matrix product's speed (in its
own precision, measured in each round) that the operations of the real tokens make up, the largest difference of a
logit from the reference's, and how much of the reference's ten best of a list are among its own ten.

--cpu-time counts the seconds that the threads of the process worked, of one thread, instead of time by the clock: on a
machine with other work these ratios hold within a few per cent where times do not.

--here takes the sentence-transformers of this environment for minilm too, and no other peer.

A peer that is not installed or fails is told with its reason, and the others go on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.material import (
    candidate_lists,
    ettin_checkpoint,
    llama_checkpoint,
    machine,
    plain_checkpoint,
    qwen3_checkpoint,
    read_lists,
)
from benchmarks.peers.sides import DECLARED_SIDES, ENVIRONMENTS, LLAMA_SIDES, SIDES
from benchmarks.rounds import Rounds, Work
from benchmarks.tables import table
from rerank_cli.checkpoint import locate_checkpoint, read_checkpoint
from rerank_cli.encoding.encoder import open_encoder
from rerank_cli.job.image_parts import pairs_of
from rerank_cli.machine.cpu import detect_cpu


def main() -> None:
    """Measure and print."""
    options = _options()
    threads = 1 if options.cpu_time else detect_cpu().cores
    torch.set_num_threads(threads)
    sides = [
        side
        for side in {"minilm": DECLARED_SIDES if options.here else SIDES, "llama": LLAMA_SIDES}.get(
            options.shape, DECLARED_SIDES
        )
        if not options.only or any(word in side.name for word in options.only)
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = _work(options, Path(folder))
        clock = "CPU seconds" if options.cpu_time else "seconds by the clock"
        print(f"{machine()}\n{work.told}; {threads} threads, {clock}, {options.rounds} rounds", flush=True)
        result = Rounds(work, threads, options.cpu_time, options.environments).run(sides, options.rounds)
    result = {"question": "speed", "machine": machine(), "shape": options.shape} | result
    print("\n".join(table(result)))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("minilm", "llama", "ettin", "qwen3"), default="minilm")
    parser.add_argument("--layers", type=int, default=6, help="layers of the built-in model that are kept")
    parser.add_argument("--lists", type=int, default=4)
    parser.add_argument("--candidates", type=int, default=50, help="passages of a list")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--collection", default="cranfield")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--here", action="store_true", help="no peer in an environment of its own")
    parser.add_argument("--only", nargs="*", default=[], metavar="WORD", help="sides whose name has one of these")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="folder of the peers' environments")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    return parser.parse_args()


def _work(options: argparse.Namespace, folder: Path) -> Work:
    source = candidate_lists(options.collection)
    lists = read_lists(source, lists=options.lists, candidates=options.candidates)
    pairs = [(query, passage) for query, passages in lists for passage in passages]
    tokenizer = read_checkpoint(locate_checkpoint(None))
    ids = [pair.input_ids.tolist() for pair in pairs_of(open_encoder(tokenizer, max_tokens=512).encode(pairs))]
    content: list[Any]
    if options.shape == "llama":
        path, content, told = llama_checkpoint(folder / "checkpoint"), ids, "Llama, 8 layers of 512"
    elif options.shape == "ettin":
        path, content, told = ettin_checkpoint(folder / "checkpoint"), lists, "ettin, 10 layers of 384"
    elif options.shape == "qwen3":
        path, content, told = qwen3_checkpoint(folder / "checkpoint"), lists, "Qwen3 classifier, 8 layers of 512"
    else:
        path, content = plain_checkpoint(folder / "checkpoint", layers=options.layers), lists
        told = f"MiniLM, {options.layers} layers of 384"
    file = folder / "work.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    lengths = [len(one) for one in ids]
    told += f"; {len(pairs)} pairs, {len(lists)} lists of {source.parent.name}/{source.name}"
    told += f", {min(lengths)} to {max(lengths)} tokens, {sum(lengths) / len(lengths):.0f} in the mean"
    counts = [len(passages) for _, passages in lists]
    return Work(read_checkpoint(path), file, lengths, counts, "pair" if options.shape == "llama" else "list", told)


if __name__ == "__main__":
    main()
