"""Text becomes samples: chunks for a language model, or documents with a label; and what can not be read."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sources import MakeData, OpenDataset
from small_texts import KINDS, PROSE, REVIEWS, spelled, text_encoding

from jobs.data import TrainingBatches, inspect, prepare, read_samples
from jobs.data.assembly import _read_text
from jobs.data.encodings import Encoding, TextEncoding
from jobs.data.text.samples import Corpus, cut, divide_corpus, next_codes
from jobs.data.text.tokens import TextTokenizer
from jobs.errors import DataError
from jobs.spec.data import Split


class TestLanguageModel:
    def test_next_tokens_are_the_text_shifted(
        self, prose: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        data = make_data("text", prose, length=16, tokenizer=KINDS["byte"])
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        info = dataset.info
        assert (info.task, info.kind, info.per_step, info.classes) == ("language_model", "tokens", True, ())
        assert (info.input_shape, info.num_codes, info.outputs) == ((16,), (264,), 264)  # 256 bytes + 1, rounded up
        text = np.frombuffer(PROSE.encode(), np.uint8)
        encoding = text_encoding(dataset)
        x = dataset.encoded("train", np.arange(dataset.num_samples("train")), encoding)
        y = dataset.targets("train")
        assert x.dtype == y.dtype == np.int64
        assert x.shape == y.shape
        stretch = text[: x.size + 1]
        assert spelled(encoding, x[3]) == stretch[48:64].tobytes().decode()
        assert np.array_equal(x.ravel()[1:], y.ravel()[:-1])
        assert spelled(encoding, y[-1]) == stretch[-16:].tobytes().decode()

    def test_splits_are_stretches_without_a_token_in_common(
        self, prose: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        split = {"validation": 0.2, "test": 0.1}
        dataset = open_dataset(make_data("text", prose, length=10, tokenizer=KINDS["byte"], data={"split": split}))
        encoding = text_encoding(dataset)
        ends = [0, round(len(PROSE) * 0.7), round(len(PROSE) * 0.9), len(PROSE)]
        for name, first, last in zip(("train", "validation", "test"), ends[:-1], ends[1:], strict=True):
            ids = np.arange(dataset.num_samples(name))
            assert len(ids) == (last - first - 1) // 10
            x, y = dataset.raw(name, ids), dataset.targets(name)
            assert isinstance(x, np.ndarray)
            seen = spelled(encoding, np.append(x.ravel(), y[-1, -1]))
            assert seen == PROSE[first : first + len(seen)]
            assert first + len(seen) <= last

    def test_the_tokenizer_knows_the_training_stretch_alone(
        self, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        (tmp_path / "two.txt").write_text("ab" * 500 + "xy" * 100)
        split = {"validation": 0.2, "test": 0.1}
        data = make_data("text", tmp_path / "two.txt", length=8, tokenizer={"kind": "char"}, data={"split": split})
        dataset = open_dataset(data)
        assert dataset.info.num_codes == (8,)  # padding, unknown, a, b; rounded up
        assert set(dataset.targets("test").ravel()) == {1}

    @pytest.mark.parametrize("suffix", ["jsonl", "csv"])
    def test_documents_end_with_a_token_of_their_own(
        self, tmp_path: Path, suffix: str, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        path = tmp_path / f"documents.{suffix}"
        documents = [f"number {i:02}" for i in range(50)]
        lines = [json.dumps({"body": text}) for text in documents] if suffix == "jsonl" else ["body", *documents]
        path.write_text("\n".join(lines) + "\n")
        dataset = open_dataset(make_data("text", path, column="body", length=10, tokenizer=KINDS["byte"]))
        encoding = text_encoding(dataset)
        assert encoding.separator == 257
        x = dataset.raw("validation", np.arange(dataset.num_samples("validation")))
        assert isinstance(x, np.ndarray)
        # 40 documents train; of the 5 that validate, of 10 tokens each, the last token has no next one.
        assert [spelled(encoding, row) for row in x] == [f"{text}<end>" for text in documents[40:44]]
        assert dataset.targets("validation").tolist()[0][-2:] == [257, x[1, 0]]

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_tokenizer_trains_batches(
        self, prose: Path, kind: str, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        data = make_data("text", prose, length=12, tokenizer=KINDS[kind])
        dataset = open_dataset(data)
        batches = TrainingBatches(dataset, data, batch_size=8, seed=0)
        whole_x, whole_y, ids = batches.share(1)
        x, y, _ = batches.share(1, data_rank=1, data_degree=2)
        assert (str(x.dtype), str(y.dtype), tuple(y.shape)) == ("torch.int64", "torch.int64", (4, 12))
        assert np.array_equal(whole_x[4:], x)
        assert np.array_equal(whole_y[4:], y)
        assert np.array_equal(batches.targets(1), whole_y)
        assert np.array_equal(dataset.targets("train", ids), whole_y)
        assert whole_x.min() >= 1
        assert whole_x.max() < dataset.info.outputs
        assert dataset.info.outputs % 8 == 0

    def test_tokens_are_stored_in_four_bytes_each(
        self, prose: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        dataset = open_dataset(make_data("text", prose, length=50, tokenizer=KINDS["byte"]))
        raw = dataset.raw("train", np.arange(dataset.num_samples("train")))
        assert isinstance(raw, np.ndarray)
        assert (dataset.folder / "train.arrow").stat().st_size < raw.size * 4 * 1.1 + 1000

    @pytest.mark.parametrize(
        ("text", "source", "message"),
        [
            ("word " * 30, {}, "the train split of t.txt has 25 tokens, and a chunk needs 128 and a next"),
            ("word " * 300, {"length": 40}, "the validation split of .* has 31 tokens.*at most 30"),
            ("a", {}, "too short to split"),
            (" \n", {}, "has no text"),
            ("", {}, "has no text"),
        ],
    )
    def test_too_little_text(
        self, tmp_path: Path, text: str, source: dict[str, Any], message: str, make_data: MakeData
    ) -> None:
        (tmp_path / "t.txt").write_text(text)
        with pytest.raises(DataError, match=message):
            inspect(make_data("text", tmp_path / "t.txt", **source), "cross_entropy")

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.integers(1, 9), min_size=2, max_size=60), st.integers(1, 12))
    def test_chunks_are_the_codes_in_order(self, codes: list[int], length: int) -> None:
        chunks = cut(np.array(codes, np.int32), length)
        y = next_codes(chunks.x, chunks.following)
        assert len(chunks.x) == (len(codes) - 1) // length
        assert chunks.x.ravel().tolist() == codes[: chunks.x.size]
        assert y.ravel().tolist() == codes[1 : y.size + 1]

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.text("ab", min_size=1, max_size=30), min_size=40, max_size=60))
    def test_documents_stay_whole_and_in_order(self, documents: list[str]) -> None:
        corpus = Corpus(tuple(documents), separated=True, name="x")
        parts = divide_corpus(corpus, Split(validation=0.25, test=0.25))
        assert (*parts["train"], *parts["validation"], *parts["test"]) == corpus.documents
        assert all(parts.values())


class TestDocuments:
    @pytest.mark.parametrize("suffix", ["jsonl", "csv"])
    def test_labels_go_with_their_texts(
        self, tmp_path: Path, suffix: str, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        path = tmp_path / f"reviews.{suffix}"
        as_csv = ["label,text", *(f"{row['label']},{row['text']}" for row in REVIEWS)]
        lines = [json.dumps(row) for row in REVIEWS] if suffix == "jsonl" else as_csv
        path.write_text("\n".join(lines))
        data = make_data("text", path, data={"target": "label"})
        dataset = open_dataset(data)
        assert inspect(data, "cross_entropy") == dataset.info
        info = dataset.info
        assert (info.task, info.classes, info.outputs, info.per_step) == ("classification", ("neg", "pos"), 2, False)
        assert info.num_codes[0] % 8 == 0
        encoding = text_encoding(dataset)
        x = dataset.encoded("train", np.arange(48), encoding)
        assert x.shape == (48, *info.input_shape)
        texts = [spelled(encoding, row[row > 0]) for row in x]
        by_text = {row["text"]: row["label"] for row in REVIEWS}
        assert [by_text[text] for text in texts] == [info.classes[label] for label in dataset.targets("train")]
        assert np.bincount(dataset.targets("validation")).tolist() == [3, 3]

    def test_values_to_regress_on(self, reviews: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        dataset = open_dataset(make_data("text", reviews, data={"target": "stars"}), "mse")
        assert (dataset.info.task, dataset.info.outputs) == ("regression", 1)
        assert dataset.targets("train").dtype == np.float32

    def test_padding_is_on_the_right_alone(self, reviews: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        dataset = open_dataset(make_data("text", reviews, data={"target": "label"}))
        x = dataset.encoded("train", np.arange(48), text_encoding(dataset))
        lengths = (x > 0).sum(axis=1)
        assert (x[:, 0] > 0).all()
        assert all((row[length:] == 0).all() for row, length in zip(x, lengths, strict=True))

    def test_a_text_that_is_too_long(self, reviews: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        source = {"length": 20, "tokenizer": KINDS["byte"]}
        with pytest.raises(DataError, match=r"text 2 of reviews\.jsonl has 24 tokens, and a sample has 20") as caught:
            inspect(make_data("text", reviews, data={"target": "label"}, **source), "cross_entropy")
        assert caught.value.problems[0].path == "data.source.length"
        assert caught.value.problems[0].allowed == "a length up to 30, the longest; or truncate: true"
        dataset = open_dataset(make_data("text", reviews, data={"target": "label"}, truncate=True, **source))
        assert dataset.info.input_shape == (20,)

    def test_the_longest_text_sets_the_length(self, reviews: Path, make_data: MakeData) -> None:
        data = make_data("text", reviews, data={"target": "label"}, tokenizer=KINDS["byte"])
        assert inspect(data, "cross_entropy").input_shape == (max(len(str(row["text"])) for row in REVIEWS),)


BAD_FILES: dict[str, tuple[str, bytes, str, str]] = {
    "not UTF-8": ("a.txt", b"caf\xc3\xa9 caf\xe9 x", "data.source.path", "not UTF-8: .* at byte 9"),
    "not UTF-8 lines": ("a.jsonl", b'{"text": "\xff"}\n', "data.source.path", "not UTF-8: .* at byte 10"),
    "not UTF-8 table": ("a.csv", b"text,label\na\xfe,x\n", "data.source.path", "not UTF-8: .* at byte 12"),
    "no JSON": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": \n', "data.source.path", "line 2 of .* is no JSON"),
    "no object": ("a.jsonl", b'["text"]\n', "data.source.path", "line 1 of .* is no JSON object"),
    "deep": ("a.jsonl", b"[" * 100_000, "data.source.path", "line 1 of .* is no JSON"),
    "no such key": ("a.jsonl", b'{"txt": "a", "label": 1}\n', "data.source.column", "did you mean 'txt'"),
    "no such target": ("a.jsonl", b'{"text": "a", "lable": 1}\n', "data.target", "did you mean 'lable'"),
    "no such column": ("a.csv", b"txt,label\na,x\n", "data.source.column", "did you mean 'txt'"),
    "no text": ("a.jsonl", b'{"text": "a", "label": 1}\n\n{"label": 2}\n', "data.source.column", "no text in row 2"),
    "blank text": ("a.csv", b'text,label\na,x\n" ",y\n', "data.source.column", "no text in row 2"),
    "numbers for text": ("a.jsonl", b'{"text": 3, "label": 1}\n', "data.source.column", "holds int64, and no text"),
    "half a character": ("a.jsonl", b'{"text": "\\ud800", "label": 1}\n', "data.source.column", "different types"),
    "no label": ("a.jsonl", b'{"text": "a", "label": 1}\n{"text": "b"}\n', "data.target", "missing in 1 of 2 rows"),
    "labels of two types": (
        "a.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "b", "label": "x"}\n',
        "data.target",
        "values of different types",
    ),
    "empty": ("a.csv", b"", "data.source.path", "has no text"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_are_no_text(case: str, tmp_path: Path, make_data: MakeData) -> None:
    name, content, path, message = BAD_FILES[case]
    (tmp_path / name).write_bytes(content)
    target = {} if name == "a.txt" else {"target": "label"}
    with pytest.raises(DataError, match=message) as caught:
        inspect(make_data("text", tmp_path / name, data=target), "cross_entropy")
    assert caught.value.problems[0].path == path


def test_a_mark_at_the_front_and_line_ends_of_windows(
    tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset
) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + b"one two\r\n" * 100)
    dataset = open_dataset(make_data("text", tmp_path / "a.txt", length=9, tokenizer=KINDS["byte"]))
    raw = dataset.raw("train", np.arange(2))
    assert isinstance(raw, np.ndarray)
    assert spelled(text_encoding(dataset), raw[0]) == "one two\r\n"


class TestSpeed:
    def test_a_megabyte_takes_seconds(self, tmp_path: Path, make_data: MakeData) -> None:
        (tmp_path / "long.txt").write_text(PROSE * (1_000_000 // len(PROSE) + 1))
        data = make_data("text", tmp_path / "long.txt")
        started = time.monotonic()
        inspect(data, "cross_entropy")
        prepare(data, "cross_entropy", tmp_path / "out")
        assert time.monotonic() - started < 20

    def test_a_plan_and_its_run_tokenize_once(
        self, prose: Path, tmp_path: Path, make_data: MakeData, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        trained = TextTokenizer.trained.__func__  # type: ignore[attr-defined]
        calls: list[int] = []

        def count(cls: type[TextTokenizer], *arguments: Any, **named: Any) -> TextTokenizer:
            calls.append(1)
            result: TextTokenizer = trained(cls, *arguments, **named)
            return result

        monkeypatch.setattr(TextTokenizer, "trained", classmethod(count))
        data = make_data("text", prose, length=16)
        info = inspect(data, "cross_entropy")
        assert prepare(data, "cross_entropy", tmp_path / "out") == info
        assert len(calls) == 1
        assert _read_text.cache_info().currsize == 0  # nothing stays in memory
        prose.write_text(PROSE[::-1])
        inspect(data, "cross_entropy")
        assert len(calls) == 2

    def test_importing_the_package_imports_no_tokenizers(self) -> None:
        code = "import sys, jobs.data; print('tokenizers' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


class TestSamplesToPredictOn:
    @pytest.fixture
    def encoding(self, reviews: Path, make_data: MakeData, open_dataset: OpenDataset) -> TextEncoding:
        source = {"length": 30, "tokenizer": KINDS["byte"]}
        encoding = text_encoding(open_dataset(make_data("text", reviews, data={"target": "label"}, **source)))
        through_json = Encoding.from_json(json.loads(json.dumps(encoding.to_json())))
        assert through_json == encoding
        assert isinstance(through_json, TextEncoding)
        return through_json

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("a.txt", b"a story\r\nanother\n"),
            ("a.jsonl", b'{"text": "a story"}\n\n{"text": "another", "label": "pos"}\n'),
            ("a.csv", b"id,text\n1,a story\n2,another\n"),
        ],
    )
    def test_of_every_kind(self, name: str, content: bytes, tmp_path: Path, encoding: TextEncoding) -> None:
        (tmp_path / name).write_bytes(content)
        x = encoding.encode(read_samples(tmp_path / name, encoding))
        assert (x.shape, x.dtype) == ((2, 30), np.int64)
        assert [spelled(encoding, row[row > 0]) for row in x] == ["a story", "another"]

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.txt", b"a\n\nb\n", "text 2 of .*a.txt has no tokens"),
            ("a.txt", b"a\n" + b"long " * 10, "text 2 of .*a.txt has 50 tokens, and a sample has 30"),
            ("a.txt", b"\xff", "not UTF-8"),
            ("a.md", b"a", "no kind that holds text"),
            ("a.jsonl", b'{"txt": "a"}', "did you mean 'txt'"),
        ],
    )
    def test_what_can_not_be_read(
        self, name: str, content: bytes, message: str, tmp_path: Path, encoding: TextEncoding
    ) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            read_samples(tmp_path / name, encoding)
        assert caught.value.problems[0].path == "--data"

    def test_of_a_long_prompt_the_end_counts(
        self, prose: Path, tmp_path: Path, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        encoding = text_encoding(open_dataset(make_data("text", prose, length=8, tokenizer=KINDS["byte"])))
        (tmp_path / "prompts.txt").write_text("to be or not to be\nbe\n")
        prompts = read_samples(tmp_path / "prompts.txt", encoding)
        assert isinstance(prompts, np.ndarray)
        assert [spelled(encoding, row[row > 0]) for row in prompts] == ["ot to be", "be"]
