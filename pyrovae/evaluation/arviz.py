"""The one seam to ArviZ, whose container changed: ``InferenceData`` before version 1, ``xarray.DataTree`` since."""

from collections.abc import Mapping
from typing import Any

import xarray


def container(groups: Mapping[str, xarray.Dataset]) -> Any:
    """Data sets by group, in the container of the ArviZ that is installed."""
    import arviz  # takes seconds and warns of its future: only for those who ask

    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**groups)
    return xarray.DataTree.from_dict(dict(groups))
