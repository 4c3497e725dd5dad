"""Candidates for the default Limits of `skip_spikes`, judged on real trainings: the tables of docs/guards.md.

python benchmarks/guards.py RECORDS

RECORDS is a folder of CSV files, one for each training, with the columns step, loss, grad_norm and learning_rate.
A spike is a finite norm above 5 times the median of the 32 rows before it, from row 8 on. The level is the centred
median of 101 rows, and a calm row has a finite norm that is no spike and is below 2 levels. Only finite norms enter a
median. Each candidate judges each record through `skip_spikes`, row by row, as a training would.
"""

import argparse
from collections.abc import Callable
import csv
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

import novoclip


class Record(NamedTuple):
    """A training's gradient norms and losses."""

    name: str
    norms: np.ndarray
    losses: np.ndarray


DEFAULT = "default"
NORM_LIMITS: dict[str, Any] = {
    "limits.deviation(6.0, eps=0.01)": novoclip.limits.deviation(6.0, eps=0.01),
    "limits.deviation(6.0, warmup=8, eps=0.01)": novoclip.limits.deviation(6.0, warmup=8, eps=0.01),
    "limits.deviation(4.0, window=32, warmup=8, eps=0.1)": novoclip.limits.deviation(4.0, window=32, warmup=8, eps=0.1),
    "limits.zclip(4.0, warmup=8)": novoclip.limits.zclip(4.0, warmup=8),
    "limits.zclip(6.0, warmup=8)": novoclip.limits.zclip(6.0, warmup=8),
    "limits.autoclip(99.0, warmup=8, include_current=False)": novoclip.limits.autoclip(
        99.0, warmup=8, include_current=False
    ),
    "running_quantile(0.99)": novoclip.limits.running_quantile(0.99),
    **{f"limits.running_mean({factor})": novoclip.limits.running_mean(factor) for factor in (2.0, 2.5, 3.0, 4.0, 5.0)},
    **{
        f"limits.running_mean({factor}, decay={decay}, warmup=7)": novoclip.limits.running_mean(
            factor, decay=decay, warmup=7
        )
        for factor, decay in ((3.0, 0.98), (3.0, 0.95), (2.5, 0.9), (3.0, 0.9), (4.0, 0.9), (3.0, 0.8))
    },
    DEFAULT: None,
}
VALUE_LIMITS: dict[str, Any] = {
    "limits.deviation(6.0, warmup=8, eps=0.01)": novoclip.limits.deviation(6.0, warmup=8, eps=0.01),
    "limits.deviation(6.0, window=32, warmup=8, eps=0.01)": novoclip.limits.deviation(
        6.0, window=32, warmup=8, eps=0.01
    ),
    "limits.zclip(6.0, warmup=8)": novoclip.limits.zclip(6.0, warmup=8),
    DEFAULT: None,
}


def read(folder: Path) -> list[Record]:
    """Return the records in a folder, in the order of their names."""
    records = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns = (np.array([float(row[name] or "nan") for row in rows]) for name in ("grad_norm", "loss"))
        records.append(Record(path.stem, *columns))
    return records


def synthetic() -> list[Record]:
    """Return records with one difficulty each, and with spikes of 8 to 1000 times the level."""
    records = []
    levels: tuple[tuple[str, Callable[[np.ndarray], Any], float], ...] = (
        ("flat", lambda t: 1.0, 0.1),
        ("level rises by 10 at once", lambda t: np.where(t < 300, 1.0, 10.0), 0.1),
        ("level rises by 10 over 200 rows", lambda t: 10.0 ** np.clip((t - 200) / 200, 0, 1), 0.2),
        ("level rises by 20 over the first 100 rows", lambda t: 20.0 ** np.clip(t / 100, 0, 1), 0.3),
        ("level falls by 30 over the first 20 rows", lambda t: 0.1 + 3 * np.exp(-t / 6), 0.1),
        ("level falls by 10 over 600 rows", lambda t: 10.0 ** (-t / 600), 0.2),
        ("first norm a 20th", lambda t: np.where(t < 1, 0.05, 1.0), 0.2),
        ("first norm 20 times", lambda t: np.where(t < 1, 20.0, 1.0), 0.2),
        ("tail of 0.45", lambda t: 1.0, 0.45),
        ("tail of 0.7", lambda t: 1.0, 0.7),
    )
    for number, (name, level, noise) in enumerate(levels):
        generator = np.random.default_rng(number)
        rows = np.arange(600)
        norms = level(rows) * np.exp(noise * generator.normal(size=rows.size))
        at = np.concatenate([[8, 20], generator.choice(np.arange(40, 600), 10, replace=False)])
        norms[at] *= 10 ** generator.uniform(0.9, 3.0, at.size)
        records.append(Record(name, norms, 2.0 + 0.1 * generator.normal(size=rows.size)))
    return records


def median_of(norms: np.ndarray) -> float:
    """Return the median of the finite norms, NaN without any."""
    finite = norms[np.isfinite(norms)]
    return float(np.median(finite)) if finite.size else float("nan")


def spikes_and_calm(norms: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows are spikes, and which are calm."""
    rows = range(norms.size)
    before = np.array([median_of(norms[max(0, i - 32) : i]) if i >= 8 else np.inf for i in rows])
    level = np.array([median_of(norms[max(0, i - 50) : i + 51]) for i in rows])
    finite = np.isfinite(norms)
    spike = finite & (norms > 5 * before)
    return spike, finite & ~spike & (norms < 2 * level)


def skipped(guard: optax.GradientTransformationExtraArgs, records: list[Record], *, losses: bool) -> list[np.ndarray]:
    """Return which rows of each record a guard skips."""
    longest = max(record.norms.size for record in records)

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values.astype(np.float32), (0, longest - values.size), constant_values=np.nan)

    def step(state: Any, row: Any) -> tuple[Any, Any]:
        extra = {"value": row[1]} if losses else {}
        _, new = guard.update(row[0][None], state, **extra)
        return new, new.skipped > state.skipped

    def judge(norms: jax.Array, values: jax.Array) -> jax.Array:
        return lax.scan(step, guard.init(jnp.zeros(1)), (norms, values))[1]

    with np.errstate(over="ignore"):
        columns = [np.stack([padded(record[i]) for record in records]) for i in (1, 2)]
    found = np.asarray(jax.jit(jax.vmap(judge))(*columns))
    return [row[: record.norms.size] for row, record in zip(found, records, strict=True)]


@functools.cache
def _judged(norms: bytes) -> tuple[np.ndarray, np.ndarray]:
    return spikes_and_calm(np.frombuffer(norms))


def cells(records: list[Record], skips: list[np.ndarray]) -> list[str]:
    """Return for each record, and for all, "spikes skipped/spikes, share of calm rows skipped"."""
    counts = []
    for record, skip in zip(records, skips, strict=True):
        spike, calm = _judged(record.norms.tobytes())
        counts.append([np.sum(skip & spike), np.sum(spike), np.sum(skip & calm), np.sum(calm)])
    counts.append(np.sum(counts, axis=0))
    return [f"{caught}/{spikes}, {100 * touched / max(calm, 1):.2f} %" for caught, spikes, touched, calm in counts]


def table(records: list[Record], guards: dict[str, Any], *, losses: bool) -> str:
    """Return a Markdown table with a row for each guard."""
    names = [record.name for record in records]
    lines = ["| limit | " + " | ".join([*names, "all"]) + " |", "|---" * (len(names) + 2) + "|"]
    for name, guard in guards.items():
        lines.append(f"| `{name}` | " + " | ".join(cells(records, skipped(guard, records, losses=losses))) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="a folder of CSV files")
    real, made = read(parser.parse_args().records), synthetic()
    inner, unlimited = optax.identity(), novoclip.limits.constant(np.inf)
    norms = {name: novoclip.skip_spikes(inner, limit) for name, limit in NORM_LIMITS.items()}
    values = {name: novoclip.skip_spikes(inner, unlimited, value_limit=limit) for name, limit in VALUE_LIMITS.items()}
    for title, records, guards, losses in (
        ("`limit=`, norms alone", real, norms, False),
        ("`limit=`, synthetic records", made, norms, False),
        ("`value_limit=`, losses alone", real, values, True),
        ("Both defaults together", real, {DEFAULT: norms[DEFAULT]}, True),
    ):
        print(f"### {title}\n\n{table(records, guards, losses=losses)}\n", flush=True)


if __name__ == "__main__":
    main()
