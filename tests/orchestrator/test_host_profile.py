"""A host as a document that travels, and a job that is meant for it."""

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import SpecError
from jobs.measure.throughput import FORMATS, throughput
from jobs.spec import JobSpec
from orchestrator.host_profile import profile, profile_lines, target_override
from orchestrator.planning.plan import plan_job
from orchestrator.planning.plan_text import plan_lines
from orchestrator.planning.schemes import intended_host, variant_search
from orchestrator.runs import Storage

SPEC: dict[str, Any] = {
    "name": "x",
    "data": {"source": {"kind": "builtin", "name": "digits"}, "split": {"calibration": 32}},
    "model": {"name": "lenet"},
    "compress": {"quantize": {"schemes": ["int8_dynamic", "int8_static"]}},
}
OLD = {"name": "an old one", "instructions": ["avx2"]}


def test_throughput_is_measured_in_every_format_that_has_kernels() -> None:
    found = throughput()
    assert set(found) == {"gemm", "conv"}
    for figures in found.values():
        assert set(figures) == set(FORMATS)
        assert figures["fp32"] is not None
        assert figures["int8"] is not None
        assert all(value is None or 0.05 < value < 1e6 for value in figures.values())


def test_a_profile_becomes_the_target_of_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {"gemm": {"fp32": 100.0, "int8": 300.0, "fp16": None}}
    monkeypatch.setattr("jobs.measure.throughput.throughput", lambda _: figures)
    found = profile()
    assert any("fp16 no kernel" in line for line in profile_lines(found))
    path = tmp_path / "host.json"
    path.write_text(json.dumps(found))
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    spec = JobSpec.load(tmp_path / "spec.json", [target_override(path)])
    assert spec.compress.target is not None
    assert spec.compress.target.name == found["processor"]
    assert list(spec.compress.target.instructions) == found["instructions"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        ("no json", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "lists no instructions"),
        ('{"profile_version": 1}', "lists no instructions"),
        ('{"profile_version": 9, "instructions": []}', "unknown version"),
    ],
)
def test_a_damaged_profile_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "host.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SpecError, match=message):
        target_override(path)


def test_the_plan_heeds_the_target_and_says_what_is_not_measured(tmp_path: Path) -> None:
    spec = JobSpec.parse({**SPEC, "compress": {**SPEC["compress"], "target": OLD}})
    plan = plan_job(spec, Storage.at(tmp_path))
    assert [scheme.name for scheme in plan.schemes] == ["int8_static", "int8_dynamic"]
    assert plan.host == "an old one: avx2"
    assert any("latencies are this host's, not the target's" in warning for warning in plan.warnings)
    assert any("32 calibration samples are few" in warning for warning in plan.warnings)
    lines = plan_lines(plan)
    assert "quantization, in this order; an old one: avx2" in lines


def test_what_would_saturate_on_the_target_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.hardware.flags", lambda: ("avx2", "avx512f", "avx512_vnni"))
    here = JobSpec.parse(SPEC)
    there = JobSpec.parse({**SPEC, "compress": {**SPEC["compress"], "target": OLD}})
    for spec, full_range in ((here, True), (there, False)):
        search = variant_search(spec)
        assert search is not None
        assert search.full_range is full_range
        assert intended_host(spec).exact_int8 is full_range
