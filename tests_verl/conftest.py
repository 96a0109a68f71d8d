"""What the runs share: a folder with data and models, and a Ray of two nodes for each process of pytest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests_verl.support import toy
from tests_verl.support.run import Runtime, shared_runtime


def pytest_configure(config):
    config.addinivalue_line("markers", "minutes: starts Ray and verl; about two minutes for each run")


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verl")
    toy.make(folder)
    return folder


@pytest.fixture(scope="session")
def runtime(work) -> Iterator[Runtime]:
    with shared_runtime(work) as started:
        yield started
