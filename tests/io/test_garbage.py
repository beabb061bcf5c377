"""The search for cyclic garbage is paused and goes on afterwards."""

import gc

import pytest

from vispeft.io.garbage import paused_collection


def test_paused_collection__goes_on_afterwards() -> None:
    with paused_collection():
        assert not gc.isenabled()
        with paused_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), paused_collection():
        raise KeyError
    assert gc.isenabled()
