"""Checks of the interface: the arguments and results of init and update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from novoclip.telemetry import metrics
from novoclip.testing.subject import Subject, dtypes, numbers, of_dtype, random_tree


def extra_arguments_are_accepted(subject: Subject) -> None:
    """Unknown keyword arguments of update change nothing."""
    params, gradients = random_tree(), random_tree(1)
    extra = {"unknown": np.float32(1.0), "another": None}
    state = jax.eval_shape(subject.init, params)

    def program(sent: bool) -> Any:
        def update(gradients: Any, state: Any, extra: Any) -> Any:
            return subject.update(gradients, state, params, **extra if sent else {})

        return jax.make_jaxpr(update)(gradients, state, extra)

    without, extended = program(sent=False), program(sent=True)
    alike = str(without) == str(extended) and len(without.consts) == len(extended.consts)
    if not alike or not all(map(np.array_equal, without.consts, extended.consts)):
        # The programs differ, but their results may be equal.
        run = subject.jitted
        state = run.init(params)
        _assert_equal(run.update(gradients, state, params), run.update(gradients, state, params, **extra))


def state_is_a_named_tuple_that_optax_can_search(subject: Subject) -> None:
    """Each field of the state is found by its name in the state of a chain."""
    chain = optax.chain(subject.transform, optax.scale(-1.0))
    state = jax.eval_shape(chain.init, random_tree())
    for field, value in jax.eval_shape(subject.init, random_tree())._asdict().items():
        places = optax.tree.get_all_with_path(state, field)
        # The states of an optimizer's `clip=`, and of what a wrapper takes, have fields of the same names.
        nested = ("clip", "inner")
        found = [leaf for path, leaf in places if all(getattr(key, "name", None) not in nested for key in path[:-1])]
        assert len(found) == 1, f"{field!r} was found {len(found)} times"
        assert _structure(found[0]) == _structure(value), f"{field!r} differs"


def state_never_changes_its_type(subject: Subject) -> None:
    """Structure, shapes and dtypes of the state are fixed by init, for every dtype."""
    for dtype in dtypes():
        params = random_tree(dtype=dtype)
        state = jax.eval_shape(subject.init, params)
        types = jax.tree.map(_type, state)
        for seed in (1, 2):
            _, state = jax.eval_shape(subject.update, random_tree(seed, dtype), state, params)
            assert jax.tree.map(_type, state) == types, f"{types} became {jax.tree.map(_type, state)}"


def init_takes_abstract_and_numpy_parameters(subject: Subject) -> None:
    """Init returns the same under eval_shape, for NumPy arrays and, in novoclip, for ShapeDtypeStructs."""
    params = random_tree()
    state = subject.init(params)
    abstract = jax.eval_shape(subject.init, params)
    assert jax.tree.map(_type, abstract) == jax.tree.map(_type, state), "eval_shape differs"
    _assert_equal(subject.jitted.init(params), state)
    _assert_equal(subject.init(jax.tree.map(np.asarray, params)), state)
    if subject.kind != "any":
        structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
        _assert_equal(subject.init(structs), state)


def missing_and_empty_leaves_pass(subject: Subject) -> None:
    """None, MaskedNode, empty pytrees and empty leaves pass unchanged and, in novoclip, do not change other leaves."""
    nothing = jax.device_put(np.zeros((0, 3), np.float32))
    extras = {"none": None, "masked": optax.MaskedNode(), "empty": {}, "nothing": nothing}
    of_integers = _of_integers() if subject.kind != "any" else ({}, {})
    updates = _together(subject, *(extras | more for more in of_integers))
    assert _structure(updates) == _structure(random_tree() | extras | of_integers[1]), "the structure changed"
    for tree in ({}, (), {"nothing": nothing}):
        updates, _ = jax.eval_shape(lambda tree: subject.update(tree, subject.init(tree), tree), tree)
        assert jax.tree.map(_type, updates) == jax.tree.map(_type, tree), f"{tree} became {updates}"


def float0_leaves_pass(subject: Subject) -> None:
    """The float0 gradient of an integer parameter passes unchanged."""
    params, gradients = (random_tree(seed) | more for seed, more in enumerate(_of_integers()))
    updates, _ = jax.eval_shape(lambda: subject.update(gradients, subject.init(params), params))
    assert updates["steps"].dtype == jax.dtypes.float0, "float0 was lost"


def _of_integers() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a parameter of integers, and its gradient."""
    return {"steps": jax.device_put(np.zeros(2, np.int32))}, {"steps": np.zeros(2, jax.dtypes.float0)}


def _together(subject: Subject, params: Any, gradients: Any) -> Any:
    """Return the updates of these leaves together with others, and check that the others' are as without them."""
    run = subject.jitted
    alone, _ = run.update(random_tree(1), run.init(random_tree()), random_tree())
    params = random_tree() | params
    updates, _ = run.update(random_tree(1) | gradients, run.init(params), params)
    if subject.kind != "any":  # which may draw random numbers, by the number of leaves
        for name, leaf in alone.items():
            np.testing.assert_array_equal(updates[name], leaf)
    return updates


def updates_keep_the_gradients_types(subject: Subject) -> None:
    """Updates have the gradients' dtypes, shapes and structure, also in pytrees of mixed dtypes."""
    kinds = dtypes()
    mixed = {name: of_dtype(leaf, kinds[i % len(kinds)]) for i, (name, leaf) in enumerate(random_tree().items())}
    for gradients in (*(random_tree(1, dtype) for dtype in kinds), mixed):
        state = jax.eval_shape(subject.init, random_tree())
        updates, _ = jax.eval_shape(subject.update, gradients, state, random_tree())
        assert _structure(updates) == _structure(gradients), f"{_structure(gradients)} became {_structure(updates)}"
        for name, leaf in gradients.items():
            before, after = _type(leaf), _type(updates[name])
            assert before == after, f"{name!r} of {before[1]}{before[0]} became {after[1]}{after[0]}"


def integer_gradients_raise(subject: Subject) -> None:
    """A gradient of integers raises a TypeError that names the leaf."""
    params = random_tree()
    gradients = random_tree(1) | {"bias": np.zeros(3, np.int32)}
    message = ""
    try:
        jax.eval_shape(lambda: subject.update(gradients, subject.init(params), params))
    except TypeError as error:
        message = str(error)
    assert "bias" in message, f"an integer gradient raised {message or 'nothing'!r}"


def metrics_are_found_in_a_chain(subject: Subject) -> None:
    """`metrics` returns flat scalars, under different names for two rules."""
    params, gradients = random_tree(), random_tree(1)
    alone = jax.eval_shape(lambda: metrics(subject.init(params)))
    assert alone, "no metrics"
    once, twice = (optax.chain(*(subject.transform,) * times, optax.scale(-1.0)) for times in (1, 2))
    for chain, times in ((once, 1), (twice, 2)):
        found = jax.eval_shape(lambda chain=chain: metrics(chain.update(gradients, chain.init(params), params)[1]))
        steps = sum(name.endswith("/steps") for name in found)
        assert steps == times * sum(name.endswith("/steps") for name in alone), f"{times} rules, but {list(found)}"
        assert all(jnp.ndim(value) == 0 for value in found.values()), "not every metric is a scalar"


def _type(leaf: Any) -> tuple[Any, Any]:
    return jnp.shape(leaf), leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)


def _structure(tree: Any) -> Any:
    return jax.tree.structure(tree)


def _assert_equal(one: Any, other: Any) -> None:
    assert _structure(one) == _structure(other), "the structures differ"
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(numbers(a), numbers(b)), one, other)
