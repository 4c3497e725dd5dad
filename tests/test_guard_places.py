"""Guards inside shard_map, vmap and scan, with donated buffers and steps that accumulate: all decide alike."""

import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import novoclip

PARAMS = {"split": jnp.ones(8), "whole": jnp.ones(2)}
SPECS = {"split": P("model"), "whole": P()}
MASK = {"split": True, "whole": False}


@pytest.fixture(scope="module")
def mesh():
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))


def train(optimizer, params, values=None):
    """Five steps, of which the third has a NaN in the last shard of `split`: its updates, and the last state."""

    def step(state, number):
        bad = jnp.where((number == 2) & (lax.axis_index("model") == 3), jnp.nan, 1.0)
        gradients = {"split": bad * jnp.ones_like(params["split"]), "whole": jnp.ones_like(params["whole"])}
        extra = {} if values is None else {"value": values}
        updates, state = optimizer.update(gradients, state, params, **extra)
        return state, updates

    state, updates = lax.scan(step, optimizer.init(params), jnp.arange(5))
    return jax.tree.map(lambda leaf: leaf[2], updates), state


OPTIMIZERS = {
    "skip_spikes": (novoclip.skip_spikes(optax.sgd(1.0)), 1),
    "skip_spikes, masked": (novoclip.skip_spikes(optax.sgd(1.0), mask=MASK), 1),
    "skip_spikes, the rest": (
        novoclip.skip_spikes(optax.sgd(1.0), mask=dict.fromkeys(MASK, True) | {"split": False}),
        0,
    ),
    "guard_nonfinite": (novoclip.guard_nonfinite(optax.sgd(1.0)), 1),
    "guard_nonfinite, masked": (novoclip.guard_nonfinite(optax.sgd(1.0), mask=MASK), 1),
    "sgd": (novoclip.sgd(1.0), 1),
}


@pytest.mark.parametrize(("optimizer", "bad"), OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_all_shards_skip_together_and_know_the_leaf(optimizer, bad, mesh):
    def counted(params):
        updates, state = train(optimizer, params)
        return updates, (state.leaf_steps, state.leaf_last, state.nonfinite)

    program = jax.shard_map(counted, mesh=mesh, in_specs=(SPECS,), out_specs=(SPECS, P()))
    updates, (leaf_steps, leaf_last, nonfinite) = jax.jit(program)(PARAMS)
    assert leaf_steps.tolist() == [bad, 0]
    assert leaf_last.tolist() == [3 * bad, 0]
    assert int(nonfinite) == bad
    np.testing.assert_array_equal(updates["whole"], [bad - 1, bad - 1])
    assert np.all(np.isfinite(updates["split"]))


def test_a_loss_that_differs_between_devices_is_refused(mesh):
    optimizer = novoclip.skip_spikes(optax.sgd(1.0))

    def run(params, losses, *, average):
        loss = jnp.mean(losses)
        return train(optimizer, params, lax.pmean(loss, "data") if average else loss)[1].skipped

    def program(average):
        return jax.jit(
            jax.shard_map(
                functools.partial(run, average=average), mesh=mesh, in_specs=(SPECS, P("data")), out_specs=P()
            )
        )

    assert int(program(True)(PARAMS, jnp.arange(4.0))) == 1
    with pytest.raises(ValueError, match="value must be the same on all devices, but differs along the mesh axes data"):
        program(False)(PARAMS, jnp.arange(4.0))


def test_mapped_states_count_for_each_alone():
    optimizer = optax.MultiSteps(novoclip.skip_spikes(novoclip.adam(0.1), mask=MASK), 2)
    optimizer = optimizer.gradient_transformation()
    sizes = jnp.ones((2, 20)).at[1, 17].set(jnp.nan)

    @jax.jit
    @jax.vmap
    def run(sizes):
        def step(state, size):
            gradients = jax.tree.map(lambda leaf: size * leaf, PARAMS)
            return optimizer.update(gradients, state, PARAMS)[1], None

        return lax.scan(step, optimizer.init(PARAMS), sizes)[0]

    states = run(sizes)
    first, second = (jax.tree.map(lambda leaf, i=i: leaf[i], states) for i in range(2))
    novoclip.check(first, PARAMS, max_in_a_row=1)
    with pytest.raises(novoclip.TrainingStoppedError, match="acc_grads"):
        novoclip.check(second, PARAMS)
    assert "split: not finite in 2 of 10 steps, last at step 10" in novoclip.locate_nonfinite(second, PARAMS)


def test_buffers_may_be_donated():
    optimizer = novoclip.skip_spikes(novoclip.guard_nonfinite(novoclip.adam(0.1)))
    update = jax.jit(optimizer.update, donate_argnums=(0, 1))
    state = optimizer.init(PARAMS)
    for size in (1.0, jnp.nan, 1.0):
        _, state = update(jax.tree.map(lambda leaf, size=size: size * leaf, PARAMS), state, PARAMS)
    assert state.leaf_steps.tolist() == [1, 1]
