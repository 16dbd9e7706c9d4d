from __future__ import annotations

import pytest
from hypothesis import settings

from hpcspec.stream.index import DataIndex
from tests.stream.cases import make_pool

settings.register_profile("no deadline", deadline=None)  # on a busy machine a first call may take its time
settings.load_profile("no deadline")


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> DataIndex:
    """Shards of three surveys, of which random data sets are put together."""
    return make_pool(tmp_path_factory.mktemp("pool"))
