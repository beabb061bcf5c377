from __future__ import annotations

from pathlib import Path

import pytest

from vispeft.training.processor import cpu_has_fast_bf16


@pytest.mark.parametrize(
    ("line", "has_it"),
    [
        ("flags\t\t: fpu avx512f amx_bf16 amx_tile", True),
        ("flags\t\t: fpu avx512f avx512_bf16", False),
        ("flags\t\t: fpu avx2", False),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("Features\t: fp asimd", False),
        ("model name\t: amx_bf16", False),
    ],
)
def test_cpu_has_fast_bf16__reads_the_flags_of_the_processor(
    line: str, has_it: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\nbugs\t:\n")
    monkeypatch.setattr("vispeft.training.processor.Path", lambda _: tmp_path / "cpuinfo")
    assert cpu_has_fast_bf16() is has_it
    monkeypatch.setattr("vispeft.training.processor.Path", lambda _: tmp_path / "none")
    assert not cpu_has_fast_bf16()
