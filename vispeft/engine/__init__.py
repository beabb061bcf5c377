"""Configuration -> model, plan, loaders, optimizer, run: the one composer."""

from vispeft.engine.estimation.estimate import Estimate, estimate
from vispeft.engine.estimation.limits import Limits
from vispeft.engine.estimation.propose import Proposal, Proposals, propose
from vispeft.engine.estimation.sites import RoleRow, SiteRow, list_roles, list_sites
from vispeft.engine.export import ExportReport, export_run
from vispeft.engine.exported_runs import PredictionSource, load_exported, load_source
from vispeft.engine.inspection import Inspection, inspect_runs
from vispeft.engine.loaders import DataSets, read_sets
from vispeft.engine.predict_files import PredictionReport, predict_images
from vispeft.engine.reserved_runs import begun_run_directory, new_run_directory
from vispeft.engine.run_directory import RunDirectory
from vispeft.engine.saved_runs import LoadedRun, evaluate_run, load_run, write_merged
from vispeft.engine.train import RunResult, train_run

__all__ = [
    "DataSets",
    "Estimate",
    "ExportReport",
    "Inspection",
    "Limits",
    "LoadedRun",
    "PredictionReport",
    "PredictionSource",
    "Proposal",
    "Proposals",
    "RoleRow",
    "RunDirectory",
    "RunResult",
    "SiteRow",
    "begun_run_directory",
    "estimate",
    "evaluate_run",
    "export_run",
    "inspect_runs",
    "list_roles",
    "list_sites",
    "load_exported",
    "load_run",
    "load_source",
    "new_run_directory",
    "predict_images",
    "propose",
    "read_sets",
    "train_run",
    "write_merged",
]
