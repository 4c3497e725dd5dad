"""Learning-rate rules are their formulas, and the README's others do what it says of them."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip
from tests.steps import compiled


@pytest.mark.parametrize("step", [0, 1, 7, 250, 10_000])
def test_schedules_are_their_formulas(step):
    at = jnp.int32(step)
    for found, expected in (
        (novoclip.inverse_time_decay(0.3, 0.01)(at), 0.3 / (1 + 0.01 * step)),
        (
            novoclip.inverse_time_decay(0.3, 2.0, transition_steps=100, staircase=True)(at),
            0.3 / (1 + 2 * (step // 100)),
        ),
        (novoclip.untuned_warmup(0.3, 0.99)(at), 0.3 * min(1, (step + 1) * 0.01 / 2)),
        (
            novoclip.untuned_warmup(lambda t: 1.0 / (1 + t), 0.9, form="exponential")(at),
            (1 - math.exp(-0.1 * (step + 1))) / (1 + step),
        ),
        (optax.exponential_decay(0.3, 1, 0.99)(at), 0.3 * 0.99**step),
        (optax.polynomial_schedule(0.3, 0.0, 2, 1000)(at), 0.3 * (1 - min(step / 1000, 1)) ** 2),
    ):
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-12)


def test_batches_scale_and_damp():
    assert novoclip.batch_scaled(0.1, 512, 256) == 0.2
    np.testing.assert_allclose(novoclip.batch_scaled(0.1, 512, 256, rule="square_root"), 0.1 * math.sqrt(2))
    assert novoclip.batch_damped(0.1, 256, 256) == 0.05
    assert novoclip.batch_damped(0.1, 512, 256) < novoclip.batch_damped(0.1, 256, 256)


def test_a_rate_is_reduced_when_the_error_stops_falling():
    optimizer = optax.chain(novoclip.sgd(1.0), optax.contrib.reduce_on_plateau(factor=0.5, patience=3))
    params = jnp.ones(1)
    state, sizes = optimizer.init(params), []
    for step in range(12):
        updates, state = optimizer.update(jnp.ones(1), state, params, value=1.0 / (step + 1) if step < 4 else 0.25)
        sizes.append(-float(updates[0]))
    assert sizes[:6] == [1.0] * 6  # the error last fell at step 3
    assert sizes[-1] <= 0.5


def test_a_rate_is_changed_by_hand():
    optimizer = optax.inject_hyperparams(novoclip.adam)(learning_rate=0.1)
    state = optimizer.init(jnp.ones(1))
    updates, state = optimizer.update(jnp.ones(1), state)
    state.hyperparams["learning_rate"] = jnp.float32(0.01)
    smaller, state = optimizer.update(jnp.ones(1), state)
    np.testing.assert_allclose(smaller, 0.1 * updates, rtol=1e-5)


def test_wrong_arguments_of_schedules_are_named():
    for make, message in (
        (lambda: novoclip.inverse_time_decay(-1.0, 0.1), "init_value must be"),
        (lambda: novoclip.inverse_time_decay(1.0, 0.1, transition_steps=0), "transition_steps must be"),
        (lambda: novoclip.untuned_warmup(0.1, 1.0), r"b2 must be a number in \[0, 1\)"),
        (lambda: novoclip.untuned_warmup(0.1, form="quadratic"), "form must be one of"),
        (lambda: novoclip.batch_scaled(0.1, 0, 1), "batch_size must be"),
        (lambda: novoclip.batch_scaled(0.1, 1, 1, rule="cubic"), "rule must be one of"),
        (lambda: novoclip.batch_damped(0.1, 1, 0), "warmup_batch_size must be"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


RISING = lambda step: 1.0 + step  # noqa: E731
NOT_FINITE = (False, True, True, False, False)


def values_seen(transform, value_of):
    transform = compiled(optax.with_extra_args_support(transform))
    state = transform.init(jnp.ones(2))
    seen = []
    for bad in NOT_FINITE:
        updates, state = transform.update(jnp.full(2, jnp.nan if bad else 3.0), state, jnp.ones(2), value=1.0)
        seen.append(float(value_of(updates, state)))
    return [value for value, bad in zip(seen, NOT_FINITE, strict=True) if not bad]


def test_rules_count_all_updates_and_optimizers_those_that_were_not_skipped():
    """The values 1 + step at the three finite steps of five: as documented in `clip` and in the optimizers."""
    rule = novoclip.clip_by_norm(RISING)
    assert values_seen(rule, lambda updates, state: state.limits[0]) == [1, 4, 5]
    chained = optax.chain(rule, novoclip.sgd(RISING))
    assert values_seen(chained, lambda updates, state: state[0].limits[0]) == [1, 4, 5]
    assert values_seen(optax.scale_by_schedule(RISING), lambda updates, state: updates[0] / 3) == [1, 4, 5]
    for descent in (novoclip.sgd(RISING), novoclip.sgd(RISING, clip=novoclip.clip_by_norm(100.0))):
        assert values_seen(descent, lambda updates, state: -updates[0] / 3) == [1, 2, 3]
    within = novoclip.sgd(0.1, clip=rule)
    assert values_seen(within, lambda updates, state: state.clip.limits[0]) == [1, 2, 3]
    for guard in (novoclip.guard_nonfinite, novoclip.skip_spikes):
        assert values_seen(guard(rule), lambda updates, state: state.inner.limits[0]) == [1, 2, 3]
        assert values_seen(guard(optax.scale_by_schedule(RISING)), lambda updates, state: updates[0] / 3) == [1, 2, 3]
