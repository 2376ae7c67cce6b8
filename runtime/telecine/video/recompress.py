"""A picture as H.264 leaves it: what models see of their conditions who learned from compressed videos."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt

from telecine.errors import BackendError
from telecine.video.ffmpeg import check_encoder, require_av


def recompress(image: npt.NDArray[np.uint8], crf: int) -> npt.NDArray[np.uint8]:
    """(height, width, 3) bytes → the same after H.264 at a CRF; an odd side loses a row or column. CRF 0 does nothing.

    The result is that of this build of libx264.

    Raises:
        BackendError: PyAV is missing, or its FFmpeg lacks libx264 or fails in it.

    Source: diffusers `apply_image_conditioning_crf`.
    """
    if crf == 0:
        return image
    av = require_av()
    check_encoder("libx264")
    height, width = (side // 2 * 2 for side in image.shape[:2])
    image = np.ascontiguousarray(image[:height, :width])
    try:
        with io.BytesIO() as file:
            with av.open(file, "w", format="mp4") as container:
                stream = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
                stream.height, stream.width = height, width
                frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
                container.mux(stream.encode(frame))
                container.mux(stream.encode())
            file.seek(0)
            with av.open(file) as container:
                decoded = next(container.decode(video=0))
                return np.asarray(decoded.to_ndarray(format="rgb24"))
    except av.FFmpegError as error:
        raise BackendError(
            f"FFmpeg failed to compress an image of {width} x {height} ({error})",
            expected="an image that its encoder takes",
            fix="Pass crf 0 (image_crf=0, or Condition(crf=0)) to leave it as it is.",
        ) from error
