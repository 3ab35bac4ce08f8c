"""Story 1 of the README, as whoever installed the package lives it: a model in plain Pyro, trained, evaluated, kept."""

import tempfile
from importlib.resources import files
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyrovae as pv


class MyVAE(pv.VAEModel):
    """Any Pyro model/guide pair."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = pv.networks.MLP(8, [32], 64)
        self.encoder = pv.networks.MLP(64, [32], 32)
        self.posterior = pv.posteriors.IAF(latent_dim=8, context_dim=32)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encoder(x)))


def main() -> None:
    assert files("pyrovae").joinpath("py.typed").is_file()
    data = pv.datasets.load("digits", binarize="dynamic")
    torch.manual_seed(0)
    vae = MyVAE()
    run = pv.fit(vae, data, objective=pv.ELBO(beta=pv.linear_warmup(2)), epochs=6, seed=0, progress=False)
    assert run.history["val_loss"].iloc[-1] < run.history["val_loss"].iloc[0]
    x = data.test[:50]
    result = pv.log_marginal(vae, x, num_samples=200, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        vae.save(Path(folder) / "vae.safetensors")
        again = MyVAE.load(Path(folder) / "vae.safetensors")
        result.to_arviz().to_netcdf(str(Path(folder) / "result.nc"))
        pv.plots.khats(result).figure.savefig(Path(folder) / "khats.png")
    same = pv.log_marginal(again, x, num_samples=200, progress=False)
    assert same.pointwise.equals(result.pointwise)
    print(f"{Path(pv.__file__).parent}: log p(x) {result.pointwise['log_px'].mean():.2f} nats. {result.verdict}")


if __name__ == "__main__":
    main()
