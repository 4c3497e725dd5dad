"""Data-parallel training by `jax.pmap`: each device has a share of the batch, gradients are averaged, then clipped.

On a machine without accelerators eight CPU devices take their place.
"""

import functools

from flax import jax_utils
from flax.training.train_state import TrainState
from flax_train_state import Curve, error, measure
import jax
import jax.numpy as jnp
import optax

import novoclip

jax.config.update("jax_num_cpu_devices", 8)


@functools.partial(jax.pmap, axis_name="devices")
def train_step(state, key):
    x, y = measure(key)
    gradients = jax.grad(lambda params: jnp.mean((state.apply_fn(params, x) - y) ** 2))(state.params)
    # Averaged first, gradients are the same on every device, and so are their norms.
    return state.apply_gradients(grads=jax.lax.pmean(gradients, "devices"))


def main():
    curve = Curve()
    # One batch in ten has a wild reading, so six averages of eight batches in ten have one.
    optimizer = optax.chain(novoclip.autoclip(10.0, window=200), optax.adam(1e-2))
    params = curve.init(jax.random.key(0), jnp.zeros((1, 1)))
    state = TrainState.create(apply_fn=curve.apply, params=params, tx=optimizer)
    before, replicated = error(state), jax_utils.replicate(state)
    for keys in jax.random.split(jax.random.key(1), (500, jax.local_device_count())):
        replicated = train_step(replicated, keys)
    state = jax_utils.unreplicate(replicated)
    after = error(state)
    print(f"{jax.local_device_count()} devices: distance from the true curve {before:.4f} -> {after:.4f}")
    for statistic, value in novoclip.metrics(state.opt_state).items():
        print(f"  {statistic:<15} {value:.4g}")


if __name__ == "__main__":
    main()
