"""`actstats analyze shape-bias`: how often observers (people or networks) decide by shape and not by texture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from actstats.errors import ActstatsError
from actstats_cli import options
from actstats_cli.analyses import output, passing
from actstats_cli.printing import count

if TYPE_CHECKING:
    import pandas as pd

    from actstats.data import Source


@click.command("shape-bias")
@click.argument("files", nargs=-1, metavar="[FILE]...")
@click.option(
    "--decisions",
    multiple=True,
    metavar="FILE...",
    help="Recorded decisions: .csv files, folders or tar files of them, of people and of networks.",
)
@click.option(
    "--stimuli",
    metavar="IMAGES",
    help="Cue-conflict images to show to networks, <shape>/<shape><n>-<texture><n>.png: a folder or a .tar; "
    "or demo (included), the default.",
)
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NETWORK",
    help="Network to show the stimuli to, repeatable.",
)
@passing.names
@passing.classes
@passing.learn_from
@click.option(
    "--save-decisions",
    metavar="FILE",
    type=options.LocalPath(dir_okay=False),
    callback=output.path_of("decisions"),
    help="Write the networks' decisions, as .csv in the same format.",
)
@click.option(
    "--by",
    type=click.Choice(["observer", "category", "pair"]),
    default="observer",
    show_default=True,
    help="Print a row for each observer, for each of its shape categories too (--out and --json have all), or for "
    "every two observers: how much their shape biases differ on the same stimuli.",
)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="C",
    default=0.95,
    show_default=True,
    help="Confidence level of the intervals.",
)
@passing.how
@options.offline
@options.trust
@output.out
@options.as_json
def shape_bias(
    files: tuple[str, ...],
    decisions: tuple[str, ...],
    stimuli: str | None,
    networks: tuple[str, ...],
    names: tuple[str, ...],
    classes: tuple[str, ...],
    learn_from: str | None,
    save_decisions: Path | None,
    by: str,
    confidence: float,
    offline: bool,
    trust: bool,
    out: Path | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Measure how often observers decide by shape when shape and texture disagree.

    Shape bias is shape / (shape + texture) decisions on cue-conflict images (Geirhos et al. 2019). Decisions are
    read from CSV files of the texture-vs-shape and model-vs-human projects, or made by networks that are shown the
    stimuli: among the 16 categories of the test for ImageNet's 1,000 outputs, otherwise among the network's own
    classes. People (subject-01 ...) are also pooled as "humans". Intervals allow for shape images and textures that
    several stimuli share: name stimuli like cat7-bear1.png. A network is ARCH or ARCH=WEIGHTS, ARCH+robust or
    ARCH+robust=l2:3, as for sweep's --arch, --weights and --robust, or a sweep's store.

    \b
        actstats analyze shape-bias --network googlenet=demo --network googlenet=demo+robust
        actstats analyze shape-bias --decisions subject-01.csv resnet50.csv --json
        actstats analyze shape-bias --decisions raw-data/ --by category --out bias.csv
        actstats analyze shape-bias --decisions raw-data/ --by pair
        actstats analyze shape-bias --stimuli stimuli/ --network resnet50 --network resnet50+robust \\
            --decisions humans.tar.gz --save-decisions networks.csv
    """
    import pandas as pd

    from actstats.analysis.shape_bias import ALL, compare_shape_bias, read_decisions
    from actstats.analysis.shape_bias import shape_bias as analysis

    recorded = [*decisions, *files]
    if stimuli is not None and not networks:
        raise ActstatsError("--stimuli requires at least one --network to show them to")
    if not recorded and not networks:
        raise ActstatsError("give --decisions FILE..., or --network NETWORK")
    tables = [read_decisions(recorded)] if recorded else []
    notes: list[str] = []
    if networks:
        called = passing.named(networks, names)
        shown = _shown(
            *passing.stimuli(stimuli or "demo", learn_from),
            called,
            classes,
            offline,
            trust,
            notes,
            how,
        )
        if save_decisions is not None:
            from actstats.analysis.shape_bias import write_decisions

            write_decisions(shown, save_decisions)
            notes.append(f"wrote {count(len(shown), 'decision')} to {save_decisions}")
        tables.append(shown)
    together = pd.concat(tables, ignore_index=True)
    if by == "pair":
        found = printed = compare_shape_bias(together, confidence=confidence)
    else:
        found = analysis(together, confidence=confidence)
        printed = found if by == "category" else found[found["category"] == ALL].drop(columns="category")
    output.put(found, printed, [*notes, *found.attrs["notes"]], out=out, as_json=as_json)


def _shown(
    source: Source,
    learn_from: Source | None,
    networks: Mapping[str, str],
    classes: tuple[str, ...],
    offline: bool,
    trust: bool,
    notes: list[str],
    how: Mapping[str, Any],
) -> pd.DataFrame:
    """Return the networks' decisions on the stimuli; what was left out goes into `notes`."""
    import pandas as pd

    from actstats.probing.cue_conflict import decide
    from actstats.probing.networks import open_network

    tables = []
    for network, name in networks.items():
        with passing.passes(how) as passes:
            table = decide(
                open_network(network, offline=offline, trust=trust),
                source,
                name=name,
                classes=classes or None,
                learn_from=learn_from,
                passes=passes,
            )
        notes += table.attrs["notes"]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)
