"""What is to be evaluated, known by its files before any weight is loaded."""

import re
import shutil
import sys
import types

import pytest

from normlab import pretrained
from normlab.data.config import TextConfig
from normlab.evaluation import evaluate
from normlab.evaluation.config import EvaluateConfig
from normlab.evaluation.targets import targets
from normlab.evaluation.texts import Texts
from normlab.model import ModelConfig
from normlab.parallel.mesh import MeshConfig
from normlab.runs.run import Run
from tests.support.small_checkpoints import CONFIGS, tensors, write_folder
from tests.support.unscored import made_run, untrained

CARD = "tokenizer/tokenizer_card.json"


def config(**fields):
    return EvaluateConfig(**{"precision": ("fp32",), "max_windows": 6} | fields)


def test_runs_one_level_down_are_named(tmp_path):
    for name in ("y/a", "x/a"):
        Run(tmp_path / name).write("config.yaml", {})
    (tmp_path / "empty").mkdir()
    where = re.escape(f"below it: runs={tmp_path}/x, runs={tmp_path}/y") + "$"
    with pytest.raises(FileNotFoundError, match=where):
        targets(config(runs=str(tmp_path)))
    with pytest.raises(FileNotFoundError, match=r"it is one: say run=.*x/a$"):
        targets(config(runs=str(tmp_path / "x" / "a")))
    with pytest.raises(FileNotFoundError, match=r"config\.yaml.*say run=DIR"):
        targets(config(runs=str(tmp_path / "empty")))
    with pytest.raises(FileNotFoundError, match=rf"no such directory\. Runs are in {tmp_path}"):
        targets(config(runs=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"run": "nowhere"}, r"nowhere is no run directory"),
        ({"runs": "nowhere"}, r"runs=nowhere: no such directory"),
        ({"pretrained": "smollm2-135n"}, r"smollm2-135n.*Did you mean 'smollm2-135m'"),
        ({"pretrained": "hf:nowhere"}, "nowhere"),
        ({"pretrained": "torch:x", "transform": ("fold",)}, r"transform=\[fold\].*only the norms"),
        ({"pretrained": "torch:x", "precision": ("fp16@fp16",)}, "'fp16@fp16'.*no activations"),
        ({"pretrained": "torch:x", "stream": True}, "stream = True.*loaded by PyTorch"),
        ({"window": 65}, r"window = 65 .*longest window that fits is window=64"),
        ({"protocol": "gptq"}, r"window = 2048 tokens \(protocol=gptq\).*window=64"),
        ({"protocol": "word"}, "expected a model of data.tokenizer=word"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_is_loaded(
    run, tmp_path, monkeypatch, fields, message
):
    monkeypatch.setattr("normlab.evaluation.targets.load", None)
    monkeypatch.setattr("normlab.evaluation.texts.load_corpus", None)
    if not {"run", "runs", "pretrained"} & set(fields):
        fields = {"run": str(run.directory)} | fields
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate(config(out=str(tmp_path / "out"), **fields))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_pytorch_that_is_not_installed_is_asked_for_in_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("normlab.torch_bridge")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ValueError, match=r"torch:x needs torch.*pip install 'normlab\[torch\]'"):
        targets(config(pretrained="torch:x"))


def test_a_pytorch_model_runs_on_one_device():
    with pytest.raises(ValueError, match="torch:x runs on one device of one process"):
        targets(config(pretrained="torch:x", mesh=MeshConfig(data=2)))


def test_an_encoder_has_no_perplexity_and_is_refused_before_it_is_loaded(run, monkeypatch):
    found = types.SimpleNamespace(configs=types.SimpleNamespace(model=ModelConfig(causal=False)))
    monkeypatch.setattr(pretrained, "describe", lambda spec: found)
    with pytest.raises(ValueError, match="pretrained=encoder is an encoder, which has no"):
        targets(config(pretrained="encoder"))
    said = run.read("config.yaml")
    run.write("config.yaml", said | {"model": said["model"] | {"causal": False}})
    with pytest.raises(ValueError, match="is an encoder, which has no perplexity"):
        targets(config(run=str(run.directory)))
    (row,) = targets(config(runs=str(run.directory.parent)))
    assert (row.status, row.tokenizer) == ("an encoder, which has no perplexity", None)


def test_a_site_that_a_pretrained_model_lacks_is_refused_by_its_config(tmp_path):
    spec = write_folder(tmp_path / "m", CONFIGS["llama"], tensors("llama"))
    with pytest.raises(ValueError, match="'norm_finale'. Did you mean 'norm_final'"):
        targets(config(pretrained=spec, precision=("fp16/norm_finale",)))
    assert targets(config(pretrained=spec, precision=("fp16/blocks.*.norm_in",)))


def test_a_word_level_model_is_read_by_the_word_protocol(tmp_path):
    run = made_run(tmp_path / "runs" / "w", tokenizer="word")
    (found,) = targets(asked := config(run=str(run.directory)))
    assert found.protocol(asked.protocol).name == "word"
    assert found.protocol("stride").name == "stride"
    assert found.window(found.protocol(None), None) == 32  # what it was trained on
    assert found.tokenizer().name.startswith("word-")


def test_each_checkpoint_is_a_row_where_all_are_asked_for(run, monkeypatch):
    asked = []
    monkeypatch.setattr("normlab.evaluation.targets.steps", lambda run: [0, 40, 80])
    monkeypatch.setattr(
        "normlab.evaluation.targets.load",
        lambda directory, step: asked.append(step) or untrained(directory),
    )
    found = targets(config(run=str(run.directory), checkpoints="all"))
    assert [t.name for t in found] == [f"a (step {step})" for step in (0, 40, 80)]
    assert [t.load().facts["checkpoints"] for t in found] == ["all"] * 3
    assert asked == [0, 40, 80]
    (best,) = targets(config(run=str(run.directory)))
    assert (best.name, "checkpoints" in best.load().facts, asked[3:]) == ("a", False, [None])


def test_each_transform_is_a_row(run):
    asked = ("none", "rescale:.5", "rescale:0.5", "fold+rescale:2")
    found = targets(config(run=str(run.directory), transform=asked))
    assert [row.name for row in found] == ["a", "a (rescale:0.5)", "a (fold+rescale:2)"]
    assert [str(row.transform) for row in found] == ["none", "rescale:0.5", "fold+rescale:2"]


def test_another_text_may_be_asked_for(run, tmp_path, monkeypatch):
    looked_up = []
    monkeypatch.setattr("normlab.evaluation.texts.load_corpus", looked_up.append)
    for text in (TextConfig(), TextConfig(corpus="wikitext2", root=str(tmp_path))):
        (found,) = targets(asked := config(run=str(run.directory), data=text))
        with pytest.raises(AttributeError):  # no text was brought
            Texts().corpus(found, asked).sha256("test")
    assert [(data.corpus, data.root) for data in looked_up] == [
        ("embedded", None),
        ("wikitext2", str(tmp_path)),
    ]


def test_a_text_that_is_another_one_here_is_refused(run):
    """As the embedded text of another Python is, unless it is asked for."""
    run.write("provenance.json", run.read("provenance.json") | {"text": "another"})
    (found,) = targets(asked := config(run=str(run.directory)))
    with pytest.raises(ValueError, match=r"a was trained on data=embedded, .* say which text"):
        Texts().corpus(found, asked)
    asked = config(run=str(run.directory), data=TextConfig(corpus="embedded"))
    assert Texts().corpus(found, asked).name == "embedded"


def test_windows_are_cut_once_for_each_prefix(run):
    (found,) = targets(asked := config(run=str(run.directory), protocol="lm-eval"))
    texts, tokenizer = Texts(), found.tokenizer()
    before = texts.windows(found, asked, tokenizer)
    assert texts.windows(found, asked, tokenizer) is before
    tokenizer.prefix = 7
    assert texts.windows(found, asked, tokenizer).inputs[0, 0] == 7 != before.inputs[0, 0]


def changed(run, name, content):
    """A file of a run with another content; None takes it away."""
    path = run[name]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if content is not None:
        path.write_text(content)


def of_a_norm_that_left(run):
    """As where a norm of one's own lies on another branch."""
    run.write("config.yaml", run.read("config.yaml") | {"norm": {"type": "gone"}})


UNREADABLE = {
    "no-card": (lambda r: changed(r, CARD, None), "unreadable: .*card"),
    "half-card": (lambda r: changed(r, CARD, '{"k'), "unreadable: .*card"),
    "no-hash": (lambda r: changed(r, CARD, "{}"), "unreadable: .*card"),
    "words": (lambda r: changed(r, "tokenizer/tokenizer.json", "{}"), "unreadable: .*changed"),
    "record": (lambda r: changed(r, "record.json", ""), "unreadable: .*record.json can't be read"),
    "provenance": (lambda r: changed(r, "provenance.json", ""), "unreadable: .*provenance.json"),
    "config": (lambda r: changed(r, "config.yaml", ""), "unreadable: .*config.yaml has no model"),
    "norm": (of_a_norm_that_left, "unreadable: unknown norm 'gone'"),
}


def test_a_run_whose_files_cannot_be_read_is_a_row_beside_the_others(run):
    runs = run.directory.parent
    for name, (damage, _) in UNREADABLE.items():
        shutil.copytree(run.directory, runs / name)
        damage(Run(runs / name))
    begun = made_run(runs / "begun", state="running")  # killed before it had saved its tokenizer
    changed(begun, CARD, None)
    found = {row.name: row for row in targets(config(runs=str(runs)))}
    assert (found["a"].status, found["begun"].status) == ("ok", "unfinished")
    for name, (_, said) in UNREADABLE.items():
        assert re.match(said, found[name].status), found[name].status
        norm = found[name].config.get("norm", {}).get("type")
        assert norm == {"config": None, "norm": "gone"}.get(name, "rmsnorm")
        assert found[name].tokenizer is None
        with pytest.raises((ValueError, FileNotFoundError), match=said.partition(" ")[2]):
            targets(config(run=str(runs / name)))


def test_where_no_run_can_be_read_an_earlier_table_stays(run, tmp_path):
    changed(run, CARD, None)
    (tmp_path / "out").mkdir()
    asked = config(runs=str(run.directory.parent), out=str(tmp_path / "out"))
    with pytest.raises(ValueError, match=r"runs=.*: none of 1 runs can be read; the first: .*card"):
        evaluate(asked)
    assert list((tmp_path / "out").iterdir()) == []


def test_of_a_run_without_a_tokenizer_no_text_is_looked_up(run, tmp_path, monkeypatch):
    changed(run, "tokenizer", None)
    run.write("record.json", {"state": "failed", "reason": "refused"})
    monkeypatch.setattr("normlab.evaluation.texts.load_corpus", None)
    (record,) = evaluate(config(runs=str(run.directory.parent), out=str(tmp_path / "out")))
    assert record.status == "failed: refused"


def test_a_text_that_is_asked_for_takes_the_place_of_the_runs_own(tmp_path):
    """Fields that only the run's own text has don't stay behind; where WikiText-2 lies does."""
    run = made_run(tmp_path / "run")
    own = {"corpus": "text", "path": "a.txt", "column": "body", "root": "R"}
    values = run.read("config.yaml")
    run.write("config.yaml", values | {"data": values["data"] | own})

    def data(**fields):
        (target,) = targets(config(run=str(run.directory), data=TextConfig(**fields)))
        return target.data.corpus, target.data.path, target.data.column, target.data.root

    assert data() == ("text", "a.txt", "body", "R")
    assert data(corpus="embedded") == ("embedded", None, None, "R")
    assert data(corpus="text", path="b.txt", root="S") == ("text", "b.txt", None, "S")
