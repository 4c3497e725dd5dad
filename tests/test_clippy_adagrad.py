"""Clippy's own optimizer equals the authors' code, written again in NumPy, and the numbers of their tests.

The code is tensorflow_recommenders/experimental/optimizers/clippy_adagrad.py of
https://github.com/tensorflow/recommenders, at commit cf1dafa988f223ed5f30b68cb9aed518484b3a1d.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

import novoclip
from novoclip.optimizers.clippy_adagrad import clippy_adagrad
from tests.steps import compiled

SHAPES = {"bias": (3,), "kernel": (4, 3), "scale": ()}


def shrink_by_references(tensor, references, relative_factors, absolute_factor):
    most = sum(
        (np.abs(reference) * factor for reference, factor in zip(references, relative_factors, strict=True)),
        start=absolute_factor,
    )
    size = np.abs(tensor)
    per_element = np.where(tensor == 0, 1.0, most / np.where(size == 0, 1.0, size))
    scale = min(1.0, np.min(per_element))
    return tensor * scale, scale


def published(
    gradients,
    params,
    learning_rate=0.001,
    initial_accumulator_value=0.1,
    variable_relative_threshold=0.1,
    accumulator_relative_threshold=0.0,
    absolute_threshold=1e-7,
    epsilon=1e-7,
    clip_accumulator_update=False,
    use_standard_accumulator_update=False,
):
    """Yield the parameters, the accumulators and the clipping factors after each step."""
    variables = {name: value.copy() for name, value in params.items()}
    accumulators = {name: np.full(value.shape, initial_accumulator_value) for name, value in params.items()}
    for step, gradient in enumerate(gradients):
        factors = {}
        for name, grad in gradient.items():
            if use_standard_accumulator_update:
                accumulators[name] = accumulators[name] + grad**2
            lr = learning_rate(step) if callable(learning_rate) else learning_rate
            precondition = 1 / np.sqrt(accumulators[name] + epsilon)
            delta = lr * grad * precondition
            clipped, factors[name] = shrink_by_references(
                delta,
                [variables[name], precondition],
                [variable_relative_threshold, accumulator_relative_threshold],
                absolute_threshold,
            )
            if not use_standard_accumulator_update:
                learned = grad * factors[name] if clip_accumulator_update else grad
                accumulators[name] = accumulators[name] + learned**2
            variables[name] = variables[name] - clipped
        yield dict(variables), dict(accumulators), factors


def storm(seed=0):
    """50 gradients with spikes, tiny ones, zeros in places, in a leaf and in all, and weights, one of them 0."""
    generator = np.random.default_rng(seed)

    def draw():
        return {name: np.asarray(generator.normal(size=shape)) for name, shape in SHAPES.items()}

    gradients = [draw() for _ in range(50)]
    gradients[0]["bias"] = np.zeros(3)
    gradients[7] = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for step, by in ((12, 1e4), (20, 1e3), (30, 1e-6), (31, 1e-6), (40, 1e8)):
        gradients[step] = {name: by * leaf for name, leaf in gradients[step].items()}
    for gradient in gradients[::3]:
        gradient["kernel"][1] = 0.0
    return gradients, draw()


def run(transform, gradients, params):
    @jax.jit
    def step(gradient, state, params):
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = transform.init(params)
    for gradient in gradients:
        params, state = step(gradient, state, params)
        yield jax.tree.map(np.asarray, (params, state.moments))


def one_step(rule, gradients, params, state=None):
    step = jax.jit(lambda g, p, state: rule.update(g, rule.init(p) if state is None else state, p))
    return step(gradients, params, state)


OPTIONS = [
    {},
    {"learning_rate": 1.0, "absolute_threshold": 1e-2},
    {
        "learning_rate": 0.3,
        "absolute_threshold": 1e-2,
        "accumulator_relative_threshold": 1e-2,
        "clip_accumulator_update": True,
    },
    {"learning_rate": 0.3, "absolute_threshold": 1e-2, "use_standard_accumulator_update": True},
    {"learning_rate": 0.3, "accumulator_relative_threshold": 0.2, "variable_relative_threshold": 0.0},
    {"learning_rate": 0.1, "initial_accumulator_value": 0.01, "epsilon": 1e-3, "absolute_threshold": 0.1},
    {"learning_rate": lambda step: 0.5 * 0.9**step, "absolute_threshold": 1e-2},
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", OPTIONS)
def test_its_trajectory_is_that_of_the_authors_code(options):
    gradients, params = storm()
    ours = {"learning_rate": 0.001, **options}
    if "epsilon" in ours:
        ours["eps_root"] = ours.pop("epsilon")
    clipped = 0
    steps = zip(run(clippy_adagrad(**ours), gradients, params), published(gradients, params, **options), strict=True)
    for step, ((found, state), (wanted, accumulators, factors)) in enumerate(steps):
        for place, (name, value) in enumerate(wanted.items()):
            at = f"{step} {name}"
            np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=at)
            np.testing.assert_allclose(state.root[name] ** 2, accumulators[name], rtol=1e-12, err_msg=at)
            if state.norms[place] > 0:
                np.testing.assert_allclose(
                    state.norms_after[place] / state.norms[place], factors[name], rtol=1e-12, err_msg=at
                )
            clipped += factors[name] < 1
    assert clipped > 3


@pytest.mark.usefixtures("x64")
def test_weights_of_zero_stop_their_tensor_as_published():
    gradients, params = storm()
    params["kernel"][0, 0] = 0.0
    options = {"learning_rate": 1.0, "absolute_threshold": 0.0}
    (found, _), (wanted, _, _) = (
        list(steps)[-1]
        for steps in (run(clippy_adagrad(**options), gradients, params), published(gradients, params, **options))
    )
    # In step 0, the element's gradient is not 0.
    np.testing.assert_array_equal(wanted["kernel"], params["kernel"])
    np.testing.assert_array_equal(found["kernel"], params["kernel"])
    np.testing.assert_allclose(found["scale"], wanted["scale"], rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_numbers_of_the_authors_tests():
    # test_single_step_clip and test_single_step_clip_with_accumulator of their clippy_adagrad_test.py.
    params, gradients = np.array([1.0, 2.0]), np.array([10.0, 10.0])
    for own, accumulated in ((False, 10.0), (True, 10.0 * 0.6 * 0.1 / (10.0 * 0.2))):
        rule = clippy_adagrad(0.2, 0.01, 0.4, 0.01, 0.1, 0.0, clip_accumulator_update=own)
        updates, state = one_step(rule, gradients, params)
        np.testing.assert_allclose(params + updates, [0.4, 1.4], rtol=1e-14)
        np.testing.assert_allclose(state.moments.root**2, np.full(2, 0.01 + accumulated**2), rtol=1e-14)
        assert state.moments.norms_after / state.moments.norms == pytest.approx(0.6 * 0.1 / (10.0 * 0.2), rel=1e-14)


def test_its_state_may_be_donated():
    rule, params = clippy_adagrad(0.1), jnp.ones(2)
    update = jax.jit(rule.update, donate_argnums=1)
    _, state = update(params, rule.init(params), params)
    assert update(params, state, params)[1].steps == 2


def test_a_step_that_is_not_finite_changes_nothing_but_counters():
    gradients, params = storm()
    rule = clippy_adagrad(0.1, absolute_threshold=0.01)
    _, state = one_step(rule, gradients[0], params)
    updates, after = one_step(rule, {**gradients[1], "bias": np.array([1.0, np.nan, 1.0])}, params, state)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))
    jax.tree.map(np.testing.assert_array_equal, after.moments, state.moments)
    assert after.nonfinite == 1


@pytest.mark.parametrize("options", [{}, {"clip_accumulator_update": True}, {"use_standard_accumulator_update": True}])
def test_gradients_of_any_size_give_finite_steps_within_the_bound(options):
    params, bound = np.array([1.0, -2.0, 0.0], np.float32), np.array([0.11, 0.21, 0.01])
    rule = compiled(clippy_adagrad(0.1, absolute_threshold=0.01, **options))
    start = rule.init(params)
    for size in (1e-30, 1e-8, 1e30, 3e38):
        updates, state = rule.update(np.float32(size) * np.array([1.0, -0.5, 0.25], np.float32), start, params)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((updates, state.moments)))
        assert np.max(np.abs(updates) / bound) <= 1 + 1e-5
        if size > 1 and "use_standard_accumulator_update" not in options:
            # The bound of an element is reached.
            assert np.max(np.abs(updates) / bound) == pytest.approx(1, rel=1e-5)


def test_with_an_accumulator_and_an_eps_of_0_zero_gradients_give_0():
    rule = clippy_adagrad(1.0, 0.0, eps_root=0.0, absolute_threshold=0.01)
    params = jnp.ones(2)
    updates, _ = one_step(rule, jnp.zeros(2), params)
    np.testing.assert_array_equal(updates, [0.0, 0.0])


def test_it_has_the_options_of_optimizers():
    gradients, params = storm()
    plain = clippy_adagrad(0.1, absolute_threshold=1e3)
    decayed = clippy_adagrad(0.1, absolute_threshold=1e3, weight_decay=0.5, clip=novoclip.clip_by_global_norm(1e-3))
    small = novoclip.clip_by_global_norm(1e-3)

    @jax.jit
    def both(gradient, params):
        clipped, _ = small.update(gradient, small.init(params))
        expected, _ = plain.update(clipped, plain.init(params), params)
        return expected, *decayed.update(gradient, decayed.init(params), params)

    expected, found, state = both(gradients[3], params)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value - 0.1 * 0.5 * params[name], rtol=1e-5, atol=1e-9)
    assert state.clip.clipped == 1


def test_sharded_parameters_give_what_whole_ones_give():
    mesh = Mesh(np.array(jax.devices()[:8]), ("x",))
    params, gradients = (np.linspace(*ends, 32, dtype=np.float32).reshape(16, 2) for ends in ((-1, 1), (5, -3)))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    placed = [jax.device_put(leaf, sharding) for leaf in (params, gradients)]
    rule = clippy_adagrad(1.0, absolute_threshold=0.01)
    whole, _ = one_step(rule, gradients, params)
    state = rule.init(placed[0])
    assert state.moments.root.sharding.is_equivalent_to(sharding, 2)
    found, _ = one_step(rule, placed[1], placed[0], state)
    np.testing.assert_allclose(found, whole, rtol=1e-6)


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "write only one", {"clip_accumulator_update": True, "use_standard_accumulator_update": True}),
        (ValueError, r"absolute_threshold must be a number.*-1", {"absolute_threshold": -1.0}),
        (TypeError, "clip_accumulator_update must be True or False", {"clip_accumulator_update": 1}),
        (TypeError, "initial_accumulator_value must be a number", {"initial_accumulator_value": lambda step: 0.1}),
        (ValueError, "per must name blocks", {"per": "element"}),
    ],
)
def test_mistakes_are_named(error, match, arguments):
    with pytest.raises(error, match=match):
        clippy_adagrad(0.1, **arguments)


def test_it_needs_the_parameters():
    rule = clippy_adagrad(0.1)
    with pytest.raises(ValueError, match="compares steps with the parameters"):
        rule.update(jnp.ones(2), rule.init(jnp.ones(2)))
