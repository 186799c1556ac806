"""What is wrong with a search: its space, its conditions, what an algorithm can't do."""

from typing import Any

from tests.jobs.refusals.refused import DROPOUT, LR, Cases, space

OPTIMIZER, MOMENTUM = "train.optimizer.name", "train.optimizer.momentum"


def conditional(when: dict[str, Any], **search: Any) -> dict[str, Any]:
    parent = {"choice": ["sgd", "adamw"]}
    return {"search": {"space": {OPTIMIZER: parent, MOMENTUM: {"uniform": [0.5, 0.9], "when": when}}, **search}}


SEARCHES: Cases = {
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
    "steps beyond number": (
        space(LR, {"uniform": [0.1, 1.0], "step": 1e-300}),
        f"search.space.{LR}.step",
        ("too many steps", "at most 1,000,000,000"),
    ),
    "choices that are equal": (
        space(LR, {"choice": [1, 1.0]}),
        f"search.space.{LR}",
        ("the same value twice",),
    ),
    "more choices than anyone tries": (
        space(LR, {"choice": [step / 1e6 for step in range(1, 1002)]}),
        f"search.space.{LR}.choice",
        ("at most 1000",),
    ),
    "a key within another": (
        {
            "search": {
                "space": {
                    "train.schedule.warmup": {"uniform": [0.0, 0.2]},
                    "train.schedule": {"choice": ["cosine", "constant"]},
                }
            }
        },
        "search.space.train.schedule.warmup",
        ("lies within train.schedule", "train.schedule.name"),
    ),
    "a grid over a million settings": (
        {
            "search": {
                "algorithm": "grid",
                "space": {
                    **{f"model.args.a{n}": {"choice": list(range(10))} for n in range(6)},
                    DROPOUT: {"choice": [0.1, 0.2], "when": {f"model.args.a{n}": [0, 1] for n in range(6)}},
                },
            }
        },
        "search.space",
        ("1,000,000 combinations are too many",),
    ),
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
    "a search in Ray Train": (
        {"resources.runtime": "ray_train", **space("train.optimizer.lr", {"choice": [0.1]})},
        "resources.runtime",
        ("trials", "gang"),
    ),
}
