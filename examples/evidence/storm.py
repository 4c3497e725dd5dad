"""Every rule that acts before Adam in a gradient storm, against Adam at the best learning rate for the storm.

    python examples/evidence/storm.py

The text and the transformer are those of examples/train_lm.py, in a smaller size. In the storm four gradients are 1000
times too large, three of them in a row, and three batches have random targets. docs/rules.md has the whole model with
1000 steps, and rules after and around Adam.
"""

from pathlib import Path
from pydoc_data.topics import topics
import sys
import time

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure
import numpy as np
import optax
from shared import mean_and_interval, mean_cell, parser, save, table

import novoclip

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import storm_training
from storm_training import Task, make_faults

SIZES = {"LENGTH": 32, "BATCH": 8, "WIDTH": 32, "LAYERS": 1, "HEADS": 2, "VALIDATION_BATCHES": 20}
RATES = (1e-3, 3e-3, 1e-2)
RATES_ALONE = (1e-4, 3e-4, *RATES, 3e-2)  # Adam alone has a wider choice
GLOBAL_NORM = novoclip.clip_by_global_norm
RULES = {
    "clip_by_value(0.03)": lambda: novoclip.clip_by_value(0.03),
    "clip_by_norm(0.3)": lambda: novoclip.clip_by_norm(0.3),
    "clip_by_global_norm(1.0)": lambda: GLOBAL_NORM(1.0),
    'clip_by_global_norm(1.0, shape="smooth")': lambda: GLOBAL_NORM(1.0, shape="smooth"),
    "clip_by_second_moment(3.0, form='proportional')": lambda: novoclip.clip_by_second_moment(3.0, form="proportional"),
    "clip_by_block_rms(0.01)": lambda: novoclip.clip_by_block_rms(0.01),
    "normalize_by_norm()": novoclip.normalize_by_norm,
    "clip_to_band(1e-5, 0.03)": lambda: novoclip.clip_to_band(min_norm=1e-5, max_norm=0.03),
    "delta_gclip()": novoclip.delta_gclip,
    "autoclip(90)": lambda: novoclip.autoclip(90.0, window=200),
    "autoclip(10), as published": lambda: novoclip.autoclip(10.0, window=1000, learn_zeros=True),
    "clip_by_running_quantile(0.9)": lambda: novoclip.clip_by_running_quantile(0.9),
    "clip_by_deviation()": novoclip.clip_by_deviation,
    'clip_by_deviation(learn="raw")': lambda: novoclip.clip_by_deviation(learn="raw"),
    "zclip()": novoclip.zclip,
    "clip_by_running_mean()": novoclip.clip_by_running_mean,
    "adagc()": novoclip.adagc,
    "adaclip()": novoclip.adaclip,
    "adagn()": novoclip.adagn,
    "adaclip(), adagn()": lambda: optax.chain(novoclip.adaclip(), novoclip.adagn()),
    "agc(0.01)": lambda: novoclip.agc(0.01),
    "clip_by_spectral_norm(0.3)": lambda: novoclip.clip_by_spectral_norm(0.3),
    "centralize()": novoclip.centralize,
    "uclip(clip_by_global_norm(1.0))": lambda: novoclip.uclip(GLOBAL_NORM(1.0)),
    "clip21(clip_by_global_norm(1.0))": lambda: novoclip.clip21(GLOBAL_NORM(1.0)),
    "start_after(clip_by_global_norm(1.0), 50)": lambda: novoclip.start_after(GLOBAL_NORM(1.0), 50),
}


class Trainer:
    """The task, and the gradients of several trainings at once, compiled once for all rules.

    Args:
      seeds: how many trainings with each learning rate.
      steps: how many steps each.
    """

    def __init__(self, seeds, steps):
        for name, value in SIZES.items():
            setattr(storm_training, name, value)
        self.seeds, self.steps = seeds, steps
        self.task = Task("\n".join(topics.values()))
        # One after the other: on a CPU, matrix products that `vmap` batches are slower.
        self._gradients = jax.jit(lambda *runs: jax.lax.map(lambda run: self._of_run(*run), runs))
        self._validate = jax.jit(lambda params: jax.lax.map(self.task.validate, params))

    def _of_run(self, params, seed, step, scale, random_targets):
        return self.task.gradients(params, seed, step, scale, random_targets, per_example=False)

    def losses(self, rule, rates, *, stormed):
        """Return the validation losses after training, of shape (seeds, rates)."""
        seeds, rates_of = (
            axis.ravel() for axis in jnp.meshgrid(jnp.arange(self.seeds), jnp.array(rates), indexing="ij")
        )
        params = jax.vmap(self.task.init)(seeds)
        state = jax.vmap(lambda params: optimizer_of(rule, 0.1).init(params))(params)

        @jax.jit
        @jax.vmap
        def update(params, state, gradients, loss, rate):
            updates, state = optimizer_of(rule, rate).update(gradients, state, params, value=loss)
            return optax.apply_updates(params, updates), state

        faults = make_faults(self.steps, stormed=stormed)
        for step, (scale, random_targets) in enumerate(zip(*faults, strict=True)):
            alike = [jnp.full(seeds.shape, value) for value in (step, scale, random_targets)]
            loss, gradients = self._gradients(params, seeds, *alike)
            params, state = update(params, state, gradients, loss, rates_of)
        return np.asarray(self._validate(params)).reshape(self.seeds, len(rates))


def optimizer_of(rule, rate):
    return optax.chain(optax.with_extra_args_support(rule()), novoclip.adam(rate, nonfinite="propagate"))


def row_of(name, losses, rates):
    """Return the row of a rule, with the rate whose mean loss is the smallest."""
    finite = np.where(np.isfinite(losses), losses, np.inf)
    best = np.argmin(finite.mean(axis=0))
    row = {"before Adam": name, "loss": mean_cell(finite[:, best]), "best rate": f"{rates[best]:g}"}
    return row | {f"at {rate:g}": mean_cell(finite[:, place]) for place, rate in enumerate(rates) if rate in RATES}


def draw(best):
    figure = Figure(figsize=(8, 9), layout="constrained")
    panel = figure.subplots()
    for place, (name, values) in enumerate(best.items()):
        mean, half = mean_and_interval(values)
        color = "C1" if name.startswith("nothing") else "C0"
        panel.errorbar(mean, place, xerr=None if np.isnan(half) else half, fmt="o", color=color, capsize=3)
    panel.set(xlabel="validation loss after the storm, nats per character", ylim=(len(best) - 0.5, -0.5))
    panel.set_yticks(range(len(best)), list(best), fontsize=8)
    panel.grid(alpha=0.3)
    return figure


def main(argv=None):
    arguments = parser(__doc__.splitlines()[0], steps=300)
    arguments.add_argument("--first", type=int, default=len(RULES), help="how many of the rules to try")
    options = arguments.parse_args(argv)
    trainer = Trainer(options.seeds, options.steps)
    cases = {"nothing, without a storm": (optax.identity, RATES_ALONE), "nothing": (optax.identity, RATES_ALONE)}
    cases |= {name: (rule, RATES) for name, rule in list(RULES.items())[: options.first]}
    rows, best = {}, {}
    for name, (rule, rates) in cases.items():
        start = time.perf_counter()
        losses = trainer.losses(rule, rates, stormed="without" not in name)
        rows[name] = row_of(name if name.startswith("nothing") else f"`{name}`", losses, rates)
        best[name] = losses[:, np.argmin(np.where(np.isfinite(losses), losses, np.inf).mean(axis=0))]
        print(rows[name], f"{time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    order = sorted(best, key=lambda name: np.mean(best[name]) if np.isfinite(best[name]).all() else np.inf)
    text = (
        f"{table([rows[name] for name in order])}\n\nValidation loss in nats per character after {options.steps} "
        f"steps, mean over {options.seeds} seeds with 95 % intervals. The first column of losses is the best of all "
        f"learning rates that were tried: {', '.join(f'{rate:g}' for rate in RATES)} with a rule, and "
        f"{', '.join(f'{rate:g}' for rate in RATES_ALONE)} with nothing before Adam."
    )
    save("storm", text, draw({name: best[name] for name in order}), options.out)


if __name__ == "__main__":
    main()
