"""Embeddings and their gradients in half the bytes on the network (TorchRec's quantized communication)."""

import torch
from fbgemm_gpu.quantize_comm import QuantizedCommCodec
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import QuantizedCommCodecs

from cetnet.sharding.config import CommunicationConfig

_GRADIENT_SCALE = 2.0**14


class _ScaledGradients(QuantizedCommCodec):
    """Multiplies gradients on their way through fp16, whose normal numbers then reach from 4e-9 to 4.

    A gradient is of the mean over the batch, and of a sum of embeddings that will be divided by their number: 1e-8 is
    common, where fp16 is zero. TorchRec's own
    `backward_loss_scale` divides before it decodes, in fp16, which loses them again (torchrec 1.8).
    """

    def encode(self, input_tensor: Tensor, ctx: object = None) -> Tensor:
        """Gradient, float32 -> scaled, as it travels."""
        return super().encode(input_tensor * _GRADIENT_SCALE, ctx)

    def decode(self, input_grad: Tensor, ctx: object = None) -> Tensor:
        """Scaled, as it travelled -> gradient, float32."""
        return super().decode(input_grad, ctx) / _GRADIENT_SCALE


def codecs(config: CommunicationConfig, device: str) -> dict[str, QuantizedCommCodecs] | None:
    """How sharders send each kind of message; None for float32. On `cpu` TorchRec sends bf16 as fp16."""
    registry = get_qcomm_codecs_registry(
        QCommsConfig(
            forward_precision=CommType(config.forward), backward_precision=CommType(config.backward)
        ),
        device=torch.device(device),
    )
    for pair in (registry or {}).values():
        if config.backward == "fp16":
            pair.backward = _ScaledGradients(SparseType.FP16, is_fwd=False)
    return registry
