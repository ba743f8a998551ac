"""From a checkpoint made elsewhere to our own Transformer."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from normlab.config import to_dict
from normlab.data.tokenizer import PretrainedTokenizer
from normlab.model import Transformer
from normlab.model.block import Block
from normlab.model.language_model import LanguageModel
from normlab.parallel.sharding import dotted, put
from normlab.pretrained.dequantized import dequantized
from normlab.pretrained.families import Configs, configs, families
from normlab.pretrained.families.gemma3 import text_config
from normlab.pretrained.gguf import GGUF, gguf_config
from normlab.pretrained.huggingface import Safetensors, read_json
from normlab.pretrained.names import Names, Stored
from normlab.pretrained.packages import PACKAGES, fetch, sha256
from normlab.pretrained.source import CheckpointError, Source
from normlab.pretrained.tokenizer import from_folder, from_metadata
from normlab.registry import unknown

FORMS = "a name, hf:DIR or gguf:FILE"

HEAD = "lm_head.weight"
"""Our spelling of the head, in every family's folder."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose config is known and checked, its weights still in their files.

    Args:
        name: as it stands in a table.
        family: `model_type` of its config.
        configs: model, norm, placement and vocabulary size.
        source: where its weights lie.
        names: how they are named there.
        made_with: its own config, which also says how its tokenizer begins a text.
    """

    name: str
    family: str
    configs: Configs
    source: Source
    names: Names
    made_with: Mapping[str, Any] = field(repr=False)

    def load(self, stream: bool = False) -> LanguageModel:
        """The model in float32 with its tokenizer.

        Weights stream in: a tensor is read, laid out, put on the device and let go. Every name,
        shape and type is checked before the first is read.

        Args:
            stream: leave the blocks' matrices on disk, where `Transformer.each_block` reads them.

        Raises:
            CheckpointError: a tensor is missing, unexpected, of a wrong shape, or can't be read.
        """
        tokens = self.tokenizer()
        graphdef, state = nnx.split(self.shape)
        paths, structure = jax.tree_util.tree_flatten_with_path(state)
        shapes = {dotted(path): leaf.shape for path, leaf in paths}
        plan = self._plan(shapes)
        weights = {dotted(path): leaf for path, leaf in paths}
        # The largest first: what is held beside it is then the least.
        for path in sorted(shapes, key=lambda path: -math.prod(shapes[path])):
            if not (stream and on_disk(path, shapes[path])):
                weights[path] = self._put(path, plan)
        state = jax.tree.unflatten(structure, [weights[path] for path in shapes])
        model = nnx.merge(graphdef, state)
        if stream:
            model.read_block = partial(self._block, list(model.blocks), plan)
        facts = self.facts() | ({"tokenizer": tokens.note} if tokens.note else {})
        return LanguageModel(self.name, model, tokens, facts)

    @cached_property
    def shape(self) -> Transformer:
        """The model with shapes for weights."""
        self._refuse_layers()
        c = self.configs
        make = partial(Transformer, c.model, c.norm, c.placement, c.vocab_size)
        shape: Transformer = nnx.eval_shape(make)
        return shape

    def _block(self, blocks: Sequence[Block], plan: Mapping[str, Stored], i: int) -> Block:
        """A block whose matrices are read now."""
        graphdef, state = nnx.split(blocks[i])

        def filled(path: Any, leaf: Any) -> Any:
            name = f"blocks.{i}.{dotted(path)}"
            return self._put(name, plan) if on_disk(name, leaf.shape) else leaf

        block: Block = nnx.merge(graphdef, jax.tree_util.tree_map_with_path(filled, state))
        return block

    def _put(self, path: str, plan: Mapping[str, Stored]) -> jax.Array:
        # Waited for, or the next tensor would be read while this one is still being copied.
        weight = jax.block_until_ready(put(path, self._weight(plan[path])))
        jax.device_put(0)  # only in its next call does JAX let go of what it has copied
        return weight

    def _refuse_layers(self) -> None:
        """Refuse more layers than tensors, before a model of so many is laid out."""
        layers, tensors = self.configs.model.layers, len(self.source.shapes)
        if layers > tensors:
            raise CheckpointError(
                f"{self._where} holds {tensors} tensors, its config says {layers} layers"
            )

    def _plan(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Stored]:
        """Where each weight is to be read from: every name, shape and type is right."""
        there = self._there
        plan = {path: self.names.stored(path, self.configs.model) for path in shapes}
        self._tie(plan, there)
        for path, stored in plan.items():
            found, expected = self._shape(stored.name, there), stored.shape(shapes[path])
            if found != expected:
                raise CheckpointError(
                    f"{self._where}: {stored.name} has shape {found}, its config says {expected}"
                )
            if stored.plus_row is not None:
                rows = self._shape(stored.plus_row, there)
                if rows[1:] != found[1:] or rows[0] < 1:
                    raise CheckpointError(
                        f"{self._where}: {stored.plus_row} has shape {rows}, expected "
                        f"{found[1]} columns and a row or more"
                    )
        self._refuse_unexpected(plan, there)
        return plan

    def _tie(self, plan: dict[str, Stored], there: Mapping[str, str]) -> None:
        """Of a tied model: the head is the embedding where it stands alone, else its equal."""
        embed = plan["embed.embedding"]
        if not self.configs.model.tied or HEAD not in there:
            return
        if embed.name not in there:
            plan["embed.embedding"] = replace(embed, name=HEAD)
            return
        for name in (HEAD, embed.name):
            self._shape(name, there)
        head, table = (self.source.read(there[name]) for name in (HEAD, embed.name))
        if not np.array_equal(head, table):
            raise CheckpointError(
                f"{self._where}: its config has tie_word_embeddings = True, and {there[HEAD]} is "
                f"not {there[embed.name]}: expected tie_word_embeddings = False, or equal weights"
            )

    def _shape(self, name: str, there: Mapping[str, str]) -> tuple[int, ...]:
        """The shape of a stored tensor, which is there and can be read."""
        if name not in there:
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"; the nearest that it holds is {near[0]}" if near else ""
            raise CheckpointError(f"{self._where} lacks the tensor {name}{hint}")
        self.source.check(there[name])
        return self.source.shapes[there[name]]

    def _refuse_unexpected(self, plan: dict[str, Stored], there: dict[str, str]) -> None:
        used = {s.name for s in plan.values()} | {s.plus_row for s in plan.values()}
        if self.configs.model.tied:
            used.add(HEAD)  # a copy of the embedding, by what the config says
        unexpected = [
            name for name in there if name not in used and not re.match(self.names.ignored, name)
        ]
        if unexpected:
            more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
            raise CheckpointError(
                f"{self._where} holds {there[unexpected[0]]}{more}, which a {self.family} of its "
                "config doesn't have"
            )

    @cached_property
    def _there(self) -> dict[str, str]:
        return self.names.in_file(self.source.shapes)

    @cached_property
    def _tensors(self) -> Source:
        return dequantized(self.source) if isinstance(self.source, GGUF) else self.source

    def _weight(self, stored: Stored) -> Float[np.ndarray, "..."]:
        there = self._there
        weight = stored.ours(self._tensors.read(there[stored.name]))
        if stored.plus_row is not None:
            weight = weight + self._tensors.read(there[stored.plus_row])[0]
        return weight  # of any strides: JAX lays it out far faster than NumPy does

    @property
    def _where(self) -> Path:
        return self.source.files[0] if len(self.source.files) == 1 else self.source.files[0].parent

    def tokenizer(self) -> PretrainedTokenizer:
        """Its tokenizer, which may know fewer ids than the embedding has rows, but not more.

        Raises:
            CheckpointError: there is none, or it isn't this model's.
        """
        if isinstance(self.source, GGUF):
            made = from_metadata(self.source.metadata, self.name)
        else:
            made = from_folder(self.source.files[0].parent, self.made_with, self.name)
        begins = [i for i in (made.bos, made.prefix) if i is not None]
        if (last := max(made.vocab_size - 1, *begins, 0)) >= self.configs.vocab_size:
            raise CheckpointError(
                f"{self._where}: the tokenizer has ids up to {last}, the embedding "
                f"{self.configs.vocab_size} rows"
            )
        return made

    def facts(self) -> dict[str, Any]:
        """What every record of this model repeats."""
        c = self.configs
        return {
            "source": str(self._where),
            "family": self.family,
            "sha256": {path.name: sha256(path) for path in self.source.files},
            "weight": "γ as stored; 1 + w was added at load"
            if self.names.gain_offset
            else "γ as stored",
            "config": {
                "model": to_dict(c.model),
                "norm": to_dict(c.norm),
                "placement": to_dict(c.placement),
                "vocab_size": c.vocab_size,
            },
        }


def on_disk(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a weight stays on disk where blocks are read one at a time: matrices of blocks."""
    return path.startswith("blocks.") and len(shape) > 1


def describe(spec: str) -> Checkpoint:
    """A checkpoint's config, read and checked without its weights; `.load()` brings them.

    Args:
        spec: a name of `PACKAGES` (fetched where it isn't in the cache), `hf:DIR` or `gguf:FILE`.

    Raises:
        CheckpointError: it can't be found, read, or is of an unknown architecture.
        UnknownNameError: no such name.
    """
    kind, _, where = spec.partition(":")
    if kind == "hf" and where:
        return _folder(Path(where).expanduser())
    if kind == "gguf" and where:
        path = Path(where).expanduser()
        return _gguf(path, path.stem)
    if spec not in PACKAGES:
        raise unknown(f"pretrained model (expected {FORMS})", spec, PACKAGES)
    path = fetch(spec)
    return _folder(path) if path.is_dir() else _gguf(path, spec)


def load(spec: str) -> LanguageModel:
    """The pretrained model that `spec` names, with its tokenizer: `describe(spec).load()`."""
    return describe(spec).load()


def _folder(folder: Path) -> Checkpoint:
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: there is no such directory (hf:DIR is one of this machine that holds a "
            "model's config.json, tokenizer.json and safetensors, as the hub has them)"
        )
    config = text_config(read_json(folder / "config.json"))
    family, found = configs(config, str(folder / "config.json"))
    name = folder.resolve().name
    return Checkpoint(name, family, found, Safetensors(folder), families[family].folder, config)


def _gguf(path: Path, name: str) -> Checkpoint:
    file = GGUF(path)
    config = gguf_config(file)
    family, found = configs(config, str(path))
    names = families[family].gguf
    assert names is not None  # gguf_config knows only families that have them
    return Checkpoint(name, family, found, file, names, config)
