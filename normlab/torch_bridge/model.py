"""A PyTorch model as scores and scale rules know models: tokens and a context to logits."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from jaxtyping import Array, Float, Int

from normlab import scaling
from normlab.config import require
from normlab.model import Context, TokenModel
from normlab.torch_bridge.find import Found, find
from normlab.torch_bridge.norm_call import NormCall, unused
from normlab.torch_bridge.replace import installed
from normlab.torch_bridge.rows import Layout, to_jax

Run = Callable[[torch.Tensor], torch.Tensor]
"""Tokens [b, l] to logits [b, l, v]."""


class TorchModel(TokenModel):
    """A module of PyTorch's, whose norms compute as normlab does while it is called.

    Args:
        module: in eval mode, float32.
        run: calls it.
        found: its norms.
        vocab_size: tokens are below.
        max_length: the longest sequence that it reads.
        positions: see `Layout`.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        run: Run,
        found: Found,
        vocab_size: int = 1,
        max_length: int = 1,
        positions: Mapping[str, int] | None = None,
    ):
        self.norms, self.left = nnx.List(found.norms.values()), nnx.static(found.left)
        self._module, self._run = module, run
        self._calls = nnx.static([NormCall(norm) for norm in found.norms.values()])
        self._sizes = nnx.static((vocab_size, max_length))
        self._positions = nnx.static(dict(positions or {}))

    @property
    def vocab_size(self) -> int:
        return self._sizes[0]

    @property
    def max_length(self) -> int:
        return self._sizes[1]

    def __call__(
        self, tokens: Int[Array, "b l"], context: Context | None = None
    ) -> Float[Array, "b l v"]:
        """Logits of the token after each position, the norms as `context` says."""
        context = context or Context()
        layout = Layout(self._positions, *tokens.shape)
        read = torch.from_numpy(np.array(tokens, np.int64))
        with ExitStack() as stack:
            stack.enter_context(installed(self._module, self._calls, context, layout))
            if context.edge is not None:
                stack.enter_context(self._outputs(context, layout))
            return to_jax(self._run(read).float())

    @contextmanager
    def _outputs(self, context: Context, layout: Layout) -> Iterator[None]:
        """Inside, what every other module gives is stored, where it has rows for all positions."""
        ours, hooks = {call.name for call in self._calls}, []

        def hook(name: str, module: Any, given: Any, made: Any) -> None:
            first = made[0] if isinstance(made, tuple) and made else made
            if (rows := _by_position(first, layout)) is not None:
                context.stores(unused(name, context), to_jax(rows))
                jax.block_until_ready(context.stored)  # before PyTorch writes to it again

        for name, module in self._module.named_modules():
            if name and name not in ours:
                hooks.append(module.register_forward_hook(partial(hook, name)))
        try:
            yield
        finally:
            for handle in hooks:
                handle.remove()

    def described(self) -> dict[str, Any]:
        kinds = sorted({norm.config.type for norm in self.norms})
        digest = hashlib.sha256()
        for name, tensor in self._module.state_dict().items():
            digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
            digest.update(np.ascontiguousarray(tensor.numpy()).data)
        return {
            "norm": " + ".join(kinds),
            "note": f"norms left alone: {len(self.left)}" if self.left else None,
            "weights_sha256": digest.hexdigest(),
            "parameters": sum(p.numel() for p in self._module.parameters()),
            "config": {"class": type(self._module).__name__, "torch": torch.__version__},
            "norm_config": {"computed": len(self.norms), "left": self.left},
        }


def _by_position(made: Any, layout: Layout) -> torch.Tensor | None:
    """A tensor of numbers as [b, l, …], or [b·l, …] as that; None of anything else."""
    b, l = layout.b, layout.l  # noqa: E741
    if not isinstance(made, torch.Tensor) or not made.is_floating_point() or made.ndim < 2:
        return None
    if made.shape[:2] == (b, l):
        return made
    return made.reshape(b, l, -1) if made.shape[0] == b * l else None


def scales(
    model: torch.nn.Module, rule: str, run: Callable[[], Any], *, pow2: bool = False
) -> dict[str, scaling.Scale]:
    """The scale of every norm of any PyTorch model by a rule, from the rows that its norms see.

    Args:
        model: in eval mode.
        rule: `calibrated`, `calibrated_mean`, `calibrated_max`; `random_tokens`; `row_max`,
            `sqrt_d`.
        run: feeds the model once: with inputs as they come for `calibrated`, with random ones for
            `random_tokens`, which calls it four times.
        pow2: round each to a power of two.

    Returns:
        By the module's name; of a norm that was not called none.

    Raises:
        RuleDoesNotApply: a rule that reads weights, or a scale that is not finite.
    """
    require(not model.training, "a model in training mode: expected model.eval() before")

    def once(tokens: torch.Tensor) -> torch.Tensor:
        run()
        return torch.zeros(1, 1, 1)

    whole = TorchModel(model, once, find(model))
    if any(norm.weight is None for norm in whole.norms):
        whole(jnp.zeros((1, 1), int))  # tells these how wide they are
    return scaling.scales(whole, rule, pow2=pow2, calibration=jnp.zeros((1, 1), int))
