import av
import numpy as np
import pytest


@pytest.fixture
def make_video(tmp_path):
    """Writes a video whose frame i is plain grey of value 6·i, so that frames tell their number."""

    def make(name="clip.mp4", frames=20, size=(64, 96), fps=10, codec="libx264", gop=6, times=None, **stream):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            video = container.add_stream(codec, rate=fps)
            video.height, video.width = size
            video.pix_fmt = stream.get("pix_fmt", "yuv420p")
            video.gop_size = gop
            video.bit_rate = 4_000_000
            if times is not None:
                video.codec_context.time_base = video.time_base = av.utils.Fraction(1, 1000)
            for i in range(frames):
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 6 * i, np.uint8), format="rgb24")
                frame.pts = i if times is None else round(times[i] * 1000)
                container.mux(video.encode(frame))
            container.mux(video.encode())
        return path

    return make


@pytest.fixture
def numbers():
    """Reads the frame numbers back from the pixels of such a video."""
    return lambda video: [round(float(frame.mean()) / 6) for frame in video]
