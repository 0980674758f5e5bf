"""GPUs by the names that people say: `L4`, `H100`, `RTX-4090`.

Compute capabilities are those of NVIDIA's list (https://developer.nvidia.com/cuda-gpus). Memory is about what
`nvidia-smi` shows in MiB; it was written down from memory, so a plan for a named card is a plan for about that size,
and on a real machine the driver is asked instead. Names are those that NVML gives, by which profiles are found. Where
several cards share a name it stands for the one that clouds rent most (A100 40 GB, H100 SXM, V100 16 GB); the others
have names of their own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as it is sold."""

    name: str  # as people say it
    full_name: str  # as NVML gives it
    compute_capability: tuple[int, int]
    memory_mib: int

    @property
    def total_bytes(self) -> int:
        """Its memory."""
        return self.memory_mib * _MIB


CARDS = (
    Card("T4", "Tesla T4", (7, 5), 15_360),
    Card("V100", "Tesla V100-SXM2-16GB", (7, 0), 16_384),
    Card("V100-32GB", "Tesla V100-SXM2-32GB", (7, 0), 32_768),
    Card("A10", "NVIDIA A10", (8, 6), 23_028),
    Card("A10G", "NVIDIA A10G", (8, 6), 23_028),
    Card("A30", "NVIDIA A30", (8, 0), 24_576),
    Card("A40", "NVIDIA A40", (8, 6), 46_068),
    Card("A100", "NVIDIA A100-SXM4-40GB", (8, 0), 40_960),
    Card("A100-80GB", "NVIDIA A100-SXM4-80GB", (8, 0), 81_920),
    Card("L4", "NVIDIA L4", (8, 9), 23_034),
    Card("L40", "NVIDIA L40", (8, 9), 46_068),
    Card("L40S", "NVIDIA L40S", (8, 9), 46_068),
    Card("H100", "NVIDIA H100 80GB HBM3", (9, 0), 81_559),
    Card("H100-PCIe", "NVIDIA H100 PCIe", (9, 0), 81_559),
    Card("H100-NVL", "NVIDIA H100 NVL", (9, 0), 95_830),
    Card("H200", "NVIDIA H200", (9, 0), 143_771),
    Card("B200", "NVIDIA B200", (10, 0), 183_359),
    Card("RTX-3060", "NVIDIA GeForce RTX 3060", (8, 6), 12_288),
    Card("RTX-3080", "NVIDIA GeForce RTX 3080", (8, 6), 10_240),
    Card("RTX-3090", "NVIDIA GeForce RTX 3090", (8, 6), 24_576),
    Card("RTX-4060-Ti", "NVIDIA GeForce RTX 4060 Ti", (8, 9), 16_380),
    Card("RTX-4070-Ti", "NVIDIA GeForce RTX 4070 Ti", (8, 9), 12_282),
    Card("RTX-4080", "NVIDIA GeForce RTX 4080", (8, 9), 16_376),
    Card("RTX-4090", "NVIDIA GeForce RTX 4090", (8, 9), 24_564),
    Card("RTX-5090", "NVIDIA GeForce RTX 5090", (12, 0), 32_607),
    Card("RTX-A6000", "NVIDIA RTX A6000", (8, 6), 49_140),
    Card("RTX-6000-Ada", "NVIDIA RTX 6000 Ada Generation", (8, 9), 49_140),
)
"""Those that can be named."""


def find_card(text: str) -> Card | None:
    """The card that `text` names, in any case, with or without the maker, blanks and hyphens."""
    wanted = _plain(text)
    return next((card for card in CARDS if wanted in (_plain(card.name), _plain(card.full_name))), None)


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+|nvidia|tesla|geforce", "", text.casefold())
