"""The page of the study takes in the results of sweeps."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TOOL = Path(__file__).parents[1] / "tools" / "study_page.py"


def sweep_directory(root: Path) -> Path:
    """The files of a finished sweep of one trial that the tool reads."""
    trial: dict[str, Any] = {"trial": 1, "variant": "lora", "parameters": {}, "seed": 0, "state": "complete"}
    trial["metrics"] = {"segm/AP": 0.5, "segm/AP50": 0.7}
    (root / "trials" / "0001").mkdir(parents=True)
    (root / "trials" / "0001" / "environment.json").write_text(json.dumps({"device": "a CPU", "seed": 0}))
    (root / "results.json").write_text(json.dumps({"sampler": "grid", "num_runs": 1, "trials": [trial]}))
    return root


def test_take_in__copies_the_results_without_paths(tmp_path: Path) -> None:
    sweep = sweep_directory(tmp_path / "sweeps" / "my-study")
    code = f"import study_page; study_page.take_in(study_page.Path({str(sweep)!r}), study_page.Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], cwd=TOOL.parent, check=True)
    content = json.loads((tmp_path / "my-study.json").read_text())
    assert content["machine"] == {"device": "a CPU"}
    assert content["num_runs"] == 1
    assert [trial["metrics"]["segm/AP"] for trial in content["trials"]] == [0.5]
    assert str(tmp_path) not in (tmp_path / "my-study.json").read_text()
