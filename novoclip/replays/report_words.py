"""What reports and the command say of a Replay, beside the table."""

from __future__ import annotations

from novoclip.replays.replay import Replay


def read_summary(answer: Replay) -> str:
    """Return in one sentence what was read."""
    record = answer.record
    spikes = int(answer.rows.spike.sum())
    parts = [
        f"{record.norms.size} rows",
        f"steps {record.steps[0]} to {record.steps[-1]}",
        f"one row every {record.stride} steps" if record.stride > 1 else "",
        f"norms of {len(record.tensors)} tensors" if record.tensors else "",
        f"{spikes} {'spike' if spikes == 1 else 'spikes'}",
    ]
    return ", ".join(part for part in parts if part) + "."
