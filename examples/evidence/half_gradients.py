"""The norm that is left after clipping 16-bit gradients: Optax's clip_by_global_norm and novoclip's.

    python examples/evidence/half_gradients.py

Both are documented to bound the global norm: https://optax.readthedocs.io/en/latest/api/transformations.html. Optax
0.2.8 computes it in the dtype of the gradients. The largest float16 is 65504, so that the square of 256 is infinite,
and the square of 1e-4 is 0.
"""

from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from shared import parser, save, table

import novoclip

mpl.use("Agg")
import matplotlib.pyplot as plt

DTYPES = ("float32", "bfloat16", "float16")
SIZES = (100, 10_000, 1_000_000, 10_000_000)
SCALES = (1e-4, 1e-2, 1.0, 1000.0)  # standard deviations of the elements
MAX_NORM = 0.01
RULES = {"Optax": optax.clip_by_global_norm, "novoclip": novoclip.clip_by_global_norm}


class Case(NamedTuple):
    """Gradients of one dtype, size and scale, and what each rule left of them.

    Attributes:
      dtype: of the gradients.
      size: how many elements.
      scale: the standard deviation of the elements before they are rounded to the dtype.
      before: the norm in float64, of the first seed.
      ratios: by rule, the norm of the result over what it should be; the worst of the seeds.
    """

    dtype: str
    size: int
    scale: float
    before: float
    ratios: dict[str, float]


def norm_in_float64(gradients):
    return float(np.linalg.norm(np.asarray(gradients).astype(np.float64)))


def measure(dtype, size, scale, seeds):
    """Return the Case: for each rule the ratio that is farthest from 1."""
    ratios, before = {}, []
    for seed in range(seeds):
        elements = np.random.default_rng(seed).standard_normal(size, np.float32) * np.float32(scale)
        gradients = jnp.asarray(elements, dtype)
        before.append(norm_in_float64(gradients))
        for name, make in RULES.items():
            rule = make(MAX_NORM)
            result, _ = jax.jit(rule.update)(gradients, rule.init(gradients))
            ratios.setdefault(name, []).append(norm_in_float64(result) / min(before[-1], MAX_NORM))
    return Case(dtype, size, scale, before[0], {key: max(values, key=error) for key, values in ratios.items()})


def error(ratio):
    """Return how far a ratio is from 1, by its logarithm; infinite for 0 and for what is not finite."""
    return abs(np.log(ratio)) if np.isfinite(ratio) and ratio > 0 else np.inf


def row_of(case):
    cells = {name: f"{ratio:.4g}" for name, ratio in case.ratios.items()}
    about = {"dtype": case.dtype, "elements": f"{case.size:.0e}", "scale": f"{case.scale:g}"}
    return about | {"norm before": float(case.before)} | cells


def broken(cases):
    """Return for each rule and dtype in how many cases the ratio was wrong by more than 1 %."""
    rows = []
    for name, dtype in product(RULES, DTYPES):
        ratios = [case.ratios[name] for case in cases if case.dtype == dtype]
        rows.append(
            {
                "clip_by_global_norm of": name,
                "dtype": dtype,
                "cases": len(ratios),
                "too large by over 1 %": sum(ratio > 1.01 for ratio in ratios),
                "too small by over 1 %": sum(0 < ratio < 0.99 for ratio in ratios),
                "all zeros": sum(ratio == 0 for ratio in ratios),
                "not finite": sum(not np.isfinite(ratio) for ratio in ratios),
            }
        )
    return rows


def train(make, seeds, steps):
    """Return the losses (seeds, steps) of a float16 least-squares problem whose first gradients are in the hundreds."""
    rule, curvature = make(1.0), jnp.float16(20.0)

    def one(seed):
        start = 20 * jax.random.normal(jax.random.key(seed), (100,), jnp.float16)

        def step(carry, index):
            x, state = carry
            updates, state = rule.update(curvature * x, state, x)
            rate = jnp.float16(400.0) / steps * (1 - index.astype(jnp.float16) / steps)
            x = x - rate * updates
            return (x, state), jnp.mean(x.astype(jnp.float32) ** 2)

        return jax.lax.scan(step, (start, rule.init(start)), jnp.arange(steps))[1]

    return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(seeds)))


def draw(cases, losses):
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
    for panel, dtype in zip(panels, ("bfloat16", "float16"), strict=False):
        for (name, marker), scale in product({"Optax": "x", "novoclip": "o"}.items(), SCALES):
            chosen = [case for case in cases if (case.dtype, case.scale) == (dtype, scale)]
            ratios = np.array([case.ratios[name] for case in chosen])
            shown = np.clip(np.nan_to_num(ratios, nan=1e9, posinf=1e9), 1e-3, 1e3)
            color = f"C{SCALES.index(scale)}"
            panel.plot([case.size for case in chosen], shown, marker=marker, color=color, label=f"{name}, {scale:g}")
        panel.set(xscale="log", title=dtype, xlabel="elements", ylabel="norm left / norm expected")
    panels[1].set_yscale("log")
    panels[1].set_title("float16 (0 is drawn at 0.001)")
    panels[1].legend(fontsize=7, ncols=2, title="rule, scale of the elements")
    for name, values in losses.items():
        panels[2].plot(np.mean(values, axis=0), label=name)
    panels[2].set(yscale="log", title="float16 least squares", xlabel="step", ylabel="loss")
    panels[2].legend()
    return figure


def main(argv=None):
    arguments = parser(__doc__.splitlines()[0], steps=500)
    arguments.add_argument("--largest", type=int, default=SIZES[-1], help="leave out gradients with more elements")
    options = arguments.parse_args(argv)
    sizes = [size for size in SIZES if size <= options.largest]
    cases = [measure(*each, options.seeds) for each in product(DTYPES, sizes, SCALES)]
    losses = {name: train(make, options.seeds, options.steps) for name, make in RULES.items()}
    ends = []
    for name, values in losses.items():
        ends.append(
            {
                "clip_by_global_norm of": name,
                "loss at the first step": f"{values[:, 0].mean():.4g}",
                "loss at the end": f"{values[:, -1].mean():.4g}",
                "range of the seeds": f"{values[:, -1].min():.4g} to {values[:, -1].max():.4g}",
            }
        )
    text = (
        f"In how many cases the norm of the result, in float64, is wrong by more than 1 %:\n\n"
        f"{table(broken(cases))}\n\n"
        f"Each case: the norm of the result over what it should be, the smaller of the norm before and {MAX_NORM:g}. "
        f"Of {options.seeds} seeds, the one that is farthest from 1.\n\n{table([row_of(case) for case in cases])}\n\n"
        f"Least squares in float16 with 100 parameters, a threshold of 1 and {options.steps} steps, mean over "
        f"{options.seeds} seeds:\n\n{table(ends)}"
    )
    save("half_gradients", text, draw(cases, losses), options.out)


if __name__ == "__main__":
    main()
