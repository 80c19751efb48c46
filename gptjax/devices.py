"""What accelerators can do and cost: devices.csv, a table to edit, read as one `Device` a row."""

import csv
import math
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from gptjax.errors import BadInput

TABLE = Path(__file__).with_name("devices.csv")


@dataclass(frozen=True)
class Device:
    """One accelerator, as jax counts devices: its datasheet, its price, and the share of the peak assumed in plans."""

    name: str
    device_kind: str  # how jax's device_kind begins; alternatives between |
    peak_tflops: float  # dense bf16
    hbm_gib: float
    hbm_gb_per_s: float
    link_gb_per_s: float  # to other devices, both directions together
    usd_per_hour: float
    mfu: float
    network_gb_per_s: float = (
        0.0  # out of its slice or node, both directions together; 0 where a table has no such column
    )

    @property
    def peak_flops_per_s(self) -> float:
        return 1e12 * self.peak_tflops

    @property
    def flops_per_s(self) -> float:
        """The model FLOPs that a plan may count on in a second."""
        return self.mfu * self.peak_flops_per_s

    def matches(self, device_kind: str) -> int:
        """Give the length of the longest of its prefixes that begin jax's device_kind, as whole words; 0 for none."""
        kinds = [kind for kind in self.device_kind.split("|") if kind and device_kind.startswith(kind)]
        return max((len(kind) for kind in kinds if not device_kind[len(kind) :][:1].isalnum()), default=0)


def devices(path: Path | None = None) -> dict[str, Device]:
    """Read a table of devices, by name: the user's own file, else the package's.

    Needs the columns of devices.csv; BadInput names file, line, value and remedy.
    """
    path = path or TABLE
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} cannot be read ({error}); give a UTF-8 CSV file of devices") from None
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    header, *rows = [next(csv.reader([line])) for _, line in numbered] or [[]]
    columns = [field.name for field in fields(Device) if field.default is MISSING]
    if missing := [name for name in columns if name not in header]:
        raise BadInput(f"{path} has no column {missing[0]!r}; its first line must name {','.join(columns)}")
    if not rows:
        raise BadInput(f"{path} has no rows; it needs one for each device")
    table: dict[str, Device] = {}
    for (number, _), row in zip(numbered[1:], rows, strict=True):
        where = f"{path} line {number}"
        if len(row) != len(header):
            raise BadInput(f"{where} has {len(row)} cells for {len(header)} columns; give each column one")
        device = _device(dict(zip(header, row, strict=True)), where)
        if device.name in table:
            raise BadInput(f"{where}: {device.name!r} is listed twice; keep one row of it")
        table[device.name] = device
    return table


def _device(row: dict[str, str], where: str) -> Device:
    name, kind, *columns = (field.name for field in fields(Device) if field.name in row)
    if not row[name]:
        raise BadInput(f"{where}: the name is empty; give the device a short one, as h200")
    values = {}
    for column in columns:
        try:
            value = float(row[column])
        except ValueError:
            value = math.nan
        free = column == "usd_per_hour" and value == 0  # one's own machine may cost nothing
        if not (math.isfinite(value) and (value > 0 or free)) or (column == "mfu" and value > 1):
            rule = "a share above 0 and at most 1, as 0.4" if column == "mfu" else "a number above 0"
            raise BadInput(f"{where}: {column} {row[column]!r} must be {rule}")
        values[column] = value
    return Device(row[name], row[kind], **values)


def device_of(device_kind: str, table: dict[str, Device]) -> Device | None:
    """Find the device that jax calls by this device_kind, the longest prefix first; None where the table has none."""
    best = max(table.values(), key=lambda device: device.matches(device_kind))
    return best if best.matches(device_kind) else None
