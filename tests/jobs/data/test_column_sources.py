"""CSV, Parquet, NumPy archives and the built-in data sets."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from small_sources import CSV_HEADER, MakeData, OpenDataset

from jobs.data import inspect, prepare
from jobs.data.encodings import TableEncoding
from jobs.data.raw import Columns
from jobs.errors import DataError

TARGET = {"target": "label"}


DAMAGED_CSV = {
    "empty": (b"", "cross_entropy", "can't be read as CSV"),
    "header alone": (CSV_HEADER.encode() + b"\n", "cross_entropy", "has no rows"),
    "ragged": (b"a,label\n1,x\n2\n", "cross_entropy", "Expected 2 columns, got 1"),
    "column twice": (b"a,a,label\n1,2,x\n", "cross_entropy", "the column 'a' more than once"),
    "target missing": (b"a,label\n1,x\n2,\n3,NA\n", "cross_entropy", "missing in 2 of 3 rows, the first in row 2"),
    "one class": (b"a,label\n1,x\n2,x\n3,x\n", "cross_entropy", "one class only"),
    "text for mse": (b"a,label\n1,x\n2,y\n3,x\n", "mse", "numeric target"),
    "too few": (b"a,label\n1,x\n2,y\n3,x\n", "cross_entropy", "too few to split"),
    "empty column": (b"a,label\n,x\n,y\n", "cross_entropy", "the column 'a' has no values"),
    "no features": (b"label\nx\ny\n", "cross_entropy", "no columns besides"),
    "dates": (b"a,label\n2024-01-01,x\n2024-01-02,y\n", "cross_entropy", "holds date32"),
    "beyond float32": (b"a,label\n1e300,x\n1,y\n", "cross_entropy", "beyond float32, the first in row 1"),
    "not UTF-8": (b"a,label\n\xff\xfe,x\n1,y\n", "cross_entropy", "'a'|UTF"),
    "too many categories": (
        b"a,label\n" + b"".join(b"n%d,%d\n" % (i, i % 2) for i in range(1001)),
        "cross_entropy",
        "1001 different",
    ),
}


class TestTables:
    def test_columns_get_their_types(self, csv_file: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        data = make_data("csv", csv_file, data=TARGET)
        dataset = open_dataset(data, "bce")
        assert inspect(data, "bce") == dataset.info
        assert (dataset.info.classes, dataset.info.outputs, dataset.info.image) == (("no", "yes"), 1, False)
        encoding = dataset.encoding("standardize")
        assert isinstance(encoding, TableEncoding)
        assert [(f.name, f.indicator) for f in encoding.numeric] == [("age", False), ("income", True)]
        cities = {f.name: f.categories for f in encoding.categorical}
        assert cities == {"city": ("Bergen", "Oslo", "Tromsø"), "member": ("False", "True")}
        # age, income, income missing; 3 cities + 1; 2 + 1
        assert dataset.info.input_shape == encoding.input_shape == (10,)

    def test_rows_arrive_whole(self, csv_file: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        dataset = open_dataset(make_data("csv", csv_file, data=TARGET), "bce")
        ids = np.arange(dataset.num_samples("train"))
        rows, labels = dataset.raw("train", ids), dataset.targets("train")
        assert isinstance(rows, Columns)
        i = rows.numeric[:, 0].astype(int) - 20
        assert np.array_equal(labels, i % 3 != 0)
        assert np.array_equal(np.isnan(rows.numeric[:, 1]), i % 5 == 0)
        assert np.array_equal(rows.categorical[:, 0], np.array([1, 0, -1, 2])[i % 4])
        assert np.array_equal(rows.categorical[:, 1], i % 2 == 0)

    def test_statistics_are_those_of_training(
        self, csv_file: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        dataset = open_dataset(make_data("csv", csv_file, data=TARGET), "bce")
        encoded = dataset.encoded("train", np.arange(dataset.num_samples("train")), dataset.encoding("standardize"))
        assert encoded[:, 0].mean() == pytest.approx(0, abs=1e-6)
        assert encoded[:, 0].std() == pytest.approx(1, abs=1e-6)

    def test_parquet_holds_the_same(
        self, csv_file: Path, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        """As one file with a dictionary column, and as a folder of two files."""
        table = csv.read_csv(
            csv_file, convert_options=csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
        )
        table = table.set_column(1, "city", table["city"].dictionary_encode())
        parquet.write_table(table, tmp_path / "people.parquet")
        (tmp_path / "parts").mkdir()
        parquet.write_table(table.slice(0, 25), tmp_path / "parts" / "a.parquet")
        parquet.write_table(table.slice(25), tmp_path / "parts" / "b.parquet")
        rows = []
        for kind, path in (
            ("csv", csv_file),
            ("parquet", tmp_path / "people.parquet"),
            ("parquet", tmp_path / "parts"),
        ):
            dataset = open_dataset(make_data(kind, path, data=TARGET))
            encoding = dataset.encoding("unit")
            rows.append(dataset.encoded("validation", np.arange(dataset.num_samples("validation")), encoding))
        assert np.array_equal(rows[0], rows[1])
        assert np.array_equal(rows[0], rows[2])

    def test_ignored_and_categorical_columns(
        self, csv_file: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        data = make_data("csv", csv_file, data=TARGET, ignore=["income", "city"], categorical=["age"])
        encoding = open_dataset(data).encoding("none")
        assert isinstance(encoding, TableEncoding)
        assert encoding.column_names == ["age", "member"]
        assert all(age.isdigit() for age in encoding.categorical[0].categories)

    def test_categories_of_training_alone(self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        """Every city is new, so those of the other splits are unknown to the encoding."""
        rows = [f"{i},city{i:02},{i % 2}" for i in range(50)]
        (tmp_path / "cities.csv").write_text("\n".join(["n,city,label", *rows]))
        dataset = open_dataset(make_data("csv", tmp_path / "cities.csv", data=TARGET))
        test = dataset.raw("test", np.arange(5))
        train = dataset.raw("train", np.arange(40))
        assert isinstance(test, Columns)
        assert isinstance(train, Columns)
        assert (test.categorical == -1).all()
        assert train.categorical[:, 0].tolist() == list(range(40))

    def test_late_decimals_and_quoted_line_breaks(self, tmp_path: Path, make_data: MakeData) -> None:
        """A column that turns from whole numbers to decimals after a megabyte is still one of numbers."""
        lines = [f'{i % 7},"two\nlines",{i % 2}' for i in range(90_000)] + ['0.5,"x",1']
        (tmp_path / "long.csv").write_text("\n".join(["n,text,label", *lines]))
        info = inspect(make_data("csv", tmp_path / "long.csv", data=TARGET), "cross_entropy")
        assert sum(info.num_samples.values()) == 90_001

    def test_regression(self, csv_file: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        data = make_data("csv", csv_file, data={"target": "age"}, ignore=["income"])
        dataset = open_dataset(data, "mse")
        assert inspect(data, "mse") == dataset.info
        assert (dataset.info.task, dataset.info.outputs, dataset.info.classes) == ("regression", 1, ())
        assert dataset.targets("train").dtype == np.float32
        assert 20 <= dataset.targets("train").min() <= dataset.targets("train").max() <= 79

    @pytest.mark.parametrize(
        ("source", "data", "path", "nearest"),
        [
            ({}, {"target": "lable"}, "data.target", "label"),
            ({"categorical": ["citty"]}, TARGET, "data.source.categorical", "city"),
            ({"ignore": ["incom"]}, TARGET, "data.source.ignore", "income"),
        ],
    )
    def test_misspelt_columns(
        self, csv_file: Path, make_data: MakeData, source: Any, data: Any, path: str, nearest: str
    ) -> None:
        with pytest.raises(DataError, match="no such column") as caught:
            inspect(make_data("csv", csv_file, data=data, **source), "cross_entropy")
        assert (caught.value.problems[0].path, caught.value.problems[0].nearest) == (path, nearest)

    @pytest.mark.parametrize(
        ("content", "loss", "message"),
        DAMAGED_CSV.values(),
        ids=DAMAGED_CSV,
    )
    def test_damaged_csv(self, tmp_path: Path, content: bytes, loss: str, message: str, make_data: MakeData) -> None:
        (tmp_path / "bad.csv").write_bytes(content)
        with pytest.raises(DataError, match=message):
            inspect(make_data("csv", tmp_path / "bad.csv", data=TARGET), loss)

    def test_damaged_parquet(self, tmp_path: Path, make_data: MakeData) -> None:
        table = pa.table({"a": [1, 2], "label": ["x", "y"]})
        parquet.write_table(table, tmp_path / "good.parquet")
        (tmp_path / "bad.parquet").write_bytes((tmp_path / "good.parquet").read_bytes()[:-30])
        with pytest.raises(DataError, match="damaged or no Parquet"):
            inspect(make_data("parquet", tmp_path / "bad.parquet", data=TARGET), "cross_entropy")

    def test_parquet_parts_that_differ(self, tmp_path: Path, make_data: MakeData) -> None:
        (tmp_path / "parts").mkdir()
        parquet.write_table(pa.table({"a": [1], "label": ["x"]}), tmp_path / "parts" / "a.parquet")
        parquet.write_table(pa.table({"b": [1], "label": ["x"]}), tmp_path / "parts" / "b.parquet")
        with pytest.raises(DataError, match="different columns"):
            inspect(make_data("parquet", tmp_path / "parts", data=TARGET), "cross_entropy")

    def test_a_nested_column(self, tmp_path: Path, make_data: MakeData) -> None:
        parquet.write_table(pa.table({"a": [[1], [2]], "label": ["x", "y"]}), tmp_path / "nested.parquet")
        with pytest.raises(DataError, match="'a' holds list"):
            inspect(make_data("parquet", tmp_path / "nested.parquet", data=TARGET), "cross_entropy")


class TestNpz:
    @pytest.mark.parametrize(
        ("shape", "dtype", "input_shape"),
        [
            ((40, 7), np.float64, (7,)),
            ((40, 6, 5), np.uint8, (1, 6, 5)),
            ((40, 3, 6, 5), np.uint8, (3, 6, 5)),
            ((40, 6, 5, 3), np.uint8, (3, 6, 5)),
            ((40, 6, 5, 1), np.float32, (1, 6, 5)),
            ((40, 3, 6, 3), np.float32, (3, 6, 3)),
        ],
    )
    def test_ranks_tell_vectors_from_images(
        self,
        tmp_path: Path,
        shape: tuple[int, ...],
        dtype: Any,
        input_shape: tuple[int, ...],
        make_data: MakeData,
        open_dataset: OpenDataset,
    ) -> None:
        x = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
        np.savez(tmp_path / "data.npz", x=x, y=np.arange(40) % 2)
        data = make_data("npz", tmp_path / "data.npz")
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        assert dataset.info.input_shape == input_shape
        unit = dataset.encoded("train", np.arange(32), dataset.encoding("unit"))
        assert unit.shape == (32, *input_shape)
        assert unit.min() >= 0
        assert unit.max() <= 1

    def test_channels_last_become_channels_first(
        self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        x = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), np.uint8)
        y = np.arange(40) % 2
        np.savez_compressed(tmp_path / "data.npz", x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:, None])
        dataset = open_dataset(make_data("npz", tmp_path / "data.npz"))
        assert dataset.info.num_samples == {"train": 27, "validation": 3, "test": 10}
        assert np.array_equal(dataset.raw("test", np.arange(10)), np.moveaxis(x[30:], 3, 1))

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"X": np.zeros((4, 2)), "y": np.zeros(4)}, "no array 'x'.*did you mean 'X'|no array 'x'"),
            ({"x_train": np.zeros((4, 2)), "y_train": np.zeros(4), "x_test": np.zeros((4, 2))}, "no array 'y_test'"),
            ({"x": np.zeros(4), "y": np.arange(4)}, "has the shape"),
            ({"x": np.zeros((4, 2, 5, 5)), "y": np.arange(4)}, "1 or 3 channels"),
            ({"x": np.zeros((4, 2), np.complex64), "y": np.arange(4)}, "type complex64"),
            ({"x": np.zeros((4, 2)), "y": np.zeros((4, 2))}, r"y of .* shape \(4, 2\)"),
            ({"x": np.zeros((4, 2)), "y": np.arange(3)}, "4 samples, but 3 targets"),
            ({"x": np.full((4, 2), np.inf), "y": np.arange(4)}, "4 rows with values that are infinite"),
            ({"x": np.full((4, 2, 2), np.nan), "y": np.arange(4)}, "not finite, the first in sample 1"),
            ({"x": np.zeros((4, 2)), "y": np.array([0, 1, np.nan, 1])}, "1 of 4 targets .* row 3"),
            ({"x": np.array([[None]]), "y": np.arange(1)}, "Python objects"),
        ],
    )
    def test_arrays_that_are_not_as_promised(
        self, tmp_path: Path, arrays: dict[str, Any], message: str, make_data: MakeData
    ) -> None:
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(DataError, match=message):
            prepare(make_data("npz", tmp_path / "bad.npz"), "cross_entropy", tmp_path / "out")

    @pytest.mark.parametrize("cut", [0, 10, 200])
    def test_a_truncated_archive(self, tmp_path: Path, cut: int, make_data: MakeData) -> None:
        np.savez(tmp_path / "bad.npz", x=np.zeros((4, 2)), y=np.arange(4))
        content = (tmp_path / "bad.npz").read_bytes()
        (tmp_path / "bad.npz").write_bytes(content[:cut])
        with pytest.raises(DataError, match="damaged"):
            inspect(make_data("npz", tmp_path / "bad.npz"), "cross_entropy")

    def test_damage_within_an_array(self, tmp_path: Path, make_data: MakeData) -> None:
        np.savez(tmp_path / "bad.npz", x=np.full((40, 50), 7.0), y=np.arange(40) % 2)
        content = bytearray((tmp_path / "bad.npz").read_bytes())
        content[5000] ^= 0xFF
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"x of .* is damaged: Bad CRC"):
            prepare(make_data("npz", tmp_path / "bad.npz"), "cross_entropy", tmp_path / "out")


class TestBuiltin:
    @pytest.mark.parametrize(
        ("name", "loss", "shape", "outputs"),
        [
            ("digits", "cross_entropy", (1, 8, 8), 10),
            ("breast_cancer", "cross_entropy", (30,), 2),
            ("breast_cancer", "bce", (30,), 1),
            ("diabetes", "mse", (10,), 1),
        ],
    )
    def test_the_constants_are_true(
        self, name: str, loss: str, shape: tuple[int, ...], outputs: int, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        data = make_data("builtin", name=name)
        dataset = open_dataset(data, loss)
        assert inspect(data, loss) == dataset.info
        assert (dataset.info.input_shape, dataset.info.outputs) == (shape, outputs)

    def test_digits_are_white_at_16(self, make_data: MakeData, open_dataset: OpenDataset) -> None:
        dataset = open_dataset(make_data("builtin", name="digits"))
        raw = dataset.raw("train", np.arange(1437))
        assert raw.max() == 16
        assert dataset.encoded("train", np.arange(1437), dataset.encoding("unit")).max() == 1.0

    def test_malignant_is_class_zero(self, make_data: MakeData, open_dataset: OpenDataset) -> None:
        dataset = open_dataset(make_data("builtin", name="breast_cancer"), "bce")
        assert dataset.info.classes == ("malignant", "benign")
        total = sum(np.bincount(dataset.targets(split)) for split in ("train", "validation", "test"))
        assert total.tolist() == [212, 357]

    @pytest.mark.parametrize(
        ("name", "loss"), [("diabetes", "cross_entropy"), ("breast_cancer", "mse"), ("digits", "bce")]
    )
    def test_a_loss_that_does_not_fit(self, name: str, loss: str, make_data: MakeData) -> None:
        with pytest.raises(DataError) as caught:
            inspect(make_data("builtin", name=name), loss)
        assert caught.value.problems[0].path == "train.loss"


def test_augmentation_is_for_images(csv_file: Path, make_data: MakeData) -> None:
    data = make_data("csv", csv_file, data={**TARGET, "augment": ["horizontal_flip"]})
    with pytest.raises(DataError, match="augmentation is for images"):
        inspect(data, "bce")


def test_a_crop_that_could_miss_the_image(make_data: MakeData) -> None:
    data = make_data("builtin", name="digits", data={"augment": ["horizontal_flip", {"random_crop": {"padding": 8}}]})
    with pytest.raises(DataError, match="allowed: 1 to 7") as caught:
        inspect(data, "cross_entropy")
    assert caught.value.problems[0].path == "data.augment.1.random_crop.padding"
