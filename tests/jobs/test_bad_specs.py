"""Bad specs and bad data: refused before anything starts, at the path, with what is allowed and the nearest name."""

import gzip
import json
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from jobs import data
from jobs.errors import DataError, SpecError
from jobs.spec import JobSpec
from jobs.spec.load import with_values
from jobs.spec.read import MAX_SPEC_BYTES
from orchestrator import cli
from orchestrator.plan import plan_job
from orchestrator.runs import Storage

BASE: dict[str, Any] = {
    "name": "bad",
    "data": {"source": {"kind": "builtin", "name": "digits"}},
    "model": {"name": "lenet"},
}


def spec_with(values: dict[str, Any]) -> dict[str, Any]:
    return with_values(BASE, values)


def space(key: str, dimension: Any, **search: Any) -> dict[str, Any]:
    return {"search": {"space": {key: dimension}, **search}}


def check(error: SpecError, path: str, parts: tuple[str, ...]) -> None:
    """Some problem is at the path, and its text holds all the parts."""
    texts = [str(problem) for problem in error.problems if problem.path == path]
    assert texts, f"no problem at {path!r}: {error}"
    assert any(all(part in text for part in parts) for text in texts), f"{parts} are not all in {texts}"


def conditional(when: dict[str, Any], **search: Any) -> dict[str, Any]:
    parent = {"choice": ["sgd", "adamw"]}
    return {"search": {"space": {OPTIMIZER: parent, MOMENTUM: {"uniform": [0.5, 0.9], "when": when}}, **search}}


OPTIMIZER, MOMENTUM = "train.optimizer.name", "train.optimizer.momentum"
LR = "train.optimizer.lr"
DROPOUT = "model.args.dropout"
SPECS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    # Types: nothing is turned into what was not written.
    "true for a number": ({"train.epochs": True}, "train.epochs", ("got True", "a number")),
    "text for a number": ({"train.epochs": "3"}, "train.epochs", ("got '3'", "a number")),
    "text for a rate": ({LR: "1e-3"}, LR, ("got '1e-3'",)),
    "number for a truth": ({"model.args.batch_norm": 1}, "model.args.batch_norm", ("got 1", "true, false")),
    "fraction for a count": ({"train.epochs": 1.5}, "train.epochs", ("got 1.5", "a whole number")),
    "number for text": ({"name": 3}, "name", ("got 3", "text")),
    "text for a section": ({"train.optimizer": "adamw"}, "train.optimizer", ("got 'adamw'", "a mapping of keys")),
    "text for a source": ({"data.source": "digits"}, "data.source", ("got 'digits'", "a mapping")),
    "nothing for a section": ({"data": None}, "data", ("a mapping of keys",)),
    "truth for a section": ({"compress.prune": True}, "compress.prune", ("got True",)),
    "number for a list": ({"model.args.conv_widths": 8}, "model.args.conv_widths", ("got 8", "a list")),
    "text for a list": ({"code.requirements": "torch"}, "code.requirements", ("got 'torch'", "a list")),
    "list of one for a pair": ({"train.optimizer.betas": [0.9]}, "train.optimizer.betas.1", ("is required",)),
    "workers as text": ({"resources.workers": "2"}, "resources.workers", ("got '2'",)),
    "workers of three": ({"resources.workers": [1, 2, 3]}, "resources.workers", ("whole number", "at most 2")),
    "not a number": ({LR: float("nan")}, LR, ("finite",)),
    "infinity": ({LR: float("inf")}, LR, ("finite",)),
    "bytes": ({"name": b"x"}, "name", ("bytes has no place",)),
    "a key that is no text": ({"train": {1: 2}}, "train", ("a key must be text", "got 1")),
    # Unknown and missing keys.
    "unknown at the top": ({"trian": {}}, "trian", ("unknown key", "train", "did you mean 'train'")),
    "unknown in train": ({"train.epocs": 3}, "train.epocs", ("batch_size", "did you mean 'epochs'")),
    "unknown in the optimizer": ({"train.optimizer.lrr": 1}, "train.optimizer.lrr", ("did you mean 'lr'",)),
    "unknown four deep": (
        {"compress.prune.recover.distill.temprature": 2.0},
        "compress.prune.recover.distill.temprature",
        ("weight", "did you mean 'temperature'"),
    ),
    "unknown in a layout": ({"layout": {"dat": 2}}, "layout.dat", ("micro_batch", "did you mean 'data'")),
    "unknown argument": ({"model.args.dropuot": 0.1}, "model.args.dropuot", ("kernel", "did you mean 'dropout'")),
    "unknown augmentation": (
        {"data.augment": ["horizontal_flop"]},
        "data.augment.0.horizontal_flop",
        ("rotate", "did you mean 'horizontal_flip'"),
    ),
    "no kind of source": ({"data.source": {"name": "digits"}}, "data.source.kind", ("is required", "parquet")),
    "no optimizer's name": ({"train.optimizer": {"lr": 1}}, "train.optimizer.name", ("required", "sgd, adam, adamw")),
    "no schedule's name": ({"train.schedule": {"warmup": 0}}, "train.schedule.name", ("constant, step, cosine",)),
    "no model's name": ({"model": {}}, "model.name", ("is required", "lenet, mlp")),
    "no path": ({"data.source": {"kind": "idx"}}, "data.source.path", ("is required",)),
    "no target": ({"data.source": {"kind": "csv", "path": "x"}}, "data.target", ("column to predict",)),
    # Names.
    "misspelt kind": ({"data.source": {"kind": "cvs"}}, "data.source.kind", ("image_folder", "did you mean 'csv'")),
    "misspelt data set": ({"data.source.name": "digit"}, "data.source.name", ("diabetes", "did you mean 'digits'")),
    "misspelt optimizer": ({"train.optimizer.name": "adamx"}, "train.optimizer.name", ("sgd", "did you mean 'adam")),
    "misspelt schedule": ({"train.schedule": "cosin"}, "train.schedule.name", ("step", "did you mean 'cosine'")),
    "misspelt model": ({"model.name": "lenett"}, "model.name", ("mlp", "did you mean 'lenet'")),
    "misspelt metric": ({"metric": "acuracy"}, "metric", ("f1_macro", "did you mean 'accuracy'")),
    "misspelt auto": ({"layout": "aut"}, "layout", ("got 'aut'", "did you mean 'auto'")),
    "misspelt pick": ({"compress.pick": "smalest"}, "compress.pick", ("fastest", "did you mean 'smallest'")),
    "misspelt scheme": (
        {"compress.quantize.schemes": ["int8_statik"]},
        "compress.quantize.schemes.0",
        ("fp16", "did you mean 'int8_static'"),
    ),
    "a factory that is none": ({"model.name": "a-b:c"}, "model.name", ("got 'a-b:c'", "package.module:function")),
    "a factory without a function": ({"model.name": "a.b:"}, "model.name", ("package.module:function",)),
    "a job's name with a slash": ({"name": "../up"}, "name", ("got '../up'", "not allowed")),
    "a name that is too long": ({"name": "x" * 101}, "name", ("not allowed",)),
    # Ranges.
    "rate of zero": ({LR: 0}, LR, ("got 0", "above 0")),
    "rate beyond all numbers": ({LR: 10**400}, LR, ("number",)),
    "batch beyond all memory": ({"train.batch_size": 10**30}, "train.batch_size", ("at most 1048576",)),
    "batch of zero": ({"train.batch_size": 0}, "train.batch_size", ("got 0", "at least 1")),
    "momentum of one": (
        {"train.optimizer": {"name": "sgd", "momentum": 1.0}},
        "train.optimizer.momentum",
        ("below 1.0",),
    ),
    "ratio of one": ({"compress.prune.ratio": 1.0}, "compress.prune.ratio", ("got 1.0", "below 1.0")),
    "ratio of zero": ({"compress.prune.ratio": 0}, "compress.prune.ratio", ("got 0", "above 0.0")),
    "all of four": ({"compress.prune": {"method": "nm", "n": 4}}, "compress.prune.n", ("got 4", "at most 3")),
    "energy of one": ({"compress.low_rank.energy": 1.0}, "compress.low_rank.energy", ("below 1.0",)),
    "weight of zero": (
        {"compress.prune.recover.distill.weight": 0},
        "compress.prune.recover.distill.weight",
        ("above 0.0",),
    ),
    "kernel of four": ({"model.args.kernel": 4}, "model.args.kernel", ("got 4", "3 or 5")),
    "no convolutions": ({"model.args.conv_widths": []}, "model.args.conv_widths", ("at least 1",)),
    "priority": ({"priority": 101}, "priority", ("got 101", "at most 100")),
    "no validation": ({"data.split.validation": 0}, "data.split.validation", ("above 0.0",)),
    "no training": ({"data.split.train": 0}, "data.split.train", ("at least 1",)),
    "five to calibrate": ({"data.split.calibration": 5}, "data.split.calibration", ("at least 16",)),
    "ZeRO of four": ({"layout": {"zero_stage": 4}}, "layout.zero_stage", ("got 4", "at most 3")),
    "no workers": ({"resources.workers": 0}, "resources.workers", ("got 0", "1 to 65536")),
    "two accelerators": ({"resources.gpus_per_worker": 2}, "resources.gpus_per_worker", ("at most 1",)),
    "a class weight below zero": ({"train.class_weights": [1, -1]}, "train.class_weights.1", ("above 0.0",)),
    "a milestone after the end": (
        {"train.schedule": {"name": "step", "milestones": [1.5]}},
        "train.schedule.milestones.0",
        ("below 1.0",),
    ),
    # Contradictions.
    "epochs and steps": ({"train.epochs": 1, "train.steps": 1}, "train.steps", ("exclude each other",)),
    "metric and loss": ({"metric": "rmse"}, "metric", ("rmse", "cross_entropy", "accuracy, f1_macro")),
    "loss and metric": ({"train.loss": "mse", "metric": "accuracy"}, "metric", ("mse", "rmse, mae")),
    "smoothing and loss": (
        {"train.loss": "bce", "train.label_smoothing": 0.1},
        "train.label_smoothing",
        ("cross_entropy",),
    ),
    "weights and loss": (
        {"train.loss": "mse", "train.class_weights": "balanced"},
        "train.class_weights",
        ("cross_entropy and bce",),
    ),
    "nesterov without momentum": (
        {"train.optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": True}},
        "train.optimizer.nesterov",
        ("momentum above 0",),
    ),
    "milestones that fall": (
        {"train.schedule": {"name": "step", "milestones": [0.5, 0.3]}},
        "train.schedule.milestones",
        ("ascend",),
    ),
    "a column where there are none": ({"data.target": "y"}, "data.target", ("got 'y'", "no columns")),
    "two augmentations in one": (
        {"data.augment": [{"rotate": {"degrees": 1}, "horizontal_flip": {}}]},
        "data.augment.0",
        ("exactly one", "random_crop, horizontal_flip, rotate"),
    ),
    "layout and workers": ({"layout": {"data": 2}}, "layout.data", ("resources.workers = 1", "layout.data = 1")),
    "degrees and workers": (
        {"layout": {"tensor": 2, "pipeline": 2}, "resources.workers": 8},
        "layout.data",
        ("1 × 2 × 2 = 4, but resources.workers = 8", "layout.data = 2"),
    ),
    "degrees that divide no workers": (
        {"layout": {"tensor": 2}, "resources.workers": 3},
        "layout.data",
        ("resources.workers = 3", "tensor × pipeline that divides 3: 1, 3"),
    ),
    "bf16 without ZeRO": (
        {"train.precision": "bf16", "layout": {"zero_stage": 0}},
        "layout.zero_stage",
        ("got 0", "1, 2, 3"),
    ),
    "fp16 on processors": ({"train.precision": "fp16"}, "train.precision", ("got 'fp16'", "bf16 works", "fp32, bf16")),
    "fp16 on processors, searched": (
        space("train.precision", {"choice": ["bf16", "fp16"]}),
        "search.space.train.precision",
        ("got 'fp16'", "fp32, bf16"),
    ),
    "a pipeline and ZeRO 2": (
        {"layout": {"pipeline": 2, "zero_stage": 2}, "resources.workers": 2},
        "layout.zero_stage",
        ("got 2", "accumulates gradients", "0, 1"),
    ),
    "offload without ZeRO": (
        {"layout": {"offload": "cpu"}},
        "layout.offload",
        ("got 'cpu'", "ZeRO's optimizer", "a layout.zero_stage of 1 to 3"),
    ),
    "nvme at ZeRO 1": (
        {"layout": {"offload": "nvme", "zero_stage": 1, "nvme_path": "/tmp"}},
        "layout.offload",
        ("got 'nvme'", "ZeRO 3 alone", "a layout.zero_stage of 3"),
    ),
    "nvme without a path": (
        {"layout": {"offload": "nvme", "zero_stage": 3}},
        "layout.nvme_path",
        ("a folder on a local disk",),
    ),
    "a path without nvme": ({"layout": {"nvme_path": "/tmp"}}, "layout.nvme_path", ("got '/tmp'", "offload nvme")),
    "tensor beyond all": ({"layout": {"tensor": 65}}, "layout.tensor", ("got 65", "at most 64")),
    "no ONNX": ({"export.formats": ["safetensors"]}, "export.formats", ("`onnx` must be listed",)),
    "a scheme twice": ({"compress.quantize.schemes": ["fp16", "fp16"]}, "compress.quantize.schemes", ("twice",)),
    "no schemes": ({"compress.quantize.schemes": []}, "compress.quantize.schemes", ("at least 1",)),
    # The search space.
    "empty space": ({"search": {"space": {}}}, "search.space", ("at least 1",)),
    "a path that is not there": (
        space("train.optimiser.lr", {"loguniform": [1e-4, 1e-2]}),
        "search.space.train.optimiser.lr",
        ("unknown key", "did you mean 'optimizer'"),
    ),
    "a path to nowhere": (
        space("modle.args.dropout", {"uniform": [0, 0.5]}),
        "search.space.modle.args.dropout",
        ("is no path", "did you mean 'model.args.dropout'"),
    ),
    "an argument that is not there": (
        space("model.args.kernal", {"choice": [3, 5]}),
        "search.space.model.args.kernal",
        ("did you mean 'kernel'",),
    ),
    "a path that is not searched": (
        space("resources.workers", {"int": [1, 2]}),
        "search.space.resources.workers",
        ("can't be searched", "model.args"),
    ),
    "epochs are not searched": (
        space("train.epochs", {"int": [1, 2]}),
        "search.space.train.epochs",
        ("can't be searched",),
    ),
    "illegal at the high end": (
        space(DROPOUT, {"uniform": [0.0, 1.5]}),
        f"search.space.{DROPOUT}",
        ("got 1.5", "below 1.0"),
    ),
    "pbt over the batch": (
        space("train.batch_size", {"choice": [16, 32]}, scheduler="pbt"),
        "search.space.train.batch_size",
        ("can't change", "train.optimizer.lr"),
    ),
    "pbt over no dropout": (
        space(DROPOUT, {"uniform": [0.0, 0.1]}, scheduler="pbt"),
        f"search.space.{DROPOUT}",
        ("at 0", "above 0"),
    ),
    "pbt in joint trials": (
        space(LR, {"uniform": [0.01, 0.1]}, scheduler="pbt", mode="joint"),
        "search.mode",
        ("staged",),
    ),
    "pbt with one member": (
        space(LR, {"uniform": [0.01, 0.1]}, scheduler="pbt", trials=1),
        "search.trials",
        ("two members",),
    ),
    "a metric that no trial reports": ({"metric": "rmse"}, "metric", ("rmse",)),
    "illegal at the low end": (space(LR, {"uniform": [0.0, 0.1]}), f"search.space.{LR}", ("got 0.0", "above 0.0")),
    "illegal in between": (
        space("model.args.kernel", {"int": [3, 5]}),
        "search.space.model.args.kernel",
        ("got 4", "3 or 5"),
    ),
    "fractions for a count": (
        space("train.batch_size", {"uniform": [16, 64]}),
        "search.space.train.batch_size",
        ("a whole number",),
    ),
    "illegal choice": (
        space("model.args.activation", {"choice": ["relu", "rellu"]}),
        "search.space.model.args.activation",
        ("got 'rellu'", "did you mean 'relu'"),
    ),
    "an empty range": (
        space(DROPOUT, {"uniform": [0.5, 0.1]}),
        f"search.space.{DROPOUT}",
        ("0.5", "0.1", "low < high"),
    ),
    "a logarithm of zero": (space(DROPOUT, {"loguniform": [0, 0.1]}), f"search.space.{DROPOUT}", ("low > 0",)),
    "no choices": (space(DROPOUT, {"choice": []}), f"search.space.{DROPOUT}", ("at least one value",)),
    "a choice twice": (space(DROPOUT, {"choice": [0.1, 0.1]}), f"search.space.{DROPOUT}", ("twice",)),
    "two kinds of dimension": (
        space(DROPOUT, {"uniform": [0, 0.1], "choice": [0.1]}),
        f"search.space.{DROPOUT}",
        ("exactly one kind", "loguniform"),
    ),
    "a misspelt dimension": (
        space(DROPOUT, {"unifrom": [0, 0.1]}),
        f"search.space.{DROPOUT}.unifrom",
        ("logint", "did you mean 'uniform'"),
    ),
    "half a range": (space(DROPOUT, {"uniform": [0.1]}), f"search.space.{DROPOUT}.uniform.1", ("is required",)),
    "a grid over a continuum": (
        space(DROPOUT, {"uniform": [0, 0.1]}, algorithm="grid"),
        "search.space",
        (f"{DROPOUT} is continuous", "choice"),
    ),
    "a grid over a thousand values": (
        space("train.batch_size", {"int": [1, 1001]}, algorithm="grid"),
        "search.space",
        ("continuous", "up to 1000 values"),
    ),
    "steps that do not fit": (
        space(DROPOUT, {"uniform": [0, 0.5], "step": 0.2}),
        f"search.space.{DROPOUT}.step",
        ("got 0.2", "no whole number of steps"),
    ),
    "a step larger than the range": (
        space("train.batch_size", {"int": [16, 32], "step": 32}),
        "search.space.train.batch_size.step",
        ("no whole number of steps",),
    ),
    "half a step": (
        space("train.batch_size", {"int": [16, 32], "step": 0.5}),
        "search.space.train.batch_size.step",
        ("whole number",),
    ),
    "no step": (space(DROPOUT, {"uniform": [0, 0.5], "step": 0}), f"search.space.{DROPOUT}.step", ("above 0",)),
    "steps in logarithms": (
        space(LR, {"loguniform": [1e-4, 1e-1], "step": 0.01}),
        f"search.space.{LR}.step",
        ("uniform and int",),
    ),
    "steps onto what is illegal": (
        space("model.args.kernel", {"int": [3, 7], "step": 2}),
        "search.space.model.args.kernel",
        ("got 7", "3 or 5"),
    ),
    # Conditions.
    "a parent that is not searched": (
        space(MOMENTUM, {"uniform": [0.5, 0.9], "when": {OPTIMIZER: "sgd"}}),
        f"search.space.{MOMENTUM}.when",
        (OPTIMIZER, "not searched", "a choice of the space"),
    ),
    "a misspelt parent": (
        conditional({"train.optimizer.nam": "sgd"}),
        f"search.space.{MOMENTUM}.when",
        (f"did you mean {OPTIMIZER!r}",),
    ),
    "a value that the parent never takes": (
        conditional({OPTIMIZER: "sgdd"}),
        f"search.space.{MOMENTUM}.when",
        ("never takes", "'sgdd'", "sgd, adamw", "did you mean 'sgd'"),
    ),
    "a condition of another type": (
        {"search": {"space": {LR: {"choice": [1, 2], "when": {DROPOUT: True}}, DROPOUT: {"choice": [0, 1]}}}},
        f"search.space.{LR}.when",
        ("never takes", "True", "0, 1"),
    ),
    "no value of the parent": (
        conditional({OPTIMIZER: []}),
        f"search.space.{MOMENTUM}.when",
        ("never there", "sgd, adamw"),
    ),
    "no condition": (conditional({}), f"search.space.{MOMENTUM}.when", ("at least 1",)),
    "a parent that is no choice": (
        {"search": {"space": {DROPOUT: {"uniform": [0, 0.1], "when": {LR: 0.1}}, LR: {"uniform": [0.1, 0.2]}}}},
        f"search.space.{DROPOUT}.when",
        ("is no choice",),
    ),
    "a circle of conditions": (
        {
            "search": {
                "space": {
                    LR: {"choice": [0.1, 0.2], "when": {DROPOUT: 0.1}},
                    DROPOUT: {"choice": [0.1, 0.2], "when": {LR: 0.1}},
                }
            }
        },
        f"search.space.{LR}.when",
        ("depends on itself", "→"),
    ),
    "conditions that exclude one another": (
        {
            "search": {
                "space": {
                    OPTIMIZER: {"choice": ["sgd", "adamw"]},
                    "train.optimizer.nesterov": {"choice": [True], "when": {OPTIMIZER: "sgd"}},
                    LR: {"choice": [0.1], "when": {OPTIMIZER: "adamw", "train.optimizer.nesterov": True}},
                }
            }
        },
        f"search.space.{LR}.when",
        ("never there", "exclude"),
    ),
    "a condition across phases": (
        {
            "search": {
                "space": {
                    "model.args.activation": {"choice": ["relu", "tanh"]},
                    "compress.prune.ratio": {"uniform": [0.1, 0.5], "when": {"model.args.activation": "relu"}},
                }
            }
        },
        "search.space.compress.prune.ratio.when",
        ("another phase", "joint"),
    ),
    "a key that only one of the choices has": (
        {"search": {"space": {OPTIMIZER: {"choice": ["sgd", "adamw"]}, MOMENTUM: {"uniform": [0.5, 0.9]}}}},
        f"search.space.{MOMENTUM}",
        ("unknown key", f"beside {OPTIMIZER} = adamw"),
    ),
    "a condition under which the key is not there": (
        conditional({OPTIMIZER: ["sgd", "adamw"]}),
        f"search.space.{MOMENTUM}",
        ("unknown key", f"beside {OPTIMIZER} = adamw"),
    ),
    "values that do not go together": (
        {
            "search": {
                "space": {
                    OPTIMIZER: {"choice": ["sgd"]},
                    "train.optimizer.nesterov": {"choice": [False, True]},
                    MOMENTUM: {"uniform": [0.0, 0.9]},
                }
            }
        },
        f"search.space.{MOMENTUM}",
        ("nesterov needs a momentum above 0", "beside train.optimizer.nesterov = True"),
    ),
    # What an algorithm can't do.
    "cmaes over choices": (
        space("model.args.activation", {"choice": ["relu", "tanh"]}, algorithm="cmaes"),
        "search.algorithm",
        ("model.args.activation is a choice", "tpe"),
    ),
    "cmaes for two objectives": (
        space(DROPOUT, {"uniform": [0, 0.1]}, algorithm="cmaes", mode="joint", objectives={"bytes": "min"}),
        "search.algorithm",
        ("one objective", "metric, bytes", "nsga2"),
    ),
    "gp with conditions": (conditional({OPTIMIZER: "sgd"}, algorithm="gp"), "search.algorithm", ("gp", "tpe, qmc")),
    "nsga2 with conditions": (
        conditional({OPTIMIZER: "sgd"}, algorithm="nsga2"),
        "search.algorithm",
        ("got 'nsga2'", "learn nothing"),
    ),
    "an unknown algorithm": (
        space(DROPOUT, {"uniform": [0, 0.1]}, algorithm="cma-es"),
        "search.algorithm",
        ("did you mean 'cmaes'",),
    ),
    "an unknown objective": (
        space(DROPOUT, {"uniform": [0, 0.1]}, objectives={"latency": "min"}),
        "search.objectives.latency",
        ("unknown key", "did you mean 'latency_ms'"),
    ),
    "an objective of files that no phase makes": (
        space(DROPOUT, {"uniform": [0, 0.1]}, objectives={"bytes": "min"}),
        "search.objectives.bytes",
        ("no files", "joint"),
    ),
    "a direction that is worse": (
        space(DROPOUT, {"uniform": [0, 0.1]}, objectives={"metric": "min"}),
        "search.objectives.metric",
        ("accuracy", "max"),
    ),
    "more winners than trials": (
        space(DROPOUT, {"uniform": [0, 0.1]}, trials=2, winners=3),
        "search.winners",
        ("got 3", "1 to 2"),
    ),
}
TEXT = {"kind": "text", "path": "reviews.jsonl"}
PLAIN = {"kind": "text", "path": "prose.txt"}
TABLE = {"kind": "csv", "path": "ratings.csv"}


def tokenizer(**keys: Any) -> dict[str, Any]:
    return {"data.source": {**TEXT, "tokenizer": keys}}


SPECS |= {
    # Text.
    "text of an unknown kind": (
        {"data.source": {"kind": "text", "path": "prose.md"}},
        "data.source.path",
        ("got 'prose.md'", ".txt, .jsonl, .csv"),
    ),
    "a column of plain text": (
        {"data.source": {**PLAIN, "column": "text"}},
        "data.source.column",
        ("no columns", "null"),
    ),
    "no column of a table": ({"data.source": {**TEXT, "column": None}}, "data.source.column", (".jsonl",)),
    "a target in plain text": ({"data.source": PLAIN, "data.target": "label"}, "data.target", ("no columns",)),
    "the text as target": ({"data.source": TEXT, "data.target": "text"}, "data.target", ("another column",)),
    "no tokens a sample": ({"data.source": {**TEXT, "length": 0}}, "data.source.length", ("at least 1",)),
    "some of the chunks": (
        {"data.source": TEXT, "data.split.train": 100},
        "data.split.train",
        ("language model", "null"),
    ),
    "truncated chunks": (
        {"data.source": {**TEXT, "truncate": True}},
        "data.source.truncate",
        ("nothing to truncate", "false"),
    ),
    "a misspelt tokenizer": (
        tokenizer(kind="bqe"),
        "data.source.tokenizer.kind",
        ("word, byte, char", "did you mean 'bpe'"),
    ),
    "a tokenizer trained and loaded": (
        tokenizer(kind="bpe", file="t.json"),
        "data.source.tokenizer.kind",
        ("exclude each other",),
    ),
    "a tokenizer of neither": (tokenizer(kind=None), "data.source.tokenizer.kind", ("a kind to train, or a file",)),
    "bytes that do not fit": (tokenizer(vocab_size=257), "data.source.tokenizer.vocab_size", ("at least 258",)),
    "fewer bytes than there are": (
        tokenizer(kind="byte", vocab_size=100),
        "data.source.tokenizer.vocab_size",
        ("byte tokenizer", "null"),
    ),
    "a size for a loaded tokenizer": (
        tokenizer(file="t.json", vocab_size=100),
        "data.source.tokenizer.vocab_size",
        ("loaded",),
    ),
    # Language models.
    "a language model under mse": ({"data.source": PLAIN, "train.loss": "mse"}, "train.loss", ("cross_entropy",)),
    "a language model under bce": ({"data.source": TEXT, "train.loss": "bce"}, "train.loss", ("cross_entropy",)),
    "a language model's f1": (
        {"data.source": PLAIN, "metric": "f1_macro"},
        "metric",
        ("language model", "perplexity, log_loss, accuracy"),
    ),
    "a language model's weights": (
        {"data.source": PLAIN, "train.class_weights": "balanced"},
        "train.class_weights",
        ("no classes",),
    ),
    "a language model's direction": (
        {"data.source": PLAIN, **space("train.optimizer.lr", {"choice": [0.1]}, objectives={"metric": "max"})},
        "search.objectives.metric",
        ("perplexity", "min"),
    ),
    "the perplexity of images": ({"metric": "perplexity"}, "metric", ("cross_entropy", "accuracy, f1_macro")),
    "the perplexity of labelled text": (
        {"data.source": TEXT, "data.target": "label", "metric": "perplexity"},
        "metric",
        ("got 'perplexity'",),
    ),
    # Pruning.
    "a ratio beside n:m": (
        {"compress.prune": {"method": "nm", "ratio": 0.6}},
        "compress.prune.ratio",
        ("2:4 removes a share of 0.5", "leave it out"),
    ),
    "n:m in steps": ({"compress.prune": {"method": "nm", "steps": 3}}, "compress.prune.steps", ("at once",)),
    "n without m's method": ({"compress.prune.n": 1}, "compress.prune.n", ("method: nm",)),
    "n:m across layers": (
        {"compress.prune": {"method": "nm", "global_pruning": True}},
        "compress.prune.global_pruning",
        ("the same share",),
    ),
    "importance of single weights": (
        {"compress.prune": {"method": "magnitude", "importance": "taylor"}},
        "compress.prune.importance",
        ("got 'taylor'", "method: structured"),
    ),
    "heads of single weights": (
        {"compress.prune": {"method": "magnitude", "what": ["heads"]}},
        "compress.prune.what",
        ("single weights",),
    ),
    "a misspelt part": (
        {"compress.prune.what": ["head"]},
        "compress.prune.what.0",
        ("neurons", "did you mean 'heads'"),
    ),
    "a part twice": ({"compress.prune.what": ["heads", "heads"]}, "compress.prune.what", ("each part once",)),
    "misspelt protection": ({"compress.prune.protect": "atuo"}, "compress.prune.protect", ("did you mean 'auto'",)),
    "two measures of rank": (
        {"compress.low_rank": {"energy": 0.9, "rank_ratio": 0.5}},
        "compress.low_rank.energy",
        ("rank_ratio or energy",),
    ),
    "a method that contradicts": (
        {
            "compress.prune": {"importance": "taylor"},
            "search": {"space": {"compress.prune.method": {"choice": ["structured", "magnitude"]}}},
        },
        "search.space.compress.prune.method",
        ("compress.prune.importance", "got 'magnitude'"),
    ),
    # Codes.
    "a recommender of features": (
        {"data.source": TABLE, "data.target": "rating", "data.categories": "one_hot", "model": {"name": "recommender"}},
        "data.categories",
        ("got 'one_hot'", "codes"),
    ),
    "codes for a perceptron": (
        {"data.source": TABLE, "data.target": "rating", "data.categories": "codes", "model": {"name": "mlp"}},
        "data.categories",
        ("mlp", "one_hot, or model recommender"),
    ),
    "an elastic run of Ray Train": (
        {"layout": "auto", "resources": {"workers": [1, 2], "runtime": "ray_train"}},
        "resources.runtime",
        ("got 'ray_train'", "gang, or a fixed number"),
    ),
    "a search in Ray Train": (
        {"resources.runtime": "ray_train", **space("train.optimizer.lr", {"choice": [0.1]})},
        "resources.runtime",
        ("trials", "gang"),
    ),
    "misspelt categories": ({"data.categories": "onehot"}, "data.categories", ("did you mean 'one_hot'",)),
    "a delimiter of three": (
        {"data.source": {**TABLE, "delimiter": ":::"}, "data.target": "rating"},
        "data.source.delimiter",
        ("at most 2",),
    ),
    "qat without its scheme": (
        {"compress.quantize": {"schemes": ["fp16"], "qat": {"epochs": 2}}},
        "compress.quantize.qat",
        ("goes with the scheme int8_qat", "null"),
    ),
    "a search of variants without its scheme": (
        {"compress.quantize": {"schemes": ["fp16"], "static": {"max_variants": 2}}},
        "compress.quantize.static",
        ("goes with the scheme int8_static",),
    ),
    "no epoch of qat": (
        {"compress.quantize": {"schemes": ["int8_qat"], "qat": {"epochs": 0}}},
        "compress.quantize.qat.epochs",
        ("at least 1", "got 0"),
    ),
    "a misspelt key of qat": (
        {"compress.quantize": {"schemes": ["int8_qat"], "qat": {"epoch": 1}}},
        "compress.quantize.qat.epoch",
        ("did you mean 'epochs'",),
    ),
    "too many variants": (
        {"compress.quantize": {"schemes": ["int8_static"], "static": {"max_variants": 99}}},
        "compress.quantize.static.max_variants",
        ("at most 32",),
    ),
    "too few samples to compare on": (
        {"compress.quantize": {"schemes": ["int8_static"], "static": {"held_out": 4}}},
        "compress.quantize.static.held_out",
        ("at least 16",),
    ),
    "no time for variants": (
        {"compress.quantize": {"schemes": ["int8_static"], "static": {"seconds": 0}}},
        "compress.quantize.static.seconds",
        ("above 0",),
    ),
    "a misspelt scheme": (
        {"compress.quantize": {"schemes": ["int8_statc"]}},
        "compress.quantize.schemes.0",
        ("did you mean 'int8_static'",),
    ),
    "a scheme twice": (
        {"compress.quantize": {"schemes": ["fp16", "fp16"]}},
        "compress.quantize.schemes",
        ("listed twice",),
    ),
    "too few calibration samples": ({"data.split.calibration": 8}, "data.split.calibration", ("at least 16",)),
    "a target without instructions": ({"compress.target": {"name": "x"}}, "compress.target.instructions", ()),
    "a column without a name": (
        {"data.source": {**TABLE, "columns": ["user", ""]}, "data.target": "rating"},
        "data.source.columns.1",
        ("at least 1",),
    ),
}
SPECS |= {
    # Packs.
    **{
        f"a sparsity of {value}": ({"compress.pack.sparsity": value}, "compress.pack.sparsity", (words,))
        for value, words in ((1.0, "below 1"), (-0.1, "at least 0"), ("high", "a number"))
    },
    **{
        f"{key} of {value}": ({f"compress.pack.{key}": value}, f"compress.pack.{key}", (words,))
        for key in ("codebook_bits", "conv_bits")
        for value, words in ((0, "at least 1"), (9, "at most 8"), (4.5, "a whole number"))
    },
    "a misspelt key of a pack": (
        {"compress.pack": {"sparsty": 0.9}},
        "compress.pack.sparsty",
        ("did you mean 'sparsity'",),
    ),
    "epochs below 0 for a pack": (
        {"compress.pack.recover.epochs": -1},
        "compress.pack.recover.epochs",
        ("at least 0",),
    ),
}


@pytest.mark.parametrize("case", SPECS)
def test_a_bad_spec_is_refused(case: str) -> None:
    values, path, parts = SPECS[case]
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(spec_with(values))
    check(caught.value, path, parts)


def test_every_problem_is_found_and_no_other() -> None:
    values = {"train": {"epochs": 0, "seed": -1}, "layout": {"dat": 1}, "metric": "acuracy"}
    with pytest.raises(SpecError) as caught:
        JobSpec.parse(spec_with(values))
    assert {problem.path for problem in caught.value.problems} == {
        "train.epochs",
        "train.seed",
        "layout.dat",
        "metric",
    }


# What the plan knows of the data


PLANS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "a batch that workers can't divide": (
        {"train.batch_size": 33, "resources.workers": 2, "layout": {"data": 2}},
        "train.batch_size",
        ("33", "2 data-parallel workers", "a multiple of 2"),
    ),
    "a batch smaller than the workers": (
        {"train.batch_size": 2, "resources.workers": 4, "layout": {"data": 4}},
        "train.batch_size",
        ("a multiple of 4",),
    ),
    "a batch that no layout of the workers divides": (
        {"train.batch_size": 33, "resources.workers": 64},
        "train.batch_size",
        ("33", "64 data-parallel workers", "a multiple of 64"),
    ),
    "a tensor degree that divides no width": (
        {"resources.workers": 7, "layout": {"tensor": 7}},
        "layout.tensor",
        ("got 7", "greatest common divisor is 120", "1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30, 40, 60"),
    ),
    "more stages than blocks": (
        {"resources.workers": 6, "layout": {"pipeline": 6}},
        "layout.pipeline",
        ("got 6", "the model has 5", "1 to 5"),
    ),
    "searched widths that the tensor degree does not divide": (
        {"model": {"name": "resnet", "args": {"depth": 8}}, "layout": {"tensor": 16}, "resources.workers": 16}
        | space("model.args.width", {"choice": [16, 24]}),
        "search.space.model.args.width",
        ("got 24", "layout.tensor", "1, 2, 3, 4, 6, 8, 12, 24"),
    ),
    "a share that micro-batches can't divide": (
        {"train.batch_size": 64, "resources.workers": 2, "layout": {"data": 2, "micro_batch": 5}},
        "layout.micro_batch",
        ("got 5", "a divisor of 32"),
    ),
    "a searched batch that workers can't divide": (
        space("train.batch_size", {"choice": [32, 33]}) | {"resources.workers": 2, "layout": {"data": 2}},
        "search.space.train.batch_size",
        ("got 33", "a multiple of 2"),
    ),
    "searched batches in between": (
        space("train.batch_size", {"int": [32, 64]}) | {"resources.workers": 2, "layout": {"data": 2}},
        "search.space.train.batch_size",
        ("got 33",),
    ),
    "a searched batch that is never full": (
        space("train.batch_size", {"choice": [32, 1_000_000]}),
        "search.space.train.batch_size",
        ("got 1000000", "at most"),
    ),
    "a batch that is never full": (
        {"train": {"batch_size": 10_000, "epochs": 1}},
        "train.batch_size",
        ("no whole batch", "at most 1437"),
    ),
    "weights and classes": (
        {"train.class_weights": [1.0, 2.0]},
        "train.class_weights",
        ("2 weights for 10 classes", "10 weights"),
    ),
    "more calibration than training": (
        {"data.split.calibration": 5000, "compress.quantize": {"schemes": ["int8_static"]}},
        "data.split.calibration",
        ("got 5000", "at most 1437"),
    ),
    "augmented tables": (
        {"data.source.name": "breast_cancer", "model.name": "mlp", "data.augment": [{"rotate": {"degrees": 5}}]},
        "data.augment",
        ("augmentation is for images",),
    ),
    "a crop as wide as the image": (
        {"data.augment": [{"random_crop": {"padding": 8}}]},
        "data.augment.0.random_crop.padding",
        ("got 8", "1 to 7"),
    ),
    "codes of images": (
        {"model": {"name": "recommender"}},
        "data.categories",
        ("images", "one_hot, or a source of tables"),
    ),
    "an image model for tables": (
        {"data.source.name": "breast_cancer"},
        "model.name",
        ("got 'lenet'", "(30,)", "mlp"),
    ),
    "two classes of ten": ({"train.loss": "bce"}, "train.loss", ("got 'bce'", "10", "cross_entropy")),
    "classes of a continuum": (
        {"data.source.name": "diabetes", "model.name": "mlp"},
        "train.loss",
        ("continuous", "mse"),
    ),
    "numbers of classes": (
        {"data.source.name": "breast_cancer", "model.name": "mlp", "train.loss": "mse"},
        "train.loss",
        ("malignant", "cross_entropy"),
    ),
    "modules that are not there": (
        {"model.name": "mine:make", "code.working_dir": "/no/such/folder"},
        "code.working_dir",
        ("no such folder",),
    ),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_spec_that_its_data_contradict_is_refused(case: str, tmp_path: Path) -> None:
    values, path, parts = PLANS[case]
    with pytest.raises(SpecError) as caught:
        plan_job(JobSpec.parse(spec_with(values)), Storage(tmp_path / "runs"))
    check(caught.value, path, parts)
    assert not (tmp_path / "runs").exists()


# Files that are no specs


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join(lines)


FILES: dict[str, tuple[str | bytes, str]] = {
    "a key twice": ("name: a\nname: b\n", "the key 'name' stands twice"),
    "a key twice, deeper": ("train: {epochs: 1, epochs: 2}\n", "the key 'epochs' stands twice"),
    "tabs": ("train:\n\tepochs: 3\n", "is not valid YAML"),
    "a billion laughs": (bomb(), "too many values"),
    "an alias to itself": ("a: &a [*a]\n", "too many values"),
    "an alias to nothing": ("a: *b\n", "is not valid YAML"),
    "too deep": ("a: " + "[" * 200 + "]" * 200, "nested too deeply"),
    "far too deep": ("a: " + "[" * 100_000, "nested too deeply"),
    "too large": ("# " + "x" * MAX_SPEC_BYTES, "larger than a job spec may be"),
    "not UTF-8": (b"name: \xff\xfe\n", "not UTF-8"),
    "UTF-16": ("name: a\n".encode("utf-16"), "not UTF-8"),
    "binary": (b"\x7fELF\x00\x01", "is not valid YAML"),
    "a Python object": ("name: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
    "a Python name": ("name: !!python/name:os.system\n", "is not valid YAML"),
    "a tag that does not fit": ("name: !!int abc\n", "is not valid YAML"),
    "a truth that is none": ("name: !!bool abc\n", "is not valid YAML"),
    "a date that is none": ("name: !!timestamp abc\n", "is not valid YAML"),
    "a number of 5000 digits": ("priority: " + "9" * 5000, "is not valid YAML"),
    "a set for a key": ("? !!set {a}\n: b\n", "is not valid YAML"),
    "a list for a key": ("? [a]\n: b\n", "a key must be text"),
    "two documents": ("a: 1\n---\nb: 2\n", "is not valid YAML"),
    "a list": ("- name: a\n", "must hold a mapping of keys"),
    "a text": ("name\n", "must hold a mapping of keys"),
    "nothing": ("", "must hold a mapping of keys"),
    "a number for a key": ("1: 2\n", "a key must be text"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_spec_is_refused(case: str, tmp_path: Path) -> None:
    content, message = FILES[case]
    path = tmp_path / "spec.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError) as caught:
        JobSpec.load(path)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a", "name": "b"}', "a key stands twice"),
        ('{"name": "a",}', "is not valid JSON"),
        ("name: a", "is not valid JSON"),
        ("", "is not valid JSON"),
        ("[1]", "must hold a mapping"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"train": {"optimizer": {"name": "adam", "lr": NaN}}}', "train.optimizer.lr"),
    ],
    ids=range(8),
)
def test_a_json_file_that_is_no_spec_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        JobSpec.load(path)
    assert message in str(caught.value)


def test_a_folder_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("name: x\n")
    with pytest.raises(SpecError, match="is a folder"):
        JobSpec.load(tmp_path)
    with pytest.raises(SpecError, match=r"no such file.*did you mean '.*/digits.yaml'"):
        JobSpec.load(tmp_path / "digit.yaml")
    with pytest.raises(SpecError, match="no such file"):
        JobSpec.load(tmp_path / "nowhere" / "digits.yaml")
    with pytest.raises(SpecError, match="cannot read"):
        JobSpec.load(tmp_path / ("x" * 999))


@pytest.mark.parametrize(
    ("assignment", "path", "message"),
    [
        ("train.epochs", "--set", "key=value"),
        ("=3", "--set", "key=value"),
        ("train.epochs=[", "", "is not valid YAML"),
        ("train.epochs=2\nname: other", "--set", "one key"),
        ("train.epochs=two", "train.epochs", "got 'two'"),
        ("train.epocs=2", "train.epocs", "did you mean 'epochs'"),
        ("name.x=3", "name.x", "is a value and has no keys"),
        ("data.augment.5.rotate.degrees=3", "data.augment.5.rotate.degrees", "no such list entry"),
        ("data.augment.1=3", "data.augment.1", "0 to 0"),
        ("data.augment.x=3", "data.augment.x", "no such list entry"),
    ],
)
def test_a_bad_override_is_refused(assignment: str, path: str, message: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(spec_with({"data.augment": ["horizontal_flip"]})))
    with pytest.raises(SpecError) as caught:
        JobSpec.load(spec, [assignment])
    check(caught.value, path, (message,))


# Files that are no data


def idx(array: np.ndarray, magic: int) -> bytes:
    return magic.to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def idx_folder(folder: Path) -> dict[str, Any]:
    """A good folder of 40 images; each case then damages a file of it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(idx(rng.integers(0, 256, (40, 8, 8), np.uint8), 0x803))
    )
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx((np.arange(40) % 4).astype(np.uint8), 0x801)))
    return {"data.source": {"kind": "idx", "path": str(folder)}}


def truncated_gzip(folder: Path) -> dict[str, Any]:
    values = idx_folder(folder)
    images = folder / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-200])
    return values


def wrong_magic(folder: Path) -> dict[str, Any]:
    values = idx_folder(folder)
    (folder / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((40, 8, 8), np.uint8), 0x804)))
    return values


def missing_file(folder: Path) -> dict[str, Any]:
    values = idx_folder(folder)
    (folder / "train-labels-idx1-ubyte.gz").unlink()
    return values


def missing_folder(folder: Path) -> dict[str, Any]:
    idx_folder(folder)
    return {"data.source": {"kind": "idx", "path": str(folder)[:-1]}}


def table(text: str, **values: Any) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        (folder / "table.csv").write_text(text)
        source = {"kind": "csv", "path": str(folder / "table.csv")}
        return {"data.source": source, "data.target": "label", "model.name": "mlp"} | values

    return make


def rows(label: Callable[[int], str], extra: Callable[[int], str] = lambda i: "") -> str:
    return "age,label\n" + "".join(f"{i},{label(i)}{extra(i)}\n" for i in range(60))


def archive(**arrays: Any) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        np.savez(folder / "data.npz", **arrays)
        return {"data.source": {"kind": "npz", "path": str(folder / "data.npz")}, "model.name": "mlp"}

    return make


def truncated_archive(folder: Path) -> dict[str, Any]:
    values = archive(x=np.zeros((60, 3), np.float32), y=np.arange(60) % 2)(folder)
    path = folder / "data.npz"
    path.write_bytes(path.read_bytes()[:-40])
    return values


def image_folder(damage: Callable[[Path], None]) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        buffer = BytesIO()
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(buffer, "PNG")
        for index in range(40):
            path = folder / ("cat" if index % 2 else "dog") / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(buffer.getvalue())
        damage(folder)
        return {"data.source": {"kind": "image_folder", "path": str(folder)}}

    return make


def no_image(folder: Path) -> None:
    (folder / "cat" / "03.png").write_bytes(b"no image")


def half_an_image(folder: Path) -> None:
    path = folder / "cat" / "03.png"
    path.write_bytes(path.read_bytes()[:-30])


def other_size(folder: Path) -> None:
    Image.fromarray(np.zeros((9, 8, 3), np.uint8)).save(folder / "cat" / "03.png")


def text(content: bytes, **source: Any) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        folder.mkdir()
        (folder / "prose.txt").write_bytes(content)
        path = str(folder / "prose.txt")
        return {"data.source": {"kind": "text", "path": path, **source}, "model": {"name": "transformer"}}

    return make


PATH = "data.source.path"
TARGET = "data.target"
OBJECTS = np.array([{"a": 1}] * 60, dtype=object)
DATA: dict[str, tuple[Callable[[Path], dict[str, Any]], str, tuple[str, ...]]] = {
    "a truncated gzip": (truncated_gzip, PATH, ("train-images-idx3-ubyte.gz",)),
    "a wrong magic number": (wrong_magic, PATH, ("magic",)),
    "a missing file": (missing_file, PATH, ("lacks train-labels-idx1-ubyte",)),
    "a missing folder": (missing_folder, PATH, ("source", "did you mean")),
    "a path with a null": (lambda _: {"data.source": {"kind": "idx", "path": "x\0y"}}, PATH, ("x",)),
    "a misspelt target": (
        table(rows(lambda i: str(i % 2)), **{"data.target": "lable"}),
        TARGET,
        ("'lable'", "did you mean 'label'"),
    ),
    "missing targets": (table(rows(lambda i: "NA" if i == 6 else str(i % 2))), TARGET, ("1 of 60", "row 7")),
    "targets that are not finite": (
        table(rows(lambda i: "NaN" if i in (3, 5) else f"{i}.5"), **{"train.loss": "mse"}),
        TARGET,
        ("2 of 60", "row 4"),
    ),
    "text to regress on": (
        table(rows(lambda i: "yes" if i % 2 else "no"), **{"train.loss": "mse"}),
        TARGET,
        ("numeric", "'no'"),
    ),
    "one class": (table(rows(lambda i: "a")), TARGET, ("one class only", "at least 2")),
    "three classes under bce": (
        table(rows(lambda i: "abc"[i % 3]), **{"train.loss": "bce"}),
        "train.loss",
        ("3", "cross_entropy"),
    ),
    "too few samples": (table("age,label\n1,a\n2,b\n"), "data.split", ("too few", "would be empty")),
    "ragged rows": (table(rows(lambda i: str(i % 2), lambda i: ",9" if i == 30 else "")), PATH, ("table.csv",)),
    "an empty table": (table(""), PATH, ("table.csv",)),
    "a header alone": (table("age,label\n"), PATH, ("no rows",)),
    "a misspelt column to ignore": (
        table(rows(lambda i: str(i % 2)), **{"data.source.ignore": ["aeg"]}),
        "data.source.ignore",
        ("'aeg'", "did you mean 'age'"),
    ),
    "no archive": (archive(x=np.zeros((60, 3)), why=np.arange(60)), PATH, ("no array 'y'", "x and y")),
    "objects for samples": (archive(x=OBJECTS, y=np.arange(60) % 2), PATH, ("Python objects",)),
    "objects for targets": (archive(x=np.zeros((60, 3)), y=OBJECTS), PATH, ("Python objects",)),
    "samples without targets": (archive(x=np.zeros((60, 3)), y=np.arange(59) % 2), PATH, ("60", "59")),
    "infinite samples": (archive(x=np.full((60, 3), np.inf), y=np.arange(60) % 2), PATH, ("infinite",)),
    "a truncated archive": (truncated_archive, PATH, ("damaged",)),
    "a length beyond the steps": (
        archive(x=np.zeros((60, 3, 2)), lengths=np.full(60, 4), y=np.arange(60) % 2),
        PATH,
        ("4 in sample 1", "1 to 3"),
    ),
    "tokens below 0": (
        archive(x=np.full((60, 3), -1), lengths=np.full(60, 3), y=np.arange(60) % 2),
        PATH,
        ("the token -1 in sample 1",),
    ),
    "text that is not UTF-8": (text(b"abc\xff"), PATH, ("not UTF-8", "byte 3")),
    "text without a whole chunk": (text(b"word " * 20), "data.source.length", ("the train split", "got 128")),
    "augmented text": (
        lambda folder: text(b"word " * 2000, length=8)(folder) | {"data.augment": ["horizontal_flip"]},
        "data.augment",
        ("for images", "text or tokens"),
    ),
    "an image that is none": (image_folder(no_image), PATH, ("03.png", "no image")),
    "a truncated image": (image_folder(half_an_image), PATH, ("03.png", "damaged")),
    "images of two sizes": (image_folder(other_size), PATH, ("03.png", "9")),
    "a class without images": (image_folder(lambda folder: (folder / "cow").mkdir()), PATH, ("cow", "no images")),
}


def read_all(spec: JobSpec, folder: Path) -> None:
    """What a plan cannot see of the data, reading them does."""
    data.inspect(spec.data, spec.train.loss)
    data.prepare(spec.data, spec.train.loss, folder)


@pytest.mark.parametrize("case", DATA)
def test_bad_data_are_refused(case: str, tmp_path: Path) -> None:
    make, path, parts = DATA[case]
    spec = JobSpec.parse(spec_with(make(tmp_path / "source")))
    with pytest.raises(DataError) as caught:
        read_all(spec, tmp_path / "prepared")
    check(caught.value, path, parts)
    assert not (tmp_path / "prepared").exists()


# The command line


def broken(name: str) -> Callable[[Path], Path]:
    """A spec file with a case from the tables above."""

    def make(folder: Path) -> Path:
        if name in FILES:
            content = FILES[name][0]
            text = content if isinstance(content, bytes) else content.encode()
        else:
            table = {**SPECS, **PLANS}
            values = table[name][0] if name in table else DATA[name][0](folder / "source")
            text = yaml.safe_dump(spec_with(values)).encode()
        (folder / "spec.yaml").write_bytes(text)
        return folder / "spec.yaml"

    return make


COMMANDS = (
    "true for a number",
    "unknown at the top",
    "not a number",
    "illegal in between",
    "a pipeline and ZeRO 2",
    "a tensor degree that divides no width",
    "a batch that workers can't divide",
    "a crop as wide as the image",
    "a key twice",
    "a billion laughs",
    "a Python object",
    "too deep",
    "nothing",
    "a misspelt target",
    "objects for targets",
    "one class",
    "text that is not UTF-8",
    "empty space",
    "a value that the parent never takes",
    "an argument that is not there",
    "an objective of files that no phase makes",
    "pbt over the batch",
)
READING_ALONE = ("a truncated gzip", "a truncated image")
"""What a plan cannot see."""


@pytest.mark.parametrize(
    ("command", "case"),
    [*(("plan", case) for case in COMMANDS), *(("run", case) for case in (*COMMANDS, *READING_ALONE))],
)
def test_the_command_line_ends_with_2_and_leaves_no_run(
    command: str, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = broken(case)(tmp_path)
    runs = tmp_path / "runs"
    monkeypatch.setattr(sys, "argv", ["thresher", command, str(spec), "--runs", str(runs), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 2, said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert json.loads(said.out)["problems"]
    assert not list(runs.glob("*/spec.yaml"))
