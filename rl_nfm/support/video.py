"""Writing MP4 videos image by image, by the ffmpeg that comes with imageio-ffmpeg."""

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from imageio_ffmpeg import get_ffmpeg_exe
from numpy.typing import NDArray

from rl_nfm.support.errors import signal_name

Image = NDArray[np.uint8]


@contextlib.contextmanager
def video_writer(
    path: Path, size: tuple[int, int], fps: float
) -> Iterator[Callable[[Image], None]]:
    """A function that appends images to a video.

    Not `imageio_ffmpeg.write_frames`: that takes no notice when ffmpeg fails at the end.

    Args:
        path: ends in .mp4.
        size: height and width of the images [H, W, 3], both even; encoders like multiples of 16.
        fps: images in a second.

    Raises:
        OSError: if it cannot be written.
    """
    raw = f"-f rawvideo -pix_fmt rgb24 -s {size[1]}x{size[0]} -r {fps} -i -"
    coded = "-c:v libx264 -preset veryfast -pix_fmt yuv420p"
    command = [get_ffmpeg_exe(), "-loglevel", "error", "-y", *raw.split(), *coded.split()]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen([*command, f"file:{path}"], stdin=subprocess.PIPE, stderr=errors)
        assert process.stdin is not None
        try:
            yield lambda image: _feed(process, image)
            process.communicate()
        except BrokenPipeError:
            pass  # ffmpeg has given up, and says why
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        if process.returncode != 0:
            errors.seek(0)
            error_lines = errors.read().decode(errors="replace").strip().splitlines()
            if process.returncode < 0:
                error_lines.append(f"ffmpeg was ended by {signal_name(-process.returncode)}")
            raise OSError("\n".join([f"video: {path} cannot be written", *error_lines[-3:]]))


def _feed(process: "subprocess.Popen[bytes]", image: Image) -> None:
    assert process.stdin is not None
    process.stdin.write(image.tobytes())
