"""Names of run directories."""

from __future__ import annotations

from pathlib import Path

from vispeft.io.run_layout import free_directory, numbered_directories


def test_directories_are_counted_by_number_and_of_one_name_only(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert numbered_directories("lora") == []
    assert free_directory("lora") == Path("runs/lora-1")
    for name in ("lora-1", "lora-2", "lora-10", "lora-x", "lora-big-3"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert numbered_directories("lora") == [Path("runs") / name for name in ("lora-10", "lora-2", "lora-1")]
    assert free_directory("lora") == Path("runs/lora-3")
