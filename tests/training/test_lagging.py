"""Aggressive updates of the encoder: who moves at which step."""

import math
import warnings
from pathlib import Path

import pytest
import torch

import pyrovae as pv
from pyrovae.training import LaggingAdam

DATA = torch.bernoulli(torch.full((50, 6), 0.4), generator=torch.Generator().manual_seed(0))


def model() -> pv.VAE:
    torch.manual_seed(0)
    return pv.VAE((6,), 2, hidden=[8])


def train(vae: pv.VAE, *, epochs: int, every: int = 3, steps: int = 7, **options: object) -> pv.FitResult:
    """Five steps an epoch."""
    return pv.fit(
        vae,
        DATA,
        optimizer=pv.lagging_inference(vae.decoder, every=every, steps=steps, learning_rate=1e-2),
        epochs=epochs,
        batch_size=10,
        seed=0,
        device="cpu",
        progress=False,
        **options,
    )


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_the_decoder_moves_at_every_third_step_then_at_all(compile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vae, moved = model(), []
    step = LaggingAdam.step

    def watched(self: LaggingAdam, closure: object = None) -> object:
        def weights() -> list[torch.Tensor]:
            return [torch.cat([p.detach().flatten() for p in part.parameters()]) for part in (vae.encoder, vae.decoder)]

        before = weights()
        out = step(self, closure)
        moved.append([not torch.equal(a, b) for a, b in zip(before, weights(), strict=True)])
        return out

    monkeypatch.setattr(LaggingAdam, "step", watched)
    run = train(vae, epochs=2, compile=compile)
    assert run.engine == compile
    assert [encoder for encoder, _ in moved] == [True] * 10
    assert [decoder for _, decoder in moved] == [False, False, True, False, False, True, False, True, True, True]


def test_once_it_is_over_or_for_every_1_it_is_adam() -> None:
    plain = model()
    pv.fit(plain, DATA, learning_rate=1e-2, epochs=2, batch_size=10, seed=0, device="cpu", progress=False)
    for options in ({"every": 1}, {"steps": 0}):
        vae = model()
        train(vae, epochs=2, **options)
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in vae.state_dict().items())


@pytest.mark.parametrize("compile", ["off", "graph"])
def test_a_run_goes_on_from_a_checkpoint_as_if_nothing_had_happened(compile: str, tmp_path: Path) -> None:
    whole, halves = model(), model()
    train(whole, epochs=3, steps=12, compile=compile)
    train(halves, epochs=1, steps=12, compile=compile, checkpoint=tmp_path)
    halves = model()
    train(halves, epochs=3, steps=12, compile=compile, checkpoint=tmp_path)
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in halves.state_dict().items())
    with pytest.raises(pv.CheckpointError):
        train(model(), epochs=3, steps=12, every=2, checkpoint=tmp_path)


def test_a_schedule_of_the_learning_rate() -> None:
    vae = model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = train(vae, epochs=2, lr_schedule=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1))
    assert run.history["learning_rate"].tolist() == pytest.approx([1e-2, 1e-3])


def test_bad_arguments() -> None:
    vae, other = model(), model()
    with pytest.raises(ValueError, match="every must be at least 1"):
        pv.lagging_inference(vae.decoder, every=0)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        pv.lagging_inference(vae.decoder, steps=-1)
    with pytest.raises(ValueError, match="needs the modules"):
        pv.lagging_inference()
    for bad in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="learning_rate must be positive and finite"):
            pv.lagging_inference(vae.decoder, learning_rate=bad)
    for slow, which in ((other.decoder, "none"), (vae, "all")):
        with pytest.raises(ValueError, match=f"{which} of the trained parameters"):
            pv.fit(vae, DATA, optimizer=pv.lagging_inference(slow), epochs=1, progress=False, device="cpu")
