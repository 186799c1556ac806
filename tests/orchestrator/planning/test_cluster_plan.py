"""Plans for clusters that are not here: legal for the engine, monotonic, quick, and what docs/planning.md shows."""

import json
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.errors import SpecError
from jobs.layout import ParallelLayout, refusal
from jobs.models.registry import summarize
from jobs.records import DatasetInfo, ModelSummary
from jobs.spec import JobSpec
from jobs.spec.cluster import ClusterProfile, on_cluster
from jobs.spec.load import with_values
from jobs.spec.model import TransformerArgs, TransformerModel
from orchestrator import cli
from orchestrator.planning.cluster_layouts import Candidate, Room, candidates, choose
from orchestrator.planning.cluster_plan import ClusterPlan, load_and_plan, plan_on_cluster
from orchestrator.planning.cluster_text import alternatives_table, cluster_lines
from orchestrator.planning.costs import Machine
from orchestrator.planning.formulas import FORMULAS
from orchestrator.planning.layouts import Variant
from orchestrator.planning.plan import plan_job
from orchestrator.runs import Storage

ROOT = Path(__file__).parents[3]
CLUSTERS = ROOT / "examples" / "clusters"
GPUS: dict[str, Any] = {
    "name": "gpus",
    "nodes": 2,
    "gpus_per_node": 4,
    "memory_gb": 4,
    "tflops": 10,
    "within_gb_per_s": 100,
    "between_gb_per_s": 10,
    "latency_us": {"within": 2, "between": 5},
    "host": {"memory_gb": 64, "link_gb_per_s": 20, "memory_gb_per_s": 100},
}
INFO = DatasetInfo(
    kind="tokens",
    input_shape=(128,),
    outputs=512,
    num_codes=(512,),
    per_step=True,
    task="language_model",
    num_samples={"train": 4096, "validation": 64, "test": 64},
)


@lru_cache
def model() -> ModelSummary:
    args = TransformerArgs(layers=6, width=512, heads=8, dropout=0.0)
    return summarize(TransformerModel(name="transformer", args=args), INFO.signature)


def job(**values: Any) -> JobSpec:
    base = {
        "name": "job",
        "data": {"source": {"kind": "builtin", "name": "digits"}},
        "model": {"name": "lenet", "args": {"conv_widths": [8], "linear_widths": [32]}},
        "train": {"steps": 10, "batch_size": 64},
    }
    return JobSpec.parse(with_values(base, values))


def found_on(profile: dict[str, Any], **values: Any) -> list[Candidate]:
    """What there is to choose from for the transformer, by the pure part of the planner."""
    cluster = ClusterProfile.parse(profile)
    spec = JobSpec.parse(on_cluster(job(**values).document(), cluster)[0])
    return candidates(Variant(spec, model(), here=False), INFO, Machine.of(cluster, spec), Room.of(cluster, spec))


def best_on(profile: dict[str, Any], **values: Any) -> Candidate:
    return choose(found_on(profile, **values), asked=False)[0]


class TestChoice:
    def test_every_candidate_is_legal_for_the_engine(self) -> None:
        for precision in ("fp32", "bf16"):
            found = found_on(GPUS, **{"train.precision": precision})
            assert len(found) > 50
            setting = job(**{"train.precision": precision, "resources": {"workers": 8, "gpus_per_worker": 1}})
            for each in found:
                assert refusal(each.layout, setting.layout_setting.of(model())) is None
                share = each.share
                assert share.micro * share.accumulation * share.data == share.global_batch == 64
                assert each.cost.step_s > 0
                assert 0 < each.cost.utilization <= 1

    def test_the_choice_is_the_shortest_step_that_fits(self) -> None:
        found = found_on(GPUS)
        chosen, _ = choose(found, asked=False)
        assert chosen.fits
        assert chosen.cost.step_s == min(each.cost.step_s for each in found if each.fits)

    def test_slow_links_between_nodes_keep_tensor_peers_within_one(self) -> None:
        tight = GPUS | {"memory_gb": 0.8, "between_gb_per_s": 0.5, "host": None}
        chosen = best_on(tight)
        assert chosen.fits
        assert chosen.layout.tensor <= 4
        across = [each for each in found_on(tight) if each.layout.tensor == 8]
        assert min(each.cost.step_s for each in across) > 2 * chosen.cost.step_s

    def test_where_nothing_fits_the_least_memory_is_taken_and_said(self, tmp_path: Path) -> None:
        small = ClusterProfile.parse(GPUS | {"memory_gb": 0.1})
        spec = JobSpec.parse(on_cluster(job().document(), small)[0])
        plan = plan_on_cluster(spec, small, Storage(tmp_path))
        assert not plan.chosen.fits
        assert plan.fitting == 0
        assert plan.chosen.reason == "chosen: the least memory; nothing fits"
        assert plan.chosen.memory_bytes == min(each.memory_bytes for each in plan.alternatives)
        assert "0.0 GB are there" in plan.warnings[0]

    def test_the_host_takes_what_the_devices_can_not(self) -> None:
        # States of 19 M parameters on one device: 16 bytes each in mixed precision.
        one = GPUS | {"nodes": 1, "gpus_per_node": 1, "memory_gb": 1.1}
        values = {"train.precision": "bf16", "train.batch_size": 1}
        assert best_on(one | {"memory_gb": 4}, **values).layout.offload == "none"
        chosen = best_on(one, **values)
        assert (chosen.layout.offload, chosen.fits) == ("cpu", True)
        assert chosen.cost.offload_s > 0
        assert not best_on(one | {"host": None}, **values).fits
        assert not best_on(one | {"host": GPUS["host"] | {"memory_gb": 0.7}}, **values).fits


FACTOR = st.floats(1.0, 50.0)


class TestMonotonic:
    @given(memory=st.floats(0.05, 8.0), factor=FACTOR, host=st.booleans())
    @settings(max_examples=12, deadline=None)
    def test_more_memory_never_makes_a_plan_illegal_or_slower(self, memory: float, factor: float, host: bool) -> None:
        profile = GPUS | {"memory_gb": memory} | ({} if host else {"host": None})
        less, more = best_on(profile), best_on(profile | {"memory_gb": memory * factor})
        assert more.fits >= less.fits
        if less.fits:
            assert more.cost.step_s <= less.cost.step_s * (1 + 1e-8)

    @given(key=st.sampled_from(["within_gb_per_s", "between_gb_per_s", "tflops"]), factor=FACTOR)
    @settings(max_examples=12, deadline=None)
    def test_what_is_faster_never_makes_a_step_slower(self, key: str, factor: float) -> None:
        before, after = found_on(GPUS), found_on(GPUS | {key: GPUS[key] * factor})
        for slow, fast in zip(before, after, strict=True):
            assert (slow.layout, slow.share) == (fast.layout, fast.share)
            assert fast.cost.step_s <= slow.cost.step_s * (1 + 1e-12)
        assert choose(after, asked=False)[0].cost.step_s <= choose(before, asked=False)[0].cost.step_s * (1 + 1e-8)

    @given(between=st.floats(0.0, 100.0), more=st.floats(0.0, 100.0))
    @settings(max_examples=6, deadline=None)
    def test_latency_never_makes_a_step_faster(self, between: float, more: float) -> None:
        before, after = (found_on(GPUS | {"latency_us": {"between": us}}) for us in (between, between + more))
        for fast, slow in zip(before, after, strict=True):
            assert fast.cost.step_s <= slow.cost.step_s * (1 + 1e-12)


class TestPlan:
    def test_what_it_chose_is_what_the_engine_plans(self, tmp_path: Path) -> None:
        """`section` written into the spec gives that layout, without a profile."""
        cluster = ClusterProfile.parse(GPUS)
        storage = Storage(tmp_path)
        spec = JobSpec.parse(on_cluster(job(**{"train.precision": "bf16"}).document(), cluster)[0])
        plan = plan_on_cluster(spec, cluster, storage)
        there = plan_job(spec.replace(plan.section), storage)
        assert there.batch == plan.batch
        assert there.deepspeed == plan.deepspeed
        assert there.memory == plan.memory
        assert there.spec == plan.spec
        assert ParallelLayout(**there.layout).size == 8
        again = plan_on_cluster(spec.replace(plan.section), cluster, storage)
        assert again.chosen.reason == "chosen: asked for"
        assert again.chosen.step_s == plan.chosen.step_s

    def test_it_is_a_record(self, tmp_path: Path) -> None:
        cluster = ClusterProfile.parse(GPUS)
        plan = plan_on_cluster(JobSpec.parse(on_cluster(job().document(), cluster)[0]), cluster, Storage(tmp_path))
        assert ClusterPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
        for each in plan.alternatives:
            parts = each.compute_s + each.communication_s + each.bubble_s + each.offload_s
            assert parts == pytest.approx(each.step_s)
        assert not any(tmp_path.iterdir())  # a plan changes nothing

    def test_a_normalization_group_is_not_split(self, tmp_path: Path) -> None:
        cluster = ClusterProfile.parse(GPUS)
        values = {"model.args.batch_norm": True, "train.batch_size": 512}
        spec = JobSpec.parse(on_cluster(job(**values).document(), cluster)[0])
        plan = plan_on_cluster(spec, cluster, Storage(tmp_path))
        assert plan.chosen.micro_batch % 32 == 0
        with pytest.raises(SpecError, match=r"norm_group|batch_size"):
            plan_on_cluster(spec.replace({"train.batch_size": 12, "layout": {"data": 8}}), cluster, Storage(tmp_path))

    def test_a_search_keeps_to_what_all_its_trials_can_run_under(self, tmp_path: Path) -> None:
        cluster = ClusterProfile.parse(GPUS)
        space = {"search.space": {"train.batch_size": {"choice": [64, 4]}}}
        spec = JobSpec.parse(on_cluster(job(**space).document(), cluster)[0])
        plan = plan_on_cluster(spec, cluster, Storage(tmp_path))
        assert 4 % (plan.chosen.data * plan.chosen.micro_batch) == 0

    def test_offload_that_nothing_is_known_of_is_refused(self, tmp_path: Path) -> None:
        cluster = ClusterProfile.parse(GPUS | {"host": None})
        values = {"layout": {"data": 8, "zero_stage": 2, "offload": "cpu"}}
        document = job().document() | values
        with pytest.raises(SpecError, match=r"cluster\.host"):
            plan_on_cluster(JobSpec.parse(on_cluster(document, cluster)[0]), cluster, Storage(tmp_path))

    def test_an_elastic_job_is_planned_for_its_most(self, tmp_path: Path) -> None:
        cluster = ClusterProfile.parse(GPUS)
        spec = JobSpec.parse(on_cluster(job(**{"resources.workers": [2, 4]}).document(), cluster)[0])
        plan = plan_on_cluster(spec, cluster, Storage(tmp_path))
        assert plan.demand.workers == 4
        assert any("[2, 4]" in note for note in plan.notes)
        assert any("idle" in note for note in plan.notes)


def write_text(folder: Path) -> Path:
    """Text enough for a few chunks of 4,096 bytes in each split."""
    path = folder / "text.txt"
    path.write_text(
        "".join(f"line {number} of a text that is only there to be planned with\n" for number in range(4000))
    )
    return path


def plan_of_70b(folder: Path) -> ClusterPlan:
    """Its tokens are bytes, so any text gives the same model."""
    overrides = [f"data.source.path={write_text(folder)}"]
    spec = ROOT / "examples" / "transformer_70b.yaml"
    return load_and_plan(spec, overrides, CLUSTERS / "64x8xh100.yaml", Storage(folder / "runs"))


class TestSeventyBillion:
    def test_it_fits_and_its_tensor_peers_share_a_node(self, tmp_path: Path) -> None:
        plan = plan_of_70b(tmp_path)
        assert 69e9 < plan.model.params < 71e9
        assert plan.considered > 300
        assert plan.chosen.fits
        assert plan.chosen.tensor <= 8  # within a node
        assert plan.chosen.data * plan.chosen.tensor * plan.chosen.pipeline == 512

    def test_the_document_shows_what_the_command_prints(self, tmp_path: Path) -> None:
        text = (ROOT / "docs" / "planning.md").read_text()
        shown = re.search(r"<!-- plan -->\n(.*?)\n<!-- /plan -->", text, re.DOTALL)
        assert shown
        assert shown[1] == alternatives_table(plan_of_70b(tmp_path))

    def test_the_document_names_every_formulas_source(self) -> None:
        text = (ROOT / "docs" / "planning.md").read_text()
        for each in FORMULAS:
            assert each["source"].split(",")[0].split(" et al")[0] in text, each["source"]


class TestCommand:
    def run(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: Any
    ) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["thresher", "plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    def spec(self, folder: Path) -> Path:
        path = folder / "job.yaml"
        path.write_text(json.dumps(job().document()))
        return path

    def test_text_json_and_table(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        options = (self.spec(tmp_path), "--runs", tmp_path / "runs", "--cluster", CLUSTERS / "8xh100.yaml")
        code, text = self.run(capsys, monkeypatch, *options)
        assert code == 0
        for part in ("8xh100: 1 × 8 accelerators", "activations", "bubble", "sends", "MFU", "note: resources.workers"):
            assert part in text
        lines = text.splitlines()
        code, text = self.run(capsys, monkeypatch, *options, "--json")
        plan = ClusterPlan.from_json(json.loads(text))
        assert plan.demand.workers == 8
        assert plan.chosen.data * plan.chosen.tensor * plan.chosen.pipeline == 8
        assert lines == cluster_lines(plan)
        code, text = self.run(capsys, monkeypatch, *options, "--table")
        assert text.strip() == alternatives_table(plan)

    def test_overrides_come_before_the_profile(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        options = (self.spec(tmp_path), "--cluster", CLUSTERS / "64x8xh100.yaml", "--json", "--set")
        code, text = self.run(capsys, monkeypatch, *options, "resources.workers=4")
        assert code == 0
        assert json.loads(text)["demand"]["workers"] == 4
        code, text = self.run(capsys, monkeypatch, *options, "resources.workers=513")
        assert code == 2
        assert "513 workers on 64 nodes" in text

    def test_what_is_wrong_ends_with_2(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        profile = tmp_path / "profile.yaml"
        profile.write_text(json.dumps(GPUS | {"nodes": 0}))
        code, text = self.run(capsys, monkeypatch, self.spec(tmp_path), "--cluster", profile)
        assert (code, "cluster.nodes: is out of range (got 0); allowed: at least 1" in text) == (2, True)
        code, text = self.run(capsys, monkeypatch, self.spec(tmp_path), "--table")
        assert (code, "--cluster PROFILE" in text) == (2, True)

    def test_without_a_profile_the_plan_stays_as_it_is(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        path = self.spec(tmp_path)
        code, text = self.run(capsys, monkeypatch, path, "--runs", tmp_path / "runs", "--json")
        assert code == 0
        assert json.loads(text) == plan_job(JobSpec.load(path), Storage.at(str(tmp_path / "runs"))).to_json()
