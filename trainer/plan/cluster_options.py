"""The clusters that `--cluster` and `--sweep` name, and a configuration for one of them."""

from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from cetnet.sharding.cluster import Cluster, parse_cluster, parse_description, parse_sweep
from cetnet.sharding.config import ClusterConfig
from cetnet.trainer.config import RunConfig
from cetnet.trainer.errors import UserError, validation_message
from cetnet.trainer.yaml_files import read_yaml


def read_cluster(text: str) -> Cluster:
    """`64x8`, `64x8:h100` or a YAML file; raises UserError."""
    try:
        if cluster := parse_cluster(text):
            return cluster
        path = Path(text)
        if path.suffix not in (".yaml", ".yml") and not path.is_file():
            raise UserError(
                f"--cluster {text!r} is neither NODESxGPUS[:KIND], such as 64x8:h100, nor a YAML file"
            )
        return parse_description(read_yaml(path))
    except ValidationError as error:
        raise UserError(f"{text}: {validation_message(error)}") from None
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"--cluster {text}: {error}") from None


def read_sweep(text: str, like: Cluster) -> list[Cluster]:
    """`1x8..128x8[:KIND]`, hosts doubling; without a kind the figures are `like`'s. Raises UserError."""
    try:
        parsed = parse_sweep(text)
    except ValueError as error:
        raise UserError(f"--sweep {text}: {error}") from None
    if parsed is None:
        raise UserError(f"--sweep {text!r} is not of the form FIRSTxGPUS..LASTxGPUS, such as 1x8..128x8")
    first, nodes = parsed
    if first.gpu is None:
        first = replace(like, gpus_per_node=first.gpus_per_node)
    return [first.with_nodes(count) for count in nodes]


def on_cluster(config: RunConfig, cluster: Cluster, batch_per_gpu: int | None = None) -> RunConfig:
    """The configuration for a cluster: its figures, where `sharding.cluster` has none of its own."""
    figures = cluster.hardware.model_dump() | config.sharding.cluster.model_dump(exclude_none=True)
    changed = config.sharding.model_copy(update={"cluster": ClusterConfig(**figures)})
    data = config.data
    if batch_per_gpu:
        data = data.model_copy(update={"batch_size": batch_per_gpu * cluster.world_size})
    return config.model_copy(update={"sharding": changed, "data": data})
