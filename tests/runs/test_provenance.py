import json

from normlab.provenance import PACKAGES, code_state, provenance


def test_it_names_code_packages_and_device_and_fits_into_json():
    papers = json.loads(json.dumps(provenance()))
    assert set(papers["packages"]) == set(PACKAGES)
    assert papers["packages"]["jax"][0].isdigit()
    assert "cpu" in papers["device"] or "gpu" in papers["device"]
    assert papers["code"] == code_state()


def test_outside_a_checkout_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("normlab.__file__", str(tmp_path / "normlab" / "__init__.py"))
    (tmp_path / "normlab").mkdir()
    assert code_state() == "not a checkout"
