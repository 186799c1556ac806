"""Making the winner small: whole channels removed, fewer bits a weight."""

from jobs.compress.prune import prune_structured, step_ratios
from jobs.compress.quantize import quantize_onnx

__all__ = ["prune_structured", "quantize_onnx", "step_ratios"]
