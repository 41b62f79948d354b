"""Clusters one may plan for: GPU kinds by name, shapes such as `64x8:h100`, and descriptions of one's own."""

import re
from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field

from cetnet.sharding.config import ClusterConfig


@dataclass(frozen=True)
class Gpu:
    """Figures of a GPU in the host it is usually sold in.

    Attributes:
        hbm_gb: memory, as the data sheet has it.
        hbm_bandwidth: GB/s.
        intra_host_bandwidth: to the other GPUs of the host, GB/s each way: half of what data sheets add up.
        inter_host_bandwidth: this GPU's share of the host's network, GB/s.
        ddr_gb: its share of the host's memory.
        fp32_tflops: peak without tensor cores, which is what float32 layers get by PyTorch's default.
        bf16_tflops: peak of dense matrix products in bfloat16; None where there are none.
        source: data sheets of the GPU and of the host.
    """

    hbm_gb: float
    hbm_bandwidth: float
    intra_host_bandwidth: float
    inter_host_bandwidth: float
    ddr_gb: float
    fp32_tflops: float
    bf16_tflops: float | None
    source: str


GPUS = {
    "v100": Gpu(32, 900, 150, 6.25, 64, 15.7, None, "NVIDIA V100 SXM2 32GB; DGX-1: 4 x 100 Gbit/s, 512 GB"),
    "t4": Gpu(16, 320, 16, 1.56, 48, 8.1, None, "NVIDIA T4, PCIe 3 x16; AWS g4dn.metal: 100 Gbit/s, 384 GB"),
    "l4": Gpu(24, 300, 32, 1.56, 96, 30.3, 121, "NVIDIA L4, PCIe 4 x16; AWS g6.48xlarge: 100 Gbit/s, 768 GB"),
    "a100-40gb": Gpu(
        40, 1555, 300, 25, 128, 19.5, 312, "NVIDIA A100 SXM4 40GB; DGX A100 320GB: 8 x 200 Gbit/s, 1 TB"
    ),
    "a100-80gb": Gpu(
        80, 2039, 300, 25, 256, 19.5, 312, "NVIDIA A100 SXM4 80GB; DGX A100 640GB: 8 x 200 Gbit/s, 2 TB"
    ),
    "h100": Gpu(80, 3350, 450, 50, 256, 67, 989, "NVIDIA H100 SXM5; DGX H100: 8 x 400 Gbit/s, 2 TB"),
    "h200": Gpu(141, 4800, 450, 50, 256, 67, 989, "NVIDIA H200 SXM; DGX H200: 8 x 400 Gbit/s, 2 TB"),
    "b200": Gpu(180, 8000, 900, 50, 256, 75, 2250, "NVIDIA HGX B200; DGX B200: 8 x 400 Gbit/s, 2 TB"),
}


class ClusterDescription(ClusterConfig):
    """A cluster of one's own: the YAML file that `cetnet plan --cluster FILE` reads."""

    nodes: int = Field(gt=0, description="Hosts.")
    gpus_per_node: int = Field(gt=0, description="GPUs of each host.")
    gpu: str | None = Field(None, description="A kind whose figures hold where the file has none.")
    fp32_tflops: float | None = Field(None, gt=0, description="Peak of one GPU in float32.")
    bf16_tflops: float | None = Field(None, gt=0, description="Peak of one GPU in bfloat16.")


@dataclass(frozen=True)
class Cluster:
    """Hosts, GPUs and what they can do; `hardware` leaves to TorchRec's defaults what nobody said."""

    nodes: int
    gpus_per_node: int
    hardware: ClusterConfig
    gpu: str | None = None
    fp32_tflops: float | None = None
    bf16_tflops: float | None = None

    @property
    def world_size(self) -> int:
        """Number of GPUs."""
        return self.nodes * self.gpus_per_node

    def with_nodes(self, nodes: int) -> "Cluster":
        """The same with another number of hosts."""
        return replace(self, nodes=nodes)

    def __str__(self) -> str:
        return f"{self.nodes}x{self.gpus_per_node}" + (f":{self.gpu}" if self.gpu else "")


def parse_cluster(text: str) -> Cluster | None:
    """`NODESxGPUS` or `NODESxGPUS:KIND` -> the cluster; None if the text has another form.

    Raises ValueError for an unknown kind.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(?::(.+))?", text)
    if not match:
        return None
    return parse_description({"nodes": match[1], "gpus_per_node": match[2], "gpu": match[3]})


def parse_description(content: dict[str, Any]) -> Cluster:
    """The cluster of a description; raises pydantic.ValidationError, or ValueError for an unknown kind."""
    own = ClusterDescription.model_validate(content)
    figures: dict[str, Any] = {}
    if own.gpu is not None:
        if own.gpu not in GPUS:
            raise ValueError(
                f"unknown kind of GPU {own.gpu!r}; known: {', '.join(GPUS)}, or describe yours in a YAML file"
            )
        figures = vars(GPUS[own.gpu]).copy()
    figures |= own.model_dump(exclude_none=True, exclude={"nodes", "gpus_per_node", "gpu"})
    return Cluster(
        own.nodes,
        own.gpus_per_node,
        ClusterConfig(**{key: figures.get(key) for key in ClusterConfig.model_fields}),
        own.gpu,
        figures.get("fp32_tflops"),
        figures.get("bf16_tflops"),
    )


def parse_sweep(text: str) -> tuple[Cluster, list[int]] | None:
    """`1x8..128x8`, the kind at either end -> its first cluster and the numbers of hosts: doubling, and the last.

    None for another form.
    """
    first, dots, last = text.partition("..")
    start, end = (parse_cluster(shape) if dots else None for shape in (first, last))
    if start and end and start.gpu is None and end.gpu:
        start = parse_cluster(f"{first}:{end.gpu}")
    if (
        start is None
        or end is None
        or end.gpu not in (None, start.gpu)
        or start.gpus_per_node != end.gpus_per_node
        or start.nodes > end.nodes
    ):
        return None
    nodes = [start.nodes]
    while nodes[-1] * 2 <= end.nodes:
        nodes.append(nodes[-1] * 2)
    if nodes[-1] < end.nodes:
        nodes.append(end.nodes)
    return start, nodes
