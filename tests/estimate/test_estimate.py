"""Dry runs: bytes, FLOPs and seconds that can be checked by hand, and one line for each mistake."""

import importlib.util
from dataclasses import replace

import jax
import pytest

from gptjax.config import EvalConfig, RunConfig
from gptjax.devices import devices
from gptjax.errors import BadInput
from gptjax.estimate import estimate as estimates
from gptjax.estimate import plan, search
from gptjax.estimate.compile import Compiled, Exchange, compile_step
from gptjax.estimate.footprint import footprint
from gptjax.estimate.roofline import exchange_seconds, expected_exchanges, roofline, step_flops
from gptjax.estimate.topology import Topology, gpu_target, parse
from gptjax.execution import Execution
from gptjax.kernels.loss import LOGITS_BYTES, token_nats
from gptjax.mesh import make_mesh, mesh_sizes
from gptjax.models.gpt import GPTConfig
from gptjax.models.presets import preset
from gptjax.sharding import Layout, MeshConfig
from gptjax.sweep.plan import SweepConfig
from gptjax.train.programs import make_programs
from helpers import CUDA, LIBTPU, ROOT, logits_of, refused

TABLE = devices()
TINY = GPTConfig(vocab_size=512, context=64, d_model=64, n_layers=3, n_heads=4, dtype="bfloat16")
REMAT, PADDED = Execution(remat="full"), Execution(vocab_multiple=128)
COST = TINY.cost(TINY.context)
MESH = MeshConfig(data=1, fsdp=4, tensor=2)
RUN = RunConfig(model=TINY, execution=REMAT, batch=16, mesh=MESH, evaluate=EvalConfig(8, 8))


@pytest.mark.parametrize(
    ("text", "chips", "slices", "platform", "name"),
    [
        ("v5p:8x8x8", 512, 1, "tpu", "v5p:8x8x8"),
        ("2x v5e:16x16", 512, 2, "tpu", "2x v5e:16x16"),
        ("4xv6e:4x4", 64, 4, "tpu", "4x v6e:4x4"),
        ("h200:8", 8, 1, "cuda", "h200:8"),
        ("16 x a100-80g:8", 128, 16, "cuda", "16x a100-80g:8"),
        ("cpu-core:8", 8, 1, "cpu", "cpu-core:8"),
    ],
)
def test_topologies_are_read(text, chips, slices, platform, name):
    topology = parse(text, TABLE)
    assert (topology.chips, topology.slices, topology.platform, topology.name) == (chips, slices, platform, name)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("gpt2", "--topology", "v5p"), "write CHIP:AxB"),
        (("gpt2", "--topology", "v9:2x2"), "no device is named 'v9'"),
        (("gpt2", "--topology", "v5p:8x8"), "3 dimensions"),
        (("gpt2", "--topology", "v5e:32x32"), "at most 256"),
        (("gpt3", "--topology", "cpu-core:8"), "gpt3-13b"),
        (("nofile.py:run", "--topology", "cpu-core:8"), "nofile.py is not a file"),
        (("gpt2", "--topology", "cpu-core:8", "--mesh", "fsdp=3"), "does not cover 8 devices"),
        (("gpt2", "--topology", "cpu-core:8", "--mesh", "expert=8"), "axis of data"),
        (("gpt2", "--topology", "cpu-core:8", "--mesh", "fsdp=4,tensor=two"), "'tensor=two'"),
        (("gpt2", "--topology", "cpu-core:8", "--batch-tokens", "4e6"), "--batch-tokens 3997696"),
        (("gpt2", "--topology", "cpu-core:8", "--batch-tokens", "-5"), "above 0"),
        (("gpt2", "--topology", "cpu-core:8", "--mesh", "tensor=8", "--set", "model.n_heads=12"), "not divisible"),
        (("gpt2", "--topology", "cpu-core:8", "--json", "nowhere/x.json"), "not a directory"),
    ],
)
def test_mistakes_are_one_line(capsys, argv, words):
    assert words in refused(capsys, "estimate", *argv)


def test_a_sweep_takes_a_topology_with_its_dry_run_only(capsys):
    quick = str(ROOT / "experiments" / "chinchilla" / "quick.py")
    assert "add --dry-run" in refused(capsys, "sweep", quick, "--topology", "h200:8")
    assert "no device is named 'h201'" in refused(capsys, "sweep", quick, "--dry-run", "--topology", "h201:8")


def test_a_missing_compiler_names_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = replace(RUN, mesh=MeshConfig(data=1, fsdp=-1))
    with pytest.raises(BadInput, match=r"make install EXTRAS=test,tpu"):
        estimates.estimate(run, parse("v5e:2x2", TABLE))
    answer = estimates.estimate(run, parse("h200:8", TABLE))
    assert answer["fits"] is None and "EXTRAS=test,cuda12" in answer["why"] and not answer["exchanges_compiled"]
    assert "by design" in estimates.describe(answer)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_step(RUN, parse("cpu-core:8", TABLE))


@pytest.mark.slow
def test_the_arguments_of_the_compiled_step_are_the_states_bytes_over_the_devices(compiled):
    held = footprint(RUN, 8)
    assert compiled.arguments == pytest.approx(held.state + held.batch, abs=64)  # step, count and rate besides
    whole = footprint(replace(RUN, mesh=MeshConfig(data=1, fsdp=1, tensor=1)), 1)
    assert whole.weights == 4 * COST.stored and whole.moments == pytest.approx(2 * whole.weights, abs=8)
    assert whole.state / 8 <= held.state < whole.state / 8 * 1.1  # biases and norms are split over fewer axes
    assert compiled.peak > compiled.arguments and not compiled.refusal


@pytest.mark.slow
def test_the_compiled_step_gathers_weights_over_fsdp_and_sums_over_tensor(compiled):
    by = {(e.kind, e.axes): e for e in compiled.exchanges}
    assert compiled.unknown_loops == 0
    assert by["all-gather", ("fsdp",)].count >= 2 * TINY.n_layers  # forward, and again for the gradient
    layers = 2 * COST.non_embedding / 2  # bytes of a bfloat16 copy of the layers, half of it on a chip
    assert by["all-gather", ("fsdp",)].bytes >= 2 * layers
    assert by["all-reduce", ("tensor",)].count >= 4 * TINY.n_layers


def test_a_state_that_cannot_fit_is_not_compiled(monkeypatch):
    monkeypatch.setattr(estimates, "compile_step", lambda *_: pytest.fail("compiled"))
    model, mesh = preset("gpt3-175b"), MeshConfig(data=1, fsdp=-1)
    answer = estimates.estimate(replace(RUN, model=model, execution=PADDED, mesh=mesh), parse("v5e:4x4", TABLE))
    assert answer["fits"] is False and "weights and moments alone" in answer["why"]
    assert answer["bytes"]["weights"] == pytest.approx(4 * model.cost(2048, PADDED).stored / 16, rel=1e-3)


def test_the_program_of_96_layers_is_as_long_as_that_of_12():
    """What is compiled does not grow with depth, and so compile time hardly does."""
    layout = Layout(make_mesh(MeshConfig(data=1), jax.devices()[:1]), RUN.rules)
    lines = []
    for layers in (12, 96):
        programs = make_programs(replace(TINY, n_layers=layers), REMAT, RUN.optim, layout, 0.0, 1)
        arguments = programs.example(1, 4, TINY.context, RUN.data)
        lines.append(programs.train.lower(*arguments).as_text().count("\n"))
    assert lines[0] == lines[1]


@pytest.mark.parametrize("gated", [False, True])
def test_analytic_flops_are_those_that_xla_counts_where_nothing_is_scanned(gated):
    c = GPTConfig(vocab_size=1024, context=128, d_model=256, n_layers=2, n_heads=4, gated=gated, bias=False)
    for remat in ("none", "full"):
        execution = Execution(remat=remat, scan=False)
        tokens = jax.ShapeDtypeStruct((4, c.context), "int32")

        def loss(params, tokens, execution=execution):
            return token_nats(logits_of(c, params, tokens, execution=execution), tokens)[0].mean()

        params = jax.eval_shape(c.build(execution).init, jax.random.key(0))
        measured = jax.jit(jax.grad(loss)).lower(params, tokens).cost_analysis()["flops"]
        executed = step_flops(RunConfig(model=c, execution=execution))[1] * tokens.size
        assert measured == pytest.approx(executed, rel=0.05), remat


def test_exchanges_take_the_links_inside_a_slice_and_the_network_between():
    one, two = parse("v5p:4x4x4", TABLE), parse("2x v5p:4x4x4", TABLE)
    reduce = Exchange("all-reduce", ("fsdp",), 1, 10**9, 64, 1, 3)
    assert exchange_seconds(reduce, one) == (pytest.approx(2 * 1e9 * 63 / 64 / 600e9), 0)
    plane = replace(reduce, devices=16, dimensions=2)
    assert exchange_seconds(plane, one)[0] == pytest.approx(2 * 1e9 * 15 / 16 / 400e9)
    both = replace(reduce, devices=128, slices=2)
    here, there = exchange_seconds(both, two)
    assert here == pytest.approx(2 * 1e9 * 63 / 64 / 600e9) and there == pytest.approx(2 * 1e9 / 64 / 2 / 6.25e9)
    assert exchange_seconds(replace(reduce, devices=0), one) == exchange_seconds(reduce, one)  # groups not understood
    gather = replace(reduce, kind="all-gather")
    assert exchange_seconds(gather, one)[0] == exchange_seconds(reduce, one)[0] / 2


def test_a_roofline_bounds_the_mfu_and_pipelines_have_bubbles():
    topology = parse("v5p:4x4x4", TABLE)
    model = replace(preset("chinchilla-1018m"), dtype="bfloat16")
    run = RunConfig(model=model, batch=256, mesh=MeshConfig(data=1, fsdp=-1))

    def line(run):
        sizes = mesh_sizes(run.mesh, topology.chips)
        exchanges = expected_exchanges(run, sizes, topology)
        return roofline(run, topology, sizes, footprint(run, topology.chips), exchanges)

    bound = line(run)
    scores = 6 * model.n_layers * model.context * model.n_heads * model.head_size * run.tokens_per_step
    assert bound.executed == pytest.approx(bound.flops + scores)  # of later positions: computed, and no useful work
    assert bound.compute == pytest.approx(bound.executed / (64 * 459e12))
    assert 0.5 < bound.mfu(bound.serial) < bound.mfu(bound.overlapped) <= 1
    again = line(replace(run, execution=REMAT))
    assert 1.2 < again.executed / bound.executed < 1.34
    piped = RunConfig(model=replace(model, n_layers=24), execution=Execution(microbatches=8), batch=256)
    piped = replace(piped, mesh=MeshConfig(data=1, fsdp=16, pipeline=4))
    assert line(piped).compute == pytest.approx(line(replace(piped, mesh=run.mesh)).compute * 11 / 8)


def test_layouts_of_least_time_that_hold_their_state_are_tried_first(monkeypatch):
    topology = parse("v5e:4x4", TABLE)
    model = replace(preset("gpt3-1.3b"), dtype="bfloat16")
    order = search.candidates(RunConfig(model=model, execution=PADDED, batch=64), topology)
    room = estimates.memory_of(topology)
    likely = [c.held.guess <= room for c in order]
    assert all(c.held.state <= room for c in order) and likely == sorted(likely, reverse=True) and len(order) > 20
    assert [c.seconds for c in order[: sum(likely)]] == sorted(c.seconds for c in order[: sum(likely)])
    assert all(mesh_sizes(c.config.mesh, 16) for c in order)
    with pytest.raises(BadInput, match="take more chips"):
        search.candidates(RunConfig(model=preset("gpt3-175b"), execution=PADDED, batch=64), topology)

    monkeypatch.setattr(Topology, "uncompiled", "")
    tried = []

    def compile_one(config, topology):
        tried.append(config)
        return Compiled(1.0, peak=2**30 if len(tried) > 2 else 2**40)

    monkeypatch.setattr(search, "compile_step", compile_one)
    found = search.search(order[0].config, topology, fitting=2)
    assert [e["fits"] for e in found][:2] == [True, True] and len(tried) <= 5
    assert len(search.describe(found).splitlines()) == 1 + len(found)


def test_a_sweep_names_the_first_cell_that_does_not_fit_and_shares_compiles(monkeypatch):
    sizes = ("chinchilla-44m", "chinchilla-425m", "chinchilla-9293m")

    def shape(name):
        return replace(preset(name), dtype="bfloat16")

    base = replace(RUN, model=GPTConfig(), execution=PADDED, mesh=MeshConfig(data=1, fsdp=-1))
    budgets = {"tokens_per_param": (0.01, 1e4), "budgets": (1e19, 3e19)}
    sweep = SweepConfig(base, sizes, shape, lr=1e-3, batch_tokens=2**18, **budgets)
    asked = []

    def compile_one(config, topology):
        asked.append(config.model)
        return Compiled(1.0, peak=2**30)

    monkeypatch.setattr(Topology, "uncompiled", "")
    monkeypatch.setattr(plan, "compile_step", compile_one)
    lines = list(plan.on_hardware(sweep, parse("v5e:2x2", TABLE)))
    assert lines[1].startswith("the first that does not fit, by shapes alone: chinchilla-9293m-1e19")
    assert asked == [shape("chinchilla-425m")]  # the largest that is open; the smaller one needs no compile
    assert sum("NO: weights and moments alone" in line for line in lines[3:]) == 2
    assert sum("yes, smaller than one that fits" in line for line in lines) == 2


def test_gpus_are_described_from_the_table():
    text = gpu_target(TABLE["a100-80g"])
    assert "core_count: 108" in text and f"device_memory_size: {80 * 2**30}" in text and "major: 8" in text
    assert text.count("{") == text.count("}")


def test_the_guess_for_a_gpu_has_neither_scores_nor_the_logits_of_all_positions():
    run = RunConfig(model=replace(preset("gpt2"), dtype="bfloat16"), execution=PADDED, batch=32)
    fused, scores = (footprint(run, 1, platform).activations for platform in ("cuda", "tpu"))
    c, parts = run.model, 3 * (LOGITS_BYTES["gpu"] - LOGITS_BYTES["tpu"])
    assert scores - fused + parts == run.tokens_per_step * (c.n_layers + 1) * c.n_heads * c.context * 6
    longer = footprint(replace(run, batch=64), 1, "cuda").activations
    assert longer < 2 * fused  # the part of the logits that is held is as large
    float32 = replace(run, model=replace(run.model, dtype="float32"))
    assert footprint(float32, 1, "cuda").activations == footprint(float32, 1).activations + parts


@CUDA
def test_a_step_compiles_for_gpus_that_are_not_here():
    held, compiled = footprint(RUN, 8, "cuda"), compile_step(RUN, parse("h200:8", TABLE))
    assert compiled.arguments == pytest.approx(held.state + held.batch, abs=64)
    assert 0 <= compiled.outputs < 2**16 and compiled.unknown_loops == 0  # the state is donated
    assert ("all-gather", ("fsdp",)) in {(e.kind, e.axes) for e in compiled.exchanges}


@CUDA
def test_fused_attention_holds_no_scores():
    model = replace(TINY, context=1024, n_layers=1)
    run = RunConfig(model=model, batch=8, mesh=MeshConfig(data=1))
    fused, scores = (
        compile_step(replace(run, execution=replace(REMAT, attention=how)), parse("h200:1", TABLE)).temporaries
        for how in ("auto", "xla")
    )
    assert scores - fused > 2 * 8 * model.n_heads * model.context**2


@LIBTPU
def test_the_tpu_compiler_refuses_what_exceeds_a_chip():
    model = replace(preset("gpt3-1.3b"), dtype="bfloat16", n_layers=4)
    run = RunConfig(model=model, execution=PADDED, batch=256, mesh=MeshConfig(data=1, fsdp=-1))
    answer = estimates.estimate(run, parse("v5e:2x2", TABLE))
    assert answer["fits"] is False and "RESOURCE_EXHAUSTED" in answer["why"]
    assert answer["bytes"]["refused"] > 16 * 2**30


@LIBTPU
def test_a_step_compiles_for_two_slices_and_tells_what_crosses_between():
    run = replace(RUN, model=replace(TINY, n_layers=2), mesh=MeshConfig(data=2, fsdp=4))
    answer = estimates.estimate(run, parse("2x v5e:2x2", TABLE))
    assert answer["fits"] and answer["unknown_loops"] == 0
    crossing = [e for e in answer["exchanges"] if e["slices"] == 2]
    assert crossing and all("data" in e["axes"] for e in crossing)
    assert sum(e["bytes"] for e in crossing) < answer["params"] * 8
    assert all(e["slices"] == 1 for e in answer["exchanges"] if "data" not in e["axes"])
