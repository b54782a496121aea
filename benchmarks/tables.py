"""Generate the documentation's tables of measured figures, so that no figure is typed by hand.

    pytest benchmarks -o addopts= --benchmark-only --benchmark-json=benchmarks/results/cpu.json
    python benchmarks/memory.py > benchmarks/results/memory.jsonl
    python benchmarks/peers.py --json benchmarks/results/peers.json
    python benchmarks/commands.py photographs/ --json benchmarks/results/commands.json
    python benchmarks/decoding.py photographs/ --json benchmarks/results/decoding.json
    python benchmarks/gpu_report.py
    python benchmarks/precision.py --json benchmarks/results/precision.json
    python benchmarks/faults/damage.py > benchmarks/results/damage.json
    python benchmarks/faults/starts.py > benchmarks/results/starts.jsonl
    python benchmarks/faults/buckets.py > benchmarks/results/buckets.jsonl
    python benchmarks/tables.py

Reads `benchmarks/results/` and writes `docs/measured/*.md`, which `docs/performance.md` shows, and the table of other
tools in the README, between its marks.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from gpu_tables import gpu_tables

HERE = Path(__file__).parent
RESULTS = HERE / "results"
MEASURED = HERE.parent / "docs" / "measured"
README = HERE.parent / "README.md"
MARKS = ("<!-- peers: made by benchmarks/tables.py -->", "<!-- /peers -->")


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *rows]) + "\n"


def machine(results: dict[str, Any]) -> str:
    """Return the machine, software and date of a measurement."""
    found = results["machine_info"]
    cpu = found["cpu"]
    threads = {b["extra_info"]["threads"] for b in results["benchmarks"] if "threads" in b["extra_info"]}
    return (
        f"{cpu['brand_raw']}, {cpu['count']} cores, {', '.join(map(str, sorted(threads)))} threads, "
        f"{found['system']}, Python {found['python_version']}, {results['datetime'][:10]}.\n"
    )


def where_measured(found: dict[str, Any]) -> str:
    """Return the machine of a file of results, as far as it says, the software and the date."""
    threads = [f"{found['threads']} threads"] if "threads" in found else []
    torch = [f"torch {found['torch']}"] if "torch" in found else []
    return ", ".join([found["processor"], *threads, *torch, found["date"]])


def ratio(found: dict[str, Any]) -> str:
    """Return a ratio with the lowest and the highest of a round."""
    return f"{found['ratio']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})"


def kernels(results: dict[str, Any]) -> str:
    """Return the table of the fused kernel by shape: its time, and that of the others relative to it."""
    medians: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for b in results["benchmarks"]:
        info = b["extra_info"]
        if "way" in info:
            medians[info["shape"], info["what"]][info["way"]] = b["stats"]["median"]
    rows = [
        [
            f"{shape}, {what}",
            f"{1e3 * ways['fused']:.2f} ms",
            f"{ways['plain torch'] / ways['fused']:.1f}",
            f"{ways['float64 reference'] / ways['fused']:.0f}",
        ]
        for (shape, what), ways in medians.items()
    ]
    return table(
        ["maps (C x H x W) of 32 images", "fused kernel", "plain torch, times", "reference, times"], rows
    )


def memory(lines: list[dict[str, Any]]) -> str:
    """Return the table of peak memory and store sizes."""
    rows = [
        [
            f"{line['arch']}, {line['images']:,} images",
            f"{line['peak_mib']:,.0f} MiB",
            f"{line['store_bytes_an_image'] / 1e3:.1f} kB",
            f"{50_000 * line['store_bytes_an_image'] / 1e9:.1f} GB",
            f"{line['seconds']:.0f} s",
        ]
        for line in lines
        if "images" in line
    ]
    return table(["sweep", "peak memory", "store, an image", "store, 50,000 images", "time"], rows)


def peers(results: dict[str, Any]) -> str:
    """Return the table that compares actstats with other tools, with a note on how it was measured."""
    ways = [way for way in results["ways"] if "missing" not in way]
    rows = [
        [
            way["what"],
            ratio(way),
            f"{way['cpu_ratio']:.2f}",
            f"{way['peak_mib']:,.0f} MiB",
            f"{way['disk_bytes_an_image'] / 1e3:,.0f} kB" if way["disk_bytes_an_image"] else "",
        ]
        for way in ways
    ]
    head = [
        "statistics and tool",
        "time / bare forward pass",
        "CPU time / bare",
        "peak memory",
        "disk per image",
    ]
    rounds = " to ".join(dict.fromkeys(str(f(way["rounds"] for way in ways)) for f in (min, max)))
    where = (
        f"{results['arch']}, batches of {results['batch']}, {rounds} rounds, "
        f"{where_measured(results)}. "
        "In brackets: the lowest and the highest ratio of a round. Stores are measured before compression."
        + (
            " Other processes ran on the machine, so the CPU times are more reliable."
            if results["shared"]
            else ""
        )
    )
    return f"{table(head, rows)}\n{where}\n"


def commands(results: dict[str, Any]) -> str:
    """Return the table of whole commands relative to those that they replace."""
    rows = [
        [
            f"{line['way']}, compared with {line['base']}",
            ratio(line),
            f"{line['cpu_ratio']:.2f}",
            f"{line['seconds']:.0f} s",
            f"{line['base_seconds']:.0f} s",
        ]
        for line in results["comparisons"]
    ]
    where = (
        f"Medians of {results['rounds']} rounds, in brackets the lowest and the highest; {results['images']} "
        f"photographs, {where_measured(results)}."
    )
    head = ["command", "time / other", "CPU time / other", "time", "time of the other"]
    return f"{table(head, rows)}\n{where}\n"


def durability(lines: list[dict[str, Any]]) -> str:
    """Return the table of what durability and checksums cost."""
    ways = list(dict.fromkeys(line["way"] for line in lines))
    found: dict[str, list[str]] = defaultdict(list)
    for line in lines:
        found[line["what"]].append(f"{line['seconds']:.2f} s ({line['ratio']:.2f})")
    rows = [[what, *cells] for what, cells in found.items()]
    where = (
        f"Medians of one run per row, in brackets relative to the first column. {where_measured(lines[-1])}."
    )
    return f"{table(['written', *ways], rows)}\n{where}\n"


def damage(results: dict[str, Any]) -> str:
    """Return the table of trials of `faults/damage.py`: tried and held, by kind of object."""
    trials = {(line["object"], line["what"]): line for line in results["trials"]}
    columns = list(dict.fromkeys(what for _, what in trials))
    rows = [
        [
            kind,
            *(
                f"{line['tried']:,} / {line['held']:,}" if (line := trials.get((kind, what))) else ""
                for what in columns
            ),
        ]
        for kind in dict.fromkeys(kind for kind, _ in trials)
    ]
    where = f"Trials / those that held. {results['note']}"
    return f"{table(['object', *columns], rows)}\n{where}\n"


def faults(lines: list[dict[str, Any]]) -> str:
    """Return the table of trials of `faults/starts.py` or `faults/buckets.py`: tried and held, by kind."""
    rows = [[line["what"], f"{line['tried']:,}", f"{line['held']:,}"] for line in lines]
    return table(["fault", "tried", "held"], rows)


def cluster(lines: list[dict[str, Any]]) -> str:
    """Return the table of figures of a cluster on one machine."""
    by_kind = defaultdict(list)
    for line in lines:
        by_kind[line["what"]].append(line)
    rows = [
        ["overhead per partition of one worker over TCP", f"{line['ms_overhead']:.0f} ms"]
        for line in by_kind["overhead"]
    ]
    for line in by_kind["scheduler"]:
        what = f"{line['workers']} workers, {line['partitions']:,} partitions of a second"
        late = line["seconds"] / line["seconds_ideal"]
        rows.append([f"{what}: CPU of the scheduler", f"{line['scheduler_cores']:.2f} cores"])
        rows.append([f"{what}: time relative to the least possible", f"{late:.2f}"])
    if ratios := [line["ratio"] for line in by_kind["speed"]]:
        images = by_kind["speed"][0]["images"]
        of_all = {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
        what = f"two workers of one core, {images:,} images: time relative to one process of two cores"
        rows.append([what, ratio(of_all)])
    if trials := by_kind["trial"]:
        rows.append(["sweeps with workers and scheduler killed, equal in every byte", f"{len(trials)}"])
    return f"{table(['on one machine', 'measured'], rows)}\n{where_measured(lines[-1])}.\n"


def analyses(lines: list[dict[str, Any]]) -> str:
    """Return the table of whole commands that analyse stores, by themselves and on a cluster."""
    sizes = sorted({line["workers"] for line in lines})
    found: dict[tuple[str, int], dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        found[line["analysis"], line["images"]][line["workers"]] = line
    head = ["command", "images", "time", "peak memory"]
    head += [f"time, {size} workers" if size > 1 else "time, 1 worker" for size in sizes[1:]]
    rows = [
        [
            analysis,
            f"{images:,}",
            f"{ways[0]['seconds']:.0f} s",
            f"{ways[0]['peak_mib']:,} MiB",
            *(f"{ways[size]['seconds']:.0f} s" if size in ways else "" for size in sizes[1:]),
        ]
        for (analysis, images), ways in found.items()
    ]
    return f"{table(head, rows)}\n{where_measured(lines[-1])}.\n"


def decoding(results: dict[str, Any]) -> str:
    """Return the table of ways to decode and preprocess a JPEG."""
    rows = [
        [
            f"{way}, {size} pixels",
            f"{found['milliseconds']:.1f} ms",
            f"{1e3 / found['milliseconds']:.0f}",
            ratio(found),
        ]
        for size, ways in results["sizes"].items()
        for way, found in ways.items()
    ]
    where = (
        f"CPU time of one thread, {results['timed']} photographs, the minimum of {results['rounds']} rounds; "
        "ratios are medians, in brackets the lowest and the highest of a round. "
        f"{where_measured(results)}. The pixels of {results['images']:,} photographs, "
        f"{results['by_simplejpeg']:,} of them decoded by simplejpeg, were compared at both sizes: "
        f"{results['differing']:,} differ."
    )
    head = ["from JPEG to pixels", "per photograph", "photographs/s per core", "time / Pillow"]
    return f"{table(head, rows)}\n{where}\n"


def precision(results: dict[str, Any]) -> str:
    """Return the table of differences by statistic, and for each reduced precision a table by block of layers."""
    ways = results["ways"]
    names = list(next(iter(ways.values())))
    kinds = ("median", "99 %", "greatest")
    head = ["statistic", *(f"{way}, {kind}" for way in ways for kind in kinds)]
    rows = [[name, *(_share(ways[way][name][kind]) for way in ways for kind in kinds)] for name in names]
    text = table(head, rows)
    for way in (way for way in ways if way != "compiled"):
        blocks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        for name in names:
            for layer, value in ways[way][name]["layers"].items():
                blocks[layer.partition(".")[0]][name].append(value)
        of_blocks = [
            [block, *(_share(statistics.median(found[name])) if found[name] else "" for name in names)]
            for block, found in blocks.items()
        ]
        text += f"\nThe median unit in {way}, by block:\n\n{table(['layers', *names], of_blocks)}"
    return (
        f"{text}\n{results['arch']} with its {results['weights']} weights, {results['images']} images, "
        f"{where_measured(results)}.\n"
    )


def _share(value: float | None) -> str:
    return (
        ""
        if value is None
        else "0"
        if value == 0
        else f"{value:.1e}"
        if value < 1e-3
        else f"{100 * value:.2g} %"
    )


def into_readme(made: str) -> None:
    """Replace the text between the README's marks with `made`."""
    text = README.read_text()
    before, rest = text.split(MARKS[0])
    _, after = rest.split(MARKS[1])
    README.write_text(f"{before}{MARKS[0]}\n\n{made}\n{MARKS[1]}{after}")


def main() -> None:
    """Write the tables for which there are results."""
    MEASURED.mkdir(exist_ok=True)
    if (file := RESULTS / "cpu.json").exists():
        results = json.loads(file.read_text())
        for name, make in (("machine", machine), ("kernels", kernels)):
            (MEASURED / f"{name}.md").write_text(make(results))
    by_line = {
        "memory": memory, "durability": durability, "cluster": cluster,
        "starts": faults, "buckets": faults,
        "analyses": analyses, "counterparts": analyses,
    }  # fmt: skip
    for name, make in by_line.items():
        if (file := RESULTS / f"{name}.jsonl").exists():
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            (MEASURED / f"{name}.md").write_text(make(lines))
    for file in RESULTS.glob("peers*.json"):
        made = peers(json.loads(file.read_text()))
        (MEASURED / f"{file.stem}.md").write_text(made)
        if file.stem == "peers":
            into_readme(made)
    if (file := RESULTS / "gpu.json").exists():
        for name, made in gpu_tables(json.loads(file.read_text())).items():
            (MEASURED / f"{name}.md").write_text(made)
    for name, make in (
        ("commands", commands),
        ("decoding", decoding),
        ("precision", precision),
        ("damage", damage),
    ):
        if (file := RESULTS / f"{name}.json").exists():
            (MEASURED / f"{name}.md").write_text(make(json.loads(file.read_text())))


if __name__ == "__main__":
    main()
