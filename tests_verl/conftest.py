"""What the tests of runs share: a folder with data and models, and the runs themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests_verl.support import toy
from tests_verl.support.jobs import Queue
from tests_verl.support.run import shared_runtimes


def pytest_configure(config):
    config.addinivalue_line("markers", "minutes: starts Ray and verl")
    config.addinivalue_line("markers", "runs(*names): the runs of `support/jobs.py` that a test looks at")


def pytest_collection_modifyitems(items):
    """Tests of runs come last: the others pass the time while verl runs."""
    items.sort(key=lambda item: item.get_closest_marker("runs") is not None)


@pytest.fixture(scope="session")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("verl")
    toy.make(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def queue(request) -> Iterator[Queue | None]:
    """The runs of all tests that were selected; they go on while other tests wait or compare."""
    names = [name for item in request.session.items for mark in item.iter_markers("runs") for name in mark.args]
    if not names:
        yield None
        return
    work = request.getfixturevalue("work")
    with shared_runtimes(work, 2) as runtimes:
        started = Queue(names, work, runtimes)
        yield started
        started.close()


@pytest.fixture
def finished(request, queue):
    """What the test's own runs found, in the order of its mark."""
    return [queue.of(name) for mark in request.node.iter_markers("runs") for name in mark.args]
