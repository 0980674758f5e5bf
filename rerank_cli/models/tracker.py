"""Peak memory of a forward pass without running it: storages followed under FakeTensorMode.

A fake tensor has a shape, a dtype and a storage with a size, but no bytes. So a model of any size is built and run in a
second on a laptop. The model's own code runs, so its storages live and die as in a real run, and so does their peak.

Not seen are buffers inside a kernel (a CPU's flash attention keeps some per thread, cuBLAS has its workspace) and what
an allocator adds by rounding. Fake tensors are on the CPU, whose fused attention needs, like a GPU's flash kernel, the
output and the log-sum-exp of each row.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rerank_cli.checkpoint import Checkpoint
from rerank_cli.errors import ModelError


class StorageTracker(TorchDispatchMode):
    """Follows every storage that an operator returns while the mode is on.

    current_bytes, peak_bytes: of storages made since it began, those of `known` left out.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it bare
        self.current_bytes = self.peak_bytes = 0
        self._known = {id(tensor.untyped_storage()) for tensor in known}
        self._kept = list(known)  # so that no id is used again
        self._followed: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and follow what it returns."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._follow(value.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._known or key in self._followed:
            return
        size = storage.nbytes()

        def forget(_: Any) -> None:
            del self._followed[key]
            self.current_bytes -= size

        self._followed[key] = weakref.ref(storage, forget)
        self.current_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.current_bytes)


def padded_peak(checkpoint: Checkpoint, *, pairs: int, length: int, dtype: torch.dtype) -> int:
    """Peak in bytes of a classifier that transformers runs, over `pairs` pairs of `length` tokens, without weights.

    The mask of padding is always counted, as transformers does not leave it out of a traced forward: up to 4 % more
    than a batch without padding needs.
    """
    # Imported here: transformers costs seconds that the packed families need not pay.
    import transformers

    auto: Any = transformers  # its classes are made at run time
    try:
        config = auto.AutoConfig.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
        with FakeTensorMode(), torch.no_grad():
            model = auto.AutoModelForSequenceClassification.from_config(config, dtype=dtype).eval()
            ids = torch.zeros(pairs, length, dtype=torch.int64)
            mask = torch.ones_like(ids)
            with StorageTracker([*model.parameters(), *model.buffers()]) as tracker:
                model(input_ids=ids, attention_mask=mask)
    except Exception as error:  # whatever another program's classes raise for a value that they do not take
        why = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ModelError(f"{checkpoint.path}: transformers cannot build this model: {why[:500]}") from error
    peak: int = tracker.peak_bytes
    return peak + 3 * 8 * pairs * length  # ids, types and mask
