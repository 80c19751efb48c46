"""The card of an exported model: what it is, what it was trained on, what it reached, and how the export was proved."""

import json
from typing import Any

import numpy as np

from gptjax.config import to_json
from gptjax.errors import BadInput
from gptjax.hf.architectures import Architecture
from gptjax.hf.verify import Verification
from gptjax.run.export import facts_of
from gptjax.run.result import read_result
from gptjax.run.weights import SavedModel


def card(saved: SavedModel, family: Architecture, dtype: np.dtype, proof: Verification | None) -> str:
    """Return README.md, in Markdown with the metadata that model hubs read."""
    n = saved.config.cost(saved.config.context, saved.execution)
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [gptjax]",
        "---",
        f"# {saved.directory.resolve().name}",
        "",
        f"{family.architecture}, {n.total:,} parameters ({n.non_embedding:,} without embeddings), exported in "
        f"{dtype.name} by gptjax.",
        "",
        *_table({**{name: fact for name, fact in facts_of(saved).items() if name != "marks"}, **_reached(saved)}),
        "",
        "## Proof",
        "",
        f"This export was {proof}." if proof else "This export was not verified.",
        "",
        "## Parameters",
        "",
        *_table({group: f"{size:,}" for group, size in {**n.params, "padding": n.padding}.items() if size}),
    ]
    if saved.run:
        run = json.dumps(to_json(saved.run), indent=1)
        lines += ["", "## The run", "", "```json", run, "```"]
    return "\n".join(lines) + "\n"


def _reached(saved: SavedModel) -> dict[str, Any]:
    """Return what the run reached, if it is finished and these are its last weights."""
    if saved.run is None or saved.step != saved.run.steps:
        return {}
    try:
        result = read_result(saved.directory, saved.run)
    except BadInput:
        return {}
    if result is None or result.loss is None:
        return {}
    return {
        "validation loss": f"{result.loss:.4f} nats a token (standard error {result.loss_se:.4f})",
        "bits per byte": f"{result.bits_per_byte:.4f}",
        "training corpus": ", ".join(source.corpus for source in saved.run.data.sources),
        "data digest": result.data_digest,
        "FLOPs (6 N D)": f"{result.flops_per_token['6n_total'] * result.tokens:.4g}",
        "device": result.device,
    }


def _table(facts: dict[str, Any]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())]
