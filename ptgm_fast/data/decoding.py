"""Many image files to one array of bytes: decoded by all cores, kept in memory, in a cache, or in a file without a name."""

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

# Images that a thread decodes before it hands them on: fewer cost more to hand on than small ones to decode.
CHUNK = 16
GIB = 2**30
Given = TypeVar("Given")
Made = TypeVar("Made")


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Wanted:
    """What images are brought to, and where they are kept.

    channels, image_size: see `images.prepare`. on_notice(message): told what was passed over. on_images(done, total): told
    how many are decoded. cache: a folder for decoded images. memory_limit: bytes that a set may take in memory; a larger one stays on disk, in
    the cache or in a file without a name in the working directory. labelled: False for images without classes.
    rows: int64 [M], the images at these places alone, in this order; None: all. workers: decoding threads.
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

    decode(i, on_frames) gives image i, uint8 [1, C, H, W], and calls on_frames for an animation; name(i) is what messages call it.
    place: where they come from; stamps: what changes when any of them does, None where that is not known (nothing is cached
    then). parallel: whether decode may run in several threads.
    """

    count: int
    decode: Callable[[int, Callable[[], None]], Tensor]
    name: Callable[[int], str]
    place: str
    stamps: list[tuple[str | int, ...]] | None = None
    parallel: bool = True

    def at(self, rows: Tensor) -> Items:
        """The images at `rows`, int64 [M], in this order."""
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
    """The images of a set, uint8 [N, C, H, W], the same bytes whatever the workers and wherever they are kept, and how many
    of them are first frames of animations.

    JPEGs are decoded at their full size and then resized: to decode them at a half or a quarter (`Image.draft`) gives other bytes.
    Raises UserError for a damaged image, images of different forms, and a disk without room for them.
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
                            f"{items.place}: {size / GIB:.1f} GiB of images, more than data.memory_limit = {wanted.memory_limit / GIB:g}: "
                            f"on disk in {str(folder)!r} while the process runs; data.cache keeps them"
                        )
            elif image.shape[1:] != shape:
                raise UserError(
                    f"image {items.name(done)!r} is {_describe(image.shape[1:])} but earlier ones are {_describe(shape)}; "
                    "set data.image_size (and data.channels) to bring them to one shape"
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
    # It goes when its last reader does.
    return tempfile.TemporaryFile(dir=folder)


def _check_room(folder: Path, size: int) -> None:
    """Raises UserError where so many bytes have no room."""
    if (free := shutil.disk_usage(folder).free) < size:
        raise UserError(
            f"decoded images of {size / GIB:.1f} GiB have no room in {str(folder)!r} ({free / GIB:.1f} GiB free); "
            "set data.cache to a folder on a larger disk, or data.image_size to fewer pixels"
        )


def _write_header(file: IO[bytes], shape: tuple[int, ...]) -> int:
    """The header of an .npy file of uint8; where the values begin."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def _opened(file: IO[bytes], shape: tuple[int, ...], offset: int, wanted: Wanted) -> Images:
    """The images of a file, in memory where the limit allows it."""
    images = OnDisk(file, shape, offset=offset, memory_limit=wanted.memory_limit)
    if images.nbytes > wanted.memory_limit:
        return images
    with file:
        file.seek(offset)
        return torch.from_numpy(np.fromfile(file, np.uint8).reshape(shape))


def _decoded(items: Items, wanted: Wanted, on_frames: Callable[[int], None]) -> Iterator[Tensor]:
    """The images in order, uint8 [1, C, H, W] each, decoded ahead by threads.

    Threads, as Pillow and torch decode and resize outside of the interpreter's lock: as fast as processes here, and
    nothing is copied between them.
    """

    def decode(numbers: range) -> tuple[list[Tensor], Exception | None]:
        done: list[Tensor] = []
        try:
            for i in numbers:
                image = items.decode(i, lambda i=i: on_frames(i))  # type: ignore[misc]
                done.append(prepare(image, wanted.channels, wanted.image_size))
        except Exception as error:
            # Those before it are looked at first, as if they had been decoded one after the other.
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
    """make(x) of each x, in order; with several workers some are made ahead, with one in the caller's thread."""
    if workers == 1:
        yield from map(make, given)
        return
    threads = torch.get_num_threads()
    # Each worker is one thread: torch's own would take the others' cores.
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
        # What a worker sets is the default of threads to come.
        torch.set_num_threads(threads)


def _describe(form: torch.Size) -> str:
    channels, height, width = form
    return f"{height}x{width} with {channels} channel{'s' if channels > 1 else ''}"
