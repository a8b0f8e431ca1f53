"""What stands in the simulated hall: GPU products, models with measured yields, nodes and who holds their GPUs."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Product:
    """A GPU product as its driver names it, with the watts it draws."""

    name: str
    limit_mw: int
    bare_idle_mw: int  # driver loaded, no process
    loaded_idle_mw: int  # a process holds a context, nothing runs
    memory_bytes: int


# Idle draw of H100: "The Model Parking Tax", arXiv 2605.23918. Bare B200: a vendor's test profile; its loaded
# idle is an estimate in the ratio of the H100's.
H100: Final = Product("NVIDIA H100 80GB HBM3", 700_000, 71_800, 121_700, 81_559 << 20)
B200: Final = Product("NVIDIA B200", 1_000_000, 130_000, 220_000, 183_359 << 20)

SMALL_BATCH: Final = 8


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model on some GPUs of a product: output tokens/s and board watts of all its GPUs, at two batch sizes.

    Between them tokens/s saturate with the batch, a * batch / (batch + h), and watts rise in line with tokens/s.
    """

    model_name: str
    gpus: int
    small_tokens_per_s: float
    small_w: float
    full_batch: int
    full_tokens_per_s: float
    full_w: float

    @property
    def half_batch(self) -> float:
        """The batch at which half of the tokens/s of an endless batch are reached."""
        ratio = self.full_tokens_per_s / self.small_tokens_per_s
        return SMALL_BATCH * self.full_batch * (ratio - 1) / (self.full_batch - SMALL_BATCH * ratio)

    @property
    def endless_tokens_per_s(self) -> float:
        """What tokens/s tend to as the batch grows."""
        return self.full_tokens_per_s * (self.full_batch + self.half_batch) / self.full_batch


# ML.ENERGY leaderboard v3 (vLLM 0.11.1, board power, output tokens): batch 8 and the best batch of each row.
LLAMA_70B_H100: Final = Deployment("meta-llama/Llama-3.3-70B-Instruct", 4, 465.0, 1787.0, 724, 6018.0, 2546.0)
QWEN_32B_H100: Final = Deployment("Qwen/Qwen3-32B", 2, 522.0, 850.0, 256, 5155.0, 1178.0)
GPT_OSS_H100: Final = Deployment("openai/gpt-oss-120b", 2, 1105.0, 864.0, 1915, 10_762.0, 926.0)
QWEN_235B_H100: Final = Deployment("Qwen/Qwen3-235B-A22B-FP8", 8, 316.0, 3596.0, 511, 5342.0, 3961.0)
DEEPSEEK_B200: Final = Deployment("deepseek-ai/DeepSeek-V3.1", 8, 450.0, 3854.0, 3008, 9021.0, 5470.0)
LLAMA_70B_B200: Final = Deployment(
    "meta-llama/Llama-3.3-70B-Instruct", 2, 470.0, 1701.0, 1022, 8854.0, 1935.0
)


@dataclass(frozen=True, slots=True)
class Workload:
    """What the requests of a pool look like; lengths are means, in tokens."""

    output_tokens: int
    prompt_tokens: int
    cached_share: float
    prefill_ms: int
    day_phase: float  # share of the day by which its load runs ahead


@dataclass(frozen=True, slots=True)
class Holding:
    """Some GPUs of one node in one hand: an engine's (deployment), a foreign job's, or nobody's."""

    gpus: int
    deployment: Deployment | None = None
    foreign_job: bool = False
    asked: bool = True  # requests come at all
    gpus_told: bool = (
        True  # the settings name the engine's GPUs; at most one engine of a node may leave them out
    )


@dataclass(frozen=True, slots=True)
class Node:
    """One host."""

    name: str
    pool: str
    product: Product
    holdings: tuple[Holding, ...]


@dataclass(frozen=True, slots=True)
class Plant:
    """A whole hall."""

    nodes: tuple[Node, ...]
    workloads: dict[str, Workload]  # by pool


def _of(deployment: Deployment, *, gpus_told: bool = True, asked: bool = True) -> Holding:
    return Holding(deployment.gpus, deployment, asked=asked, gpus_told=gpus_told)


# 80 GPUs on 10 nodes of 8, in 4 pools.
DEFAULT_PLANT: Final = Plant(
    nodes=(
        Node("chat-1", "chat", H100, (_of(LLAMA_70B_H100), _of(LLAMA_70B_H100, gpus_told=False))),
        Node("chat-2", "chat", H100, (_of(LLAMA_70B_H100),) * 2),
        Node("chat-3", "chat", H100, (_of(QWEN_32B_H100),) * 4),
        Node("code-1", "code", B200, (_of(DEEPSEEK_B200, gpus_told=False),)),
        Node("code-2", "code", B200, (_of(DEEPSEEK_B200),)),
        Node("code-3", "code", B200, (_of(LLAMA_70B_B200),) * 4),
        Node("agents-1", "agents", H100, (_of(GPT_OSS_H100),) * 4),
        Node("agents-2", "agents", H100, (*(_of(GPT_OSS_H100),) * 3, Holding(2, foreign_job=True))),
        # bought for batch work that does not come: one model waits loaded, one node stands empty
        Node("batch-1", "batch", H100, (_of(QWEN_235B_H100, gpus_told=False, asked=False),)),
        Node("batch-2", "batch", H100, (Holding(8),)),
    ),
    workloads={
        "chat": Workload(300, 600, 0.4, 200, 0.1),
        "code": Workload(400, 3000, 0.6, 400, 0.4),
        "agents": Workload(200, 2500, 0.85, 600, 0.75),
        "batch": Workload(800, 2000, 0.1, 400, 0.0),
    },
)
