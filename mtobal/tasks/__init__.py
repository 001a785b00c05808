"""Tasks: each joins a loss, metrics and the size of its head."""

from mtobal.tasks.anyloss import anyloss
from mtobal.tasks.classification import Classification
from mtobal.tasks.depth import Depth
from mtobal.tasks.multi_label import MultiLabel
from mtobal.tasks.normals import Normals
from mtobal.tasks.reconstruction import Reconstruction
from mtobal.tasks.regression import Regression
from mtobal.tasks.restoration import Restoration
from mtobal.tasks.segmentation import Segmentation
from mtobal.tasks.task import Task

__all__ = [
    "Classification",
    "Depth",
    "MultiLabel",
    "Normals",
    "Reconstruction",
    "Regression",
    "Restoration",
    "Segmentation",
    "Task",
    "anyloss",
]
