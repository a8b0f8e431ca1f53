"""Published figures of GPU products, which serve only where the book says nothing, always labelled `published`.

Source: InferenceX, GPU_SPECS of its web application at commit 77ca49a, 2026-04-03. The GPU-hour is the cost of owning
one as a small cloud; the watts are all-in provisioned utility watts for each GPU: IT, network and facility overhead,
summed from rated power. B300 and GB300 are marked temporary there.
"""

import fnmatch
from dataclasses import dataclass
from typing import Final

DATE: Final = "2026-04-03"
CURRENCY: Final = "USD"


@dataclass(frozen=True, slots=True)
class Published:
    """One product: micro-dollars per GPU-hour, watts from the utility per GPU."""

    product: str
    per_gpu_hour: int
    utility_w: int


# narrow globs: an H100 PCIe or a GH200 is another product
TABLE: Final = (
    Published("NVIDIA H100 80GB HBM3", 1_690_000, 1730),
    Published("NVIDIA H200", 1_740_000, 1730),
    Published("NVIDIA B200*", 2_340_000, 2170),
    Published("NVIDIA B300*", 2_810_000, 2170),
    Published("NVIDIA GB200*", 2_750_000, 2100),
    Published("NVIDIA GB300*", 3_300_000, 2100),
    Published("*MI300X*", 1_400_000, 1790),
    Published("*MI325X*", 1_590_000, 2180),
    Published("*MI355X*", 1_900_000, 2650),
)


def published(product: str) -> Published | None:
    return next((found for found in TABLE if fnmatch.fnmatchcase(product, found.product)), None)
