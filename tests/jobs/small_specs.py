"""A spec of what must be said, and one of nearly all that can be."""

from typing import Any

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet"},
}
LARGE: dict[str, Any] = {
    "name": "large",
    "project": "tests",
    "priority": -5,
    "data": {
        "source": {"kind": "builtin", "name": "digits"},
        "split": {"validation": 0.2, "test": 0.2, "calibration": 64, "seed": 7},
        "normalize": "unit",
        "augment": [{"random_crop": {"padding": 1}}, {"horizontal_flip": {}}, {"rotate": {"degrees": 8.0}}],
    },
    "metric": "f1_macro",
    "model": {"name": "lenet", "args": {"conv_widths": [4, 8], "kernel": 3, "dropout": 0.1}},
    "train": {
        "steps": 20,
        "batch_size": 32,
        "class_weights": "balanced",
        "optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True},
        "schedule": {"name": "step", "milestones": [0.3, 0.6]},
        "gradient_clip": 1.0,
    },
    "layout": {"data": 2, "zero_stage": 1, "micro_batch": 8},
    "resources": {"workers": 2},
    "search": {
        "trials": 4,
        "space": {
            "train.optimizer.lr": {"loguniform": [0.001, 0.1]},
            "model.args.activation": {"choice": ["relu", "gelu"]},
            "compress.prune.ratio": {"uniform": [0.2, 0.5]},
            "train.checkpoint": {"choice": []},
        },
        "objectives": {"metric": "max", "bytes": "min"},
    },
    "compress": {
        "prune": {"ratio": 0.4, "recover": {"epochs": 1, "distill": {"weight": 0.3}}},
        "quantize": {"schemes": ["int8_static"]},
        "budget": {"max_bytes": 100000, "max_metric_drop": None},
    },
    "export": {"formats": ["onnx"]},
}
del LARGE["search"]["space"]["train.checkpoint"]
