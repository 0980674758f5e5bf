"""GPUs by the names that people say: `L4`, `H100`, `RTX-4090`.

Compute capabilities are those of NVIDIA's list (https://developer.nvidia.com/cuda-gpus). Memory is what `nvidia-smi`
shows in MiB with ECC as it is delivered. Looked up on 28 November 2026 in outputs of `nvidia-smi` that people have
published: L4, A10, A10G, A40, L40S, H100 (SXM, PCIe, NVL), H200, B200, RTX-4090, RTX-5090; the others are of the same
size as sold, some MiB more or less, and on a real machine the driver is asked instead. Names are those that NVML gives,
by which profiles are found. Where several cards share a name it stands for the one that clouds rent most (A100 40 GB,
H100 SXM, V100 16 GB); the others have names of their own.

Speeds are peaks: dense products in 16 bits that add up in 32, and the bandwidth of the memory. Looked up on the same
day; a card of which only one of the two was found has none. Sources, by the letter beside each:

    a  https://huggingface.co/RajBhope/gpu-runtime-predictor/blob/main/gpu_catalog.json
    b  http://llmbook.apartsin.com/appendices/appendix-g-hardware-compute/section-g.1.html
    c  https://inferenceengineering.tech/cheat-sheets/hardware
    d  https://gist.github.com/mikasenghaas/d63ded03f1f0417b1677627119bacc0d
    e  https://gist.github.com/kimbochen
    f  https://huggingface.co/datasets/Fdddhhhill/Advanced_AI_GPU_Benchmark_Dataset.csv (checked against d: RTX-4090)
    g  https://www.codesota.com/hardware/rtx-5090
    h  https://calwoo.github.io/notes/concepts/deep-learning-engineering/nvidia-gpu-hardware and, for the bandwidth,
       https://cpu-gpu.alldbin.com/graphics-card-comparison/A40-PCIe-and-L40G-comparison.html
    i  https://hmc-tech.com/gpu/nvidia-a40-vs-nvidia-grid-a100b and, for the bandwidth,
       https://sysrqmts.com/fr/gpus/compare/nvidia-a40-pcie-vs-nvidia-quadro-rtx-6000 (29 November)
    j  https://llmperf.net/categories/gpu/Nvidia-A6000-GPUs and, for the bandwidth once more,
       https://sysrqmts.com/es/gpus/compare/nvidia-rtx-a6000-vs-nvidia-tesla-p40 (29 November)
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class CardSpeed:
    """The peaks of a card: 10^12 operations a second in 16 bits, dense, and 10^9 bytes a second of its memory."""

    tflops: float
    gigabytes_per_second: float


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU as it is sold."""

    name: str  # as people say it
    full_name: str  # as NVML gives it
    compute_capability: tuple[int, int]
    memory_mib: int
    speed: CardSpeed | None = None  # None: not looked up

    @property
    def total_bytes(self) -> int:
        """Its memory."""
        return self.memory_mib * _MIB


CARDS = (
    Card("T4", "Tesla T4", (7, 5), 15_360, CardSpeed(65, 320)),  # a
    Card("V100", "Tesla V100-SXM2-16GB", (7, 0), 16_384, CardSpeed(125, 900)),  # a
    Card("V100-32GB", "Tesla V100-SXM2-32GB", (7, 0), 32_768, CardSpeed(125, 900)),  # a
    Card("A10", "NVIDIA A10", (8, 6), 23_028, CardSpeed(125, 600)),  # e
    Card("A10G", "NVIDIA A10G", (8, 6), 23_028, CardSpeed(62.5, 600)),  # a
    Card("A30", "NVIDIA A30", (8, 0), 24_576),
    Card("A40", "NVIDIA A40", (8, 6), 46_068, CardSpeed(149.7, 696)),  # i
    Card("A100", "NVIDIA A100-SXM4-40GB", (8, 0), 40_960, CardSpeed(312, 1555)),  # a d
    Card("A100-80GB", "NVIDIA A100-SXM4-80GB", (8, 0), 81_920, CardSpeed(312, 2000)),  # b
    Card("L4", "NVIDIA L4", (8, 9), 23_034, CardSpeed(121, 300)),  # c
    Card("L40", "NVIDIA L40", (8, 9), 46_068, CardSpeed(181, 864)),  # h
    Card("L40S", "NVIDIA L40S", (8, 9), 46_068, CardSpeed(362, 864)),  # b
    Card("H100", "NVIDIA H100 80GB HBM3", (9, 0), 81_559, CardSpeed(989, 3350)),  # b c d
    Card("H100-PCIe", "NVIDIA H100 PCIe", (9, 0), 81_559, CardSpeed(750, 2000)),  # e
    Card("H100-NVL", "NVIDIA H100 NVL", (9, 0), 95_830),
    Card("H200", "NVIDIA H200", (9, 0), 143_771, CardSpeed(989, 4800)),  # b c
    Card("B200", "NVIDIA B200", (10, 0), 183_359, CardSpeed(2250, 8000)),  # b c
    Card("RTX-3060", "NVIDIA GeForce RTX 3060", (8, 6), 12_288, CardSpeed(25, 360)),  # f
    Card("RTX-3080", "NVIDIA GeForce RTX 3080", (8, 6), 10_240, CardSpeed(60, 760)),  # f
    Card("RTX-3090", "NVIDIA GeForce RTX 3090", (8, 6), 24_576, CardSpeed(71, 936)),  # f
    Card("RTX-4060-Ti", "NVIDIA GeForce RTX 4060 Ti", (8, 9), 16_380),
    Card("RTX-4070-Ti", "NVIDIA GeForce RTX 4070 Ti", (8, 9), 12_282),
    Card("RTX-4080", "NVIDIA GeForce RTX 4080", (8, 9), 16_376),
    Card("RTX-4090", "NVIDIA GeForce RTX 4090", (8, 9), 24_564, CardSpeed(165, 1008)),  # d f
    Card("RTX-5090", "NVIDIA GeForce RTX 5090", (12, 0), 32_607, CardSpeed(209.5, 1792)),  # g
    Card("RTX-A6000", "NVIDIA RTX A6000", (8, 6), 49_140, CardSpeed(154.8, 768)),  # j
    Card("RTX-6000-Ada", "NVIDIA RTX 6000 Ada Generation", (8, 9), 49_140),
)
"""The cards that can be named."""


def find_card(text: str) -> Card | None:
    """The card that `text` names, in any case, with or without the maker, blanks and hyphens."""
    wanted = _plain_name(text)
    return next((card for card in CARDS if wanted in (_plain_name(card.name), _plain_name(card.full_name))), None)


def speed_of(name: str | None) -> CardSpeed | None:
    """The speed of the card of this name, as NVML or people say it; None where there is no such card."""
    card = find_card(name) if name else None
    return card.speed if card else None


def _plain_name(text: str) -> str:
    return re.sub(r"[\s_-]+|nvidia|tesla|geforce", "", text.casefold())
