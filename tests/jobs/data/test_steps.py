"""Archives with lengths: sequences of numbers, and tokens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sources import MakeData, OpenDataset

from jobs.data import Encoding, TrainingBatches, inspect, prepare, read_samples
from jobs.data.encodings import SequenceEncoding, TokensEncoding, make_encoding
from jobs.data.raw import Sequences
from jobs.data.statistics import describe_sequences
from jobs.errors import DataError

STEPS, FEATURES = 6, 2
LENGTHS = 1 + np.arange(40) % STEPS
LABELS = np.arange(40) % 2


def padded(seed: int = 0) -> np.ndarray:
    """40 sequences with NaN where no step is."""
    x = np.random.default_rng(seed).normal([1.0, -5.0], [2.0, 0.5], (40, STEPS, FEATURES))
    x[np.arange(STEPS) >= LENGTHS[:, None]] = np.nan
    return x


def tokens() -> np.ndarray:
    """40 samples of the tokens 0 to 8, with -1 where no step is."""
    x = np.random.default_rng(0).integers(0, 9, (40, STEPS))
    x[0, 0] = 8
    x[np.arange(STEPS) >= LENGTHS[:, None]] = -1
    return x


class TestSequences:
    @pytest.mark.parametrize("normalize", ["none", "unit", "standardize"])
    def test_worked_by_hand(self, normalize: str) -> None:
        values = np.array([[[1, 10], [3, 30]], [[5, 20], [0, 0]]], np.float32)
        sequences = Sequences(values, np.array([2, 1], np.int32))
        encoded = make_encoding(describe_sequences(sequences), normalize).encode(sequences)
        assert encoded.dtype == np.float32
        scaled = {
            "none": [[1, 10], [3, 30], [5, 20]],
            "unit": [[0, 0], [0.5, 1], [1, 0.5]],
            "standardize": [[-(1.5**0.5), -(1.5**0.5)], [0, 1.5**0.5], [1.5**0.5, 0]],
        }[normalize]
        rows = np.array([[[*scaled[0], 1], [*scaled[1], 1]], [[*scaled[2], 1], [0, 0, 0]]])
        assert encoded == pytest.approx(rows, abs=1e-6)

    def test_from_archive_to_batch(self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        np.savez(tmp_path / "data.npz", x=padded(), lengths=LENGTHS, y=LABELS)
        data = make_data("npz", tmp_path / "data.npz")
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        info = dataset.info
        assert (info.kind, info.input_shape, info.outputs, info.num_codes) == ("sequence", (STEPS, 3), 2, ())
        ids = np.arange(dataset.num_samples("train"))
        raw = dataset.raw("train", ids)
        assert isinstance(raw, Sequences)
        assert (raw.values.dtype, raw.lengths.dtype) == (np.float32, np.int32)
        x = dataset.encoded("train", ids, dataset.encoding("standardize"))
        there = x[..., -1] == 1.0
        assert np.array_equal(there.sum(axis=1), raw.lengths)
        assert (x[~there] == 0).all()
        assert x[there][:, :2].mean(axis=0) == pytest.approx([0, 0], abs=1e-5)
        assert x[there][:, :2].std(axis=0) == pytest.approx([1, 1], abs=1e-5)
        batch, y, batch_ids = TrainingBatches(dataset, data, batch_size=8, seed=0).share(0)
        assert (str(batch.dtype), str(y.dtype)) == ("torch.float32", "torch.int64")
        assert np.array_equal(batch, x[batch_ids])

    def test_a_test_split_of_its_own(self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        parts = {"x_train": padded(), "lengths_train": LENGTHS, "y_train": LABELS}
        parts |= {"x_test": padded(1)[:10], "lengths_test": LENGTHS[:10], "y_test": LABELS[:10]}
        np.savez(tmp_path / "data.npz", **parts)
        dataset = open_dataset(make_data("npz", tmp_path / "data.npz"))
        assert dataset.info.num_samples == {"train": 36, "validation": 4, "test": 10}
        test = dataset.raw("test", np.arange(10))
        assert isinstance(test, Sequences)
        assert np.array_equal(test.values, np.nan_to_num(padded(1)[:10]).astype(np.float32))

    def test_without_lengths_it_is_an_image(self, tmp_path: Path, make_data: MakeData) -> None:
        np.savez(tmp_path / "data.npz", x=np.nan_to_num(padded()), y=LABELS)
        info = inspect(make_data("npz", tmp_path / "data.npz"), "cross_entropy")
        assert (info.kind, info.input_shape) == ("image", (1, STEPS, FEATURES))

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.integers(1, STEPS), min_size=1, max_size=8), st.integers(0, 99))
    def test_a_sample_does_not_depend_on_its_neighbours_or_its_padding(self, lengths: list[int], seed: int) -> None:
        values = np.random.default_rng(seed).normal(size=(len(lengths), STEPS, FEATURES)).astype(np.float32)
        sequences = Sequences(values, np.array(lengths, np.int32))
        encoding = make_encoding(describe_sequences(sequences), "standardize")
        whole = encoding.encode(sequences)
        other = Sequences(values.copy(), sequences.lengths)
        other.values[np.arange(STEPS) >= sequences.lengths[:, None]] = 1e30
        for position in range(len(lengths)):
            alone = encoding.encode(other.take(np.array([position])))
            assert np.array_equal(alone[0], whole[position])


class TestTokens:
    def test_from_archive_to_batch(self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        """Tokens move up by one, and leave 0 to what is beyond the end."""
        x = tokens()
        np.savez(tmp_path / "data.npz", x=x.astype(np.int16), lengths=LENGTHS.astype(np.uint8), y=LABELS)
        data = make_data("npz", tmp_path / "data.npz")
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        info = dataset.info
        assert (info.kind, info.input_shape, info.num_codes, info.per_step) == ("tokens", (STEPS,), (10,), False)
        encoded = np.concatenate(
            [
                dataset.encoded(split, np.arange(dataset.num_samples(split)), dataset.encoding("standardize"))
                for split in ("train", "validation", "test")
            ]
        )
        assert encoded.dtype == np.int64
        assert sorted(map(tuple, encoded.tolist())) == sorted(map(tuple, (x + 1).tolist()))
        batch, _, _ = TrainingBatches(dataset, data, batch_size=8, seed=0).share(0)
        assert str(batch.dtype) == "torch.int64"

    def test_the_vocabulary_is_that_of_all_splits(self, tmp_path: Path, make_data: MakeData) -> None:
        x = tokens()
        parts = {"x_train": x, "lengths_train": LENGTHS, "y_train": LABELS}
        np.savez(tmp_path / "d.npz", **parts, x_test=x + 90, lengths_test=LENGTHS, y_test=LABELS)
        assert inspect(make_data("npz", tmp_path / "d.npz"), "cross_entropy").num_codes == (100,)


X = np.ones((4, 3, 2))
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "length of none": ({"x": X, "lengths": [1, 2, 0, 3]}, "lengths of x .*: 0 in sample 3.*1 to 3"),
    "length beyond the steps": ({"x": X, "lengths": [1, 4, 5, 3]}, "lengths of x .*: 4 in sample 2"),
    "too few lengths": ({"x": X, "lengths": [1, 2, 3]}, r"shape \(3,\) .* one integer for each of 4 samples"),
    "fractions of steps": ({"x": X, "lengths": [1.0, 2.0, 3.0, 3.0]}, "type float64"),
    "a matrix of lengths": ({"x": X, "lengths": np.ones((4, 1), int)}, r"shape \(4, 1\)"),
    "not a number": (
        {"x": np.where(np.arange(24).reshape(X.shape) == 15, np.nan, X), "lengths": [3, 3, 3, 3]},
        "1 samples with values that are not finite, the first in sample 3, step 2",
    ),
    "beyond float32": ({"x": X * 1e300, "lengths": [1, 1, 1, 1]}, "4 samples .* sample 1, step 1"),
    "no features": ({"x": np.ones((4, 3, 0)), "lengths": [1, 1, 1, 1]}, r"numbers \(n, steps, features\)"),
    "rank 4": ({"x": np.ones((4, 3, 2, 1)), "lengths": [1, 1, 1, 1]}, r"shape \(4, 3, 2, 1\)"),
    "fractions of tokens": ({"x": np.ones((4, 3)), "lengths": [1, 1, 1, 1]}, r"integer tokens \(n, steps\)"),
    "words": ({"x": np.full((4, 3, 2), "a"), "lengths": [1, 1, 1, 1]}, "type <U1"),
    "a token below 0": ({"x": np.full((4, 3), -7), "lengths": [1, 1, 1, 1]}, "the token -7 in sample 1"),
    "a token beyond reason": ({"x": np.full((4, 3), 10**7), "lengths": [1, 1, 1, 1]}, "token 10000000 .*9999999"),
    "lengths of one split": (
        {"x_train": X, "lengths_train": [1, 1, 1, 1], "y_train": [0, 1, 0, 1], "x_test": X, "y_test": [0, 1, 0, 1]},
        "no array 'lengths_test'",
    ),
    "splits of other steps": (
        {
            "x_train": X,
            "lengths_train": [1, 1, 1, 1],
            "y_train": [0, 1, 0, 1],
            "x_test": X[:, :2],
            "lengths_test": [1, 1, 1, 1],
            "y_test": [0, 1, 0, 1],
        },
        "x_train has samples of .*, x_test of",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_arrays_that_are_not_as_promised(case: str, tmp_path: Path, make_data: MakeData) -> None:
    arrays, message = WRONG[case]
    np.savez(tmp_path / "bad.npz", **({"y": [0, 1, 0, 1]} | arrays))
    data = make_data("npz", tmp_path / "bad.npz", data={"split": {"validation": 0.25, "test": 0.25}})
    with pytest.raises(DataError, match=message) as caught:
        prepare(data, "cross_entropy", tmp_path / "out")
    assert caught.value.problems[0].path == "data.source.path"


SEQUENCES = SequenceEncoding(steps=4, shift=(1.0, 0.0), divisor=(2.0, 1.0))
TOKENS = TokensEncoding(steps=4, vocabulary=10)


class TestSamplesToPredictOn:
    @pytest.mark.parametrize("encoding", [SEQUENCES, TOKENS])
    def test_through_json(self, encoding: Encoding) -> None:
        assert Encoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding

    @pytest.mark.parametrize("steps", [3, 4, 9])
    def test_sequences_padded_otherwise(self, steps: int, tmp_path: Path) -> None:
        x = np.full((2, steps, 2), np.nan)
        x[0, :3], x[1, :1] = [[3, 5], [1, 0], [5, 1]], [[7, 7]]
        np.savez(tmp_path / "x.npz", x=x, lengths=[3, 1])
        encoded = SEQUENCES.encode(read_samples(tmp_path / "x.npz", SEQUENCES))
        assert encoded.tolist() == [
            [[1, 5, 1], [0, 0, 1], [2, 1, 1], [0, 0, 0]],
            [[3, 7, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]],
        ]

    @pytest.mark.parametrize("steps", [2, 4, 9])
    def test_tokens_padded_otherwise(self, steps: int, tmp_path: Path) -> None:
        x = np.full((2, steps), 77)
        x[0, :2], x[1, 0] = [8, 0], 3
        np.savez(tmp_path / "x.npz", x=x, lengths=[2, 1])
        assert TOKENS.encode(read_samples(tmp_path / "x.npz", TOKENS)).tolist() == [[9, 1, 0, 0], [4, 0, 0, 0]]

    @pytest.mark.parametrize(
        ("encoding", "arrays", "message"),
        [
            (SEQUENCES, {"x": np.ones((2, 5, 2)), "lengths": [5, 1]}, "a sample of 5 steps.*up to 4"),
            (SEQUENCES, {"x": np.ones((2, 4, 3)), "lengths": [4, 1]}, r"samples of \(4, 3\).*\(n, steps, 2\)"),
            (SEQUENCES, {"x": np.ones((2, 4, 2))}, "no array 'lengths'"),
            (SEQUENCES, {"x": np.ones((2, 4), int), "lengths": [4, 1]}, r"samples of \(4,\)"),
            (TOKENS, {"x": np.ones((2, 4, 2)), "lengths": [4, 1]}, "integer tokens"),
            (TOKENS, {"x": np.full((2, 4), 9), "lengths": [4, 1]}, "the token 9 in sample 1.*0 to 8"),
            (TOKENS, {"x": np.ones((2, 5), int), "lengths": [5, 1]}, "a sample of 5 steps"),
        ],
    )
    def test_what_the_model_does_not_take(
        self, encoding: Encoding, arrays: dict[str, Any], message: str, tmp_path: Path
    ) -> None:
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(DataError, match=message) as caught:
            read_samples(tmp_path / "x.npz", encoding)
        assert caught.value.problems[0].path == "--data"

    def test_another_kind_of_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.csv").write_text("1,2\n")
        with pytest.raises(DataError, match="no kind that holds sequences"):
            read_samples(tmp_path / "x.csv", SEQUENCES)
