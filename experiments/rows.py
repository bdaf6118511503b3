"""Where experiments keep what they measured: one row a training run in a CSV file of experiments/results.

Rows carry a fingerprint of the sizes they were made with, so that runs of other sizes never mix, and an experiment that
is started again goes on where it stopped.
"""

import argparse
import csv
import hashlib
import json
from pathlib import Path
from typing import Any

import pandas as pd


class Rows:
    """The rows of one experiment with one choice of sizes."""

    def __init__(self, name: str, sizes: dict[str, Any]):
        self.path = Path(__file__).parent / "results" / f"{name}.csv"
        self.sizes = hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:8]

    def table(self) -> pd.DataFrame:
        """All that are there."""
        if not self.path.exists():
            return pd.DataFrame({"sizes": []})
        rows = pd.read_csv(self.path)
        return rows[rows["sizes"] == self.sizes]

    def has(self, **which: Any) -> bool:
        """Whether there is a row with these entries."""
        rows = self.table()
        return bool(len(rows)) and bool((rows[list(which)] == pd.Series(which)).all(1).any())

    def add(self, row: dict[str, Any]) -> None:
        """Write one more."""
        row = {"sizes": self.sizes, **row}
        print(row, flush=True)
        self.path.parent.mkdir(exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, row, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)


def add_sizes(parser: argparse.ArgumentParser, sizes: dict[str, Any]) -> None:
    """An option for each size, with its usual value."""
    for name, value in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)


def chosen(options: argparse.Namespace, sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes as they were given."""
    return {name: getattr(options, name) for name in sizes}
