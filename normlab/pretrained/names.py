"""Where each of our weights lies in a checkpoint, under which name and in which layout."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from normlab.model import ModelConfig
from normlab.pretrained.source import CheckpointError

Shape = tuple[int, ...]
QKV = tuple(f"attention.branch.{part}" for part in ("query", "key", "value"))
GATED = ("mlp.branch.gate", "mlp.branch.up")


class Part(NamedTuple):
    """A weight that is stored beside others in one tensor, along its outputs.

    In each of so many groups (heads) the same share of each weight follows the other's.
    """

    start: int
    size: int
    whole: int
    groups: int = 1

    def of(self, stored: Float[np.ndarray, "... o"]) -> Float[np.ndarray, "... p"]:
        """The part's outputs, of the whole tensor's."""
        lead, n = stored.shape[:-1], self.groups
        grouped = stored.reshape(*lead, n, -1)
        return grouped[..., self._share].reshape(*lead, self.size)

    def put(self, ours: Float[np.ndarray, "... p"], stored: Float[np.ndarray, "... o"]) -> None:
        """Write the part's outputs into the whole tensor: what `of` takes out of it again."""
        lead, n = stored.shape[:-1], self.groups
        stored.reshape(*lead, n, -1)[..., self._share] = ours.reshape(*lead, n, -1)

    @property
    def _share(self) -> slice:
        """Which outputs of a group."""
        return slice(self.start // self.groups, (self.start + self.size) // self.groups)


@dataclass(frozen=True)
class Stored:
    """One of our weights as a checkpoint stores it.

    Args:
        name: of the stored tensor.
        transposed: stored [out, in], as PyTorch does; ours are [in, out].
        part: which of its outputs are ours; None: all.
        heads: rows of each head stored in rotary pairs (0, k/2), (1, k/2 + 1), …: this many heads.
        offset: added to the values (Gemma stores γ − 1).
        plus_row: a second tensor, whose row 0 is added to every row.
        skipped: rows before ours.
    """

    name: str
    transposed: bool = False
    part: Part | None = None
    heads: int = 0
    offset: float = 0.0
    plus_row: str | None = None
    skipped: int = 0

    def shape(self, ours: Shape) -> Shape:
        """The stored tensor's shape, given ours."""
        whole = ours if self.part is None else (*ours[:-1], self.part.whole)
        if self.skipped:
            whole = (whole[0] + self.skipped, *whole[1:])
        return whole[::-1] if self.transposed else whole

    def ours(self, stored: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Our weight, from the stored tensor."""
        weight = stored.T if self.transposed else stored
        weight = weight[self.skipped :] if self.skipped else weight
        weight = weight if self.part is None else self.part.of(weight)
        weight = _halves(weight.T, self.heads).T if self.heads else weight
        return weight + np.float32(self.offset) if self.offset else weight

    def put(self, ours: Float[np.ndarray, "..."], stored: Float[np.ndarray, "..."]) -> None:
        """Write our weight into a stored tensor of zeros: what `ours` makes of it again.

        With an offset, bit for bit where ours came from a stored tensor. Rows that are skipped, and
        the outputs of other parts, stay as they are.
        """
        weight = ours - np.float32(self.offset) if self.offset else ours
        weight = _pairs(weight.T, self.heads).T if self.heads else weight
        view = (stored.T if self.transposed else stored)[self.skipped :]
        if self.part is None:
            view[...] = weight
        else:
            self.part.put(weight, view)


def _halves(stored: Float[np.ndarray, "o ..."], heads: int) -> Float[np.ndarray, "o ..."]:
    """Rotary pairs from neighbours to halves: llama.cpp's layout for Llama back to ours."""
    pairs = stored.reshape(heads, -1, 2, *stored.shape[1:])
    return pairs.swapaxes(1, 2).reshape(stored.shape)


def _pairs(ours: Float[np.ndarray, "o ..."], heads: int) -> Float[np.ndarray, "o ..."]:
    """Rotary pairs from halves to neighbours."""
    halves = ours.reshape(heads, 2, -1, *ours.shape[1:])
    return halves.swapaxes(1, 2).reshape(ours.shape)


@dataclass(frozen=True)
class Names:
    """How a format names and lays out the modules of a family.

    Args:
        modules: our module → theirs; `{i}` is the block. Queries, keys and values may share one,
            in this order, and so may gate and up.
        by_head: that one has the three of a head side by side.
        transposed: linear maps are stored [out, in], as the head always is.
        gain_offset: added to every stored weight.
        paired: queries and keys are stored in rotary pairs of neighbours.
        plus_row: our module → a stored tensor whose row 0 is added to it.
        skipped: our module → so many stored rows stand before its own.
        prefixes: the first of them that stands before a name is no part of it.
        prefix: stands before each name but the head's where one is written.
        endings: other endings that a name may have → those that it has here.
        head: the head's name where it is written; None: as in `modules`.
        ignored: stored tensors that hold nothing that we need (a pattern).
    """

    modules: Mapping[str, str]
    transposed: bool = True
    by_head: bool = False
    gain_offset: float = 0.0
    paired: bool = False
    plus_row: Mapping[str, str] | None = None
    skipped: Mapping[str, int] | None = None
    prefixes: tuple[str, ...] = ()
    prefix: str = ""
    endings: tuple[tuple[str, str], ...] = ()
    head: str | None = None
    ignored: str = "$^"

    def module(self, ours: str) -> str:
        """Their name of our module: "blocks.3.attention.norm_in", "norm_final"."""
        name, block = _in_block(ours)
        return self.modules[name].format(i=block)

    def stored(self, path: str, config: ModelConfig) -> Stored:
        """Where our weight `path` ("blocks.3.mlp.branch.up.kernel") is stored."""
        whole, leaf = path.rsplit(".", 1)
        module, _ = _in_block(whole)
        kind = "bias" if leaf == "bias" else "weight"
        stored = Stored(
            f"{self.module(whole)}.{kind}",
            part=self._part(module, config),
            plus_row=(self.plus_row or {}).get(module),
            skipped=(self.skipped or {}).get(module, 0),
        )
        if leaf == "weight":
            return replace(stored, offset=self.gain_offset)
        heads = {"attention.branch.query": config.heads, "attention.branch.key": config.kv}
        if self.paired and leaf in ("kernel", "bias"):
            stored = replace(stored, heads=heads.get(module, 0))
        transposed = self.transposed or module == "head"  # PyTorch's, in GPT-2 too
        return replace(stored, transposed=leaf == "kernel" and transposed)

    def _part(self, module: str, config: ModelConfig) -> Part | None:
        """Which outputs of a shared map are a module's."""
        k, hidden = config.head_size, config.hidden_size
        sizes = dict(zip(QKV, (config.heads * k, config.kv * k, config.kv * k), strict=True))
        if module in GATED and config.gated:
            sizes = dict.fromkeys(GATED, hidden)
        beside = [m for m in sizes if self.modules.get(m) == self.modules[module]]
        if module not in beside or len(beside) == 1:
            return None
        start = sum(sizes[m] for m in beside[: beside.index(module)])
        whole = sum(sizes[m] for m in beside)
        if self.by_head:
            return Part(start, sizes[module], whole, config.heads)
        return Part(start, sizes[module], whole)

    def in_file(self, names: Iterable[str]) -> dict[str, str]:
        """Our spelling of each stored name (without a prefix, one ending) → the file's."""
        found: dict[str, str] = {}
        for name in names:
            other = found.setdefault(self._spelled(name), name)
            if other != name and not re.match(self.ignored, self._spelled(name)):
                raise CheckpointError(
                    f"{other} and {name} are two names of one weight: expected one of them"
                )
        return found

    def written(self, name: str) -> str:
        """The spelling of a stored name in a file that we write."""
        head = self.modules.get("head", "")
        if head and name.startswith(f"{head}."):
            return (self.head or head) + name.removeprefix(head)
        return self.prefix + name

    def _spelled(self, name: str) -> str:
        name = name.removeprefix(next(filter(name.startswith, self.prefixes), ""))
        for old, new in self.endings:
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name


def _in_block(module: str) -> tuple[str, str]:
    """A module's name within its block, and the block's number; "" outside the blocks."""
    found = re.match(r"blocks\.(\d+)\.", module)
    return (module[found.end() :], found[1]) if found else (module, "")
