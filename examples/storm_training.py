"""The language model of train_lm.py, its data, the faults of the storm, and the training loop."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from storm_rules import NO_RULE, Rule, assemble

import novoclip

LENGTH, BATCH, WIDTH, LAYERS, HEADS = 48, 16, 64, 2, 4
VALIDATION_BATCHES = 40
CHUNK = 10  # steps between two reports of progress


class Block(nn.Module):
    """Attention to earlier characters, then a multilayer perceptron, each after an RMSNorm."""

    @nn.compact
    def __call__(self, x):
        """Return an array of x's shape."""
        mask = nn.make_causal_mask(x[..., 0])
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS)(nn.RMSNorm()(x), mask=mask)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(nn.RMSNorm()(x))))


class LanguageModel(nn.Module):
    """A transformer over characters, which are integers below `vocabulary`."""

    vocabulary: int

    @nn.compact
    def __call__(self, characters):
        """Return the logits of the next character at every position."""
        position = self.param("position", nn.initializers.normal(0.02), (LENGTH, WIDTH))
        x = nn.Embed(self.vocabulary, WIDTH)(characters) + position
        for _ in range(LAYERS):
            x = Block()(x)
        return nn.Dense(self.vocabulary)(nn.RMSNorm()(x))


def mean_loss(params, model, inputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(model.apply(params, inputs), targets).mean()


def encode(text):
    """Return the text as integers, and the number of different characters."""
    codes, characters = np.unique(np.frombuffer(text.encode("utf-32-le"), "<u4"), return_inverse=True)
    return characters.astype(np.int32), len(codes)


def draw_batch(key, characters):
    starts = jax.random.randint(key, (BATCH, 1), 0, len(characters) - LENGTH)
    windows = characters[starts + jnp.arange(LENGTH + 1)]
    return windows[:, :-1], windows[:, 1:]


class Task:
    """The text, the model, and the compiled functions that all runs share."""

    def __init__(self, text):
        characters, vocabulary = encode(text)
        split = len(characters) * 9 // 10
        self.model, self.vocabulary, self.characters = LanguageModel(vocabulary), vocabulary, len(characters)
        self._training, self._validation = jnp.array(characters[:split]), jnp.array(characters[split:])
        self.init = jax.jit(self._init)
        self.gradients = jax.jit(self._gradients, static_argnames="per_example")
        self.validate = jax.jit(self._validate)

    def compile(self):
        """Compile the gradients and the validation, in one thread while another compiles something else."""
        params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(self.init, 0))
        self.gradients(params, 0, 0, np.float32(1), np.bool_(False), per_example=False)
        self.validate(params)

    def _init(self, seed):
        return self.model.init(jax.random.key(3 * seed), jnp.zeros((1, LENGTH), jnp.int32))

    def _gradients(self, params, seed, step, scale, random_targets, *, per_example):
        """Return the loss and the gradients of one batch, with the faults of that step."""
        batch_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(3 * seed + 1), step))
        inputs, targets = draw_batch(batch_key, self._training)
        noise = jax.random.randint(noise_key, targets.shape, 0, self.vocabulary)
        targets = jnp.where(random_targets, noise, targets)
        if per_example:
            each = jax.vmap(lambda x, y: jax.value_and_grad(mean_loss)(params, self.model, x[None], y[None]))
            losses, gradients = each(inputs, targets)
            loss = losses.mean()
        else:
            loss, gradients = jax.value_and_grad(mean_loss)(params, self.model, inputs, targets)
        return loss, jax.tree.map(lambda gradient: gradient * scale, gradients)

    def _validate(self, params):
        """Return the mean loss over a fixed set of batches."""
        keys = jax.random.split(jax.random.key(2), VALIDATION_BATCHES)
        return jax.lax.map(lambda key: mean_loss(params, self.model, *draw_batch(key, self._validation)), keys).mean()


class Optimizer(NamedTuple):
    """A clipping rule and an optimizer as one compiled step, which all runs with both share."""

    init: Callable
    update: Callable


def make_optimizer(rule, descent):
    transform = assemble(rule, descent)

    def update(params, opt_state, gradients, loss):
        updates, opt_state = transform.update(gradients, opt_state, params, value=loss)
        return optax.apply_updates(params, updates), opt_state, {"loss": loss} | novoclip.metrics(opt_state)

    return Optimizer(jax.jit(transform.init), jax.jit(update))


class Faults(NamedTuple):
    """What goes wrong at each step: the gradient is multiplied by `scale`, the targets may be random."""

    scale: np.ndarray
    random_targets: np.ndarray


def make_faults(steps, nan_step=None, *, stormed):
    faults = Faults(np.ones(steps, np.float32), np.zeros(steps, bool))
    if stormed:
        faults.scale[steps * 2 // 5 :][:3] = 1000
        faults.random_targets[steps * 11 // 20 :][:3] = True
        faults.scale[steps * 7 // 10] = 1000
        if nan_step:
            faults.scale[nan_step - 1] = np.nan
    return faults


@dataclass
class Run:
    """One training, and what has been measured of it so far."""

    label: str
    faults: Faults
    rule: Rule = NO_RULE
    seed: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    validation: float | None = None

    def column(self, *names):
        """Return the first of these statistics that was measured, one element per step, or None."""
        for name in names:
            if self.steps and name in self.steps[0]:
                return np.array([step[name] for step in self.steps])
        return None


def train(run, task, optimizer, report=None, stopped=None):
    """Train for as many steps as the run has faults, and measure the validation loss.

    Args:
      run: the Run, to which each step's statistics are added.
      task: the Task.
      optimizer: the run's Optimizer.
      report: a function of the run and the numbers of its latest steps, called after every few.
      stopped: a `threading.Event`; once it is set, training stops without a validation loss.
    """
    params = task.init(run.seed)
    opt_state = optimizer.init(params)
    steps, per_example = len(run.faults.scale), run.rule.place == "examples"
    for start in range(0, steps, CHUNK):
        if stopped and stopped.is_set():
            return
        measured = []
        for step in range(start, min(start + CHUNK, steps)):
            scale, random_targets = run.faults.scale[step], run.faults.random_targets[step]
            loss, gradients = task.gradients(params, run.seed, step, scale, random_targets, per_example=per_example)
            params, opt_state, statistics = optimizer.update(params, opt_state, gradients, loss)
            measured.append(statistics)
        run.steps += jax.device_get(measured)
        if report:
            report(run, range(start + 1, len(run.steps) + 1))
    run.validation = float(task.validate(params))
    if report:
        report(run, ())


def final_loss(task, rule, optimizer, *, stormed, seed=0):
    """Return the validation loss after 1000 steps, as the benchmarks compare it."""
    run = Run("", make_faults(1000, stormed=stormed), rule, seed)
    train(run, task, optimizer)
    return run.validation
