"""TorchRec's sharders, as planning and DistributedModelParallel use them."""

from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.mc_embedding import ManagedCollisionEmbeddingCollectionSharder
from torchrec.distributed.mc_embeddingbag import ManagedCollisionEmbeddingBagCollectionSharder
from torchrec.distributed.types import ModuleSharder

from cetnet.sharding.communication import codecs
from cetnet.sharding.config import CommunicationConfig


class PooledSharder(EmbeddingBagCollectionSharder):
    """Offers row-wise sharding on CPU too, which works but which TorchRec does not list there."""

    def sharding_types(self, compute_device_type: str) -> list[str]:  # noqa: ARG002
        """Everything but data-parallel, which would silently change a table's optimizer."""
        return ["table_wise", "row_wise", "table_row_wise", "column_wise", "table_column_wise", "grid_shard"]


class UnpooledSharder(EmbeddingCollectionSharder):
    """Sharder of the tables that are read position by position."""

    def sharding_types(self, compute_device_type: str) -> list[str]:  # noqa: ARG002
        """Everything but data-parallel, which also fails on CPU."""
        return ["table_wise", "row_wise", "column_wise"]


def sharders(communication: CommunicationConfig, device: str) -> list[ModuleSharder[nn.Module]]:
    """The sharders that planning and DistributedModelParallel use alike; `device` is `cpu` or `cuda`."""
    registry = codecs(communication, device)
    pooled = PooledSharder(qcomm_codecs_registry=registry)
    unpooled = UnpooledSharder(qcomm_codecs_registry=registry)
    return [
        pooled,
        unpooled,
        ManagedCollisionEmbeddingBagCollectionSharder(ebc_sharder=pooled, qcomm_codecs_registry=registry),
        ManagedCollisionEmbeddingCollectionSharder(ec_sharder=unpooled, qcomm_codecs_registry=registry),
    ]
