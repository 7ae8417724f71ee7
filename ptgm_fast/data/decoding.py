"""Decode many image files into one uint8 array, on all cores; kept in memory, in a cache, or in an unnamed temporary file."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from torch import Tensor

from ptgm_fast.data.cache import Entry
from ptgm_fast.data.images import Fit, Images, prepare
from ptgm_fast.data.on_disk import OnDisk
from ptgm_fast.errors import UserError

# Images that a thread decodes before passing them on: with fewer, passing small images on costs more than decoding them.
CHUNK = 16
GIB = 2**30
Given = TypeVar("Given")
Made = TypeVar("Made")


def usable_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Wanted:
    """The form that images are converted to, and where they are kept.

    channels, image_size: see `images.prepare`. on_notice(message): receives what was skipped. on_images(done, total):
    receives the number of decoded images. cache: a folder for decoded images. memory_limit: bytes of memory that an image
    set may use; a larger one stays on disk, in the cache or in an unnamed temporary file in the working directory.
    labelled: False for images without classes. rows: int64 [M], read only the images with these indices, in this order;
    None: all. workers: number of decoding threads.
    """

    channels: int | None = None
    image_size: int | Fit | None = None
    on_notice: Callable[[str], None] = lambda message: None
    on_images: Callable[[int, int], None] = lambda done, total: None
    cache: Path | None = None
    memory_limit: float = float("inf")
    labelled: bool = True
    rows: Tensor | None = None
    workers: int = 1


@dataclass(frozen=True)
class Items:
    """A set of images that are decoded one by one.

    decode(i, on_frames) returns image i, uint8 [1, C, H, W], and calls on_frames for an animation; name(i) is its name in
    messages. place: where the images come from. stamps: values that change when any image changes; None if unknown, and
    then nothing is cached. parallel: whether decode may run in several threads.
    """

    count: int
    decode: Callable[[int, Callable[[], None]], Tensor]
    name: Callable[[int], str]
    place: str
    stamps: list[tuple[str | int, ...]] | None = None
    parallel: bool = True

    def at(self, rows: Tensor) -> Items:
        """The images with indices `rows`, int64 [M], in this order."""
        places = rows.tolist()
        digest = hashlib.sha256(rows.numpy().tobytes()).hexdigest()[:16]
        return replace(
            self,
            count=len(places),
            decode=lambda i, on_frames: self.decode(places[i], on_frames),
            name=lambda i: self.name(places[i]),
            place=f"{self.place} ({len(places)} of {self.count} images, {digest})",
        )


def decode_all(items: Items, wanted: Wanted) -> tuple[Images, int]:
    """The images of a set, uint8 [N, C, H, W], and how many of them are first frames of animations.

    The bytes do not depend on the number of workers or on where the images are kept. JPEGs are decoded at full size and
    then resized, since decoding at half or quarter size (`Image.draft`) gives other bytes. Raises UserError for a damaged
    image, for images of different shapes, and for a disk without enough space.
    """
    if wanted.rows is not None:
        items = items.at(wanted.rows)
    if wanted.cache is None or items.stamps is None:
        return _kept(items, wanted, None)
    form = wanted.channels, wanted.image_size
    entry = Entry(wanted.cache, items.place, items.stamps, form, items.count)
    with entry.alone(wanted.on_notice):
        found = entry.open()
        if found is None:
            return _kept(items, wanted, entry)
    return _opened(*found, wanted), entry.animations


def _kept(items: Items, wanted: Wanted, entry: Entry | None) -> tuple[Images, int]:
    """Decode everything, into memory or a file."""
    animations: list[int] = []
    shape: torch.Size | None = None
    memory: Tensor | None = None
    file: IO[bytes] | None = None
    done, offset = 0, 0
    try:
        for image in _decoded(items, wanted, animations.append):
            if shape is None:
                shape = image.shape[1:]
                whole = (items.count, *shape)
                if entry is None and (size := items.count * shape.numel()) <= wanted.memory_limit:
                    memory = torch.empty(whole, dtype=torch.uint8)
                else:
                    folder = Path.cwd() if entry is None else entry.folder
                    _check_room(folder, math.prod(whole))
                    file = entry.new_file() if entry else _nameless(folder)
                    offset = _write_header(file, whole)
                    if entry is None:
                        wanted.on_notice(
                            f"{items.place}: {size / GIB:.1f} GiB of images exceed data.memory_limit = {wanted.memory_limit / GIB:g}: "
                            f"kept on disk in {str(folder)!r} while the process runs; set data.cache to keep them for later runs"
                        )
            elif image.shape[1:] != shape:
                raise UserError(
                    f"image {items.name(done)!r} is {_describe(image.shape[1:])}, but earlier ones are {_describe(shape)}; "
                    "set data.image_size (and data.channels) to convert all to one shape"
                )
            if memory is not None:
                memory[done] = image[0]
            elif file is not None:
                file.write(image.numpy().tobytes())
            done += 1
            if done % CHUNK == 0 or done == items.count:
                wanted.on_images(done, items.count)
        if memory is not None:
            return memory, len(animations)
        assert file is not None
        assert shape is not None
        file.flush()
        if entry is not None:
            entry.finish(file, len(animations))
        return _opened(file, (items.count, *shape), offset, wanted), len(animations)
    except OSError as error:
        _discard(file, entry)
        raise UserError(f"decoded images cannot be written ({error}); set data.cache") from error
    except BaseException:
        _discard(file, entry)
        raise


def _discard(file: IO[bytes] | None, entry: Entry | None) -> None:
    if file is not None:
        file.close()
        if entry is not None:
            Path(file.name).unlink(missing_ok=True)


def _nameless(folder: Path) -> IO[bytes]:
    # The file disappears when its last reader closes it.
    return tempfile.TemporaryFile(dir=folder)


def _check_room(folder: Path, size: int) -> None:
    """Raise UserError if the folder's disk has less than `size` bytes free."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise UserError(
            f"decoded images take {size / GIB:.1f} GiB, but there is not enough space in {str(folder)!r} ({free / GIB:.1f} GiB free); "
            "set data.cache to a folder on a larger disk, or lower data.image_size"
        )


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """Write the header of a uint8 .npy file and return the byte offset of the values."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _opened(file: IO[bytes], shape: tuple[int, ...], offset: int, wanted: Wanted) -> Images:
    """The images of a file, in memory if the limit allows it."""
    images = OnDisk(file, shape, offset=offset, memory_limit=wanted.memory_limit)
    if images.nbytes > wanted.memory_limit:
        return images
    with file:
        file.seek(offset)
        return torch.from_numpy(np.fromfile(file, np.uint8).reshape(shape))


def _decoded(items: Items, wanted: Wanted, on_frames: Callable[[int], None]) -> Iterator[Tensor]:
    """The images in order, uint8 [1, C, H, W] each, decoded ahead by threads.

    Threads suffice because Pillow and torch release the GIL while they decode and resize: they are as fast as processes
    here, and nothing is copied between them.
    """

    def decode(numbers: range) -> tuple[list[Tensor], Exception | None]:
        done: list[Tensor] = []
        try:
            for i in numbers:
                image = items.decode(i, lambda i=i: on_frames(i))  # type: ignore[misc]
                done.append(prepare(image, wanted.channels, wanted.image_size))
        except Exception as error:
            # The images before the error are still yielded first, as in sequential decoding.
            return done, error
        return done, None

    chunks = (
        range(first, min(first + CHUNK, items.count)) for first in range(0, items.count, CHUNK)
    )
    workers = wanted.workers if items.parallel else 1
    for images, error in ahead(decode, chunks, workers):
        yield from images
        if error is not None:
            raise error


def ahead(make: Callable[[Given], Made], given: Iterator[Given], workers: int) -> Iterator[Made]:
    """Yield make(x) for each x, in order: computed ahead by several workers, or in the caller's thread with one worker."""
    if workers == 1:
        yield from map(make, given)
        return
    threads = torch.get_num_threads()
    # One torch thread per worker: more would compete for the other workers' cores.
    pool = ThreadPoolExecutor(workers, "decode", initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting: deque[Future[Made]] = deque()
        for x in given:
            waiting.append(pool.submit(make, x))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # A worker's set_num_threads also changes the default of threads started later.
        torch.set_num_threads(threads)


def _describe(form: torch.Size) -> str:
    channels, height, width = form
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
