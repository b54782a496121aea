"""Decode JPEGs with torchcodec on the device that the network runs on (nvJPEG on a GPU), resize and crop them.

These decoders round and filter colours differently from Pillow, so the pixels differ slightly. A sweep therefore uses
them only on request, and records that it did. Images other than common JPEGs are left to Pillow.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from actstats.data.image import decode, refuse_large, refuse_large_resized, refuse_many_scans
from actstats.data.preprocessing import Preprocessing
from actstats.data.source import EncodedSource, Source
from actstats.errors import ActstatsError

_BEGIN: Final = b"\xff\xd8\xff"
_END: Final = b"\xff\xd9"
_ORIENTATION: Final = 0x0112
_TAIL: Final = 1024  # Some cameras append a few bytes to the image.


class DeviceDecoder:
    """Decodes the JPEG files of a source to pixels on `device`, resized and cropped by `preprocessing`."""

    def __init__(self, source: Source, preprocessing: Preprocessing, device: torch.device) -> None:
        """Initialise the decoder and test it on one image.

        Raises `ActstatsError` if the source has no files, or torchcodec is not installed or has no decoder for the
        device.
        """
        if not isinstance(source, EncodedSource):
            raise ActstatsError(f"{source.spec} has no files to decode; use `decode=pillow`")
        self.source, self.preprocessing, self.device = source, preprocessing, device
        file = io.BytesIO()
        Image.new("RGB", (16, 16), "grey").save(file, "JPEG")
        try:
            self._decoded([_tensor(file.getvalue())])
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise ActstatsError(
                f"torchcodec cannot decode JPEGs on {device} ({reason}); "
                "install torchcodec for torch 2.11 or newer, or use `decode=pillow`"
            ) from None

    def take(self, index: int) -> Tensor | Image.Image:
        """Return the bytes of image `index`, uint8 [n], or the decoded image if this decoder does not support it.

        Thread-safe. Raises `ImageError`, including for an image that is too large.
        """
        data = self.source.read(index)
        if not data.startswith(_BEGIN) or _END not in data[-_TAIL:]:
            return decode(data)
        try:
            header = Image.open(io.BytesIO(data), formats=("JPEG",))
        except Exception:  # PIL's parser may raise anything; `decode` reports it.
            return decode(data)
        # torchcodec applies the orientation in the EXIF data; a sweep uses the pixels as stored.
        if header.mode not in ("RGB", "L") or header.getexif().get(_ORIENTATION, 1) != 1:
            return decode(data)
        refuse_large(*header.size)
        refuse_many_scans(data, *header.size)
        refuse_large_resized(*self.preprocessing.resized(header.size))
        return _tensor(data)

    def decode(self, encoded: list[Tensor]) -> list[Tensor | None]:
        """Return uint8 [crop, crop, 3] on the device for each file, or None if it could not be decoded."""
        try:
            images = self._decoded(encoded)
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception:  # Pillow decides.
            # The error does not say which file is damaged.
            return [None] if len(encoded) == 1 else [self.decode([one])[0] for one in encoded]
        return [self._pixels(image) for image in images]

    def _decoded(self, encoded: list[Tensor]) -> list[Tensor]:
        from torchcodec.decoders import decode_jpeg

        images: list[Tensor] = decode_jpeg(encoded, mode="RGB", device=self.device)
        return images

    def _pixels(self, image: Tensor) -> Tensor:
        """Resize and crop `image`, uint8 [3, height, width], to uint8 [crop, crop, 3]."""
        size = image.shape[2], image.shape[1]
        width, height = self.preprocessing.resized(size)
        if (width, height) != size:
            mode = self.preprocessing.interpolation
            resized = interpolate(image[None].float(), (height, width), mode=mode, antialias=True)
            image = resized[0].round_().clamp_(0, 255).to(torch.uint8)
        crop = self.preprocessing.crop
        left, top = self.preprocessing.corner((width, height))
        # Negative padding crops; positive padding adds a black border to images smaller than the crop.
        cut = pad(image, (-left, left + crop - width, -top, top + crop - height))
        return cut.permute(1, 2, 0)


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
