"""Checkpoints whose files are damaged one by one: refused, or read as another reader reads them.

    python -m tests.support.fuzzed_checkpoints KIND FIRST COUNT

prints, for each mutation, a line before and a line of JSON after it. A mutation that takes more
than 25 s of the processor (or ten times that by the clock of a busy machine), or the process beyond
9 GiB, ends the process: the last line tells which one.

An outcome is "refused" (a CheckpointError), "equal" (what was loaded is what the whole files hold,
bit for bit: config, weights, tokens of some texts), "changed" (something else was loaded, and the
oracle of its kind explains it), or a fault. The oracles:

config: each field is what the mutated JSON says by `tests.support.config_oracle`, weights and
    tokens are those of the whole files.
safetensors: the weights are those that a strict reader of the format finds in the file.
index: nothing may change: each tensor stands in one shard only.
tokenizer: tokens are those of the tokenizers package itself, without dropout; the rest is the same.
gguf: config, weights and tokens are those of the file that the gguf package writes from what its
    own reader finds; no two tensors share a byte; each field is what the metadata says.
"""

import json
import logging
import os
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

from tests.support import config_oracle
from tests.support.mutations import Mutator
from tests.support.small_checkpoints import CONFIGS, letters, tensors, write_folder, write_gguf

MEMORY, SECONDS = 9 * 2**30, 25
TEXTS = ("", "ab a<s>b\n\n é日", "".join(map(chr, range(32, 300))))
IDS = {"bos_token_id": 3, "eos_token_id": [4, 5], "pad_token_id": 0}
EXTRA = {
    "llama": {**IDS, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "gemma3": {
        **IDS, "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True,
    },
    "gpt2": {**IDS, "activation_function": "gelu_new"},
}  # fmt: skip
WHOLE = {family: {**CONFIGS[family], **extra} for family, extra in EXTRA.items()}


def snapshot(lm):
    """All that an evaluation sees of a loaded model."""
    import jax
    from flax import nnx

    paths = jax.tree_util.tree_flatten_with_path(nnx.state(lm.model))[0]
    encoded = [lm.tokenizer.encode(text).ids.tolist() for text in TEXTS]
    assert encoded == [lm.tokenizer.encode(text).ids.tolist() for text in TEXTS]
    assert all(isinstance(lm.tokenizer.decode(ids), str) for ids in encoded)
    return {
        "config": lm.facts["config"],
        "weights": {str(path): np.asarray(leaf).tobytes() for path, leaf in paths},
        "tokens": encoded,
        "begins": [lm.tokenizer.bos, lm.tokenizer.prefix],
    }


def load(spec):
    """What a spec names, loaded and written down."""
    from normlab import pretrained

    return snapshot(pretrained.load(spec))


# --- the kinds: whole files, a mutation, what the mutated ones hold


class Config:
    """A directory of one family whose config.json is damaged."""

    def __init__(self, folder, family):
        self.folder, self.family = folder, family
        self.spec = write_folder(folder, WHOLE[family], tensors(family))
        self.path = folder / "config.json"
        self.whole = self.path.read_bytes()

    def mutate(self, m):
        kind = m.one(["bytes", "cut", "values", "values"])
        made = {
            "bytes": m.flips,
            "cut": m.cut,
            "values": lambda whole: m.json(json.loads(whole)).encode(),
        }[kind](self.whole)
        self.path.write_bytes(made)

    def means_the_same(self):
        """Whether the mutation changed nothing that is read."""
        try:
            said = config_oracle.strict_json(self.path.read_bytes())
            return json.dumps(said, sort_keys=True) == json.dumps(
                json.loads(self.whole), sort_keys=True
            )
        except Exception:
            return False

    def expected(self, base):
        said = config_oracle.strict_json(self.path.read_bytes())
        config, prefix = config_oracle.told(self.family, said, base["config"])
        return base | {"config": config, "begins": [None, prefix]}


class Safetensors(Config):
    """One whose model.safetensors is."""

    def __init__(self, folder, family):
        super().__init__(folder, family)
        self.path = folder / "model.safetensors"
        self.whole = self.path.read_bytes()
        self.size = int.from_bytes(self.whole[:8], "little")

    def means_the_same(self):
        return False

    def mutate(self, m):
        header, data = self.whole[8 : 8 + self.size], self.whole[8 + self.size :]
        kind = m.one(["bytes", "header", "cut", "patch", "values", "values"])
        if kind == "values":
            header = m.json(json.loads(header)).encode()
            made = len(header).to_bytes(8, "little") + header + data
        else:
            made = {
                "bytes": m.flips,
                "header": lambda whole: m.flips(whole, 8 + self.size),
                "cut": lambda whole: m.cut(whole, m.one([8 + self.size, len(whole)])),
                "patch": lambda whole: m.patch(whole, 8 + self.size),
            }[kind](self.whole)
        self.path.write_bytes(made)

    def expected(self, base):
        found = config_oracle.strict_safetensors(self.path.read_bytes())
        with tempfile.TemporaryDirectory() as fresh:
            return load(write_folder(Path(fresh) / "m", WHOLE[self.family], found))


class Index(Config):
    """One of two shards, whose index is."""

    def __init__(self, folder, family):
        from safetensors.numpy import save_file

        super().__init__(folder, family)
        weights = tensors(family)
        half = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(weights)}
        for file in set(half.values()):
            save_file({n: w for n, w in weights.items() if half[n] == file}, folder / file)
        (folder / "model.safetensors").unlink()
        self.path = folder / "model.safetensors.index.json"
        self.whole = json.dumps({"metadata": {"total_size": 1}, "weight_map": half}).encode()
        self.path.write_bytes(self.whole)

    def expected(self, base):
        return base


class Tokenizer(Config):
    """One whose tokenizer.json is: byte-level BPE with every part that there is, and dropout."""

    def __init__(self, folder, family):
        from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
        from tokenizers.processors import TemplateProcessing

        super().__init__(folder, family)
        vocabulary = {letter: i for i, letter in enumerate(letters())} | {"ab": 256, "Ġa": 257}
        made = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("Ġ", "a")], dropout=0.1))
        made.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace("日", "é")])
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        made.decoder = decoders.ByteLevel()
        made.add_special_tokens([AddedToken("<s>"), AddedToken("<e>")])
        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 258)])
        made.enable_truncation(8)
        made.enable_padding(length=16, pad_id=5)
        self.path = folder / "tokenizer.json"
        made.save(str(self.path))
        self.whole = self.path.read_bytes()

    def expected(self, base):
        from tokenizers import Tokenizer

        content = config_oracle.strict_json(self.path.read_bytes())
        content["model"]["dropout"] = None
        read = Tokenizer.from_str(json.dumps(content))
        read.no_truncation()
        read.no_padding()
        first = read.encode("a")
        bos = first.ids[0] if first.special_tokens_mask[0] else None
        tokens = [read.encode(text, add_special_tokens=False).ids for text in TEXTS]
        return base | {"tokens": tokens, "begins": [bos, base["begins"][1]]}


def sentencepiece(metadata):
    """Another tokenizer in a GGUF file's metadata."""
    from gguf import GGUFValueType as kind

    tokens = ["<unk>", *(f"<0x{b:02X}>" for b in range(256)), "a", "▁a"]
    lists = {
        "tokens": (kind.STRING, tokens),
        "scores": (kind.FLOAT32, [-float(i) for i in range(len(tokens))]),
        "token_type": (kind.INT32, [2, *[6] * 256, 1, 1]),
    }
    for name, (inner, values) in lists.items():
        metadata[f"tokenizer.ggml.{name}"] = (kind.ARRAY, values, inner)
    metadata["tokenizer.ggml.model"] = (kind.STRING, "llama", None)
    metadata["tokenizer.ggml.unknown_token_id"] = (kind.UINT32, 0, None)
    metadata["tokenizer.ggml.add_space_prefix"] = (kind.BOOL, True, None)


class GGUF:
    """A GGUF file with one of two tokenizers, damaged anywhere, in its header above all."""

    def __init__(self, folder, tokenizer):
        folder.mkdir()
        self.path = folder / "m.gguf"
        metadata = {"llama.rope.scaling.factor": 2.0, "tokenizer.ggml.bos_token_id": 3}
        self.spec = write_gguf(self.path, "llama", CONFIGS["llama"], tensors("llama"), **metadata)
        if tokenizer == "sentencepiece":
            config_oracle.rewrite_gguf(self.path, self.path, sentencepiece)
        self.whole = self.path.read_bytes()
        self.size = config_oracle.gguf_header_size(self.path)

    def mutate(self, m):
        if not m.below(3):
            return config_oracle.rewrite_gguf(self.path, self.path, self._wrong(m))
        made = m.one([
            m.flips,
            lambda whole: m.flips(whole, self.size),
            lambda whole: m.cut(whole, m.one([self.size, len(whole)])),
            lambda whole: m.patch(whole, self.size),
            self._number(m),
        ])(self.whole)  # fmt: skip
        self.path.write_bytes(made)

    def means_the_same(self):
        return False

    def _wrong(self, m):
        """A value of the metadata in another type."""
        import gguf

        kind = gguf.GGUFValueType
        wrong = [
            (kind.STRING, "x"), (kind.STRING, ""), (kind.BOOL, True), (kind.INT32, -1),
            (kind.INT64, -(2**63)), (kind.UINT32, 0), (kind.UINT32, 1), (kind.UINT64, 2**64 - 1),
            (kind.UINT32, 2**31), (kind.FLOAT32, 64.0), (kind.FLOAT32, 0.0), (kind.FLOAT64, 1e300),
            (kind.FLOAT32, float("nan")), (kind.FLOAT32, float("inf")), (kind.FLOAT32, -1.0),
            (kind.ARRAY, [1, 2]), (kind.ARRAY, ["a"]), None,
        ]  # fmt: skip

        def change(metadata):
            key, value = m.one(list(metadata)), m.one(wrong)
            del metadata[key]
            if value is not None:
                metadata[key] = (*value, None)

        return change

    def _number(self, m):
        """One of the numbers after a tensor's name: its rank, sizes, type, place."""
        name = f"blk.{m.below(2)}.attn_{m.one(['q', 'k', 'v', 'output'])}.weight".encode()
        at = self.whole.index(name) + len(name)
        place, width = m.one([(at, 4), (at + 4, 8), (at + 12, 8), (at + 20, 4), (at + 24, 8)])
        old = int.from_bytes(self.whole[place : place + width], "little")
        value = m.one(
            [old + 1, old + 32, old - 32, old * 2, m.one([0, 1, 2**31, 2**63, 2**32 - 1])]
        )
        new = (value % 2 ** (8 * width)).to_bytes(width, "little")
        return lambda whole: whole[:place] + new + whole[place + width :]

    def expected(self, base):
        config_oracle.check_gguf_layout(self.path)
        told = config_oracle.told_by_gguf("llama", self.path, base["config"])
        with tempfile.TemporaryDirectory() as fresh:
            config_oracle.rewrite_gguf(self.path, Path(fresh) / "m.gguf")
            return load(f"gguf:{fresh}/m.gguf") | {"config": told}


KINDS = {
    "config": (Config, ["llama", "gemma3", "gpt2"]),
    "safetensors": (Safetensors, ["llama"]),
    "index": (Index, ["llama"]),
    "tokenizer": (Tokenizer, ["llama"]),
    "gguf": (GGUF, ["byte-level", "sentencepiece"]),
}


# --- one mutation after another


def outcome(case, base):
    """What became of the mutated files, and why."""
    from normlab.pretrained import CheckpointError

    try:
        found = load(case.spec)
    except BaseException as error:
        said, words = f"{type(error).__name__}: {error}", "the tokenizer of m can't"
        at_a_text = type(error) is ValueError and str(error).startswith(words)
        meant = type(error) is CheckpointError or (at_a_text and isinstance(case, Tokenizer))
        if meant and case.means_the_same():
            return "fault", f"refused, though nothing has changed: {said}"
        return ("refused" if meant else "fault"), said
    if found == base:
        return "equal", ""
    try:
        expected = case.expected(base)
    except BaseException as error:
        return "fault", f"loaded, though the oracle says {type(error).__name__}: {error}"
    wrong = [key for key in expected if found[key] != expected[key]]
    return ("fault", f"another {', '.join(wrong)}") if wrong else ("changed", "")


def main(kind, first, count):
    """Mutate, load, compare, print; in this process, which has its limits from here on."""
    warnings.simplefilter("error")
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    made, variants = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            Path(folder, variant).mkdir()
        cases = [made(Path(folder, variant, "m"), variant) for variant in variants]
        bases = [load(case.spec) for case in cases]
        for seed in range(first, first + count):
            case, base = cases[seed % len(cases)], bases[seed % len(cases)]
            print(seed, flush=True)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            signal.alarm(10 * SECONDS)
            case.mutate(Mutator(seed))
            result = outcome(case, base)
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.alarm(0)
            if result[0] == "fault" and (kept := os.environ.get("NORMLAB_KEEP_FAULTS")):
                shutil.copytree(case.path.parent, Path(kept) / f"{kind}-{seed}", dirs_exist_ok=True)
            case.path.write_bytes(case.whole)
            print(json.dumps([seed, *result]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
