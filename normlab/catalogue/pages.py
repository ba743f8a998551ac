"""The reference table of all methods: `python -m normlab.catalogue.pages > docs/norms.md`."""

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence

import jax
from flax import nnx

from normlab.model import PlacementConfig, placements
from normlab.model.placement import SUBLAYERS
from normlab.norms import Norm, NormState, Site, norms
from normlab.norms.around import around
from normlab.registry import MethodCard
from normlab.transforms import transforms
from normlab.transforms.remove import Frozen

LAYERS = 4  # so many blocks show every site that a placement fills
HEAD = "<!-- Made by `python -m normlab.catalogue.pages > docs/norms.md`; a test compares. -->"


LEFT_OUT = (
    "nGPT (Loshchilov et al. 2024, arXiv:2410.01131; NVIDIA/ngpt, model.py and train.py) is no "
    "row here: it doesn't fit the frame without bending it. It needs a residual sum with a "
    "learned factor on each element, x + a ⊙ (N(F(x)) − x). It needs learned factors after "
    "queries and keys once they are rotated, after gate and up, and after the logits. And a "
    "step puts every matrix back on the sphere after the optimizer. So attention, MLP, "
    "residual, head, optimizer and step would each learn of one architecture. Its normalized "
    "sum alone would not be nGPT."
)


def methods() -> Iterator[tuple[str, str, MethodCard | None]]:
    """(kind, registered name, what is said of it) of everything that is registered.

    Of a norm that says nothing of itself (yet), None.
    """
    yield from (("norm", name, getattr(norms[name], "card", None)) for name in norms)
    yield from (("placement", name, placements[name].card) for name in placements)
    yield from (("transform", name, card) for name, card in _transforms())


def _transforms() -> Iterator[tuple[str, MethodCard]]:
    """The registered ones, and removal, which needs training between its steps."""
    yield from ((name, transforms[name].card) for name in transforms)
    yield "remove", Frozen.card


def reference() -> str:
    """The page, in Markdown."""
    return "\n\n".join(map(_wrapped, [
        HEAD,
        "# Methods",
        "Notation: a row x ∈ R^d, its mean μ and variance σ², weight γ, bias β, x̂ = x/√(mean x²). "
        "The last columns name the property that tells a right implementation from a wrong one, "
        "and the test of it.",
        "## Norm types: `norm=NAME`",
        "Each stands at the sites of its placement; `sites` says what else of the model a type "
        "changes. No gradient comes through "
        f"{', '.join(f'`{n}`' for n in norms if not norms[n].differentiable)}, which round: they "
        "can't be trained, and take a trained norm's place (`transform=[NAME]`). A precision "
        f"changes no sum of {', '.join(f'`{n}`' for n in norms if not norms[n].has_statistic)}.",
        _table(["type", "formula", "sites", "parameters"], _norm_rows()),
        "## Placements: `placement=NAME`",
        "Sites of a model of four blocks; any row may add `norm_embed` and `norm_qk`. "
        "Parameters are those of the norms; the column says what a row adds.",
        _table(["placement", "formula", "sites", "parameters"], _placement_rows()),
        "## Transforms of a trained model: `python -m evaluate … transform=[NAME]`",
        "`remove` is `python -m train remove`, which trains between its steps. None adds a "
        "parameter; what stands in parentheses is an argument.",
        _table(["transform", "formula"], _transform_rows()),
        "## Left out",
        LEFT_OUT,
    ])) + "\n"  # fmt: skip


def _wrapped(part: str) -> str:
    """A paragraph in lines of at most 118 characters; headings and tables as they are."""
    if part.startswith(("#", "|", "<!--")):
        return part
    return textwrap.fill(part, 118, break_long_words=False, break_on_hyphens=False)


def _table(columns: Sequence[str], rows: Iterator[tuple[list[str], MethodCard]]) -> str:
    lines = [[*columns, "property", "test", "source"], ["---"] * (len(columns) + 3)]
    for cells, card in rows:
        test = card.test.partition("::")[2] or card.test
        lines.append([*cells, card.property, f"`{test}`", card.source])
    return "\n".join("| " + " | ".join(c.replace("|", r"\|") for c in row) + " |" for row in lines)


def _norm_rows() -> Iterator[tuple[list[str], MethodCard]]:
    for name in norms:
        kind = norms[name]
        cells = [f"`{name}`: {kind.card.title}", kind.card.formula, _sites(kind), _parameters(kind)]
        yield cells, kind.card


def _sites(kind: type[Norm]) -> str:
    """Where it stands, and what it puts elsewhere."""
    start = around(kind.Config(), 1, 1)
    added = {
        "a learned scalar on the embedding": start.embed_scale,
        "a learned length of all embedding rows": start.embed_length,
        "a learned scalar on each branch": start.branch_gain,
    }
    return "; ".join(["all", *(what for what, start in added.items() if start is not None)])


def _parameters(kind: type[Norm]) -> str:
    """What it learns at its defaults, with shapes; then what it keeps beside."""
    width = 4096  # a number that no shape has by chance
    norm = nnx.eval_shape(lambda: kind(width, Site("norm_in", "norm_in"), kind.Config()))
    parts = [_shapes(norm, nnx.Param, width), _shapes(norm, NormState, width)]
    return parts[0] + f"; kept: {parts[1]}" * (parts[1] != "none")


def _shapes(norm: Norm, of: type[nnx.Variable], width: int) -> str:
    leaves = jax.tree_util.tree_flatten_with_path(nnx.state(norm, of))[0]
    found = []
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
        shape = ", ".join("d" if n == width else str(n) for n in leaf.shape)
        found.append(f"{name} [{shape}]" if shape else name)
    return ", ".join(found) or "none"


def _placement_rows() -> Iterator[tuple[list[str], MethodCard]]:
    for name in placements:
        card = placements[name].card
        config = PlacementConfig(type=name)
        scaled = any(config.residual(s, 0, LAYERS).head_scales for s in SUBLAYERS)
        cells = [
            ", ".join(sorted(config.sites(LAYERS))),
            "head_scale [heads]" if scaled else "none",
        ]
        yield [f"`{name}`: {card.title}", card.formula, *cells], card


def _transform_rows() -> Iterator[tuple[list[str], MethodCard]]:
    for name, card in _transforms():
        fields = dataclasses.fields(transforms[name]) if name in transforms else ()
        usage = f"{name}({', '.join(f.name for f in fields)})" if fields else name
        yield [f"`{usage}`: {card.title}", card.formula], card


if __name__ == "__main__":
    print(reference(), end="")
