"""The batches of some pairs, handed to a model one after the other, without waiting for what it computes.

Memory runs out where a batch is handed over, because torch's allocator gives memory out then and not when a kernel
runs: `FittingBatches` cuts it in halves there and then. Anything else that goes wrong on a device is heard of later, by
whoever asks it next; it leaves the device unusable for this process, so it ends the run (`told`) and no number is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from rerank_cli.engine.fitting import FittingBatches, Trouble, does_not_fit, unless_full
from rerank_cli.engine.lanes import Lanes
from rerank_cli.errors import EngineError
from rerank_cli.models import RerankModel, SeesImages
from rerank_cli.models.transfer import current
from rerank_cli.records import EncodedPair

OnBatch = Callable[[int, int], None]
"""Called with (pairs, tokens) when a batch has been handed to the device."""

Launched = tuple[list[int], Tensor]
"""Places of the pairs of a batch, and their logits, float32, on the model's device, which may still compute them."""

# cuBLAS and cuDNN have no class of their own in torch: they raise RuntimeErrors with these words.
_FAULTS = ("CUDA error", "CUDA driver error", "cuDNN error")


def launched(
    model: RerankModel,
    pairs: Sequence[EncodedPair],
    batches: FittingBatches,
    trouble: Trouble,
    on_batch: OnBatch | None = None,
    lanes: Lanes | None = None,
) -> Iterator[Launched]:
    """Hand over a batch with each step, until all of `pairs` are; what has no logit is told in `trouble`.

    lanes: see `FittingBatches.run`. To be stepped in inference mode: a mode that this set would last from one step to
    the next.
    """
    if isinstance(model, SeesImages) and not unless_full(partial(model.see, pairs)):
        yield from _in_halves(model, pairs, batches, trouble, on_batch, lanes)
        return
    lengths = [len(pair.input_ids) for pair in pairs]
    for batch, logits in batches.run(lengths, lambda batch: model.forward([pairs[i] for i in batch]), trouble, lanes):
        if on_batch:
            on_batch(len(batch), sum(lengths[place] for place in batch))
        yield batch, logits


def _in_halves(
    model: RerankModel,
    pairs: Sequence[EncodedPair],
    batches: FittingBatches,
    trouble: Trouble,
    on_batch: OnBatch | None,
    lanes: Lanes | None,
) -> Iterator[Launched]:
    """`launched` of pairs whose images do not fit all at once: half of the images first, then the others."""
    trouble.splits += 1
    images = [pair.block and pair.block.image for pair in pairs]
    distinct = list(dict.fromkeys(image for image in images if image is not None))
    assert distinct, "texts need no memory before their batches"
    first = set(distinct[: len(distinct) // 2])
    if not first:
        for place in (place for place, image in enumerate(images) if image is not None):
            trouble.failed[place] = does_not_fit("the image alone")
    halves = [
        [place for place, image in enumerate(images) if image in first],
        [place for place, image in enumerate(images) if image not in first and place not in trouble.failed],
    ]
    for half in halves:
        own = Trouble()
        for batch, logits in launched(model, [pairs[place] for place in half], batches, own, on_batch, lanes):
            yield [half[place] for place in batch], logits
        trouble.add(own, half)


@contextmanager
def told(device: str) -> Iterator[None]:
    """Inside, `device` is the current one, and a fault of it is an `EngineError` that names it."""
    try:
        with current(torch.device(device)):
            yield
    except RuntimeError as error:
        if not isinstance(error, torch.AcceleratorError) and not any(word in str(error) for word in _FAULTS):
            raise
        raise EngineError(
            f"{device}: {str(error).partition(chr(10))[0]}",
            hint="what is finished is kept; run again, and look at the driver's log if it comes back",
        ) from error
