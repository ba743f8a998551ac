"""A rewritten model in the layout of a family that `transformers` knows, and what that costs."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.model import Transformer
from normlab.norms import Norm, all_norms
from normlab.parallel.sharding import dotted
from normlab.pretrained.export.tensors import shared
from normlab.pretrained.export.traits import Difference, Traits, differences, of_configs, of_model
from normlab.pretrained.export.words import BY_KIND, Asked, words
from normlab.pretrained.families import Configs, Family, families
from normlab.pretrained.keys import Keys
from normlab.pretrained.names import Names
from normlab.transforms.surgery import sublayers


class NoFamily(ValueError):
    """No family can express a model; the message names the nearest, and what it lacks."""


class Fit(NamedTuple):
    """A model that a family can express.

    Args:
        family: `model_type` of its config.
        config: config.json, but for what says nothing of the arithmetic.
        model: with the parameters that the family has, each bit as it will be read again from
            float32.
        notes: what was chosen where the family can't say all of it, a sentence each.
    """

    family: str
    config: dict[str, Any]
    model: Transformer
    notes: list[str]

    @property
    def names(self) -> Names:
        """Where its weights lie in Hugging Face's files."""
        return families[self.family].folder


def eps_choices(model: Transformer) -> list[float]:
    """Every ε that a norm of the model has, first the one that it came with."""
    own = getattr(model.norm, "eps", 0.0)
    found = {getattr(norm.config, "eps", own) for norm in all_norms(model)}
    return sorted(found, key=lambda eps: (eps != own, eps))


def fitted(
    model: Transformer,
    family: str | None = None,
    original: Mapping[str, Any] | None = None,
    eps: float | None = None,
) -> Fit:
    """`model` in the layout of its own family, else of the one that it costs least to be.

    Args:
        model: after its transforms, read and not changed.
        family: its own; None for a model that was trained here.
        original: that one's config.json, of which keys are kept that say nothing else now.
        eps: of all norms, where a config has but one; None: the first of `eps_choices`.

    Raises:
        NoFamily: with the nearest family and the first thing that it hasn't.
    """
    ours, refused = of_model(model), dict[str, list[Any]]()
    eps = eps_choices(model)[0] if eps is None else eps
    found = list[Fit]()
    own = [] if family is None else [family]
    for name in dict.fromkeys([*own, "llama", *families]):
        made = _tried(model, ours, name, eps, original if name == family else None)
        if isinstance(made, list):
            refused[name] = made
        elif name == family:
            return made
        else:
            found.append(made)
    if found:
        return min(found, key=lambda fit: len(fit.notes))
    nearest = family or min(refused, key=lambda name: len(refused[name]))
    raise NoFamily(
        f"no family has {ours['norm']} at placement {ours['placement']} as this model has it; "
        f"the nearest, {nearest}, has {refused[nearest][0]}"
    )


def _tried(
    model: Transformer, ours: Traits, name: str, eps: float, original: Mapping[str, Any] | None
) -> Fit | list[Any]:
    """The model as one of a family, or what keeps it from that."""
    family, lacks = families[name], list[Any]()
    for tied in dict.fromkeys((model.config.tied, False)):
        asked = Asked(_words(model, ours, eps, tied))
        try:
            configs = family.read(Keys(asked, name))
        except ValueError as error:
            lacks = lacks or [*[error] * len(ours)]  # how many more there are is not known
            continue
        lacks = differences(ours, of_configs(configs))
        factor = model.config.embed_factor / configs.model.embed_factor
        if lacks or (tied and factor != 1):
            continue
        made = _filled(model, configs, family.folder, factor)
        if isinstance(made, Difference):
            return [made]
        config = _config(name, asked, original, configs)
        if not original and (config.get("rope_scaling") or {}).get("rope_type") == "listed":
            return [Difference("rope_scaling", "divisors of the frequencies", "no type with these")]
        return Fit(name, config, made, _notes(model, made, family, factor))
    return lacks


def _words(model: Transformer, ours: Traits, eps: float, tied: bool) -> dict[str, Any]:
    """The model in words, with one ε for all of its norms."""
    c = replace(
        model.config,
        tied=tied,
        bias=ours["bias of attention's output"],
        qkv_bias=ours["biases of q, k, v"],
        mlp_bias=ours["biases of the MLP"],
    )
    subs = list(sublayers(model))
    parallel, post = any(s.parallel for s in subs), any(s.post_norm is not None for s in subs)
    return words(c, model.embed.num_embeddings, eps, parallel=parallel, post=post)


def _config(
    name: str, asked: Asked, original: Mapping[str, Any] | None, configs: Configs
) -> dict[str, Any]:
    """The words of a family; of a config.json that is there, with those changed that must be."""
    said = asked.answered()
    if original:
        before = _words_of(families[name].read(Keys(original, name)))
        return {**original, **{k: v for k, v in said.items() if before[k] != v}}
    if "sliding_window_pattern" not in asked.keys_asked:  # no family of local and global layers
        said.pop("layer_types", None)
    elif said.get("sliding_window") is None:
        said["sliding_window"] = configs.model.max_length  # which they want a number for
    if name not in BY_KIND:
        said.pop("rope_parameters", None)
    if "hidden_activation" in said:
        said["hidden_act"] = said["hidden_activation"]
    return {"model_type": name, **said}


def _words_of(configs: Configs) -> dict[str, Any]:
    """What a family has read, in words."""
    c, norm, where, vocab_size = configs
    kinds = [where.residual(s, 0, c.layers) for s in ("attention", "mlp")]
    return words(
        c,
        vocab_size,
        getattr(norm, "eps", 0.0),
        parallel=any(r.parallel for r in kinds),
        post=any("post_norm" in r.sites for r in kinds),
    )


def _filled(
    model: Transformer, configs: Configs, names: Names, factor: float
) -> Transformer | Difference:
    """The family's model with these weights; or the first that it has no place for."""
    make = partial(Transformer, *configs)
    graphdef, state = nnx.split(nnx.eval_shape(make))
    ours = _weights(model)
    if model.head is None and not configs.model.tied:
        ours["head.kernel"] = ours["embed.embedding"].T
    if factor != 1:
        ours["embed.embedding"] = ours["embed.embedding"] * jnp.float32(factor)
    flat, structure = jax.tree_util.tree_flatten_with_path(state)
    paths, leaves = [dotted(path) for path, _ in flat], []
    for path, (_, leaf) in zip(paths, flat, strict=True):
        unsaid = jnp.ones if path.endswith(".weight") else jnp.zeros
        weight = ours.pop(path, None)
        weight = unsaid(leaf.shape, jnp.float32) if weight is None else weight
        leaves.append(_as_stored(weight, path, names, configs))
    if ours:
        return Difference("parameters", next(iter(ours)), "none of that name")
    held = dict(zip(paths, leaves, strict=True))
    for group in shared(names, configs.model, paths):
        if any(not np.array_equal(held[group[0]], held[path]) for path in group[1:]):
            return Difference("tensors", " unequal to ".join(group[:2]), "one for both")
    return nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))


def _weights(model: Transformer) -> dict[str, Any]:
    """Every parameter by its name: of a norm γ, with the constant factor behind it."""
    found = {
        dotted(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.state(model))
    }
    for path, norm in nnx.iter_graph(model):
        if isinstance(norm, Norm) and norm.weight is not None:
            found[".".join(map(str, (*path, "weight")))] = norm.gamma()
    for sub in sublayers(model):
        if sub.norm_in is not None and sub.scale_in != 1:
            weight, bias = (f"{sub.path}.norm_in.{leaf}" for leaf in ("weight", "bias"))
            gamma = found.get(weight, jnp.ones(sub.norm_in.width))
            found[weight] = gamma * jnp.float32(sub.scale_in)
            if bias in found:
                found[bias] = found[bias] * jnp.float32(sub.scale_in)
    return found


def _as_stored(weight: Any, path: str, names: Names, configs: Configs) -> Any:
    """A weight as it is read again: γ of a stored γ − 1 may have lost its last bits."""
    offset = np.float32(names.stored(path, configs.model).offset)
    return jnp.asarray((np.asarray(weight) - offset) + offset) if offset else weight


# --- what is said of it


def _notes(model: Transformer, made: Transformer, family: Family, factor: float) -> list[str]:
    return [
        *_of_table(model, made, factor),
        *_of_eps(model, made.norm),
        *_of_weights(model, made, family),
    ]


def _of_table(model: Transformer, made: Transformer, factor: float) -> list[str]:
    said = []
    if factor != 1:
        said.append(f"The embedding's weights hold the factor {factor:g}: no key is for that.")
    if model.config.tied and not made.config.tied:
        size = made.head.kernel[...].size * 4 / 2**20  # type: ignore[union-attr]
        said.append(f"The head was the embedding and is its own matrix now, {size:.1f} MiB more.")
    return said


def _of_eps(model: Transformer, norm: Any) -> list[str]:
    eps = getattr(norm, "eps", 0.0)
    others = [e for n in all_norms(model) if (e := getattr(n.config, "eps", eps)) != eps]
    if not others:
        return []
    wanted = ", ".join(f"{e:.3g}" for e in sorted(set(others)))
    return [
        f"Every norm has ε = {eps:.3g}, the config has one for all: {len(others)} of "
        f"{len(all_norms(model))} norms want {wanted}. The Δ below is what that costs."
    ]


def _of_weights(model: Transformer, made: Transformer, family: Family) -> list[str]:
    said = []
    factors = sum(sub.scale_in != 1 for sub in sublayers(model))
    if factors:
        said.append(f"The weights of {_norms(factors)} hold the constant factor behind them.")
    ours, theirs = _weights(model), _weights(made)
    ones = sum(path.endswith(".weight") for path in theirs.keys() - ours.keys())
    if ones:
        said.append(f"The weights of {_norms(ones)} are 1.")
    zeros = sum(path.endswith(".bias") for path in theirs.keys() - ours.keys())
    if zeros:
        said.append(f"{zeros} of the biases that the family has are 0.")
    if family.folder.gain_offset:
        moved = [_moved(ours[p], theirs[p]) for p in ours if p.endswith(".weight")]
        if changed := [m for m in moved if m]:
            said.append(
                f"The weights of {_norms(len(changed))} are stored as γ − 1, which rounds them by "
                f"{max(changed):.1e} of their size at most."
            )
    return said


def _norms(count: int) -> str:
    return "1 norm" if count == 1 else f"{count} norms"


def _moved(ours: Any, theirs: Any) -> float:
    """The largest relative change of a weight."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.max(np.abs(a - b) / np.maximum(np.abs(a), 1e-30)))
