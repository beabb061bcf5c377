"""Configuration -> model, plan, loaders, optimizer, run: the one composer."""

from vispeft.assemble.estimates import Estimate, RoleRow, SiteRow, estimate, list_roles, list_sites
from vispeft.assemble.loaders import DataSets, read_sets
from vispeft.assemble.pictures import PredictionReport, predict_images
from vispeft.assemble.run_directory import RunDirectory, begun_run_directory, new_run_directory
from vispeft.assemble.runs import RunResult, train_run
from vispeft.assemble.saved import LoadedRun, evaluate_run, load_run, write_merged

__all__ = [
    "DataSets",
    "Estimate",
    "LoadedRun",
    "PredictionReport",
    "RoleRow",
    "RunDirectory",
    "RunResult",
    "SiteRow",
    "begun_run_directory",
    "estimate",
    "evaluate_run",
    "list_roles",
    "list_sites",
    "load_run",
    "new_run_directory",
    "predict_images",
    "read_sets",
    "train_run",
    "write_merged",
]
