"""The command line: all commands, and their exit statuses.

Commands import their packages when they run, so that `--help` is fast.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from vispeft.cli import compare, data, export, inspect, machine, plan, run, share, sweep, zoo
from vispeft.cli.terminal import guarded
from vispeft.io.cache import request_offline_libraries
from vispeft.io.child_processes import end_with_parent
from vispeft.training.arithmetic import request_reproducible_arithmetic

app = typer.Typer(
    name="vispeft",
    help="Fine-tune instance segmentation models by adapters and LoRA: a few percent of the parameters, a small file.",
    epilog="Start with: vispeft quickstart",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quickstart")(run.quickstart)
app.command("train")(run.train)
app.command("evaluate")(run.evaluate)
app.command("predict")(run.predict)
app.command("merge")(run.merge)
app.command("push")(share.push)
app.command("export")(export.export)
app.command("sweep")(sweep.sweep)
app.command("compare")(compare.compare)
app.command("plan")(plan.plan)
app.command("sites")(inspect.sites)
app.command("inspect")(inspect.inspect)
app.add_typer(data.app, name="data")
app.command("methods")(machine.methods)
app.command("models")(zoo.models)
app.command("schema")(machine.schema)
app.command("doctor")(machine.doctor)


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Also allowed after a command.")
    ] = False,
) -> None:
    """Declare the options of every command. `main` removes --debug from the arguments before they are parsed."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit: status 0 for success, 1 for an explained failure, 2 for wrong usage, 130 for Ctrl-C."""
    end_with_parent()
    words = list(sys.argv[1:] if arguments is None else arguments)
    is_debug = "--debug" in words
    # otherwise albumentations checks for a newer version over the network
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    request_offline_libraries()
    request_reproducible_arithmetic()
    remaining = [word for word in words if word != "--debug"]
    sys.exit(guarded(lambda: app(remaining, prog_name="vispeft"), is_debug=is_debug))
