"""What is said, or refused, of the samples that 8 bits are calibrated with."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jobs.errors import SpecError
from jobs.records import DatasetInfo
from jobs.spec import JobSpec
from orchestrator.pipeline import calibration_warnings
from orchestrator.planning.plan import check_fit, quantization_warnings

CLASSES = ("cat", "dog", "owl")


def spec(schemes: list[str], calibration: int | None = None) -> JobSpec:
    split = {} if calibration is None else {"split": {"calibration": calibration}}
    return JobSpec.parse(
        {
            "name": "x",
            "data": {"source": {"kind": "builtin", "name": "digits"}, **split},
            "model": {"name": "mlp"},
            "compress": {"quantize": {"schemes": schemes}},
        }
    )


def dataset(labels: list[int], classes: tuple[str, ...] = CLASSES) -> Any:
    targets = np.array([*labels, 0, 1, 2])
    return SimpleNamespace(
        info=SimpleNamespace(classes=classes),
        calibration_ids=np.arange(len(labels)),
        targets=lambda _, ids: targets[ids],
    )


def info(train: int) -> DatasetInfo:
    return DatasetInfo(
        kind="vector",
        input_shape=(4,),
        outputs=3,
        task="classification",
        num_samples={"train": train, "validation": 5, "test": 5},
        classes=CLASSES,
    )


def test_calibration_samples_of_one_class_are_warned_of() -> None:
    (warning,) = calibration_warnings(spec(["int8_static"]), dataset([1, 1, 1]))
    assert "all calibration samples are of one class (dog)" in warning
    assert calibration_warnings(spec(["int8_static"]), dataset([1, 0, 1])) == []
    assert calibration_warnings(spec(["int8_static"]), dataset([1, 1], classes=())) == []  # regression


@pytest.mark.parametrize("scheme", ["int8_static", "int8_qat"])
def test_too_few_training_samples_to_calibrate_with_are_refused(scheme: str) -> None:
    with pytest.raises(SpecError, match="10 training samples are too few to calibrate 8 bits with"):
        check_fit(spec([scheme]), info(10))
    check_fit(spec(["int8_dynamic", "int4_weight"]), info(10))
    check_fit(spec([scheme]), info(16))


def test_few_are_warned_of() -> None:
    assert "32 calibration samples are few" in quantization_warnings(spec(["int8_static"], 32), info(500))[0]
    assert "20 calibration samples are few" in quantization_warnings(spec(["int8_qat"]), info(20))[0]
    assert quantization_warnings(spec(["int8_static"]), info(500)) == []
    assert quantization_warnings(spec(["fp16"], 32), info(500)) == []
