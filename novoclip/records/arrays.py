"""Tables of arrays: of one array, of a mapping of arrays, and of files that NumPy wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
import zipfile

import numpy as np

from novoclip.records.record import RecordError
from novoclip.records.table import Table


def tables_of_array(values: Any, name: str = "the array") -> list[Table]:
    """Return the Table of one array of norms."""
    return tables_of_mapping({"grad_norm": values}, name)


def tables_of_mapping(columns: Mapping[Any, Any], name: str = "the mapping") -> list[Table]:
    """Return the Table of arrays by name.

    Raises:
      RecordError: if a column is not a 1-D array of numbers, or if columns differ in length.
    """
    cells: dict[str, list[float | None]] = {}
    for key, values in columns.items():
        array = _numbers(values)
        if array is None or array.ndim != 1:
            got = type(values).__name__ if array is None else f"an array of shape {array.shape}"
            msg = f"{name}: {key!r} must be a 1-D array of numbers, one for each row; got {got}"
            raise RecordError(msg)
        cells[str(key)] = array.tolist()
    if len({len(column) for column in cells.values()}) > 1:
        lengths = ", ".join(f"{key!r} has {len(column)}" for key, column in cells.items())
        msg = f"{name}: the columns must have equally many rows; {lengths}"
        raise RecordError(msg)
    return [Table("", cells)]


def read_npz(path: Path) -> list[Table]:
    """Read a file that np.savez or np.save wrote. Arrays that are not 1-D, and those of words, are not read.

    Raises:
      RecordError: if the file is damaged or holds pickled objects.
    """
    try:
        with path.open("rb") as opened:
            loaded = np.load(opened, allow_pickle=False)
            arrays = {"arr_0": loaded} if isinstance(loaded, np.ndarray) else {key: loaded[key] for key in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        msg = f"{path}: NumPy cannot read it ({reason}); save it with np.savez(path, grad_norm=norms)"
        raise RecordError(msg) from error
    if list(arrays) == ["arr_0"]:
        return tables_of_array(arrays["arr_0"], str(path))
    return tables_of_mapping({key: a for key, a in arrays.items() if a.ndim == 1 and a.dtype.kind in "fiub"}, str(path))


def _numbers(values: Any) -> np.ndarray | None:
    # None in a list is an empty cell for float64 too: NaN.
    try:
        return np.asarray(values).astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
