"""What the script of a report draws, as JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from novoclip.replays.judge import TOUCHED
from novoclip.replays.outcome import Outcome
from novoclip.replays.replay import Replay
from novoclip.replays.report_rows import BINS, distances, drawn, positive, tail

DIGITS = 5


def data(answer: Replay) -> str:
    """Return the numbers of the pictures as JSON that may stand in a script element."""
    record, rows = answer.record, answer.rows
    kept = drawn(record.norms, rows)
    ascending = distances(record.norms, rows)
    counts, edges = np.histogram(np.log10(ascending), BINS) if ascending.size else (np.zeros(0), np.zeros(1))
    far, fraction = tail(ascending)
    best = answer.recommended or answer.outcomes[0]
    found = {
        "steps": record.steps[kept].tolist(),
        "norms": _numbers(positive(record.norms)[kept]),
        "level": _numbers(positive(rows.level)[kept]),
        "losses": _numbers(record.losses[kept]) if np.isfinite(record.losses).any() else [],
        "lossLog": bool(np.all(record.losses[np.isfinite(record.losses)] > 0)),
        "spikes": np.flatnonzero(rows.spike[kept]).tolist(),
        "nonfinite": np.flatnonzero(~np.isfinite(record.norms[kept])).tolist(),
        "rules": [_rule(each, record.norms, kept) for each in answer.outcomes],
        "chosen": next(i for i, each in enumerate(answer.outcomes) if each is best),
        "histogram": {"x": _numbers((edges[1:] + edges[:-1]) / 2), "y": counts.tolist()},
        "tail": {"x": _numbers(far), "y": _numbers(fraction)},
    }
    # Neither "</script>" nor "<!--" may stand in a script element.
    return json.dumps(found, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _rule(each: Outcome, norms: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    course = each.course
    smaller = np.isfinite(norms) & (course.after < TOUCHED * norms) & ~course.skipped
    return {
        "line": each.line,
        "limits": _numbers(positive(course.limits)[kept]),
        "after": _numbers(positive(course.after)[kept]),
        "clipped": np.flatnonzero(smaller[kept]).tolist(),
        "skipped": np.flatnonzero(course.skipped[kept]).tolist(),
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values.tolist()]
