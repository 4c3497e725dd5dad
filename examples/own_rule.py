"""A clipping rule of your own: no tensor's gradient may be more than twice its usual size."""

import jax
import jax.numpy as jnp
import optax

import novoclip


def times_the_mean(factor, decay=0.98):
    """Limit each block to `factor` times the running mean of its norms, learnt after clipping."""

    def init(norms):
        return jnp.zeros(norms.shape, norms.dtype)

    def update(norms, mean, param_norms=None, *, step, **extra):
        del param_norms, step, extra
        known = mean > 0
        limits = jnp.where(known, factor * mean, jnp.inf)
        return limits, jnp.where(known, decay * mean + (1 - decay) * jnp.minimum(norms, limits), norms)

    return novoclip.Limit(init, update)


def loss_of(params, x, y):
    hidden = jnp.tanh(x @ params["in"] + params["bias"])
    return jnp.mean((hidden @ params["out"] - y) ** 2)


def main():
    optimizer = optax.chain(novoclip.clip_by_limit("tensor", times_the_mean(2.0)), optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def train_step(params, opt_state, key, fault):
        x = jax.random.uniform(key, (128, 2), minval=-1.0, maxval=1.0)
        y = x[:, :1] * x[:, 1:]  # the network learns to multiply
        loss, gradients = jax.value_and_grad(loss_of)(params, x, y)
        gradients = jax.tree.map(lambda gradient: gradient * fault, gradients)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    keys = jax.random.split(jax.random.key(0), 1002)
    params = {
        "in": jax.random.normal(keys[0], (2, 32)),
        "bias": jnp.zeros(32),
        "out": 0.1 * jax.random.normal(keys[1], (32, 1)),
    }
    opt_state = optimizer.init(params)
    for step, key in enumerate(keys[2:], start=1):
        params, opt_state, loss = train_step(params, opt_state, key, 1e6 if step % 300 == 0 else 1.0)
        if step in (1, 299, 300, 301, 1000):
            limits = ", ".join(f"{limit:.3g}" for limit in opt_state[0].limits)
            norms = ", ".join(f"{norm:.3g}" for norm in opt_state[0].norms)
            print(f"step {step:>4}  loss {loss:.5f}  norms ({norms})  limits ({limits})")
    print(f"{novoclip.metrics(opt_state)['clip/clipped']} steps of 1000 had a tensor clipped")


if __name__ == "__main__":
    main()
