"""An archive for storage and transfer: a sparse model with shared weights, entropy coded, restored bit for bit."""

from jobs.compress.pack.archive import FILES, pack_files, restore, unpack

__all__ = ["FILES", "pack_files", "restore", "unpack"]
