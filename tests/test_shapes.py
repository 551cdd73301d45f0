"""The 1 + k·m rule against brute force, and the bookkeeping of extended videos."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videogen.errors import UserError
from videogen.shapes import Compression, Extension, Tiles, TokenGrid, VideoShape, check_video


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("latent_frames", [1, 2, 5])
def test_frames_and_latent_frames_are_inverse(stride, latent_frames):
    compression = Compression(stride, 8, 8)
    frames = compression.frames(latent_frames)
    assert frames == 1 + (latent_frames - 1) * stride
    assert compression.latent_frames(frames) == latent_frames


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_frame_belongs_to_exactly_one_latent(stride):
    compression = Compression(stride, 8, 8)
    owners = [[i for i in range(6) if frame in compression.frames_of_latent(i)] for frame in range(1 + 5 * stride)]
    assert owners == [[compression.latent_of_frame(frame)] for frame in range(1 + 5 * stride)]
    assert list(compression.frames_of_latent(0)) == [0]
    assert all(len(compression.frames_of_latent(i)) == stride for i in range(1, 6))


def test_latents_of_a_prefix_cover_the_prefix():
    compression = Compression(2, 8, 8)
    for latents in range(1, 6):
        covered = sorted(frame for i in range(latents) for frame in compression.frames_of_latent(i))
        assert covered == list(range(compression.frames(latents)))


@pytest.mark.parametrize(("frames", "below", "above"), [(4, 3, 5), (10, 9, 11)])
def test_odd_frame_counts_are_refused_with_the_neighbours(frames, below, above):
    with pytest.raises(UserError, match=rf"1 \+ 2·k frames, got {frames}; use {below} or {above}"):
        Compression(2, 8, 8).latent_frames(frames)


@pytest.mark.parametrize("frames", [0, -3])
def test_clips_need_a_frame(frames):
    with pytest.raises(UserError, match="use 1 or 5"):
        Compression(4, 8, 8).latent_frames(frames)
    with pytest.raises(UserError, match="at least one latent frame"):
        Compression(4, 8, 8).frames(frames)


def test_grid_of_a_clip():
    grid = VideoShape(11, 128, 64).grid(Compression(2, 8, 8), levels=3)
    assert grid == TokenGrid(6, 16, 8, levels=3)
    assert (grid.shape, grid.tokens, grid.tokens_per_frame) == ((6, 16, 8), 768, 128)
    assert grid.with_time(1) == TokenGrid(1, 16, 8, levels=3)
    assert VideoShape(11, 128, 64).pixels == 11 * 128 * 64


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (VideoShape(5, 20, 16), "height 20 is no multiple of the patch 8; use 16 or 24"),
        (VideoShape(5, 16, 7), "width 7 is no multiple of the patch 8; use 8 or 16"),
        (VideoShape(5, 0, 16), "height 0 is no multiple"),
        (VideoShape(6, 16, 16), r"1 \+ 2·k frames, got 6"),
    ],
)
def test_grids_refuse_what_does_not_divide(shape, message):
    with pytest.raises(UserError, match=message):
        shape.grid(Compression(2, 8, 8))


@pytest.mark.parametrize(("window", "overlap"), [(11, 5), (17, 1), (5, 4)])
def test_extension_counts_frames_like_a_loop(window, overlap):
    extension = Extension(window, overlap)
    frames = list(range(window))
    for segments in range(1, 6):
        assert extension.frames(segments) == len(frames)
        frames += range(window - overlap)


@pytest.mark.parametrize(("window", "overlap"), [(11, 5), (17, 1), (5, 4)])
def test_extension_takes_the_fewest_sufficient_segments(window, overlap):
    extension = Extension(window, overlap)
    for frames in range(1, 60):
        segments = extension.segments(frames)
        assert extension.frames(segments) >= frames
        assert segments == 1 or extension.frames(segments - 1) < frames


@pytest.mark.parametrize("overlap", [0, 11, 12])
def test_extension_refuses_impossible_overlaps(overlap):
    with pytest.raises(UserError, match="between 1 and 10 frames"):
        Extension(11, overlap)


@pytest.mark.parametrize(
    ("size", "tile", "overlap"), [(48, 32, 16), (49, 16, 5), (100, 32, 0), (20, 32, 8), (32, 32, 8)]
)
def test_tiles_cover_a_side_and_their_weights_add_up_to_one_or_more(size, tile, overlap):
    tiles = Tiles(size, tile, overlap)
    total = np.zeros(size)
    for start, following in zip(tiles.starts, (*tiles.starts[1:], None), strict=True):
        weights = tiles.weights(start)
        total[start : start + tile] += weights
        if following is None:
            assert start + len(weights) == size
        else:
            assert start < following <= start + tile - overlap
    assert total.min() >= 1 - 1e-9
    if len(tiles.starts) == 1 or (size - tile) % (tile - overlap) == 0:
        np.testing.assert_allclose(total, 1)


def test_the_edge_of_a_tile_does_not_count_where_another_knows_better():
    tiles = Tiles(48, 32, 16)
    assert tiles.starts == (0, 16)
    np.testing.assert_array_equal(tiles.weights(0)[-4:], 0)
    np.testing.assert_array_equal(tiles.weights(0)[:20], 1)
    np.testing.assert_array_equal(tiles.weights(16), tiles.weights(0)[::-1])
    assert Tiles(12, 8, 4).scaled(4) == tiles


@pytest.mark.parametrize("overlap", [-1, 32])
def test_an_overlap_as_long_as_a_tile_is_refused(overlap):
    with pytest.raises(UserError, match="between 0 and 31"):
        Tiles(48, 32, overlap)


VIDEO = np.zeros((1, 3, 8, 8, 3), np.float32)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (VIDEO[0], r"add the batch axis, video\[None\]"),
        (VIDEO[0, 0], "a video is"),
        (VIDEO[:0], "no axis is empty"),
        (VIDEO.astype(np.uint8), "got uint8: video / 127.5 - 1"),
        (VIDEO.astype(np.int32), "got int32"),
        (VIDEO + 255, r"must be in \[-1, 1\], got values from 255 to 255"),
        (VIDEO + np.nan, "got values from nan to nan"),
    ],
)
def test_what_is_no_video_is_refused_by_name(video, message):
    with pytest.raises(UserError, match=message):
        check_video(video)


def test_videos_pass_also_while_they_are_traced():
    for dtype in (np.float32, np.float16, jnp.bfloat16):
        check_video(jnp.asarray(VIDEO + 1, dtype))
    check_video(VIDEO)
    jax.eval_shape(lambda x: check_video(x) or x, VIDEO)
    with pytest.raises(UserError, match="got uint8"):
        jax.eval_shape(lambda x: check_video(x) or x, VIDEO.astype(np.uint8))


def test_a_first_chunk_is_a_clip_and_a_later_one_whole_latents():
    shape = VideoShape(4, 8, 8)
    for first_alone, frames in ((True, 5), (False, 4)):
        compression = Compression(4, 8, 8, first_alone=first_alone)
        assert compression.chunk(shape, first=True) == shape
        assert compression.chunk(shape, first=False) == VideoShape(frames, 8, 8)
    assert Compression(1, 8, 8).chunk(VideoShape(1, 8, 8), first=False).frames == 2
    for frames, near in ((0, 4), (5, 4), (11, 8)):
        with pytest.raises(UserError, match=f"must have 4·k frames, got {frames}; use {near}"):
            Compression(4, 8, 8).chunk(VideoShape(frames, 8, 8), first=False)


def test_sides_of_grids_are_whole_numbers():
    assert all(isinstance(side, int) for side in VideoShape(5, 16, 24).grid(Compression(4, 8, 8)).shape)


def test_the_middle_of_a_cell_is_the_mean_of_what_it_covers():
    causal, plain = Compression(4, 2, 3), Compression(4, 2, 3, first_alone=False)
    assert causal.centres((3, 1, 2))[:, 0].tolist() == [
        [[0, 0.5, 1], [0, 0.5, 4]], [[2.5, 0.5, 1], [2.5, 0.5, 4]], [[6.5, 0.5, 1], [6.5, 0.5, 4]]
    ]  # fmt: skip
    assert plain.centres((2, 1, 1))[:, 0, 0, 0].tolist() == [1.5, 5.5]
    assert causal.centres((1, 1, 1), start=2)[0, 0, 0].tolist() == [6.5, 0.5, 1]
