"""The indexes of a service, their encoders, and how they are exchanged while it serves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from lookalike._system import cpu_count
from lookalike.api.search import LoadedIndex, load_index
from lookalike.errors import LookalikeError, OptionError
from lookalike.models.bundle import MODEL_FOLDER, read_bundle_info
from lookalike.models.info import BundleInfo
from lookalike.progress import SILENT
from lookalike.server.access import Access, Token
from lookalike.server.audit import AuditLog
from lookalike.server.batching import EmbeddingQueue
from lookalike.server.monitoring import Monitor
from lookalike.server.options import ServiceOptions
from lookalike.server.problems import Problem

_log = logging.getLogger("lookalike.server")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
T = TypeVar("T")


def name_indexes(indexes: Sequence[Path | str] | Mapping[str, Path | str]) -> dict[str, Path]:
    """Return index folders by name: as it is set, else the folder's name without `.index`."""
    if isinstance(indexes, Mapping):
        named = {name: Path(path) for name, path in indexes.items()}
    else:
        named = {}
        for path in map(Path, indexes):
            name = path.resolve().name.removesuffix(".index")
            if name in named:
                raise OptionError(
                    f"two indexes have the name {name!r}, {named[name]} and {path}; give them names.",
                    argument="indexes",
                )
            named[name] = path
    if not named:
        raise OptionError("`indexes` must hold at least one index, got none.", argument="indexes")
    for name in named:
        if not _NAME.fullmatch(name):
            raise OptionError(
                f"the name of an index must be up to 64 letters, digits, or any of . _ -, got {name!r}; "
                "give it another name.",
                argument="indexes",
            )
    return named


@dataclass(eq=False)
class ServedIndex:
    """An index that is being served, until another one takes its place.

    Attributes:
        name: in the address.
        loaded: the index and its encoder.
        queue: what embeds its queries.
        model: the record of its model.
        requests: how many use it now.
        compacting: whether it is being compacted.

    """

    name: str
    loaded: LoadedIndex
    queue: EmbeddingQueue
    model: BundleInfo
    requests: int = 0
    compacting: bool = False


@dataclass(eq=False)
class Service:
    """What a running service holds.

    Attributes:
        paths: the folders of the indexes, by name; the first one is the default.
        options: its limits.
        access: who may use it.
        audit: where changes are recorded.
        monitor: its counts and times.
        state: starting, ready or stopping.

    """

    paths: Mapping[str, Path]
    options: ServiceOptions
    tokens: tuple[Token, ...] = ()
    audit: AuditLog = field(default_factory=AuditLog)
    monitor: Monitor = field(default_factory=Monitor)
    state: str = "starting"

    def __post_init__(self) -> None:
        self.access = Access(self.options, self.tokens)
        self._indexes: dict[str, ServedIndex] = {}
        self._retired: list[ServedIndex] = []
        self._loading = threading.Lock()
        self._decoders = ThreadPoolExecutor(cpu_count(), thread_name_prefix="decoding")
        self._workers = ThreadPoolExecutor(cpu_count(), thread_name_prefix="search")
        self.monitor.watch_queue(lambda: sum(map(len, self.queues)))

    @property
    def queues(self) -> list[EmbeddingQueue]:
        """The queues in use, each once."""
        return list(dict.fromkeys(served.queue for served in self._indexes.values()))

    @property
    def indexes(self) -> dict[str, ServedIndex]:
        """The indexes by name."""
        return dict(self._indexes)

    def load(self) -> None:
        """Load every index, or load it again: requests that have begun finish with the one that they have.

        Raises:
            LookalikeError: one cannot be loaded; then all stay as they are.

        """
        with self._loading:
            old = self._indexes
            queues = {_key(queue): queue for queue in self.queues}
            new: dict[str, ServedIndex] = {}
            for name, path in self.paths.items():
                loaded = load_index(path)
                key = loaded.encoder.fingerprint, loaded.encoder.precision
                if key not in queues:
                    queues[key] = EmbeddingQueue(loaded.encoder, self.options, self.monitor, self._decoders)
                new[name] = ServedIndex(name, loaded, queues[key], read_bundle_info(path / MODEL_FOLDER))
            self._indexes = new
            for name in new:
                self.monitor.watch_index(name, partial(self._count, name))
            self._retired += old.values()
            self._close_retired()

    def _count(self, name: str) -> int:
        return len(self._indexes[name].loaded.index)

    def _close_retired(self) -> None:
        """End the queues that nothing uses any more."""
        used = {*self.queues, *(served.queue for served in self._retired if served.requests)}
        for queue in {served.queue for served in self._retired} - used:
            queue.close()
        for served in self._retired:
            if not served.requests:
                served.loaded.index.close()
        self._retired = [served for served in self._retired if served.requests]

    def close(self) -> None:
        """Finish what is waiting and end all threads."""
        self.state = "stopping"
        for queue in {*self.queues, *(served.queue for served in self._retired)}:
            queue.close()
        self._decoders.shutdown()
        self._workers.shutdown()
        for served in (*self._indexes.values(), *self._retired):
            served.loaded.index.close()

    @contextlib.asynccontextmanager
    async def use(self, name: str | None) -> AsyncIterator[ServedIndex]:
        """Keep an index, the default one for None, until the end of the block."""
        served = self._indexes.get(next(iter(self._indexes), "") if name is None else name)
        if served is None:
            raise Problem("not-found", f"there is no index {name!r}; the indexes are {', '.join(self._indexes)}.")
        served.requests += 1
        try:
            yield served
        finally:
            served.requests -= 1

    async def change(
        self, served: ServedIndex, token: Token | None, action: str, item: str, work: Callable[[], T]
    ) -> T:
        """Change an index in a thread and record it in the audit log; compact one that many changes have made slow."""

        def recorded() -> T:
            result = work()
            self.audit.write(token, action, served.name, item)
            return result

        result = await self.run("change", recorded)
        if served.loaded.index.needs_compaction and not served.compacting:
            served.compacting = True
            self._workers.submit(self._compact, served)
        return result

    def _compact(self, served: ServedIndex) -> None:
        try:
            served.loaded.index.compact(progress=SILENT)
        except LookalikeError as error:
            _log.error("the index %s cannot be compacted: %s", served.name, error)
        finally:
            served.compacting = False

    async def run(self, stage: str, work: Callable[[], T]) -> T:
        """Do blocking work in a thread, and record its time."""

        def timed() -> T:
            with self.monitor.timed(stage):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._workers, timed)


def _key(queue: EmbeddingQueue) -> tuple[str, str]:
    return queue.encoder.fingerprint, queue.encoder.precision
