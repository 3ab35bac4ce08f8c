"""Fully connected networks."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import as_sizes, require_at_least, require_flag, shown


class GatedLinear(nn.Module):
    """A gated dense layer, ``(W x + b) ⊙ sigmoid(V x + c)`` (Tomczak & Welling 2018)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, 2 * out_features)

    def forward(self, x: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch out"]:
        return nn.functional.glu(self.linear(x), dim=-1)


class MLP(nn.Sequential):
    """A multilayer perceptron ``(..., in_features) -> (..., out_features)``.

    Args:
        in_features: size of the last dimension that comes in.
        hidden: sizes of the hidden layers; may be empty (an affine map).
        out_features: size of the last dimension that goes out.
        activation: module class after every hidden layer.
        final_activation: put the activation after the last layer too (for an encoder whose output
            feeds further layers).
        layer_norm: normalise what goes into every activation over its features (Ba et al. 2016, arXiv:1607.06450). It
            looks at one datum, and one particle, at a time.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        out_features: int,
        *,
        activation: Callable[[], nn.Module] = nn.ReLU,
        final_activation: bool = False,
        layer_norm: bool = False,
    ) -> None:
        sizes = _sizes(in_features, hidden, out_features)
        require_flag(final_activation=final_activation, layer_norm=layer_norm)
        if isinstance(activation, nn.Module) or not (callable(activation) and isinstance(activation(), nn.Module)):
            raise TypeError(f"activation must be the class of a layer, such as torch.nn.ReLU; got {shown(activation)}.")
        layers: list[nn.Module] = []
        for i, (n_in, n_out) in enumerate(pairwise(sizes)):
            layers.append(nn.Linear(n_in, n_out))
            if i < len(hidden) or final_activation:
                layers += [nn.LayerNorm(n_out), activation()] if layer_norm else [activation()]
        super().__init__(*layers)


class GatedMLP(nn.Sequential):
    """An :class:`MLP` of gated layers, Tomczak & Welling (2018, arXiv:1705.07120).

    Args:
        in_features: size of the last dimension that comes in.
        hidden: sizes of the gated hidden layers.
        out_features: size of the last dimension that goes out.
        final_activation: gate the last layer too; otherwise it is affine.
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int], out_features: int, *, final_activation: bool = False
    ) -> None:
        sizes = _sizes(in_features, hidden, out_features)
        require_flag(final_activation=final_activation)
        layers: list[nn.Module] = [GatedLinear(n_in, n_out) for n_in, n_out in pairwise(sizes[:-1])]
        layers.append((GatedLinear if final_activation else nn.Linear)(sizes[-2], sizes[-1]))
        super().__init__(*layers)


def _sizes(in_features: int, hidden: Sequence[int], out_features: int) -> list[int]:
    """The sizes of all layers, checked."""
    require_at_least(1, in_features=in_features, out_features=out_features)
    return [in_features, *as_sizes(hidden, "hidden", empty=True), out_features]
