"""The one seam to ArviZ, whose container changed: ``InferenceData`` before version 1, ``xarray.DataTree`` since."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray


def container(groups: "Mapping[str, xarray.Dataset]") -> Any:
    """Data sets by group, in the container of the ArviZ that is installed."""
    import arviz  # takes seconds and warns of its future: only for those who ask

    if int(arviz.__version__.split(".")[0]) < 1:
        return arviz.InferenceData(**groups)
    import xarray

    return xarray.DataTree.from_dict(dict(groups))


def group(data: Any, name: str) -> "xarray.Dataset":
    """The data set that :func:`container` put under ``name``.

    Raises:
        ValueError: there is none.
    """
    import xarray

    found = getattr(data, name, None) if not isinstance(data, xarray.DataTree) else data.children.get(name)
    if found is None:
        raise ValueError(f"there is no group {name!r}; was this written by to_arviz()?")
    return found.to_dataset() if isinstance(found, xarray.DataTree) else found
