import time

import numpy as np
import pytest
from sklearn import metrics as sk

from jobs.errors import DataError
from jobs.measure import details, evaluate, interval, paired_delta

RNG = np.random.default_rng(0)
LABELS = RNG.integers(4, size=500)
LOGITS = RNG.standard_normal((500, 4)).astype(np.float32)
LOGITS[np.arange(500), LABELS] += 1.0
BINARY = RNG.integers(2, size=300)
LOGIT = (RNG.standard_normal((300, 1)) + BINARY[:, None]).astype(np.float32).round(1)  # rounded: ties
VALUES = RNG.standard_normal(200).astype(np.float32)
PREDICTED = (VALUES + 0.3 * RNG.standard_normal(200)).astype(np.float32)[:, None]


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-logits.astype(np.float64)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", sk.accuracy_score(LABELS, LOGITS.argmax(1))),
        ("f1_macro", sk.f1_score(LABELS, LOGITS.argmax(1), average="macro")),
        ("roc_auc", sk.roc_auc_score(LABELS, softmax(LOGITS), multi_class="ovr")),
        ("log_loss", sk.log_loss(LABELS, softmax(LOGITS))),
    ],
)
def test_many_classes_agree_with_scikit_learn(name: str, expected: float) -> None:
    assert evaluate(name, LOGITS, LABELS) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", sk.accuracy_score(BINARY, LOGIT[:, 0] > 0)),
        ("f1_macro", sk.f1_score(BINARY, LOGIT[:, 0] > 0, average="macro")),
        ("roc_auc", sk.roc_auc_score(BINARY, LOGIT[:, 0])),
        ("log_loss", sk.log_loss(BINARY, sigmoid(LOGIT[:, 0]))),
    ],
)
def test_one_logit_agrees_with_scikit_learn(name: str, expected: float) -> None:
    assert evaluate(name, LOGIT, BINARY.astype(np.float32)) == pytest.approx(expected, abs=1e-9)


def test_regression_agrees_with_scikit_learn() -> None:
    assert evaluate("rmse", PREDICTED, VALUES) == pytest.approx(sk.root_mean_squared_error(VALUES, PREDICTED), rel=1e-6)
    assert evaluate("mae", PREDICTED, VALUES) == pytest.approx(sk.mean_absolute_error(VALUES, PREDICTED), rel=1e-6)
    found = details(PREDICTED, VALUES, ())
    assert found["r2"] == pytest.approx(sk.r2_score(VALUES, PREDICTED), rel=1e-6)
    assert details(PREDICTED, np.ones(200), ())["r2"] is None


def test_certain_predictions_neither_overflow_nor_tie() -> None:
    certain = np.array([[900.0, -900.0], [-900.0, 900.0], [-901.0, 901.0]])
    assert evaluate("log_loss", certain, np.array([0, 1, 1])) == 0.0
    assert evaluate("log_loss", certain, np.array([1, 1, 1])) == pytest.approx(600.0)
    assert evaluate("roc_auc", certain, np.array([0, 0, 1])) == 1.0


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "roc_auc", "log_loss"])
def test_outputs_that_are_not_finite_have_no_metric(name: str) -> None:
    broken = LOGITS.copy()
    broken[3, 1] = np.nan
    assert np.isnan(evaluate(name, broken, LABELS))


def test_roc_auc_of_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="all samples are of one class"):
        evaluate("roc_auc", LOGITS, np.zeros(500, dtype=np.int64))


def test_mismatched_shapes_and_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="do not go with"):
        evaluate("accuracy", LOGITS, LABELS[:-1])
    with pytest.raises(ValueError, match="unknown metric"):
        evaluate("acuracy", LOGITS, LABELS)


def test_details_of_classes() -> None:
    found = details(LOGITS, LABELS, ("a", "b", "c", "d"))
    precision, recall, f1, support = sk.precision_recall_fscore_support(LABELS, LOGITS.argmax(1))
    assert found["confusion"] == sk.confusion_matrix(LABELS, LOGITS.argmax(1)).tolist()
    assert found["classes"] == ["a", "b", "c", "d"]
    assert found["precision"] == pytest.approx(precision)
    assert found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(f1)
    assert found["support"] == support.tolist()


def test_details_of_a_class_that_never_occurs_are_zero() -> None:
    found = details(np.array([[1.0, 0.0, 0.0]]), np.array([0]), ("a", "b", "c"))
    assert [found[key][1] for key in ("precision", "recall", "f1", "support")] == [0.0, 0.0, 0.0, 0]


def test_wilson_interval() -> None:
    # Wilson (1927) for 8 of 10: 0.4902 to 0.9433.
    outputs = np.eye(2)[np.array([0] * 8 + [1] * 2)]
    found = interval("accuracy", outputs, np.zeros(10, dtype=np.int64), split="validation")
    assert found.ci95 == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert (found.value, found.n, found.split) == (0.8, 10, "validation")
    perfect = interval("accuracy", outputs[:8], np.zeros(8, dtype=np.int64), split="test")
    assert perfect.ci95[0] < perfect.ci95[1] == 1.0


@pytest.mark.parametrize("name", ["f1_macro", "roc_auc", "log_loss"])
def test_bootstrap_intervals_hold_the_value_and_repeat(name: str) -> None:
    first = interval(name, LOGITS, LABELS, split="test", seed=3)
    assert first.ci95[0] < first.value < first.ci95[1]
    assert first == interval(name, LOGITS, LABELS, split="test", seed=3)
    assert first != interval(name, LOGITS, LABELS, split="test", seed=4)


def test_a_bootstrap_interval_is_as_wide_as_the_normal_one() -> None:
    errors = np.abs(PREDICTED[:, 0].astype(np.float64) - VALUES)
    low, high = interval("mae", PREDICTED, VALUES, split="test").ci95
    assert high - low == pytest.approx(2 * 1.96 * errors.std() / np.sqrt(200), rel=0.1)


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "roc_auc", "log_loss"])
def test_better_is_positive_whichever_way_the_metric_goes(name: str) -> None:
    worse = LOGITS + np.random.default_rng(1).standard_normal(LOGITS.shape) * 2.0
    better = paired_delta(name, LOGITS, worse, LABELS)
    assert 0.0 < better.ci95[0] < better.value < better.ci95[1]
    swapped = paired_delta(name, worse, LOGITS, LABELS)
    assert swapped.value == pytest.approx(-better.value)
    assert swapped.ci95 == (pytest.approx(-better.ci95[1]), pytest.approx(-better.ci95[0]))


def test_the_same_outputs_differ_by_exactly_nothing() -> None:
    for name in ("f1_macro", "roc_auc", "log_loss"):
        delta = paired_delta(name, LOGITS, LOGITS, LABELS)
        assert (delta.value, delta.ci95) == (0.0, (0.0, 0.0))


def test_agreement_on_every_sample_still_leaves_a_doubt_that_shrinks_with_n() -> None:
    for n in (50, 500):
        delta = paired_delta("accuracy", LOGITS[:n], LOGITS[:n] * 2.0, LABELS[:n])
        assert delta.value == 0.0
        assert delta.ci95 == (pytest.approx(-1.96 / (n + 2), rel=1e-3), pytest.approx(1.96 / (n + 2), rel=1e-3))


def test_the_interval_of_an_accuracy_difference_agrees_with_the_bootstrap() -> None:
    other = LOGITS + np.random.default_rng(1).standard_normal(LOGITS.shape)
    difference = (other.argmax(1) == LABELS).astype(float) - (LOGITS.argmax(1) == LABELS)
    rng = np.random.default_rng(2)
    replicates = [difference[rng.integers(500, size=500)].mean() for _ in range(2000)]
    expected = np.percentile(replicates, [2.5, 97.5])
    assert paired_delta("accuracy", other, LOGITS, LABELS).ci95 == pytest.approx(tuple(expected), abs=0.005)


def test_pairing_is_narrower_than_two_intervals() -> None:
    close = LOGITS + np.random.default_rng(1).standard_normal(LOGITS.shape) * 0.05
    low, high = paired_delta("log_loss", close, LOGITS, LABELS).ci95
    alone_low, alone_high = interval("log_loss", LOGITS, LABELS, split="test").ci95
    assert (high - low) < 0.2 * (alone_high - alone_low)


@pytest.mark.parametrize("name", ["accuracy", "f1_macro", "roc_auc", "log_loss"])
def test_ten_thousand_samples_take_moments(name: str) -> None:
    rng = np.random.default_rng(0)
    labels, logits = rng.integers(10, size=10_000), rng.standard_normal((10_000, 10))
    started = time.perf_counter()
    paired_delta(name, logits, logits[:, ::-1], labels)
    assert time.perf_counter() - started < 5.0  # 0.1 to 0.7 s on one idle core


# Language models: three columns a text, from `condense`


def language_columns(num_texts: int, seed: int = 0, spread: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Columns and targets of texts of 5 to 20 tokens; every text has a difficulty of its own."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 21, size=num_texts)
    losses = lengths * np.clip(2.0 + spread * rng.standard_normal(num_texts), 0.1, None)
    hits = rng.binomial(lengths, np.clip(0.4 + 0.4 * spread * rng.standard_normal(num_texts), 0.0, 1.0))
    targets = np.where(np.arange(20) < lengths[:, None], 1, -100)
    return np.stack([losses, hits, lengths], axis=1), targets


COLUMNS, NEXT_TOKENS = language_columns(400)


def test_metrics_of_a_language_model_are_of_its_tokens() -> None:
    losses, hits, tokens = COLUMNS.sum(axis=0)
    assert evaluate("log_loss", COLUMNS, NEXT_TOKENS) == pytest.approx(losses / tokens)
    assert evaluate("accuracy", COLUMNS, NEXT_TOKENS) == pytest.approx(hits / tokens)
    assert evaluate("perplexity", COLUMNS, NEXT_TOKENS) == pytest.approx(np.exp(losses / tokens))
    assert details(COLUMNS, NEXT_TOKENS, ()) == {
        "perplexity": pytest.approx(np.exp(losses / tokens)),
        "accuracy": pytest.approx(hits / tokens),
        "bits_per_token": pytest.approx(np.log2(np.exp(losses / tokens))),
        "tokens": tokens,
        "samples": 400,
    }
    with pytest.raises(ValueError, match="no metric of language models"):
        evaluate("f1_macro", COLUMNS, NEXT_TOKENS)


def test_a_hopeless_or_broken_language_model_has_no_finite_perplexity() -> None:
    hopeless, broken = COLUMNS.copy(), COLUMNS.copy()
    hopeless[:, 0] = 1e6
    broken[3, 0] = np.nan
    assert evaluate("perplexity", hopeless, NEXT_TOKENS) == np.inf
    assert np.isnan(evaluate("perplexity", broken, NEXT_TOKENS))


def test_intervals_of_tokens_know_that_those_of_a_text_belong_together() -> None:
    found = interval("accuracy", COLUMNS, NEXT_TOKENS, split="test")
    shares = COLUMNS[:, 1] - found.value * COLUMNS[:, 2]  # residuals of the ratio, a text each
    expected = 2 * 1.96 * np.sqrt((shares**2).sum()) / COLUMNS[:, 2].sum()
    assert found.ci95[1] - found.ci95[0] == pytest.approx(expected, rel=0.1)
    as_if_independent = 2 * 1.96 * np.sqrt(found.value * (1 - found.value) / COLUMNS[:, 2].sum())
    assert expected > 1.3 * as_if_independent
    assert found.n == 400


def test_a_lower_perplexity_is_a_positive_difference_paired_text_by_text() -> None:
    worse = COLUMNS.copy()
    worse[:, 0] *= 1.02 + 0.01 * np.random.default_rng(1).standard_normal(400)
    delta = paired_delta("perplexity", COLUMNS, worse, NEXT_TOKENS)
    assert 0.0 < delta.ci95[0] < delta.value < delta.ci95[1]
    assert delta.value == pytest.approx(
        evaluate("perplexity", worse, NEXT_TOKENS) - evaluate("perplexity", COLUMNS, NEXT_TOKENS)
    )
    low, high = interval("perplexity", COLUMNS, NEXT_TOKENS, split="test").ci95
    assert delta.ci95[1] - delta.ci95[0] < 0.2 * (high - low)
    assert paired_delta("accuracy", COLUMNS, worse, NEXT_TOKENS).value == 0.0
