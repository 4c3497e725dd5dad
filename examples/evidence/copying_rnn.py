"""A recurrent network whose gradients explode, on the copying task, for several clipping rules.

    python examples/evidence/copying_rnn.py     # some minutes; the tables and the picture of docs/evidence

The network sees three symbols, then 30 blanks, then three signals at which it must say the symbols in order. Its
recurrent matrix starts with a spectral radius of about 1.6, so that gradients can grow through time. The loss is that
of the three answers; guessing gives log(4) = 1.386 nats. SGD with momentum descends, at a constant rate.
"""

from functools import partial

from digits import affine, dense
import jax
import jax.numpy as jnp
import numpy as np
import optax
from rates import MEANING, figure_of, losses_by_rate, summaries
from shared import parser, save, table
from training import Problem, half_decades, sweep

import novoclip

SYMBOLS, COPIED, DELAY, BATCH, WIDTH, RADIUS = 4, 3, 30, 16, 48, 1.6
RATES = half_decades(-4, 0.5)
SGD = partial(novoclip.sgd, momentum=0.9)


def clipped(rule):
    """Return a function from a learning rate to SGD whose gradients pass the rule first."""
    return partial(SGD, clip=rule)


OPTIMIZERS = {
    "none": SGD,
    "clip_by_global_norm(0.01)": clipped(novoclip.clip_by_global_norm(0.01)),
    "clip_by_global_norm(0.1)": clipped(novoclip.clip_by_global_norm(0.1)),
    "clip_by_global_norm(1.0)": clipped(novoclip.clip_by_global_norm(1.0)),
    "clip_by_global_norm(10.0)": clipped(novoclip.clip_by_global_norm(10.0)),
    "autoclip(10)": clipped(novoclip.autoclip(10)),
    "zclip()": clipped(novoclip.zclip()),
    "protect(sgd)": lambda rate: novoclip.protect(SGD(rate)),
}


def inputs_of(symbols):
    """Return the inputs of sequences, one-hot vectors of shape (times, sequences, SYMBOLS + 2)."""
    blanks, signals = jnp.full((len(symbols), DELAY), SYMBOLS), jnp.full((len(symbols), COPIED), SYMBOLS + 1)
    return jax.nn.one_hot(jnp.concatenate([symbols, blanks, signals], axis=1).T, SYMBOLS + 2)


def copying():
    """Return the copying task with a recurrent network of tanh units."""

    def init(seed):
        inside, recurrent, outside = jax.random.split(jax.random.key(2 * seed), 3)
        return {
            "in": dense(inside, SYMBOLS + 2, WIDTH, gain=1.0),
            "recurrent": RADIUS / jnp.sqrt(WIDTH) * jax.random.normal(recurrent, (WIDTH, WIDTH)),
            "out": dense(outside, WIDTH, SYMBOLS, gain=1.0),
        }

    def apply(params, inputs):
        def cell(hidden, driven):
            hidden = jnp.tanh(driven + hidden @ params["recurrent"])
            return hidden, hidden

        _, states = jax.lax.scan(cell, jnp.zeros((inputs.shape[1], WIDTH)), affine(params["in"], inputs))
        return affine(params["out"], states[-COPIED:]).swapaxes(0, 1)

    def loss(params, symbols):
        logits = apply(params, inputs_of(symbols))
        accuracy = jnp.mean(logits.argmax(axis=-1) == symbols)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, symbols).mean(), accuracy

    def gradients(params, seed, step):
        key = jax.random.fold_in(jax.random.key(2 * seed + 1), step)
        symbols = jax.random.randint(key, (BATCH, COPIED), 0, SYMBOLS)
        (value, _), gradients = jax.value_and_grad(loss, has_aux=True)(params, symbols)
        return value, gradients

    def evaluate(params):
        # All sequences that there are.
        every = jnp.stack(jnp.meshgrid(*[jnp.arange(SYMBOLS)] * COPIED), axis=-1).reshape(-1, COPIED)
        return dict(zip(("loss", "accuracy"), loss(params, every), strict=True))

    return Problem(init, gradients, evaluate)


def norm_rows(outcomes, about):
    """Return one row for each Outcome: the gradients' norms before clipping, over all rates, seeds and steps."""
    rows = []
    for name, outcome in outcomes.items():
        finite = outcome.norms[np.isfinite(outcome.norms)]
        cells = {f"{q:g} %": f"{np.percentile(finite, q):.2g}" for q in (1, 50, 99)}
        rows.append(about[name] | cells | {"largest": f"{finite.max():.2g}", "not finite": outcome.nonfinite.sum()})
    return rows


def main(argv=None):
    """Train, print the tables, and write them and the picture."""
    arguments = parser(__doc__.splitlines()[0], steps=600)
    arguments.add_argument("--rules", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    options = arguments.parse_args(argv)
    problem, outcomes = copying(), {}
    for name in options.rules:
        outcomes[name] = sweep(problem, OPTIMIZERS[name], RATES, seeds=options.seeds, steps=options.steps, label=name)
    about = {name: {"rule": f"`{name}`"} for name in outcomes}
    parts = [
        f"{options.steps} steps, {options.seeds} seeds, {len(RATES)} rates, SGD with momentum 0.9.",
        table(summaries(outcomes, RATES, about)),
        "Held-out loss at each rate:",
        table(losses_by_rate(outcomes, RATES, about)),
        "Norms of the gradients before clipping, in all trainings of the row:",
        table(norm_rows(outcomes, about)),
        MEANING,
    ]
    title = f"copying after {DELAY} blanks"
    save("copying_rnn", "\n\n".join(parts), figure_of({title: outcomes}, {title: RATES}, columns=1), options.out)


if __name__ == "__main__":
    main()
