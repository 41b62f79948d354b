"""Where tables may live, and what the planner is told of the cluster."""

from typing import Literal

from pydantic import Field

from cetnet.models.strict import Strict

ShardingType = Literal[
    "table_wise", "row_wise", "table_row_wise", "column_wise", "table_column_wise", "grid_shard"
]
Precision = Literal["fp32", "fp16", "bf16"]


class ClusterConfig(Strict):
    """Sizes and speeds the planner reckons with; a key left out is measured or TorchRec's default."""

    hbm_gb: float | None = Field(None, gt=0, description="Memory of one GPU, GiB.")
    ddr_gb: float | None = Field(None, gt=0, description="Host memory of one process, GiB.")
    hbm_bandwidth: float | None = Field(None, gt=0, description="GB/s.")
    ddr_bandwidth: float | None = Field(None, gt=0, description="GB/s.")
    intra_host_bandwidth: float | None = Field(
        None, gt=0, description="Between GPUs of a host, GB/s each way."
    )
    inter_host_bandwidth: float | None = Field(None, gt=0, description="Between hosts, GB/s a GPU.")


class CommunicationConfig(Strict):
    """Precision of pooled and unpooled embeddings on the network; tables and arithmetic stay as they are."""

    forward: Precision = Field("fp32", description="Of embeddings. fp16 and bf16 halve the bytes.")
    backward: Precision = Field(
        "fp32", description="Of their gradients. bf16, here and in `forward`, runs on CUDA only."
    )


class TableConstraint(Strict):
    """What the planner may do with a table."""

    sharding_types: tuple[ShardingType, ...] = Field(min_length=1)


class ShardingConfig(Strict):
    """Placement of the embedding tables; the planner chooses within it."""

    constraints: dict[str, TableConstraint] = Field(
        default={},
        description="By table name or pattern (`interformer__*`); the last that matches counts. Default: "
        "table_wise, row_wise, table_row_wise. Column-split types work too, but a run can't be resumed under "
        "another column split, and rowwise_adagrad has an accumulator per piece.",
    )
    dense_tables: tuple[str, ...] = Field(
        (),
        description="Names or patterns of small tables that every process holds whole and "
        "`optimizer.dense_tables` trains, instead of being sharded.",
    )
    reserve: float = Field(
        0.15, ge=0, lt=1, description="Share of memory kept for dense parameters, activations and batches."
    )
    communication: CommunicationConfig = CommunicationConfig()
    host_memory: bool = Field(
        False,
        description="On GPUs: tables may also live in host memory with a cache on the GPU (kernel "
        "`fused_uvm_caching`), which fits more and is slower.",
    )
    cluster: ClusterConfig = ClusterConfig()
