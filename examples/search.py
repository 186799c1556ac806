"""A search from Python: look on, end it when it is good enough, go on with the best.

python examples/search.py
"""

from orchestrator import JobSpec, run, search

space = {"train.optimizer.lr": {"loguniform": [1e-3, 1e-1]}, "model.args.dropout": {"uniform": [0.0, 0.4]}}
spec = JobSpec.load("examples/breast_cancer.yaml").replace(
    {"train.epochs": 8, "search": {"trials": 8, "concurrency": 1, "space": space}}
)
found = search(spec, on_trial=print, stop=lambda result: result.best and result.best.values["metric"] > 0.98)
print(found.to_pandas().sort_values("value.metric"), found.ended)
print(run(found.best_spec).selected)
