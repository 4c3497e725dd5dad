"""The bytes of optimizer states, counted by hand, and against the arrays on the devices of a mesh."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

import novoclip
from novoclip.optimizers.companded import companded_zeros
from novoclip.state_bytes import state_bytes

PARAMS = {"b": jnp.zeros(32), "w": jnp.zeros((64, 32))}
ELEMENTS = 64 * 32 + 32
COUNTS = 3 * 4 + 2 * 2 * 4  # steps, nonfinite and nonfinite_in_a_row; leaf_steps and leaf_last of two leaves
CLIP = 8 * 4  # steps, norms, norms_after, limits, fraction, clipped, nonfinite, nonfinite_in_a_row of one block
ADAM = 4 + 2 * 4 * ELEMENTS


def entries(found):
    return {place: size for place, size in found.items() if place in found.kinds and size}


@pytest.mark.parametrize(
    ("tx", "expected"),
    [
        (optax.adam(1e-3), {"0": ADAM}),
        (optax.adam(1e-3, mu_dtype=jnp.bfloat16), {"0": 4 + 6 * ELEMENTS}),
        (optax.sgd(1e-3), {}),
        (novoclip.adam(1e-3), {"OptimizerState": 2 * 4 * ELEMENTS + 2 * 4 + COUNTS}),
        # One row, one column and a placeholder of one element for w, two of these and v for b.
        (optax.adafactor(1e-3, min_dim_size_to_factor=16), {"0": 4 + 4 * (64 + 32 + 1 + 1 + 1 + 32)}),
        (novoclip.novograd(1e-3), {"OptimizerState": 4 * ELEMENTS + 2 * 4 + COUNTS}),
        (novoclip.autoclip(90.0, window=100), {"ClipState": CLIP + 100 * 4 + 4}),
        (
            optax.chain(novoclip.autoclip(90.0, window=10), optax.chain(optax.clip(1.0), optax.adam(1e-3))),
            {"0": CLIP + 44, "1/1/0": ADAM},
        ),
        (
            optax.named_chain(("clip", novoclip.clip_by_global_norm(1.0)), ("body", optax.adam(1e-3))),
            {"clip": CLIP, "body": ADAM},
        ),
        (novoclip.sgd(1e-3, clip=novoclip.clip_by_global_norm(1.0)), {"OptimizerState": COUNTS, "clip": CLIP}),
        (
            optax.partition({"a": optax.adam(1e-3), "z": optax.sgd(1e-3, 0.9)}, {"b": "a", "w": "z"}),
            {"a": 4 + 2 * 4 * 32, "z": 4 * 64 * 32},
        ),
        (optax.masked(optax.adam(1e-3), {"b": True, "w": False}), {"inner_state/0": 4 + 2 * 4 * 32}),
        (
            optax.MultiSteps(optax.adam(1e-3), 4).gradient_transformation(),
            {"MultiStepsState": 8 + 4 * ELEMENTS, "inner_opt_state/0": ADAM},
        ),
        (optax.trace(0.9), {"TraceState": 4 * ELEMENTS}),
    ],
)
def test_bytes_are_those_counted_by_hand(tx, expected):
    found = state_bytes(tx, PARAMS)
    assert entries(found) == expected
    assert found["total"] == sum(expected.values())
    assert found["per_parameter"] == found["total"] / ELEMENTS
    assert "per_device" not in found
    # The state itself, as it is allocated.
    assert found["total"] == sum(leaf.nbytes for leaf in jax.tree.leaves(jax.jit(tx.init)(PARAMS)))


def test_transforms_without_a_state_have_an_entry_of_0():
    found = state_bytes(optax.chain(optax.clip(1.0), novoclip.sgd(1.0)), PARAMS)
    assert found["0"] == 0
    assert found.kinds == {"0": "EmptyState", "1": "OptimizerState"}


def test_a_state_that_is_a_plain_pytree_is_one_entry():
    tx = optax.GradientTransformation(lambda params: {"here": params}, lambda *_: (None, None))
    assert entries(state_bytes(optax.chain(tx, optax.adam(1.0)), PARAMS)) == {"0": 4 * ELEMENTS, "1/0": ADAM}


def test_names_that_are_sums_keep_their_place():
    found = state_bytes(optax.named_chain(("total", optax.adam(1.0)), ("rest", optax.trace(0.9))), PARAMS)
    assert found["total"] == ADAM + 4 * ELEMENTS
    assert entries(found) == {"total/0": ADAM, "rest": 4 * ELEMENTS}


def test_nothing_is_allocated_and_other_leaves_are_not_counted():
    params = {"w": jax.ShapeDtypeStruct((10**7, 10**7), jnp.bfloat16), "steps": jnp.int32(0), "name": "model"}
    tx = optax.masked(optax.trace(0.9), {"w": True, "steps": False, "name": False})
    found = state_bytes(tx, params)
    assert found["total"] == 2 * 10**14
    assert found["per_parameter"] == 2


def test_the_table_shows_what_takes_bytes():
    lines = str(state_bytes(optax.chain(optax.clip(1.0), optax.adam(1e-3)), PARAMS)).splitlines()
    assert [line.split() for line in lines] == [
        ["1/0", f"{ADAM:,}", "ScaleByAdamState"],
        ["total", f"{ADAM:,}"],
        ["per_parameter", "8.002"],
    ]


def on_a_mesh():
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("x", "y"))
    specs = {"b": PartitionSpec(), "v": PartitionSpec("x", "y"), "w": PartitionSpec(None, "y")}
    shapes = {"b": (32,), "v": (64, 32), "w": (64, 32)}
    shardings = {name: NamedSharding(mesh, spec) for name, spec in specs.items()}
    return {name: jax.device_put(jnp.zeros(shape), shardings[name]) for name, shape in shapes.items()}, shardings


PER_DEVICE = 32 + 64 * 32 // 8 + 64 * 32 // 2


@pytest.mark.parametrize(
    ("tx", "whole", "parts"),
    [
        (optax.adam(1e-3), 4, 2),
        (optax.MultiSteps(optax.adam(1e-3), 4).gradient_transformation(), 12, 3),
        (novoclip.adam(1e-3), 8 + 12 + 24, 2),
        (novoclip.novograd(1e-3), 12 + 12 + 24, 1),
        # Rows and columns are not of a parameter's shape; v of b is.
        (optax.adafactor(1e-3, min_dim_size_to_factor=16), 4 + 4 * (2 * (64 + 32 + 1) + 2 + 32), 0),
        (novoclip.autoclip(90.0, window=100), CLIP + 404, 0),
    ],
)
def test_on_a_mesh_arrays_count_as_their_parameter_is_sharded(tx, whole, parts):
    params, shardings = on_a_mesh()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    for given in (shardings, params, shapes):
        found = state_bytes(tx, params, shardings=given)
        assert found["per_device"] == whole + parts * 4 * PER_DEVICE
    assert "per_device" in str(found)


def test_the_count_per_device_is_that_of_the_arrays_that_init_makes():
    params, shardings = on_a_mesh()
    tx = optax.chain(novoclip.autoclip(90.0, window=100), novoclip.adam(1e-3))
    state = tx.init(params)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    assert state_bytes(tx, params, shardings=shardings)["per_device"] == held


def test_moments_of_8_bits_count_as_their_parameter_is_sharded():
    params, shardings = on_a_mesh()
    tx = optax.GradientTransformation(lambda p: companded_zeros(p, signed=True), lambda *_: (None, None))
    found = state_bytes(tx, params, shardings=shardings)
    # A byte for each element, and a scale for each row.
    assert found["total"] == (32 + 2 * 64 * 32) + 4 * (1 + 64 + 64)
    assert found["per_device"] == PER_DEVICE + 4 * (1 + 64 + 64)


def test_arrays_without_the_path_of_a_parameter_count_as_the_least_sharded_of_their_shape():
    params, shardings = on_a_mesh()
    tx = optax.GradientTransformation(lambda _: (jnp.zeros((64, 32)), jnp.zeros(3)), lambda *_: (None, None))
    assert state_bytes(tx, params, shardings=shardings)["per_device"] == 4 * (64 * 32 // 2 + 3)


def test_mistakes_are_named():
    params, shardings = on_a_mesh()
    with pytest.raises(TypeError, match=r"tx must be a transform.*got 0\.1"):
        state_bytes(0.1, params)
    with pytest.raises(ValueError, match=r"shardings must be a pytree like the parameters.*'b', 'v', 'w'"):
        state_bytes(optax.adam(1.0), params, shardings=shardings["b"])
    with pytest.raises(TypeError, match=r"shardings must hold a NamedSharding.*'w'"):
        state_bytes(optax.adam(1.0), params, shardings=shardings | {"w": 1})


def test_one_array_alone_is_a_parameter():
    found = state_bytes(optax.adam(1.0), jnp.zeros((4, 4)), shardings=jnp.zeros((4, 4)))
    assert found["total"] == found["per_device"] == 4 + 2 * 4 * math.prod((4, 4))
