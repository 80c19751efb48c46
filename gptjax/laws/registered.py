"""Write a prediction down before its run is trained, and score it afterwards."""

import hashlib
import json
import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from gptjax.errors import BadInput
from gptjax.files import read_json, write_json
from gptjax.laws.codec import Json

SAME_RUN = 0.01  # a run within this share of the predicted N and D is the run predicted


def register(prediction: Json, path: Path) -> None:
    """Write a prediction with the UTC time and a sha256 over both; an existing file is BadInput and stays."""
    content = {"prediction": prediction, "registered": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(path, {**content, "sha256": _digest(content)}, replace=False)


def score(path: Path, measured_loss: float, params: float, tokens: float) -> Json:
    """Compare a registered prediction with what its run gave; write <stem>_score.json beside it and return it.

    BadInput when the file was altered since, or when the run trained is not the run predicted.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise BadInput(f"{path} is not a registered prediction; write one with gptjax predict LAW --register FILE")
    content: Json = {name: record.get(name) for name in ("prediction", "registered")}
    if record.get("sha256") != _digest(content):
        raise BadInput(f"{path} does not match its sha256: it was altered after it was registered; predict a new run")
    prediction: Json = content["prediction"]
    for name, value in (("params", params), ("tokens", tokens)):
        if abs(value / prediction[name] - 1) > SAME_RUN:
            raise BadInput(
                f"{path} predicts {name} {prediction[name]:g} and the run has {value:g}; score the run predicted"
            )
    ends = prediction["loss_interval"]
    result = {
        "sha256": record["sha256"],
        "scored": datetime.now(UTC).isoformat(timespec="seconds"),
        "predicted": prediction["loss"],
        "measured": measured_loss,
        "params": params,
        "tokens": tokens,
        "log_error": float(np.log(prediction["loss"] / measured_loss)),
        "inside": None if ends is None else bool(ends[0] <= measured_loss <= ends[1]),
    }
    write_json(path.with_name(f"{path.stem}_score.json"), {"score": result})
    return result


def _digest(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def half_widths(said: Json, measured: float) -> float:
    """Give by how many half-widths of its 95 % interval a forecast missed a loss; inf where the interval has none."""
    edge = said["loss_interval"][1 if measured > said["loss"] else 0]
    width = abs(math.log(edge / said["loss"]))
    return abs(math.log(measured / said["loss"])) / width if width else math.inf


def failed_assumption(said: Json, measured: float) -> str:
    """Say which assumption a hit would have needed otherwise: the floor of the losses, or another."""
    floors = sorted((one["loss"], one["floor_share"], one["weight"]) for one in said.get("forms") or [])
    if not floors:
        return "the law took its form for true"
    losses, shares, weights = (np.array(column) for column in zip(*floors, strict=True))
    if losses[0] <= measured <= losses[-1]:
        share, mean = float(np.interp(measured, losses, shares)), float(weights @ shares)
        way = "later" if share < mean else "sooner"
        return (
            f"losses level off {way} than assumed: a constant of {share:.0%} of the least loss would have given this "
            f"one, where the forecast had {mean:.0%} on average"
        )
    side = "below" if measured < losses[0] else "above"
    return (
        f"this loss lies {side} what any floor gives, so the run is unlike the rows (its recipe, data or size), or the "
        "slope of the floor changes beyond them"
    )


def held_out_miss(source: str) -> str:
    """Say by how much the run that a sweep held out missed its forecast; "" if it did not, or if there is none."""
    path, registered = (Path(source) / name for name in ("prediction_score.json", "prediction.json"))
    scored = read_json(path).get("score", {}) if path.is_file() else {}
    if scored.get("inside") is not False:
        return ""
    side = "over" if scored["predicted"] > scored["measured"] else "under"
    said = read_json(registered)["prediction"] if registered.is_file() else {}
    why = f"; {failed_assumption(said, scored['measured'])}" if said.get("forms") else ""
    return (
        f"a held-out run of this sweep reached {scored['measured']:.4f} where {scored['predicted']:.4f} were forecast, "
        f"outside the interval: beyond its runs this law {side}estimates losses{why}"
    )
