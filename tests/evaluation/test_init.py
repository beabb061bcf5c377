"""The names of `vispeft.evaluation`, which are loaded when they are first used."""

import inspect
import pkgutil
import subprocess
import sys
from importlib import import_module

from vispeft import evaluation

MODULES = sorted(module.name for module in pkgutil.iter_modules(evaluation.__path__))


def test_evaluation__no_name_is_that_of_a_module() -> None:
    # importing a module makes it an attribute of the package, and a function of that name could not be had any more
    assert not set(evaluation.__all__) & set(MODULES)


def test_evaluation__names_are_documented_functions_and_classes_after_every_module_was_imported() -> None:
    for name in MODULES:
        import_module(f"vispeft.evaluation.{name}")
    for name in evaluation.__all__:
        found = getattr(evaluation, name)
        assert inspect.isclass(found) if name[0].isupper() else inspect.isfunction(found), name
        assert found.__name__ == name
        assert inspect.getdoc(found), name


def test_evaluation__scoring_needs_no_torch() -> None:
    code = "import sys; from vispeft.evaluation import evaluate_coco, read_results; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_evaluation__unknown_name() -> None:
    assert getattr(evaluation, "nonsense", None) is None
