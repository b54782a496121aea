"""`actstats analyze spectrum`: how the units' power is distributed over spatial frequency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actstats_cli.analyses import output


@click.command()
@output.one_or_two
@output.common
def spectrum(stores: tuple[Path, ...], **wanted: Any) -> None:
    """Measure how the power of the units is distributed over spatial frequency.

    DC, the mean of a map, is excluded. centroid is the mean frequency of the power in cycles per pixel of the map,
    high_share the share of power above half of Nyquist (0.25), and slope the exponent of power over frequency.
    --out also has the spectra.

    \b
        actstats analyze spectrum googlenet.zarr --plot spectrum.png
        actstats analyze spectrum standard.zarr robust.zarr --json
    """
    from actstats import analysis
    from actstats.analysis import plotting

    output.run(
        analysis.spectrum,
        stores,
        ["centroid", "high_share", "slope", "dc_share"],
        draw=plotting.draw_spectra,
        **wanted,
    )
