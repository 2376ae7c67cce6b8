"""Images and videos that a caller passes, as pixels of the size and range that the VAE takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from telecine.condition import ImageInput, VideoInput
from telecine.errors import BackendError, RequestError
from telecine.pixels import to_signed_range
from telecine.resample import LANCZOS, Kernel, resize
from telecine.video import read_video

Array = npt.NDArray[np.float32]
AN_IMAGE = "a path, a PIL image, or an array (height, width, 3) of bytes or of floats in [0, 1]"


def load_image(image: ImageInput) -> npt.NDArray[Any]:
    """(height, width, 3) of an image as it is: uint8, or float32 in [0, 1] for an array of floats.

    A file is turned upright as its EXIF data say; what is not RGB is converted, and transparency dropped.

    Raises:
        RequestError: no image, or one whose values are not understood.
        BackendError: a path, and Pillow is missing.

    Source: diffusers `load_image`.
    """
    if isinstance(image, (str, os.PathLike)):
        return _read_image(Path(os.path.expanduser(image)))
    if hasattr(image, "convert") and hasattr(image, "mode"):  # a PIL image, told without importing Pillow
        return _rgb(image, "the image")
    return _checked(image)


def load_video(video: VideoInput) -> tuple[Sequence[npt.NDArray[Any]], float | None]:
    """The frames of a video as they are, each as `load_image` gives it, and the frame rate where it is a file's.

    Raises:
        RequestError: no video, or one without frames.
        BackendError: a path, and PyAV is missing.
    """
    if isinstance(video, (str, os.PathLike)):
        read, rate = read_video(video)
        return list(read), rate
    if not isinstance(video, Sequence) and getattr(video, "ndim", 0) != 4:
        shape = getattr(video, "shape", None)
        raise RequestError(
            f"a video is {type(video).__name__}" + (f" of shape {shape}" if shape else ""),
            expected="a path, an array (frames, height, width, 3), or a list of images",
            fix="Give it a leading axis of frames; for a single image pass image=.",
        )
    frames = [load_image(frame) for frame in video]
    if not frames:
        raise RequestError("a video has no frames", expected="at least one", fix="Leave the condition out.")
    return frames, None


def to_pixels(frames: Sequence[npt.NDArray[Any]], height: int, width: int, kernel: Kernel = LANCZOS) -> Array:
    """(F, h, w, 3) frames of any sizes → a video (1, 3, F, height, width) in [-1, 1], float32.

    Another size is resized straight to this one, which keeps no aspect ratio.

    Source: diffusers `VideoProcessor.preprocess` and `preprocess_video` of PIL images.
    """
    video = np.empty((1, 3, len(frames), height, width), np.float32)
    for index, frame in enumerate(frames):
        resized = resize(frame[np.newaxis], height, width, kernel)
        if resized.dtype != np.uint8:
            np.clip(resized, 0, 1, out=resized)  # the filter overshoots
        video[:, :, index] = to_signed_range(resized)[:, :, 0]
    return video


def _read_image(path: Path) -> npt.NDArray[Any]:
    pillow = _require_pillow(f"to read {path}")
    from PIL import ImageOps

    if not path.is_file():
        raise RequestError(f"there is no file {path}", expected="an image file", fix="Check the path.")
    try:
        with pillow.open(path) as image:
            return _rgb(ImageOps.exif_transpose(image), str(path))
    # SyntaxError: what Pillow raises for a broken PNG.
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise RequestError(
            f"{path} cannot be read as an image ({error})",
            expected="a file that Pillow decodes",
            fix="Check that it opens, or convert it to PNG. A video goes into video=.",
        ) from error


def _rgb(image: Any, name: str) -> npt.NDArray[Any]:
    """(height, width, 3) bytes of a PIL image."""
    if image.mode.startswith(("I", "F")):  # conversion would cut these off at 255
        raise RequestError(
            f"{name} has the mode {image.mode!r}",
            expected="an image of 8 bits a channel",
            fix="Convert it to RGB first.",
        )
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _checked(image: Any) -> npt.NDArray[Any]:
    """An array that a caller passed as an image."""
    try:
        array = np.asarray(image)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a device
        raise RequestError(f"an image is no array ({error})", expected=AN_IMAGE, fix="Convert it first.") from error
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        got = f"an array of shape {array.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise RequestError(f"an image is {got}", expected=AN_IMAGE, fix="Put the channels last, and give three.")
    if array.dtype == np.uint8:
        return array
    # `not (>= and <=)`: NaN is out of range too.
    if array.dtype.kind != "f" or not (array.min() >= 0 and array.max() <= 1):
        got = f" from {array.min()} to {array.max()}" if array.dtype.kind in "fiu" else ""
        raise RequestError(
            f"an image is an array of {array.dtype}{got}",
            expected="uint8 from 0 to 255, or floats from 0 to 1",
            fix="Cast it to uint8, or bring it to that range.",
        )
    return array.astype(np.float32)


def _require_pillow(purpose: str) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise BackendError(
            f"Pillow cannot be imported ({error})",
            expected=f"Pillow, {purpose}",
            fix='Run: pip install "telecine[video]", or pass arrays.',
        ) from error
    return Image
