"""JPEGs decoded by torchcodec, resized and cropped on the device that the network runs on: on a GPU, by nvJPEG.

Decoders round otherwise, and filter colours otherwise, than Pillow does, so the pixels differ a little; that is why a
sweep does this only when asked to, and records it. What is no JPEG of a usual kind is left to Pillow.
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate, pad

from actstats.data.image import decode, refuse_large, refuse_large_resized
from actstats.data.preprocessing import Preprocessing
from actstats.data.source import EncodedSource, Source
from actstats.errors import ActstatsError

_BEGIN: Final = b"\xff\xd8\xff"
_END: Final = b"\xff\xd9"
_ORIENTATION: Final = 0x0112
_TAIL: Final = 1024  # Some cameras write a little after the end of the image.


class DeviceDecoder:
    """Makes pixels on `device`, as `preprocessing` has them, of the JPEG files of a source."""

    def __init__(self, source: Source, preprocessing: Preprocessing, device: torch.device) -> None:
        """Try one image.

        Raises `ActstatsError` where the source has no files, or torchcodec is not installed or has no decoder for
        the device.
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
                f"torchcodec decodes no JPEGs on {device} ({reason}); "
                "install actstats[device], or use `decode=pillow`"
            ) from None

    def take(self, index: int) -> Tensor | Image.Image:
        """Return the bytes of image `index`, uint8 [n], or the image itself if it is none for this decoder.

        Thread-safe; raises `ImageError`, also for an image that is too large.
        """
        data = self.source.read(index)
        if not data.startswith(_BEGIN) or _END not in data[-_TAIL:]:
            return decode(data)
        try:
            header = Image.open(io.BytesIO(data), formats=("JPEG",))
        except Exception:  # Whatever PIL's parser meets; `decode` names it.
            return decode(data)
        # torchcodec turns what a camera marked as turned; the pixels of a sweep are as they lie in the file.
        if header.mode not in ("RGB", "L") or header.getexif().get(_ORIENTATION, 1) != 1:
            return decode(data)
        refuse_large(*header.size)
        refuse_large_resized(*self.preprocessing.resized(header.size))
        return _tensor(data)

    def decode(self, encoded: list[Tensor]) -> list[Tensor | None]:
        """Return uint8 [crop, crop, 3] on the device for each file, None for one that could not be decoded."""
        try:
            images = self._decoded(encoded)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # It does not say which one was damaged.
            return [None] if len(encoded) == 1 else [self.decode([one])[0] for one in encoded]
        return [self._pixels(image) for image in images]

    def _decoded(self, encoded: list[Tensor]) -> list[Tensor]:
        from torchcodec.decoders import decode_jpeg

        images: list[Tensor] = decode_jpeg(encoded, mode="RGB", device=self.device)
        return images

    def _pixels(self, image: Tensor) -> Tensor:
        """Return the resized and cropped `image`, uint8 [3, height, width], as uint8 [crop, crop, 3]."""
        size = image.shape[2], image.shape[1]
        width, height = self.preprocessing.resized(size)
        if (width, height) != size:
            mode = self.preprocessing.interpolation
            resized = interpolate(image[None].float(), (height, width), mode=mode, antialias=True)
            image = resized[0].round_().clamp_(0, 255).to(torch.uint8)
        crop = self.preprocessing.crop
        left, top = self.preprocessing.corner((width, height))
        # Negative numbers cut; positive ones add the black border of an image smaller than the crop.
        cut = pad(image, (-left, left + crop - width, -top, top + crop - height))
        return cut.permute(1, 2, 0)


def _tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())
