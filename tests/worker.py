"""Twenty steps of training on a 2 x 4 mesh of all devices: `python -m tests.worker OUT [ADDRESS PROCESS PROCESSES]`."""

import sys

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

import novoclip
from tests.programs import HANG

STEPS = 20
SPECS = {"up": P(None, "model"), "bias": P("model"), "down": P("model", None), "shift": P("data")}
BATCH = (P("data", None), P("data", None))


def data():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(16, 8)).astype(np.float32)
    shapes = {"up": (8, 16), "bias": (16,), "down": (16, 4), "shift": (4,)}
    params = {name: 0.3 * generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return params, (x, np.sin(x[:, :4]).astype(np.float32))


def optimizer():
    return optax.chain(
        novoclip.autoclip(50.0, window=8),
        novoclip.agc(0.05, per=novoclip.units("flax", specs=SPECS)),
        optax.adam(0.01),
    )


def squared_error(params, batch, sum_over=lambda part: part, whole=lambda part: part):
    x, y = batch
    hidden = jnp.tanh(x @ params["up"] + params["bias"])
    return jnp.sum((sum_over(hidden @ params["down"]) + whole(params["shift"]) - y) ** 2)


def train(params, batch, gradient):
    """The parameters after the last step, and the losses and the rules' statistics of all."""
    rule = optimizer()

    def step(carry, size):
        params, state = carry
        loss, gradients = gradient(params, batch)
        gradients = jax.tree.map(lambda leaf: size * leaf, gradients)  # a spike now and then
        updates, state = rule.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), {"loss": loss} | novoclip.metrics(state)

    (params, _), history = jax.lax.scan(
        step, (params, rule.init(params)), jnp.array([1.0, 1.0, 5.0, 1.0] * (STEPS // 4))
    )
    return params, history


def in_jit(_):
    def gradient(params, batch):
        return jax.value_and_grad(lambda params: squared_error(params, batch) / batch[0].shape[0])(params)

    return jax.jit(lambda params, batch: train(params, batch, gradient))


def in_shard_map(mesh):
    def gradient(params, batch):
        def loss_of(params):
            total = squared_error(
                params,
                batch,
                lambda part: jax.lax.psum(part, "model"),
                lambda part: jax.lax.all_gather(part, "data", tiled=True),
            )
            return jax.lax.psum(total, "data") / (batch[0].shape[0] * jax.lax.psum(1, "data"))

        return jax.value_and_grad(loss_of)(params)

    run = jax.shard_map(
        lambda params, batch: train(params, batch, gradient), mesh=mesh, in_specs=(SPECS, BATCH), out_specs=(SPECS, P())
    )
    return jax.jit(run)


def results():
    """For both ways of sharding, by name: parameters and histories, whole, on every process."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))

    def place(leaf, spec):
        return jax.make_array_from_callback(leaf.shape, NamedSharding(mesh, spec), lambda index: leaf[index])

    placed = jax.tree.map(place, data(), (SPECS, BATCH))
    found = {way.__name__: way(mesh)(*placed) for way in (in_jit, in_shard_map)}
    whole = jax.tree.map(lambda leaf: multihost_utils.process_allgather(leaf, tiled=True), found)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(whole)}


if __name__ == "__main__":
    out, *network = sys.argv[1:]
    if network:
        address, process, processes = network
        jax.distributed.initialize(address, int(processes), int(process), initialization_timeout=HANG)
    assert len(jax.devices()) == 8
    np.savez(out, **results())
