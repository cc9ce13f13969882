"""Sizes by device kind: which entry a call gets, what a damaged file says, and that the registry reads them."""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from sgjax.kernels import OP_NAMES, registry, resolve, tuning
from sgjax.kernels.cases import AttentionCase
from sgjax.kernels.tuning import Bucket, Tuned, read_ops, tuned_path, with_tuning, write_entries

CASE = AttentionCase(kv_lens=(5, 20), dtype="float32")
BUCKET = Bucket(head_dim=64, page_size=16, group=2, dtype="float32", rows=8)


@dataclasses.dataclass(frozen=True)
class Tuning:
    block: int = 64
    stages: int | None = None


def kernel(q, k_cache, *args, tuning=Tuning(), **kwargs):
    return tuning.block, tuning.stages


def test_a_call_gets_the_smallest_entry_that_is_large_enough(tmp_path: Path):
    path = tmp_path / "x.json"
    others = [dataclasses.replace(BUCKET, **change) for change in ({"head_dim": 128}, {"dtype": "bfloat16"})]
    sizes = {dataclasses.replace(BUCKET, rows=rows): Tuning(rows) for rows in (64, 8)} | dict.fromkeys(
        others, Tuning(1)
    )
    write_entries(path, {}, "paged_decode", [(bucket, chosen, {}) for bucket, chosen in sizes.items()])
    tuned = with_tuning("paged_decode", kernel, Tuning, path)
    for rows, block in ((1, 8), (8, 8), (9, 64), (64, 64), (500, 64)):
        case = dataclasses.replace(CASE, kv_lens=(5,) * rows)
        assert tuned(*case.shapes(), **case.kwargs) == (block, None)
    other = dataclasses.replace(CASE, page_size=64)
    assert tuned(*other.shapes(), **other.kwargs) == (64, None), "no entry: the default"
    assert with_tuning("paged_prefill", kernel, Tuning, path) is kernel, "an op without entries stays as it is"
    assert with_tuning("paged_decode", kernel, Tuning, path) == tuned
    assert hash(tuned), "it is a static argument of the jitted step"


def test_writing_keeps_what_was_there(tmp_path: Path):
    path = tmp_path / "new" / "x.json"
    rows = [dataclasses.replace(BUCKET, rows=rows) for rows in (128, 16)]
    write_entries(path, {"device": "A"}, "paged_decode", [(bucket, Tuning(1), {"us": 5.0}) for bucket in rows])
    write_entries(path, {"device": "A"}, "paged_prefill", [(BUCKET, Tuning(2), {})])
    write_entries(path, {"device": "A"}, "paged_decode", [(rows[0], Tuning(3, stages=4), {"us": 4.0})])
    assert json.loads(path.read_text())["device"] == "A"
    found = read_ops(path)
    assert [(entry["bucket"]["rows"], entry["tuning"]["block"]) for entry in found["paged_decode"]] == [
        (16, 1),
        (128, 3),
    ]
    assert found["paged_decode"][1]["us"] == 4.0
    assert len(found["paged_prefill"]) == 1


def _entries(text: str) -> str:
    return f'{{"ops": {{"paged_decode": [{text}]}}}}'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "not a file of tuned sizes"),
        (_entries("3"), "an entry is no object"),
        (_entries('{"tuning": {}}'), r"paged_decode\[0\] has no 'bucket'"),
        (_entries('{"bucket": {"rows": 4}, "tuning": {}}'), "missing .* 'head_dim'"),
        (_entries('{"bucket": BUCKET, "tuning": 3}'), "3 is no object"),
        (
            _entries('{"bucket": BUCKET, "tuning": {"blocks": 3}}'),
            "no 'blocks'; it has block, stages",
        ),
        (
            _entries('{"bucket": BUCKET, "tuning": {"block": "64"}}'),
            "block is '64', which is no int",
        ),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content, reason):
    path = tmp_path / "nvidia_x.json"
    path.write_text(content.replace("BUCKET", json.dumps(dataclasses.asdict(BUCKET))))
    with pytest.raises(ValueError, match=f"nvidia_x.json.*{reason}"):
        with_tuning("paged_decode", kernel, Tuning, path)


def test_the_registry_reads_the_file_of_the_device(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tuning, "TUNED_FOLDER", tmp_path)
    path = tuned_path("NVIDIA Fake-1 80GB")
    assert path == tmp_path / "nvidia_fake_1_80gb.json"
    module = SimpleNamespace(paged_decode=kernel, Tuning=Tuning)
    imported = registry.importlib.import_module
    monkeypatch.setattr(
        registry.importlib, "import_module", lambda name: module if name.endswith("decode.mosaic") else imported(name)
    )
    kind = "NVIDIA Fake-1 80GB"
    assert resolve("paged_decode=mosaic", "gpu", kind).paged_decode is kernel, "no file"
    write_entries(path, {}, "paged_decode", [(BUCKET, Tuning(128), {})])
    tuned = resolve("paged_decode=mosaic", "gpu", kind)
    assert tuned.paged_decode(*CASE.shapes(), **CASE.kwargs) == (128, None)  # type: ignore[arg-type]
    assert tuned == resolve("paged_decode=mosaic", "gpu", kind)
    auto = resolve("", "gpu", kind).paged_decode
    assert isinstance(auto.functions[0], Tuned)  # type: ignore[attr-defined]
    for choices in ("paged_decode=mosaic", ""):  # by it a start knows whether scratch space was measured before
        identity = resolve(choices, "gpu", kind).identity
        assert "test_tuning.kernel with" in identity
        assert "Tuning(block=128, stages=None)" in identity
        assert "0x" not in identity
    assert resolve("paged_decode=mosaic", "gpu").paged_decode is kernel, "no device named"
    path.write_text("{")
    with pytest.raises(ValueError, match=path.name):
        resolve("", "gpu", kind)


@pytest.mark.parametrize("op", ["paged_decode", "paged_prefill"])
def test_the_tuner_tries_what_the_kernel_has(op):
    specs, mosaic = (importlib.import_module(f"sgjax.kernels.{op}.{name}") for name in ("specs", "mosaic"))
    buckets = [Bucket.of(*case.shapes()[:2]) for case in specs.TUNING_CASES]
    assert len(set(buckets)) == len(buckets)
    defaults = dataclasses.asdict(mosaic.Tuning())
    assert set(specs.TUNING_VALUES) <= set(defaults)
    assert all(defaults[field] in (None, *values) for field, values in specs.TUNING_VALUES.items())


def test_the_files_that_come_with_the_package_are_sound():
    for path in tuning.TUNED_FOLDER.glob("*.json"):
        assert set(read_ops(path)) <= {*OP_NAMES}
        assert resolve("*=mosaic", "gpu", json.loads(path.read_text())["device"])
