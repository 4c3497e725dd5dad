"""Tables of JSON and JSONL files, and of the trainer_state.json that Hugging Face's Trainer saves."""

from __future__ import annotations

import json
from typing import Any

from novoclip.records.arrays import tables_of_array, tables_of_mapping
from novoclip.records.table import Table, flatten, table_of_rows


def read_json(text: str) -> list[Table] | None:
    """Return the Tables of a JSON or JSONL file, or None if the text is neither."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return _read_lines(text)
    if isinstance(value, dict) and isinstance(value.get("log_history"), list):
        value = value["log_history"]
    if _is_metric(value):
        # One metric, as `trackio get metric --json` prints it.
        return [
            table_of_rows("", ({"step": row.get("step"), value["metric"]: row.get("value")} for row in value["values"]))
        ]
    if isinstance(value, dict):
        flat = flatten(value)
        lists = {key: column for key, column in flat.items() if isinstance(column, list)}
        return tables_of_mapping(lists, "the file") if lists else [table_of_rows("", [flat])]
    if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
        return [table_of_rows("", map(flatten, value))]
    return tables_of_array(value, "the file") if isinstance(value, list) and value else None


def _is_metric(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("metric"), str):
        return False
    values = value.get("values")
    return isinstance(values, list) and all(isinstance(row, dict) for row in values)


def _read_lines(text: str) -> list[Table] | None:
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or not lines[0].lstrip().startswith("{"):
        return None
    rows: list[dict[str, Any]] = []
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(flatten(row))
    if not rows:
        return None
    bad = len(lines) - len(rows)
    notes = (f"{bad} of {len(lines)} lines are no JSON objects and were not read.",) if bad else ()
    return [table_of_rows("", rows, notes)]
