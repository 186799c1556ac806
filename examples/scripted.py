"""A job from Python: load a spec, change it, run it, look at what came of it.

python examples/scripted.py
"""

from orchestrator import JobSpec, run

spec = JobSpec.load("examples/digits.yaml", ["search.trials=4"])
report = run(spec, runs="runs", listeners=(lambda event: event["event"] == "trial" and print(event["values"]),))
for artifact in report.artifacts:
    measured = artifact.measurement
    print(f"{artifact.name:<22} {measured.metric.value:.4f} {measured.bytes:>8,} bytes  {artifact.verdict}")
print("selected:", report.selected)
