"""What is wrong with pruning, low rank, quantization and packs."""

from tests.jobs.refusals.refused import Cases

COMPRESSIONS: Cases = {
    # Pruning.
    "a ratio beside n:m": (
        {"compress.prune": {"method": "nm", "ratio": 0.6}},
        "compress.prune.ratio",
        ("2:4 removes a share of 0.5", "leave it out"),
    ),
    "n:m in steps": ({"compress.prune": {"method": "nm", "steps": 3}}, "compress.prune.steps", ("at once",)),
    "n without m's method": ({"compress.prune.n": 1}, "compress.prune.n", ("method: nm",)),
    "n:m across layers": (
        {"compress.prune": {"method": "nm", "global_pruning": True}},
        "compress.prune.global_pruning",
        ("the same share",),
    ),
    "importance of single weights": (
        {"compress.prune": {"method": "magnitude", "importance": "taylor"}},
        "compress.prune.importance",
        ("got 'taylor'", "method: structured"),
    ),
    "heads of single weights": (
        {"compress.prune": {"method": "magnitude", "what": ["heads"]}},
        "compress.prune.what",
        ("single weights",),
    ),
    "a misspelt part": (
        {"compress.prune.what": ["head"]},
        "compress.prune.what.0",
        ("neurons", "did you mean 'heads'"),
    ),
    "a part twice": ({"compress.prune.what": ["heads", "heads"]}, "compress.prune.what", ("each part once",)),
    "misspelt protection": ({"compress.prune.protect": "atuo"}, "compress.prune.protect", ("did you mean 'auto'",)),
    "two measures of rank": (
        {"compress.low_rank": {"energy": 0.9, "rank_ratio": 0.5}},
        "compress.low_rank.energy",
        ("rank_ratio or energy",),
    ),
    "a method that contradicts": (
        {
            "compress.prune": {"importance": "taylor"},
            "search": {"space": {"compress.prune.method": {"choice": ["structured", "magnitude"]}}},
        },
        "search.space.compress.prune.method",
        ("compress.prune.importance", "got 'magnitude'"),
    ),
    # Quantization.
    "qat without its scheme": (
        {"compress.quantize": {"schemes": ["fp16"], "qat": {"epochs": 2}}},
        "compress.quantize.qat",
        ("goes with the scheme int8_qat", "null"),
    ),
    "a search of variants without its scheme": (
        {"compress.quantize": {"schemes": ["fp16"], "static": {"max_variants": 2}}},
        "compress.quantize.static",
        ("goes with the scheme int8_static",),
    ),
    "no epoch of qat": (
        {"compress.quantize": {"schemes": ["int8_qat"], "qat": {"epochs": 0}}},
        "compress.quantize.qat.epochs",
        ("at least 1", "got 0"),
    ),
    "a misspelt key of qat": (
        {"compress.quantize": {"schemes": ["int8_qat"], "qat": {"epoch": 1}}},
        "compress.quantize.qat.epoch",
        ("did you mean 'epochs'",),
    ),
    "too many variants": (
        {"compress.quantize": {"schemes": ["int8_static"], "static": {"max_variants": 99}}},
        "compress.quantize.static.max_variants",
        ("at most 32",),
    ),
    "too few samples to compare on": (
        {"compress.quantize": {"schemes": ["int8_static"], "static": {"held_out": 4}}},
        "compress.quantize.static.held_out",
        ("at least 16",),
    ),
    "no time for variants": (
        {"compress.quantize": {"schemes": ["int8_static"], "static": {"seconds": 0}}},
        "compress.quantize.static.seconds",
        ("above 0",),
    ),
    "a misspelt scheme": (
        {"compress.quantize": {"schemes": ["int8_statc"]}},
        "compress.quantize.schemes.0",
        ("did you mean 'int8_static'",),
    ),
    "one scheme twice": (
        {"compress.quantize": {"schemes": ["fp16", "fp16"]}},
        "compress.quantize.schemes",
        ("listed twice",),
    ),
    "too few calibration samples": ({"data.split.calibration": 8}, "data.split.calibration", ("at least 16",)),
    "a target without instructions": ({"compress.target": {"name": "x"}}, "compress.target.instructions", ()),
    # Packs.
    **{
        f"a sparsity of {value}": ({"compress.pack.sparsity": value}, "compress.pack.sparsity", (words,))
        for value, words in ((1.0, "below 1"), (-0.1, "at least 0"), ("high", "a number"))
    },
    **{
        f"{key} of {value}": ({f"compress.pack.{key}": value}, f"compress.pack.{key}", (words,))
        for key in ("codebook_bits", "conv_bits")
        for value, words in ((0, "at least 1"), (9, "at most 8"), (4.5, "a whole number"))
    },
    "a misspelt key of a pack": (
        {"compress.pack": {"sparsty": 0.9}},
        "compress.pack.sparsty",
        ("did you mean 'sparsity'",),
    ),
    "epochs below 0 for a pack": (
        {"compress.pack.recover.epochs": -1},
        "compress.pack.recover.epochs",
        ("at least 0",),
    ),
}
