from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import serving_reference as reference
from hypothesis import given, settings
from hypothesis import strategies as st

from bitworth.errors import BitworthError
from bitworth.hardware import hardware
from bitworth.prediction import NAMES, curve, predict, read_architecture, scale
from bitworth.prediction.constants import FITTED, LINK_SHARE, SPREADS
from bitworth.prediction.evidence import DEFECTS, MODELS, cases, cells
from bitworth.prediction.fitting import fit, held_out, predicted, ratio_errors, winners
from bitworth.prediction.formats import kernel
from bitworth.prediction.roofline import Deployment
from bitworth.prediction.serving import Fleet, Server, fleets
from bitworth.prediction.simulation import closed_loop, most, simulate, simulated, sustained
from bitworth.types import Load, UseCase
from bitworth.workloads import NAMES as CASES
from bitworth.workloads import use_case

ALONE, FULL = Load(kind="synchronous"), Load(kind="throughput")
LLAMA_70B = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
}
MIXTRAL = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}


def deployed(size: str = "8B", format: str = "bf16", gpu: str = "A6000", count: int = 1) -> Deployment:
    return Deployment(architecture=MODELS[size], kernel=kernel(format), hardware=hardware(gpu, count))


# --- architecture -------------------------------------------------------------------------------------------------


def test_weights_are_those_that_the_makers_count() -> None:
    """Llama 3.1 70B has 70.55 billion parameters, Mixtral 46.70 of which a token uses 12.88."""
    llama, mixtral = read_architecture(LLAMA_70B), read_architecture(MIXTRAL)
    assert llama == MODELS["70B"]
    assert llama.stored_weights + llama.kept_weights == pytest.approx(70.55e9, rel=1e-3)
    assert mixtral.stored_weights + mixtral.kept_weights == pytest.approx(46.70e9, rel=1e-3)
    assert mixtral.used_weights + mixtral.kept_weights == pytest.approx(12.88e9, rel=1e-3)


def test_weights_are_those_of_a_model_that_transformers_builds(tiny_llama: Path) -> None:
    from safetensors import safe_open

    found = read_architecture(tiny_llama)
    with safe_open(tiny_llama / "model.safetensors", "pt") as tensors:
        sizes = {name: math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    linear = sum(size for name, size in sizes.items() if "_proj" in name)
    assert found.stored_weights == linear
    assert found.kept_weights == sizes["model.embed_tokens.weight"]  # tied


def test_experts_read_are_those_that_tokens_hit() -> None:
    """The expected number of distinct experts, by brute force over all draws of two tokens."""
    from itertools import combinations, product

    a = read_architecture(MIXTRAL)
    draws = list(combinations(range(8), 2))
    distinct = sum(len({*one, *two}) for one, two in product(draws, draws)) / len(draws) ** 2
    expert = 3 * a.hidden * a.expert_width * a.mixtures
    assert a.read_weights(2) == pytest.approx(a.attention_weights + distinct * expert)
    assert a.read_weights(1) == a.used_weights
    assert a.read_weights(10_000) == pytest.approx(a.stored_weights)


def test_shared_experts_and_dense_blocks_count() -> None:
    config = {**MIXTRAL, "moe_intermediate_size": 100, "n_shared_experts": 2, "first_k_dense_replace": 3}
    a = read_architecture(config)
    assert (a.mixtures, a.expert_width, a.shared_width) == (29, 100, 200)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_experts_per_tok": 9}, "more experts"),
        ({"kv_lora_rank": 512}, "latent attention"),
    ],
)
def test_a_config_that_lacks_a_size_is_one_sentence(change: dict[str, Any], match: str) -> None:
    with pytest.raises(BitworthError, match=match):
        read_architecture({**MIXTRAL, **change})


def test_a_config_is_read_from_a_folder_a_file_or_inside_text_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": LLAMA_70B}))
    assert read_architecture(tmp_path) == read_architecture(tmp_path / "config.json") == MODELS["70B"]
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(BitworthError, match="not JSON"):
        read_architecture(tmp_path)
    with pytest.raises(BitworthError, match="cannot be read"):
        read_architecture(tmp_path / "nowhere")


# --- roofline -----------------------------------------------------------------------------------------------------


def test_a_decode_step_is_bytes_over_bandwidth_operations_and_the_blocks() -> None:
    """8B in BF16 on one A6000, by hand: every weight but the embedding once, 1,000 tokens of cache, 32 blocks."""
    weights = 6_979_321_856 + 4096 * 128256
    reading = (2 * weights + 1000 * 131072) / (768e9 * FITTED.bandwidth_share)
    computing = 2 * weights / (154.8e12 * FITTED.compute16_share)
    expected = reading + computing + 32 * FITTED.block_kilocycles * 1e3 / 2.1e9
    assert deployed().decode_seconds(1000) == pytest.approx(expected)


def test_a_long_prompt_is_mostly_operations_over_the_rate() -> None:
    d, weights = deployed("70B", "w8a8-fp", "H100"), MODELS["70B"].stored_weights
    computing = 2 * weights * 4096 / (1979e12 * FITTED.compute8_share)
    assert d.linear_seconds(4096) == pytest.approx(computing + weights / (3350e9 * FITTED.bandwidth_share))
    pairs = sum(range(1, 4097))
    assert d.pairs(4096) == pytest.approx(pairs, rel=1e-3)


def test_four_bit_weights_wait_for_the_multiprocessors_on_a_fast_memory() -> None:
    d, weights = deployed("70B", "w4a16-int", "H100"), MODELS["70B"].stored_weights
    held = weights * (0.5 + 2 / 128)
    unpacking, computing = held / (132 * FITTED.unpack_gb_s * 1e9), 2 * weights / (989e12 * FITTED.compute16_share)
    assert d.linear_seconds(1) == pytest.approx(unpacking + computing)
    assert unpacking > held / (3350e9 * FITTED.bandwidth_share)


def test_passes_of_every_length_are_in_the_table() -> None:
    """What the serving loop reads is what the closed form says, mixtures included."""
    for d in (deployed(count=2), replace(deployed(count=2), architecture=read_architecture(MIXTRAL))):
        table = d.seconds_by_tokens(300)
        assert table == pytest.approx([d.linear_seconds(tokens) + d.link_seconds(tokens) for tokens in range(301)])


def test_tensor_parallel_devices_share_work_and_pay_a_ring() -> None:
    one, four = deployed("70B", gpu="A100"), deployed("70B", gpu="A100", count=4)
    assert four.linear_seconds(1) == pytest.approx(one.linear_seconds(1) / 4)
    sent = 2 * 3 / 4 * 512 * 8192 * 2
    assert four.link_seconds(512) == pytest.approx(2 * 80 * sent / (300e9 * LINK_SHARE))
    assert one.link_seconds(512) == 0


def test_machines_are_stages() -> None:
    d = deployed("405B", gpu="H100", count=16)
    assert (d.stages, d.tensor) == (2, 8)
    with pytest.raises(BitworthError, match="multiple"):
        deployed("405B", gpu="H100", count=12)


def test_a_sliding_window_bounds_the_pairs() -> None:
    d = replace(deployed(), architecture=replace(MODELS["8B"], window=100))
    assert d.pairs(1000) == pytest.approx(sum(min(i, 100) for i in range(1, 1001)), rel=1e-2)
    assert d.seen(1000) == 100


def test_formats_without_constants_or_arithmetic_are_refused() -> None:
    with pytest.raises(BitworthError, match="cannot be predicted"):
        kernel("nvfp4")
    with pytest.raises(BitworthError, match="A100 has no fp8"):
        deployed(format="w8a8-fp", gpu="A100")
    assert kernel("w4a16-int", group_size=64).weight_bytes == 0.5 + 2 / 64
    with pytest.raises(BitworthError, match="local cannot be predicted"):
        deployed(gpu="local")


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.integers(16, 4096), st.integers(1, 1024), st.sampled_from([1, 2, 4]))
def test_more_of_anything_takes_longer_and_more_bandwidth_less(
    format: str, prompt: int, output: int, count: int
) -> None:
    d = Deployment(architecture=MODELS["8B"], kernel=kernel(format), hardware=hardware("H100", count))
    case = UseCase(name="x", prompt_tokens=prompt, output_tokens=output)
    longer = UseCase(name="x", prompt_tokens=prompt + 64, output_tokens=output + 64)
    faster = replace(d, hardware=replace(d.hardware, bandwidth_gb_s=2 * 3350))
    assert d.latency_seconds(longer) > d.latency_seconds(case)
    assert faster.latency_seconds(case) <= d.latency_seconds(case)


# --- the paper's tables -------------------------------------------------------------------------------------------


def test_use_cases_are_those_of_the_rest_of_bitworth() -> None:
    assert {case.name for case in cases()} == set(CASES)
    assert all(case == use_case(case.name) for case in cases())


def test_defects_are_left_out_by_name() -> None:
    """18 rows of 7 cells in each table; docstring of 70B on A6000 (both counts) and A100 in table 5, on A100 in 6."""
    assert (len(cells("synchronous")), len(cells("throughput"))) == (18 * 7 - 6, 18 * 7 - 3)
    kept = {
        (cell.table, *cell.group, cell.case.name) for table in ("synchronous", "throughput") for cell in cells(table)
    }
    assert not kept & DEFECTS


def test_rates_are_within_the_rounding_of_what_is_printed() -> None:
    for cell in cells("throughput"):
        assert abs(cell.value - round(cell.value, 1)) <= 0.0501
        assert 0 < cell.half_digit <= 0.0501


@pytest.mark.slow(beside=True)
def test_the_shipped_constants_are_what_the_tables_give() -> None:
    """Rates of runs move in steps, so the last digits of a simplex search's end are its path's."""
    found = fit(cells("synchronous") + cells("throughput"))
    loaded = {"serving16_share", "serving8_share", "host_s"}
    for name, value in asdict(found).items():
        assert value == pytest.approx(getattr(FITTED, name), rel=1e-2 if name in loaded else 2e-3), name


def test_a_group_held_out_does_not_shape_its_constants() -> None:
    """Doubling every figure of a held-out group changes nothing of what is predicted for it."""
    everything = cells("synchronous")
    group = ("8B", "A6000")
    doubled = [replace(cell, value=2 * cell.value) if cell.group == group else cell for cell in everything]
    honest, _ = held_out(everything, only={group})
    other, _ = held_out(doubled, only={group})
    assert [guess.value for guess in honest] == [guess.value for guess in other]


def test_ratios_and_winners_of_perfect_guesses() -> None:
    from bitworth.prediction.fitting import Guess

    perfect = [Guess(cell=cell, value=cell.value) for cell in cells("throughput")]
    assert all(error == pytest.approx(0) for _, error in ratio_errors(perfect))
    assert all(printed == named for _, printed, named in winners(perfect))


# --- serving ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["bf16", "w8a8-int", "w4a16-int"])
@pytest.mark.parametrize("name", ["rag", "code_completion"])
def test_one_request_in_the_simulator_is_the_roofline(format: str, name: str) -> None:
    """The loop adds its processor's work for each decoded token, and nothing else."""
    case, fleet = use_case(name), Fleet.of(deployed(format=format))
    timings = simulate(fleet, case, ALONE, requests=2)
    host = fleet.deployment.constants.host_s * (case.output_tokens - 1)
    assert [t.latency_s for t in timings] == pytest.approx(
        [fleet.deployment.latency_seconds(case) + host] * 2, rel=1e-3
    )
    assert timings[0].first_token_s == pytest.approx(fleet.deployment.prefill_seconds(case.prompt_tokens))


def test_at_low_load_the_wait_is_that_of_a_queue_of_single_passes() -> None:
    """M/D/1 (Pollaczek-Khinchine): requests of one output token share nothing, so they queue for their prompt's pass.

    Prompts as long as a pass's budget, so that no two are read together.
    """
    case, fleet = UseCase(name="x", prompt_tokens=2048, output_tokens=1), Fleet.of(deployed())
    service = fleet.deployment.pass_seconds(2048, sequences=1, pairs=fleet.deployment.pairs(2048))
    busy = 0.3
    timings = simulate(fleet, case, Load(kind="poisson", rate=busy / service), requests=20_000, seed=1)
    wait = sum(timing.latency_s for timing in timings) / len(timings) - service
    assert wait == pytest.approx(busy * service / (2 * (1 - busy)), rel=0.05)


def test_even_arrivals_at_low_load_never_wait() -> None:
    case, fleet = use_case("rag"), Fleet.of(deployed())
    alone = simulate(fleet, case, ALONE, requests=1)[0].latency_s
    timings = simulate(fleet, case, Load(kind="constant", rate=0.1), requests=20)
    assert [timing.latency_s for timing in timings] == pytest.approx([alone] * 20)


@settings(max_examples=40, deadline=None)
@given(
    prompt=st.integers(1, 700),
    output=st.integers(1, 60),
    slots=st.integers(1, 12),
    budget=st.integers(1, 900),
    room=st.integers(0, 3000),
    streams=st.integers(1, 20),
    gap=st.none() | st.floats(0.0, 3.0),
    window=st.none() | st.integers(1, 400),
    seeing_all=st.integers(0, 31),
    format=st.sampled_from(["bf16", "w4a16-int"]),
)
def test_the_compiled_loop_is_the_plain_one(
    prompt: int,
    output: int,
    slots: int,
    budget: int,
    room: int,
    streams: int,
    gap: float | None,
    window: int | None,
    seeing_all: int,
    format: str,
) -> None:
    """Every request's first token and end, with caches that overflow, windows, streams and arrivals at given times."""
    case = UseCase(name="x", prompt_tokens=prompt, output_tokens=output)
    d = deployed(format=format)
    d = replace(d, architecture=replace(d.architecture, window=window, seeing_all=seeing_all))
    wanted = math.ceil(reference.held(d.architecture, prompt + output, 2 * budget)) + room
    tokens = d.weight_bytes + wanted * d.cache_bytes_a_token
    d = replace(d, hardware=replace(d.hardware, memory_gib=(tokens / 2**30 + 1.5) / 0.9 + 1e-6))
    fleet = Fleet.of(d, server=Server(sequences=slots, pass_tokens=budget))
    assert fleet.deployment.cache_tokens - wanted in (0, 1)
    if gap is None:
        run = simulated(fleet, case, Load(kind="throughput", streams=streams), requests=40)
        found = list(zip(*run, strict=True))
        plain = [row[1:] for row in reference.finished(fleet, case, [0.0] * streams, True, 40)][:40]
    else:
        times = [number * gap for number in range(30)]
        found = [(t.start_s, t.first_token_s, t.end_s) for t in simulate(fleet, case, FULL, times=times)]
        plain = [row[1:] for row in reference.finished(fleet, case, times, False, 30)]
    assert np.array(found) == pytest.approx(np.array(plain, float), rel=1e-9)


@given(
    window=st.none() | st.integers(1, 300),
    seeing_all=st.integers(0, 31),
    chunk=st.integers(1, 100),
    prompt=st.integers(1, 1000),
    output=st.integers(1, 100),
)
def test_a_request_takes_what_its_blocks_hold(
    window: int | None, seeing_all: int, chunk: int, prompt: int, output: int
) -> None:
    """Pass by pass and block by block: a pass begins while another runs; what left a window goes with one done."""
    a = replace(MODELS["8B"], window=window, seeing_all=seeing_all)
    ends = [*range(0, prompt, chunk), *range(prompt, prompt + output + 1)]
    peaks = []
    for sight in reference.caches(a):
        kept = [
            begun - (0 if sight is None else max(0, done - sight))
            for done, begun in zip(ends, [*ends[2:], ends[-1], ends[-1]], strict=True)
        ]
        peaks.append(max(kept))
    most, room = sum(peaks) / a.layers, a.held_tokens(prompt + output, 2 * chunk)
    assert most <= room + 1e-9
    if window is None or prompt >= math.ceil(window / chunk) * chunk + 2 * chunk:
        assert most == pytest.approx(room)


def test_a_cache_counts_a_window_where_blocks_have_one() -> None:
    """5 of 32 blocks keep 32,000 tokens of a request, the others 1,024: groups of five blocks, so thirty such."""
    case = UseCase(name="long", prompt_tokens=31_744, output_tokens=512)
    whole = deployed(gpu="A100")
    some = replace(whole, architecture=replace(whole.architecture, window=1024, seeing_all=5))
    assert some.cache_tokens == whole.cache_tokens
    (few,), (many,) = fleets(whole, case), fleets(some, case)
    assert few.slots(case) == pytest.approx(whole.cache_tokens / 32_000)
    assert many.slots(case) == pytest.approx(whole.cache_tokens / ((5 * 32_000 + 30 * 1024) / 32))
    assert sustained(many, case).rate > 1.5 * sustained(few, case).rate


def test_a_check_and_a_prediction_need_the_same_cache() -> None:
    """Of a request, but for the places of 16 tokens in which a server gives its cache out."""
    from bitworth.prediction.serving import needed_tokens
    from bitworth.preflight import check

    for window, seeing_all in ((None, 0), (4096, 0), (4096, 8), (1024, 5), (1024, 13)):
        d = deployed(gpu="A100")
        d = replace(d, architecture=replace(d.architecture, window=window, seeing_all=seeing_all))
        case = UseCase(name="long", prompt_tokens=31_744, output_tokens=512)
        needed = check(d.architecture, "bf16", d.hardware, case).memory.cache_gib * 2**30
        told = needed_tokens(d, case) * d.cache_bytes_a_token
        assert 0 <= needed - told <= 2 * 16 * d.cache_bytes_a_token


@pytest.mark.parametrize(
    ("size", "gpu", "count", "format"), [("8B", "A6000", 1, "bf16"), ("70B", "H100", 4, "w8a8-fp")]
)
@pytest.mark.parametrize("name", ["rag", "instruction_following"])
def test_a_full_house_answers_what_the_closed_form_says(
    size: str, gpu: str, count: int, format: str, name: str
) -> None:
    case = use_case(name)
    full = most(deployed(size, format, gpu, count), case)
    assert full.rate == pytest.approx(reference.full_rate(full.fleet, case), rel=0.12)


def test_answers_of_one_token_come_a_whole_pass_at_a_time() -> None:
    """256 prompts of 8 tokens fill a pass, which answers them all."""
    fleet, case = Fleet.of(deployed()), UseCase(name="x", prompt_tokens=8, output_tokens=1)
    seconds = fleet.deployment.pass_seconds(2048, sequences=1, pairs=256 * fleet.deployment.pairs(8))
    assert sustained(fleet, case).rate == pytest.approx(256 / seconds)


@pytest.mark.parametrize("gpu", ["A100", "A6000"])
@pytest.mark.parametrize("name", ["rag", "code_completion"])
def test_streams_in_step_answer_about_as_many_in_the_long_run(gpu: str, name: str) -> None:
    """In step their prompts fill whole passes, and they fill the cache together: A6000 has little beside 8B in BF16."""
    case, fleet = use_case(name), Fleet.of(deployed(gpu=gpu))
    streams, full = int(fleet.slots(case)), sustained(fleet, case)
    sent, _, ended = simulated(fleet, case, Load(kind="throughput", streams=streams), requests=20 * streams)
    rate = 19 * streams / (ended[-1] - ended[streams])
    assert 0.9 <= rate / full.rate <= 1.06
    assert full.latency_s == pytest.approx(np.mean(ended[streams:] - sent[streams:]), rel=0.1)
    assert 0 < full.first_token_s < full.latency_s


@pytest.mark.parametrize("streams", [1, 2, 7, 8, 64])
def test_streams_of_a_fleet_are_those_of_its_copies(streams: int) -> None:
    """Requests of all copies in one list, as a load generator sees them; copies that lack a stream idle."""
    case, fleet = use_case("rag"), Fleet.of(deployed(gpu="H100"), copies=4)
    found, latencies, rate = closed_loop(fleet, case, streams), [], 0.0
    for at in range(4):
        own = streams // 4 + (at < streams % 4)
        if own:
            load = Load(kind="throughput", streams=own)
            timings = simulate(Fleet.of(deployed(gpu="H100")), case, load, seconds=300.0)[own:]
            latencies += [timing.latency_s for timing in timings]
            rate += len(timings) / (timings[-1].end_s - timings[0].start_s)
    assert found.rate == pytest.approx(rate, rel=0.02)
    assert found.latency_s == pytest.approx(np.mean(latencies), rel=0.02)
    assert found.latency_p90_s == pytest.approx(np.quantile(latencies, 0.9), rel=0.05)
    assert found.latency_s == pytest.approx(streams / found.rate)  # Little's law


def test_a_full_cache_sends_requests_back_and_finishes_them_all() -> None:
    """Room for five requests half answered: more start than can end at once, and none is lost."""
    case = UseCase(name="x", prompt_tokens=100, output_tokens=400)
    d = deployed()
    small = replace(d.hardware, memory_gib=(d.weight_bytes + 1600 * d.cache_bytes_a_token) / 2**30 / 0.9 + 1.67)
    fleet = Fleet.of(replace(d, hardware=small))
    assert 1500 < fleet.deployment.cache_tokens < 1700
    timings = simulate(fleet, case, Load(kind="throughput", streams=20), requests=100)
    assert len(timings) >= 100
    assert all(timing.first_token_s and timing.start_s < timing.first_token_s < timing.end_s for timing in timings)


def test_given_times_stand_in_for_arrivals() -> None:
    case, fleet = use_case("rag"), Fleet.of(deployed())
    even = simulate(fleet, case, Load(kind="constant", rate=0.5), requests=10)
    given_times = simulate(fleet, case, Load(kind="poisson", rate=9.0), times=[timing.start_s for timing in even])
    assert given_times[:8] == even[:8]  # the last ones share passes with requests that only a load goes on to send


def test_a_run_that_is_cut_off_counts_what_it_finished() -> None:
    case, fleet = use_case("rag"), Fleet.of(deployed())
    timings = simulate(fleet, case, FULL, seconds=360.0)
    assert max(timing.end_s for timing in timings) <= 360
    longer = simulate(fleet, case, FULL, seconds=400.0)
    assert [timing for timing in longer if timing.end_s <= 360] == list(timings)


def test_splits_hold_the_model_and_use_every_device() -> None:
    found = fleets(deployed("70B", "w8a8-int", "A100", 4), use_case("rag"))
    assert [(fleet.copies, fleet.deployment.hardware.count) for fleet in found] == [(4, 1), (2, 2), (1, 4)]
    found = fleets(deployed("70B", "bf16", "A100", 4), use_case("rag"))
    assert [fleet.copies for fleet in found] == [2, 1]


def test_a_prediction_splits_a_model_as_a_server_would() -> None:
    """40 query heads can be shared by four devices, ten key-value heads cannot."""
    phi = read_architecture({**LLAMA_70B, "hidden_size": 5120, "num_attention_heads": 40, "num_key_value_heads": 10})
    with pytest.raises(BitworthError, match="10 key-value heads cannot be shared by 4 devices"):
        predict(phi, "w4a16-int", hardware("A6000", 4), use_case("rag"), ALONE)
    four = Deployment(architecture=phi, kernel=kernel("w4a16-int"), hardware=hardware("A6000", 4))
    assert [fleet.deployment.tensor for fleet in fleets(four, use_case("rag"))] == [1, 2]


def test_copies_of_key_value_heads_take_room() -> None:
    """Eight devices hold each of four heads twice, and so half the tokens that their memory would take."""
    eight = deployed("70B", "w4a16-int", "H100", 8)
    few = replace(eight, architecture=replace(eight.architecture, kv_heads=4))
    room = 8 * few.usable_gib * 2**30 - few.weight_bytes
    assert few.cache_tokens == int(room / (2 * few.architecture.kv_elements * 2))
    assert few.attention_seconds(1000, 0) == eight.attention_seconds(1000, 0)


def test_three_devices_cannot_share_eight_heads() -> None:
    three = deployed("70B", "w8a8-int", "A100", 3)
    assert [fleet.deployment.hardware.count for fleet in fleets(three, use_case("rag"))] == [1]
    with pytest.raises(BitworthError, match="heads"):
        predict(MODELS["70B"], "w8a8-int", hardware("A100", 3), use_case("rag"), ALONE)


@pytest.mark.parametrize(("gpu", "count", "sizes", "enough"), [("H100", 3, "3", 2), ("A6000", 6, "6", 4)])
def test_heads_that_keep_a_model_from_its_devices_are_said(gpu: str, count: int, sizes: str, enough: int) -> None:
    """The devices have room for it together, and each even part of them that could share the heads has too little."""
    with pytest.raises(BitworthError) as caught:
        predict(MODELS["70B"], "bf16", hardware(gpu, count), use_case("rag"), FULL)
    assert str(caught.value) == (
        f"64 attention heads cannot be shared by {sizes} devices; {enough} x {gpu} would hold the model in bf16 and "
        "one request, which need 132 GiB."
    )
    assert predict(MODELS["70B"], "bf16", hardware(gpu, enough), use_case("rag"), FULL).copies == 1


# --- predictions --------------------------------------------------------------------------------------------------


def test_a_prediction_is_the_tables_figure_and_says_that_it_is_one() -> None:
    found = predict(MODELS["70B"], "w8a8-fp", hardware("H100"), use_case("rag"), ALONE)
    assert found.source == "predicted"
    assert found.latency_s.low < 4.3 < found.latency_s.high
    assert found.queries_per_usd.value == pytest.approx(3600 / found.latency_s.value / 3.29)
    assert found.notes == ()


@pytest.mark.parametrize("load", [ALONE, FULL])
def test_ranges_hold_nine_in_ten_of_the_tables(load: Load) -> None:
    """In sample, so at least nine in ten; the spreads are those of held-out cells."""
    kind = "synchronous" if load is ALONE else "throughput"
    within = [abs(math.log(predicted(cell, FITTED) / cell.value)) <= SPREADS[kind] for cell in cells(kind)]
    assert sum(within) >= 0.9 * len(within)


def test_streams_are_simulated_as_they_are_asked_for() -> None:
    """Few streams wait less and answer less than a full server; a percentile is above the mean that it was."""

    def under(streams: int | None) -> tuple[float, float, float]:
        load = Load(kind="throughput", streams=streams)
        found = predict(MODELS["8B"], "bf16", hardware("H100"), use_case("rag"), load)
        assert (found.load, found.copies) == (load.name, 1)
        return found.latency_s.value, found.queries_per_second.value, found.latency_p90_s.value

    (two, _, _), (eight, _, _), (many, rate, p90), (full, most, full_p90) = map(under, (2, 8, 64, None))
    assert (two, eight, many, full) == pytest.approx((1.09, 1.33, 3.58, 11.33), abs=0.01)
    assert (rate, most) == pytest.approx((17.9, 22.6), abs=0.05)
    assert p90 > many
    assert full_p90 > full
    alone = predict(MODELS["8B"], "bf16", hardware("H100"), use_case("rag"), ALONE).latency_s.value
    assert under(1)[0] == pytest.approx(alone, rel=0.01)


def test_streams_choose_how_devices_are_split() -> None:
    """Few requests are answered sooner by devices that share them, many by copies side by side."""
    split = [
        predict(MODELS["8B"], "bf16", hardware("H100", 4), use_case("rag"), Load(kind="throughput", streams=streams))
        for streams in (1, 512)
    ]
    assert [found.copies for found in split] == [1, 4]
    with pytest.raises(BitworthError, match="100,000 streams are too many to simulate; give 65,536 or fewer"):
        predict(MODELS["8B"], "bf16", hardware("H100"), use_case("rag"), Load(kind="throughput", streams=100_000))


def test_at_a_rate_latency_grows_towards_saturation() -> None:
    most = predict(MODELS["8B"], "bf16", hardware("A6000"), use_case("rag"), FULL).queries_per_second.value
    latencies = [
        predict(MODELS["8B"], "bf16", hardware("A6000"), use_case("rag"), Load(kind="poisson", rate=share * most))
        for share in (0.1, 0.5, 0.8)
    ]
    values = [found.latency_s.value for found in latencies]
    assert values == sorted(values)
    assert [found.saturation for found in latencies] == pytest.approx([0.1, 0.5, 0.8])
    with pytest.raises(BitworthError, match="less than the"):
        predict(MODELS["8B"], "bf16", hardware("A6000"), use_case("rag"), Load(kind="poisson", rate=2 * most))


def test_a_model_that_does_not_fit_is_told_what_would() -> None:
    with pytest.raises(BitworthError, match="2 x H100 would hold it"):
        predict(MODELS["70B"], "bf16", hardware("H100"), use_case("rag"), ALONE)
    with pytest.raises(BitworthError, match="would hold it"):
        predict(MODELS["405B"], "bf16", hardware("A100", 8), use_case("rag"), FULL)
    with pytest.raises(BitworthError, match="usd-per-hour"):
        predict(MODELS["8B"], "bf16", hardware("MI300X"), use_case("rag"), ALONE)


def test_what_the_tables_do_not_vouch_for_is_said() -> None:
    found = predict(read_architecture(MIXTRAL), "bf16", hardware("H200"), use_case("rag"), ALONE)
    assert ["H200" in found.notes[0], "mixture" in found.notes[1]] == [True, True]


@pytest.mark.parametrize(
    ("given_sizes", "context"),
    [
        ({}, None),
        ({"max_position_embeddings": 4096}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 4096),
        (
            {
                "max_position_embeddings": 16384,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
            },
            16384,
        ),
    ],
)
def test_a_use_case_longer_than_the_model_reads_is_said(given_sizes: dict[str, Any], context: int | None) -> None:
    architecture = read_architecture({**LLAMA_70B, **given_sizes})
    assert architecture.context == context
    edge = (context or 4096) - 32
    for prompt, said in ((edge, False), (edge + 1, context is not None)):
        case = UseCase(name="near", prompt_tokens=prompt, output_tokens=32)
        found = predict(architecture, "w4a16-int", hardware("H100"), case, ALONE)
        assert any("reads at most" in note for note in found.notes) is said
        assert found.latency_s.high / found.latency_s.value == pytest.approx(math.exp(SPREADS["synchronous"]))


@given(st.floats(0.1, 1000), st.floats(0, 0.9))
def test_replicas_suffice_and_one_less_does_not(target: float, headroom: float) -> None:
    full = predict(MODELS["8B"], "bf16", hardware("A6000"), use_case("rag"), FULL)
    found = scale(full, target, headroom=headroom)
    usable = full.queries_per_second.value * (1 - headroom)
    assert (found.replicas - 1) * usable < target <= found.replicas * usable * (1 + 1e-9)
    assert found.usd_per_month == pytest.approx(found.replicas * 0.80 * 730)
    assert found.usd_per_month_low <= found.usd_per_month <= found.usd_per_month_high


def test_replicas_answer_what_they_do_with_the_streams_they_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bitworth.cli.predict import predict as verb

    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    settings: dict[str, Any] = {"format": "w8a8-int", "gpu": "A100", "count": 2, "target_rate": 20.0}
    found = {}
    for streams in (8, None):
        verb(tmp_path, "rag", load="throughput", streams=streams, json=True, **settings)
        document = json.loads(capsys.readouterr().out)
        found[streams] = next(row for row in document["scale"] if row["format"] == "w8a8-int")
        assert (found[streams]["load"], found[streams]["replica_rate"]) == (
            document["load"],
            document["queries_per_second"],
        )
        assert found[streams]["replicas"] == math.ceil(20 / (document["queries_per_second"] * 0.8))
    assert found[8]["replicas"] > found[None]["replicas"]
    verb(tmp_path, "rag", load="1.5", json=True, **settings)  # a rate has no streams
    assert found[None] in json.loads(capsys.readouterr().out)["scale"]
    verb(tmp_path, "rag", load="throughput", streams=8, **settings)
    said = " ".join(capsys.readouterr().out.split())
    assert "a replica answers under throughput load (8 streams): bf16" in said
    verb(tmp_path, "rag", **settings)
    assert "a replica answers at its most: bf16" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(BitworthError, match="under load `throughput`"):
        scale(predict(MODELS["8B"], "bf16", hardware("A6000"), use_case("rag"), ALONE), 1.0)


def test_a_curve_rises_with_the_rate() -> None:
    points = curve(MODELS["8B"], "w8a8-int", hardware("A6000"), use_case("rag"), points=4)
    assert [point.saturation for point in points] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    latencies = [point.latency_s.value for point in points]
    assert latencies == sorted(latencies)
    assert all(point.first_token_s.value < point.latency_s.value < point.latency_p90_s.value for point in points)


# --- the verb -----------------------------------------------------------------------------------------------------


def test_the_verb_prints_one_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bitworth.cli.predict import predict as verb

    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    verb(tmp_path, "rag", format="w8a8-int", gpu="A100", count=2, load="1.5", target_rate=20.0, curve=True, json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["source"] == "predicted"
    assert document["latency_s_low"] < document["latency_s"] < document["latency_s_high"]
    assert document["queries_per_second"] == 1.5
    assert document["queries_per_usd"] == pytest.approx(3600 * 1.5 / 3.58)
    assert len(document["curve"]) == 9
    by_format = {row["format"]: row for row in document["scale"]}
    assert by_format["w8a8-int"]["usd_per_month"] < by_format["bf16"]["usd_per_month"]
    assert "no fp8" in by_format["w8a8-fp"]["unsupported"]


def test_the_verb_takes_streams_as_a_benchmark_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bitworth.cli.loads import parse_foretold
    from bitworth.cli.predict import predict as verb

    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    verb(tmp_path, "rag", format="w8a8-int", gpu="A100", count=2, load="throughput", streams=8, json=True)
    document = json.loads(capsys.readouterr().out)
    load = Load(kind="throughput", streams=8)
    found = predict(read_architecture(LLAMA_70B), "w8a8-int", hardware("A100", 2), use_case("rag"), load)
    assert (document["load"], document["latency_s"]) == ("throughput (8 streams)", found.latency_s.value)
    for text, kind in (("synchronous", "synchronous"), ("4", "poisson")):
        with pytest.raises(BitworthError, match=f"--streams is for --load throughput; {kind} has no streams"):
            parse_foretold(text, 8)


@pytest.mark.parametrize(
    "load", ["fast", "0", "-1", "nan", "inf", "constant@", "burst@3", "sweep", "synchronous:2", ""]
)
def test_a_bad_load_is_one_sentence(load: str) -> None:
    from bitworth.cli.loads import parse_foretold

    with pytest.raises(BitworthError, match="none of synchronous"):
        parse_foretold(load)


@pytest.mark.parametrize("text", ["4", "poisson:4", "poisson@4"])
def test_a_rate_is_written_as_for_a_benchmark_or_bare(text: str) -> None:
    from bitworth.cli.loads import parse_foretold

    assert parse_foretold(text) == Load(kind="poisson", rate=4)
    assert parse_foretold("constant:0.5") == Load(kind="constant", rate=0.5)


def test_nothing_here_imports_torch() -> None:
    import subprocess
    import sys

    script = "import sys, bitworth.prediction, bitworth.cli.predict; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_study_file_adds_a_device(tmp_path: Path) -> None:
    from bitworth.cli.predict import _row_of
    from bitworth.study import HardwareEntry

    figures = {"memory_gib": 96, "bandwidth_gb_s": 1600, "tera_ops": {"bf16": 250}, "processors": 188, "clock_ghz": 2.4}
    entry = HardwareEntry(name="mine", count=2, usd_per_hour=3.0, **figures)  # type: ignore[arg-type]
    assert (entry.row().usd_per_hour, entry.row(4).usd_per_hour, entry.row().memory_gib) == (3.0, 6.0, 96)
    assert predict(MODELS["70B"], "bf16", entry.row(), use_case("rag"), ALONE).latency_s.value > 0
    with pytest.raises(ValueError, match="unknown hardware 'mine'"):
        HardwareEntry(name="mine", usd_per_hour=3.0)
    with pytest.raises(ValueError, match="MI300X has no price"):
        HardwareEntry(name="MI300X")
    study = {"model": "x", "formats": ["baseline"], "hardware": [{"name": "H100", "count": 2, "usd_per_hour": 4.0}]}
    (tmp_path / "study.yaml").write_text(json.dumps(study))
    assert _row_of("H100", 1, tmp_path / "study.yaml").usd_per_hour == 2.0
    assert _row_of("A100", 1, tmp_path / "study.yaml").usd_per_hour == 1.79


@pytest.mark.slow
def test_this_machine_can_be_probed() -> None:
    from bitworth.prediction.probe import probed

    row = probed(hardware("local"), seconds=0.5)
    assert row.bandwidth_gb_s is not None
    assert 1 < row.bandwidth_gb_s < 2000
    assert 0.001 < row.tera_ops["bf16"] < 1000
