"""The process before torch is imported: settings that libraries read once, at import.

Called by the commands that load a model, before they import anything that imports torch. What the user has set in the
environment stays.
"""

from __future__ import annotations

import os

# oneDNN compiles a kernel for every number of rows and keeps 1,024 of them: over a long file the process creeps up by
# 200 MB. `packed.py` rounds the rows to a few dozen numbers; with these caches for them memory stays flat and nothing
# is compiled twice.
_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
# No model library may connect to anything on its own, draw its own progress bars, or log to stderr.
_QUIET = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "true",
}


def prepare_process(*, online: bool) -> None:
    """Set what libraries read at import. online: the Hugging Face libraries may connect."""
    for name, value in {**_CACHES, **_QUIET}.items():
        os.environ.setdefault(name, value)
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"
