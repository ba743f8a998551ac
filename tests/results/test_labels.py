"""Labels of runs: only what differs within a sweep."""

from normlab.results.labels import Labels


def test_labels_name_only_what_differs():
    base = {"norm.type": "a", "placement.type": "pre", "seed": 0, "optimizer.lr": 0.1, "width": 8}
    labels = Labels([base, base | {"seed": 1}, base | {"norm.type": "b"}])
    assert labels.method(base) == "a"
    assert labels.run(base) == "a, seed 0"
    labels = Labels([base, base | {"optimizer.lr": 1e-4, "model.width": 16}])
    assert labels.run(base | {"model.width": 16}) == "a pre, lr 0.1"
    labels = Labels([base | {"x.eps": e, "y.eps": e} for e in (1, 2)])
    assert labels.method(base | {"x.eps": 1, "y.eps": 1}) == "x.eps 1, y.eps 1"
    labels = Labels(
        [base | {"norm.bias": n, "model.bias": m} for n in (True, False) for m in (True, False)]
    )
    assert labels.method(base | {"norm.bias": True, "model.bias": False}) == "norm.bias"
    assert labels.method(base | {"norm.bias": False, "model.bias": False}) == "a pre"
