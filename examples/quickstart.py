"""Linear regression: y = 2 x, learned from four points by momentum behind a clip of each number.

python examples/quickstart.py
"""

import jax
import jax.numpy as jnp
import optax

import novoclip

x = jnp.array([1.0, 2.0, 3.0, 4.0])
y = 2.0 * x


def loss(params):
    return jnp.mean((params["w"] * x + params["b"] - y) ** 2)


optimizer = novoclip.momentum(0.01, decay=0.9, clip=novoclip.clip_by_value(1.0, count=True))
params = {"w": jnp.zeros(()), "b": jnp.zeros(())}
state = optimizer.init(params)


@jax.jit
def step(params, state):
    updates, state = optimizer.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state


for count in range(1001):
    if count in (0, 10, 100, 1000):
        print(f"step {count:4}: w = {params['w']:.4f}, b = {params['b']:.4f}, loss {loss(params):.2e}")
    params, state = step(params, state)

print(f"Steps in which the clip acted: {novoclip.metrics(state)['clip/clipped']}")
