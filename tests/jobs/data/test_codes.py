"""Tables whose columns become codes, and the formats that ratings come in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from small_sources import MakeData, OpenDataset

from jobs.data import Dataset, Encoding, TrainingBatches, fingerprint, inspect, read_samples
from jobs.data.encodings import CodesEncoding
from jobs.data.raw import Columns
from jobs.data.statistics import MAX_BINS, bin_column
from jobs.errors import DataError

RATINGS = [(i % 7 + 100, i * i % 11 + 50, i % 5 + 1, 880_000_000 + i) for i in range(80)]
"""User, film, rating, time."""
HEADER = ("userId", "movieId", "rating", "timestamp")
IDS: dict[str, Any] = {"categorical": ["userId", "movieId"], "ignore": ["timestamp"]}
CODES: dict[str, Any] = {"target": "rating", "categories": "codes"}


def write_ratings(path: Path, delimiter: str = ",", *, header: bool = True) -> Path:
    rows = ([HEADER] if header else []) + RATINGS
    path.write_text("".join(delimiter.join(map(str, row)) + "\n" for row in rows))
    return path


def codes_encoding(dataset: Dataset) -> CodesEncoding:
    encoding = dataset.encoding("standardize")
    assert isinstance(encoding, CodesEncoding)
    return encoding


class TestRatings:
    @pytest.mark.parametrize(
        ("name", "delimiter", "source"),
        [
            ("ratings.csv", ",", {}),
            ("ratings.dat", "::", {"delimiter": "::", "columns": HEADER}),
            ("u.data", "\t", {"delimiter": "\t", "columns": HEADER}),
        ],
    )
    def test_every_format_of_movielens(
        self,
        tmp_path: Path,
        name: str,
        delimiter: str,
        source: dict[str, Any],
        make_data: MakeData,
        open_dataset: OpenDataset,
    ) -> None:
        path = write_ratings(tmp_path / name, delimiter, header=not source)
        data = make_data("csv", path, data=CODES, **IDS, **source)
        dataset = open_dataset(data, "mse")
        assert inspect(data, "mse") == dataset.info
        info = dataset.info
        assert (info.task, info.kind, info.input_shape, info.outputs) == ("regression", "codes", (2,), 1)
        encoding = codes_encoding(dataset)
        assert encoding.column_names == ["userId", "movieId"]
        assert info.num_codes == tuple(len(feature.categories) + 1 for feature in encoding.categorical)
        ids = np.arange(dataset.num_samples("train"))
        x = dataset.encoded("train", ids, encoding)
        assert x.dtype == np.int64
        assert x.min() >= 1
        assert (x.max(axis=0) == np.array(info.num_codes) - 1).all()
        users, films = (feature.categories for feature in encoding.categorical)
        found = {
            (int(users[u - 1]), int(films[f - 1]), r) for (u, f), r in zip(x, dataset.targets("train"), strict=True)
        }
        assert found <= {(u, f, float(r)) for u, f, r, _ in RATINGS}
        batch, _, batch_ids = TrainingBatches(dataset, data, batch_size=8, seed=0).share(0)
        assert np.array_equal(batch, x[batch_ids])
        # What the model serves later is written the same way, without a rating.
        row = delimiter.join(("103", "51", "", "9"))
        lines = [delimiter.join(HEADER)] * (not source) + [row]
        (tmp_path / "new.csv").write_text("\n".join(lines) + "\n")
        new = encoding.encode(read_samples(tmp_path / "new.csv", encoding))
        assert new.tolist() == [[users.index("103") + 1, films.index("51") + 1]]

    def test_who_training_has_not_seen_is_0(
        self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        """Every user rates once, so that those of the other splits are new."""
        rows = ["userId,rating", *(f"{user},{user % 5}" for user in range(50))]
        (tmp_path / "cold.csv").write_text("\n".join(rows))
        dataset = open_dataset(make_data("csv", tmp_path / "cold.csv", data=CODES, categorical=["userId"]), "mse")
        assert dataset.info.num_codes == (41,)
        for split in ("validation", "test"):
            assert dataset.encoded(split, np.arange(5), dataset.encoding("none")).tolist() == [[0]] * 5

    def test_more_users_than_one_hot_could_bear(self, tmp_path: Path, make_data: MakeData) -> None:
        rows = ["userId,rating", *(f"{user},{user % 5}" for user in range(1500))]
        (tmp_path / "many.csv").write_text("\n".join(rows))
        source = {"categorical": ["userId"]}
        codes = make_data("csv", tmp_path / "many.csv", data=CODES, **source)
        assert inspect(codes, "mse").num_codes == (1201,)
        one_hot = make_data("csv", tmp_path / "many.csv", data={"target": "rating"}, **source)
        with pytest.raises(DataError, match="too many for categories"):
            inspect(one_hot, "mse")

    @pytest.mark.parametrize(
        ("content", "source", "message"),
        [
            (b"1::2::3\n", {"columns": ["a", "rating"]}, "Expected 2 columns, got 3"),
            (b"1::2\n", {"columns": ["a", "a"]}, "the column 'a' more than once"),
            (b"1::\x1f2\n", {"columns": ["a", "rating"]}, "control character"),
            (b"1::\xff\n", {"columns": ["a", "rating"], "categorical": ["a"]}, "rating|UTF"),
        ],
    )
    def test_damaged_files(
        self, tmp_path: Path, content: bytes, source: dict[str, Any], message: str, make_data: MakeData
    ) -> None:
        (tmp_path / "bad.dat").write_bytes(content)
        with pytest.raises(DataError, match=message):
            inspect(make_data("csv", tmp_path / "bad.dat", data=CODES, delimiter="::", **source), "mse")

    def test_quotes_mean_nothing_between_two_characters(self, tmp_path: Path, make_data: MakeData) -> None:
        rows = "".join(f'"{"ab"[i % 2]}::{i}\n' for i in range(40))
        (tmp_path / "quotes.dat").write_text(rows)
        data = make_data("csv", tmp_path / "quotes.dat", data=CODES, delimiter="::", columns=["name", "rating"])
        assert inspect(data, "mse").num_codes == (3,)


class TestBins:
    def test_few_values_have_a_bin_each(self) -> None:
        values = np.array([1, 2, 2, 3, np.nan, 3, 3], np.float32)
        assert bin_column("x", values).edges == (2.0, 3.0)

    def test_many_values_share_bins_evenly(self) -> None:
        values = np.random.default_rng(0).normal(size=6400).astype(np.float32)
        edges = bin_column("x", values).edges
        assert len(edges) == MAX_BINS - 1
        counts = np.bincount(np.searchsorted(edges, values, side="right"))
        assert counts.min() >= 199
        assert counts.max() <= 201

    @settings(deadline=None, max_examples=50)
    @given(st.lists(st.floats(-1e6, 1e6, width=32) | st.just(float("nan")), min_size=1, max_size=80), st.floats(0, 1))
    def test_codes_rise_with_values(self, column: list[float], fresh: float) -> None:
        values = np.array([*column, 0.5], np.float32)
        feature = bin_column("x", values)
        encoding = CodesEncoding.model_validate({"numeric": [{"name": "x", "edges": feature.edges}], "categorical": []})
        rows = np.append(values, np.float32(fresh))[:, None]
        codes = encoding.encode(Columns(rows, np.zeros((len(rows), 0), np.int32)))[:, 0]
        assert codes.max() < encoding.num_codes[0] <= MAX_BINS + 1
        assert np.array_equal(codes == 0, np.isnan(rows[:, 0]))
        order = np.argsort(rows[:, 0])
        assert (np.diff(codes[order][codes[order] > 0]) >= 0).all()
        # No bin is empty in training.
        assert set(codes[:-1]) | {0} == set(range(encoding.num_codes[0]))

    def test_numbers_and_words_together(self, csv_file: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        data = {"target": "label", "categories": "codes"}
        dataset = open_dataset(make_data("csv", csv_file, data=data), "bce")
        encoding = codes_encoding(dataset)
        assert encoding.column_names == ["age", "income", "city", "member"]
        # Every eighth of 48 ages and most of 38 incomes share a bin; 3 cities, 2 words for members.
        assert dataset.info.num_codes == (33, 33, 4, 3)
        raw = dataset.raw("train", np.arange(48))
        assert isinstance(raw, Columns)
        x = encoding.encode(raw)
        assert np.array_equal(x[:, 1] == 0, np.isnan(raw.numeric[:, 1]))
        assert np.array_equal(x[:, 2:], raw.categorical + 1)

    def test_vectors(self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        x = np.random.default_rng(0).integers(0, 3, (40, 2))
        np.savez(tmp_path / "x.npz", x=x, y=np.arange(40) % 2)
        dataset = open_dataset(make_data("npz", tmp_path / "x.npz", data={"categories": "codes"}))
        assert dataset.info.num_codes == (4, 4)
        samples = read_samples(tmp_path / "x.npz", dataset.encoding("none"))
        assert dataset.encoding("none").encode(samples).tolist() == (x + 1).tolist()

    def test_parquet(self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        table = pa.table(dict(zip(HEADER, zip(*RATINGS, strict=True), strict=True)))
        parquet.write_table(table, tmp_path / "ratings.parquet")
        data = make_data("parquet", tmp_path / "ratings.parquet", data=CODES, **IDS)
        encoding = codes_encoding(open_dataset(data, "mse"))
        assert encoding.encode(read_samples(tmp_path / "ratings.parquet", encoding)).shape == (80, 2)

    def test_of_images(self, idx_folder: Path, make_data: MakeData) -> None:
        data = make_data("idx", idx_folder, data={"categories": "codes"})
        with pytest.raises(DataError, match="these samples are images") as caught:
            inspect(data, "cross_entropy")
        assert caught.value.problems[0].path == "data.categories"


def test_categories_are_part_of_the_fingerprint(csv_file: Path, make_data: MakeData) -> None:
    each = [make_data("csv", csv_file, data={"target": "label", "categories": c}) for c in ("one_hot", "codes")]
    assert len({fingerprint(data, "bce") for data in each}) == 2


def test_through_json(tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
    path = write_ratings(tmp_path / "u.data", "\t", header=False)
    source = {"delimiter": "\t", "columns": HEADER}
    encoding = open_dataset(make_data("csv", path, data=CODES, **IDS, **source), "mse").encoding("unit")
    assert Encoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding
