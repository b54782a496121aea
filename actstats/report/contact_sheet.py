"""Contact sheets: the images that excite a unit most, with the position of the maximum marked in each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from actstats.data import ImageError, Source
from actstats.data.preprocessing import Preprocessing, of_images
from actstats.errors import ActstatsError
from actstats.store.manifest import Unit
from actstats.store.sweep import Sweep, TopImage
from actstats.text import printable

Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels."""

TILE: Final = 220
"""Longest side of an image on the sheet."""
_GAP, _LINE, _COLUMNS = 12, 18, 4
_PAPER, _INK, _FAINT, _MARK = "#ffffff", "#1a1a1a", "#6b6b6b", "#ffd400"
_HEAT, _OPAQUE = "#e0007f", 190
_LEAST = 10
"""Side of the smallest mark, in pixels, so that it stays visible."""


def place_in_image(
    preprocessing: Preprocessing, size: tuple[int, int], row: int, column: int, map_size: tuple[int, int]
) -> Box:
    """Return the box in an image of `size` (width, height) that corresponds to one position of a map.

    The map of `map_size` (height, width) is stretched over the network's input, which lies where the preprocessing
    cropped the image. The box marks the centre of the position's receptive field, which is usually larger. It
    extends beyond the image where the preprocessing padded.

    >>> place_in_image(Preprocessing.imagenet(224, 256), (512, 512), 0, 1, (7, 7))
    (96.0, 32.0, 160.0, 96.0)
    """
    resized = preprocessing.resized(size)
    corner = preprocessing.corner(resized)
    height, width = map_size
    edges = []
    for steps in (0, 1):
        x = (column + steps) * preprocessing.crop / width + corner[0]
        y = (row + steps) * preprocessing.crop / height + corner[1]
        edges += [x * size[0] / resized[0], y * size[1] / resized[1]]
    return edges[0], edges[1], edges[2], edges[3]


def save_contact_sheet(
    sweep: Sweep,
    unit: str,
    file: str | Path,
    *,
    data: object = None,
    maps: bool = False,
    arch: str | None = None,
    hits: Sequence[TopImage] | None = None,
) -> None:
    """Draw the top images of `unit`, LAYER/CHANNEL, into the image file `file`: `hits`, if they are known already.

    `data` is needed if the images were moved since the sweep, or came from a dataset or `Source` of your own. With
    `maps`, the network is run on the images again and the unit's activation map is drawn over each: `arch` is the
    factory that created it, if one did.

    Raises:
        ActstatsError: the unit or the images do not exist, the images are not those that were swept, or
            the suffix of `file` is not that of an image format.
    """
    file = Path(file)
    if Image.registered_extensions().get(file.suffix.lower()) not in Image.SAVE:
        raise ActstatsError(
            f"cannot draw to {file}: {file.suffix or 'an empty suffix'} is not an image format; use .png"
        )
    manifest = sweep.manifest
    found = manifest.unit(unit)
    hits = sweep.top(found) if hits is None else hits
    source = sweep.images(data)
    preprocessing = of_images(sweep.preprocessing, "a contact sheet")
    network = f"{manifest.arch}, weights {manifest.weights.source}"
    title = f"{found} of {network}, maps of {found.height} x {found.width}"
    if maps:
        sweep.network(arch=arch)
    laid = _maps(sweep, found, source, hits) if maps and hits else None
    contact_sheet(found, hits, source, preprocessing, title, laid).save(file)


def _maps(
    sweep: Sweep, unit: Unit, source: Source, hits: Sequence[TopImage]
) -> dict[int, NDArray[np.float32]]:
    """Return the activation maps of `unit`, f32 [height, width], by image index, for the images that can be read."""
    from actstats.probing.maps import activation_maps

    images = np.array([hit.image for hit in hits])
    found = activation_maps(sweep, source, {unit.layer: (np.full_like(images, unit.channel), images)})
    read = zip(images.tolist(), found[unit.layer], strict=True)
    return {image: values for image, values in read if not np.isnan(values).all()}


def contact_sheet(
    unit: Unit,
    hits: Sequence[TopImage],
    source: Source,
    preprocessing: Preprocessing,
    title: str,
    maps: Mapping[int, NDArray[np.float32]] | None = None,
) -> Image.Image:
    """Return the sheet, RGB: the images in rows of four by rank, each with its value and path.

    A yellow square marks the position of the maximum (`place_in_image`); parts that the network did not see are
    dimmed. An image that can no longer be read is replaced by the reason. `maps`, by image, are drawn over the images
    in magenta, all on one scale from 0 to the largest activation shown; nothing if none exceeds 0.
    """
    rows = max(1, math.ceil(len(hits) / _COLUMNS))
    step = TILE + _GAP, TILE + 2 * _LINE + _GAP
    head = 2 * _LINE + _GAP
    sheet = Image.new("RGB", (_COLUMNS * step[0] + _GAP, head + rows * step[1] + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(16), ImageFont.load_default(12)
    draw.text((_GAP, _GAP), _fitted(title, large, sheet.width - 2 * _GAP), _INK, large)
    positive = [values.max() for values in (maps or {}).values() if values.max() > 0]
    greatest = float(max(positive, default=1))
    shares = {image: np.clip(values / greatest, 0, 1) for image, values in (maps or {}).items()}
    for place, hit in enumerate(hits):
        left, top = _GAP + place % _COLUMNS * step[0], head + place // _COLUMNS * step[1]
        try:
            tile = _tile(source.image(hit.image), unit, hit, preprocessing, shares.get(hit.image))
            sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        except ImageError as error:
            draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=_FAINT)
            draw.text(
                (left + _GAP, top + TILE // 2), _fitted(str(error), small, TILE - 2 * _GAP), _INK, small
            )
        draw.text((left, top + TILE + 3), f"{hit.rank}:  {hit.value:.4g}", _INK, small)
        draw.text((left, top + TILE + 3 + _LINE - 2), _fitted(hit.path, small, TILE), _FAINT, small)
    return sheet


def _tile(
    image: Image.Image,
    unit: Unit,
    hit: TopImage,
    preprocessing: Preprocessing,
    share: NDArray[np.float32] | None = None,
) -> Image.Image:
    """Return the image at the sheet's size, unseen parts dimmed, the position of the maximum marked."""
    scale = TILE / max(image.size)
    tile = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    seen = _scaled(place_in_image(preprocessing, image.size, 0, 0, (1, 1)), scale)
    dimmed = Image.blend(tile, Image.new("RGB", tile.size, _PAPER), 0.6)
    inside = Image.new("L", tile.size, 0)
    ImageDraw.Draw(inside).rectangle(
        (round(seen[0]), round(seen[1]), round(seen[2]) - 1, round(seen[3]) - 1), 255
    )
    tile = Image.composite(tile, dimmed, inside)
    if share is not None:
        left, top, right, bottom = (round(edge) for edge in seen)
        heat = Image.fromarray((share * _OPAQUE).round().astype(np.uint8))
        heat = heat.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.BILINEAR)
        tile.paste(Image.new("RGB", heat.size, _HEAT), (left, top), heat)
    where = place_in_image(preprocessing, image.size, hit.row, hit.column, (unit.height, unit.width))
    draw = ImageDraw.Draw(tile)
    box = _at_least(_scaled(where, scale), _LEAST)
    for grow, colour in ((1, _INK), (0, _MARK), (-1, _MARK), (-2, _INK)):
        draw.rectangle((box[0] - grow, box[1] - grow, box[2] + grow, box[3] + grow), outline=colour)
    return tile


def _scaled(box: Box, scale: float) -> Box:
    return box[0] * scale, box[1] * scale, box[2] * scale, box[3] * scale


def _at_least(box: Box, side: float) -> Box:
    """Return the box, enlarged around its centre until neither side is shorter than `side`."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    across, down = max(box[2] - box[0], side) / 2, max(box[3] - box[1], side) / 2
    return x - across, y - down, x + across, y + down


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return the text, shortened to `width` pixels from the left, since the end of a path is its informative part."""
    text = printable(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"
