"""Arrays in Arrow IPC files: written once, memory-mapped by every process that reads them."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from jobs.data.raw import Array
from jobs.errors import DataError


def write_arrays(path: Path, arrays: dict[str, Array]) -> None:
    """Writes arrays of one length, as one uncompressed record batch.

    Rank 1 becomes a plain column, any higher rank a FixedSizeList of the flattened rest.
    """
    columns = {name: _to_arrow(array) for name, array in arrays.items()}
    batch = pa.RecordBatch.from_pydict(columns)
    # A Python file, because its errors carry the errno that tells a full disk from others.
    with path.open("wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def open_arrays(path: Path) -> dict[str, Array]:
    """Read-only views of the memory map: rank 1, or (rows, list size). Raises DataError for a damaged file."""
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            if reader.num_record_batches != 1:
                raise DataError.at("", f"{path} is damaged: {reader.num_record_batches} record batches instead of 1")
            batch = reader.get_batch(0)
            batch.validate()
    except (pa.ArrowException, OSError) as error:
        raise DataError.at("", f"{path} is damaged: {error}") from error
    return {name: _to_numpy(batch.column(name), path) for name in batch.schema.names}


def _to_arrow(array: Array) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    flat = np.ascontiguousarray(array).reshape(-1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat), array.size // len(array))


def _to_numpy(column: pa.Array, path: Path) -> Array:
    if column.null_count:
        raise DataError.at("", f"{path} is damaged: it has nulls, which are never written")
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=True)
    values: Array = column.values.to_numpy(zero_copy_only=True)
    return values.reshape(len(column), column.type.list_size)
