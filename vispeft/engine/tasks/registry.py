"""Tasks by their names in a configuration."""

from __future__ import annotations

from collections.abc import Mapping

from vispeft.engine.tasks.base import TaskRules
from vispeft.engine.tasks.detection import DetectionTask
from vispeft.engine.tasks.instance import InstanceTask
from vispeft.engine.tasks.panoptic import PanopticTask
from vispeft.engine.tasks.semantic import SemanticTask

TASKS: Mapping[str, TaskRules] = {
    task.name: task for task in (InstanceTask(), SemanticTask(), PanopticTask(), DetectionTask())
}
