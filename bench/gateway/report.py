"""Rows of measurements, the conditions they were taken under, and the table: design.md's form of docs/benchmarks/NAME.json."""

import json
import math
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STARTED = time.monotonic()
rows, notes = [], []


def say(text):
    print(f"[{time.monotonic() - STARTED:5.0f} s] {text}", flush=True)


def note(text):
    notes.append(text)
    say(text)


def spread(values):
    return {"median": statistics.median(values), "least": min(values), "most": max(values), "repeats": len(values)}


def add_row(metric, unit, better, ours, peer=None, theirs=None, goal=None, least=1e-6):
    """`ours` and `theirs` are the measurements of the repeats. A goal that is a limit has the limit as its peer, and the goal 1. What
    is below `least` cannot be told from nothing, and counts as that in the ratio."""
    row = {"metric": metric, "unit": unit, "ours": statistics.median(ours), "better": better, "oursSpread": spread(ours)}
    if theirs:
        row |= {"peer": peer, "theirs": statistics.median(theirs), "theirsSpread": spread(theirs)}
        over, under = (row["ours"], row["theirs"]) if better == "higher" else (row["theirs"], row["ours"])
        row["ratio"] = max(over, least) / max(under, least)
    if goal is not None:
        row["goal"] = goal
    rows.append(row)


def compare(metric, unit, better, measured, goals=None, limit=None, least=1e-6):
    """A row for each peer that was measured, `measured` being {gateway: [value of each repeat]}."""
    ours = measured.get("fairlead")
    if not ours:
        return
    if limit is not None:
        add_row(metric, unit, better, ours, "limit", [limit], 1.0, least)
    peers = {name: values for name, values in measured.items() if name != "fairlead" and values}
    for name, values in peers.items():
        add_row(metric, unit, better, ours, name, values, (goals or {}).get(name), least)
    if not peers and limit is None:
        add_row(metric, unit, better, ours)


def conditions():
    def output(*command):
        try:
            return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    memory = next(line.split()[1] for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "machine": f"{cpu}, {os.cpu_count()} cores, {int(memory) >> 20} GiB, Linux {platform.release().split('-')[0]}",
        "commit": output("git", "describe", "--always", "--dirty"),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "loadAverage": list(os.getloadavg()),
    }


def number(value):
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 100 else f"{value:.0f}"


def table():
    lines = [("metric", "ours", "peer", "theirs", "ratio", "goal", "unit")]
    for row in rows:
        width = row["oursSpread"]
        ours = f"{number(row['ours'])} ({number(width['least'])}..{number(width['most'])})"
        ratio = number(float(row["ratio"])) if "ratio" in row else ""
        goal = f"{row['goal']:g}{'' if row.get('ratio', 0) >= row['goal'] else ' missed'}" if "goal" in row else ""
        theirs = number(row["theirs"]) if "theirs" in row else ""
        lines.append((row["metric"], ours, row.get("peer", ""), theirs, ratio, goal, row["unit"]))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def write(target, described):
    finite = lambda value: not isinstance(value, float) or math.isfinite(value)
    assert all(finite(value) for row in rows for value in row.values())
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"conditions": described, "rows": rows}, indent=2) + "\n")
    print(f"written: {target}")
