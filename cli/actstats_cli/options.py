"""Options that several commands share, with the same name, type and help text in each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from actstats.metrics import BUILTINS
from actstats.sweeping.settings import DECODERS, Settings

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def split(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """Return the values of an option that can be repeated and can take several values separated by commas."""
    parts = tuple(part for value in values for part in (piece.strip() for piece in value.split(",")) if part)
    if values and not parts:
        raise click.BadParameter("it contains no names", ctx, param)
    return parts


class LocalPath(click.Path):
    """A file or folder to write on this machine; a URL is refused, as it would become a folder named `s3:`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(path_type=Path, **kwargs)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the `Path`."""
        if "://" in str(value):
            self.fail(f"{value} is a URL; only stores can be written there", param, ctx)
        return super().convert(value, param, ctx)


GROUPS: Final = {
    "Network": "--arch --weights --robust --seed --preprocessing --offline --also",
    "Images": "--data --limit --sample --distort --changed",
    "What is computed": "--layers --metrics --metric --top-k --amp --compile --batch-size",
    "Output": "--out --store --partition-size --per-image --bitround --compression --overwrite --repair",
    "Running": "--device --workers --decode --part --strict --max-failed",
    "On a cluster": "--scheduler --tls-ca --tls-cert --tls-key",
    "Before running": "--dry-run --measure",
}
"""The options of `sweep`, `plan` and `run` in `--help`, by heading."""


class Grouped(click.Command):
    """A command whose `--help` lists its options under the headings of `GROUPS`, and the rest as "Other options"."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group."""
        records = {
            param.opts[0]: record
            for param in self.get_params(ctx)
            if (record := param.get_help_record(ctx)) is not None
        }
        groups = [
            (heading, [records.pop(name) for name in names.split() if name in records])
            for heading, names in GROUPS.items()
        ]
        for heading, rows in [*groups, ("Other options", list(records.values()))]:
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows)


def together(*options: Callable[[Decorated], Decorated]) -> Callable[[Decorated], Decorated]:
    """Return one decorator that adds several options, in this order."""
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


def number(
    name: str, text: str, *, default: int | None = None, least: int = 1
) -> Callable[[Decorated], Decorated]:
    """Return an option for an integer of at least `least`."""
    return click.option(
        name,
        type=click.IntRange(least, 2**31 - 1),
        metavar="N",
        default=default,
        show_default=default is not None,
        help=text,
    )


arch = click.option(
    "--arch",
    required=True,
    metavar="NAME",
    help="Architecture: a torchvision name (googlenet, resnet50), timm/NAME, or package.module:factory.",
)
_WEIGHTS = (
    "demo (embedded, for googlenet), a .pth, .pt or .safetensors file, a URL, hf://OWNER/REPOSITORY/FILE, or none "
    "for random weights."
)
weights = click.option(
    "--weights",
    default="default",
    show_default=True,
    metavar="NAME or FILE",
    help=f"Weights: a torchvision name, {_WEIGHTS}",
)
robust = click.option(
    "--robust",
    is_flag=False,
    flag_value="default",
    metavar="[l2:EPS or linf:EPS]",
    help="Adversarially trained weights, by default l2 with epsilon 3; epsilon of linf is in 1/255 (actstats models "
    "lists them). With --weights demo, the robust network of the pair.",
)
offline = click.option("--offline", is_flag=True, help="Download nothing: use only files in the cache.")
seed = click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    metavar="N",
    default=0,
    show_default="0",
    help="Seed for random weights (--weights none).",
)
distort = click.option(
    "--distort",
    multiple=True,
    metavar="SPECS",
    help="Distortions of each cropped image, joined by + or repeated: scramble:GRID, noise:SIGMA, lowpass:CYCLES, "
    "highpass:CYCLES, greyscale, silhouette:FOLDER, contour, pgd:l2:EPSILON:STEPS.",
)
_LAYERS = (
    "Presets (conv, block, all, paper), module names and patterns such as '*.branch1', separated by commas; "
    "repeatable."
)


def _layers(preset: str) -> Callable[[Decorated], Decorated]:
    return click.option(
        "--layers",
        multiple=True,
        default=(preset,),
        show_default=preset,
        callback=split,
        metavar="NAMES",
        help=_LAYERS,
    )


layers = _layers(*Settings.layers)
layers_of_the_paper = _layers("paper")
layers_or_all = click.option(
    "--layers", multiple=True, callback=split, metavar="NAMES", help=f"Only these layers. {_LAYERS}"
)
metrics = click.option(
    "--metrics",
    multiple=True,
    default=Settings.metrics,
    show_default=False,
    callback=split,
    metavar="NAMES",
    help=f"Metrics to compute, separated by commas: {', '.join(BUILTINS)} (the default), or installed metrics.",
)
metric = click.option(
    "--metric",
    "custom",
    multiple=True,
    metavar="MODULE:CLASS",
    help="A metric of your own, repeatable: package.module:Class.",
)
per_image = click.option(
    "--per-image/--no-per-image",
    default=Settings.per_image,
    show_default=True,
    help="Store per-image variables, or only what is summed per partition.",
)
top_k = number("--top-k", "Number of top images to keep per unit.", default=Settings.top_k)
partition_size = number(
    "--partition-size",
    "Images per partition, the block that is stored as a whole. An interruption costs at most one partition.",
    default=Settings.partition_size,
)
limit = number("--limit", "Use only the first N images.")
sample = click.option(
    "--sample",
    metavar="N[:SEED]",
    help="Use only N images, drawn at random from each class in proportion; the first N may all be of one class. "
    "The same SEED (default 0) draws the same images.",
)
batch_size = number("--batch-size", "Images per forward pass.", default=Settings.batch_size)
device = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:N, or auto: a GPU if there is one."
)
device_of_the_sweep = click.option("--device", help="cpu, cuda or cuda:N, of the same kind as the sweep's.")
decode = click.option(
    "--decode",
    type=click.Choice(DECODERS),
    default=Settings.decode,
    show_default=True,
    help="device: decode JPEGs on the GPU, which is faster but not bit-identical.",
)
workers = number(
    "--workers", "Number of threads that decode images. Default: one per core, at most 8.", least=0
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")

_TLS: Final = "actstats.tls"
"""Key of the context's `meta` under which the files of the options --tls-... are."""


def _keep_file(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is not None:
        ctx.meta.setdefault(_TLS, {})[param.name] = value


def _certificate(name: str, text: str) -> Callable[[Decorated], Decorated]:
    return click.option(
        name, metavar="FILE", callback=_keep_file, expose_value=False, help=f"For a tls:// scheduler: {text}"
    )


scheduler = together(
    click.option(
        "--scheduler",
        metavar="ADDRESS",
        help="Compute on the dask cluster at this address, such as tcp://host:8786 or tls://host:8786, whose workers "
        "see the same files; or on a local cluster of this machine's GPUs or cores: local, or local:2 with two cores "
        "per worker.",
    ),
    _certificate(
        "--tls-ca", "the certificate authority (PEM). Default for all three: dask's own configuration."
    ),
    _certificate("--tls-cert", "the certificate of this client (PEM)."),
    _certificate("--tls-key", "its key, unless it is in the same file."),
)


@contextmanager
def client_of(address: str | None, device: str = "cpu") -> Iterator[Any]:
    """Yield a client of the dask scheduler that the options of `scheduler` name, or None if they name none.

    Raises:
        ActstatsError: as `actstats.sweeping.scheduler.connect`.
        click.UsageError: certificates were given without a scheduler.
    """
    files = click.get_current_context().meta.get(_TLS, {})
    if address is None:
        if files:
            flag = next(iter(files)).replace("_", "-")
            raise click.UsageError(f"--{flag} requires --scheduler tls://HOST:PORT")
        yield None
        return
    from actstats.sweeping.scheduler import connect

    with connect(address, device, **files) as client:
        yield client


factory = click.option(
    "--arch",
    metavar="MODULE:FACTORY",
    help="The factory that made the swept network, to rebuild it; the one named in the store is not trusted.",
)
trust = click.option(
    "--trust",
    is_flag=True,
    help="Rebuild networks with the factory, weights file or URL named in the stores. Only for stores of your own.",
)

preprocessing = click.option(
    "--preprocessing",
    metavar="TEXT or FILE",
    help="How images become the network's input, by default as for its weights; needed for a network of your own "
    "that states none. imagenet; sizes and moments of colours in [0, 1], as in 'resize=36 crop=32 mean=0.5 "
    "std=0.2,0.3,0.3' (also interpolation=bicubic); a .json file with these fields; or package.module:object, a "
    "function or an actstats.Preprocessing.",
)

network = together(arch, weights, robust, seed, preprocessing, offline)
stored = together(metrics, metric, per_image, top_k, partition_size)
"""The options that determine the size of a store, besides the layers."""
