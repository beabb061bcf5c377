"""Files of semantic segmentation."""

from __future__ import annotations

from pathlib import Path

import pytest

from vispeft.engine.tasks.semantic import SemanticTask
from vispeft.errors import DataError


def test_writer__refuses_ids_that_a_picture_has_no_room_for(tmp_path: Path) -> None:
    SemanticTask().writer(tmp_path, [{"id": 7}, {"id": 65_535}])
    with pytest.raises(DataError, match="no room for the category id 65536: ids must be at most 65535"):
        SemanticTask().writer(tmp_path, [{"id": 7}, {"id": 65_536}])
