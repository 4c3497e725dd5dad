"""The words of the gallery's cards: wrappers and guards."""

from benchmarks.gallery_card import Card

CLIP = "novoclip.clip_by_global_norm(1.0)"
ROUNDING = "It changes how parameters are rounded, which norms do not show."
WRAPPERS = {
    "uclip": Card(
        f"novoclip.uclip({CLIP})",
        "there are spikes: what was cut off an outlier returns in portions, for hundreds of steps if it is large",
        use="the rule clips bounded noise at many steps, and must have no bias in the long run",
        seen="In the picture the result stays at 1: what is cut off in the first steps and at spikes is not used "
        "up at the end.",
    ),
    "clip21": Card(
        f"novoclip.clip21({CLIP})",
        "the update must follow the gradient at once: it comes closer by at most the threshold per step",
        use="several workers clip gradients of their own data, and this must not move the optimum that they find",
    ),
    "start_after": Card(
        f"novoclip.start_after({CLIP}, 50, ramp=50)",
        "spikes may come in the first steps: these pass unchanged",
        use="norms are large in the first steps, and a rule should not shorten these",
    ),
    "across_shards": Card(
        f'novoclip.across_shards({CLIP}, axis_name="devices", sharded=True)',
        "`jax.shard_map` runs with its defaults: JAX then knows which leaves are sharded, and the wrapper "
        "changes nothing",
        use="leaves are sharded under `jax.pmap`, or in `jax.shard_map` with `check_vma=False`",
        unseen="On one device it changes nothing; on several, the rule inside finds the norm of all shards together.",
    ),
    "protect": Card(
        "novoclip.protect(optax.adamw(3e-4))",
        "every batch must be learned from: it skips steps, where `clip_by_running_mean` clips them. If the first "
        "gradients may be 1000 times too large or too small, add a fixed limit, as its docstring shows",
        run="novoclip.protect(optax.identity())",
    ),
    "skip_spikes": Card(
        "novoclip.skip_spikes(optax.adamw(3e-4))",
        "every batch must be learned from, or a good run alternates between two levels of the norm: every step on the "
        "higher one is skipped",
        run="novoclip.skip_spikes(optax.identity())",
    ),
    "guard_nonfinite": Card(
        "novoclip.guard_nonfinite(optax.adamw(3e-4))",
        "finite spikes are the problem, which pass. The optimizers of novoclip skip such steps by themselves",
        run="novoclip.guard_nonfinite(optax.identity())",
    ),
    "master_weights": Card(
        "novoclip.master_weights(optax.adamw(3e-4))",
        "parameters are float32 already, or 4 bytes more per parameter are too much: `remainder=` takes 2 or 1, "
        "`stochastic_rounding` none",
        use="parameters are bfloat16 or float16, and small updates are lost when they are rounded",
        unseen=ROUNDING,
    ),
    "stochastic_rounding": Card(
        "novoclip.stochastic_rounding(optax.adamw(3e-4))",
        "the noise of random rounding is too much, and there is memory for `master_weights`",
        use="parameters are bfloat16 or float16, and there is no memory for float32 weights",
        unseen=ROUNDING,
    ),
    "loss_scaling": Card(
        "novoclip.loss_scaling(optax.adamw(3e-4))",
        "gradients are bfloat16 or float32: small ones do not become 0 there as they do in float16",
        use="gradients are float16, and small ones would become 0",
        unseen="It divides gradients by the scale of the loss, and the record has no scale.",
    ),
    "watch": Card(
        "novoclip.watch(optax.adamw(3e-4), every=100)",
        "a norm is wanted at every step: `record()` keeps it. With `of=` updates or parameters, every step costs a "
        "copy of them on CPUs",
        use="you want norms of each tensor every few steps, and a spike score of the run",
        unseen="It changes nothing.",
    ),
}
