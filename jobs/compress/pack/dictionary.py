"""What the text of a pack most often holds, so that a pack need not: a preset dictionary for zstd.

Phrases of recipes, of safetensors headers and of graphs, as small models of all families have them. It is part of
version 1 of the format: with one byte changed no pack can be read, so a change is a new version.
"""

from pathlib import Path

DICTIONARY = (Path(__file__).parent / "dictionary.bin").read_bytes()
