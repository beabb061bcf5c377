"""Imports of `vispeft.evaluation`."""

import subprocess
import sys


def test_evaluation__scoring_needs_no_torch() -> None:
    code = "import sys; from vispeft.evaluation import evaluate_coco; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
