"""Tables of the documentation from a report of `gpu_report.py`; `tables.py` writes them."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]


def gpu_tables(report: dict[str, Rows]) -> dict[str, str]:
    """Return the tables by the name of their file in `docs/measured/`."""
    return {
        "gpu_machine": machine(report["machine"][0]),
        "gpu_summary": summary(report["forward"] + report["everything else"]),
        "gpu_forward": forward(report["forward"] + report["everything else"]),
        "gpu_kernels": kernels(report["kernels"], report["everything else"]),
        "gpu_compiled": compiled(report["compiled"]),
        "gpu_trace": trace(report["trace"]),
        "gpu_sweeps": sweeps(report["sweeps"] + report["JPEGs"]),
    }


def machine(found: dict[str, Any]) -> str:
    """Return the device, the software, the date and the measured bandwidth."""
    return (
        f"{found['device']}, driver {found['driver']}, CUDA {found['cuda']}, torch {found['torch'].split('+')[0]}, "
        f"Triton {found['triton']}, Python {found['python']}, {found['cores']} CPU cores, {found['date'][:10]}. "
        f"A copy moves {found['copy GB/s'] / 1e3:.2f} TB/s (bytes read and written).\n"
    )


def summary(rows: Rows) -> str:
    """Return the table of what the statistics cost in bf16, by network."""
    from tables import table

    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        if row.get("dtype") == "bf16" and "network" in row:
            found.setdefault(row["network"], {})[row["what"]] = row
    ways = ("everything", "moments, histogram", "plain torch, everything")
    return table(
        ["bf16", "bare (images/s)", *(f"{way} / bare" for way in ways)],
        [
            [
                network,
                f"{by['everything']['bare images/s']:,.0f}",
                *(f"{by[way]['over forward']:.2f}" if way in by else "" for way in ways),
            ]
            for network, by in found.items()
        ],
    )


def forward(rows: Rows) -> str:
    """Return the table of forward passes with statistics in the hooks, relative to bare ones."""
    from tables import table

    lines = [
        [
            f"{row['network']}, {row['dtype']}: {row['what']}",
            f"{row['bare images/s']:,.0f}",
            f"{row['images/s']:,.0f}",
            f"{row['over forward']:.2f}",
            f"{row['device ms'] / row['bare device ms']:.2f}",
            f"{row['host ms']:.0f}",
            f"{row['device ms']:.0f}",
            f"{row['floor µs']:.1f}",
            f"{row['device floors']:.1f}" if row["device floors"] > 0 else "in the noise",
        ]
        for row in rows
        if "network" in row
    ]
    head = [
        "batch of 256", "bare (images/s)", "with statistics (images/s)", "over bare", "on the device alone",
        "issuing (ms)", "device (ms)", "one read (µs an image)", "added reads",
    ]  # fmt: skip
    return table(head, lines)


def kernels(rows: Rows, others: Rows) -> str:
    """Return the table of the kernels on maps of one size."""
    from tables import table

    plain = {
        tuple(row["maps"]): row["ms"]
        for row in others
        if row["what"] == "plain torch, everything" and "maps" in row
    }
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["dtype"], *row["maps"]), {})[row["what"]] = row
    lines = []
    for (dtype, *maps), by in found.items():
        times = [
            f"{1e3 * by[what]['ms']:.0f}"
            for what in ("moments", "histogram", "moments, histogram", "spectrum", "everything")
        ]
        own = plain.get(tuple(maps)) if dtype == "bf16" else None
        lines.append(
            [
                f"{' x '.join(map(str, maps[1:]))}, {dtype}",
                *times,
                f"{100 * by['moments']['share of copy']:.0f} %",
                f"{by['spectrum']['TFLOP/s executed']:.0f}",
                "" if own is None else f"{own / by['everything']['ms']:.1f}",
            ]
        )
    head = [
        "256 images", "moments (µs)", "histogram (µs)", "both (µs)", "spectrum (µs)", "everything (µs)",
        "moments: share of a copy's rate", "spectrum (TFLOP/s)", "plain torch over everything",
    ]  # fmt: skip
    return table(head, lines)


def compiled(rows: Rows) -> str:
    """Return the table of compiled networks."""
    from tables import table

    return table(
        [
            "batch of 256",
            "compiling (s)",
            "images/s",
            "over the bare eager pass",
            "issuing (ms)",
            "device (ms)",
        ],
        [
            [
                f"{row['network']}, {row['dtype']}: {row['what']}",
                f"{row['compile s']:.0f}",
                f"{row['images/s']:,.0f}",
                f"{row['over eager bare']:.2f}",
                f"{row['host ms']:.0f}",
                f"{row['device ms']:.0f}",
            ]
            for row in rows
            if "network" in row
        ],
    )


def trace(rows: Rows) -> str:
    """Return the table of device time by kernel."""
    from tables import table

    return table(
        [
            "GoogLeNet in bf16",
            "kernels a pass",
            "µs an image",
            "share of device time",
            "device idle",
            "calls that wait",
        ],
        [
            [
                f"{row['what']}: {row['kernels']}",
                f"{row['calls a pass']:.0f}",
                f"{row['µs an image']:.1f}",
                *(
                    f"{100 * row[key]:.0f} %" if key in row else ""
                    for key in ("share of device time", "share of time idle")
                ),
                str(row.get("calls that wait", "")),
            ]
            for row in rows
            if "kernels" in row
        ],
    )


def sweeps(rows: Rows) -> str:
    """Return the table of whole sweeps."""
    from tables import table

    return table(
        ["GoogLeNet, all statistics", "autocast", "images/s", "with start-up", "time waiting for data"],
        [
            [
                row["what"],
                row["amp"],
                f"{row['images/s']:,.0f}",
                f"{row['with start-up']:,.0f}",
                f"{100 * row['share of time waiting for data']:.0f} %",
            ]
            for row in rows
        ],
    )
