"""Objects packed to a token budget, prepared in the background."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch

from hpcspec.shards.format import Pixels
from hpcspec.stream.index import DataIndex
from hpcspec.stream.stream import BlockReader, Stream
from hpcspec.stream.tokens import Tokens, tokenize

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """N objects, their T tokens one after another without padding, objects of equal length next to each other.

    values (T, P, 3) f4, sigma (T, P) f4 (inf where bad), coordinates (T, 2) f4, scalars (N, S) f4,
    lengths: tokens of each object, objects (N,): their numbers in the index, hidden (T,) bool: tokens asked for.
    """

    values: torch.Tensor
    sigma: torch.Tensor
    coordinates: torch.Tensor
    scalars: torch.Tensor
    lengths: tuple[int, ...]
    objects: np.ndarray
    hidden: torch.Tensor
    state: dict[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> Batch:
        """The batch with its tensors on a device; from pinned memory the copy doesn't block."""
        if device.type == "cpu":
            return self
        moved = {f.name: getattr(self, f.name).pin_memory().to(device, non_blocking=True)
                 for f in fields(self) if isinstance(getattr(self, f.name), torch.Tensor)}  # fmt: skip
        return replace(self, **moved)


def hide(count: int, share: float, seed: Sequence[int]) -> np.ndarray:
    """(count,) bool: round(count·share) tokens hidden at random, at least one hidden and one seen where there are two."""
    hidden = np.zeros(count, bool)
    number = min(max(round(count * share), 1), count - 1)
    hidden[np.random.default_rng(list(seed)).permutation(count)[:number]] = True
    return hidden


def collate(objects: Sequence[int], tokens: Sequence[Tokens], hidden: Sequence[np.ndarray] | None = None) -> Batch:
    """One batch of these objects; without `hidden` nothing is hidden."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i].values))
    flags = hidden or [np.zeros(len(t.values), bool) for t in tokens]

    def stack(name: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([getattr(tokens[i], name) for i in order]).astype(np.float32))

    return Batch(
        stack("values"), stack("sigma"), stack("coordinates"),
        torch.from_numpy(np.stack([tokens[i].scalars for i in order])), tuple(len(tokens[i].values) for i in order),
        np.array([objects[i] for i in order]), torch.from_numpy(np.concatenate([flags[i] for i in order])),
    )  # fmt: skip


def training_batches(stream: Stream, patch: int, budget: int, mask: float) -> Iterator[Batch]:
    """Endless batches of at most `budget` tokens (or one object), each with the state of the stream behind it."""
    sizes = stream.index.tokens(patch)
    numbers: list[int] = []
    tokens: list[Tokens] = []
    hidden: list[np.ndarray] = []
    used = 0
    state = stream.state()
    for epoch, number, pixels in stream:
        if numbers and used + sizes[number] > budget:
            yield replace(collate(numbers, tokens, hidden), state=state)
            numbers, tokens, hidden, used = [], [], [], 0
        numbers.append(number)
        tokens.append(tokenize(pixels, patch))
        hidden.append(hide(len(tokens[-1].values), mask, (stream.seed, epoch, number)))
        used += int(sizes[number])
        state = stream.state()


def in_order(index: DataIndex, numbers: np.ndarray, block: int = 32, comm: Any = None) -> Iterator[tuple[int, Pixels]]:
    """(number, pixels) of the objects with these increasing numbers, read block by block."""
    reader = BlockReader(index, comm)
    for shard in range(len(index.shards)):
        inside = numbers[(numbers >= index.offsets[shard]) & (numbers < index.offsets[shard + 1])]
        for i in range(0, len(inside), block):
            some = inside[i : i + block]
            start = int(some[0])
            pixels = reader.read(shard, start, int(some[-1]) + 1)
            yield from ((int(n), pixels[int(n) - start]) for n in some)
    reader.close()


def ordered_batches(index: DataIndex, numbers: np.ndarray, patch: int, budget: int, comm: Any = None) -> Iterator[Batch]:
    """The objects with these increasing numbers once, in batches of at most `budget` tokens, nothing hidden."""
    held: list[tuple[int, Tokens]] = []
    used = 0
    for number, pixels in in_order(index, numbers, comm=comm):
        tokens = tokenize(pixels, patch)
        if held and used + len(tokens.values) + 1 > budget:
            yield collate([n for n, _ in held], [t for _, t in held])
            held, used = [], 0
        held.append((number, tokens))
        used += len(tokens.values) + 1
    if held:
        yield collate([n for n, _ in held], [t for _, t in held])


def prefetch(items: Iterable[T], depth: int) -> Iterator[T]:
    """The same items, prepared ahead by a background thread, at most `depth` at a time; its errors are raised here.

    Closed, it returns once the thread has let go of `items`.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> bool:
        while not stop.is_set():
            try:
                ready.put(entry, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    thread = threading.Thread(target=work, daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
