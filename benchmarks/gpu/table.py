"""Holds every row against the ceilings that were measured in the same run, and prints tables."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def derive(rows: list[Row]) -> dict[str, float]:
    """Adds rates, fractions of a ceiling and verdicts to the rows; returns the ceilings.

    Returns:
      copy_gb_per_s (bytes read and written), read_gb_per_s, tflop_per_s (bf16), as far as they were measured.
    """
    for row in rows:
        if "bytes" in row:
            row["gb_per_s"] = row["bytes"] / row["seconds"] / 1e9
        if "flops" in row:
            row["tflop_per_s"] = row["flops"] / row["seconds"] / 1e12
        if "error" in row:
            row["ok"] = row["error"] <= row["tolerance"]  # False for NaN.
    measured = {row["name"]: row for row in rows if row["part"] == "ceilings"}
    ceilings = {
        "copy_gb_per_s": measured.get("copy", {}).get("gb_per_s"),
        "read_gb_per_s": measured.get("read", {}).get("gb_per_s"),
        "tflop_per_s": measured.get("matmul bf16", {}).get("tflop_per_s"),
    }
    for row in rows:
        for rate, ceiling in (("gb_per_s", "read_gb_per_s"), ("tflop_per_s", "tflop_per_s")):
            if rate in row and ceilings[ceiling] and row["part"] != "ceilings":
                row["fraction_of_ceiling"] = row[rate] / ceilings[ceiling]
    return {name: value for name, value in ceilings.items() if value}


def print_table(result: dict[str, Any]) -> None:
    """What went wrong, then a line per thing timed with all its implementations, then the goals."""
    rows = result["rows"]
    checks = [row for row in rows if "ok" in row]
    print(f"\n{sum(row['ok'] for row in checks)} of {len(checks)} checks passed")
    for row in rows:
        if "failed" in row:
            print(f"FAILED    {_label(row)}: {row['failed'].splitlines()[0][:150]}")
        elif row.get("ok") is False:
            print(f"WRONG     {_label(row)}: error {row['error']:.1e} over {row['tolerance']:.0e}")
        elif "left_out" in row:
            print(f"left out  {_label(row)}: {row['left_out'][:150]}")
    timed: dict[str, list[Row]] = {}
    for row in rows:
        if "seconds" in row:
            timed.setdefault(row["name"], []).append(row)
    for name, alike in timed.items():
        print(f"{name:42} " + " | ".join(map(_figures, alike)))
    for goal in result["goals"]:
        print(_goal_line(goal))
    print(f"=== {result['device']}  {result['driver'] or ''}  commit {(result['commit'] or '?')[:10]}")
    print("    " + "  ".join(f"{name} {version}" for name, version in result["versions"].items()))
    print("    " + "  ".join(f"{name} {value:.0f}" for name, value in result["ceilings"].items()))


def _label(row: Row) -> str:
    return ", ".join(filter(None, (row["part"], row["name"], row.get("impl"))))


def _figures(row: Row) -> str:
    parts = [row.get("impl", ""), _time(row["seconds"])]
    if "gb_per_s" in row:
        parts.append(f"{row['gb_per_s']:.0f} GB/s")
    if "tflop_per_s" in row:
        parts.append(f"{row['tflop_per_s']:.1f} TFLOP/s")
    if "fraction_of_ceiling" in row:
        parts.append(f"{row['fraction_of_ceiling']:.1%}")
    if "tokens_per_s" in row:
        parts.append(f"{row['tokens_per_s']} tok/s")
    if "idle_fraction" in row:
        parts.append(f"idle {row['idle_fraction']:.1%}")
    return " ".join(filter(None, parts))


def _time(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.1f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _goal_line(goal: dict[str, Any]) -> str:
    def text(value: float | None) -> str:
        if value is None:
            return "not measured"
        return _time(value) if goal["unit"] == "s" else f"{value:.3g} {goal['unit']}"

    verdict = {None: "", True: "reached", False: "MISSED"}[goal["reached"]]
    bound = f">= {text(goal['at_least'])}" if goal["at_least"] is not None else f"<= {text(goal['at_most'])}"
    known = f"  (known: {goal['known']})" if goal["known"] else ""
    return f"goal  {goal['what']:30} {text(goal['figure']):28} {bound:32} {verdict}{known}"
