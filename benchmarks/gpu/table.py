"""Holds every row against the ceilings that were measured in the same run, and prints a table."""

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
    measured = {row["name"]: row for row in rows if row["part"] == "bandwidth"}
    ceilings = {
        "copy_gb_per_s": measured.get("copy", {}).get("gb_per_s"),
        "read_gb_per_s": measured.get("read", {}).get("gb_per_s"),
        "tflop_per_s": measured.get("matmul bf16", {}).get("tflop_per_s"),
    }
    for row in rows:
        for rate, ceiling in (("gb_per_s", "read_gb_per_s"), ("tflop_per_s", "tflop_per_s")):
            if rate in row and ceilings[ceiling] and row["part"] != "bandwidth":
                row["fraction_of_ceiling"] = row[rate] / ceilings[ceiling]
    return {name: value for name, value in ceilings.items() if value}


def print_table(result: dict[str, Any]) -> None:
    """Failures in full, then a line per figure; checks that passed are only counted."""
    print(f"\n=== {result['device']}  {result['driver'] or ''}  commit {(result['commit'] or '?')[:10]}")
    print("    " + "  ".join(f"{name} {version}" for name, version in result["versions"].items()))
    rows = result["rows"]
    checks = [row for row in rows if "ok" in row]
    print(f"{sum(row['ok'] for row in checks)} of {len(checks)} checks passed")
    for row in rows:
        if "failed" in row:
            print(f"FAILED  {row['part']:12} {row['name']}: {row['failed'].splitlines()[0][:150]}")
        elif row.get("ok") is False:
            print(f"WRONG   {row['part']:12} {row['name']}: error {row['error']:.1e} over {row['tolerance']:.0e}")
        elif "seconds" in row:
            print(_line(row))


def _line(row: Row) -> str:
    line = f"{row['part']:12} {row['name']:44} {row['seconds'] * 1e6:10.1f} us"
    if "gb_per_s" in row:
        line += f" {row['gb_per_s']:8.0f} GB/s"
    if "tflop_per_s" in row:
        line += f" {row['tflop_per_s']:7.1f} TFLOP/s"
    if "fraction_of_ceiling" in row:
        line += f" {row['fraction_of_ceiling']:6.1%}"
    if "tokens_per_s" in row:
        line += f" {row['tokens_per_s']:8d} tok/s"
    return line
