from __future__ import annotations

import pytest

from hpcspec.stream.index import DataIndex
from tests.stream.cases import make_pool


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    """Shards of three surveys, of which random data sets are put together."""
    return make_pool(tmp_path_factory.mktemp("pool"))
