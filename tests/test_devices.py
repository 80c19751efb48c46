"""The table of devices is whole, a user's own takes its place, and jax's names find their rows."""

from dataclasses import astuple
from pathlib import Path

import jax
import pytest

from gptjax.devices import TABLE, device_of, devices
from gptjax.errors import BadInput
from gptjax.run.metrics import peak_flops

HEADER = "name,device_kind,peak_tflops,hbm_gib,hbm_gb_per_s,link_gb_per_s,usd_per_hour,mfu"


def write(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text("# mine\n" + "\n".join([header, *rows]) + "\n")
    return path


def test_every_row_of_the_package_is_positive_and_found_by_its_own_name():
    table = devices()
    assert {"h200", "h100", "a100-80g", "l4", "v4", "v5e", "v5p", "v6e", "cpu-core"} <= table.keys()
    for name, device in table.items():
        assert name == device.name
        assert all(value > 0 for value in astuple(device)[2:]) and device.mfu <= 1
        assert device.flops_per_s == pytest.approx(device.mfu * device.peak_tflops * 1e12)
        for kind in filter(None, device.device_kind.split("|")):
            assert device_of(kind, table) == device


@pytest.mark.parametrize(
    "kind, name",
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA A100-SXM4-40GB", "a100-40g"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA L40", None),  # not an L4: a prefix ends where a word does
        ("cpu", None),
    ],
)
def test_the_longest_prefix_of_whole_words_names_the_device(kind, name):
    found = device_of(kind, devices())
    assert (found.name if found else None) == name


def test_the_peak_of_a_run_is_of_all_devices_and_unknown_on_a_cpu(monkeypatch):
    peak_flops.cache_clear()
    assert not peak_flops() > 0
    kind = type("", (), {"device_kind": "TPU v5 lite"})
    monkeypatch.setattr(jax, "devices", lambda: [kind] * 4)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    peak_flops.cache_clear()
    assert peak_flops() == 4 * 197e12
    peak_flops.cache_clear()


def test_a_users_own_file_takes_the_place_of_the_packages(tmp_path):
    mine = devices(write(tmp_path / "mine.csv", "h200,NVIDIA H200,989,141,4800,900,0,0.31"))
    assert list(mine) == ["h200"]
    assert mine["h200"].usd_per_hour == 0 and mine["h200"].mfu == 0.31
    assert devices(TABLE) == devices()


@pytest.mark.parametrize(
    "rows, said",
    [
        (["x,,989,141,4800,900,2.5,40"], "line 3: mfu '40' must be a share above 0 and at most 1"),
        (["", "x,,fast,141,4800,900,2.5,.4"], "line 4: peak_tflops 'fast' must be a number above 0"),
        (["x,,989,-1,4800,900,2.5,.4"], "line 3: hbm_gib '-1' must be"),
        (["x,,989,nan,4800,900,2.5,.4"], "line 3: hbm_gib 'nan' must be"),
        (["x,,989,141,4800,900,2.5"], "line 3 has 7 cells for 8 columns"),
        (["x,,1,1,1,1,1,.4", "x,,2,2,2,2,2,.4"], "line 4: 'x' is listed twice"),
        ([",,1,1,1,1,1,.4"], "line 3: the name is empty"),
        ([], "has no rows"),
    ],
)
def test_a_bad_row_is_one_line(tmp_path, rows, said):
    with pytest.raises(BadInput) as error:
        devices(write(tmp_path / "mine.csv", *rows))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_missing_column_or_file_is_one_line(tmp_path):
    with pytest.raises(BadInput, match="has no column 'mfu'; its first line must name name,device_kind"):
        devices(write(tmp_path / "mine.csv", "x,,1,1,1,1,1", header=HEADER.removesuffix(",mfu")))
    with pytest.raises(BadInput, match="cannot be read"):
        devices(tmp_path / "none.csv")
