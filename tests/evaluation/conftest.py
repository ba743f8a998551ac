"""Fixtures of several files."""

import pytest

from tests.support.unscored import made_run, made_up

__all__ = ["made_up", "run"]


@pytest.fixture
def run(made_up, tmp_path):
    """A run, evaluated without computing anything."""
    return made_run(tmp_path / "runs" / "a")
