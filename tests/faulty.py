"""A component that comes to grief on rank 1, in its fifth step, in the way that FAULT says."""

import os
import signal
from threading import Event

from cetnet.models.component import Component, Inputs, InputShape, Output
from cetnet.models.component_config import ComponentConfig
from cetnet.models.layers.mlp import LogitLinear

STEPS_DONE = 4


class Faulty(Component):
    Config = ComponentConfig

    def __init__(self, shape: InputShape, config: ComponentConfig) -> None:  # noqa: ARG002
        super().__init__()
        self.output_dim = shape.embedding_dim
        self.logit = LogitLinear(self.output_dim)
        self.steps_begun = 0

    def forward(self, inputs: Inputs) -> Output:
        self.steps_begun += self.training
        if self.steps_begun > STEPS_DONE and os.environ["RANK"] == "1":
            come_to_grief()
        embedding = inputs.tokens.mean(1)
        return Output(embedding, self.logit(embedding))


def come_to_grief() -> None:
    match os.environ["FAULT"]:
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "wait":
            Event().wait()
        case "raise":
            raise RuntimeError("a bug")
