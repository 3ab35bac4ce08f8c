"""Of torch: nests of tensors, graphs and machine code, where modules keep their tensors, what errors mean."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import _InverseTransform
from torch.fx import GraphModule
from torch.nn.modules.conv import _ConvNd as ConvNd  # the class of all convolutions, transposed ones too
from torch.utils._python_dispatch import TorchDispatchMode

# Nests of tensors as flat lists, and back.
from torch.utils._pytree import register_pytree_node, tree_flatten, tree_leaves, tree_map_only, tree_unflatten

# Kernels fused without end take a minute to compile on CUDA and run no faster.
_CPU = torch.device("cpu")
_OPTIONS = {"cuda": {"max_fusion_size": 16}}


def aten_graph(function: Callable[..., Any], *inputs: Tensor) -> GraphModule:
    """The ATen operations of a function of tensors, run on fake ones; tensors that it finds elsewhere may be real.

    Every node's ``meta["val"]`` is its fake result.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # with which half of torch's compiler comes

    return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)


def machine_code(module: GraphModule, inputs: Sequence[Tensor], device: str) -> Callable[..., Sequence[Any]]:
    """Inductor's code of a graph whose convolutions keep their layouts. It stays on the disk for other processes."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    # Inductor keeps its work on the disk only where sizes could be symbols; none of ours is, which only it knows of
    # inputs that are fakes already.
    fakes = torch._subclasses.FakeTensorMode(shape_env=ShapeEnv())
    sized: list[Any] = [fakes.from_tensor(t, static_shapes=True) for t in inputs]
    options = {"layout_optimization": False, **_OPTIONS.get(device, {})}
    context = torch._guards.TracingContext(fakes)
    with warnings.catch_warnings(action="ignore"), torch._guards.tracing(context):  # of what we do without, as TF32
        return torch._inductor.compile(module, sized, options=options)


def schema_of(operation: Any) -> Any:
    """What an ATen operation states of its arguments: names, and which of them it writes to. ``None`` of others."""
    return getattr(operation, "_schema", None)


def is_fake(tensor: Tensor) -> bool:
    """Whether a tensor is a placeholder of a traced run, without values."""
    return isinstance(tensor, torch._subclasses.FakeTensor)


def storage_id(tensor: Tensor) -> int:
    """What tells memory from memory, also of tensors that have no address because they are being traced."""
    return tensor.untyped_storage()._cdata


def tensor_places(model: nn.Module, *, parameters: bool = True) -> list[dict[str, Any]]:
    """The dictionaries in which a model and its parts keep buffers and parameters (or not these), by name: what is set
    there is what the model uses, whatever it is.
    """
    return [place for m in model.modules() for place in ([m._parameters] * parameters + [m._buffers])]


def part_of(module: nn.Module, name: str) -> Any:
    """A part by name, found past ``__getattr__``; ``None`` where there is none, in a module that is being made too."""
    return vars(module).get("_modules", {}).get(name)


def is_compiled(module: nn.Module) -> bool:
    """Whether it is the wrapper that ``torch.compile`` puts a module in."""
    return "_orig_mod" in module._modules


def uncompiled(name: str) -> str:
    """The name of a parameter, or with a dot behind it of a part, as it is without such wrappers."""
    return name.replace("_orig_mod.", "")


def is_made_by_hook(module: nn.Module, name: str) -> bool:
    """Whether an attribute is computed from other parameters before each run: a weight under the old forms of
    ``spectral_norm`` and ``weight_norm``.
    """
    return not module._parameters.keys().isdisjoint((f"{name}_orig", f"{name}_g"))


def renew_cache(module: nn.Module, name: str) -> bool:
    """Whether an attribute is a cache of torch's own, by which recurrent layers find their parameters. It is made anew,
    of those that the module has now.
    """
    if not (isinstance(module, nn.RNNBase) and name == "_flat_weights"):
        return False
    module._init_flat_weights()
    return True


@cache
def _precise_parts() -> list[Any]:
    """What has a setting of how exact its float32 products are."""
    parents = [torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn]
    parts = [getattr(parent, name, None) for parent in parents for name in ("matmul", "conv", "rnn")]
    return [part for part in parts if hasattr(part, "fp32_precision")]


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 inside the block; the user's settings afterwards, made through torch's old interface or its new one."""
    before = [(p, p.fp32_precision) for p in _precise_parts() if p.fp32_precision not in ("none", "ieee")]
    for part, _ in before:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        for part, value in before:
            part.fp32_precision = value


@contextmanager
def without_autocast() -> Iterator[None]:
    """No autocast inside the block, whatever the caller has set."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def own_settings(device: torch.device = _CPU) -> Iterator[None]:
    """No autocast and no inference mode inside the block, and new tensors on ``device`` or the CPU, whatever the caller
    has set.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(without_autocast())
        if torch.get_default_device().type not in ("cpu", device.type):
            stack.enter_context(device)
        yield


class DispatchMode(TorchDispatchMode):
    """A mode that sees every operation on tensors. Its first one does not import torch's compiler, as others' do, for
    seconds.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class CheckedIndices(DispatchMode):
    """Raises an ``IndexError`` for an index that is out of range, before a CUDA device does, which does not recover."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        match func._schema.name.removeprefix("aten::"), args:
            case ("embedding", (weight, index, *_)):
                looked_up = [(index, 0, len(weight))]
            case ("gather" | "index_select" | "scatter" | "scatter_" | "scatter_add", (of, dim, index, *_)):
                looked_up = [(index, 0, of.shape[dim])]
            case ("index" | "index_put" | "index_put_", (of, indices, *_)) if not any(_is_mask(i) for i in indices):
                looked_up = [(i, -n, n) for i, n in zip(indices, of.shape, strict=False) if i is not None]
            case _:
                looked_up = []
        for index, least, end in looked_up:
            if index.numel() and bool(((index < least) | (index >= end)).any()):
                bad = int(index.max() if index.max() >= end else index.min())
                raise IndexError(f"index {bad} is out of range for size {end}")
        return func(*args, **(kwargs or {}))


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def validate(distribution: Any, value: Tensor) -> None:
    """What ``log_prob`` does first: where validation is on, a ``ValueError`` for a value of a shape that does not fit,
    or outside the support.
    """
    if distribution._validate_args:
        distribution._validate_sample(value)


def checks_values() -> bool:
    """Whether distributions look at the values of their arguments by default."""
    return bool(torch.distributions.Distribution._validate_args) and not torch.compiler.is_compiling()


def own_scale_tril(p: torch.distributions.MultivariateNormal) -> Tensor:
    """L with the batch dimensions that it was given, not expanded to those of the location: one matrix for all."""
    return p._unbroadcasted_scale_tril


def is_inverted(transform: Transform) -> bool:
    """Whether it is the inverse of another, ``transform.inv``, by the way that this one goes."""
    return isinstance(transform, _InverseTransform)


def has_inverse(transform: Transform) -> bool:
    """Whether the class of a transform that is not inverted says how it is undone."""
    return type(transform)._inverse is not Transform._inverse


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch's allocator, on whatever device, could not get what it was asked for."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def is_outside_support(error: ValueError) -> bool:
    """Whether torch's validation found a value outside a distribution's support."""
    return "within the support" in str(error)


def is_not_vectorised(error: RuntimeError) -> bool:
    """Whether a function cannot be run under ``vmap``: by the way it branches, or an operation in it."""
    return any(word in str(error) for word in ("vmap", "functorch", "Batching rule"))
