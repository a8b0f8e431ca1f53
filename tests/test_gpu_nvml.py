"""NvmlGpus through the real pynvml, over a scripted NVML library."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from nvml_library import NvmlReader, NvmlScript, nvml, nvml_library, nvml_reader, start_reader
from stage_driver import Driver, Message

from idlewatt.collectors import nvml_driver
from idlewatt.processors.meter.config import MeterConfig
from idlewatt.processors.meter.stage import MeterStage
from idlewatt.stream import topics
from idlewatt.stream.encoding import encode_rows
from idlewatt.stream.records import GPU, POWER, GpuRow

__all__ = ["nvml", "nvml_library", "nvml_reader", "start_reader"]
pytestmark = pytest.mark.nvml
# the fixtures are imported, so their names are the tests' arguments too
Nvml = tuple[NvmlScript, NvmlReader]
START = Callable[[dict[str, str]], NvmlReader]

ENERGY = "nvmlDeviceGetTotalEnergyConsumption"
FIELDS = "nvmlDeviceGetFieldValues"
REASONS = "nvmlDeviceGetCurrentClocksEventReasons"
PROCESSES = "nvmlDeviceGetComputeRunningProcesses_v3"
LIMIT = "nvmlDeviceGetEnforcedPowerLimit"
START_S = 1_790_000_040
GH200 = """
    gpus 1
    0 name NVIDIA GH200 480GB
    0 energy 5000 100
    0 field 185 1 0 1 450000
    0 field 186 1 0 1 460000
    0 field 190 1 0 1 900000
    0 field 188 1 0 1 1000000
"""


def uuid(index: int) -> str:
    return f"GPU-{index:08x}-0000-0000-0000-000000000000"


def only_row(answer: dict[str, Any]) -> dict[str, Any]:
    assert "error" not in answer, answer
    (row,) = answer["rows"]
    found: dict[str, Any] = row
    return found


def test_a_row_carries_every_figure_of_every_gpu(nvml: Nvml) -> None:
    """Each GPU gives one row with its UUID, product, energy counter, draw, enforced limit and occupancy."""
    script, reader = nvml
    script.write("""
        gpus 2
        0 energy 987654321000 250
        0 power 412345
        0 limit 600000
        0 utilization 37
        0 memory 42000000000
        0 reasons 4
        0 processes 3
        1 uuid GPU-other
        1 name NVIDIA A100-SXM4-80GB
    """)
    first = reader.read(at_s=10)
    assert first["left_out"] == {}
    row, other = first["rows"]
    energy_mj = row.pop("energy_mj")
    assert energy_mj > 987_654_321_000
    assert row == {
        "ts_ms": 10_000,
        "site": "north",
        "pool": "chat",
        "node": "node-1",
        "gpu_uuid": uuid(0),
        "product": "NVIDIA H100 80GB HBM3",
        "power_mw": 412_345,
        "power_limit_mw": 600_000,
        "epoch_ms": None,
        "sm_activity": 0.37,
        "memory_used_bytes": 42_000_000_000,
        "clocks_event_reasons": 4,
        "has_process": True,
        "power_scope": "gpu",
    }
    assert (other["gpu_uuid"], other["product"]) == ("GPU-other", "NVIDIA A100-SXM4-80GB")
    assert other["has_process"] is False
    assert reader.read(at_s=11)["rows"][0]["energy_mj"] == energy_mj + 250


def test_energy_and_power_cost_one_call_a_gpu(nvml: Nvml) -> None:
    """A settled reading asks each GPU once for energy and power together."""
    script, reader = nvml
    script.write("gpus 3")
    reader.read(at_s=1)
    before = {call: reader.ask("calls", call=call) for call in (FIELDS, "nvmlDeviceGetPowerUsage")}
    reader.read(at_s=2)
    assert reader.ask("calls", call=FIELDS) == before[FIELDS] + 3
    assert reader.ask("calls", call="nvmlDeviceGetPowerUsage") == before["nvmlDeviceGetPowerUsage"]


@pytest.mark.parametrize(
    ("lacking", "power_mw"),
    [("", 185_000), ("0 no_field 185 0", 186_000), ("0 no_field 185 0\n0 no_field 186 0", 300_000)],
)
def test_power_is_the_average_else_the_instant_else_the_plain_call(
    nvml: Nvml, lacking: str, power_mw: int
) -> None:
    """The best power reading a GPU has is used: field 185, else 186, else nvmlDeviceGetPowerUsage."""
    script, reader = nvml
    script.write(
        f"gpus 1\n0 power 300000\n0 field 185 0 0 1 185000\n0 field 186 0 0 1 186000\n{lacking}",
    )
    assert only_row(reader.read())["power_mw"] == power_mw


def test_no_energy_counter_leaves_power_alone_and_is_not_asked_for_again(nvml: Nvml) -> None:
    """Without a counter energy is null, never 0, and the calls that said so are not repeated."""
    script, reader = nvml
    script.write("""
        gpus 1
        0 no_field 83 0
        0 return nvmlDeviceGetTotalEnergyConsumption 3
        0 return nvmlDeviceGetUtilizationRates 13
        0 return nvmlDeviceGetCurrentClocksEventReasons 26
        0 return nvmlDeviceGetMemoryInfo 25
    """)
    lacking = ("TotalEnergyConsumption", "UtilizationRates", "CurrentClocksEventReasons", "MemoryInfo")
    before = [reader.ask("calls", call=f"nvmlDeviceGet{call}") for call in lacking]
    for second in range(1, 20):
        answer = reader.read(at_s=second)
        row = only_row(answer)
        assert (row["energy_mj"], row["power_mw"]) == (None, 300_000)
        assert (row["sm_activity"], row["clocks_event_reasons"], row["memory_used_bytes"]) == (None,) * 3
        assert answer["left_out"] == {}
    assert [reader.ask("calls", call=f"nvmlDeviceGet{call}") for call in lacking] == [n + 1 for n in before]


def test_the_energy_call_stands_in_for_the_energy_field(nvml: Nvml) -> None:
    """A driver without field values at all is read through the plain calls."""
    script, reader = nvml
    script.write("gpus 1\n0 energy 7000 10\n0 power 95000\n0 return nvmlDeviceGetFieldValues 13")
    first, second = only_row(reader.read(at_s=1)), only_row(reader.read(at_s=2))
    assert second["energy_mj"] == first["energy_mj"] + 10
    assert (first["power_mw"], first["power_scope"]) == (95_000, "gpu")


@pytest.mark.parametrize("nothing", [0, 2**64 - 1])
def test_an_energy_field_that_tells_nothing_leaves_it_to_the_call(nvml: Nvml, nothing: int) -> None:
    """A driver whose energy field answers 0 or all ones for ever has a counter, if the call for it counts."""
    script, reader = nvml
    script.write(f"gpus 1\n0 energy 7000 10\n0 field 83 0 0 3 {nothing}")
    first, second = reader.read(at_s=1), reader.read(at_s=2)
    assert only_row(second)["energy_mj"] == only_row(first)["energy_mj"] + 10
    assert second["left_out"] == {}


def test_a_superchip_without_gpu_power_is_measured_as_module(nvml: Nvml) -> None:
    """Where only the module can be read, energy, power and limit are all the module's and say so."""
    script, reader = nvml
    script.write(GH200 + "0 no_field 185 0\n0 no_field 186 0\n0 power 111000\n0 limit 222000")
    row = only_row(reader.read())
    assert row["power_scope"] == "module"
    assert (row["power_mw"], row["power_limit_mw"]) == (450_000, 900_000)
    assert row["energy_mj"] is not None


@pytest.mark.parametrize(("product", "is_told"), [("NVIDIA GB300", False), ("NVIDIA GH200 480GB", True)])
def test_the_watts_of_a_module_are_not_those_of_each_of_its_gpus(
    nvml: Nvml, product: str, is_told: bool
) -> None:
    """Two GPUs that tell their whole module's watts may tell the same ones, also while one hangs; a GH200 has one to itself."""
    script, reader = nvml
    modules = "gpus 2\n" + "\n".join(
        f"{gpu} name {product}\n{gpu} energy 5000 100\n{gpu} field 185 1 0 1 450000\n"
        f"{gpu} field 190 1 0 1 900000\n{gpu} no_field 185 0\n{gpu} no_field 186 0"
        for gpu in range(2)
    )
    script.write(modules)
    answer = reader.read(at_s=0)
    told = [(row["power_scope"], row["power_mw"], row["power_limit_mw"]) for row in answer["rows"]]
    assert told == [("module", 450_000, 900_000) if is_told else (None, None, None)] * 2
    assert [row["energy_mj"] is not None for row in answer["rows"]] == [is_told] * 2
    assert answer["left_out"] == ({} if is_told else {"module_shared": 2})
    script.write(f"{modules}\n1 hang {FIELDS}")
    answer = reader.read(at_s=1)
    assert [row["power_mw"] for row in answer["rows"]] == [450_000 if is_told else None]
    assert answer["left_out"] == ({"hung": 1} if is_told else {"hung": 1, "module_shared": 1})


def test_a_module_counter_never_goes_with_gpu_power(nvml: Nvml) -> None:
    """Where a superchip's GPU has power of its own, the counter that includes the CPU is not sent with it."""
    script, reader = nvml
    script.write(GH200 + "0 power 300000\n0 limit 700000")
    row = only_row(reader.read())
    assert (row["power_scope"], row["power_mw"], row["power_limit_mw"]) == ("gpu", 300_000, 700_000)
    assert row["energy_mj"] is None


def test_the_counter_of_a_gh200_is_its_modules_also_where_no_module_power_is(nvml: Nvml) -> None:
    """Its product's name says so: a driver that tells no power of the module, or none for now, still counts the CPU."""
    script, reader = nvml
    script.write(GH200 + "0 power 300000\n0 no_field 185 1\n0 no_field 186 1")
    row = only_row(reader.read(at_s=START_S))
    assert (row["power_scope"], row["power_mw"], row["energy_mj"]) == ("gpu", 300_000, None)
    assert row["epoch_ms"] == 1000 * START_S


def test_the_counter_alone_of_a_gh200_is_told_as_its_modules(nvml: Nvml) -> None:
    """There is nothing else of it, and it has the module to itself."""
    script, reader = nvml
    no_power = "\n".join(f"0 no_field {field} {scope}" for field in (185, 186) for scope in (0, 1))
    script.write(f"{GH200}{no_power}\n0 return nvmlDeviceGetPowerUsage 3\n0 limit 222000")
    row = only_row(reader.read())
    assert (row["power_scope"], row["power_mw"], row["power_limit_mw"]) == ("module", None, 900_000)
    assert row["energy_mj"] is not None


@pytest.mark.parametrize("lacking", ["", "0 field 186 0 999 1 0"])
def test_a_counter_that_turns_out_to_be_a_modules_is_not_its_gpus_any_more(nvml: Nvml, lacking: str) -> None:
    """Its joules end with the look a minute later that finds power of the module, and those of power go on from there."""
    script, reader = nvml
    answers = []
    for second in range(201):
        code = 999 if second < 10 else 0
        script.write(f"""
            gpus 1
            0 name NVIDIA GB200
            0 energy {10**9 + 450_000 * second}
            0 power 300000
            0 field 185 1 {code} 1 450000
            0 field 186 1 {code} 1 450000
            0 field 190 1 0 1 900000
            {lacking}
        """)
        answers.append(reader.read(at_s=START_S + second))
    rows = [GpuRow(**only_row(answer)) for answer in answers]
    counted = [row.ts_ms // 1000 - START_S for row in rows if row.energy_mj is not None]
    assert counted == list(range(counted[0], counted[-1] + 1))
    assert counted[-1] < 70
    after = rows[counted[-1] + 1 :]
    assert {(row.power_scope, row.power_mw, row.power_limit_mw, row.epoch_ms) for row in after} == {
        ("gpu", 300_000, 700_000, after[0].ts_ms)
    }
    booked = _read_of_gpu([row for row in rows if row.power_mw is not None], until_s=200)
    estimated_mj = 300_000 * (200 - counted[-1])
    assert sum(row["estimated_mj"] for row in booked) == estimated_mj
    assert sum(row["draw_mj"] for row in booked) == estimated_mj + 450_000 * (counted[-1] - counted[0])


def test_gpus_of_a_module_are_read_for_themselves_once_they_tell_power(nvml: Nvml) -> None:
    """One by one: else those whose own power fails at the start would be dark until a restart, or the last of them would be
    booked with what the others tell, too."""
    script, reader = nvml
    told = []
    for second in range(200):
        gpus = "\n".join(
            f"{gpu} name NVIDIA GB300\n{gpu} energy 5000 100\n{gpu} power 800000\n{gpu} limit 1400000\n"
            f"{gpu} field 185 1 0 1 1900000\n{gpu} field 190 1 0 1 2900000\n"
            + (
                f"{gpu} field 185 0 999 1 0\n{gpu} field 186 0 999 1 0\n{gpu} return nvmlDeviceGetPowerUsage 999"
                if second < until_s
                else ""
            )
            for gpu, until_s in enumerate((10, 100))
        )
        script.write(f"gpus 2\n{gpus}")
        told.append(reader.read(at_s=START_S + second))
    assert told[9]["left_out"].get("module_shared") == 2
    dark = [answer["left_out"].get("module_shared", 0) for answer in told]
    assert [dark.count(gpus) for gpus in (2, 1)] == [60, 60]
    for row in told[-1]["rows"]:
        assert (row["power_scope"], row["power_mw"], row["power_limit_mw"]) == ("gpu", 800_000, 1_400_000)
        assert row["energy_mj"] is None
        assert row["epoch_ms"] is not None
    assert told[-1]["left_out"] == {}


@pytest.mark.parametrize("silent_s", [1, 10])
def test_power_that_says_nothing_at_first_is_looked_for_again(nvml: Nvml, silent_s: int) -> None:
    """What is read instead of it has another scope, or is no average: that waits for some seconds, and is left within a minute."""
    script, reader = nvml
    own = "1 name NVIDIA GB300\n1 energy 5000 100\n1 limit 1400000\n1 field 185 1 0 1 1900000\n1 field 190 1 0 1 2900000\n"
    told = []
    for second in range(80):
        average_mw = (0, 0) if second < silent_s else (300_000, 800_000)
        fields = "\n".join(
            f"{gpu} field 185 0 0 1 {mw}\n{gpu} field 186 0 0 1 {0 if gpu else 400_000}"
            for gpu, mw in enumerate(average_mw)
        )
        script.write(f"gpus 2\n{own}{fields}")
        told.append(reader.read(at_s=START_S + second))
    meanwhile = told[min(silent_s, 9)]
    if silent_s == 10:
        assert meanwhile["left_out"] == {"module_shared": 1}
        assert [row["power_mw"] for row in meanwhile["rows"]] == [400_000, None]
    for answer in (told[-1], *([meanwhile] if silent_s == 1 else [])):
        assert answer["left_out"] == {}
        assert [(row["power_scope"], row["power_mw"]) for row in answer["rows"]] == [
            ("gpu", 300_000),
            ("gpu", 800_000),
        ]


@pytest.mark.parametrize(("silent_s", "right_s"), [(1, 0), (10, 65)])
def test_a_module_that_says_nothing_at_first_keeps_its_joules(
    nvml: Nvml, silent_s: int, right_s: int
) -> None:
    """The counter of a superchip's GPU is that of the module: where that answers late, no GPU is booked with it for long."""
    script, reader = nvml
    told = []
    for second in range(80):
        script.write(
            f"gpus 1\n0 name NVIDIA GB300\n0 energy {5000 + 1_900_000 * second} 0\n0 max_limit 1400000\n"
            f"0 field 185 0 0 1 1000000\n0 field 185 1 0 1 {0 if second < silent_s else 1_900_000}"
        )
        told.append(only_row(reader.read(at_s=START_S + second)))
    assert {row["energy_mj"] for row in told[right_s:]} == {None}
    assert [told[-1][name] for name in ("power_scope", "power_mw")] == ["gpu", 1_000_000]


@pytest.mark.parametrize(("interval_s", "untold"), [(0.5, 4), (1, 4), (3, 2), (10, 1), (60, 1)])
def test_power_that_never_says_anything_costs_seconds(nvml: Nvml, interval_s: float, untold: int) -> None:
    """Some drivers answer 0 for a module for good: with rare readings, too, its GPU is metered after five seconds."""
    script, reader = nvml
    script.write("gpus 1\n0 energy 5000 100\n0 power 300000\n0 field 185 1 0 1 0\n0 field 186 1 0 1 0")
    rows = [only_row(reader.read(at_s=START_S + n * interval_s)) for n in range(6)]
    assert [row["energy_mj"] is None for row in rows] == [n < untold for n in range(6)]
    assert {row["power_mw"] for row in rows[untold:]} == {300_000}


def test_a_module_is_not_given_up_for_power_that_is_not_preferred(nvml: Nvml) -> None:
    """Its counter would go with it, for as long as the collector runs."""
    script, reader = nvml
    module = GH200 + "0 no_field 185 0\n0 no_field 186 0\n0 power 111000"
    script.write(module)
    reader.read(at_s=0)
    script.write(f"{module}\n0 field 185 1 999 1 0\n0 field 186 1 999 1 0")
    told = [only_row(reader.read(at_s=second)) for second in range(1, 100)]
    assert {(row["power_scope"], row["power_mw"]) for row in told} == {("module", None)}
    assert all(row["energy_mj"] is not None for row in told)


def test_one_failing_field_costs_only_itself(nvml: Nvml) -> None:
    """A field's own error is counted, the other field of the same call counts, and the next reading is whole."""
    script, reader = nvml
    reader.read(at_s=1)
    script.write("gpus 1\n0 field 185 0 999 1 0")
    answer = reader.read(at_s=2)
    row = only_row(answer)
    assert row["power_mw"] is None
    assert row["energy_mj"] is not None
    assert answer["left_out"] == {"nvml_error": 1}
    script.write("gpus 1")
    assert only_row(reader.read(at_s=3))["power_mw"] == 300_000


def test_a_failure_while_probing_does_not_settle_what_a_gpu_can_do(nvml: Nvml) -> None:
    """A call that fails for a moment at the first reading does not cost the GPU its counter for good."""
    script, reader = nvml
    script.write("gpus 1\n0 return nvmlDeviceGetFieldValues 999")
    row = only_row(reader.read(at_s=1))
    assert (row["energy_mj"], row["power_mw"]) == (None, None)
    script.write("gpus 1\n0 field 185 0 0 1 185000")
    row = only_row(reader.read(at_s=2))
    assert row["energy_mj"] is not None
    assert (row["power_mw"], row["power_limit_mw"]) == (185_000, 700_000)


def test_a_call_that_always_fails_does_not_keep_the_others_waiting(nvml: Nvml) -> None:
    """After a few attempts a GPU is measured by the calls that do answer."""
    script, reader = nvml
    script.write("gpus 1\n0 field 185 1 999 1 0")
    rows = [only_row(reader.read(at_s=second)) for second in range(1, 7)]
    assert rows[0]["power_mw"] is None
    assert rows[-1]["power_mw"] == 300_000
    assert rows[-1]["energy_mj"] is not None


def test_another_scope_has_another_limit(nvml: Nvml) -> None:
    """A module whose power is found late is not held against the limit of its GPU."""
    script, reader = nvml
    module = (
        GH200 + "0 no_field 185 0\n0 no_field 186 0\n0 return nvmlDeviceGetPowerUsage 3\n0 limit 222000\n"
    )
    script.write(module + "0 field 185 1 999 1 0\n0 field 186 1 999 1 0")
    rows = [only_row(reader.read(at_s=second)) for second in range(1, 50, 7)]
    script.write(module)
    rows += [only_row(reader.read(at_s=second)) for second in range(50, 150, 7)]
    told = [(row["power_scope"], row["power_mw"], row["power_limit_mw"]) for row in rows]
    assert told[-1] == ("module", 450_000, 900_000)
    assert all(limit_mw == 900_000 for scope, _, limit_mw in told if scope == "module")


def test_what_fails_for_long_is_asked_for_again(nvml: Nvml) -> None:
    """A counter that answers again after minutes is read again, and no failure of another costs it then."""
    script, reader = nvml
    energy = f"0 return {ENERGY} 999\n0 field 83 0 999 1 0"
    script.write(f"gpus 1\n{energy}")
    rows = [only_row(reader.read(at_s=second)) for second in range(1, 120, 10)]
    assert rows[-1]["power_mw"] == 300_000
    assert [row["energy_mj"] for row in rows] == [None] * len(rows)
    script.write("gpus 1\n0 field 186 0 999 1 0")
    rows = [only_row(reader.read(at_s=second)) for second in (130, 200)]
    assert rows[-1]["energy_mj"] is not None
    script.write(f"gpus 1\n{energy}")
    assert only_row(reader.read(at_s=270))["energy_mj"] is None
    script.write("gpus 1")
    assert only_row(reader.read(at_s=271))["energy_mj"] is not None


def test_a_counter_that_is_refused_once_is_asked_again(nvml: Nvml) -> None:
    """It has answered before: a driver that says for once that it has none shall not blind the GPU for good."""
    script, reader = nvml
    good = "gpus 1\n0 energy 987654321000 250\n0 power 412345\n"
    script.write(good)
    assert only_row(reader.read(at_s=10))["energy_mj"] > 0
    script.write(f"{good}0 return {FIELDS} 3\n0 return {ENERGY} 3\n")
    lost = reader.read(at_s=11)
    assert (only_row(lost)["energy_mj"], lost["left_out"]["meter_lost"]) == (None, 2)
    script.write(good)
    back = reader.read(at_s=12)
    assert (only_row(back)["energy_mj"] is not None, back["left_out"]) == (True, {})


@pytest.mark.parametrize(
    ("call", "column"),
    [
        ("nvmlDeviceGetComputeRunningProcesses_v3", "has_process"),
        ("nvmlDeviceGetMemoryInfo", "memory_used_bytes"),
        ("nvmlDeviceGetUtilizationRates", "sm_activity"),
        ("nvmlDeviceGetCurrentClocksEventReasons", "clocks_event_reasons"),
    ],
)
def test_any_figure_that_is_refused_once_is_asked_for_again(nvml: Nvml, call: str, column: str) -> None:
    """Without its processes a GPU has no idle time, for as long as the collector runs."""
    script, reader = nvml
    good = "gpus 1\n0 energy 987654321000 250\n0 processes 1\n"
    script.write(good)
    assert only_row(reader.read(at_s=10))[column] is not None
    script.write(f"{good}0 return {call} 3\n")
    lost = reader.read(at_s=50)
    assert (only_row(lost)[column], lost["left_out"]) == (None, {"meter_lost": 1})
    script.write(good)
    back = reader.read(at_s=56)
    assert (only_row(back)[column] is not None, back["left_out"]) == (True, {})


def test_a_gpu_without_any_power_reading_is_counted(nvml: Nvml) -> None:
    """A GPU that has neither counter nor power still gives a row, with nulls, and is counted as unread."""
    script, reader = nvml
    script.write("gpus 1\n0 return nvmlDeviceGetFieldValues 3\n0 return nvmlDeviceGetPowerUsage 3")
    script.path.write_text(script.path.read_text() + f"0 return {ENERGY} 3\n")
    answer = reader.read()
    row = only_row(answer)
    assert (row["energy_mj"], row["power_mw"]) == (None, None)
    assert answer["left_out"] == {"no_power_reading": 1}


def test_an_unknown_code_costs_one_figure_of_one_gpu(nvml: Nvml) -> None:
    """A code newer than the bindings is counted, and every other figure still comes."""
    script, reader = nvml
    script.write("gpus 2\n1 return nvmlDeviceGetUtilizationRates 31\n0 utilization 50\n1 utilization 50")
    answer = reader.read()
    assert [row["sm_activity"] for row in answer["rows"]] == [0.5, None]
    assert all(row["energy_mj"] for row in answer["rows"])
    assert answer["left_out"] == {"nvml_error": 1}


def test_an_unknown_code_of_the_driver_is_named(nvml: Nvml) -> None:
    """A driver that fails with an unknown code fails the reading, and the message carries the code."""
    script, reader = nvml
    script.write("gpus 1\nreturn nvmlDeviceGetCount_v2 31")
    answer = reader.read()
    assert answer["error"] == "nvml_error"
    assert "31 (a code of a later driver)" in answer["message"]
    script.write("gpus 1")
    assert only_row(reader.read(at_s=2))["energy_mj"]


@pytest.mark.parametrize(("code", "reason"), [(15, "gpu_lost"), (16, "reset_required")])
def test_a_lost_gpu_leaves_the_others_alone_and_comes_back(nvml: Nvml, code: int, reason: str) -> None:
    """A lost GPU is left out and counted, the others go on; it is looked for every 30 s and taken up again."""
    script, reader = nvml
    script.write("gpus 2")
    assert len(reader.read(at_s=0)["rows"]) == 2
    script.write(f"gpus 2\n1 return * {code}")
    counted, warned = 0, []
    for second in range(1, 60):
        answer = reader.read(at_s=second)
        assert [row["gpu_uuid"] for row in answer["rows"]] == [uuid(0)]
        counted += answer["left_out"].pop(reason)
        assert answer["left_out"] == {}
        warned += [(event["gpu"], event["reason"]) for event in answer["events"]]
    # a lost GPU may not even tell its UUID when it is looked for
    assert (counted, warned) == (59, [(uuid(1), reason), ("index 1", reason)])
    script.write("gpus 2\n1 handle 7")
    assert len(reader.read(at_s=59)["rows"]) == 1
    back = reader.read(at_s=60)
    assert (len(back["rows"]), back["left_out"]) == (2, {})


def test_handles_that_changed_unseen_are_renewed(nvml: Nvml) -> None:
    """A GPU that came back with another handle is read with it from the next look at the device list on."""
    script, reader = nvml
    reader.read(at_s=0)
    script.write("gpus 1\n0 handle 3")
    assert reader.read(at_s=1)["error"] == "gpu_lost"
    assert only_row(reader.read(at_s=30))["gpu_uuid"] == uuid(0)
    script.write("gpus 1\n0 handle 4")
    assert only_row(reader.read(at_s=60))["gpu_uuid"] == uuid(0)


def test_a_gpu_one_may_not_open_is_skipped(nvml: Nvml) -> None:
    """NVML counts GPUs whose handle it does not give; they are counted by reason and the others are read."""
    script, reader = nvml
    script.write("""
        gpus 4
        0 return nvmlDeviceGetHandleByIndex_v2 4
        2 return nvmlDeviceGetHandleByIndex_v2 8
        3 return nvmlDeviceGetHandleByIndex_v2 17
    """)
    answer = reader.read()
    assert only_row(answer)["gpu_uuid"] == uuid(1)
    assert answer["left_out"] == {"no_permission": 1, "insufficient_power": 1, "blocked_by_system": 1}


def test_no_readable_gpu_is_a_failed_reading(nvml: Nvml) -> None:
    """If no GPU at all can be read, or none is there, the reading fails and says why."""
    script, reader = nvml
    script.write("gpus 2\n0 return * 15\n1 return * 15")
    answer = reader.read(at_s=0)
    assert answer["error"] == "gpu_lost"
    assert "dmesg" in answer["message"]
    script.write("gpus 0")
    assert reader.read(at_s=30)["error"] == "no_gpu"


def test_gpus_that_come_and_go_are_followed(nvml: Nvml) -> None:
    """The device list is looked at every 30 s: new GPUs give rows, vanished ones give none and are logged."""
    script, reader = nvml
    assert len(reader.read(at_s=0)["rows"]) == 1
    script.write("gpus 2")
    assert len(reader.read(at_s=29)["rows"]) == 1
    assert len(reader.read(at_s=30)["rows"]) == 2
    script.write("gpus 1")
    answer = reader.read(at_s=60)
    assert only_row(answer)["gpu_uuid"] == uuid(0)
    assert [(e["event"], e["gpu"]) for e in answer["events"]] == [("gpu_disappeared", uuid(1))]


def test_a_clock_set_back_does_not_stop_the_slow_readings(nvml: Nvml) -> None:
    """After the clock jumps back an hour, the device list is looked at again at once."""
    script, reader = nvml
    reader.read(at_s=10_000)
    script.write("gpus 2")
    assert len(reader.read(at_s=6_400)["rows"]) == 2


@pytest.mark.parametrize(
    ("code", "reason", "mend"),
    [(9, "driver_not_loaded", "modprobe nvidia"), (18, "driver_mismatch", "restart Idlewatt")],
)
def test_a_driver_that_is_not_ready_is_tried_again(nvml: Nvml, code: int, reason: str, mend: str) -> None:
    """A driver that cannot be initialised fails the reading with what mends it, and is read once mended."""
    script, reader = nvml
    script.write(f"gpus 1\nreturn nvmlInitWithFlags {code}")
    answer = reader.read(at_s=1)
    assert answer["error"] == reason
    assert mend in answer["message"]
    script.write("gpus 1")
    assert only_row(reader.read(at_s=2))["gpu_uuid"] == uuid(0)


@pytest.mark.parametrize("call", [FIELDS, "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetUUID"])
def test_a_mismatch_in_the_middle_is_the_drivers_trouble_not_a_gpus(nvml: Nvml, call: str) -> None:
    """A driver upgraded under a running collector fails the whole reading instead of leaving figures out."""
    script, reader = nvml
    reader.read(at_s=0)
    script.write(f"gpus 1\n0 return {call} 18")
    assert reader.read(at_s=30)["error"] == "driver_mismatch"


def test_a_missing_library_is_said_and_taken_once_it_is_there(
    nvml_library: Callable[..., Path], start_reader: START, tmp_path: Path
) -> None:
    """Without a loadable libnvidia-ml.so.1 the reading fails with what mends it; it is tried again."""
    broken = tmp_path / "libnvidia-ml.so.1"
    broken.write_text("no library")
    script = NvmlScript(broken, tmp_path / "script")
    reader = start_reader(script.environment)
    answer = reader.read(at_s=1)
    assert answer["error"] == "driver_missing"
    assert "install the NVIDIA driver" in answer["message"]
    assert [ok for ok, _, _ in reader.ask("probe", timeout_s=20)] == [False]
    broken.unlink()
    broken.symlink_to(nvml_library())
    assert only_row(reader.read(at_s=2))["gpu_uuid"] == uuid(0)


def test_a_function_that_the_library_lacks_costs_only_its_figure(
    nvml_library: Callable[..., Path], start_reader: START, tmp_path: Path
) -> None:
    """A symbol older drivers do not export leaves its column null, and nothing is counted as failed."""
    library = nvml_library("WITHOUT_CLOCKS_EVENT_REASONS")
    reader = start_reader(NvmlScript(library, tmp_path / "script").environment)
    answer = reader.read()
    row = only_row(answer)
    assert row["clocks_event_reasons"] is None
    assert row["energy_mj"] is not None
    assert answer["left_out"] == {}


def test_a_library_shut_down_by_others_is_initialised_again(nvml: Nvml) -> None:
    """If something else in the process shuts NVML down, the same reading opens it again."""
    script, reader = nvml
    reader.read(at_s=1)
    script.write("gpus 1\nshutdown 1")
    assert only_row(reader.read(at_s=2))["energy_mj"]


def test_a_forked_process_initialises_its_own_library(nvml: Nvml) -> None:
    """NVML does not live through a fork: the child initialises it anew, and the parent goes on."""
    _, reader = nvml
    reader.read(at_s=1)
    assert only_row(reader.ask("read_in_fork", at_s=2))["gpu_uuid"] == uuid(0)
    assert only_row(reader.read(at_s=3))["gpu_uuid"] == uuid(0)


def test_a_hanging_call_does_not_hold_up_close(nvml: Nvml) -> None:
    """Close returns while a call hangs in the driver, and lets the driver go when the call comes back."""
    script, reader = nvml
    reader.read(at_s=1)
    shutdowns = reader.ask("calls", call="nvmlShutdown")
    script.write("gpus 1\n0 hang nvmlDeviceGetFieldValues")
    reader.ask("start_read", at_s=2)
    assert reader.ask("close") < 5
    assert reader.ask("calls", call="nvmlShutdown") == shutdowns
    assert reader.ask("finish_read")["error"] == "hung"
    script.write("gpus 1")
    reader.ask("await_calls", call="nvmlShutdown", times=shutdowns + 1)
    assert reader.read(at_s=3)["error"] == "closed"


@pytest.mark.parametrize("call", [FIELDS, "nvmlDeviceGetUUID"])
def test_a_gpu_whose_driver_hangs_takes_no_other_with_it(nvml: Nvml, call: str) -> None:
    """Read or looked for, it is left out and not asked again while the call is out; the others are read each second."""
    script, reader = nvml
    script.write("gpus 3")
    assert len(reader.read(at_s=0)["rows"]) == 3
    calls = reader.ask("calls", call=call)
    script.write(f"gpus 3\n1 hang {call}")
    began = time.monotonic()
    for second in range(30, 40):
        answer = reader.read(at_s=second)
        healthy = [row for row in answer["rows"] if row["gpu_uuid"] != uuid(1)]
        assert [row["ts_ms"] for row in healthy] == [second * 1000] * 2
        # the one that could not be looked for is read as before
        assert answer["left_out"] == ({"hung": 1} if call == FIELDS else {})
        assert len(answer["rows"]) == (2 if call == FIELDS else 3)
    # one that waited for it each time would take ten
    assert time.monotonic() - began < 8
    assert reader.ask("calls", call=call) - calls == (21 if call == FIELDS else 3)
    script.write("gpus 3")
    # the call comes back on its own thread
    deadline = time.monotonic() + 5
    while (answer := reader.read(at_s=second + 1))["left_out"]:
        assert time.monotonic() < deadline
    assert len(answer["rows"]) == 3


def test_a_gpu_that_answers_late_is_told_of_by_the_next_reading(nvml: Nvml) -> None:
    """As of its own time, or as lost: asked again instead, one that always takes so long would never be read."""
    script, reader = nvml
    script.write("gpus 2")
    reader.read(at_s=0)
    _leave_behind(nvml, 10)
    fields = reader.ask("calls", call=FIELDS)
    assert _answered(reader, 11) == ({uuid(0): 11_000, uuid(1): 10_000}, {})
    assert reader.ask("calls", call=FIELDS) == fields + 1
    assert _answered(reader, 12) == ({uuid(0): 12_000, uuid(1): 12_000}, {})
    script.write(f"gpus 2\n1 hang {FIELDS}")
    reader.read(at_s=13)
    script.write(f"gpus 2\n1 return {FIELDS} 15")
    assert _answered(reader, 14) == ({uuid(0): 14_000}, {"gpu_lost": 1})


def test_a_driver_that_fails_while_a_call_is_out_is_let_go_of_later(nvml: Nvml) -> None:
    """Each time that it was opened, NVML counts: it begins anew once all are made up. What the call brings is of no use."""
    script, reader = nvml
    script.write("gpus 2")
    reader.read(at_s=0)
    opened, shut = _opened(reader)
    script.write(f"gpus 2\n1 hang {FIELDS}")
    assert reader.read(at_s=10)["left_out"] == {"hung": 1}
    script.write(f"gpus 2\n1 hang {FIELDS}\nreturn nvmlDeviceGetCount_v2 999")
    assert reader.read(at_s=40)["error"] == "nvml_error"
    assert _opened(reader) == (opened, shut)
    script.write(f"gpus 2\n1 hang {FIELDS}")
    assert reader.read(at_s=70)["left_out"] == {"hung": 1}
    assert _opened(reader) == (opened + 1, shut)
    script.write("gpus 2")
    assert _answered(reader, 80) == ({uuid(0): 80_000, uuid(1): 80_000}, {})
    assert _opened(reader) == (opened + 1, shut + 1)
    reader.ask("close")
    assert _opened(reader) == (opened + 1, shut + 2)


def _opened(reader: NvmlReader) -> tuple[int, int]:
    """Times that NVML was initialised, and shut down."""
    opened = (reader.ask("calls", call=call) for call in ("nvmlInit_v2", "nvmlInitWithFlags"))
    return sum(opened), reader.ask("calls", call="nvmlShutdown")


def _leave_behind(nvml: Nvml, at_s: float) -> None:
    """Read while GPU 1 of 2 hangs, and wait until its figures are there."""
    script, reader = nvml
    calls = reader.ask("calls", call=REASONS)
    script.write(f"gpus 2\n1 hang {FIELDS}")
    assert reader.read(at_s=at_s)["left_out"] == {"hung": 1}
    script.write("gpus 2")
    reader.ask("await_calls", call=REASONS, times=calls + 2)


def _answered(reader: NvmlReader, at_s: float) -> tuple[dict[str, int], dict[str, int]]:
    """The times of its rows, and what was left out, once no call is out."""
    deadline = time.monotonic() + 5
    while "hung" in (answer := reader.read(at_s=at_s))["left_out"]:
        assert time.monotonic() < deadline
    return {row["gpu_uuid"]: row["ts_ms"] for row in answer["rows"]}, answer["left_out"]


def test_nothing_hangs_for_ever_where_one_gpu_does_from_the_start(nvml: Nvml) -> None:
    """A collector that is started then reads the others; the one is looked for again."""
    script, reader = nvml
    script.write("gpus 2\n0 hang nvmlDeviceGetUUID")
    answer = reader.read(at_s=0)
    assert ([row["gpu_uuid"] for row in answer["rows"]], answer["left_out"]) == ([uuid(1)], {"hung": 1})
    script.write("gpus 2")
    at_s = 0
    while answer["left_out"]:
        at_s += 30
        assert at_s < 100_000
        answer = reader.read(at_s=at_s)
    assert len(answer["rows"]) == 2


def test_a_mig_gpu_is_measured_once_as_its_parent(nvml: Nvml) -> None:
    """A GPU cut into instances gives one row with the whole energy, and no utilization."""
    script, reader = nvml
    script.write("gpus 1\n0 mig 1\n0 processes 2")
    answer = reader.read(at_s=1)
    row = only_row(answer)
    assert row["energy_mj"] is not None
    assert (row["power_mw"], row["sm_activity"], row["has_process"]) == (300_000, None, True)
    assert answer["left_out"] == {}


def test_an_empty_process_list_that_proves_nothing_is_null(nvml: Nvml) -> None:
    """Of a MIG GPU without privilege, and outside the host's PID namespace, processes may be hidden: no list, no idle GPU."""
    script, reader = nvml
    script.write(
        "gpus 2\n0 mig 1\n0 return nvmlDeviceGetFieldValues 999\n0 return nvmlDeviceGetPowerUsage 999"
    )
    assert [row["has_process"] for row in reader.read()["rows"]] == [None, False]
    reader.ask("close")
    reader.ask("open", sees_every_process=False)
    script.write("gpus 2\n1 processes 1")
    assert [row["has_process"] for row in reader.read()["rows"]] == [None, True]


@pytest.mark.parametrize(
    ("is_of_host", "has_privilege", "has_process"),
    [(True, True, False), (True, False, None), (False, True, None)],
)
def test_an_empty_mig_gpu_is_free_where_all_its_processes_would_be_seen(
    nvml: Nvml, is_of_host: bool, has_privilege: bool, has_process: bool | None
) -> None:
    """The driver lists those of all instances to the privileged; to others it would be dark for good."""
    script, reader = nvml
    reader.ask("open", sees_every_process=is_of_host, sees_every_instance=has_privilege)
    script.write("gpus 1\n0 mig 1")
    assert only_row(reader.read())["has_process"] is has_process


@pytest.mark.parametrize(
    ("code", "is_known", "has_process"),
    [(999, True, None), (4, False, None), (3, True, None), (3, False, False)],
)
def test_an_empty_gpu_that_may_be_cut_into_instances_is_not_called_free(
    nvml: Nvml, code: int, is_known: bool, has_process: bool | None
) -> None:
    """While its MIG mode cannot be read, processes may be hidden; a driver that knows no MIG at all hides none."""
    script, reader = nvml
    if is_known:
        script.write("gpus 1\n0 mig 1")
        reader.read(at_s=0)
    script.write(f"gpus 1\n0 mig 1\n0 return nvmlDeviceGetMigMode {code}")
    assert only_row(reader.read(at_s=6))["has_process"] is has_process


@pytest.mark.parametrize(
    ("user_namespace", "effective", "sees"),
    [
        ("user:[4026531837]", "000001ffffffffff", True),
        ("user:[4026531837]", "00000000a80425fb", False),
        ("user:[4026532345]", "000001ffffffffff", False),
    ],
    ids=["root", "root_of_a_container", "root_of_a_user_namespace"],
)
def test_root_alone_is_no_privilege(
    monkeypatch: pytest.MonkeyPatch, user_namespace: str, effective: str, sees: bool
) -> None:
    """The driver asks for the capability CAP_SYS_ADMIN of the host, which root in a container most often lacks."""
    monkeypatch.setattr(nvml_driver.os, "readlink", lambda _: user_namespace)
    monkeypatch.setattr(
        nvml_driver.Path, "read_text", lambda *_, **__: f"Name:\tpython\nCapEff:\t{effective}\n"
    )
    assert nvml_driver.sees_every_instance() is sees


@pytest.mark.parametrize(
    ("code", "left_out"), [(4, {"no_permission": 1}), (999, {"nvml_error": 1}), (3, {"meter_lost": 1})]
)
def test_a_failed_process_query_is_null_not_idle(nvml: Nvml, code: int, left_out: dict[str, int]) -> None:
    """If the process list cannot be read, has_process is null, even where it was known before."""
    script, reader = nvml
    assert only_row(reader.read(at_s=0))["has_process"] is False
    script.write(f"gpus 1\n0 return {PROCESSES} {code}")
    answer = reader.read(at_s=5)
    assert only_row(answer)["has_process"] is None
    assert answer["left_out"] == left_out


def test_slow_figures_are_read_seldom(nvml: Nvml) -> None:
    """In a minute at 1 Hz processes are listed 12 times and limits asked for twice, changes included."""
    script, reader = nvml
    before = reader.ask("calls", call=PROCESSES), reader.ask("calls", call=LIMIT)
    rows = []
    for second in range(60):
        if second == 7:
            script.write("gpus 1\n0 limit 400000\n0 processes 1")
        rows.append(only_row(reader.read(at_s=second)))
    # one process means two calls: how many, and which
    assert reader.ask("calls", call=PROCESSES) - before[0] == 2 + 10 * 2
    assert reader.ask("calls", call=LIMIT) - before[1] == 2
    assert [row["has_process"] for row in rows].index(True) == 10
    assert [row["power_limit_mw"] for row in rows].index(400_000) == 30


def test_a_limit_that_could_not_be_read_is_asked_for_at_the_next_reading(nvml: Nvml) -> None:
    """A failed limit query is counted, gives null, and is not waited for half a minute."""
    script, reader = nvml
    script.write(f"gpus 1\n0 return {LIMIT} 999")
    answer = reader.read(at_s=1)
    assert only_row(answer)["power_limit_mw"] is None
    assert answer["left_out"] == {"nvml_error": 1}
    script.write("gpus 1")
    assert only_row(reader.read(at_s=2))["power_limit_mw"] == 700_000


@pytest.mark.parametrize(("code", "reason"), [(999, "nvml_error"), (3, "meter_lost")])
def test_a_limit_is_kept_while_the_driver_does_not_tell_it(nvml: Nvml, code: int, reason: str) -> None:
    """A GPU keeps its headroom while the query for its limit fails, which is counted and made again at once."""
    script, reader = nvml
    script.write("gpus 1\n0 limit 400000")
    assert only_row(reader.read(at_s=1))["power_limit_mw"] == 400_000
    script.write(f"gpus 1\n0 return {LIMIT} {code}")
    for second in (31, 32):
        answer = reader.read(at_s=second)
        assert (only_row(answer)["power_limit_mw"], answer["left_out"]) == (400_000, {reason: 1})
    script.write("gpus 1\n0 limit 500000")
    answer = reader.read(at_s=33)
    assert (only_row(answer)["power_limit_mw"], answer["left_out"]) == (500_000, {})


@pytest.mark.parametrize("gpu", ["0 power 300000", GH200 + "0 no_field 185 0\n0 no_field 186 0"])
def test_a_limit_that_is_not_supported_is_counted_and_asked_for_again(nvml: Nvml, gpu: str) -> None:
    """Each half minute: without a limit nothing was set aside for the GPU, and a driver that starts may have one later."""
    script, reader = nvml
    script.write(f"gpus 1\n{gpu}\n0 return {LIMIT} 3\n0 no_field 190 1")
    before = reader.ask("calls", call=LIMIT)
    first, *rest = (reader.read(at_s=second) for second in range(1, 32))
    assert [only_row(answer)["power_limit_mw"] for answer in (first, *rest)] == [None] * 31
    assert [answer["left_out"] for answer in (first, *rest)] == [
        {"no_power_limit": 1},
        *[{}] * 29,
        {"no_power_limit": 1},
    ]
    assert "provisioned_watts_per_gpu" in first["events"][-1]["mend"]
    assert reader.ask("calls", call=LIMIT) - before == (2 if gpu == "0 power 300000" else 0)
    script.write(f"gpus 1\n{gpu}\n0 limit 900000")
    assert [only_row(reader.read(at_s=second))["power_limit_mw"] for second in (60, 61)] == [None, 900_000]


def test_an_energy_counter_that_starts_again_is_passed_on(nvml: Nvml) -> None:
    """A driver reload sets the counter back; the row tells it as it is, without an epoch, for the meter to judge."""
    script, reader = nvml
    script.write("gpus 1\n0 energy 900000")
    assert only_row(reader.read(at_s=1))["energy_mj"] == 900_000
    script.write("gpus 1\n0 energy 12")
    row = only_row(reader.read(at_s=2))
    assert (row["energy_mj"], row["epoch_ms"]) == (12, None)


def _readings(
    nvml: Nvml, drawn_w: float, told_w: Callable[[int], float], seconds: Iterable[int], lines: str = ""
) -> list[dict[str, Any]]:
    """Of one GPU whose counter gains `drawn_w`, while its power is `told_w` at each second."""
    script, reader = nvml
    answers = []
    for second in seconds:
        energy_mj, power_mw = 10**9 + round(1000 * drawn_w * second), round(1000 * told_w(second))
        script.write(f"gpus 1\n0 energy {energy_mj}\n0 power {power_mw}\n{lines}")
        answers.append(reader.read(at_s=START_S + second))
    return answers


def _swinging(second: int) -> float:
    return 100.0 if second % 20 < 10 else 500.0


INSTANT_ONLY = "0 no_field 185 0"
NO_LIMIT = f"0 return {LIMIT} 3\n0 return nvmlDeviceGetPowerManagementLimitConstraints 3"


@pytest.mark.parametrize(
    ("drawn_w", "told_w", "every_s", "lines"),
    [
        (0, lambda _: 70, 1, ""),
        (0, lambda _: 70, 10, INSTANT_ONLY),
        (0, _swinging, 1, NO_LIMIT),
        (0, lambda _: 70, 1, "0 field 186 0 999 1 0"),
        (0.49 * 300, _swinging, 1, ""),
        (2.1 * 300, _swinging, 1, ""),
    ],
    ids=[
        "still",
        "still_of_few_readings",
        "still_without_limit",
        "still_beside_what_fails",
        "too_little",
        "too_much",
    ],
)
def test_a_counter_that_its_power_contradicts_gives_way_to_it(
    nvml: Nvml, drawn_w: float, told_w: Callable[[int], float], every_s: int, lines: str
) -> None:
    """After two minutes in a row, with an epoch that says so to the meter. It is counted, and the log says what mends it."""
    answers = _readings(nvml, drawn_w, told_w, range(0, 300, every_s), lines)
    while only_row(answers[0])["energy_mj"] is None:
        del answers[0]
    refuted_ms = only_row(answers[0])["ts_ms"] + 120_000
    for answer in answers:
        row = only_row(answer)
        is_refuted = row["ts_ms"] >= refuted_ms
        assert row["power_mw"] == round(1000 * told_w(row["ts_ms"] // 1000 - START_S))
        assert (row["energy_mj"] is None) == is_refuted
        assert row["epoch_ms"] == (refuted_ms if is_refuted else None)
        assert answer["left_out"].get("energy_suspect", 0) == is_refuted
    said = [
        event for answer in answers for event in answer["events"] if event.get("reason") == "energy_suspect"
    ]
    assert [(event["gpu"], "reset the GPU" in event["mend"]) for event in said] == [(uuid(0), True)]


@pytest.mark.parametrize(
    ("drawn_w", "told_w", "seconds", "lines"),
    [
        (300, _swinging, range(600), ""),
        (0.57 * 300, _swinging, range(600), ""),
        (300, _swinging, [s for s in range(600) if s % 7], ""),
        (80, lambda second: 700 - second % 2, range(600), INSTANT_ONLY),
        (80, lambda second: 700 - second % 20 / 10, range(0, 1200, 10), ""),
        (70, lambda _: 300, range(600), ""),
        (35, lambda second: 588 + second % 5, range(600), NO_LIMIT),
        (0, lambda _: 0.5, range(600), ""),
        (0, lambda _: 70, range(0, 1200, 20), ""),
        (0, lambda _: 70, [s for s in range(600) if s % 100 < 80], ""),
    ],
    ids=[
        "swinging",
        "43_percent_low",
        "missed_samples",
        "instants_of_peaks",
        "few_averages_of_peaks",
        "power_stands_still",
        "bogus_power_without_limit",
        "board_asleep",
        "read_seldom",
        "interrupted",
    ],
)
def test_a_counter_is_believed_where_power_proves_nothing(
    nvml: Nvml, drawn_w: float, told_w: Callable[[int], float], seconds: Iterable[int], lines: str
) -> None:
    """Power that misses what is between its samples, or is wrong itself, takes no honest counter from a GPU."""
    for answer in _readings(nvml, drawn_w, told_w, seconds, lines):
        row = only_row(answer)
        assert (row["energy_mj"] is not None, row["epoch_ms"]) == (True, None)
        assert "energy_suspect" not in answer["left_out"]


def _read_of_gpu(rows: list[GpuRow], until_s: int) -> list[dict[str, Any]]:
    """What the meter books; it refuses no more than what is waited for."""
    driver = Driver(MeterStage(MeterConfig()))
    driver.append([Message(topics.GPU, GPU, rows)])
    for _ in range(2):
        driver.fold(1000 * (START_S + until_s) + 30_000)
    assert driver.rejected.keys() <= {("gpu", "counter_missing")}
    return driver.rows(POWER)


def test_no_joule_is_lost_or_doubled_where_a_counter_gives_way_and_comes_back(nvml: Nvml) -> None:
    """The meter goes on with estimates from the last reading of the counter on, until that has held for ten minutes."""
    still = _readings(nvml, 0, lambda _: 70, range(200))
    counting = _readings(nvml, 70, lambda _: 70, range(200, 1001))
    assert counting[-1]["left_out"] == {}
    rows = [GpuRow(**only_row(answer)) for answer in (*still, *counting)]
    booked = _read_of_gpu(rows, until_s=1000)
    counted = [row.ts_ms for row in rows if row.energy_mj is not None]
    back_s = min(ms for ms in counted if ms > 1000 * (START_S + 120)) // 1000 - START_S
    # a minute that the change falls into proves nothing
    assert 800 <= back_s <= 900
    # two minutes were lost before it was found out
    assert sum(row["draw_mj"] for row in booked) == 70_000 * (1000 - 119)
    assert sum(row["estimated_mj"] for row in booked) == 70_000 * (back_s - 119)


@pytest.mark.parametrize(("ahead_s", "blind_s"), [(0, 60), (7200, 0)])
def test_a_counter_that_gave_way_is_all_there_is_once_power_is_gone(
    nvml: Nvml, ahead_s: int, blind_s: int
) -> None:
    """Nobody could judge it any more, and the GPU would be dark for good, or until a clock that was ahead is there again."""
    _readings(nvml, 0, lambda _: 70, range(ahead_s, ahead_s + 200))
    script, reader = nvml
    no_power = "0 no_field 185 0\n0 no_field 186 0\n0 return nvmlDeviceGetPowerUsage 3"
    energies = []
    for second in range(200, 320):
        script.write(f"gpus 1\n0 energy {10**9 + 70_000 * second}\n{no_power}")
        energies.append(only_row(reader.read(at_s=START_S + second))["energy_mj"])
    blind = [energy for energy in energies if energy is None]
    assert energies == [*blind, *energies[len(blind) :]]
    assert len(blind) == blind_s


@pytest.mark.parametrize(
    ("code", "is_restarted", "dark_s"),
    [(3, True, 0), (3, False, 91), (999, False, 91)],
    ids=["another_driver", "not_supported", "fails"],
)
def test_a_counter_that_is_there_no_more_is_done_without(
    nvml: Nvml, start_reader: START, code: int, is_restarted: bool, dark_s: int
) -> None:
    """One that had answered is waited for a minute and a half. Once it is back, no joule counts twice."""
    script, reader = nvml
    rows = [only_row(answer) for answer in _readings(nvml, 70, lambda _: 70, range(100))]
    if is_restarted:
        reader = start_reader(script.environment)
    script.write(f"gpus 1\n0 power 70000\n0 field 83 0 {code} 1 0\n0 return {ENERGY} {code}")
    rows += [only_row(reader.read(at_s=START_S + second)) for second in range(100, 300)]
    assert all(row["energy_mj"] is None for row in rows[100:])
    rows += [only_row(answer) for answer in _readings(nvml, 70, lambda _: 70, range(300, 400))]
    booked = _read_of_gpu([GpuRow(**row) for row in rows], until_s=400)
    assert sum(row["draw_mj"] for row in booked) == 70_000 * (399 - dark_s)
    assert sum(row["estimated_mj"] for row in booked) == 70_000 * (201 - dark_s)


@pytest.mark.parametrize("is_restarted", [False, True])
@pytest.mark.parametrize(("all_fail_s", "counter_fails_s"), [(0, 8), (600, 1), (600, 6)])
def test_a_counter_that_fails_for_a_while_tells_all_afterwards(
    nvml: Nvml, start_reader: START, is_restarted: bool, all_fail_s: int, counter_fails_s: int
) -> None:
    """Nothing is estimated of what it counted meanwhile, also where it answers after power did."""
    script, reader = nvml
    no_counter = f"0 field 83 0 999 1 0\n0 return {ENERGY} 999"
    nothing = (
        f"{no_counter}\n0 field 185 0 999 1 0\n0 field 186 0 999 1 0\n0 return nvmlDeviceGetPowerUsage 999"
    )
    answers = _readings(nvml, 70, lambda _: 70, range(100))
    if is_restarted:
        reader = start_reader(script.environment)
    nvml = script, reader
    counter_s, until_s = 100 + all_fail_s + counter_fails_s, all_fail_s + 300
    answers += _readings(nvml, 70, lambda _: 70, range(100, 100 + all_fail_s, 20), nothing)
    answers += _readings(nvml, 70, lambda _: 70, range(100 + all_fail_s, counter_s), no_counter)
    answers += _readings(nvml, 70, lambda _: 70, range(counter_s, until_s + 1))
    rows = [GpuRow(**only_row(answer)) for answer in answers]
    booked = _read_of_gpu([row for row in rows if row.power_mw is not None], until_s)
    assert [sum(row[joules] for row in booked) for joules in ("draw_mj", "estimated_mj")] == [
        70_000 * until_s,
        0,
    ]


@pytest.mark.parametrize("code", [3, 999])
def test_the_energy_call_stands_in_for_a_field_that_answers_no_more(nvml: Nvml, code: int) -> None:
    """Both tell the same counter: within a minute all that it gained meanwhile is known, and again once the field is back."""
    answers = _readings(nvml, 70, lambda _: 70, range(100))
    answers += _readings(nvml, 70, lambda _: 70, range(100, 300), f"0 field 83 0 {code} 1 0")
    answers += _readings(nvml, 70, lambda _: 70, range(300, 401))
    rows = [GpuRow(**only_row(answer)) for answer in answers]
    assert [row.ts_ms // 1000 - START_S for row in rows if row.energy_mj is None] == list(range(100, 160))
    booked = _read_of_gpu(rows, until_s=400)
    assert [sum(row[joules] for row in booked) for joules in ("draw_mj", "estimated_mj")] == [70_000 * 400, 0]


@pytest.mark.parametrize(
    "unused", ["0 field 186 0 {} 1 0", "0 return nvmlDeviceGetPowerUsage {}", f"0 return {ENERGY} {{}}"]
)
@pytest.mark.parametrize("code", [3, 999])
def test_what_nobody_reads_is_not_asked_for_for_ever(nvml: Nvml, unused: str, code: int) -> None:
    """After a hiccup all is looked at once: a GPU that is read whole then has nothing left out any more."""
    script, reader = nvml
    script.write("gpus 1\n0 energy 5000 300000")
    assert reader.read(at_s=0)["left_out"] == {}
    lacking = f"gpus 1\n0 energy 9000000 300000\n{unused.format(code)}"
    script.write(f"{lacking}\n0 field 185 0 999 1 0")
    assert only_row(reader.read(at_s=1))["power_mw"] is None
    script.write(lacking)
    left_out = {second: reader.read(at_s=second)["left_out"] for second in range(2, 300)}
    assert [second for second in left_out if left_out[second]] == [61]


def test_a_gpu_that_is_read_whole_does_not_wait_for_what_nobody_reads(nvml: Nvml) -> None:
    """Power that is preferred answers, and so does the counter: nothing else could be better."""
    script, reader = nvml
    script.write("gpus 1\n0 energy 5000 300000\n0 field 186 0 999 1 0")
    answers = [reader.read(at_s=second) for second in range(200)]
    assert all(only_row(answer)["energy_mj"] is not None for answer in answers)
    assert [answer["left_out"] for answer in answers] == [{"nvml_error": 1}, *[{}] * 199]


@pytest.mark.parametrize("answer", ["3 1 0", "999 1 0", "0 1 0"], ids=["refused", "fails", "zero"])
def test_another_power_stands_in_for_one_that_answers_no_more(nvml: Nvml, answer: str) -> None:
    """Else a GPU without a counter would be dark for as long as the collector runs."""
    script, reader = nvml
    no_counter = f"gpus 1\n0 no_field 83 0\n0 return {ENERGY} 3\n0 field 186 0 0 1 186000\n"
    script.write(no_counter)
    assert only_row(reader.read(at_s=10))["power_mw"] == 300_000
    script.write(f"{no_counter}0 field 185 0 {answer}")
    told_mw = [only_row(reader.read(at_s=second))["power_mw"] for second in range(11, 100)]
    assert told_mw == [None] * 60 + [186_000] * 29


def test_power_alone_stands_in_where_nothing_else_answers_any_more(nvml: Nvml) -> None:
    """Else the GPU would be dark until a restart; the counter counts on once it is back."""
    script, reader = nvml
    fields, lost = "gpus 1\n0 energy {}\n0 power 300000\n", f"0 return {FIELDS} 999\n0 return {ENERGY} 999"
    script.write(fields.format(10**9))
    before = only_row(reader.read(at_s=10))
    script.write(fields.format(10**9) + lost)
    told = [only_row(reader.read(at_s=second)) for second in range(11, 100)]
    assert [row["power_mw"] for row in told] == [None] * 60 + [300_000] * 29
    assert not any(row["energy_mj"] for row in told)
    script.write(fields.format(10**9 + 5))
    told = [only_row(reader.read(at_s=second)) for second in range(100, 200)]
    assert (told[-1]["energy_mj"], told[-1]["epoch_ms"]) == (10**9 + 5, before["epoch_ms"])


def test_a_counter_alone_stands_in_where_no_power_answers_any_more(nvml: Nvml) -> None:
    """Also one that was not there when the GPU was first read; power is read on as soon as it is back."""
    script, reader = nvml
    no_counter = f"0 return {ENERGY} 999\n0 field 83 0 999 3 0"
    script.write(f"gpus 1\n0 power 300000\n{no_counter}")
    told = [only_row(reader.read(at_s=second)) for second in range(10)]
    assert (told[-1]["energy_mj"], told[-1]["power_mw"]) == (None, 300_000)
    no_power = "0 no_field 185 0\n0 no_field 186 0\n0 return nvmlDeviceGetPowerUsage 999"
    script.write(f"gpus 1\n0 energy 1000\n{no_power}")
    told = [only_row(reader.read(at_s=second)) for second in range(10, 100)]
    assert {(row["energy_mj"], row["power_mw"]) for row in told[60:]} == {(1000, None)}
    script.write("gpus 1\n0 energy 1000")
    row = only_row(reader.read(at_s=100))
    assert (row["energy_mj"], row["power_mw"]) == (1000, 300_000)


def test_a_hiccup_of_a_second_does_not_change_what_a_gpu_is_read_from(nvml: Nvml) -> None:
    """Nor one a minute later, when all calls are tried: the counter of a module never counts for its GPU alone."""
    script, reader = nvml
    script.write(GH200)
    before = only_row(reader.read(at_s=10))
    for second in (11, 71):
        script.write(f"{GH200}0 return {FIELDS} 999")
        row = only_row(reader.read(at_s=second))
        assert row["energy_mj"] is None
        script.write(GH200)
        row = only_row(reader.read(at_s=second + 1))
        assert (row["energy_mj"], row["power_scope"]) == (None, "gpu")
    row = only_row(reader.read(at_s=131))
    assert [row[name] for name in ("energy_mj", "power_mw")] == [before["energy_mj"], before["power_mw"]]


def test_a_counter_that_stands_still_is_not_believed_for_power_that_comes_and_goes(nvml: Nvml) -> None:
    """Power that is read from one call, then from another, says as much as that of one."""
    answers = []
    for second in range(400):
        lacking = "0 field 185 0 999 1 0" if second % 140 in (20, 80) else ""
        answers += _readings(nvml, 0, lambda _: 70, [second], lacking)
    assert only_row(answers[-1])["energy_mj"] is None


def test_a_counter_is_done_without_although_power_fails_now_and_then(nvml: Nvml) -> None:
    """Once a minute: the wait for the counter is none for power."""
    answers = _readings(nvml, 70, lambda _: 70, range(100))
    no_counter = f"0 field 83 0 999 1 0\n0 return {ENERGY} 999"
    for second in range(100, 301):
        lacking = "\n0 field 185 0 999 1 0" if second % 60 == 30 else ""
        answers += _readings(nvml, 70, lambda _: 70, [second], no_counter + lacking)
    rows = [GpuRow(**only_row(answer)) for answer in answers]
    booked = _read_of_gpu([row for row in rows if row.power_mw is not None], until_s=300)
    assert sum(row["draw_mj"] for row in booked) == 70_000 * (300 - 91)


def test_a_superchip_that_tells_its_gpus_power_now_is_not_waited_for(nvml: Nvml, start_reader: START) -> None:
    """Its counter is that of the module, and goes with no power of the GPU alone."""
    script, reader = nvml
    module = GH200 + "0 no_field 185 0\n0 no_field 186 0"
    script.write(module)
    assert only_row(reader.read(at_s=START_S))["energy_mj"] is not None
    script.write(GH200)
    row = only_row(start_reader(script.environment).read(at_s=START_S + 1))
    assert (row["energy_mj"], row["power_scope"]) == (None, "gpu")
    assert row["epoch_ms"] == 1000 * (START_S + 1)


def test_a_gpu_without_counter_goes_on_where_its_clock_is_set_right(nvml: Nvml) -> None:
    """It was two hours ahead when the counter gave way: an epoch of then would be refused for as long."""
    ahead_s = 7200
    rows = [only_row(answer) for answer in _readings(nvml, 0, lambda _: 70, range(ahead_s, ahead_s + 200))]
    assert rows[-1]["epoch_ms"] > 1000 * (START_S + ahead_s)
    for answer in _readings(nvml, 0, lambda _: 70, range(100)):
        assert only_row(answer)["epoch_ms"] == 1000 * START_S


@pytest.mark.parametrize(
    ("line", "column", "reason"),
    [
        ("0 power 45501", "power_mw", "implausible_power"),
        ("0 power 0", "power_mw", "implausible_power"),
        ("0 power 4294967295", "power_mw", "implausible_power"),
        ("0 field 185 0 0 0 nan", "power_mw", "implausible_power"),
        ("0 field 83 0 0 3 18446744073709551615", "energy_mj", "implausible_energy"),
        ("0 field 83 0 0 3 0", "energy_mj", "implausible_energy"),
        ("0 utilization 4294967295", "sm_activity", "implausible_utilization"),
        ("0 reasons 18446744073709551615", "clocks_event_reasons", "implausible_clocks_event_reasons"),
    ],
)
def test_impossible_figures_are_left_out(nvml: Nvml, line: str, column: str, reason: str) -> None:
    """A figure that cannot be true is null and counted; the rest of the row stands and can be sent."""
    script, reader = nvml
    laptop = "gpus 1\n0 limit 35000\n0 max_limit 35000\n"
    script.write(f"{laptop}0 power 30000")
    assert only_row(reader.read(at_s=1))["power_mw"] == 30_000
    script.write(f"{laptop}0 power 30000\n{line}")
    answer = reader.read(at_s=2)
    row = only_row(answer)
    assert answer["left_out"] == {reason: 1}
    assert [
        name for name in ("power_mw", "energy_mj", "sm_activity", "clocks_event_reasons") if row[name] is None
    ] == [column]
    assert encode_rows(GPU, [GpuRow(**row)])


def test_short_peaks_over_the_limit_are_believed(nvml: Nvml) -> None:
    """Power up to 1.3 times the highest limit is no fault of the sensor, however low the limit is set."""
    script, reader = nvml
    script.write("gpus 1\n0 limit 200000\n0 max_limit 700000\n0 power 910000")
    assert only_row(reader.read())["power_mw"] == 910_000


@pytest.mark.parametrize("line", ["0 limit 0", "0 limit 4294967295"])
def test_an_impossible_limit_is_left_out(nvml: Nvml, line: str) -> None:
    """A limit of nothing, or of all ones, is null."""
    script, reader = nvml
    script.write(f"gpus 1\n{line}")
    answer = reader.read()
    assert only_row(answer)["power_limit_mw"] is None
    assert answer["left_out"] == {"implausible_limit": 1}


def test_reading_eight_gpus_costs_little(nvml: Nvml) -> None:
    """Eight GPUs at one reading a second take less than half a percent of a core, the library's part included."""
    script, reader = nvml
    script.write("gpus 8\n" + "\n".join(f"{index} processes 1" for index in range(8)))
    reader.read()
    assert reader.ask("cpu_per_read", reads=200) < 0.005


def test_the_probe_tells_what_each_gpu_can_do(nvml: Nvml) -> None:
    """The doctor hears of driver version, GPU count, and per GPU how energy, power and processes are read."""
    script, reader = nvml
    script.write("""
        driver 570.1
        gpus 5
        0 no_field 185 0
        1 no_field 83 0
        1 return nvmlDeviceGetTotalEnergyConsumption 3
        1 return nvmlDeviceGetComputeRunningProcesses_v3 4
        2 return nvmlDeviceGetHandleByIndex_v2 4
        3 return * 15
        4 return nvmlDeviceGetFieldValues 3
        4 return nvmlDeviceGetTotalEnergyConsumption 3
        4 return nvmlDeviceGetPowerUsage 3
    """)
    lines = reader.ask("probe", timeout_s=20)
    assert lines[0] == [True, "NVIDIA driver 570.1 shows 5 GPUs", ""]
    assert [(ok, what.removeprefix("NVIDIA H100 80GB HBM3 GPU-")) for ok, what, _ in lines[1:]] == [
        (True, f"{uuid(0)[4:]}: energy counter, power at an instant, limit 700 W"),
        (
            True,
            f"{uuid(1)[4:]}: no energy counter (energy is estimated from power), "
            "power as one-second average, limit 700 W",
        ),
        (False, f"{uuid(1)[4:]}: cannot tell whether a process holds it"),
        (False, f"{uuid(1)[4:]}: no_permission"),
        (False, "GPU 2: no_permission"),
        (False, "GPU 3: gpu_lost"),
        (False, f"{uuid(4)[4:]}: has neither an energy counter nor a power reading"),
        (False, f"{uuid(4)[4:]}: no_power_reading"),
    ]
    assert all(ok == (mend == "") for ok, _, mend in lines)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("return nvmlInitWithFlags 18", "NVIDIA driver: driver_mismatch"),
        ("return nvmlDeviceGetCount_v2 31", "NVIDIA driver: nvml_error"),
        ("gpus 0", "NVIDIA driver 580.105.08 shows 0 GPUs"),
        ("gpus 1\n0 return nvmlDeviceGetName 18", "NVIDIA driver: driver_mismatch"),
    ],
)
def test_the_probe_of_a_broken_driver_is_a_line_not_an_error(nvml: Nvml, text: str, what: str) -> None:
    """Whatever the driver answers, the doctor gets lines that say what mends it."""
    script, reader = nvml
    script.write(text)
    *_, (ok, found, mend) = reader.ask("probe", timeout_s=20)
    assert (ok, found) == (False, what)
    assert mend


def test_the_probe_of_a_hanging_driver_ends(nvml: Nvml) -> None:
    """A driver that does not answer cannot hang the doctor."""
    script, reader = nvml
    script.write("gpus 1\n0 hang nvmlDeviceGetUUID")
    *_, (ok, what, mend) = reader.ask("probe", timeout_s=0.3)
    assert (ok, what) == (False, "the NVIDIA driver did not answer for 0.3 s")
    assert "reboot" in mend
