"""Every row of docs/migration.md: both of its cells give the same updates, in float64.

The first cell is evaluated with the documented formulas of torch, Keras and JAX trainers in NumPy, and with Optax.
"""

import functools
import math
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled

PAGE = (Path(__file__).parent.parent / "docs" / "migration.md").read_text(encoding="utf-8")
STEPS = 100
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
CELL = re.compile(r"`([^`]*)`")
SECTIONS = ("torch", "Keras", "Optax", "JAX trainers")
# Theirs add 1e-6 or 1e-8 to the norm that they divide by; our schedule is in float32.
ROUGH = {"clip_grad_norm_": 1e-6, "normalize_by_update_norm": 1e-5, "axlearn": 1e-7, "lr_decay": 1e-6}


def rows():
    """(section, line there, line here) of each row whose cells are code."""
    for section in SECTIONS:
        text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
        for line in text.splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("| ") else []
            name = cells.pop(0) if section == "JAX trainers" and cells else section
            if len(cells) >= 2 and all(CELL.fullmatch(cell) for cell in cells[:2]):
                yield name, *(CELL.fullmatch(cell)[1] for cell in cells[:2])


ROWS = list(rows())


def inputs():
    """Gradients whose norms are on both sides of all thresholds, with spikes; losses; parameters."""
    generator = np.random.default_rng(0)
    shapes = {"kernel": (2, 3), "bias": (3,)}
    sizes = np.exp(0.3 * generator.normal(size=STEPS)) * np.where(np.isin(np.arange(STEPS), (20, 80, 90)), 30.0, 0.4)
    gradients = [{name: size * generator.normal(size=s) for name, s in shapes.items()} for size in sizes]
    return gradients, 2 + 0.1 * generator.normal(size=STEPS), {n: generator.normal(size=s) for n, s in shapes.items()}


GRADIENTS, LOSSES, PARAMS = inputs()


def norm_of(tree, order=2):
    return np.linalg.norm(np.concatenate([np.ravel(leaf) for leaf in tree.values()]), order)


def scaled(tree, factor):
    return {name: factor * leaf for name, leaf in tree.items()}


def rule(update):
    """A transform of gradients: update(gradients, params) returns the updates."""
    return lambda gradients, params, step, loss: update(gradients, params)


def leaf_by_leaf(update):
    """An optimizer: update(g, w, t, state) of one leaf returns its update; t counts from 1, `state` is a dict."""
    states = {name: {} for name in PARAMS}
    return lambda gradients, params, step, loss: {
        name: update(g, params[name], step + 1, states[name]) for name, g in gradients.items()
    }


# torch, with its parameters and defaults.


def clip_grad_norm_(p, max_norm, norm_type=2.0):
    return rule(lambda g, _: scaled(g, min(1.0, max_norm / (norm_of(g, norm_type) + 1e-6))))


def clip_grad_value_(p, clip_value):
    return rule(lambda g, _: {name: np.clip(leaf, -clip_value, clip_value) for name, leaf in g.items()})


def torch_sgd(p, lr, momentum=0, dampening=0, weight_decay=0, *, nesterov=False):
    def update(g, w, t, state):
        g = g + weight_decay * w
        if momentum:
            state["b"] = g if t == 1 else momentum * state["b"] + (1 - dampening) * g
            g = g + momentum * state["b"] if nesterov else state["b"]
        return -lr * g

    return leaf_by_leaf(update)


def torch_adam(p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, *, amsgrad=False, decoupled=False):
    def update(g, w, t, state):
        g = g if decoupled else g + weight_decay * w
        m, v = (state.get(name, 0.0) for name in "mv")
        state["m"], state["v"] = m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        state["largest"] = np.maximum(state.get("largest", 0.0), v)
        root = np.sqrt(state["largest"] if amsgrad else v) / math.sqrt(1 - betas[1] ** t)
        return -lr * (m / (1 - betas[0] ** t) / (root + eps) + decoupled * weight_decay * w)

    return leaf_by_leaf(update)


def torch_rmsprop(p, lr=0.01, alpha=0.99, eps=1e-8, momentum=0, *, centered=False):
    def update(g, w, t, state):
        state["v"] = alpha * state.get("v", 0.0) + (1 - alpha) * g**2
        state["g"] = alpha * state.get("g", 0.0) + (1 - alpha) * g
        step = g / (np.sqrt(state["v"] - centered * state["g"] ** 2) + eps)
        state["b"] = momentum * state.get("b", 0.0) + step
        return -lr * state["b"]

    return leaf_by_leaf(update)


def torch_adagrad(p, lr=0.01, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
    def update(g, w, t, state):
        state["sum"] = state.get("sum", initial_accumulator_value) + g**2
        return -lr / (1 + (t - 1) * lr_decay) * g / (np.sqrt(state["sum"]) + eps)

    return leaf_by_leaf(update)


TORCH = {
    "p": None,
    "inf": math.inf,
    "clip_grad_norm_": clip_grad_norm_,
    "clip_grad_value_": clip_grad_value_,
    "SGD": torch_sgd,
    "Adam": torch_adam,
    "AdamW": functools.partial(torch_adam, weight_decay=0.01, decoupled=True),
    "RMSprop": torch_rmsprop,
    "Adagrad": torch_adagrad,
}

# Keras, with its parameters and defaults.


def keras_clipped(gradients, *, clipnorm=None, global_clipnorm=None, clipvalue=None):
    if clipnorm:
        return {name: leaf * clipnorm / max(np.linalg.norm(leaf), clipnorm) for name, leaf in gradients.items()}
    if global_clipnorm:
        return scaled(gradients, global_clipnorm * min(1 / norm_of(gradients), 1 / global_clipnorm))
    if clipvalue:
        return {name: np.clip(leaf, -clipvalue, clipvalue) for name, leaf in gradients.items()}
    return gradients


def keras(make, learning_rate):
    """An optimizer from make(learning_rate, its arguments), which returns a function of one leaf."""

    def optimizer(
        learning_rate=learning_rate, *, weight_decay=0.0, clipnorm=None, global_clipnorm=None, clipvalue=None, **more
    ):
        update = leaf_by_leaf(make(learning_rate, **more))

        def step(gradients, params, step, loss):
            clipped = keras_clipped(gradients, clipnorm=clipnorm, global_clipnorm=global_clipnorm, clipvalue=clipvalue)
            # First the weights decay, then the step is taken.
            decay = scaled(params, -learning_rate * weight_decay)
            updates = update(clipped, params, step, loss)
            return {name: updates[name] + decay[name] for name in updates}

        return step

    return optimizer


def keras_sgd(lr, momentum=0.0, *, nesterov=False):
    def update(g, w, t, state):
        state["m"] = momentum * state.get("m", 0.0) - lr * g
        return momentum * state["m"] - lr * g if nesterov else state["m"]

    return update


def keras_adam(lr, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
    def update(g, w, t, state):
        m, v = (state.get(name, 0.0) for name in "mv")
        state["m"], state["v"] = m, v = m + (g - m) * (1 - beta_1), v + (g**2 - v) * (1 - beta_2)
        return -lr * math.sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (np.sqrt(v) + epsilon)

    return update


def keras_rmsprop(lr, rho=0.9, momentum=0.0, epsilon=1e-7, *, centered=False):
    def update(g, w, t, state):
        state["v"] = rho * state.get("v", 0.0) + (1 - rho) * g**2
        state["g"] = rho * state.get("g", 0.0) + (1 - rho) * g
        state["m"] = momentum * state.get("m", 0.0) + lr * g / np.sqrt(
            state["v"] - centered * state["g"] ** 2 + epsilon
        )
        return -state["m"]

    return update


def keras_adagrad(lr, initial_accumulator_value=0.1, epsilon=1e-7):
    def update(g, w, t, state):
        state["sum"] = state.get("sum", initial_accumulator_value) + g**2
        return -lr * g / np.sqrt(state["sum"] + epsilon)

    return update


KERAS = {
    "SGD": keras(keras_sgd, 0.01),
    "Adam": keras(keras_adam, 1e-3),
    "AdamW": functools.partial(keras(keras_adam, 1e-3), weight_decay=0.004),
    "RMSprop": keras(keras_rmsprop, 1e-3),
    "Adagrad": keras(keras_adagrad, 1e-3),
}

# JAX trainers.


def global_norm_clip(max_norm, *, drop_norm=math.inf, eps=0.0):
    return rule(lambda g, _: scaled(g, min(1.0, max_norm / (norm_of(g) + eps)) * (norm_of(g) < drop_norm)))


def skipping(optimizer, window, sigmas, *, ddof, least):
    """Skip a step whose norm or loss is above mean + sigmas * std of the window, all steps of which are kept."""
    norms, losses = [], []

    def step(gradients, params, step, loss):
        bad = False
        for kept, value in ((norms, norm_of(gradients)), (losses, loss)):
            if len(kept) >= least:
                bad |= value > np.mean(kept[-window:]) + sigmas * max(np.std(kept[-window:], ddof=ddof), 1e-6)
            kept.append(value)
        return scaled(gradients, 0.0 if bad else -0.1)

    return step


def dropping(optimizer, *, drop_norm, max_norm, eps=1e-8):
    def update(gradients, params):
        return scaled(
            gradients, -0.1 * min(1.0, max_norm / (norm_of(gradients) + eps)) * (norm_of(gradients) < drop_norm)
        )

    return rule(update)


def historical_norm_clip(window=128, sigmas=3.0):
    norms = []

    def step(gradients, params, step, loss):
        norm = norm_of(gradients)
        known = len(norms) >= window // 2
        limit = np.mean(norms[-window:]) + sigmas * max(np.std(norms[-window:]), 1e-6) if known else math.inf
        norms.append(norm)
        return scaled(gradients, min(1.0, limit / norm))

    return step


def dreamer_agc(clip, pmin=1e-3):
    def limited(g, w):
        return g / max(1.0, np.linalg.norm(g) / (clip * max(pmin, np.linalg.norm(w))))

    return rule(lambda gradients, params: {name: limited(g, params[name]) for name, g in gradients.items()})


SGD = optax.sgd(0.1)  # the optimizer of the rows that wrap one
TRAINERS = {
    "optimizer": SGD,
    "gradient_clipping_threshold": global_norm_clip,
    "skip_step_on_spikes": functools.partial(skipping, ddof=1, least=63),
    "max_grad_norm": global_norm_clip,
    "skip_bad_steps": functools.partial(skipping, window=128, sigmas=6.0, ddof=0, least=64),
    "clip_update_by_historical_norm": historical_norm_clip,
    "clip_by_global_norm": functools.partial(global_norm_clip, eps=1e-8),
    "skip_and_clip_by_global_norm": dropping,
    "clip_by_agc": dreamer_agc,
    "optax": optax,
}


def named_on_the_page():
    """What the blocks beside the tables define."""
    names = {"jnp": jnp, "novoclip": novoclip, "optax": optax, "optimizer": SGD}
    for start in ("def keras_epsilon", "mask = ", "at_most_one = "):
        (block,) = (block for block in BLOCKS if block.startswith(start))
        exec(block, names)
    return names


HERE = named_on_the_page()
THERE = {"torch": TORCH, "Keras": KERAS, "Optax": HERE}


def in_numpy(there):
    """The updates of each step by a formula."""
    params, found = PARAMS, []
    for step, (gradients, loss) in enumerate(zip(GRADIENTS, LOSSES, strict=True)):
        found.append(there(gradients, params, step, loss))
        params = {name: params[name] + found[-1][name] for name in params}
    return {name: np.stack([updates[name] for updates in found]) for name in PARAMS}


def in_one_program(transforms):
    """The updates of each step by each transform, in one compilation."""

    def step(carry, given):
        gradients, loss = given
        found, kept = [], []
        for transform, (params, state) in zip(transforms, carry, strict=True):
            update = optax.with_extra_args_support(transform).update
            updates, after = update(gradients, state, params, value=loss)
            found.append(updates)
            kept.append((optax.apply_updates(params, updates), after))
        return kept, found

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADIENTS)
    start = [(jax.tree.map(jnp.asarray, PARAMS), transform.init(PARAMS)) for transform in transforms]
    return jax.jit(lambda: jax.lax.scan(step, start, (stacked, jnp.asarray(LOSSES)))[1])()


@functools.cache
def updates():
    """For each row the updates there and here."""
    there = [eval(line, dict(THERE.get(name, TRAINERS))) for name, line, _ in ROWS]
    here = [eval(line, dict(HERE)) for *_, line in ROWS]
    transforms = [x for x in (*here, *there) if isinstance(x, optax.GradientTransformation)]
    found = iter(jax.tree.map(np.asarray, in_one_program(transforms)))
    ours = [next(found) for _ in here]
    theirs = [next(found) if isinstance(x, optax.GradientTransformation) else in_numpy(x) for x in there]
    return list(zip(theirs, ours, strict=True))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("row", range(len(ROWS)), ids=[f"{name}: {line}" for name, line, _ in ROWS])
def test_both_cells_of_a_row_give_the_same_updates(row):
    name, line, _ = ROWS[row]
    expected, found = updates()[row]
    close = next((tolerance for part, tolerance in ROUGH.items() if part in f"{name}: {line}"), 1e-9)
    for leaf in PARAMS:
        assert found[leaf].dtype == np.float64
        np.testing.assert_allclose(found[leaf], expected[leaf], rtol=close, atol=1e-12, err_msg=leaf)


def test_guard_nonfinite_skips_what_apply_if_finite_skips():
    """The row above has only finite gradients."""
    ours, theirs = (
        compiled(guard)
        for guard in (novoclip.guard_nonfinite(SGD), optax.apply_if_finite(SGD, max_consecutive_errors=5))
    )
    params = jnp.ones(2)
    states = [ours.init(params), theirs.init(params)]
    for gradient in (1.0, jnp.nan, jnp.inf, 2.0):
        found, states[0] = ours.update(jnp.array([gradient, 1.0]), states[0], params)
        expected, states[1] = theirs.update(jnp.array([gradient, 1.0]), states[1], params)
        np.testing.assert_array_equal(found, expected)
    assert int(states[0].nonfinite) == int(states[1].total_notfinite) == 2


@pytest.mark.usefixtures("x64")
def test_guards_skip_the_steps_that_theirs_skip():
    """Without a spike the rows above would not tell."""
    for part, steps in (("skip_step_on_spikes", [80]), ("skip_bad_steps", [80]), ("skip_and_clip", [20, 80, 90])):
        (row,) = (row for row, (_, line, _) in enumerate(ROWS) if line.startswith(part))
        kernel = updates()[row][1]["kernel"]
        assert np.flatnonzero(np.all(kernel == 0, axis=(1, 2))).tolist() == steps


def test_the_tables_are_read_whole():
    counts = {section: sum(name == section for name, *_ in ROWS) for section in ("torch", "Keras", "Optax")}
    assert counts == {"torch": 18, "Keras": 13, "Optax": 9}
    assert len(ROWS) == 51
