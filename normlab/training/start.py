"""Runs that start from a pretrained model: its shape and tokenizer, its weights where they fit."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from normlab.config import require
from normlab.data import DataConfig, Tokenized, load_corpus
from normlab.model import Context, Transformer
from normlab.norms import all_norms
from normlab.training.config import TrainConfig
from normlab.transforms.rescale import OF_ALPHA

BROUGHT = ("model", "placement")
"""Groups that the pretrained model decides."""


def resolved(config: TrainConfig, named: Collection[str]) -> TrainConfig:
    """The config of a run that starts from a pretrained model, with its shape and placement.

    Its norm is the pretrained one, unless `norm` was named.

    Args:
        config: what was asked for.
        named: the fields and groups that the command line gives: "norm", "model.width", ….

    Raises:
        ValueError: something was named that the pretrained model decides.
        CheckpointError: it can't be found or read.
    """
    if config.init is None:
        return config
    from normlab.pretrained import describe  # reads formats that nothing else here needs

    for name in named:
        require(
            name.partition(".")[0] not in BROUGHT,
            f"{name}: init={config.init} brings the shape and the placement: leave it out (norms "
            "are replaced by norm= and norm_at=)",
        )
    found = describe(config.init).configs
    own = not any(name.partition(".")[0] == "norm" for name in named)
    return replace(
        config,
        model=found.model,
        placement=found.placement,
        norm=found.norm if own else config.norm,
    )


def tokens(init: str, data: DataConfig) -> Tokenized:
    """The text in the tokens of a pretrained model."""
    from normlab.pretrained import describe

    return Tokenized(load_corpus(data), describe(init).tokenizer(), data.cache_folder())


def from_pretrained(init: str, model: Transformer, texts: Int[np.ndarray, "w l"]) -> str:
    """Give `model`, in place, what a pretrained one brings; what is new, in words.

    Args:
        init: names it.
        model: of its shape, with norms of any type.
        texts: tokens, for the α of new norms.
    """
    from normlab.pretrained import describe

    lm = describe(init).load()
    new, fitted = adopt(model, lm.model), fit_alphas(model, lm.model, texts)
    named = f"{len(new)} parameters are new ({', '.join(new[:3])}{', …' * (len(new) > 3)})"
    said = f"{init}: {named if new else 'every parameter is taken over'}"
    return said + f"; α = 1/RMS of its rows at {len(fitted)} sites" * bool(fitted)


def adopt(model: Transformer, start: Transformer) -> list[str]:
    """Give `model`, in place, the weights of `start` of the same name and shape; the other names.

    Of an embedding or a head with more rows than the model has the first are taken: tokenizers may
    know fewer ids than there are rows.
    """
    there = _named(start)
    rows = model.embed.num_embeddings
    new = []
    for name, variable in _named(model).items():
        found = there.get(name)
        value = None if found is None else found[...]
        if value is not None and name in ("embed.embedding", "head.kernel", "head.bias"):
            value = value[..., :rows] if name.startswith("head.") else value[:rows]
        if value is None or value.shape != variable[...].shape:
            new.append(name)
        else:
            variable[...] = jnp.array(value)
    return new


def fit_alphas(model: Transformer, start: Transformer, tokens: Int[np.ndarray, "w l"]) -> list[str]:
    """Set each new α of f(αx) to 1/RMS of the rows that the pretrained norm sees; their sites.

    Near 0 the new norm then does to a row of that size what the old one did.
    """

    @jax.jit
    def sizes(state: Any) -> dict[str, jax.Array]:
        context = Context(capture=True)
        nnx.merge(graphdef, state)(jnp.asarray(tokens), context)
        return {site: jnp.sqrt(jnp.mean(jnp.square(x))) for site, x in context.inputs.items()}

    graphdef, state = nnx.split(start)
    new = [norm for norm in all_norms(model) if norm.config.type in OF_ALPHA]
    if not new:
        return []
    found = sizes(state)
    for norm in new:
        alpha: Any = norm.alpha  # type: ignore[attr-defined]
        alpha[...] = jnp.broadcast_to(1.0 / found[norm.site.name], alpha[...].shape)
    return [norm.site.name for norm in new]


def _named(model: Transformer) -> dict[str, Any]:
    """Every parameter by its path."""
    found = ((path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param))
    return {".".join(map(str, path)): node for path, node in found}
