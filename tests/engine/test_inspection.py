"""Inspection of a run's weights, and its section of the report."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from vispeft.cli.app import main
from vispeft.config import parse_config
from vispeft.engine import RunDirectory, inspect_runs, train_run
from vispeft.errors import CheckpointError, DataError
from vispeft.io.json_files import read_json
from vispeft.report import write_report


def test_inspect_runs__compares_a_run_with_itself(finished: RunDirectory) -> None:
    found = inspect_runs([finished.root, finished.root])
    lora = [site for site in found.sites if site.methods == ("lora",)]
    assert lora
    for site in lora:
        assert site.rank == 2
        # of two parts, each with a rank of 2
        assert 1 <= len(site.spectrum.values) <= 4
        assert list(site.overlaps.values()) == pytest.approx([1.0], abs=1e-4)
    assert any("Rank 2" in sentence for sentence in found.advice())


def test_inspect__writes_file_and_report(finished: RunDirectory, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished.root, run)
    with pytest.raises(SystemExit) as status:
        main(["inspect", str(run)])
    assert status.value.code == 0
    document = read_json(run / "inspection.json")
    patterns = [group["pattern"] for group in document["groups"]]
    assert any(pattern.endswith("blocks.*.attn.qkv.weight") for pattern in patterns)
    page = (run / "report.html").read_text()
    assert "Updates of the weights" in page
    assert document["advice"][0] in page
    assert document["advice"][0].split(";")[0] in " ".join(capsys.readouterr().out.split())
    (run / "inspection.json").write_text('{"groups": [1]}')
    with pytest.raises(DataError, match=r"inspection\.json` must be a file of `vispeft inspect`"):
        write_report(run)


def test_inspect_runs__without_an_update(tiny: dict[str, Any], tmp_path: Path) -> None:
    adapters = {"deltas": {"@encoder.blocks": {"method": "adapter", "width": 2}}, "train": []}
    directory = RunDirectory(tmp_path / "adapters")
    train_run(parse_config({**tiny, "peft": adapters, "train": {**tiny["train"], "steps": 1}}), directory)
    with pytest.raises(
        CheckpointError, match=r"No weight of .*adapters` has an update to inspect: a Block has no weight"
    ):
        inspect_runs([directory.root])


def test_inspect__of_a_run_of_the_hub_needs_a_file(capsys: Any) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["inspect", "hf://me/run"])
    assert exit_info.value.code == 2
    assert "--json" in capsys.readouterr().err
