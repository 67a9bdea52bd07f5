"""Tasks: one file each, entered in :data:`TASKS`; a new one is a file, and a line here."""

from dstee.experiments.tasks.base import Task
from dstee.experiments.tasks.classification import Classification
from dstee.experiments.tasks.link_prediction import LinkPrediction
from dstee.experiments.tasks.registry import TASKS, find_task

__all__ = ["TASKS", "Task", "find_task"]

TASKS["classification"] = Classification
TASKS["link-prediction"] = LinkPrediction
