"""What is wrong with text, language models, and tables of codes."""

from typing import Any

from tests.jobs.refusals.refused import Cases, space

TEXT = {"kind": "text", "path": "reviews.jsonl"}
PLAIN = {"kind": "text", "path": "prose.txt"}
TABLE = {"kind": "csv", "path": "ratings.csv"}


def tokenizer(**keys: Any) -> dict[str, Any]:
    return {"data.source": {**TEXT, "tokenizer": keys}}


TEXTS_AND_TABLES: Cases = {
    # Text.
    "text of an unknown kind": (
        {"data.source": {"kind": "text", "path": "prose.md"}},
        "data.source.path",
        ("got 'prose.md'", ".txt, .jsonl, .csv"),
    ),
    "a column of plain text": (
        {"data.source": {**PLAIN, "column": "text"}},
        "data.source.column",
        ("no columns", "null"),
    ),
    "no column of a table": ({"data.source": {**TEXT, "column": None}}, "data.source.column", (".jsonl",)),
    "a target in plain text": ({"data.source": PLAIN, "data.target": "label"}, "data.target", ("no columns",)),
    "the text as target": ({"data.source": TEXT, "data.target": "text"}, "data.target", ("another column",)),
    "no tokens a sample": ({"data.source": {**TEXT, "length": 0}}, "data.source.length", ("at least 1",)),
    "some of the chunks": (
        {"data.source": TEXT, "data.split.train": 100},
        "data.split.train",
        ("language model", "null"),
    ),
    "truncated chunks": (
        {"data.source": {**TEXT, "truncate": True}},
        "data.source.truncate",
        ("nothing to truncate", "false"),
    ),
    "a misspelt tokenizer": (
        tokenizer(kind="bqe"),
        "data.source.tokenizer.kind",
        ("word, byte, char", "did you mean 'bpe'"),
    ),
    "a tokenizer trained and loaded": (
        tokenizer(kind="bpe", file="t.json"),
        "data.source.tokenizer.kind",
        ("exclude each other",),
    ),
    "a tokenizer of neither": (tokenizer(kind=None), "data.source.tokenizer.kind", ("a kind to train, or a file",)),
    "bytes that do not fit": (tokenizer(vocab_size=257), "data.source.tokenizer.vocab_size", ("at least 258",)),
    "fewer bytes than there are": (
        tokenizer(kind="byte", vocab_size=100),
        "data.source.tokenizer.vocab_size",
        ("byte tokenizer", "null"),
    ),
    "a size for a loaded tokenizer": (
        tokenizer(file="t.json", vocab_size=100),
        "data.source.tokenizer.vocab_size",
        ("loaded",),
    ),
    # Language models.
    "a language model under mse": ({"data.source": PLAIN, "train.loss": "mse"}, "train.loss", ("cross_entropy",)),
    "a language model under bce": ({"data.source": TEXT, "train.loss": "bce"}, "train.loss", ("cross_entropy",)),
    "a language model's f1": (
        {"data.source": PLAIN, "metric": "f1_macro"},
        "metric",
        ("language model", "perplexity, log_loss, accuracy"),
    ),
    "a language model's weights": (
        {"data.source": PLAIN, "train.class_weights": "balanced"},
        "train.class_weights",
        ("no classes",),
    ),
    "a language model's direction": (
        {"data.source": PLAIN, **space("train.optimizer.lr", {"choice": [0.1]}, objectives={"metric": "max"})},
        "search.objectives.metric",
        ("perplexity", "min"),
    ),
    "the perplexity of images": ({"metric": "perplexity"}, "metric", ("cross_entropy", "accuracy, f1_macro")),
    "the perplexity of labelled text": (
        {"data.source": TEXT, "data.target": "label", "metric": "perplexity"},
        "metric",
        ("got 'perplexity'",),
    ),
    # Codes.
    "a recommender of features": (
        {"data.source": TABLE, "data.target": "rating", "data.categories": "one_hot", "model": {"name": "recommender"}},
        "data.categories",
        ("got 'one_hot'", "codes"),
    ),
    "codes for a perceptron": (
        {"data.source": TABLE, "data.target": "rating", "data.categories": "codes", "model": {"name": "mlp"}},
        "data.categories",
        ("mlp", "one_hot, or model recommender"),
    ),
    "misspelt categories": ({"data.categories": "onehot"}, "data.categories", ("did you mean 'one_hot'",)),
    "a delimiter of three": (
        {"data.source": {**TABLE, "delimiter": ":::"}, "data.target": "rating"},
        "data.source.delimiter",
        ("at most 2",),
    ),
    "a column without a name": (
        {"data.source": {**TABLE, "columns": ["user", ""]}, "data.target": "rating"},
        "data.source.columns.1",
        ("at least 1",),
    ),
}
