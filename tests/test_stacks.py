"""A model whose layers are stacked in one leaf, and the same model unstacked, give the same numbers."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import novoclip
from novoclip.catalog import CATALOG
from tests.cases import ALWAYS, SEVERAL

LAYERS = 3
STACKED = {"layers": 1, "head": 0}
RULES = [
    # They do the same with blocks of either kind.
    pytest.param(entry, per, marks=() if entry.name in (SEVERAL if per == "unit" else ALWAYS) else pytest.mark.full)
    for entry in CATALOG
    for per in ("tensor", "unit")
    if "per" in inspect.signature(entry.make).parameters and per in entry.per and not entry.name.startswith("scale_by_")
]


def stack(seed):
    generator = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)  # noqa: E731
    return {"head": draw(4, 2), "layers": {"bias": draw(LAYERS, 5), "kernel": draw(LAYERS, 4, 5)}}


def unstack(tree):
    layers = {str(i): jax.tree.map(lambda leaf, i=i: leaf[i], tree["layers"]) for i in range(LAYERS)}
    return {"head": tree["head"], "layers": layers}


def five_steps(rule, form):
    update, state = jax.jit(rule.update), rule.init(form(stack(0)))
    for seed in range(1, 6):
        updates, state = update(
            jax.tree.map(lambda g, seed=seed: g * seed**2, form(stack(seed))), state, form(stack(0))
        )
    return updates


@pytest.mark.parametrize(("entry", "per"), RULES, ids=lambda x: x if isinstance(x, str) else x.name)
def test_stacked_layers_are_layers(entry, per):
    arguments = {name: value for name, value in entry.examples[0].items() if name not in ("per", "norm")}
    measure = {
        "tensor": novoclip.tensors(stacked=STACKED),
        "unit": novoclip.units("flax", stacked=lambda path, leaf: path.startswith("layers")),
    }[per]
    expected = five_steps(entry.make(**arguments, per=per), unstack)
    found = unstack(five_steps(entry.make(**arguments, per=measure), lambda tree: tree))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-9), found, expected)


def test_centralizing_stacked_kernels_is_that_of_each():
    expected = five_steps(novoclip.centralize(), unstack)
    found = unstack(five_steps(novoclip.centralize(stacked=STACKED), lambda tree: tree))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_every_rule_that_knows_tensors_or_units_can_be_told_of_stacks():
    for entry in CATALOG:
        parameters = inspect.signature(entry.make).parameters
        whole = {"any", "tree", "element"}.issuperset(entry.per)
        assert whole or {"per", "stacked", "axis"} & set(parameters), entry.name


def test_spectral_clipping_of_stacked_matrices_is_that_of_each():
    expected = five_steps(novoclip.clip_by_spectral_norm(0.5), unstack)
    found = unstack(five_steps(novoclip.clip_by_spectral_norm(0.5, stacked=STACKED), lambda tree: tree))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected)


def test_layers_are_counted_by_a_number_a_function_or_a_tree():
    params = stack(0)
    by_tree = novoclip.tensors(stacked={"head": 0, "layers": {"bias": 1, "kernel": 1}}).norms(params)
    by_prefix = novoclip.tensors(stacked=STACKED).norms(params)
    by_function = novoclip.tensors(stacked=lambda path, leaf: "layers" in path).norms(params)
    np.testing.assert_array_equal(by_tree, by_prefix)
    np.testing.assert_array_equal(by_function, by_prefix)
    np.testing.assert_allclose(novoclip.tensors(stacked=1).norms(params["layers"]), by_prefix[1:], rtol=1e-6)
    assert by_prefix.shape == (1 + 2 * LAYERS,)
    for wrong in (1.5, -1, {"layers": "1"}, lambda path, leaf: None):
        with pytest.raises(TypeError, match="stacked must be the number of leading layer axes, at least 0; got"):
            novoclip.tensors(stacked=wrong).norms(params)
    with pytest.raises(ValueError, match="stacked has no entry for 'head'; its entries are for 'layer'"):
        novoclip.tensors(stacked={"layer": 1}).norms(params)
    with pytest.raises(ValueError, match=r"stacked=3, but 'head' has shape \(4, 2\)"):
        novoclip.tensors(stacked=3).norms(params)
