"""Train the language model of examples/train_lm.py by NovoClip, with either threshold, through the storm.

    python benchmarks/novoclip_thresholds.py

The gradients are also multiplied by 0.001 and by 1000, as a loss scale or a sum over a batch would do.
"""

from pathlib import Path
from pydoc_data.topics import topics
import sys

import jax
import jax.numpy as jnp
import optax

import novoclip

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import train_lm

CASES = (
    [("inverse", c, 1.0) for c in (1e-4, 1e-2, 1.0, 100.0)]
    + [("inverse", 1e-2, scale) for scale in (1e-3, 1e3)]
    + [("proportional", k, 1.0) for k in (1.5, 3.0, 10.0)]
    + [("proportional", 3.0, scale) for scale in (1e-3, 1e3)]
)


def main() -> None:
    """Print one row a case."""
    training, validation, vocabulary = train_lm.encode("\n".join(topics.values()))
    model = train_lm.LanguageModel(vocabulary)
    params = model.init(jax.random.key(0), jnp.zeros((1, train_lm.LENGTH), jnp.int32))
    validate = train_lm.make_validation(model, validation)
    print("| threshold | clipping | gradients times | clean | stormed |\n|---|---|---|---|---|", flush=True)
    for threshold, clipping, scale in CASES:
        descent = novoclip.novoclip(3e-3, clipping=clipping, threshold=threshold, bias_correction=True)
        optimizer, chunk = train_lm.make_trainer(
            model, train_lm.Rule("scale", {"step_size": scale}, optax.scale), descent, training
        )
        losses = []
        for stormed in (False, True):
            run = train_lm.Run("", stormed, train_lm.make_weather(1000, None, stormed=stormed))
            trained = train_lm.train(run, params, optimizer, chunk, lambda *_: None)
            losses.append(float(validate(trained)))
        print(f"| {threshold} | {clipping:g} | {scale:g} | {losses[0]:.3f} | {losses[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
