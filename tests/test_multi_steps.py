"""One microbatch that is not finite, in `optax.MultiSteps`: what goes wrong, what reports it, and what helps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import novoclip

NAN = jnp.array([jnp.nan, 1.0])
ONES = jnp.ones(2)


def run(optimizer, gradients):
    """The updates that are not of a step that only accumulates, and the last state."""
    state, update, sent = optimizer.init(ONES), jax.jit(optimizer.update), []
    for gradient in gradients:
        updates, state = update(gradient, state, ONES)
        sent.append(np.asarray(updates))
    return np.array(sent), state


INSIDE = {
    "rule": optax.chain(novoclip.clip_by_global_norm(10.0), optax.sgd(1.0)),
    "guard": novoclip.guard_nonfinite(optax.sgd(1.0)),
    "spikes": novoclip.skip_spikes(optax.sgd(1.0)),
    "optimizer": novoclip.sgd(1.0),
}


@pytest.mark.parametrize("inner", INSIDE.values(), ids=INSIDE.keys())
def test_a_bad_microbatch_inside_is_counted_ever_after_and_stops_the_training(inner):
    updates, state = run(optax.MultiSteps(inner, 2), [ONES, ONES, ONES, NAN, *[ONES] * 6])
    np.testing.assert_array_equal(updates[1], [-1, -1])
    assert not np.any(updates[2:]), "this version of Optax drops a mean that is NaN"
    found = {name: int(value) for name, value in novoclip.metrics(state).items() if value.dtype == jnp.int32}
    assert [value for name, value in found.items() if name.endswith("/nonfinite")] == [4]
    with pytest.raises(
        novoclip.TrainingStoppedError, match=r"optax\.MultiSteps accumulates are not finite in acc_grads"
    ):
        novoclip.check(state)
    # The counters of what is inside tell it too.
    with pytest.raises(novoclip.TrainingStoppedError, match="4 bad steps in a row, 4 of 5 in all"):
        novoclip.check(state.inner_opt_state, max_in_a_row=4)


def test_plain_multi_steps_are_checked_too():
    _, state = run(optax.MultiSteps(optax.sgd(1.0), 2), [ONES, NAN])
    with pytest.raises(novoclip.TrainingStoppedError, match="acc_grads"):
        novoclip.check((state,))
    _, state = run(optax.MultiSteps(optax.sgd(1.0), 2), [ONES, ONES, ONES])
    novoclip.check(state)


AROUND = {
    "Optax's skip": optax.MultiSteps(novoclip.sgd(1.0), 2, should_skip_update_fn=optax.skip_not_finite),
    "Optax's skip around a rule": optax.MultiSteps(
        optax.chain(novoclip.clip_by_global_norm(10.0), optax.sgd(1.0)), 2, should_skip_update_fn=optax.skip_not_finite
    ),
    "guard_nonfinite": novoclip.guard_nonfinite(optax.MultiSteps(optax.sgd(1.0), 2)),
    "skip_spikes": novoclip.skip_spikes(optax.MultiSteps(optax.sgd(1.0), 2)),
}


@pytest.mark.parametrize("optimizer", AROUND.values(), ids=AROUND.keys())
def test_the_recipes_drop_a_bad_microbatch_and_go_on(optimizer):
    updates, state = run(optimizer, [ONES, 2 * ONES, ONES, NAN, 3 * ONES, ONES, ONES])
    np.testing.assert_allclose(updates[:, 0], [0, -1.5, 0, 0, -2, 0, -1])
    novoclip.check(state, max_in_a_row=1)
