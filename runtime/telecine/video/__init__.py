"""Video files to and from uint8 arrays (F, H, W, 3), through FFmpeg (PyAV, the extra `video`).

| path            | codec        | holds                                                                     |
|-----------------|--------------|---------------------------------------------------------------------------|
| out.mp4         | H.264        | 4:2:0, BT.709, plays everywhere; an odd size gains one row or column      |
| out.webm        | VP9          | 4:2:0, BT.709                                                             |
| out.gif         | GIF          | one palette of 255 colours for all frames; loops for ever; 50 fps at most |
| frames/%05d.png | PNG sequence | every bit; numbered from 0; the folder is written as a whole              |

MP4 and WebM hold sound too, as AAC and as Opus.
"""

from __future__ import annotations

from telecine.video.formats import check_output_path
from telecine.video.reader import read_video
from telecine.video.sound import Sound, holds_sound
from telecine.video.writer import VideoWriter, save_video

__all__ = ["Sound", "VideoWriter", "check_output_path", "holds_sound", "read_video", "save_video"]
