"""NYUv2: 1,449 indoor images with labels, depth and normals, from the prepared tree or the published files."""

from mtobal.data.nyuv2.dataset import check_nyuv2, nyuv2
from mtobal.data.nyuv2.prepare import prepare_nyuv2

__all__ = ["check_nyuv2", "nyuv2", "prepare_nyuv2"]
