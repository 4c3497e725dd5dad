"""Per-example clipping on digits with wrong labels and outliers, without and with the noise of DP-SGD.

    python examples/evidence/per_example.py

The claim is that of Abadi et al., "Deep learning with differential privacy" (2016), https://arxiv.org/abs/1607.00133:
clipping each example's gradient to C bounds what one example can do, so that noise of C / batch is enough. Accuracy
falls for a C that is too small (the direction changes) or too large (the noise grows).

The digits are those of scikit-learn, if it is installed, and otherwise generated ones.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import optax
from shared import mean_and_interval, mean_cell, parser, save, table

import novoclip

mpl.use("Agg")
import matplotlib.pyplot as plt

BATCH, NOISE = 64, 1.0  # NOISE is Abadi's sigma: the standard deviation over what one example can add to the sum
WRONG, OUTLIERS, FACTOR = 0.1, 0.05, 20.0  # fractions of the training examples; an outlier's pixels are times FACTOR
THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
LENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # learning rate * C: how long a clipped step is
ARMS = {  # whether each example is clipped, or the mean; and the noise, as a multiple of threshold * NOISE
    "per example": (True, 0.0),
    "mean": (False, 0.0),
    "per example, noise C / batch": (True, 1 / BATCH),
    "mean, noise C / batch (not private)": (False, 1 / BATCH),
    "mean, noise C": (False, 1.0),
}


def digits():
    """Return a name of the data, the images with pixels from 0 to 1, and the labels."""
    try:
        load_digits = importlib.import_module("sklearn.datasets").load_digits
    except ImportError:
        generator = np.random.default_rng(0)
        labels = generator.integers(0, 10, 1797)
        shapes = generator.uniform(0, 1, (10, 64))
        pixels = np.clip(shapes[labels] + generator.normal(0, 0.7, (1797, 64)), 0, 1)
        return "1797 generated images of ten random patterns (scikit-learn is not installed)", pixels, labels
    pixels, labels = load_digits(return_X_y=True)
    return "the 1797 digits of 8 by 8 pixels that scikit-learn carries", pixels / 16, labels


@functools.cache
def splits():
    """Return the name, and images and labels for training, for tuning and for the test."""
    name, pixels, labels = digits()
    order = np.random.default_rng(1).permutation(len(labels))
    parts = np.split(order, [1097, 1397])
    return name, *((jnp.asarray(pixels[part], jnp.float32), jnp.asarray(labels[part])) for part in parts)


def corrupted(images, labels, key):
    """Return the training data with wrong labels and outliers, which each seed draws anew."""
    wrong_key, label_key, outlier_key = jax.random.split(key, 3)
    wrong = jax.random.bernoulli(wrong_key, WRONG, labels.shape)
    outlier = jax.random.bernoulli(outlier_key, OUTLIERS, labels.shape)
    labels = jnp.where(wrong, jax.random.randint(label_key, labels.shape, 0, 10), labels)
    return jnp.where(outlier[:, None], FACTOR * images, images), labels


def loss(params, image, label):
    logits = image @ params["kernel"] + params["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def accuracy(params, data):
    images, labels = data
    return jnp.mean(jnp.argmax(images @ params["kernel"] + params["bias"], axis=1) == labels)


def rate_of(length, threshold):
    """Return the learning rate for a length of clipped steps; without a threshold, which is infinite, as for 10."""
    return length / jnp.minimum(threshold, THRESHOLDS[-1])


def runner(arm, steps):
    """Return a compiled function of (seeds, thresholds, lengths): accuracies for tuning and test, by each of them."""
    each, noise_factor = ARMS[arm]
    _, training, tuning, test = splits()

    def train(seed, threshold, length):
        rate = rate_of(length, threshold)
        key, data_key = jax.random.split(jax.random.key(seed))
        images, labels = corrupted(*training, data_key)
        clip = novoclip.clip_by_global_norm(threshold)
        rule = novoclip.per_example(clip) if each else clip
        params = {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)}

        def step(carry, index):
            params, state = carry
            batch_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
            chosen = jax.random.choice(batch_key, len(labels), (BATCH,), replace=False)
            gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(params, images[chosen], labels[chosen])
            if not each:
                gradients = jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients)
            gradients, state = rule.update(gradients, state, params)
            if noise_factor:
                noise = optax.tree.random_like(noise_key, params, sampler=jax.random.normal)
                scale = NOISE * noise_factor * threshold
                gradients = jax.tree.map(lambda leaf, added: leaf + scale * added, gradients, noise)
            return (jax.tree.map(lambda leaf, gradient: leaf - rate * gradient, params, gradients), state), None

        (params, _), _ = jax.lax.scan(step, (params, rule.init(params)), jnp.arange(steps))
        return jnp.stack([accuracy(params, tuning), accuracy(params, test)])

    over_lengths = jax.vmap(train, (None, None, 0))
    return jax.jit(jax.vmap(jax.vmap(over_lengths, (None, 0, None)), (0, None, None)))


def measure(arm, seeds, steps, thresholds=THRESHOLDS):
    """Return the test accuracies of shape (seeds, thresholds), and the rate that was best in tuning for each."""
    result = np.asarray(runner(arm, steps)(jnp.arange(seeds), jnp.array(thresholds), jnp.array(LENGTHS)))
    best = np.argmax(result[..., 0].mean(axis=0), axis=1)
    rates = [float(rate_of(LENGTHS[index], threshold)) for index, threshold in zip(best, thresholds, strict=True)]
    return result[:, np.arange(len(thresholds)), best, 1], rates


def draw(accuracies, unclipped):
    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    for arm, values in accuracies.items():
        mean, half = mean_and_interval(values)
        panel.errorbar(THRESHOLDS, mean, yerr=half, marker="o", capsize=3, label=arm)
    panel.axhline(unclipped.mean(), color="0.5", linestyle="--", label="no clipping, no noise")
    panel.set(xscale="log", xlabel="threshold C", ylabel="test accuracy", ylim=(0, 1))
    panel.legend()
    return figure


def main(argv=None):
    arguments = parser(__doc__.splitlines()[0], steps=300, seeds=5)
    arguments.add_argument("--first", type=int, default=len(ARMS), help="how many ways to clip to try")
    options = arguments.parse_args(argv)
    unclipped, rate = measure("mean", options.seeds, options.steps, (np.inf,))
    accuracies, cells = {}, {}
    for arm in list(ARMS)[: options.first]:
        accuracies[arm], rates = measure(arm, options.seeds, options.steps)
        columns = zip(accuracies[arm].T, rates, strict=True)
        cells[arm] = [f"{mean_cell(column)} ({rate:.2g})" for column, rate in columns]
        print(arm, cells[arm], flush=True)
    rows = [{"C": f"{each:g}"} | {arm: cells[arm][i] for arm in cells} for i, each in enumerate(THRESHOLDS)]
    text = (
        f"{table(rows)}\n\nWithout clipping and noise: {mean_cell(unclipped[:, 0])} ({rate[0]:.2g}).\n\n"
        f"Test accuracy of logistic regression after {options.steps} steps of {BATCH} examples, mean over "
        f"{options.seeds} seeds with 95 % intervals, and in brackets the learning rate of SGD. It is chosen for each "
        f"cell by 300 clean examples of their own, so that the rate times C is one of "
        f"{', '.join(f'{each:g}' for each in LENGTHS)}. The data are "
        f"{splits()[0]}. Of the training examples {WRONG:.0%} got a random label, and the pixels of {OUTLIERS:.0%} "
        f"were multiplied by {FACTOR:g}."
    )
    save("per_example", text, draw(accuracies, unclipped), options.out)


if __name__ == "__main__":
    main()
