"""Round trips through every format, and what is refused; PSNR in dB over all values, against what was written."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from telecine import video
from telecine.errors import BackendError, RequestError
from telecine.video import VideoWriter, check_output_path, formats, read_video, save_video

av = pytest.importorskip("av")

RUNTIME = Path(video.__file__).parents[2]
ALL = ["out.mp4", "out.webm", "out.gif", "frames/%05d.png"]
FLOOR = {".mp4": 30.0, ".webm": 28.0, ".gif": 20.0, ".png": np.inf}


def moving(num_frames: int, height: int = 96, width: int = 128) -> np.ndarray:
    """uint8 (F, H, W, 3): smooth colours that move, with a square on top."""
    frame, y, x = np.meshgrid(np.arange(num_frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [128 + 100 * np.sin((a * x + b * y + 4 * frame) / 24) for a, b in ((1, 0), (0, 1), (1, 1))]
    pixels = np.stack(waves, axis=-1).astype(np.uint8)
    for number in range(num_frames):
        pixels[number, 8:20, 2 * number : 2 * number + 12] = (250, 220, 20)
    return pixels


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return np.inf if error == 0 else 10 * np.log10(255**2 / error)


def load(path: Path) -> np.ndarray:
    """The frames at `path`, through Pillow for the formats that it knows."""
    if path.suffix == ".png":
        files = sorted(path.parent.iterdir())
        assert [file.name for file in files] == [path.name % number for number in range(len(files))]
        return np.stack([np.asarray(Image.open(file)) for file in files])
    return read_video(path)[0]


def delays(path: Path) -> list[int]:
    """Milliseconds that a GIF shows each frame."""
    found = []
    with Image.open(path) as image:
        for number in range(image.n_frames):
            image.seek(number)
            found.append(image.info["duration"])
    return found


def left(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


class TestRoundTrip:
    @pytest.mark.parametrize("name", ALL)
    def test_frames_come_back(self, tmp_path: Path, name: str) -> None:
        frames = moving(24)
        path = save_video(frames, tmp_path / name, frame_rate=24)
        assert path == tmp_path / name
        result = load(path)
        assert result.dtype == np.uint8
        assert result.shape == frames.shape
        assert psnr(frames, result) >= FLOOR[path.suffix]
        assert left(tmp_path) == [name.split("/")[0]]

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize(("height", "width"), [(33, 35), (1, 1), (34, 35)])
    def test_odd_sizes(self, tmp_path: Path, name: str, height: int, width: int) -> None:
        frames = moving(3, height, width)
        result = load(save_video(frames, tmp_path / name, frame_rate=24))
        if name.endswith(".mp4"):
            assert result.shape == (3, height + height % 2, width + width % 2, 3)
            frames = np.pad(frames, [(0, 0), (0, height % 2), (0, width % 2), (0, 0)], mode="edge")
        assert result.shape == frames.shape
        assert psnr(frames, result) >= FLOOR[Path(name).suffix] - 5  # few pixels, sharp square

    @pytest.mark.parametrize("name", ALL)
    def test_one_frame(self, tmp_path: Path, name: str) -> None:
        frames = moving(1)
        path = save_video(frames, tmp_path / name, frame_rate=24)
        assert psnr(frames, load(path)) >= FLOOR[path.suffix]
        if path.suffix in (".mp4", ".webm"):
            with av.open(str(path)) as container:
                assert container.duration / 1e6 == pytest.approx(1 / 24, abs=1e-3)

    @pytest.mark.parametrize("name", ALL)
    def test_pieces_equal_one_write(self, tmp_path: Path, name: str) -> None:
        frames = moving(9)
        whole = save_video(frames, tmp_path / "whole" / name, frame_rate=24)
        pieces = tmp_path / "pieces" / name
        with VideoWriter(pieces, frame_rate=24, height=96, width=128) as writer:
            for piece in (frames[:1], frames[1:1], frames[1:5], frames[5:]):
                writer.write(piece)
        assert np.array_equal(load(whole), load(pieces))
        if pieces.suffix == ".png":
            files = [(path.name, path.read_bytes()) for path in sorted(whole.parent.iterdir())]
            assert files == [(path.name, path.read_bytes()) for path in sorted(pieces.parent.iterdir())]
            assert np.array_equal(load(pieces), frames)

    def test_strided_frames(self, tmp_path: Path) -> None:
        frames = moving(4)[::2, ::-1, ::3]
        assert np.array_equal(load(save_video(frames, tmp_path / "f" / "%d.png", frame_rate=24)), frames)

    def test_odd_names(self, tmp_path: Path) -> None:
        frames = moving(2, 16, 16)
        for name in ("é 100%", "a:b", "%d"):
            png = save_video(frames, tmp_path / name / "x" / "f%03d.PNG", frame_rate=8)
            assert left(png.parent) == ["f000.PNG", "f001.PNG"]
            assert len(load(save_video(frames, tmp_path / f"{name}.MP4", frame_rate=8))) == 2

    def test_quality_changes_the_size(self, tmp_path: Path) -> None:
        frames = moving(8)
        for suffix in ("mp4", "webm"):
            sizes = []
            for quality in (10, 45):
                path = save_video(frames, tmp_path / f"{quality}.{suffix}", frame_rate=24, quality=quality)
                sizes.append(path.stat().st_size)
            assert sizes[0] > 1.5 * sizes[1]


class TestColours:
    @pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
    @pytest.mark.parametrize(
        "colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (128, 128, 128), (255, 255, 255)]
    )
    def test_solid_colours_survive(self, tmp_path: Path, name: str, colour: tuple[int, int, int]) -> None:
        frames = np.broadcast_to(np.array(colour, np.uint8), (3, 64, 64, 3))
        result = load(save_video(frames, tmp_path / name, frame_rate=24))
        assert np.abs(result.astype(int) - frames).max() <= 3

    @pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
    def test_the_file_says_bt709(self, tmp_path: Path, name: str) -> None:
        with av.open(str(save_video(moving(2), tmp_path / name, frame_rate=24))) as container:
            context = container.streams.video[0].codec_context
            assert (context.pix_fmt, context.width, context.height) == ("yuv420p", 128, 96)
            tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
            assert [int(tag) for tag in tags] == [1, 1, 1, 1]

    def test_mp4_starts_with_its_index(self, tmp_path: Path) -> None:
        content = save_video(moving(8), tmp_path / "out.mp4", frame_rate=24).read_bytes()
        assert 0 < content.find(b"moov") < content.find(b"mdat")


class TestTime:
    @pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
    @pytest.mark.parametrize("rate", [8, 12.5, 23.976, 24000 / 1001, 25, 30000 / 1001, 60, 0.5])
    def test_frame_rates(self, tmp_path: Path, name: str, rate: float) -> None:
        path = save_video(moving(10, 32, 32), tmp_path / name, frame_rate=rate)
        assert read_video(path)[1] == pytest.approx(rate, rel=1e-5)
        with av.open(str(path)) as container:
            assert container.duration / 1e6 == pytest.approx(10 / rate, abs=2e-3)
            expected = Fraction(rate).limit_denominator(1001)
            assert container.streams.video[0].average_rate == expected

    @pytest.mark.parametrize("rate", [8, 12.5, 24, 24000 / 1001, 30, 50])
    def test_gif_lasts_as_long_as_its_frames(self, tmp_path: Path, rate: float) -> None:
        path = save_video(moving(31, 16, 32), tmp_path / "out.gif", frame_rate=rate)
        shown = delays(path)
        assert len(shown) == 31
        assert sum(shown) == pytest.approx(31 / rate * 1000, abs=10)
        assert max(shown) - min(shown) <= 10
        assert min(shown) >= 20
        assert read_video(path)[1] == pytest.approx(rate, rel=0.01)

    def test_gif_loops_for_ever(self, tmp_path: Path) -> None:
        path = save_video(moving(1, 16, 16), tmp_path / "out.gif", frame_rate=24)
        assert delays(path) == [40]
        path = save_video(moving(3, 16, 16), tmp_path / "out.gif", frame_rate=24)
        with Image.open(path) as image:
            assert image.info["loop"] == 0

    def test_gif_keeps_frames_that_do_not_change(self, tmp_path: Path) -> None:
        still = np.repeat(moving(1, 16, 16), 6, axis=0)
        frames, rate = read_video(save_video(still, tmp_path / "out.gif", frame_rate=10))
        assert (len(frames), rate) == (6, pytest.approx(10))


class TestWholeOrAbsent:
    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_in_the_body_leaves_nothing(
        self, tmp_path: Path, name: str, error: type[BaseException]
    ) -> None:
        def write() -> None:
            with VideoWriter(tmp_path / name, frame_rate=24, height=96, width=128) as writer:
                writer.write(moving(4))
                raise error

        with pytest.raises(error):
            write()
        assert left(tmp_path) == []

    @pytest.mark.parametrize("name", ALL)
    def test_no_frames_leave_nothing(self, tmp_path: Path, name: str) -> None:
        with (
            pytest.raises(RequestError, match="no frame was written"),
            VideoWriter(tmp_path / name, frame_rate=24, height=96, width=128),
        ):
            pass
        assert left(tmp_path) == []

    @pytest.mark.parametrize("name", ALL)
    def test_a_full_disk_leaves_nothing(self, tmp_path: Path, name: str) -> None:
        code = """
import resource, signal, sys
import numpy as np
from telecine.errors import RequestError
from telecine.video import save_video
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).integers(0, 256, (6, 128, 128, 3), dtype=np.uint8)
try:
    save_video(noise, sys.argv[1], frame_rate=24)
except RequestError as error:
    print(error)
"""
        result = run(code, tmp_path / name)
        assert "could not be written (File too large)" in result
        assert left(tmp_path) == []

    def test_an_encoder_that_fails_is_explained(self, tmp_path: Path) -> None:
        # VP9 ends at 65536 pixels a side, PNG and H.264 elsewhere: whatever FFmpeg refuses reads the same.
        with pytest.raises(BackendError, match="FFmpeg failed to encode"):
            save_video(np.zeros((1, 2, 70_000, 3), np.uint8), tmp_path / "out.webm", frame_rate=24)
        assert left(tmp_path) == []

    def test_the_old_video_stays_until_the_new_one_is_whole(self, tmp_path: Path) -> None:
        path = save_video(moving(2), tmp_path / "out.mp4", frame_rate=24)
        with VideoWriter(path, frame_rate=24, height=96, width=128) as writer:
            writer.write(moving(5))
            assert len(load(path)) == 2
        assert len(load(path)) == 5


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("out.avi", r"\.mp4, \.webm, \.gif, \.png"),
            ("out", "no suffix"),
            ("out.png", "names one PNG image"),
            ("frames/100%.png", "names one PNG image"),
            ("frames/%d-%d.png", "names one PNG image"),
            ("frames/%s.png", "names one PNG image"),
            ("full/%05d.png", "not empty"),
            ("file/out.mp4", "Not a directory"),
            ("folder.mp4", "is a folder"),
        ],
    )
    def test_paths(self, tmp_path: Path, name: str, message: str) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "notes").write_text("")
        (tmp_path / "file").write_text("")
        (tmp_path / "folder.mp4").mkdir()
        before = left(tmp_path)
        with pytest.raises(RequestError, match=message):
            check_output_path(tmp_path / name)
        with pytest.raises(RequestError, match=message):
            save_video(moving(1), tmp_path / name, frame_rate=24)
        assert left(tmp_path) == before

    def test_the_current_folder_is_not_replaced(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(RequestError, match="current folder"):
            check_output_path("%05d.png")

    @pytest.mark.parametrize("name", ALL)
    def test_a_check_leaves_nothing(self, tmp_path: Path, name: str) -> None:
        assert check_output_path(tmp_path / "new" / name, frame_rate=24) == tmp_path / "new" / name
        assert left(tmp_path) == []

    @pytest.mark.parametrize("rate", [0, -1, float("nan"), float("inf"), 1e-4, 1e6])
    def test_frame_rates(self, tmp_path: Path, rate: float) -> None:
        with pytest.raises(RequestError, match="frame rate"):
            check_output_path(tmp_path / "out.mp4", frame_rate=rate)
        with pytest.raises(RequestError, match="frame rate"):
            save_video(moving(1), tmp_path / "out.mp4", frame_rate=rate)

    def test_gif_above_what_players_show(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="50 frames a second"):
            check_output_path(tmp_path / "out.gif", frame_rate=60)

    @pytest.mark.parametrize(
        ("name", "quality"),
        [("out.gif", 10), ("f/%d.png", 10), ("out.mp4", 0), ("out.mp4", 52), ("out.webm", -1), ("out.mp4", True)],
    )
    def test_qualities(self, tmp_path: Path, name: str, quality: int) -> None:
        with pytest.raises(RequestError, match="quality is"):
            check_output_path(tmp_path / name, quality=quality)
        with pytest.raises(RequestError, match="quality is"):
            save_video(moving(1), tmp_path / name, frame_rate=24, quality=quality)

    @pytest.mark.parametrize(
        "frames",
        [
            np.zeros((2, 16, 16, 3), np.float32),
            np.zeros((16, 16, 3), np.uint8),
            np.zeros((2, 16, 16, 4), np.uint8),
            np.zeros((1, 2, 16, 16, 3), np.uint8),
            np.zeros((0, 16, 16, 3), np.uint8),
            np.zeros((2, 0, 16, 3), np.uint8),
        ],
    )
    def test_frames(self, tmp_path: Path, frames: np.ndarray) -> None:
        expected = re.escape(f"the frames are {frames.dtype} {frames.shape}")
        with pytest.raises(RequestError, match=expected):
            save_video(frames, tmp_path / "out.mp4", frame_rate=24)
        assert left(tmp_path) == []

    def test_frames_of_another_size_than_the_writer(self, tmp_path: Path) -> None:
        with (
            pytest.raises(RequestError, match=re.escape("expected uint8 (F, 16, 32, 3)")),
            VideoWriter(tmp_path / "out.mp4", frame_rate=24, height=16, width=32) as writer,
        ):
            writer.write(moving(1, 32, 16))
        with pytest.raises(RequestError, match="outside"):
            writer.write(moving(1, 16, 32))
        with pytest.raises(RequestError, match="0 high"):
            VideoWriter(tmp_path / "out.mp4", frame_rate=24, height=0, width=32)
        assert left(tmp_path) == []


class TestRead:
    @pytest.mark.parametrize("content", [None, b"", b"not a video" * 100])
    def test_not_a_video(self, tmp_path: Path, content: bytes | None) -> None:
        path = tmp_path / "in.mp4"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RequestError, match="no file" if content is None else "cannot be read"):
            read_video(path)

    def test_a_folder_and_a_cut_file(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="no file"):
            read_video(tmp_path)
        path = save_video(moving(8), tmp_path / "out.mp4", frame_rate=24)
        path.write_bytes(path.read_bytes()[:400])
        with pytest.raises(RequestError, match="cannot be read"):
            read_video(path)

    def test_sound_without_pictures(self, tmp_path: Path) -> None:
        import wave

        with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(bytes(1600))
        with pytest.raises(RequestError, match="holds no video"):
            read_video(tmp_path / "sound.wav")

    def test_a_phone_video_is_turned_upright(self, tmp_path: Path) -> None:
        path = save_video(moving(3), tmp_path / "out.mp4", frame_rate=24)
        upright = read_video(path)[0]
        content = bytearray(path.read_bytes())
        matrix = content.index(struct.pack(">4i", 1 << 16, 0, 0, 0), content.index(b"tkhd"))
        # The display matrix of a phone held upright: a quarter turn clockwise.
        content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
        path.write_bytes(content)
        assert np.array_equal(read_video(path)[0], np.rot90(upright, -1, axes=(1, 2)))


def run(code: str, *arguments: object) -> str:
    """The output of `code` in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(RUNTIME)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


class TestWithoutAv:
    def test_import_and_checks_do_not_need_it(self, tmp_path: Path) -> None:
        code = "import sys, telecine.video as v; v.check_output_path(sys.argv[1]); print('av' in sys.modules)"
        assert run(code, tmp_path / "out.mp4") == "False\n"

    @pytest.mark.parametrize(
        "call", ["v.save_video(np.zeros((1, 8, 8, 3), np.uint8), path, frame_rate=8)", "v.read_video(path)"]
    )
    def test_the_message_names_the_extra(self, tmp_path: Path, call: str) -> None:
        code = f"""
import sys
sys.modules["av"] = None
import numpy as np
import telecine.video as v
from telecine.errors import BackendError
path = sys.argv[1]
try:
    {call}
except BackendError as error:
    print(error)
"""
        assert 'pip install "telecine[video]"' in run(code, tmp_path / "out.mp4")
        assert left(tmp_path) == []

    def test_a_build_without_the_encoder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        absent = formats.Format(codec="libnothing", pixels="yuv420p")
        monkeypatch.setitem(formats.FORMATS, ".mp4", absent)
        with pytest.raises(BackendError, match="lacks the encoder libnothing"):
            save_video(moving(1), tmp_path / "out.mp4", frame_rate=24)
        assert left(tmp_path) == []
