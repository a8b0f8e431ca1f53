"""Measures Idlewatt on the machine it runs on, beside its peers: `make bench`. Nothing here is installed."""

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "bench"

# the real Kafka, Prometheus and NVML shim of the tests
sys.path.append(str(ROOT / "tests"))
