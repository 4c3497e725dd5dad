"""The answer of a replay as JSON, without NaN and infinity."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from novoclip.replays import Outcome, Replay


def as_json(answer: Replay) -> dict[str, Any]:
    """Return the answer as an object of JSON. A figure that is not finite is null."""
    record, rows = answer.record, answer.rows
    return {
        "record": {
            "name": record.name,
            "rows": int(record.norms.size),
            "first_step": int(record.steps[0]),
            "last_step": int(record.steps[-1]),
            "stride": int(record.stride),
            "finite": int(np.isfinite(record.norms).sum()),
            "losses": int(np.isfinite(record.losses).sum()),
            "tensors": list(record.tensors),
            "spike_steps": [int(step) for step in record.steps[rows.spike]],
            "calm": int(rows.calm.sum()),
            "noise": finite(rows.noise),
            "notes": list(record.notes),
        },
        "wish": {"want": answer.want, "max_clipped": answer.max_clipped},
        "rules": [_figures(each) for each in answer.outcomes],
        "recommended": answer.recommended.line if answer.recommended else None,
        "runner_up": answer.runner_up.line if answer.runner_up else None,
        "warnings": list(answer.warnings),
    }


def _figures(each: Outcome) -> dict[str, Any]:
    found = {name: value for name, value in each._asdict().items() if name != "course"}
    # As null, a rule that never adapts would look like a run without a rise.
    return {name: _plain(value) for name, value in found.items()} | {"never_adapts": each.adapts == math.inf}


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return finite(value) if isinstance(value, float) else value


def finite(value: float | None) -> float | None:
    """Return a figure, or None where it is NaN or infinite."""
    return float(value) if value is not None and math.isfinite(value) else None
