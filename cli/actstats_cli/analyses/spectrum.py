"""`actstats analyze spectrum`: where on the scale of spatial frequency the units' power lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from actstats_cli.analyses import output


@click.command()
@output.one_or_two
@output.wanted
def spectrum(stores: tuple[Path, ...], **wanted: Any) -> None:
    """How the units' power is spread over spatial frequency.

    DC, the mean of a map, is left out. centroid is the power's mean frequency in cycles a pixel of the map,
    high_share the share above half Nyquist (0.25), slope the exponent of the power over frequency. --out has the
    spectra too.

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
