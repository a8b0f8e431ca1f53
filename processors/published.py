"""Published figures of GPU products, which serve only where nothing else is known, always labelled `published`.

GPU-hours and utility watts: InferenceX, GPU_SPECS of its web application at commit 77ca49a, 2026-04-03. The GPU-hour is
the cost of owning one as a small cloud; the watts are all-in provisioned utility watts for each GPU: IT, network and
facility overhead, summed from rated power. B300 and GB300 are marked temporary there.

Yields: ML.ENERGY leaderboard v3 at commit 0cd52da, 2026-02-27, output tokens per joule of the boards (vLLM 0.11.1): of the
models measured on the product, each at its best batch, the least (Qwen3-235B-A22B on H100, DeepSeek-R1-0528 on B200). A
loss by it is understated for nearly every model.
"""

from dataclasses import dataclass
from typing import Final

from idlewatt.stream.globs import matches

CURRENCY: Final = "USD"


@dataclass(frozen=True, slots=True)
class Published:
    """One product: micro-dollars per GPU-hour, watts from the utility per GPU, tokens per joule if measured."""

    product: str
    per_gpu_hour: int
    utility_w: int
    tokens_per_joule: float | None = None


# narrow globs: an H100 PCIe or a GH200 is another product
TABLE: Final = (
    Published("NVIDIA H100 80GB HBM3", 1_690_000, 1730, 1.35),
    Published("NVIDIA H200", 1_740_000, 1730),
    Published("NVIDIA B200*", 2_340_000, 2170, 0.42),
    Published("NVIDIA B300*", 2_810_000, 2170),
    Published("NVIDIA GB200*", 2_750_000, 2100),
    Published("NVIDIA GB300*", 3_300_000, 2100),
    Published("*MI300X*", 1_400_000, 1790),
    Published("*MI325X*", 1_590_000, 2180),
    Published("*MI355X*", 1_900_000, 2650),
)


def published(product: str) -> Published | None:
    return next((found for found in TABLE if matches(product, found.product)), None)
