"""Texts and their windows, each made once for all models that share it."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int32

from normlab.data import Corpus, DataConfig, Tokenizer, load_corpus
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.protocols import Windows, protocols
from normlab.evaluation.targets import EvalTarget


@dataclass
class Texts:
    """What was read and cut so far in this evaluation."""

    _corpora: dict[DataConfig, Corpus] = field(default_factory=dict)
    _windows: dict[tuple, Windows] = field(default_factory=dict)

    def corpus(self, target: EvalTarget, config: EvaluateConfig) -> Corpus:
        """The text that `target` is to read.

        Raises:
            ValueError: a run's own text is another one here than where it was trained (`auto`, or
                the embedded text of another Python).
        """
        if target.data not in self._corpora:
            self._corpora[target.data] = load_corpus(target.data)
        corpus = self._corpora[target.data]
        trained = target.trained.get("text")
        own = config.data.corpus is None
        if own and trained and corpus.sha256("train") != trained:
            raise ValueError(
                f"{target.name} was trained on data={target.data.corpus}, which is "
                f"{corpus.title} here and was another text there; say which text to read "
                "(data=wikitext2, data=embedded, …)"
            )
        return corpus

    def windows(self, target: EvalTarget, config: EvaluateConfig, tokenizer: Tokenizer) -> Windows:
        """The windows of the split that `config` asks for."""
        corpus, protocol = self.corpus(target, config), target.protocol(config.protocol)
        window = target.window(protocol, config.window)
        text = corpus.sha256(config.split)
        key = (text, tokenizer.hash, tokenizer.prefix, protocol.name, window)
        if key not in self._windows:
            self._windows[key] = protocol.windows(
                corpus.text(config.split), tokenizer, window, config.max_windows
            )
        return self._windows[key]


def calibration_tokens(
    corpus: Corpus, tokenizer: Tokenizer, window: int, n: int
) -> tuple[Int32[np.ndarray, "w l"], dict[str, Any]]:
    """The first `n` whole windows of the validation split, and what a record says of them.

    Raises:
        ValueError: the split is shorter than a window.
    """
    found = protocols["window"].windows(corpus.text("valid"), tokenizer, window, n)
    tokens = found.inputs[found.lengths == found.inputs.shape[1]]
    if not len(tokens):
        raise ValueError(
            f"the validation split of {corpus.name} is shorter than one window of {window} tokens, "
            "which the scale rule is to be calibrated on; ask for a shorter window"
        )
    facts = {"split": "valid", "text_sha256": corpus.sha256("valid"), "windows": len(tokens)}
    return tokens, facts | {"length": tokens.shape[1]}
