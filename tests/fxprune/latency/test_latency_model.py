"""Building and predicting, on a device whose true costs are known."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from latency_nets import INPUT, FormulaDevice, Net

from fxprune import Budget, netadapt
from fxprune.latency import LatencyTable, Limits, UncoveredTable, latency_model, width_grid
from fxprune.latency.backends.protocol import Timed
from fxprune.latency.backends.registry import find
from fxprune.latency.errors import BackendError, LatencyError
from fxprune.latency.predict import measured_model, model_of
from fxprune.latency.sampling import FIRST, Network, brought_to, build, spread
from fxprune.latency.timing import Pace, Timing
from passes import capture, couple


@pytest.fixture(autouse=True)
def _no_warming_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A formula needs none."""
    for module in ("sampling", "predict"):
        monkeypatch.setattr(f"fxprune.latency.{module}.warm_up", lambda reference, **_: reference.times_ms.append(1.0))


def network(step: int = 8) -> Network:
    gm = capture(Net().eval(), INPUT)
    coupling = couple(gm, INPUT)
    return Network(gm, coupling, INPUT, width_grid(coupling, step))


def errors(net: Network, device: FormulaDevice, table: LatencyTable, count: int = 30) -> np.ndarray:
    """Relative errors at random widths, after calibration by the dense network."""
    model = model_of(net, table).calibrate(device.true_ms(net.gm))
    vectors = spread(net.grid, count, seed=99)
    return np.array([model.predict_ms(widths) / device.true_ms(net.at(widths)) - 1 for widths in vectors])


def test_profiles_of_few_networks_predict_all() -> None:
    net, device = network(), FormulaDevice()
    table = build(net, device)
    assert device.measured <= FIRST + 6
    off = np.abs(errors(net, device, table))
    assert np.median(off) < 0.01 and off.max() < 0.05


def test_a_second_build_measures_nothing() -> None:
    net, device = network(), FormulaDevice()
    table = build(net, device)
    before = device.measured, table.samples
    assert build(net, device, table).samples == before[1] and device.measured == before[0]
    coarser = Network(net.gm, net.coupling, INPUT, width_grid(net.coupling, 16))
    build(coarser, device, table)
    assert device.measured == before[0]
    finer = Network(net.gm, net.coupling, INPUT, width_grid(net.coupling, 4))
    build(finer, device, table)
    assert device.measured > before[0]


def test_an_interrupted_build_goes_on_where_it_was(tmp_path: Path) -> None:
    net, device, path = network(), FormulaDevice(), tmp_path / "t.json"
    device.fail_after = 7
    with pytest.raises(KeyboardInterrupt):
        build(net, device, path=path)
    found = LatencyTable.load(path, device.setting)
    assert found.samples == 1 + 6 * len(net.units)  # the first measurement was that of an empty call
    device.fail_after = None
    whole = build(net, device, found, path=path)
    assert device.measured <= FIRST + 6
    assert LatencyTable.load(path, device.setting) == whole
    again = device.measured
    build(net, device, LatencyTable.load(path, device.setting), path=path)
    assert device.measured == again


def test_a_build_interrupted_late_goes_on_too(tmp_path: Path) -> None:
    net, device, path = network(), FormulaDevice(noise=0.05), tmp_path / "t.json"
    device.fail_after = FIRST + 3  # beside the networks, the empty call: two were chosen by what is uncertain
    with pytest.raises(KeyboardInterrupt):
        build(net, device, path=path)
    device.fail_after = None
    whole = build(net, device, LatencyTable.load(path, device.setting), path=path, limits=Limits(networks=FIRST + 5))
    assert device.measured == 1 + FIRST + 5 and whole.samples == 1 + (FIRST + 5) * len(net.units)


def test_a_build_that_is_wrong_about_itself_goes_on() -> None:
    """Networks that take up to half longer at random are not predicted, however sure the surfaces of units are."""

    class Erratic(FormulaDevice):
        def profile(self, *args):
            found = super().profile(*args)
            return replace(found, whole=found.whole.scaled(1 + 0.5 * self.rng.random()))

    steady, erratic = FormulaDevice(noise=0.0), Erratic(noise=0.0)
    build(network(), steady)
    build(network(), erratic, limits=Limits(networks=FIRST + 16))
    assert steady.measured <= 1 + FIRST + 6 and erratic.measured == 1 + FIRST + 16


def test_stairs_are_found_and_offered_as_steps() -> None:
    net, device = network(step=4), FormulaDevice(step=16)
    model = model_of(net, build(net, device, limits=Limits(networks=60)))
    assert model.steps() == dict.fromkeys(net.coupling.widths, 16)
    smooth = FormulaDevice(step=1)
    assert model_of(net, build(net, smooth)).steps() == {}


def test_what_was_always_interrupted_takes_what_the_others_leave() -> None:
    def ms(whole: float, *parts: tuple[float, bool]) -> list[float]:
        found = brought_to(whole, [(Timing(value, value, value, 9), spared) for value, spared in parts])
        assert sum(timing.ms for timing in found) == pytest.approx(whole)
        return [timing.ms for timing in found]

    assert ms(10, (4, True), (1, True), (9, False), (6, False)) == pytest.approx([4, 1, 3, 2])
    assert ms(10, (4, True), (4, True)) == pytest.approx([5, 5])
    assert ms(10, (6, True), (2, False)) == pytest.approx([7.5, 2.5])  # nothing to take away: all grow alike
    assert ms(10, (12, True), (8, False)) == pytest.approx([6, 4])  # the others leave nothing


def test_auto_widths_are_the_stairs_of_the_device() -> None:
    net, device = network(step=4), FormulaDevice(step=16, noise=0.001)
    model = model_of(net, build(net, device, limits=Limits(networks=60)))
    result = netadapt(
        net.gm, Budget("latency", ratio=0.6), example_inputs=INPUT, resources=[model], progress=False,
        config={"step": "auto", "netadapt_min_feature_size": None},
    )  # fmt: skip
    assert result.met and all(width % 16 == 0 for width in result.widths.values())
    assert result.widths != net.coupling.widths


@pytest.mark.parametrize("ratio", [0.85, 0.7, 0.55, 0.45])
def test_a_budget_of_latency_keeps_more_than_one_of_flops(ratio: float) -> None:
    """On a device with stairs of 16 that FLOPs know nothing of, compared where both are equally fast."""
    net, device = network(), FormulaDevice(step=16, noise=0.0)

    class Truth:
        name, unit = "latency", "ms"

        def value(self, widths=None):
            columns = np.broadcast_arrays(*(widths or net.coupling.widths).values())
            vectors = zip(*(column.reshape(-1).tolist() for column in columns), strict=True)
            ms = [device.true_ms(net.at(dict(zip(net.coupling.widths, v, strict=True)))) for v in vectors]
            return ms[0] if columns[0].ndim == 0 else np.array(ms)

    given = {"example_inputs": INPUT, "progress": False, "config": {"netadapt_min_feature_size": 8}}
    mine = netadapt(net.gm, Budget("latency", ratio=ratio), resources=[Truth()], **given)
    theirs = netadapt(net.gm, Budget("flops", ratio=0.1), **given)
    as_fast = [r.score for r in theirs.rounds if Truth().value(r.widths) <= mine.achieved["latency"]]
    assert mine.score >= max(as_fast) - 1e-9  # the same network, where the sums run in another order


def test_a_backend_that_sees_only_whole_networks() -> None:
    net, device = network(), FormulaDevice(in_situ=False)
    table = build(net, device)
    assert device.measured <= 1 + 8 * len(net.keys)
    off = np.abs(errors(net, device, table))
    assert np.median(off) < 0.03 and off.max() < 0.12


def test_a_measuring_function_stands_for_a_device() -> None:
    net, device = network(), FormulaDevice(noise=0.0)
    backend = find(measure=lambda gm, inputs: device.true_ms(gm), device="a board")
    assert backend.setting.device_name == "a board"
    model = measured_model(net, build(net, backend), backend)
    assert model.predict_ms() == pytest.approx(device.true_ms(net.gm))
    pruned = net.at({name: 32 for name in net.coupling.widths})
    assert model.measure(pruned, INPUT) == pytest.approx(device.true_ms(pruned))
    for answer in (0, -1.0, float("nan"), "fast", None):
        with pytest.raises(BackendError, match="expected milliseconds"):
            find(measure=lambda gm, inputs, answer=answer: answer).time(net.gm, INPUT)
    with pytest.raises(BackendError, match=r"failed: TypeError: .*called with parts of the network"):
        find(measure=lambda gm: 1.0).time(net.gm, INPUT)  # type: ignore[arg-type,misc]


def test_calibration_is_the_ratio() -> None:
    net, device = network(), FormulaDevice()
    model = model_of(net, build(net, device))
    half = {name: size // 2 for name, size in net.coupling.widths.items()}
    calibrated = model.calibrate(7.0, half)
    assert calibrated.predict_ms(half) == pytest.approx(7.0)
    ratio = calibrated.predict_ms() / model.predict_ms()
    assert ratio == pytest.approx(7.0 / model.predict_ms(half))
    assert calibrated.calibrated(7.0, 14.0).predict_ms(half) == pytest.approx(14.0)
    with pytest.raises(LatencyError, match="above 0"):
        model.calibrate(float("nan"))


def test_predictions_are_vectorised() -> None:
    net, device = network(), FormulaDevice()
    model = model_of(net, build(net, device))
    names = list(net.coupling.widths)
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(1, 9, 40) * 8 for name in names}
    together = model.predict_ms(arrays)
    alone = [model.predict_ms({name: int(arrays[name][i]) for name in names}) for i in range(40)]
    assert together.shape == (40,) and together.tolist() == pytest.approx(alone)
    assert model.predict_ms({names[0]: arrays[names[0]][:6].reshape(2, 3)}).shape == (2, 3)
    assert isinstance(model.predict_ms(), float)
    parts = sum(ms for _, _, ms in model.by_unit())
    assert parts + model.call_ms == pytest.approx(model.predict_ms())
    layers = model.by_layer()
    assert sum(layers.values()) == pytest.approx(parts) and "head" in layers and len(layers) < len(model.by_unit()) + 1
    assert model.by_layer({names[0]: 8})["head"] <= layers["head"]


def test_a_table_of_another_network_serves_where_keys_agree() -> None:
    net, device = network(), FormulaDevice()
    table = build(net, device)
    assert model_of(network(), table).predict_ms() == model_of(net, table).predict_ms()
    lacking = LatencyTable(table.setting, {k: e for k, e in table.entries.items() if "addmm" not in k})
    with pytest.raises(UncoveredTable, match=r"lacks 1 of the network's 7 units: head: .*addmm"):
        model_of(net, lacking)


def test_progress_is_reported() -> None:
    told: list[tuple[int, int, float]] = []
    build(network(), FormulaDevice(), report=lambda *args: told.append(args))
    assert [done for done, _, _ in told] == [*range(1, len(told)), len(told) - 1]
    assert told[-1][0] == told[-1][1] and told[-1][2] <= 0.02


def test_a_search_keeps_its_promise_and_stops_by_the_measured_value(caplog: pytest.LogCaptureFixture) -> None:
    """The table is 20 % too cheap below full size; measuring whole networks finds out and says so."""
    net, device = network(), FormulaDevice(noise=0.0)

    def measure(gm, inputs) -> float:
        true = device.true_ms(gm)
        return true if true > 0.999 * device.true_ms(net.gm) else 1.2 * true

    model = measured_model(net, build(net, device), find(measure=measure, device="board"))
    with caplog.at_level(logging.WARNING):
        result = netadapt(
            net.gm, Budget("latency", ratio=0.5), example_inputs=INPUT, resources=[model], progress=False,
            config={"netadapt_min_feature_size": 8, "budget_reduce_rate_init": 0.2, "budget_reduce_rate_decay": 1.0},
        )  # fmt: skip
    start = device.true_ms(net.gm)
    assert result.met and measure(result.model, INPUT) <= 0.5 * start
    assert "off by" in caplog.text
    first, *later = [record for record in result.rounds]
    off = [abs(r.measured["latency"] / r.predicted["latency"] - 1) for r in (first, *later)]
    assert off[0] > 0.1 and max(off[1:], default=0) < 0.05


def test_a_foreign_table_is_taken_as_it_is_only_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net, device, path = network(), FormulaDevice(), tmp_path / "phone.json"
    build(net, device, path=path)
    with pytest.raises(LatencyError, match="phone.json"):
        latency_model(net.gm, INPUT, table=path, backend="eager")
    with caplog.at_level(logging.WARNING):
        model = latency_model(net.gm, INPUT, table=path, foreign=True)
    assert "formula" in caplog.text and not hasattr(model, "measure")
    assert model.predict_ms() == pytest.approx(device.true_ms(net.gm), rel=0.2)
    with pytest.raises(LatencyError, match="needs the table"):
        latency_model(net.gm, INPUT, foreign=True)


def test_grids() -> None:
    coupling = network().coupling
    assert width_grid(coupling, 24)["stem"] == [24, 48, 64]
    assert width_grid(coupling, 8, 20)["stem"] == [24, 32, 40, 48, 56, 64]
    assert all(widths[-1] == coupling.widths[name] for name, widths in width_grid(coupling).items())


def test_unknown_backends_are_named() -> None:
    with pytest.raises(BackendError, match="'tensorrt'.*compile, eager, executorch, onnxruntime, .*openvino"):
        find("tensorrt")
    with pytest.raises(BackendError, match="threads: got 0"):
        find("eager", threads=0)
    with pytest.raises(BackendError, match="measure is a str"):
        find(measure="phone")  # type: ignore[arg-type]


def test_a_machine_that_slows_down_does_not_move_the_measurement() -> None:
    """Networks are timed in turns with the dense one: what counts is the ratio. Here all takes twice as long."""
    net, device = network(), FormulaDevice(noise=0.0)

    class Slowing(Timed):
        setting, slower = device.setting, 1.0

        def prepare(self, gm, example_inputs):
            return lambda: device.true_ms(gm)

        def pace(self, run, reference=None, repeats=15):
            around = np.full(repeats, 1.0 if reference is None else reference.run() * self.slower)
            quiet = 1.0 if reference is None else reference.run() * self.slower
            return Pace(np.full(repeats, run() * self.slower), around, quiet)

    backend = Slowing()
    model = measured_model(net, build(net, device), backend)
    small = net.at({name: 16 for name in net.coupling.widths})
    before = model.measure(small, INPUT)
    backend.slower = 2.0
    assert model.measure(small, INPUT) == pytest.approx(before)
    assert before / model.dense_ms == pytest.approx(device.true_ms(small) / device.true_ms(net.gm))
