"""Tokenizers: trained on the training split alone, the same anywhere, or loaded from a file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sources import MakeData, OpenDataset
from small_texts import KINDS, PROSE, text_encoding

from jobs.data import fingerprint, inspect
from jobs.data.encodings import Encoding, TextEncoding
from jobs.data.text.tokens import TextTokenizer
from jobs.errors import ArtifactError, DataError
from jobs.spec.data import Tokenizer


def tokenized() -> str:
    """Tokenizers of every kind and what they make of the same text, as JSON."""
    texts = PROSE.splitlines(keepends=True)
    trained = [TextTokenizer.trained(Tokenizer.model_validate(kind), texts, reserved=1) for kind in KINDS.values()]
    codes = [[sample.tolist() for sample in each.encode(texts, special=False)] for each in trained]
    return json.dumps([[each.to_json() for each in trained], codes])


class TestTokenizers:
    def test_the_same_text_gives_the_same_tokenizer_anywhere(self) -> None:
        """In another process too, with another seed of its hashes and one thread."""
        done = subprocess.run(
            [sys.executable, "-c", "import test_tokenizers; print(test_tokenizers.tokenized())"],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=Path(__file__).parent,
            env={"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"},
        )
        assert done.stdout == tokenized() + "\n", done.stderr

    @pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
    @settings(deadline=None, max_examples=25)
    @given(text=st.text(alphabet="abc \n.éß中🙂", min_size=1, max_size=40))
    def test_no_text_is_lost(self, kind: str, text: str) -> None:
        section = Tokenizer.model_validate(KINDS[kind])
        tokenizer = TextTokenizer.trained(section, ["abc abc. \n", "é ß 中🙂"], reserved=1)
        codes = np.concatenate(tokenizer.encode([text], special=False))
        assert codes.min() >= 1
        assert tokenizer._decode((codes - 1).tolist()) == text

    @pytest.mark.parametrize(("kind", "size"), [("bpe", 300), ("word", 20), ("char", 12)])
    def test_a_vocabulary_has_its_size(self, kind: str, size: int) -> None:
        section = Tokenizer.model_validate({"kind": kind, "vocab_size": size})
        tokenizer = TextTokenizer.trained(section, PROSE.splitlines(), reserved=1)
        assert tokenizer.num_codes == size
        assert max(codes.max() for codes in tokenizer.encode([PROSE], special=False)) < size

    def test_what_is_rare_is_unknown(self) -> None:
        section = Tokenizer.model_validate({"kind": "char", "vocab_size": 4})
        tokenizer = TextTokenizer.trained(section, ["aaabbc"], reserved=1)
        assert tokenizer.encode(["abcd"], special=False)[0].tolist() == [2, 3, 1, 1]

    def test_text_that_spells_a_special_token_is_text(self) -> None:
        tokenizer = TextTokenizer.trained(Tokenizer(), ["<pad> <unk> <s> are words"], reserved=1)
        codes = tokenizer.encode(["<pad><unk>"], special=True)[0]
        assert tokenizer._decode((codes - 1).tolist()) == "<pad><unk>"

    def test_damage_in_an_artifact_is_told(self, prose: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
        document = text_encoding(open_dataset(make_data("text", prose, length=16))).to_json()
        document["tokenizer"]["model"]["type"] = "Pickle"
        encoding = Encoding.from_json(document)
        assert isinstance(encoding, TextEncoding)
        with pytest.raises(ArtifactError, match="the tokenizer is damaged"):
            encoding.tokenize(["text"], "file", "--data")


def bert_like(path: Path, *, padding: bool) -> None:
    """A tokenizer.json as it comes with a pretrained model: WordPiece, with tokens put around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = (["[PAD]"] if padding else []) + ["[UNK]", "[CLS]", "[SEP]", "good", "story", "number"]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = [(token, words.index(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    tokenizer.add_special_tokens([word for word in words if word.startswith("[")])
    tokenizer.enable_padding(length=512)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(path))


class TestLoaded:
    @pytest.mark.parametrize("padding", [True, False])
    def test_ids_stay_where_0_is_padding(
        self, reviews: Path, tmp_path: Path, padding: bool, make_data: MakeData, open_dataset: OpenDataset
    ) -> None:
        bert_like(tmp_path / "tokenizer.json", padding=padding)
        source = {"tokenizer": {"file": str(tmp_path / "tokenizer.json")}}
        dataset = open_dataset(make_data("text", reviews, data={"target": "label"}, **source))
        assert dataset.info.num_codes == (7,)
        encoding = text_encoding(dataset)
        row = encoding.tokenize(["good [PAD] story"], "x", "--data")[0]
        # [CLS] good story [SEP]; a padding that is spelled out is none.
        known = row[row > 0].tolist()
        assert known == [2, 4, 5, 3] if padding else known[:2] == [2, 4]

    def test_where_it_lies_makes_no_difference_but_what_it_says_does(
        self, reviews: Path, tmp_path: Path, make_data: MakeData
    ) -> None:
        prints = []
        for name, padding in (("a.json", True), ("b.json", True), ("c.json", False)):
            bert_like(tmp_path / name, padding=padding)
            source = {"tokenizer": {"file": str(tmp_path / name)}}
            data = make_data("text", reviews, data={"target": "label"}, **source)
            prints.append(fingerprint(data, "cross_entropy"))
        assert prints[0] == prints[1] != prints[2]

    @pytest.mark.parametrize("content", [b"{", b"[]", b'{"version": "1.0"}', b"\xff\xfe", b"null"])
    def test_a_damaged_file(self, reviews: Path, tmp_path: Path, content: bytes, make_data: MakeData) -> None:
        (tmp_path / "bad.json").write_bytes(content)
        source = {"tokenizer": {"file": str(tmp_path / "bad.json")}}
        with pytest.raises(DataError, match="damaged or no tokenizer") as caught:
            inspect(make_data("text", reviews, data={"target": "label"}, **source), "cross_entropy")
        assert caught.value.problems[0].path == "data.source.tokenizer.file"

    def test_a_tokenizer_without_a_word_for_all(self, reviews: Path, tmp_path: Path, make_data: MakeData) -> None:
        from tokenizers import Tokenizer, models

        Tokenizer(models.WordLevel({"good": 0}, "<none>")).save(str(tmp_path / "words.json"))
        source = {"tokenizer": {"file": str(tmp_path / "words.json")}}
        with pytest.raises(DataError, match="can't encode all of the text"):
            inspect(make_data("text", reviews, data={"target": "label"}, **source), "cross_entropy")


@pytest.mark.parametrize("kind", ["bpe", "word"])
def test_a_token_reads_as_what_it_adds(kind: str, prose: Path, make_data: MakeData, open_dataset: OpenDataset) -> None:
    """A word after another comes with the space between them; half a character is no text yet."""
    encoding = text_encoding(open_dataset(make_data("text", prose, length=8, tokenizer=KINDS[kind])))
    codes = encoding.text_tokenizer.encode(["to be"], special=False)[0]
    assert encoding.continuation(codes[:1], int(codes[-1])).endswith("e")
    if kind == "word":
        assert encoding.continuation(codes[:1], int(codes[-1])) == " be"
    else:
        first, _ = encoding.text_tokenizer.encode(["é"], special=False)[0]
        assert encoding.continuation(codes[:0], int(first)) == "\N{REPLACEMENT CHARACTER}"
