"""``Generation``: drawing data, encoding and decoding."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import pyro
import torch
from jaxtyping import Num
from pyro import poutine
from torch import Tensor

from pyrovae._checks import as_covariates, as_data, as_real, require_at_least, require_seed, rows_of
from pyrovae.distributions._capabilities import capabilities, center, family, holds_integers, moment, support_of
from pyrovae.model._inputs import as_inputs, check_num_covariates
from pyrovae.model._latents import Data, Latents, as_latents, of_one_particle
from pyrovae.model._log_terms import Sites, latent_sites, log_terms, sample_sites
from pyrovae.model._modes import inference
from pyrovae.model._rows import as_fields, in_blocks, on_rows, require_numbers
from pyrovae.model._saving import SaveableModule
from pyrovae.model._without_data import data_site, placeholder, sites_without_data

_NUM_MEAN_BLOCKS, _DRAWS_PER_BLOCK = 16, 16  # 256 draws, for the mean of a posterior without a closed-form one


class Generation(SaveableModule):
    """A model that draws data, encodes and decodes, in evaluation mode and with its own parameters.

    Latents come and go as ``(..., n, *plates, *event)``, with those plates that a site is in.

    Rows are taken block by block, as many as follow from the model and the shape of the data, and drawn in that order
    from one seed. On a CPU the draws of one site, one for each row, are the same as those of all rows at once.
    """

    model: Any
    guide: Any
    draw_posterior: Any
    max_plate_nesting: int = 1

    def sample(self, n: int, *covariates: Any, seed: int | None = None) -> Num[Tensor, "n *event"]:
        """Draw ``n`` data from the model: z ~ p(z), x ~ p(x | z).

        All dimensions are drawn, those under a mask too. What else the model observes, such as labels that are passed,
        stays as given; labels that are not passed, if it can do without (``obs=None``), are drawn.

        Args:
            n: number of draws.
            covariates: as in the model, for ``n`` data.
            seed: seed of the draws.

        Returns:
            The draws, in the dtype in which the likelihood draws: int64 for a ``Categorical``.

        Raises:
            ValueError: ``n < 1``; the model does not know its ``event_shape`` yet; what it observes besides the data
                depends on the latents; a distribution depends on the values of x.
        """
        return self.simulate(n, *covariates, seed=seed)[0]

    def simulate(self, n: int, *covariates: Any, seed: int | None = None) -> tuple[Num[Tensor, "n *event"], Latents]:
        """Draw ``n`` data with the latents they came from: z is an exact draw from p(z | x), or from p(z | x, y) where
        the model observes given labels y too.

        Args:
            n: number of draws.
            covariates: as in the model, for ``n`` data.
            seed: seed of the draws.

        Returns:
            The data, and the latents by site, ``(1, *plates, n, *event)``.

        Raises:
            ValueError: as from :meth:`sample`.
        """
        return self._from_prior(n, covariates, seed, data=True)

    def sample_latents(self, n: int, *covariates: Any, seed: int | None = None) -> Any:
        """Draw latents from the prior: ``(n, *latent)``, or a dict by site where there are several."""
        latents = self._from_prior(n, covariates, seed, data=False)[1]
        return _only({name: z[0] for name, z in _data_first(latents).items()})

    def encode(self, x: Data | Any, *covariates: Any, num_samples: int | None = None, seed: int | None = 0) -> Any:
        """Encode data: the posterior mean of the latents, or draws from the posterior.

        Args:
            x: data ``(B, *event_shape)``.
            covariates: passed to the guide.
            num_samples: ``None`` for the mean ``(B, *latent)``, in closed form where the family has one and
                otherwise averaged over 256 draws; a number S for draws ``(S, B, *latent)``.
            seed: seed of the draws.

        Returns:
            A tensor; a dict of tensors by site for a guide with several latent sites.

        Raises:
            ValueError: bad data, or the mean of a site that has none.
        """
        require_seed(seed=seed)
        if num_samples is not None:
            require_at_least(1, num_samples=num_samples)
        return self._encoded(self._fields(x, covariates), num_samples, seed)

    def _encoded(self, fields: dict[str, Any], num_samples: int | None, seed: int | None) -> Any:
        """See :meth:`encode`, of data that are checked, by the names that errors have for them."""
        with inference(self, seed):
            if num_samples is None:
                return _only(self._in_blocks(self._means, fields))

            def draw(n: int, *part: Any) -> dict[str, Tensor]:
                return _data_first(self.draw_posterior(*part, num_particles=num_samples)[0])

            return _only(self._in_blocks(draw, fields, dim=1))

    def decode(self, z: Any, *covariates: Any) -> Num[Tensor, "*batch_event"]:
        """Decode latents: the mean of p(x | z); where that does not exist, its mode.

        Of a Bernoulli or a one-hot categorical that is the probabilities, of counts their expectation. A
        ``Categorical`` over classes has no mean, and gives the most probable class; so does a ``Cauchy`` its mode.

        Args:
            z: latents ``(..., *latent)`` of the model's single latent site, or a dict of latents ``(n, *latent)`` by
                site; sites not in the dict are drawn.
            covariates: as in the model, for as many data as the leading dimensions of ``z`` hold.

        Raises:
            ValueError: a site that the model does not have, latents that are empty, not finite or of another shape, a
                likelihood that states neither mean nor mode, a model whose distributions depend on the values of x.
        """
        with inference(self, 0):
            hidden = latent_sites(sites_without_data(self, self._covariates(covariates, None))[1])
            if not isinstance(z, Mapping) and len(hidden) != 1:
                raise ValueError(
                    f"the model has the latent sites {list(hidden)}: pass decode() a dict with a value for each."
                )
            by_site = z if isinstance(z, Mapping) else {next(iter(hidden)): z}
            lead, values = None, {}
            for name, value in by_site.items():
                if name not in hidden:
                    raise ValueError(f"the model has no latent site {name!r}: it has {', '.join(map(repr, hidden))}.")
                if isinstance(value, (pd.Series, pd.Index)):
                    raise TypeError(f"latents {name!r} are a pandas {type(value).__name__}: pass an array or a frame.")
                value, drawn, event = as_real(value, name), hidden[name]["value"], hidden[name]["fn"].event_shape
                plates = drawn.shape[: drawn.dim() - len(event) - 1]
                own = value.shape[: max(value.dim() - len(plates + event), 0)]
                lead = own if lead is None else lead
                if value.shape != lead + plates + event or (by_site is z and len(lead) != 1):
                    needed = ", ".join(map(str, ("n" if by_site is z else "...", *plates, *event)))
                    raise ValueError(f"latents {name!r} have shape {tuple(value.shape)}; ({needed}) is needed.")
                if not value.numel():
                    raise ValueError(f"latents {name!r} are empty, of shape {tuple(value.shape)}: pass at least one.")
                value = value.to(drawn)
                if bad := int((~value.isfinite()).sum()):
                    raise ValueError(
                        f"latents {name!r} hold {bad} NaN or infinite value(s) in {drawn.dtype}: drop them."
                    )
                values[name] = value.reshape(-1, *plates, *event)
            if lead is None:
                raise ValueError("z must hold a value for at least one latent site of decode; got none.")
            n, names, depth = lead.numel(), list(values), {name: len(hidden[name]["fn"].event_shape) for name in values}
            by_row = {"z" if by_site is not z else f"z[{name!r}]": value for name, value in values.items()}
            fields = by_row | as_fields(None, self._covariates(covariates, n))

            def mean(n: int, *part: Any) -> dict[str, Tensor]:
                z, given = part[: len(names)], part[len(names) :]
                moved = {name: v.movedim(0, v.dim() - 1 - depth[name]) for name, v in zip(names, z, strict=True)}
                return {"": self._mean_or_mode(placeholder(self, n), given, moved)}

            decoded = self._in_blocks(mean, fields, n)[""]
        return decoded.reshape(*lead, *decoded.shape[1:])

    def reconstruct(self, x: Data | Any, *covariates: Any, seed: int | None = 0) -> Data:
        """Reconstruct data: :meth:`decode` at one draw z ~ q(z | x) per datum. Where the model uses x besides observing
        it (the size of a library, a mask), it is this x.
        """
        require_seed(seed=seed)

        def decoded(n: int, x: Tensor, *given: Any) -> dict[str, Tensor]:
            latents = self.draw_posterior(x, *given, num_particles=1)[0]
            if not latents:
                raise ValueError("the model has no latents: there is nothing to reconstruct from.")
            values = {name: of_one_particle(z, self.max_plate_nesting) for name, z in latents.items()}
            return {"": self._mean_or_mode(x, given, values)}

        fields = self._fields(x, covariates)
        with inference(self, seed):
            return self._in_blocks(decoded, fields)[""]

    def interpolate(
        self, start: Data | Any, end: Data | Any, *covariates: Any, steps: int = 8
    ) -> Num[Tensor, "steps batch *event"]:
        """Decode along the straight lines between the posterior means of ``start`` and ``end``.

        Args:
            start: data ``(B, *event_shape)``.
            end: data ``(B, *event_shape)``.
            covariates: of both ends, for B data.
            steps: points on each line, both ends included.

        Raises:
            ValueError: bad data, ends of different lengths, fewer than two steps, several latent sites, discrete
                latents.
        """
        require_at_least(2, steps=steps)
        fields = self._fields(start, covariates, "start")
        x, *given = fields.values()
        other = self.as_data(end, "end", tuple(given))
        if len(other) != len(x):
            raise ValueError(f"start has {len(x)} data and end has {len(other)}: each line needs both of its ends.")
        with inference(self, 0):
            sites = on_rows(lambda n, *part: self._guide_sites(*part), fields, slice(0, 1), self.placement)
        for name, site in sites.items():
            if len(sites) > 1:
                raise ValueError("interpolate needs a single latent site; decode a dict of latents instead.")
            if capabilities(site["fn"]).discrete:
                raise ValueError(
                    f"interpolate needs a continuum of latents; site {name!r} is discrete. Decode its values."
                )
        a, b = (
            self._encoded(as_fields(of, tuple(given), name), None, 0) for name, of in (("start", x), ("end", other))
        )
        weights = torch.linspace(0, 1, steps, device=a.device, dtype=a.dtype).reshape(-1, *[1] * a.dim())
        return self.decode(
            (1 - weights) * a + weights * b, *rows_of(given, torch.arange(len(x), device="cpu").repeat(steps))
        )

    def as_data(self, value: Any, name: str = "x", covariates: tuple[Any, ...] = ()) -> Tensor:
        """Check data ``(N, *event_shape)``, and return them as the model takes them.

        Integers are data where the likelihood is over integers (counts, classes). The model is given them as floats in
        its precision, or as they are where it takes no floats, as an embedding does not.

        Raises:
            ValueError: integers for another likelihood, such as pixels for a Bernoulli; boolean data, an empty set, a
                wrong shape, NaN or infinite values.
        """
        x = as_data(value, name, self.event_shape, self.columns, integers=True, dtype=self.placement.dtype)
        if x.is_floating_point():
            return x
        head = rows_of(self._covariates(covariates, None), slice(2))
        like = self.placement
        floats = x.to(like.dtype)
        if not torch.equal(floats.to(x.dtype), x):
            raise ValueError(f"{name} holds integers that {like.dtype} does not have: pass model.double() such data.")
        failed = []
        for candidate in (floats, x):
            part = candidate[:2].to(like.device)
            try:
                with inference(self, 0), pyro.distributions.validation_enabled(False):
                    terms = log_terms(self.model, self.guide, part, *head, max_plate_nesting=self.max_plate_nesting)
                    poutine.trace(self.model).get_trace(part, *head)  # draws from the prior, too
            except (IndexError, RuntimeError, TypeError, ValueError) as error:  # whatever networks say of a dtype
                failed.append(f"{candidate.dtype}: {str(error).splitlines()[0]}")
                continue
            observed = [site for site, v in terms.observed.items() if v is part] or list(terms.observed)
            if all(holds_integers(support_of(terms.likelihood[site])) for site in observed):
                return candidate
            return super().as_data(value, name)  # which says what to do instead
        raise ValueError(
            f"model and guide run on {name} neither as floats nor as integers ({'; '.join(failed)}). Give networks "
            f"x.float(), look values up by x.long(), and use x.new_zeros(..., dtype=torch.float32)."
        )

    def _fields(self, x: Any, covariates: tuple[Any, ...], name: str = "x") -> dict[str, Any]:
        """Check data and covariates, and return them by name, where they are."""
        check_num_covariates(self, covariates)
        return as_fields(*as_inputs(self, x, covariates, name), name)

    def _in_blocks(
        self, run: Callable[..., Mapping[str, Tensor]], fields: Mapping[str, Any], n: int | None = None, dim: int = 0
    ) -> dict[str, Tensor]:
        """What ``run(num_rows, *fields)`` gives by name for all rows, which lie along ``dim`` of it; see
        :func:`in_blocks`.
        """
        n = len(next(iter(fields.values()))) if n is None else n
        parts = in_blocks(run, n, fields, torch.Size(self.event_shape or ()).numel(), self.placement)
        out = {
            name: torch.cat([p[name] for p in parts], dim) if len(parts) > 1 else parts[0][name] for name in parts[0]
        }
        for name, values in out.items():
            require_numbers(values, dim, f"site {name!r}" if name else "what the model gives", fields)
        return out

    def _means(self, n: int, *part: Any) -> dict[str, Tensor]:
        """The posterior mean by site, ``(B, *latent)``."""
        sites = self._guide_sites(*part)
        for name, site in sites.items():
            can, mean = capabilities(site["fn"]), moment(site["fn"], "mean")
            if (can.mean and mean is None) or not site["value"].is_floating_point():
                kind = "is discrete and" if can.discrete else f"({family(site['fn'])})"
                raise ValueError(f"site {name!r} {kind} has no mean: pass num_samples.")
            # Means of several sites depend on each other, and a point mass may be of an auxiliary draw.
            if mean is not None and len(sites) == 1 and not can.point_mass:
                latents = as_latents({name: site | {"value": mean}}, self.max_plate_nesting)
                return {name: _data_first(latents)[name][0]}
        sums: dict[str, Any] = {}
        for _ in range(_NUM_MEAN_BLOCKS):
            for name, z in _data_first(self.draw_posterior(*part, num_particles=_DRAWS_PER_BLOCK)[0]).items():
                sums[name] = sums.get(name, 0.0) + z.mean(0) / _NUM_MEAN_BLOCKS
        return sums

    def _covariates(self, covariates: tuple[Any, ...], n: int | None) -> tuple[Any, ...]:
        """Check covariates of ``n`` data, if it is known how many, and return them as the model takes them."""
        check_num_covariates(self, covariates)
        return as_covariates(covariates, n, self.placement, self.columns)

    def _from_prior(
        self, n: int, covariates: tuple[Any, ...], seed: int | None, *, data: bool
    ) -> tuple[Tensor, Latents]:
        """Draw latents from the prior, with data drawn too, or zeros."""
        require_at_least(1, n=n)
        require_seed(seed=seed)
        fields = as_fields(None, self._covariates(covariates, n))

        def draw(n: int, *given: Any) -> dict[str, Tensor]:
            x = placeholder(self, n)
            sites = sample_sites(poutine.trace(self.model).get_trace(x, *given))
            if data:  # on which nothing else depends
                x = sites[name]["fn"](*sites[name]["args"], **sites[name]["kwargs"])
            latents = as_latents(latent_sites(sites), self.max_plate_nesting)
            return {"": x} | {site: z.movedim(latents.data_dim, 0) for site, z in latents.items()}

        with inference(self, seed):
            name = sites_without_data(self, tuple(fields.values()), data=data, labels=data)[0]
            drawn = self._in_blocks(draw, fields, n)
        x, at = drawn.pop(""), self.max_plate_nesting
        return x, Latents({site: z.movedim(0, at) for site, z in drawn.items()}, at - 1)

    def _mean_or_mode(self, x: Tensor, covariates: tuple[Any, ...], values: Mapping[str, Tensor]) -> Tensor:
        """The mean or mode of p(x | z) at values of latent sites."""
        sites = sample_sites(poutine.trace(poutine.condition(self.model, data=dict(values))).get_trace(x, *covariates))
        name = data_site(self, sites, x, given=values)
        mean = center(sites[name]["fn"])
        if mean is None:
            raise ValueError(
                f"the likelihood at site {name!r} ({family(sites[name]['fn'])}) states neither a "
                f"finite mean nor a mode: give it a property `mean`, or average draws of your own."
            )
        return mean

    def _guide_sites(self, x: Tensor, *covariates: Any) -> Sites:
        """The guide's latent sites, without auxiliary ones."""
        return latent_sites(sample_sites(poutine.trace(self.guide).get_trace(x, *covariates)))


def _data_first(latents: Latents) -> dict[str, Tensor]:
    """Rearrange latents as ``(K, B, *plates, *event)`` by site, with those plates alone that the site is in."""
    first, plates = {}, range(2, 2 + latents.num_plates)
    for name, z in latents.items():
        z = z.movedim(latents.data_dim, 1)
        first[name] = z.squeeze(tuple(d for d in plates if z.shape[d] == 1))
    return first


def _only(latents: Mapping[str, Tensor]) -> Any:
    """The latents of the only site, or a dict by site."""
    if not latents:
        raise ValueError("the model has no latents: there is nothing to encode, and sample() alone draws data.")
    return next(iter(latents.values())) if len(latents) == 1 else dict(latents)
