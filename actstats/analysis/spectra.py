"""How a unit's power is spread over spatial frequency: slope, centroid, and the share above half Nyquist."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.coverage import result, usable
from actstats.store.merging import merge
from actstats_kernels.bins import FREQUENCY_BINS, RINGS, radial_bins

HALF_NYQUIST: Final = 0.25
"""Cycles a pixel: half of the highest frequency, 0.5, that a row of pixels can hold."""
_HIGH = RINGS // 2 + 1
"""The first radial bin above half Nyquist: bin b ends at b / 32."""


def spectrum(dataset: xr.Dataset) -> xr.Dataset:
    """Return each unit's mean power by radial frequency and what sums it up, lazily.

    P[b] is the power in radial bin b (`power_spectrum` summed over partitions), n[b] how many coefficients a map of
    the unit's size has in it, f[b] the middle of these coefficients' frequencies, in cycles a pixel of the map.

    - `power` = P[b] / images read, activation^2, DC in bin 0;
    - `dc_share` = P[0] / sum of P: what is constant over the map. **All that follows leaves DC out**;
    - `share` = P[b] / sum of P over b > 0; NaN at DC;
    - `centroid` = sum of f P / sum of P: the mean frequency of the power, within 1/64 cycles a pixel, half a ring,
      for power up to 0.5 cycles a pixel;
    - `high_share` = share of the power above 0.25 cycles a pixel, half Nyquist;
    - `slope` of the line through log10(P[b] / n[b]) over log10 f[b], by least squares over the resolved rings up to
      0.5 cycles a pixel that hold power, at least three: the exponent of the power of one coefficient, 0 for white
      noise, about -2 for natural images (Field 1987, doi:10.1364/JOSAA.4.002379).

    A map of few positions resolves few bins, so `slope` is NaN there, and all but `power` for a map of one position.

    Args:
        dataset: of a sweep with `power_spectrum`, as `xarray.open_zarr` gives it.

    Returns:
        `power` and `share` f64 [unit, frequency], the rest f64 [unit].

    Raises:
        ActstatsError: the variable is missing, or no partition is complete.
    """
    swept = usable(dataset, "spectrum", "power_spectrum")
    power = merge(swept)["power_spectrum"].chunk({"frequency": -1})
    count, frequency = _rings(swept["height"].values, swept["width"].values)
    names = ("share", "dc_share", "centroid", "high_share", "slope")
    rings = [xr.DataArray(values, dims=("unit", "frequency")) for values in (count, frequency)]
    computed = xr.apply_ufunc(
        _summary,
        power,
        *rings,
        input_core_dims=[["frequency"]] * 3,
        output_core_dims=[["frequency"], *[[]] * 4],
        dask="parallelized",
        output_dtypes=[np.float64] * 5,
    )
    found = {"power": power / max(1, swept.attrs["images_read"]), **dict(zip(names, computed, strict=True))}
    described = {
        "power": ("activation^2", "mean power by radial bin"),
        "share": ("1", "share of the power without DC"),
        "dc_share": ("1", "share of the power that is constant over the map"),
        "centroid": ("cycles/pixel", "mean frequency of the power without DC"),
        "high_share": ("1", "share of the power above 0.25 cycles/pixel, without DC"),
        "slope": ("1", "exponent of the power of a coefficient over frequency"),
    }
    return result(
        {name: found[name].assign_attrs(units=u, long_name=text) for name, (u, text) in described.items()},
        swept,
    )


def per_coefficient(found: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the share of power of one coefficient, and the middle frequency of its ring, f64 [unit, frequency].

    `found` is a result of `spectrum`. A share is that of a ring over the number of coefficients in the ring, so white
    noise is flat. Both are NaN for DC and for rings that a unit's map does not resolve.
    """
    count, frequency = _rings(found["height"].values, found["width"].values)
    share = found["share"].transpose("unit", "frequency")
    known = (count > 0) & np.isfinite(share.values)
    density = np.divide(share.values, count, out=np.full(count.shape, np.nan), where=known)
    return share.copy(data=density), share.copy(data=np.where(known, frequency, np.nan))


def _summary(
    power: NDArray[np.float64], count: NDArray[np.int64], frequency: NDArray[np.float64]
) -> tuple[NDArray[np.float64], ...]:
    """Return share, DC's share, centroid, share above half Nyquist and slope of spectra [..., frequency]."""
    varying = power.copy()
    varying[..., 0] = np.nan
    with np.errstate(divide="ignore", invalid="ignore"):
        dc, rest = power[..., 0], np.nansum(varying, -1)
        share = varying / rest[..., None]
        centroid = np.where(rest > 0, np.nansum(share * frequency, -1), np.nan)
        high = np.where(rest > 0, np.nansum(share[..., _HIGH:], -1), np.nan)
        rings = slice(1, RINGS + 1)
        density = varying[..., rings] / count[..., rings]
        slope = _slope(np.log10(frequency[..., rings]), np.log10(np.where(density > 0, density, np.nan)))
        return share, dc / (dc + rest), centroid, high, slope


def _slope(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the least-squares slope of y over x along the last axis over the finite pairs, NaN below three."""
    used = np.isfinite(x) & np.isfinite(y)
    n = used.sum(-1)
    x, y = np.where(used, x, 0.0), np.where(used, y, 0.0)
    dx = np.where(used, x - (x.sum(-1) / n)[..., None], 0.0)
    slope = (dx * y).sum(-1) / (dx * dx).sum(-1)
    return np.where(n >= 3, slope, np.nan)


def _rings(
    heights: NDArray[np.int32], widths: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return of each unit's map and bin the count of coefficients and the middle of their frequencies [unit, bin]."""
    sizes, which = np.unique(np.stack([heights, widths], 1), axis=0, return_inverse=True)
    counts = np.zeros((len(sizes), FREQUENCY_BINS), dtype=np.int64)
    low = np.full((len(sizes), FREQUENCY_BINS), np.nan)
    high = low.copy()
    for at, (height, width) in enumerate(sizes.tolist()):
        bins = radial_bins(height, width).ravel()
        radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)).ravel()
        counts[at] = np.bincount(bins, minlength=FREQUENCY_BINS)
        np.fmin.at(low[at], bins, radius)
        np.fmax.at(high[at], bins, radius)
    return counts[which], ((low + high) / 2)[which]
