"""How far one gradient reaches, how long a second moment remembers it, and how fast a limit follows."""

import functools
import math

from hypothesis import given, settings
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import novoclip

ROUNDING = 1 + 1e-5  # of float32
SIGNED = st.tuples(st.sampled_from([-1.0, 0.0, 1.0]), st.floats(-12, 12)).map(lambda x: x[0] * 10 ** x[1])
STEPS, NUMBERS = 8, 3


@functools.cache
def compiled(name, **arguments):
    rule = getattr(novoclip, f"scale_by_{name}")(**arguments)

    def step(state, gradient):
        updates, state = rule.update(gradient, state)
        return state, (updates, state)

    return rule, jax.jit(lambda state, gradients: jax.lax.scan(step, state, gradients)[1])


@pytest.mark.parametrize("b2", [0.25, 0.5, 0.9, 0.98, 0.999])
@given(numbers=st.lists(SIGNED, min_size=STEPS * NUMBERS, max_size=STEPS * NUMBERS))
@settings(max_examples=25)
def test_novograd_bounds_every_gradient(b2, numbers):
    rule, run = compiled("novograd", b1=0.0, b2=b2)
    updates, _ = run(rule.init(jnp.zeros(NUMBERS)), jnp.asarray(numbers, jnp.float32).reshape(STEPS, NUMBERS))
    lengths = np.linalg.norm(np.asarray(updates, np.float64), axis=1)
    assert np.max(lengths) <= ROUNDING / math.sqrt(1 - b2)


@pytest.mark.parametrize("b2", [0.25, 0.5, 0.9, 0.98, 0.999])
def test_novograd_reaches_its_bound(b2):
    rule, run = compiled("novograd", b1=0.0, b2=b2)
    updates, _ = run(rule.init(jnp.zeros(1)), jnp.array([[1.0], [1e6]]))
    np.testing.assert_allclose(updates[1], 1 / math.sqrt(1 - b2), rtol=1e-5)


@functools.cache
def adam_after_ones(b1, b2):
    rule, run = compiled("adam", b1=b1, b2=b2)
    _, states = run(rule.init(jnp.zeros(1)), jnp.ones((10_000, 1)))
    return jax.tree.map(lambda leaf: leaf[-1], states)


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.99), (0.5, 0.98)])
@given(spike=SIGNED)
@settings(max_examples=25)
def test_adam_bounds_one_spike_of_any_size(b1, b2, spike):
    _, run = compiled("adam", b1=b1, b2=b2)
    updates, _ = run(adam_after_ones(b1, b2), jnp.full((1, 1), spike, jnp.float32))
    # The second term is the spike's, the first that of the ones before: Cauchy and Schwarz, and reached near k = 100.
    bound = math.sqrt(b1**2 / b2 + (1 - b1) ** 2 / (1 - b2))
    assert abs(float(updates[0, 0])) <= bound * ROUNDING
    huge, _ = run(adam_after_ones(b1, b2), jnp.full((1, 1), 1e9, jnp.float32))
    np.testing.assert_allclose(huge[0, 0], (1 - b1) / math.sqrt(1 - b2), rtol=1e-4)


def test_several_spikes_in_a_row_reach_further_than_one_in_adam():
    b1, b2 = 0.9, 0.999
    _, run = compiled("adam", b1=b1, b2=b2)
    worst = 1e3 * (b2 / b1) ** jnp.arange(60.0)[:, None]  # grows as b2 / b1: equality in Cauchy and Schwarz
    updates, _ = run(adam_after_ones(b1, b2), worst)
    supremum = (1 - b1) / math.sqrt((1 - b2) * (1 - b1**2 / b2))
    np.testing.assert_allclose(np.max(updates), supremum, rtol=1e-3)
    assert supremum > 2.2 * (1 - b1) / math.sqrt(1 - b2)


@functools.cache
def second_moments(clip):
    """A run of constant gradients with one spike of k times their size, as a function of b2 and k."""

    @jax.jit
    def run(b2, k):
        rule = novoclip.scale_by_rms(lambda step: b2)
        state = rule.init(jnp.zeros(()))
        settled = state._replace(moments=state.moments._replace(root=jnp.ones(())))

        def step(carry, gradient):
            outer, inner = carry
            clipped, outer = clip.update(gradient, outer)
            _, inner = rule.update(clipped, inner)
            return (outer, inner), inner.moments.root**2

        gradients = jnp.ones(4000).at[0].set(k)
        return jax.lax.scan(step, (clip.init(jnp.zeros(())), settled), gradients)[1]

    return run


UNCLIPPED = novoclip.clip_by_global_norm(np.inf)
CLIPPED = novoclip.clip_by_global_norm(1.0)


@given(b2=st.floats(0.25, 0.995), exponent=st.floats(2, 4))
@settings(max_examples=25)
def test_a_second_moment_remembers_a_spike_for_as_long_as_its_formula_says(b2, exponent):
    k = 10**exponent
    found = np.asarray(second_moments(UNCLIPPED)(b2, k), np.float64)
    np.testing.assert_allclose(found[0], b2 + (1 - b2) * k**2, rtol=1e-4)
    steps = math.log((1 - b2) * k**2) / -math.log(b2)
    back = int(np.argmax(found <= 2))
    # v - 1 falls by b2 a step from (1 - b2) (k^2 - 1): half a step of float32 either way, and one of rounding up.
    assert steps - 0.5 <= back <= steps + 1.5
    assert np.max(second_moments(CLIPPED)(b2, k)) <= ROUNDING


@pytest.mark.parametrize(("b2", "steps"), [(0.99, 916), (0.98, 490), (0.95, 211), (0.5, 19), (0.25, 9.8)])
def test_a_spike_of_1000_is_forgotten_after_so_many_steps(b2, steps):
    back = int(np.argmax(np.asarray(second_moments(UNCLIPPED)(b2, 1000.0)) <= 2))
    np.testing.assert_allclose(back, steps, atol=1.01)


FOLLOWERS = [
    ("clip_by_running_mean", {"factor": 2.0, "decay": 0.98}),
    ("clip_by_running_mean", {"factor": 1.5, "decay": 0.9}),
    ("adagc", {"lambda_rel": 1.05, "decay": 0.98, "warmup": 5}),
    ("adagc", {"lambda_rel": 1.5, "decay": 0.9, "warmup": 1}),
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "arguments"), FOLLOWERS)
def test_a_limit_follows_a_rise_at_its_own_speed(name, arguments):
    rule = getattr(novoclip, name)(**arguments)
    gradients = jnp.where(jnp.arange(3100) < 100, 1.0, 10.0)

    def step(state, gradient):
        _, state = rule.update(gradient, state)
        return state, jnp.ravel(state.limits)[0]

    state, limits = jax.jit(lambda g: jax.lax.scan(step, rule.init(jnp.zeros(())), g))(gradients)
    factor, decay = (arguments.get(key) for key in ("lambda_rel" if name == "adagc" else "factor", "decay"))
    speed = 1 + (1 - decay) * (factor - 1)
    clipped = math.ceil(math.log(10 / factor) / math.log(speed))
    assert int(state.clipped) == clipped
    rising = np.asarray(limits)[100 : 100 + clipped]
    np.testing.assert_allclose(rising, factor * speed ** np.arange(clipped), rtol=1e-9)
    if (name, factor) == ("adagc", 1.05):
        assert clipped == 2255  # with the authors' numbers, 0.1 % a step
