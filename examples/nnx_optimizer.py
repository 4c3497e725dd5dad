"""A clipping rule in `nnx.Optimizer`: a network learns which character follows four others in English text."""

from pydoc_data.topics import topics

from flax import nnx
import jax
import jax.numpy as jnp
import optax

import novoclip

CONTEXT, BATCH, STEPS = 4, 128, 600


class NextCharacter(nnx.Module):
    """Logits of the next character, from the embeddings of those before it."""

    def __init__(self, vocabulary, rngs):
        self.embed = nnx.Embed(vocabulary, 16, rngs=rngs)
        self.hidden = nnx.Linear(16 * CONTEXT, 128, rngs=rngs)
        self.logits = nnx.Linear(128, vocabulary, rngs=rngs)

    def __call__(self, characters):
        """Map (batch, CONTEXT) to (batch, vocabulary)."""
        features = self.embed(characters).reshape(len(characters), -1)
        return self.logits(nnx.relu(self.hidden(features)))


@nnx.jit
def train_step(model, optimizer, text, key):
    starts = jax.random.randint(key, (BATCH, 1), 0, len(text) - CONTEXT)
    windows = text[starts + jnp.arange(CONTEXT + 1)]

    def loss_of(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(windows[:, :-1]), windows[:, -1]).mean()

    loss, gradients = nnx.value_and_grad(loss_of)(model)
    optimizer.update(model, gradients)
    return loss


def main():
    characters = "\n".join(topics.values())
    numbers = {character: i for i, character in enumerate(sorted(set(characters)))}
    text = jnp.array([numbers[character] for character in characters])
    model = NextCharacter(len(numbers), nnx.Rngs(0))
    # One limit for each kernel, bias and embedding: each is compared with its own past.
    rule = novoclip.zclip(max_norm=jnp.inf, per="tensor")
    optimizer = nnx.Optimizer(model, optax.chain(rule, optax.adam(3e-3)), wrt=nnx.Param)
    for step, key in enumerate(jax.random.split(jax.random.key(1), STEPS), start=1):
        loss = train_step(model, optimizer, text, key)
        if step == 1 or step % 150 == 0:
            statistics = novoclip.metrics(optimizer.opt_state)
            names = ("norm_max", "limit_max", "clipped")
            print(f"step {step:>3}  loss {loss:.3f} ", *(f"{name} {statistics[f'clip/{name}']:.3g} " for name in names))


if __name__ == "__main__":
    main()
