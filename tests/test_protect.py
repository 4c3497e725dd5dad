"""`protect`: what its docstring promises, on made records, beside a loop, and as the chain that it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks import defaults, guards
import novoclip
from tests.programs import WRITES_IN_PLACE
from tests.steps import compiled

RECORDS = guards.synthetic()


def test_spikes_are_caught_and_calm_steps_left_alone():
    protected = novoclip.protect(optax.identity())
    judged = [defaults.judge(*pair) for pair in zip(RECORDS, defaults.let_through(protected, RECORDS), strict=True)]
    caught, spikes, touched, calm = np.sum(judged, axis=0)
    assert caught >= 0.95 * spikes
    assert touched <= 0.005 * calm
    assert all(each[0] >= 0.95 * each[1] for each in judged)


def by_hand(norms, clip_at=3.0, skip_at=4.0, decay=0.9, warmup=7, max_in_a_row=16):
    """What becomes of each norm, in float64: clipped at 3 means, skipped above 4."""
    found, row = [], 0
    means, seen = [0.0, 0.0], 0
    for norm in norms:
        bounds = [factor * mean if seen else np.inf for factor, mean in zip((clip_at, skip_at), means, strict=True)]
        spike = norm > bounds[1] and seen >= warmup
        if not np.isfinite(norm) or (spike and row < max_in_a_row):
            found.append(0.0)
            row = row + 1 if np.isfinite(norm) else row
            continue
        row = row + 1 if spike else 0
        found.append(min(norm, bounds[0]))
        seen += 1
        rate = max(1 - decay, 1 / seen)
        means = [mean + rate * (min(norm, bound) - mean) for mean, bound in zip(means, bounds, strict=True)]
    return found


@pytest.mark.usefixtures("x64")
def test_its_decisions_are_those_of_a_loop():
    generator = np.random.default_rng(0)
    norms = np.exp(generator.normal(size=300))
    norms[[0, 50, 51, 120]] *= 30, 100, 1000, 3.5
    norms[200:230] *= 50  # a level that stays
    norms[[10, 130]] = np.nan, np.inf
    rule = compiled(novoclip.protect(optax.identity()))
    state, found = rule.init(np.zeros(1)), []
    for norm in norms:
        updates, state = rule.update(np.array([norm]), state)
        found.append(updates.item())
    np.testing.assert_allclose(found, by_hand(norms), rtol=1e-12)


def test_it_is_the_chain_that_its_docstring_shows():
    params = {"w": jnp.ones(3)}
    one = novoclip.protect(optax.adam(0.1))
    other = novoclip.skip_spikes(
        optax.adam(0.1),
        novoclip.limits.running_mean(4.0, decay=0.9, warmup=7),
        clip=novoclip.limits.running_mean(3.0, decay=0.9),
    )
    assert jax.tree.structure(one.init(params)) == jax.tree.structure(other.init(params))


def test_a_step_that_is_not_finite_is_skipped_from_the_first_on_and_named():
    params = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    optimizer = compiled(novoclip.protect(optax.adamw(0.1)))
    state = optimizer.init(params)
    updates, after = optimizer.update(params | {"b": np.float32([1.0, np.nan])}, state, params)
    jax.tree.map(lambda u: np.testing.assert_array_equal(u, 0), updates)
    jax.tree.map(np.testing.assert_array_equal, after.inner, state.inner)
    assert "b: not finite in 1 of 1 steps" in novoclip.locate_nonfinite(after, params)


def test_a_clipped_step_is_what_the_optimizer_is_given():
    optimizer = compiled(novoclip.protect(optax.sgd(1.0)))
    state = optimizer.init(np.zeros(2, np.float32))
    _, state = optimizer.update(np.float32([0.6, 0.8]), state)
    updates, state = optimizer.update(np.float32([30.0, 40.0]), state)
    np.testing.assert_allclose(updates, [-1.8, -2.4], rtol=1e-6)
    figures = novoclip.metrics(state)
    assert figures["spikes/norm"] == 50
    assert figures["spikes/clip_limit"] == 3
    assert (figures["spikes/clipped"], figures["spikes/skipped"]) == (1, 0)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"clip": False}, [1.0] * 10 + [0.0]),
        ({"skip": False}, [1.0] * 10 + [3.0]),
        ({"clip": 0.5, "skip": False}, [0.5] * 11),
        ({"skip": 0.5}, [0.0] * 11),
        ({"clip": novoclip.limits.constant(0.25), "skip": novoclip.limits.constant(50.0)}, [0.25] * 10 + [0.0]),
    ],
)
def test_each_part_can_be_replaced_or_switched_off(options, expected):
    optimizer = compiled(novoclip.protect(optax.identity(), **options))
    state, found = optimizer.init(np.zeros(1, np.float32)), []
    for norm in [1.0] * 10 + [100.0]:
        updates, state = optimizer.update(np.float32([norm]), state)
        found.append(updates.item())
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_loss_far_above_the_latest_is_skipped():
    optimizer = compiled(novoclip.protect(optax.identity()))
    state, one = optimizer.init(np.zeros(1, np.float32)), np.ones(1, np.float32)
    for loss in [2.0] * 20:
        updates, state = optimizer.update(one, state, value=loss)
    assert updates.item() == 1
    updates, state = optimizer.update(one, state, value=5.0)
    assert updates.item() == 0


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="clip must be a number, or a Limit that needs no parameters"):
        novoclip.protect(optax.identity(), clip="3")
    with pytest.raises(TypeError, match="skip must be a number, or a Limit"):
        novoclip.protect(optax.identity(), skip=novoclip.limits.agc(0.1))
    for name in ("clip", "skip"):
        for number in (-1.0, float("nan")):
            with pytest.raises(ValueError, match=rf"{name} must be a number in \[0, inf\]"):
                novoclip.protect(optax.identity(), **{name: number})
    with pytest.raises(ValueError, match="value_limit must not be NaN"):
        novoclip.protect(optax.identity(), value_limit=float("nan"))
    with pytest.raises(TypeError, match="not called"):
        novoclip.protect(optax.adam)


# States with keys, Python numbers, branches, loops, counters, several trees, and none.
OPTIMIZERS = {
    "adafactor": optax.adafactor(1e-2),
    "dog": optax.contrib.dog(1.0),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "micro-batches": optax.MultiSteps(optax.adam(0.1), 2),
    "noise": optax.noisy_sgd(0.1, eta=0.1, key=jax.random.key(0)),
    "novoclip's": novoclip.adamw(0.1, clip=novoclip.agc(0.1)),
    "schedule-free": optax.contrib.schedule_free_adamw(1e-2),
    "sgd": optax.sgd(0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_around_any_optimizer_good_steps_are_its_own_and_bad_ones_leave_no_trace(name):
    inner = optax.with_extra_args_support(OPTIMIZERS[name]) if name != "micro-batches" else OPTIMIZERS[name]
    guard = novoclip.protect(OPTIMIZERS[name])
    params = {"w": np.arange(1.0, 7.0, dtype=np.float32).reshape(2, 3)}

    @jax.jit
    def step(state, guarded, scale):
        gradients = jax.tree.map(lambda p: scale * p, params)
        return inner.update(gradients, state, params), guard.update(gradients, guarded, params)

    state, guarded = inner.init(params), guard.init(params)
    for _ in range(3):
        (expected, state), (updates, guarded) = step(state, guarded, 0.1)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)
    _, (updates, after) = step(state, guarded, jnp.nan)
    np.testing.assert_array_equal(updates["w"], 0)
    is_key = lambda x: jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key)  # noqa: E731
    bits = functools.partial(jax.tree.map, lambda x: jax.random.key_data(x) if is_key(x) else x)
    jax.tree.map(np.testing.assert_array_equal, bits(after.inner), bits(guarded.inner))


def test_an_optimizer_that_changes_the_form_of_its_state_is_refused():
    grows = optax.GradientTransformation(
        lambda params: (), lambda updates, state, params=None: (updates, (*state, 1.0))
    )
    guard = compiled(novoclip.protect(grows))
    with pytest.raises(TypeError, match="the optimizer inside changed its state"):
        guard.update(np.ones(2, np.float32), guard.init(np.ones(2, np.float32)))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda u: [u["b"], u["a"]],
        lambda u: u | {"c": u["a"]},
        lambda u: {"a": None, "b": u["b"]},
        lambda u: {"a": u["a"][:1], "b": u["b"]},
    ],
)
def test_updates_of_another_structure_or_shape_are_refused(wrong):
    inner = optax.GradientTransformation(lambda params: (), lambda updates, state, params=None: (wrong(updates), state))
    gradients = {"a": np.float32([1.0, 2.0]), "b": np.float32([30.0, 40.0])}
    for guard in map(compiled, (novoclip.protect(inner), novoclip.guard_nonfinite(inner))):
        with pytest.raises(TypeError, match="returned updates of another structure, or of other shapes"):
            guard.update(gradients, guard.init(gradients))


def test_a_state_that_changes_its_dtype_is_left_alone_to_the_bit():
    def update(updates, state, params=None):
        return updates, jax.tree.map(lambda x: (x + 1).astype(jnp.bfloat16), state)

    inner = optax.GradientTransformation(lambda params: jnp.float32(1.2345678), update)
    guard = compiled(novoclip.guard_nonfinite(inner))
    _, state = guard.update(np.float32([np.nan]), guard.init(np.ones(1, np.float32)))
    assert np.asarray(state.inner) == np.float32(1.2345678)


def test_none_is_neither_a_limit_nor_no_limit():
    for name in ("clip", "skip"):
        with pytest.raises(TypeError, match=f"{name} must be a number, or a Limit .*; got None"):
            novoclip.protect(optax.identity(), **{name: None})


def test_steps_without_jit_compile_nothing_anew(caplog):
    optimizer = novoclip.protect(optax.sgd(0.1, momentum=0.9))
    params = {"w": jnp.ones(3)}
    state = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(params, state, params)
    with jax.log_compiles():
        optimizer.update(params, state, params)
    assert not [record for record in caplog.records if "Finished XLA compilation" in record.getMessage()]


@WRITES_IN_PLACE
def test_a_step_makes_no_copy_of_the_gradients():
    optimizer = novoclip.protect(optax.adam(1e-3))
    params = {"w": jax.ShapeDtypeStruct((8192, 8192), "float32")}
    state = jax.eval_shape(optimizer.init, params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    memory = step.lower(params, state, params).compile().memory_analysis()
    assert memory.temp_size_in_bytes <= 0.01 * 4 * params["w"].size
