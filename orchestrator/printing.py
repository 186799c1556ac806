"""What commands print: text for people, or one JSON document."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import typer


def show(document: Any, lines: Sequence[str], as_json: bool) -> None:
    """Prints the document, or the lines that say the same."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False) if as_json else "\n".join(lines))


def time_text(milliseconds: int | None) -> str:
    """A time of the service, in UTC; empty for none."""
    if milliseconds is None:
        return ""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines, each column as wide as its widest entry.

    >>> columns([("a", "bc"), ("def", "g")])
    ['a    bc', 'def  g']
    """
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in rows]
