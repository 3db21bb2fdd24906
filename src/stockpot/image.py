"""Pictures: a file, its bytes or an array, opened safely and brought to the square that a model reads.

What a file is, its contents decide, never its name. Stated handling: EXIF orientation is applied; transparent parts lie
on white; grey, palette, CMYK and 16-bit pictures become RGB; of an animation the first frame is read. Refused, in one
line: what is no picture, what is cut off, and what is so large that it must be meant to fill the memory. Pillow is known
here alone; nothing here goes to a network.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stockpot.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

__all__ = ["FORMATS", "MOST_BYTES", "MOST_PIXELS", "Image", "save_png", "save_sheet", "square"]

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")
MOST_BYTES = 64 << 20  # of a file
MOST_PIXELS = 50_000_000  # of a picture: 150 MB as RGB
WHITE = (255, 255, 255)

Pixels = NDArray[np.uint8]
"""``(height, width, 3)``, red, green, blue, 0 to 255."""


class Image:
    """A picture, named by its file or given as bytes or pixels; it is opened when it is needed.

    Args:
        source: a path, a file's bytes, or pixels ``(height, width, 3)`` uint8.

    Raises:
        TypeError: if ``source`` is none of these.
    """

    __slots__ = ("_key", "_source", "name")

    def __init__(self, source: str | os.PathLike[str] | bytes | Pixels) -> None:
        if isinstance(source, np.ndarray):
            if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
                raise TypeError("pixels are (height, width, 3) of uint8")
        elif not isinstance(source, str | os.PathLike | bytes):
            raise TypeError(f"a picture is a path, bytes or pixels, not {type(source).__name__}")
        self._source = source
        self._key: bytes | None = None
        self.name = os.fspath(source) if isinstance(source, str | os.PathLike) else "a picture"

    def __repr__(self) -> str:
        return f"Image({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and (self is other or self.key == other.key)

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> bytes:
        """What tells pictures apart: the hash of the file's bytes or of the pixels.

        Raises:
            DataError: if the file cannot be read.
        """
        if self._key is None:
            source = self._source
            shape = repr(source.shape).encode() if isinstance(source, np.ndarray) else b""
            content = source.tobytes() if isinstance(source, np.ndarray) else self._bytes()
            self._key = hashlib.sha256(shape + content).digest()
        return self._key

    def pixels(self) -> Pixels:
        """Open the picture.

        Raises:
            DataError: if it is missing, no picture, cut off, or too large.
        """
        return self._source if isinstance(self._source, np.ndarray) else self._open()

    def square(self, size: int) -> Pixels:
        """Open the picture and fit it into a square of ``size`` pixels; errors as for :meth:`pixels`."""
        return square(self.pixels(), size)

    def _bytes(self) -> bytes:
        if isinstance(self._source, bytes):
            content = self._source
        else:
            path = Path(os.fspath(self._source))  # type: ignore[arg-type]
            try:
                if not path.is_file():
                    raise DataError(f"{path} is no file.", "Give the path of a picture.")
                if path.stat().st_size > MOST_BYTES:
                    raise self._too_large(f"{path.stat().st_size:,} bytes")
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror}).", "Check the path.") from None
        if len(content) > MOST_BYTES:
            raise self._too_large(f"{len(content):,} bytes")
        return content

    def _open(self) -> Pixels:
        try:
            from PIL import Image as Pillow
            from PIL import UnidentifiedImageError
        except ImportError:
            raise DataError(
                "Pictures are read with an extra package.", "pip install 'stockpot[images]'"
            ) from None
        content = self._bytes()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Pillow.DecompressionBombWarning)
                warnings.simplefilter("ignore", UserWarning)  # odd metadata is no reason to refuse
                with Pillow.open(io.BytesIO(content), formats=FORMATS) as opened:
                    if opened.width * opened.height > MOST_PIXELS:
                        raise self._too_large(f"{opened.width:,} × {opened.height:,} pixels")
                    opened.seek(0)
                    return _as_rgb(opened)
        except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning):
            raise self._too_large("more pixels than can be meant") from None
        except UnidentifiedImageError:
            raise DataError(
                f"{self.name} is no picture that is read.", f"Known forms: {', '.join(FORMATS)}."
            ) from None
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - Pillow's decoders raise whatever went wrong in them
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise DataError(
                f"{self.name} is damaged: {reason}.", "Get the file again, or leave it out."
            ) from None

    def _too_large(self, found: str) -> DataError:
        return DataError(
            f"{self.name} is too large: {found}.",
            f"At most {MOST_PIXELS:,} pixels and {MOST_BYTES >> 20} MiB are read; make it smaller first.",
        )


def square(pixels: Pixels, size: int) -> Pixels:
    """Scale a picture so that its longer side is ``size``, and fill the rest with white; ``(size, size, 3)``."""
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels
    from PIL import Image as Pillow

    scale = size / max(height, width)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = Pillow.fromarray(pixels).resize((wide, high), Pillow.Resampling.BICUBIC)
    out = np.full((size, size, 3), 255, dtype=np.uint8)
    top, left = (size - high) // 2, (size - wide) // 2
    out[top : top + high, left : left + wide] = np.asarray(scaled)
    return out


def save_png(pixels: Pixels, path: str | os.PathLike[str]) -> None:
    """Write pixels as a PNG file, under exactly this path."""
    from PIL import Image as Pillow

    Pillow.fromarray(pixels).save(path, format="PNG")


def save_sheet(
    pictures: Sequence[Pixels], path: str | os.PathLike[str], *, zoom: int = 1, columns: int = 12
) -> None:
    """Write pictures of one size side by side as one PNG file, whole or not at all.

    Args:
        pictures: at least one.
        path: where to.
        zoom: pixels of the file along a side for each of a picture.
        columns: pictures in a row.
    """
    height, width = pictures[0].shape[:2]
    wide, high = min(columns, len(pictures)), -(-len(pictures) // columns)
    sheet = np.full((high * height, wide * width, 3), 255, dtype=np.uint8)
    for at, pixels in enumerate(pictures):
        top, left = at // columns * height, at % columns * width
        sheet[top : top + height, left : left + width] = pixels
    half = Path(f"{os.fspath(path)}.{os.getpid()}.half")
    try:
        save_png(sheet.repeat(zoom, 0).repeat(zoom, 1), half)
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _as_rgb(opened: PillowImage) -> Pixels:
    """Decode the current frame and bring it to RGB."""
    from PIL import Image as Pillow
    from PIL import ImageOps

    turned: Any = ImageOps.exif_transpose(opened)
    if turned.mode.startswith(("I", "F")):  # 16 bits and more
        numbers = np.asarray(turned, dtype=np.float64)
        most = 65535.0 if numbers.max(initial=0.0) > 255 else 255.0
        turned = Pillow.fromarray((numbers / most * 255).clip(0, 255).astype(np.uint8))
    elif turned.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in turned.info:
        turned = turned.convert("RGBA")
        ground = Pillow.new("RGBA", turned.size, (*WHITE, 255))
        turned = Pillow.alpha_composite(ground, turned)
    return np.asarray(turned.convert("RGB"), dtype=np.uint8)
