"""Recurrent layers as ONNX has them."""

import torch
from torch import nn

from jobs.models.modules import Lstm

_GATES = (0, 3, 1, 2)
"""torch's input, forget, cell and output gates, in ONNX's order."""


class OnnxLstm(nn.Module):
    """An Lstm that is exported as ONNX's operator of that name, whatever the number of steps.

    torch.export unrolls torch's own step by step. The weights are put in order here, since in the graph only those of
    small layers would be folded. https://onnx.ai/onnx/operators/onnx__LSTM.html
    """

    def __init__(self, layer: Lstm) -> None:
        super().__init__()
        lstm = layer.lstm
        self.hidden = lstm.hidden_size
        inputs, state, *biases = (parameter.detach() for parameter in lstm.parameters())
        self.inputs_weight = nn.Parameter(_ordered(inputs)[None])
        self.state_weight = nn.Parameter(_ordered(state)[None])
        self.bias = nn.Parameter(torch.cat([_ordered(bias) for bias in biases])[None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.transpose(0, 1)
        steps, batch = x.shape[:2]
        states = torch.onnx.ops.symbolic(
            "LSTM",
            (x, self.inputs_weight, self.state_weight, self.bias),
            {"hidden_size": self.hidden},
            dtype=x.dtype,
            shape=(steps, 1, batch, self.hidden),
            version=14,
        )
        return states.squeeze(1).transpose(0, 1)


def _ordered(tensor: torch.Tensor) -> torch.Tensor:
    """The gates, along the first dimension, in ONNX's order."""
    return tensor.unflatten(0, (4, -1))[list(_GATES)].flatten(0, 1)


def with_onnx_layers(model: nn.Module) -> nn.Module:
    """The model, its recurrent layers replaced by ONNX's own. Changes it in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Lstm):
                setattr(parent, name, OnnxLstm(child))
    return model
