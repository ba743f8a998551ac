"""The same weights with every norm of another type."""

import dataclasses
from typing import Any

from flax import nnx

from normlab.model import Transformer
from normlab.norms import Norm, norms
from normlab.norms.statistics import ExactLayerNormConfig, LayerNormConfig

_PLAIN = {"center": False, "one_plus": False, "eps_form": "under", "share": 1.0}
"""Fields that change what a norm computes, with the value that a type without them stands for."""


def swap(model: Transformer, name: str, **settings: Any) -> Transformer:
    """`model` with every norm of the type `name`; the weights are shared, not copied.

    For types that mean the same by the same parameters: LayerNorm and RMSNorm, and what
    approximates them (`i-bert`, `l1`, `ai-layernorm`, …). Each norm keeps its site and what its
    config says of ε, centring, weight and bias, so that a swapped LayerNorm centres and a swapped
    RMSNorm does not.

    Args:
        model: left as it is.
        name: a registered norm type.
        settings: fields of its config beyond those that it takes over (`bits=8`).

    Raises:
        UnknownNameError: no such type.
        ValueError: a model without norms; parameters that the type lacks or that the model lacks;
            a mean that it can't subtract; a field that it hasn't.
    """
    kind = norms[name]
    new = nnx.merge(*nnx.split(model))  # modules of its own around the same arrays
    owners = [node for _, node in nnx.iter_graph(new) if isinstance(node, nnx.Module)]
    places = [(o, key) for o in owners for key, v in vars(o).items() if isinstance(v, Norm)]
    if not places:
        raise ValueError(f"norm {name!r} has nothing to take the place of: the model has no norm")
    for owner, key in places:
        setattr(owner, key, _converted(getattr(owner, key), kind, settings))
    new.norm, new.norm_at = _config(model.norm, kind, settings, "the model"), ()
    return new


def _converted(old: Norm, kind: type[Norm], settings: dict[str, Any]) -> Norm:
    """A norm of another type at the same site, with the arrays of `old`."""
    where = f"norm {old.config.type!r} at {old.site.name}"
    if old.config.type not in norms or not isinstance(old, norms[old.config.type]):
        raise ValueError(f"{where} was rewritten by another transform: swap before it, not after")
    new = kind(old.width, old.site, _config(old.config, kind, settings, where))
    graph, empty = nnx.split(new)
    state = nnx.state(old)
    has, needs = _shapes(state), _shapes(empty)
    if has != needs:
        raise ValueError(
            f"norm {new.config.type!r} can't take the place of {where}: it needs "
            f"{_written(needs)}, and there is {_written(has)}"
        )
    alike = issubclass(kind.Config, LayerNormConfig) and isinstance(old.config, LayerNormConfig)
    if not alike:  # GroupNorm: the same weight, another row
        raise ValueError(
            f"norm {new.config.type!r} can't replace {where}: expected a type like LayerNorm"
        )
    return nnx.merge(graph, state)


def _config(old: Any, kind: type[Norm], settings: dict[str, Any], where: str) -> Any:
    """The type's config, with LayerNorm's fields as `old` has them, and the settings."""
    name = kind.Config().type
    fields = {f.name for f in dataclasses.fields(kind.Config)} - {"type"}
    for field in settings:
        if field not in fields:
            has = ", ".join(sorted(fields))
            raise ValueError(f"norm {name!r} has no field {field!r}; it has {has}")
    common = {*(f.name for f in dataclasses.fields(ExactLayerNormConfig)), *_PLAIN} & fields
    taken = {key: getattr(old, key) for key in common if hasattr(old, key)}
    own = getattr(kind.Config(), "center", None)
    if name in ("layernorm", "rmsnorm") and taken.get("center", own) != own:
        raise ValueError(
            f"norm {name!r} can't take the place of {where}, which has center = "
            f"{taken.get('center')}: that would be the same norm under another name"
        )
    try:
        config = kind.Config(**(taken | settings))
    except ValueError as error:
        raise ValueError(f"norm {name!r} can't take the place of {where}: {error}") from None
    for key, plain in _PLAIN.items():
        value = getattr(old, key, plain)
        if value != plain and key not in fields:
            raise ValueError(
                f"norm {name!r} can't take the place of {where}, which has {key} = {value!r}: "
                f"{name!r} has none"
            )
    return config


def _shapes(state: Any) -> dict[str, tuple[int, ...]]:
    return {
        ".".join(str(part) for part in path): leaf[...].shape
        for path, leaf in nnx.to_flat_state(state)
    }


def _written(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in sorted(shapes.items())) or "nothing"
