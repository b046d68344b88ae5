r"""The service: image queries per second and their latency, next to the Python API and a plain FastAPI handler.

    python benchmarks/service.py --connections 1 8 64

EfficientNet-Lite0, exported for OpenVINO, searches an index of synthetic vectors. Every contender is a process of its
own, all in turn in each round, and gets the same JPEGs of `clothing` ($LOOKALIKE_SHARED/data). Clients are a second
process with one thread, which shares the cores; they keep their connections. *Model only* computes decoded pixels in
batches; *decode and model* is `encoder.embed` with all images at once; *Python loop* calls `search` of a loaded index
for one image after the other, as *plain FastAPI* does in its thread pool.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from contest import answer, contest, make_parser, save_result, shared_folder

BASELINE = "Python loop"
MODEL, ALL, LOOP = "model only", "decode and model, all at once", BASELINE
SERVED = ("lookalike serve", "plain FastAPI")
WARM_UP_S = 2.0


def main() -> None:
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--data", type=Path, default=shared_folder() / "data" / "clothing")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--images", type=int, default=200, help="number of different queries")
    parser.add_argument("--count", type=int, default=100_000, help="vectors in the index")
    parser.add_argument("--seconds", type=float, default=10.0, help="duration of each measurement")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    args = parser.parse_args()
    if args.contender:
        measure(args.contender, args.work, args.seconds)
        return
    contenders = [MODEL, ALL, LOOP]
    contenders += [f"{server}, {number} connections" for server in SERVED for number in args.connections]
    contenders += [f"lookalike serve, {args.connections[-1]} connections, vectors"]
    with tempfile.TemporaryDirectory() as work:
        prepare(Path(work), args.data, args.backbone, args.images, args.count)
        result = contest(
            __file__,
            contenders,
            args.rounds,
            arguments=["--work", work, "--seconds", str(args.seconds)],
            baseline=BASELINE,
            facts={"backbone": args.backbone, "data": args.data.name, "count": args.count},
            environment=lambda _: {"LOOKALIKE_CACHE": f"{work}/cache"},
        )
    complete = args.count == parser.get_default("count") and args.seconds >= parser.get_default("seconds")
    save_result("service", result, complete=complete, folder=args.out)


def prepare(work: Path, data: Path, backbone: str, images: int, count: int) -> None:
    """Export the model, write an index of random vectors that has it, and copy the queries."""
    import shutil

    import numpy as np

    import lookalike as la
    from lookalike.progress import SILENT
    from lookalike.types import l2_normalize

    items = la.load_dataset(data)
    (work / "queries").mkdir()
    for number, item in enumerate(items.gallery[:images]):
        shutil.copyfile(item.path, work / "queries" / f"{number:04}.jpg")
    la.index(work / "queries", backbone, out=work / "first.index", runtime="torch", progress=SILENT)
    la.export(work / "first.index" / "model", out=work / "exported", progress=SILENT)
    encoder = la.load_encoder(work / "exported")
    vectors = l2_normalize(np.random.default_rng(0).standard_normal((count, encoder.dim), np.float32))
    ids = tuple(f"{number:07}" for number in range(count))
    embeddings = la.Embeddings(ids, vectors, encoder.fingerprint, (), encoder.precision)
    la.Index.build(embeddings, progress=SILENT).save(work / "large.index")
    shutil.copytree(work / "exported", work / "large.index" / "model")
    np.save(work / "vectors.npy", vectors[:images])


def measure(contender: str, work: Path, seconds: float) -> None:
    """Measure one contender and print its figures."""
    server, _, rest = contender.partition(", ")
    if server in SERVED:
        measure_server(server, int(rest.split()[0]), work, seconds, vectors=rest.endswith("vectors"))
        return
    import lookalike as la
    from lookalike.models.pipeline import as_sources
    from lookalike.progress import SILENT
    from lookalike.runtimes.graphs import SINGLE_MAX
    from lookalike.runtimes.select import measure_rate, sample_pixels

    queries = [path.read_bytes() for path in sorted((work / "queries").iterdir())]
    loaded = la.load_index(work / "large.index")
    if contender == MODEL:
        (member,) = loaded.encoder.prepare((), SINGLE_MAX + 1, SILENT).members
        pixels = sample_pixels(member.preprocessing, as_sources(queries))
        answer(per_second=measure_rate(member.backbone, pixels, seconds))
        return
    if contender == ALL:
        loaded.encoder.embed(queries, progress=SILENT)
        clock, done = time.perf_counter(), 0
        while time.perf_counter() - clock < seconds:
            loaded.encoder.embed(queries, progress=SILENT)
            done += len(queries)
        answer(per_second=done / (time.perf_counter() - clock))
        return
    times = []
    end = time.perf_counter() + WARM_UP_S + seconds
    while (clock := time.perf_counter()) < end:
        loaded.search([queries[len(times) % len(queries)]], top_k=10, progress=SILENT)
        times.append((clock, time.perf_counter()))
    report(times, end - seconds, end)


def measure_server(server: str, connections: int, work: Path, seconds: float, *, vectors: bool) -> None:
    """Start a server as a process, send requests from this one, and print the figures."""
    folder = str(work / "large.index")
    code = f"import lookalike as la; la.serve([{folder!r}], port=0, on_start=print)"
    if server != SERVED[0]:
        here = str(Path(__file__).parent)
        code = f"import sys; sys.path.insert(0, {here!r}); import plain_service; plain_service.run({folder!r})"
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        port = int(address.rpartition(":")[2])
        times: list[tuple[float, float]] = []
        end = time.perf_counter() + WARM_UP_S + seconds
        asyncio.run(send_all(port, requests(work, vectors=vectors), connections, end, times))
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        memory = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024 / 1e6
        report(times, end - seconds, end, server_memory_mb=memory)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def requests(work: Path, *, vectors: bool) -> list[bytes]:
    """Return whole requests, ready to be sent."""
    if vectors:
        import numpy as np

        bodies = [json.dumps({"vector": row.tolist()}).encode() for row in np.load(work / "vectors.npy")]
        return [head(len(body), "application/json") + body for body in bodies]
    whole = []
    for path in sorted((work / "queries").iterdir()):
        start = (
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="q.jpg"\r\nContent-Type: image/jpeg\r\n\r\n'
        )
        body = start + path.read_bytes() + b"\r\n--b--\r\n"
        whole.append(head(len(body), "multipart/form-data; boundary=b") + body)
    return whole


def head(length: int, kind: str) -> bytes:
    fields = f"Host: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {length}"
    return f"POST /v1/search?k=10 HTTP/1.1\r\n{fields}\r\n\r\n".encode()


async def send_all(
    port: int, bodies: list[bytes], connections: int, end: float, times: list[tuple[float, float]]
) -> None:
    """Send requests over several connections until the end, each after the answer to the last."""

    async def send(first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = first
        while (clock := time.perf_counter()) < end:
            writer.write(bodies[number % len(bodies)])
            header = await reader.readuntil(b"\r\n\r\n")
            if not header.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(header.decode())
            length = int(header.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            times.append((clock, time.perf_counter()))
            number += connections
        writer.close()

    await asyncio.gather(*(send(number) for number in range(connections)))


def report(times: list[tuple[float, float]], start: float, end: float, **figures: float) -> None:
    """Print the rate and the latency of what ended between two times."""
    latencies = sorted(1000 * (after - before) for before, after in times if start <= after < end)
    if len(latencies) < 10:
        raise RuntimeError(f"only {len(latencies)} requests were answered")
    percentiles = {f"p{n}_ms": latencies[min(len(latencies) - 1, len(latencies) * n // 100)] for n in (50, 99)}
    answer(per_second=len(latencies) / (end - start), **percentiles, **figures)


if __name__ == "__main__":
    main()
