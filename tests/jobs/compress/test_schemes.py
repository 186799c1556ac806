"""Every scheme on every family: it works within an error that fits its bits, or gives its reason."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from jobs.compress import quantize_onnx
from jobs.compress.four_bits import blockwise
from jobs.compress.halves import _rounded
from jobs.compress.trim import trim
from jobs.errors import QuantizationFailed
from jobs.measure import count_params, predict
from jobs.measure.probe import check_runs
from tests.jobs.compress.conftest import MODELS, Small

# scheme -> relative squared error of the outputs that its bits allow
ERRORS = {"int8_static": 0.02, "int8_dynamic": 0.02, "int4_weight": 0.2, "fp16": 1e-4, "bf16": 1e-2}
# (scheme, family) -> times smaller, in files of a few kilobytes, of which the graph is a third
SMALLER = {
    ("int8_dynamic", "recommender"): 2.2,
    ("int8_static", "lstm"): 1.8,
    ("int4_weight", "recommender"): 2.5,
    ("int8_static", "transformer"): 2.0,
    ("bf16", "lenet"): 1.6,
    ("fp16", "transformer"): 1.5,
}
Families = Callable[[str], Small]


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize("scheme", ERRORS)
def test_every_scheme_works_on_every_family(scheme: str, family: str, families: Families, tmp_path: Path) -> None:
    small, target = families(family), tmp_path / "q.onnx"
    done = quantize_onnx(small.file, target, scheme, small.x)
    expected, found = predict(small.file, small.x), predict(target, small.x)
    error = float(((found - expected) ** 2).mean() / expected.var())
    assert 0.0 < error < ERRORS[scheme]
    assert done["quantized_nodes"] > 0
    assert small.size / target.stat().st_size > SMALLER.get((scheme, family), 1.0)
    graph = onnx.load(target).graph
    assert [value.name for value in (*graph.input, *graph.output)] == ["input", "output"]
    onnx.checker.check_model(onnx.load(target)) if scheme in ("bf16", "int8_static") else None


@pytest.mark.parametrize("scheme", ["int8_static", "int8_dynamic", "int4_weight"])
def test_tables_of_embeddings_are_looked_up_in_few_bits(scheme: str, families: Families, tmp_path: Path) -> None:
    small, target = families("recommender"), tmp_path / "q.onnx"
    quantize_onnx(small.file, target, scheme, small.x)
    graph = onnx.load(target).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    tables = [tensors[n.input[0]] for n in graph.node if n.op_type.startswith("Gather") and n.input[0] in tensors]
    tables = [table for table in tables if table.ndim == 2]
    assert sorted(len(table) for table in tables) == [96, 120]
    assert all(table.itemsize == 1 for table in tables)
    assert {table.shape[1] for table in tables} == {8 if scheme == "int4_weight" else 16}
    assert count_params(target)[0] == count_params(small.file)[0]


@pytest.mark.parametrize("family", ["lenet", "mlp"])
def test_the_runtime_multiplies_in_integers_in_the_last_layer_too(
    family: str, families: Families, tmp_path: Path
) -> None:
    """Its result is not rounded, and its weights must not become floats in each run for that."""
    small, target, optimized = families(family), tmp_path / "q.onnx", tmp_path / "o.onnx"
    quantize_onnx(small.file, target, "int8_static", small.x)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(optimized), 4
    onnxruntime.InferenceSession(target, options)
    kinds = [node.op_type for node in onnx.load(optimized).graph.node]
    assert "Gemm" not in kinds
    assert kinds[-1] == "QGemm"
    assert kinds.count("QGemm") == [node.op_type for node in onnx.load(small.file).graph.node].count("Gemm")


def test_a_scheme_without_anything_to_do_says_so(families: Families, tmp_path: Path) -> None:
    small = families("mlp")
    model = onnx.load(small.file)
    relu = onnx.helper.make_node("Relu", ["input"], ["output"], "relu")
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.append(relu)
    model.graph.output[0].CopyFrom(model.graph.input[0])
    model.graph.output[0].name = "output"
    onnx.save(model, tmp_path / "m.onnx")
    for scheme in ERRORS:
        with pytest.raises(QuantizationFailed, match=f"{scheme}: the model has no convolution or matrix product"):
            quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", scheme, small.x)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_convolutions_alone_are_not_for_four_bits(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((4, 1, 3, 3), np.float32), "w")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["input", "w"], ["output"], "conv")],
        "conv",
        [onnx.helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [onnx.helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4, 6, 6])],
        [weight],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(QuantizationFailed, match="int4_weight: the model has no"):
        quantize_onnx(tmp_path / "m.onnx", tmp_path / "q.onnx", "int4_weight", np.ones((2, 1, 8, 8), np.float32))


def test_trimming_changes_no_output_and_keeps_the_order(families: Families, tmp_path: Path) -> None:
    for family in ("transformer", "lstm"):
        small, target = families(family), tmp_path / "t.onnx"
        model = onnx.load(small.file)
        trim(model)
        onnx.checker.check_model(model)
        onnx.save(model, target)
        assert target.stat().st_size < small.size
        np.testing.assert_array_equal(predict(target, small.x), predict(small.file, small.x))
        assert max(len(name) for node in model.graph.node for name in node.output) <= len("output")


def test_a_file_that_kills_its_process_is_a_reason(tmp_path: Path, families: Families) -> None:
    """A fault in the runtime: played by a child that dies, since a real one would be another version's bug."""
    from jobs.errors import ArtifactError
    from jobs.measure import probe

    small = families("mlp")
    np.testing.assert_allclose(check_runs(small.file, small.x[:3]), predict(small.file, small.x[:3]), rtol=1e-6)
    child = probe._prober()
    assert child._process is not None
    original, probe._CHILD = probe._CHILD, "import os, sys; sys.stdin.readline(); os.kill(os.getpid(), 11)"
    try:
        child._process.kill()
        child._process.wait()
        with pytest.raises(ArtifactError, match="the process died of it \\(signal 11\\)"):
            check_runs(small.file, small.x[:1])
    finally:
        probe._CHILD = original
    check_runs(small.file, small.x[:1])  # another child
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ArtifactError, match=r"broken\.onnx does not run here"):
        check_runs(tmp_path / "broken.onnx", small.x[:1])


def test_four_bits_lose_least_in_squares_and_keep_zero() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 40)).astype(np.float32)
    rows[3] = 0.0
    integers, scales = blockwise(rows, 16)
    assert integers.shape == (20, 3, 16)
    assert integers.max() <= 15
    restored = ((integers.astype(np.float32) - 8) * scales[..., None]).reshape(20, -1)
    np.testing.assert_array_equal(restored[3], 0.0)
    np.testing.assert_array_equal(restored[:, 40:], 0.0)
    plain_scales = np.abs(np.pad(rows, ((0, 0), (0, 8))).reshape(20, 3, 16)).max(axis=2) / 7.0
    plain_scales[plain_scales == 0] = 1.0
    padded = np.pad(rows, ((0, 0), (0, 8))).reshape(20, 3, 16)
    plain = np.rint(padded / plain_scales[..., None]) * plain_scales[..., None]
    assert ((restored[:, :40] - rows) ** 2).sum() < ((plain - padded) ** 2).sum()


def test_bfloat16_rounds_to_the_nearest_ties_to_even() -> None:
    values = np.array([1.0, 1.0 + 2.0**-8, 1.0 + 3 * 2.0**-8, -3.14159, 0.0], np.float32)
    restored = (_rounded(values).astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(restored, np.array([1.0, 1.0, 1.0 + 2.0**-6, -3.140625, 0.0], np.float32))
