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
    (root / "comparison.json").write_text(json.dumps({"results": []}))
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


def test_speed_table__compares_at_the_time_of_the_fastest(tmp_path: Path) -> None:
    sweep = sweep_directory(tmp_path / "fast")
    found = json.loads((sweep / "results.json").read_text())
    (trial,) = found["trials"]
    trial["metrics"]["train_seconds"] = 10
    other = {**trial, "trial": 2, "variant": "full", "metrics": {**trial["metrics"], "train_seconds": 40}}
    (sweep / "results.json").write_text(json.dumps({**found, "trials": [trial, other]}))
    for name, curve in (("0001", [(50, 0.48), (100, 0.5)]), ("0002", [(50, 0.4), (100, 0.8)])):
        rows = [{"step": step, "split": "val", "segm/AP": ap} for step, ap in curve]
        (sweep / "trials" / name).mkdir(exist_ok=True)
        (sweep / "trials" / name / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = (
        f"import json, study_page as s; s.take_in(s.Path({str(sweep)!r}), s.Path({str(tmp_path)!r}));"
        f"print(s.speed_table(json.loads(s.Path({str(tmp_path / 'fast.json')!r}).read_text())))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOL.parent, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[0].split(" | ")[2] == "AP after 10 s"
    assert done.stdout.splitlines()[2:] == ["| lora | 50 | 0.500 | 0.500 |", "| full | 100 | 0.200 | 0.800 |"]


def test_changes_table__compares_trials_of_equal_seeds() -> None:
    costs = {"trainable_params": 10, "trainable_percent": 1.0, "segm/AP50": 0.9, "train_seconds": 2.0}
    trials = [
        {
            "variant": variant,
            "seed": seed,
            "state": "complete",
            "parameters": {},
            "metrics": {**costs, "peak_memory_bytes": 3e6, "segm/AP": ap},
        }
        for variant, values in (
            ("as it is", {1: 0.1, 2: 0.2, 3: 0.3}),
            ("EMA", {3: 0.4, 1: 0.3, 2: 0.2}),
            ("late", {3: 0.1}),
        )
        for seed, ap in values.items()
    ]
    code = f"import study_page; print(study_page.main_table({{'trials': {trials!r}}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOL.parent, check=True, capture_output=True, text=True)
    # differences 0.2, 0, 0.1: mean 0.1, deviation 0.1, 4.303 * 0.1 / sqrt(3) = 0.248
    assert done.stdout.splitlines()[2:] == [
        "| as it is | 10 (1.00 %) | 0.200 | 0.100 0.200 0.300 |  | 0.900 | 2 | 3 |",
        "| EMA | 10 (1.00 %) | 0.300 | 0.300 0.200 0.400 | +0.100 [-0.148, +0.348] | 0.900 | 2 | 3 |",
        "| late | 10 (1.00 %) | 0.100 | 0.100 | -0.200 | 0.900 | 2 | 3 |",
    ]


def test_points_table__marks_the_best_rate_of_a_method() -> None:
    metrics = {"trainable_params": 10, "trainable_percent": 1.0}
    trials = [
        {"variant": "lora", "parameters": {"train.methods.lora.lr": lr}, "state": state, "metrics": {**metrics, **ap}}
        for lr, state, ap in (
            (1e-3, "complete", {"segm/AP": 0.2}),
            (5e-3, "complete", {"segm/AP": 0.3}),
            (1e-2, "failed", {}),
        )
    ]
    code = f"import study_page; print(study_page.points_table({{'trials': {trials!r}}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOL.parent, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[0] == "| configuration | trained | mask AP by lr |"
    assert done.stdout.splitlines()[2:] == ["| lora | 10 (1.00 %) | 0.001: 0.200; **0.005: 0.300** |"]


def test_points_table__has_the_size_of_inspected_updates(tmp_path: Path) -> None:
    sweep = sweep_directory(tmp_path / "sized")
    found = json.loads((sweep / "results.json").read_text())
    trial = {**found["trials"][0], "parameters": {"train.lr": 1e-3}}
    trial["metrics"] |= {"trainable_params": 10, "trainable_percent": 1.0}
    (sweep / "results.json").write_text(json.dumps({**found, "trials": [trial]}))
    sites = [{"rank": rank, "spectrum": {"relative_norm": norm}} for rank, norm in ((4, 0.5), (None, 9.0), (4, 1.5))]
    (sweep / "trials" / "0001" / "inspection.json").write_text(json.dumps({"sites": sites}))
    code = (
        f"import json, study_page as s; s.take_in(s.Path({str(sweep)!r}), s.Path({str(tmp_path)!r}));"
        f"print(s.points_table(json.loads(s.Path({str(tmp_path / 'sized.json')!r}).read_text())))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOL.parent, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[0].endswith("| mask AP by lr | norm of the update / of the weight |")
    assert done.stdout.splitlines()[2].endswith("| **0.001: 0.500** | 0.001: 1 |")


def test_with_all_seeds__leaves_out_what_is_not_complete() -> None:
    states = {"lora": "cc", "full": "cr", "heads": "c", "rates": "cc"}
    trials = [
        {"variant": variant, "state": {"c": "complete", "r": "running"}[state], "parameters": {}}
        for variant, some in states.items()
        for state in some
    ]
    trials[-1]["parameters"] = {"train.lr": 1e-3}
    code = f"import study_page; print(list(study_page.with_all_seeds({trials!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOL.parent, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "['lora']"


def test_budgets_table__groups_what_all_sets_have() -> None:
    def trials(**ap: list[float]) -> dict[str, Any]:
        percent = {"full": 100.0, "lora": 0.9, "heads": 1.2, "adapters": 1.5}
        return {
            "trials": [
                {
                    "variant": variant,
                    "state": "complete" if value else "running",
                    "parameters": {},
                    "metrics": {"segm/AP": value, "trainable_percent": percent[variant]},
                }
                for variant, values in ap.items()
                for value in values
            ]
        }

    contents = {
        "one": trials(full=[0.5, 0.5], lora=[0.4, 0.5], heads=[0.1, 0.1], adapters=[0.25, 0.25]),
        "two": trials(full=[0.2, 0.2], lora=[0.1, 0.1], heads=[0.1, 0.0], adapters=[0.1, 0.1]),
        "unfinished": trials(full=[0.2, 0.0]),
    }
    code = f"import study_page; print(study_page.budgets_table({contents!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOL.parent, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "| group | configuration | trained | one | two | of full fine-tuning |",
        "|---|---|---|---|---|---|",
        "| 0 to 1 % | lora | 0.90 % | 0.450 | 0.100 | 70 % |",
        "| 1 to 1.7 % | adapters | 1.50 % | 0.250 | 0.100 | 50 % |",
        "| all | full | 100.00 % | 0.500 | 0.200 | 100 % |",
    ]
