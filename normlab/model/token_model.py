"""What scores and scale rules ask of a language model, whatever framework computes it."""

from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Int

from normlab.model.context import Context


class TokenModel(nnx.Module):
    """Tokens to logits in one pass, with norms of `normlab.norms` that obey a `Context`.

    A `Transformer` is JAX throughout, and is traced by `jax.jit`. Any other is called as it is, a
    window without padding at a time.
    """

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        raise NotImplementedError

    @property
    def max_length(self) -> int:
        """The longest sequence that it reads."""
        raise NotImplementedError

    def described(self) -> dict[str, Any]:
        """What a record says of it: fields of `ModelInfo`, for any but a `Transformer`."""
        raise NotImplementedError

    def __call__(
        self, tokens: Int[Array, "b l"], context: Context | None = None
    ) -> Float[Array, "b l v"]:
        """Logits of the token after each position."""
        raise NotImplementedError
