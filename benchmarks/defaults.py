"""The defaults of rules and guards, judged on gradient norms of real trainings: the tables of docs/defaults.md.

python benchmarks/defaults.py RECORDS

RECORDS is a folder of CSV files, one for each training, with the columns step, loss, grad_norm and learning_rate.
A recorded norm is a gradient with one element, so any rule runs on a record as it would in the training. Spikes, calm
rows and the level are defined in benchmarks/guards.py. A spike is caught if it is skipped or let through at less than
3.3 levels. A calm row is touched if it is skipped or made smaller by more than 0.1 %. Rules that change directions or
need the parameters are not judged: of one element they show nothing.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.guards import Record, median_of, read, spikes_and_calm, synthetic
import novoclip

RULES: dict[str, Any] = {
    "clip_by_global_norm(1.0)": novoclip.clip_by_global_norm(1.0),
    "autoclip(10.0)  (published)": novoclip.autoclip(10.0),
    "autoclip(90.0)": novoclip.autoclip(90.0),
    "autoclip(95.0)": novoclip.autoclip(95.0),
    "autoclip(99.0)": novoclip.autoclip(99.0),
    "clip_by_running_quantile(0.9)": novoclip.clip_by_running_quantile(0.9),
    "clip_by_running_quantile(0.99)": novoclip.clip_by_running_quantile(0.99),
    "clip_by_deviation(learn='raw')  (levanter)": novoclip.clip_by_deviation(learn="raw"),
    "clip_by_deviation()  (default)": novoclip.clip_by_deviation(),
    "clip_by_deviation(warmup=8)": novoclip.clip_by_deviation(warmup=8),
    "zclip(max_norm=1.0)  (published)": novoclip.zclip(max_norm=1.0),
    "zclip()  (default)": novoclip.zclip(),
    "zclip(mode='percentile')": novoclip.zclip(mode="percentile"),
    "zclip(release=20)": novoclip.zclip(release=20),
    "clip_by_running_mean(decay=0.98)  (0.1.0)": novoclip.clip_by_running_mean(decay=0.98),
    "clip_by_running_mean()  (default)": novoclip.clip_by_running_mean(),
    "clip_by_running_mean(2.5)": novoclip.clip_by_running_mean(2.5),
    "clip_by_running_mean(3.0)": novoclip.clip_by_running_mean(3.0),
    "adagc(1.05, lambda_abs=1.0, warmup=100)  (published)": novoclip.adagc(1.05, lambda_abs=1.0, warmup=100),
    "adagc(1.5, warmup=100)": novoclip.adagc(1.5, warmup=100),
    "adagc()  (default)": novoclip.adagc(),
    "adaclip()": novoclip.adaclip(),
    "clip_by_second_moment(3.0, form='proportional')": novoclip.clip_by_second_moment(3.0, form="proportional"),
    "skip_spikes": novoclip.skip_spikes(optax.identity()),
    "protect": novoclip.protect(optax.identity()),
}
MOST = 3.3  # levels: a spike let through at more counts as missed


def let_through(rule: optax.GradientTransformationExtraArgs, records: list[Record]) -> list[np.ndarray]:
    """Return the norm of each row after a rule, 0 where it is skipped."""
    longest = max(record.norms.size for record in records)
    with np.errstate(over="ignore"):
        rows = [np.pad(r.norms.astype(np.float32), (0, longest - r.norms.size), constant_values=1.0) for r in records]

    def step(state: Any, norm: jax.Array) -> tuple[Any, jax.Array]:
        updates, state = rule.update(norm[None], state)
        return state, jnp.abs(updates[0])

    def run(norms: jax.Array) -> jax.Array:
        return lax.scan(step, rule.init(jnp.zeros(1)), norms)[1]

    found = np.asarray(jax.jit(jax.vmap(run))(np.stack(rows)))
    return [row[: record.norms.size] for row, record in zip(found, records, strict=True)]


def judge(record: Record, after: np.ndarray) -> tuple[int, int, int, int]:
    """Return the spikes caught, the spikes, the calm rows touched, and the calm rows."""
    norms = record.norms
    spike, calm = spikes_and_calm(norms)
    level = np.array([median_of(norms[max(0, i - 50) : i + 51]) for i in range(norms.size)])
    caught = spike & (after < MOST * level)
    touched = calm & (after < 0.999 * norms)
    return int(caught.sum()), int(spike.sum()), int(touched.sum()), int(calm.sum())


def table(records: list[Record], rules: dict[str, Any]) -> str:
    """Return a Markdown table with a row for each rule: "spikes caught/spikes, calm rows touched" of each record."""
    names = [record.name for record in records]
    lines = ["| rule | " + " | ".join([*names, "all"]) + " |", "|---" * (len(names) + 2) + "|"]
    for name, rule in rules.items():
        counts = [judge(record, after) for record, after in zip(records, let_through(rule, records), strict=True)]
        counts.append(tuple(np.sum(counts, axis=0)))
        cells = [f"{c}/{n}, {100 * touched / max(calm, 1):.2f} %" for c, n, touched, calm in counts]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, help="a folder of CSV files")
    for title, records in (("Real trainings", read(parser.parse_args().records)), ("Made records", synthetic())):
        print(f"### {title}\n\n{table(records, RULES)}\n", flush=True)


if __name__ == "__main__":
    main()
