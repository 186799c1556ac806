"""Raw samples become what the model takes: worked by hand, and through JSON and back."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data import Encoding
from jobs.data.encodings import ImageEncoding, TableEncoding, make_encoding
from jobs.data.raw import Columns
from jobs.data.statistics import (
    CategoricalColumn,
    NumericColumn,
    TableStatistics,
    describe_column,
    describe_images,
    restrict_categories,
)
from jobs.errors import ArtifactError

quick = settings(deadline=None, max_examples=50)
STATISTICS = TableStatistics(
    numeric=(
        NumericColumn(name="age", mean=4.0, std=2.0, min=2.0, max=10.0, num_missing=0),
        NumericColumn(name="income", mean=100.0, std=50.0, min=0.0, max=200.0, num_missing=3),
    ),
    categorical=(CategoricalColumn(name="city", categories=("Bergen", "Oslo")),),
)
ROWS = Columns(np.array([[6, 150], [np.nan, np.nan]], np.float32), np.array([[1], [-1]], np.int32))


@pytest.mark.parametrize(
    ("normalize", "rows"),
    [  # age, income, income missing, Bergen, Oslo, another city
        ("standardize", [[1, 1, 0, 0, 1, 0], [0, 0, 1, 0, 0, 1]]),
        ("unit", [[0.5, 0.75, 0, 0, 1, 0], [0.25, 0.5, 1, 0, 0, 1]]),
        ("none", [[6, 150, 0, 0, 1, 0], [4, 100, 1, 0, 0, 1]]),
    ],
)
def test_table_rows(normalize: str, rows: list[list[float]]) -> None:
    encoding = make_encoding(STATISTICS, normalize)
    assert encoding.input_shape == (6,)
    encoded = encoding.encode(ROWS)
    assert encoded.dtype == np.float32
    assert encoded.tolist() == rows


def test_a_card_reads_as_it_always_did() -> None:
    """To the byte: what is new in an encoding is written where it is used alone."""
    assert json.dumps(make_encoding(STATISTICS, "unit").to_json()) == (
        '{"kind": "table", "numeric": ['
        '{"name": "age", "fill": 4.0, "shift": 2.0, "divisor": 8.0, "indicator": false}, '
        '{"name": "income", "fill": 100.0, "shift": 0.0, "divisor": 200.0, "indicator": true}], '
        '"categorical": [{"name": "city", "categories": ["Bergen", "Oslo"]}], "delimiter": ",", "missing": []}'
    )
    images = describe_images(np.array([[[[0, 2]]]], np.uint8), max_value=4.0, resize=False)
    assert json.dumps(make_encoding(images, "standardize").to_json()) == (
        '{"kind": "image", "shape": [1, 1, 2], "dtype": "uint8", "max_value": 4.0, "scale": 0.25, '
        '"mean": [0.25], "std": [0.25], "resize": false}'
    )


@pytest.mark.parametrize(
    ("normalize", "pixels"),
    [("none", [[0, 2], [4, 6]]), ("unit", [[0, 0.5], [1, 1.5]]), ("standardize", [[-1, 1], [0, 2]])],
)
def test_images(normalize: str, pixels: Any) -> None:
    """Two channels of 1 x 2 pixels: means 1 and 4, deviations 1 and 1 at a white of 4."""
    train = np.array([[[[0, 2]], [[3, 5]]]], np.uint8)
    statistics = describe_images(train, max_value=4.0, resize=False)
    assert (statistics.mean, statistics.std) == ((0.25, 1.0), (0.25, 0.25))
    encoded = make_encoding(statistics, normalize).encode(np.array([[[[0, 2]], [[4, 6]]]], np.uint8))
    assert encoded.dtype == np.float32
    assert encoded[0, :, 0].tolist() == pixels


@quick
@given(st.lists(st.integers(0, 255), min_size=1, max_size=60))
def test_byte_statistics_are_those_of_numpy(values: list[int]) -> None:
    pixels = np.array(values, np.uint8).reshape(-1, 1, 1, 1)
    statistics = describe_images(pixels, None, resize=False)
    assert statistics.mean[0] == pytest.approx(pixels.mean() / 255)
    assert statistics.std[0] == pytest.approx(pixels.std() / 255)


def test_float_images_are_scaled_by_their_largest_magnitude() -> None:
    pixels = np.array([-2.0, 1.0], np.float32).reshape(-1, 1, 1, 1)
    statistics = describe_images(pixels, None, resize=False)
    assert (statistics.dtype, statistics.max_value, statistics.mean, statistics.std) == (
        "float32",
        2.0,
        (-0.25,),
        (0.75,),
    )


@pytest.mark.parametrize("normalize", ["unit", "standardize"])
def test_constant_columns_and_images_become_zero_or_their_value(normalize: str) -> None:
    """0.1 has no exact float: rounding must not be blown up into a signal."""
    column = describe_column("c", np.full(1000, 0.1, np.float32))
    statistics = TableStatistics(numeric=(column,), categorical=())
    values = Columns(np.full((1, 1), 0.1, np.float32), np.zeros((1, 0), np.int32))
    assert make_encoding(statistics, normalize).encode(values).tolist() == [[0.0]]
    pixels = np.zeros((3, 1, 2, 2), np.float32)
    assert not make_encoding(describe_images(pixels, None, False), normalize).encode(pixels).any()


def test_column_statistics_leave_missing_values_out() -> None:
    column = describe_column("a", np.array([1, np.nan, 3], np.float32))
    assert column == NumericColumn(name="a", mean=2.0, std=1.0, min=1.0, max=3.0, num_missing=1)


def test_categories_are_those_of_training() -> None:
    codes = Columns(np.zeros((4, 0), np.float32), np.array([[2], [0], [-1], [1]], np.int32))
    recoded, columns = restrict_categories(codes, ("city",), (("a", "b", "c"),), np.array([0, 2, 3]))
    assert columns == (CategoricalColumn(name="city", categories=("b", "c")),)
    assert recoded.categorical.tolist() == [[1], [-1], [-1], [0]]


@quick
@given(
    numbers=st.lists(st.floats(-1e6, 1e6, width=32), min_size=3, max_size=20),
    missing=st.sets(st.integers(0, 19)),
    normalize=st.sampled_from(["none", "unit", "standardize"]),
)
def test_an_encoding_survives_json(numbers: list[float], missing: set[int], normalize: str) -> None:
    values = np.array(numbers, np.float32)[:, None]
    values[[row for row in missing if 0 < row < len(values)]] = np.nan
    rows = Columns(values, np.zeros((len(values), 0), np.int32))
    statistics = TableStatistics(numeric=(describe_column("a", values[:, 0]),), categorical=())
    encoding = make_encoding(statistics, normalize)
    again = Encoding.from_json(json.loads(json.dumps(encoding.to_json(), allow_nan=False)))
    assert again == encoding
    encoded = again.encode(rows)
    assert np.array_equal(encoded, encoding.encode(rows))
    assert np.isfinite(encoded).all()
    if normalize == "standardize" and values[~np.isnan(values)].std() > 1e-3:
        assert abs(encoded[~np.isnan(values[:, 0]), 0].mean()) < 1e-3


@quick
@given(st.integers(1, 30), st.data())
def test_a_sample_is_encoded_the_same_in_any_batch(size: int, draw: st.DataObject) -> None:
    pixels = np.random.default_rng(size).integers(0, 256, (size, 3, 5, 7), np.uint8)
    encoding = make_encoding(describe_images(pixels, None, False), "standardize")
    chosen = draw.draw(st.integers(0, size - 1))
    assert np.array_equal(encoding.encode(pixels)[chosen], encoding.encode(pixels[chosen : chosen + 1])[0])


def test_both_kinds_come_back_as_what_they_are() -> None:
    table = make_encoding(STATISTICS, "unit")
    image = make_encoding(describe_images(np.zeros((1, 1, 2, 2), np.uint8), None, True), "unit")
    assert isinstance(Encoding.from_json(table.to_json()), TableEncoding)
    assert isinstance(Encoding.from_json(image.to_json()), ImageEncoding)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "no encoding of kind None"),
        ({"kind": "sound"}, "no encoding of kind 'sound'"),
        ({"kind": "image", "shape": [1, 2]}, "damaged"),
        ({"kind": "table", "numeric": [], "categorical": [], "more": 1}, "damaged"),
    ],
)
def test_a_damaged_encoding(document: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        Encoding.from_json(document)
