"""Writes a SYNTHETIC table in the format of credit-risk data: mixed columns, missing values, rare defaults.

python examples/synthetic_credit.py data/synthetic-credit.csv [--rows 4000]
"""

import argparse
import csv
from pathlib import Path

import numpy as np

COLUMNS = ("customer", "age", "income", "housing", "job", "district", "amount", "duration", "default")


def write_table(path: Path, num_rows: int, seed: int = 0) -> None:
    """Defaults follow from duration, amount against income, housing and district, with noise."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for customer in range(num_rows):
            age, income = int(rng.integers(18, 80)), float(rng.lognormal(10.0, 0.5))
            housing = str(rng.choice(["own", "rent", "free"], p=[0.6, 0.3, 0.1]))
            job = str(rng.choice(["skilled", "unskilled", "management", ""], p=[0.5, 0.25, 0.15, 0.1]))
            district, duration = int(rng.integers(1, 9)), int(rng.integers(6, 61))
            amount = float(rng.lognormal(8.0, 0.7))
            risk = (
                -3.0
                + 0.04 * duration
                + 3.0 * amount / income
                + 0.8 * (housing == "rent")
                + 0.6 * (district in (3, 7))
                - 0.02 * (age - 45)
                + float(rng.normal(0.0, 0.8))
            )
            shown_income = "" if rng.random() < 0.08 else f"{income:.2f}"
            shown_age = "NA" if rng.random() < 0.03 else age
            default = "yes" if risk > 0.4 else "no"
            writer.writerow(
                [customer, shown_age, shown_income, housing, job, district, f"{amount:.2f}", duration, default]
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, default=4000)
    arguments = parser.parse_args()
    write_table(arguments.path, arguments.rows)
