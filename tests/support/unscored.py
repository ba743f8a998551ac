"""Evaluations that compute nothing: runs that nobody trained, a tiny text, scores made up."""

import zlib

import numpy as np
import pytest

from normlab.config import to_dict
from normlab.data import BPETokenizer, Corpus, WordTokenizer, load_tokenizer
from normlab.evaluation.perplexity import Scores, TokenComparison
from normlab.model.language_model import LanguageModel
from normlab.runs.run import Run
from tests.conftest import tiny_model
from tests.support.runs import tiny_config

TEXTS = {
    split: "".join(
        f" = Title {i} = \n \n Words {k * i} of page {i} , and more : {'abc ' * i}. \n"
        for i in range(1, 20)
    )
    for k, split in enumerate(("train", "valid", "test"), start=3)
}
CORPUS = Corpus("embedded", "1", "a tiny text", TEXTS.__getitem__)


def made_run(directory, norm="rmsnorm", tokenizer="bpe", **record):
    """A run's directory as training leaves it, but for the checkpoints."""
    run, text = Run(directory), TEXTS["train"]
    config = to_dict(tiny_config(directory.parent, norm={"type": norm}))
    config["data"] = {"corpus": "embedded", "tokenizer": tokenizer}
    run.write("config.yaml", config)
    run.write("record.json", {"state": "finished"} | record)
    trained = {"corpus": {"name": "embedded"}, "text": CORPUS.sha256("train")}
    run.write("provenance.json", trained)
    made = WordTokenizer.train(text) if tokenizer == "word" else BPETokenizer.train(text, 280)
    made.save(run["tokenizer"])
    return run


def untrained(directory, step=None):
    """What `normlab.runs.run.load` would bring."""
    run = Run(directory)
    config, tokenizer = run.read("config.yaml"), load_tokenizer(run["tokenizer"])
    model = tiny_model(config["norm"]["type"])
    facts = {"source": str(directory), "step": 2, "config": config, "training": run.record}
    facts["training_provenance"] = run.read("provenance.json")
    return LanguageModel(run.directory.name, model, tokenizer, facts)


class MadeUp:
    """Takes the place of `score_columns`: numbers of the column and the token alone.

    Attributes:
        calls: the columns of each call.
    """

    def __init__(self):
        self.calls = []

    def __call__(self, model, windows, columns, *, batch, on_batch, unfinished):
        self.calls.append([str(column.precision) for column in columns])
        found = []
        for name in self.calls[-1]:
            off = zlib.crc32(name.encode()) % 97 / 1e4 * (1 + windows.inputs % 3)
            nll = np.where(windows.scored, 1 + windows.targets % 7 + off, 0).astype(np.float32)
            beside = None
            if found:
                delta = nll - found[0].token_nll
                beside = TokenComparison(delta, np.abs(delta), windows.scored)
            sums = nll.sum(1, dtype=np.float64)
            found.append(Scores(sums, nll, windows.counts, {}, beside))
        on_batch(len(windows))
        return found


@pytest.fixture
def made_up(monkeypatch):
    """Nothing is loaded and nothing scored; the calls that would have been."""
    scores = MadeUp()
    monkeypatch.setattr("normlab.evaluation.evaluator.score_columns", scores)
    monkeypatch.setattr("normlab.evaluation.targets.load", untrained)
    monkeypatch.setattr("normlab.evaluation.texts.load_corpus", lambda data: CORPUS)
    return scores
