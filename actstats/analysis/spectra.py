"""Distribution of a unit's power over spatial frequency: slope, centroid, and share above half Nyquist."""

from __future__ import annotations

from typing import Final

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from actstats.analysis.coverage import result, usable
from actstats.store.merging import reduce_partitions
from actstats_kernels.bins import FREQUENCY_BINS, RINGS, radial_bins

HALF_NYQUIST: Final = 0.25
"""Half of the Nyquist frequency (0.5) in cycles per pixel."""
_HIGH = RINGS // 2 + 1
"""The first radial bin above half Nyquist: bin b ends at b / 32."""


def spectrum(dataset: xr.Dataset) -> xr.Dataset:
    """Return each unit's mean power by radial frequency, and summaries of it, lazily.

    P[b] is the power in radial bin b (`power_spectrum` summed over partitions), n[b] the number of coefficients in it
    for the size of the unit's maps, and f[b] the midpoint of their frequencies, in cycles per pixel of the map.

    - `power` = P[b] / images read, activation^2, DC in bin 0;
    - `dc_share` = P[0] / sum of P, the share that is constant over the map. **All variables below exclude DC**;
    - `share` = P[b] / sum of P over b > 0; NaN at DC;
    - `centroid` = sum of f P / sum of P, the mean frequency of the power, accurate to 1/64 cycles per pixel (half a
      ring) for power up to 0.5 cycles per pixel;
    - `high_share` = share of the power above 0.25 cycles per pixel, half Nyquist;
    - `slope` of the line through log10(P[b] / n[b]) over log10 f[b], fitted by least squares to the resolved rings up
      to 0.5 cycles per pixel that contain power, at least three: the exponent of the power per coefficient, 0 for
      white noise, about -2 for natural images (Field 1987, doi:10.1364/JOSAA.4.002379).

    Small maps resolve few bins: `slope` is NaN for them, as are all variables except `power` for maps of one
    position.

    Args:
        dataset: dataset of a sweep with `power_spectrum`, as returned by `open_dataset`.

    Returns:
        `power` and `share` f64 [unit, frequency], the rest f64 [unit].

    Raises:
        ActstatsError: the variable is missing, or no partition is complete.
    """
    swept = usable(dataset, "spectrum", "power_spectrum")
    power = reduce_partitions(swept)["power_spectrum"].chunk({"frequency": -1})
    names = ("share", "dc_share", "centroid", "high_share", "slope")
    computed = xr.apply_ufunc(
        _summary,
        power,
        # The rings are derived from the sizes in each block: a hundredth of their bytes to send to workers.
        *(xr.DataArray(swept[name].values, dims="unit") for name in ("height", "width")),
        input_core_dims=[["frequency"], [], []],
        output_core_dims=[["frequency"], *[[]] * 4],
        dask="parallelized",
        output_dtypes=[np.float64] * 5,
    )
    found = {
        "power": power / (swept.attrs["images_read"] or np.nan),
        **dict(zip(names, computed, strict=True)),
    }
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
    """Return the share of power per coefficient, and the middle frequency of each ring, f64 [unit, frequency].

    `found` is a result of `spectrum`. The share of a ring is divided by its number of coefficients, so that white
    noise is flat. Both are NaN for DC and for rings that the unit's maps do not resolve.
    """
    count, frequency = rings_of(found["height"].values, found["width"].values)
    share = found["share"].transpose("unit", "frequency")
    known = (count > 0) & np.isfinite(share.values)
    density = np.divide(share.values, count, out=np.full(count.shape, np.nan), where=known)
    return share.copy(data=density), share.copy(data=np.where(known, frequency, np.nan))


def _summary(
    power: NDArray[np.float64], height: NDArray[np.int32], width: NDArray[np.int32]
) -> tuple[NDArray[np.float64], ...]:
    """Return share, DC share, centroid, share above half Nyquist and slope of spectra [unit, frequency]."""
    count, frequency = rings_of(height, width)
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
    """Return the least-squares slope of y over x along the last axis, over finite pairs; NaN for fewer than three."""
    used = np.isfinite(x) & np.isfinite(y)
    n = used.sum(-1)
    x, y = np.where(used, x, 0.0), np.where(used, y, 0.0)
    dx = np.where(used, x - (x.sum(-1) / n)[..., None], 0.0)
    slope = (dx * y).sum(-1) / (dx * dx).sum(-1)
    return np.where(n >= 3, slope, np.nan)


def rings_of(
    heights: NDArray[np.int32], widths: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the number of coefficients and the midpoint of their frequencies for each unit and bin, [unit, bin]."""
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
    which = which.ravel()  # NumPy 2.0.0 gives it a further axis
    return counts[which], ((low + high) / 2)[which]
