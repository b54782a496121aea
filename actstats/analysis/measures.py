"""The measures of units: what each is, whether the scale of activations changes it, and what the paper claims.

A network of batch norm, ReLU and linear layers computes the same outputs in other units of activation: the units of a
layer times a positive factor, and the weights that read them divided by it (Neyshabur et al. 2015, arXiv
1506.02617; Dinh et al. 2017, arXiv 1703.04933). A number that this changes says nothing about the function, so only
invariant measures decide between networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Measure:
    """One number per unit: the variable `key` of the dataset that an analysis returns.

    Attributes:
        analysis: name of the analysis, as after `actstats analyze`.
        key: name of the variable.
        name: the measure in words.
        unit: unit of the number.
        about: one sentence.
        invariant: whether the number stays the same when the activations of each unit are multiplied by a positive
            factor of its own, and the weights that read them divided by it.
        claim: what the paper says of a robust network, whose value is lower by it; empty where it says nothing.
        matched: the claim about counterparts, or a title where the paper makes none; empty for measures that are not
            compared unit by unit.
    """

    analysis: str
    key: str
    name: str
    unit: str
    about: str
    invariant: bool
    claim: str = ""
    matched: str = ""


MEASURES: Final = (
    Measure(
        "smoothness",
        "roughness",
        "roughness",
        "1",
        "Total variation per pair of neighbours, divided by the map's standard deviation: 1.13 for white noise, "
        "near 0 for smooth maps.",
        invariant=True,
        claim="R's activation maps are smoother",
        matched="R's counterparts are smoother than S's units",
    ),
    Measure(
        "smoothness",
        "step",
        "mean step between neighbours",
        "activation",
        "Mean absolute difference between neighbouring positions of the map.",
        invariant=False,
    ),
    Measure(
        "smoothness",
        "total_variation",
        "total variation",
        "activation",
        "Sum of the absolute differences between neighbouring positions. Grows with the map's size and scale.",
        invariant=False,
        claim="R's activation maps have less total variation",
    ),
    Measure(
        "spectrum",
        "high_share",
        "high-frequency share",
        "1",
        "Share of the map's power above half the Nyquist frequency (0.25 cycles/pixel), DC excluded.",
        invariant=True,
        claim="R passes on less high-frequency power",
    ),
    Measure(
        "spectrum",
        "centroid",
        "spectral centroid",
        "cycles/pixel",
        "Power-weighted mean frequency of the map, DC excluded.",
        invariant=True,
        claim="R's maps have lower frequencies",
        matched="R's counterparts have lower frequencies",
    ),
    Measure(
        "spectrum",
        "slope",
        "spectral slope",
        "1",
        "Exponent of power as a function of frequency: 0 for white noise, about -2 for photographs.",
        invariant=True,
    ),
    Measure(
        "selectivity",
        "top_classes",
        "classes among the top images",
        "1",
        "Number of distinct classes among the images that excite the unit most.",
        invariant=True,
        claim="R's units respond to fewer kinds of image",
    ),
    Measure(
        "selectivity",
        "top_entropy",
        "class entropy of the top images",
        "bit",
        "Entropy of the classes of the top images: 0 if all are of one class.",
        invariant=True,
        claim="R's top images are less mixed",
    ),
    Measure(
        "selectivity",
        "selectivity",
        "class selectivity",
        "1",
        "0 if all classes excite the unit equally, 1 if only one class does.",
        invariant=True,
        matched="Class selectivity of counterparts",
    ),
    Measure(
        "quantiles",
        "sparsity",
        "sparsity",
        "1",
        "Share of activations that are exactly zero.",
        invariant=True,
    ),
    Measure(
        "noise",
        "relative_map_change",
        "change of the maps under noise",
        "1",
        "Mean square of the maps' change under noise, divided by the variance of the clean maps: 0 if nothing "
        "changes, 2 if nothing is left. Needs a sweep with --changed.",
        invariant=True,
        claim="Noise changes R's maps less",
    ),
    Measure(
        "noise",
        "change",
        "change under noise",
        "activation",
        "Change in total variation when noise is added to the images.",
        invariant=False,
        claim="Noise adds less total variation to R's units",
    ),
    Measure(
        "noise",
        "relative_change",
        "relative change under noise",
        "1",
        "Change in total variation under noise, divided by the total variation without it.",
        invariant=True,
        claim="Noise adds relatively less total variation to R's units",
    ),
)
"""The measures of activations, in the order of the report, which lists those that its stores have the data for."""

KERNELS: Final = (
    Measure(
        "kernels",
        "roughness",
        "roughness of a filter",
        "1",
        "Total variation per pair of neighbours, divided by the standard deviation of the filter's weights.",
        invariant=False,
    ),
    Measure(
        "kernels",
        "step",
        "mean step between neighbouring weights",
        "weight",
        "Mean absolute difference between neighbouring weights of the filter.",
        invariant=False,
    ),
    Measure(
        "kernels",
        "total_variation",
        "total variation of a filter",
        "weight",
        "Sum of the absolute differences between neighbouring weights. Batch norm behind a filter undoes its scale.",
        invariant=False,
    ),
    Measure(
        "kernels",
        "normed_filter",
        "step of the filter scaled to norm 1",
        "1",
        "Mean step between neighbouring weights, with the filter scaled to a root mean square of 1. Invariant in a "
        "layer that reads the image; in others the inputs' scales weigh the kernels of a filter.",
        invariant=False,
        claim="R's first kernels are smoother",
    ),
    Measure(
        "kernels",
        "normed_kernels",
        "step of the kernels scaled to norm 1",
        "1",
        "The same with each kernel of the filter scaled on its own, as a mean over its kernels.",
        invariant=True,
        claim="R's kernels are smoother, over all layers",
    ),
)
"""The measures of weights, by filter."""
