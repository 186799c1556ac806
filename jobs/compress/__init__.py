"""Making the winner small: whole channels removed, fewer bits a weight."""

from jobs.compress.prune import prune_structured
from jobs.compress.quantize import quantize_onnx
from jobs.compress.widths import step_ratios

__all__ = ["prune_structured", "quantize_onnx", "step_ratios"]
