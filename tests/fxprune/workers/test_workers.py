"""Workers: processes and Ray find what the serial search finds; what dies or cannot be sent is said."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_search import EXAMPLE, FAST, batches, history, make, negative_loss
from torch import nn

from fxprune import Accuracy, FineTune, NetAdaptResult, netadapt
from fxprune.errors import WorkerError
from fxprune.io.tensors import named_tensors, tensors_of
from fxprune.workers import processes, transport
from fxprune.workers.coupled_network import CoupledNetwork
from fxprune.workers.lifetime import EndingProcess
from fxprune.workers.observing import Shard, Told, observe_packed, shards_of
from fxprune.workers.protocol import Job, Task, sent
from fxprune.workers.ray_cluster import CLUSTER_SWITCH, _OwnCluster
from fxprune.workers.repair import Repair
from fxprune.workers.serial import Serial
from passes import Coupling, PassError, PruneChannels, Statistics, capture, couple
from passes.statistics import Batch

CONFIG = FAST.replace(netadapt_max_rounds=2)
TRAIN = FineTune(batches(), lr=0.05)
FOLDERS = [str(Path(__file__).parent), str(Path(__file__).parents[2])]  # of this module and of those it imports


# The last fifth judges, and holds numbers.
SPOILED = [*([torch.full((8, *EXAMPLE.shape[1:]), torch.nan)] * 4), torch.zeros(8, *EXAMPLE.shape[1:])]


def run(workers: int | str | type, num_cpus: int = 1, **changes: Any) -> NetAdaptResult:
    settings = {"include_dashboard": False, "num_cpus": num_cpus} if workers == "ray" else {}
    config = changes.pop("config", CONFIG).replace(workers=workers, ray=settings)
    given = {"example_inputs": EXAMPLE, "train": TRAIN, "evaluate": negative_loss, "progress": False}
    return netadapt(make(), 0.5, config=config, **{**given, **changes})


def die_once(model: nn.Module, steps: int) -> None:
    """Kills its process where the file that the environment names is not there yet, or always for `tail`."""
    marker = Path(os.environ["FXPRUNE_TEST_MARKER"])
    if not marker.exists():
        marker.write_text("died")
        os._exit(17)
    TRAIN(model, steps)


def die_for_tail(model: nn.Module, steps: int) -> None:
    """Kills its process for one group, and raises for another."""
    if model.get_parameter("branch.0.weight").shape[0] < 14:
        raise ValueError("not this one")
    if model.get_parameter("tail.weight").shape[0] < 18:
        os._exit(17)
    TRAIN(model, steps)


class Unloadable:
    """Pickles, and does not unpickle."""

    def __call__(self, model: nn.Module, steps: int) -> None: ...

    def __reduce__(self) -> Any:
        return (os.chdir, ("/nowhere/at/all",))


@pytest.fixture(scope="module")
def serial() -> NetAdaptResult:
    return run(1)


def assert_same(a: NetAdaptResult, b: NetAdaptResult) -> None:
    assert history(a) == history(b)
    assert all(torch.equal(x, y) for x, y in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_two_processes_find_the_same_though_one_dies(
    serial: NetAdaptResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FXPRUNE_TEST_MARKER", str(tmp_path / "marker"))
    assert_same(run(2, train=die_once), serial)
    assert "its worker died (exit code 17); it is tried again" in caplog.text


@pytest.mark.slow
def test_a_candidate_that_kills_its_workers_is_reported() -> None:
    config = CONFIG.replace(netadapt_max_rounds=1, budget_reduce_rate_init=0.05)
    (record,) = run(2, train=die_for_tail, config=config).rounds
    errors = {c.group: c.error for c in record.candidates if c.error}
    assert errors["tail"] == "the worker died 2 times (exit code 17)"
    assert "train: ValueError: not this one (test_workers.py:" in str(errors["branch.0"])
    assert set(errors) == {"tail", "branch.0"} and record.chosen_group == "stem"


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be held back here")
def test_ctrl_c_while_workers_start_leaves_none_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = EndingProcess.start, []

    def interrupted(self: EndingProcess) -> None:
        start(self)
        started.append(self)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(EndingProcess, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(2)
    assert len(started) == 1 and all(process.exitcode is not None for process in started)


def test_what_cannot_be_pickled_is_said_before_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def evaluate(model: nn.Module) -> float:
        called.append(1)
        return 0.0

    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(WorkerError, match=r"evaluate \(.*evaluate\): .*top of a module.*workers=1"):
        run(2, evaluate=evaluate)
    assert not called


def test_closures_are_packed_where_cloudpickle_is_installed() -> None:
    pytest.importorskip("cloudpickle")
    train, evaluate = pickle.loads(transport.pack_functions(TRAIN, lambda model: 2.5))
    assert evaluate(None) == 2.5 and train.lr == TRAIN.lr


class DiesOnce:
    """An evaluate whose import kills the process, where the file is not there yet."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if not self.marker.exists():
            self.marker.write_text("died")
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, model: nn.Module) -> float:
        return 2.5


@pytest.mark.skipif(sys.platform == "win32", reason="a killed process has another exit code")
@pytest.mark.parametrize(
    ("limits", "said"),
    [((120.0, 600.0), "exit code -9"), pytest.param((0.0, 600.0), "not ready after 0 seconds", marks=pytest.mark.slow)],
)
def test_a_worker_that_is_lost_while_it_starts_is_started_again(
    limits: tuple[float, float], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(processes, "STARTING_S", limits)
    marker = tmp_path / "marker"
    if limits[0] == 0:
        marker.touch()
    workers = processes.Processes(Job(None, DiesOnce(marker), retries=1))
    workers.start()
    try:
        assert said in caplog.text and "it is started again" in caplog.text
        assert [worker.process.is_alive() for worker in workers._workers] == [True]
    finally:
        workers.close()
    marker.unlink()
    with pytest.raises(WorkerError, match="exit code -9 before it was ready"):
        processes.Processes(Job(None, DiesOnce(marker), retries=0)).start()


def test_functions_that_do_not_load_in_the_worker() -> None:
    with pytest.raises(WorkerError, match="could not start: the functions do not load there: FileNotFoundError"):
        run(2, train=Unloadable())


@pytest.mark.slow
def test_a_script_without_a_main_guard_is_told(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"import sys; sys.path[:0] = {FOLDERS!r}\nimport test_workers\ntest_workers.run(2)\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and "if __name__ == '__main__':" in done.stderr.splitlines()[-1]


def test_a_data_free_search_starts_no_worker() -> None:
    assert run(2, train=None, evaluate=None).data_free


def test_a_candidate_travels_without_the_weights_of_the_round() -> None:
    gm = capture(make(), EXAMPLE)
    coupling = couple(gm, EXAMPLE)
    plan = coupling.plan({"stem": (0, 2, 3, 7), "tail": tuple(range(5, 17))})
    packed = transport.pack(gm, coupling, plan)
    pruned = PruneChannels(plan)(gm).graph_module
    rebuilt = transport.unpack(packed, tensors_of(gm))
    for (name, a), (other, b) in zip(named_tensors(pruned), named_tensors(rebuilt), strict=True):
        assert name == other and torch.equal(a, b) and type(a) is type(b) and a.requires_grad == b.requires_grad
    assert torch.equal(pruned.eval()(EXAMPLE), rebuilt.eval()(EXAMPLE))
    cuts = transport.cuts_of(pruned, gm, transport.kept_positions(coupling, plan))
    assert len(cuts) == len(named_tensors(pruned))  # none travels whole


def test_tensors_that_no_cut_makes_travel_whole_and_ties_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(4, 12), nn.Linear(4, 12), nn.Linear(12, 3)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.relu(self.a(x) + self.b(x)))

    example = torch.randn(2, 4)
    gm = capture(Tied(), example)
    coupling = couple(gm, example)
    plan = coupling.plan({coupling.groups[0].name: tuple(range(0, 12, 2))})
    packed = transport.pack(gm, coupling, plan)
    weights = {name: tensor + 1 for name, tensor in tensors_of(gm).items()}
    rebuilt = transport.unpack(packed, weights)
    assert rebuilt.get_parameter("a.weight") is rebuilt.get_parameter("b.weight")
    np.testing.assert_array_equal(rebuilt.get_parameter("a.weight").detach(), weights["a.weight"][::2])


def test_shards_hold_every_sample_once_in_order() -> None:
    whole = [Batch((torch.arange(size) + 100 * number,)) for number, size in enumerate((7, 1, 12))]
    samples = torch.cat([batch.args[0] for batch in whole])
    held_out = [at == 6 or at == 7 or at > 17 for at in range(20)]  # of a small batch: of all so far
    for count in (1, 2, 3, 7, 20, 30):
        shards = shards_of(whole, count, seed=5)
        assert torch.equal(torch.cat([batch.args[0] for shard in shards for batch in shard.batches]), samples)
        assert [bool(b.held) for shard in shards for b in shard.batches for _ in range(b.size)] == held_out
        sizes = [shard.samples for shard in shards]
        assert len(shards) == min(count, 20) and max(sizes) - min(sizes) <= 1
        assert len({shard.seed for shard in shards}) == len(shards) and shards[0].seed == 5
    without_samples = [Batch((torch.tensor(1.0),)) for _ in range(3)]  # inputs that hold no samples are not cut
    assert [len(shard.batches) for shard in shards_of(without_samples, 2, seed=0)] == [1, 2]


def calibrated(workers: int | str | type, **changes: Any) -> NetAdaptResult:
    torch.manual_seed(0)
    data = [torch.randn(60, *EXAMPLE.shape[1:]), torch.randn(40, *EXAMPLE.shape[1:])]
    return run(workers, config=FAST.replace(**changes), train=None, evaluate=None, calibration=data)


class Packed(Serial):
    """Does in this process what another one does with what it is sent: everything is packed, and made anew."""

    def run(self, network: nn.Module, coupling: Coupling, tasks: Sequence[Task], repair: Repair | None = None) -> Any:
        functions, packed_repair = self.job.train, transport.pack_for_workers(repair)
        for task in tasks:
            packed, anew = transport.pack(network, coupling, task.plan), pickle.loads(packed_repair)
            made = transport.train_packed((functions, self.job.evaluate), tensors_of(network), packed, task, anew)
            yield sent(task.index, *made)

    def observe(self, dense: CoupledNetwork, shards: Sequence[Shard], progress: Told) -> Iterator[Statistics]:
        for shard in shards:
            yield pickle.loads(observe_packed(pickle.dumps(dense), pickle.dumps(shard)))


def two_rounds(workers: int | str | type, form: str) -> NetAdaptResult:
    """Of the second round the network is pruned already; what repairs its candidates is fitted to it, and refines."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 14), nn.ReLU(), nn.Linear(14, 10), nn.ReLU(), nn.Linear(10, 3))
    labelled = [(torch.randn(60, 6), torch.randint(3, (60,)))]
    config = FAST.replace(
        strategy="netadapt", budget_reduce_rate_init=0.2, netadapt_max_rounds=2, screen=1, refine=1, workers=workers,
        statistics_shards=2,
    )  # fmt: skip
    found = netadapt(
        network, 0.5, example_inputs=labelled[0][0][:1], calibration=labelled, train=FineTune(labelled),
        evaluate=Accuracy(labelled), config=config, form=form, progress=False,
    )  # fmt: skip
    assert len(found.rounds) == 2 and found.rounds[1].repaired is not None
    return found


@pytest.mark.parametrize("form", ["module", "graph"])
def test_later_rounds_are_repaired_elsewhere_as_they_are_here(form: str) -> None:
    assert_same(two_rounds(Packed, form), two_rounds(1, form))


@pytest.mark.slow
def test_processes_repair_later_rounds() -> None:
    assert_same(two_rounds(2, "module"), two_rounds(1, "module"))


def test_calibration_data_in_shards_find_what_they_find_as_a_whole() -> None:
    whole, shards = calibrated(1), calibrated(1, statistics_shards=3)
    assert shards.met and shards.widths == whole.widths
    for name, tensor in named_tensors(whole.model):
        torch.testing.assert_close(dict(named_tensors(shards.model))[name], tensor, rtol=0.1, atol=0.05)


class Observing(Serial):
    """Loses all shards but the first."""

    def observe(self, dense: CoupledNetwork, shards: Sequence[Shard], progress: Told) -> Iterator[Statistics]:
        yield shards[0].observed(dense, progress)


def test_workers_that_lose_a_shard_are_refused() -> None:
    with pytest.raises(WorkerError, match="'Observing': observe: got 1 results; expected the Statistics of each of 3"):
        calibrated(Observing, statistics_shards=3)


def test_a_shard_whose_data_are_no_numbers_is_refused() -> None:
    with pytest.raises(PassError, match="no finite numbers"):
        run(1, config=FAST.replace(statistics_shards=2), calibration=SPOILED)


@pytest.fixture
def ray_cluster() -> Any:
    ray = pytest.importorskip("ray")
    path = os.pathsep.join([*FOLDERS, os.environ["PYTHONPATH"]])
    environment = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env=environment)
    yield ray
    ray.shutdown()


def test_a_candidate_that_no_node_of_ray_can_hold_is_refused() -> None:
    pytest.importorskip("ray")
    with pytest.raises(WorkerError, match=r"more than any node of the Ray cluster has \(CPU 999 of [0-9]+\); lower"):
        run("ray", num_cpus=999)


def test_ray_finds_the_same_and_survives_what_dies(
    serial: NetAdaptResult, ray_cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert_same(run("ray"), serial)
    assert_same(run("ray", evaluate=lambda model: negative_loss(model)), serial)
    config = CONFIG.replace(netadapt_max_rounds=1, budget_reduce_rate_init=0.05)
    (record,) = run("ray", train=die_for_tail, config=config).rounds
    errors = {c.group: c.error for c in record.candidates if c.error}
    assert set(errors) == {"tail", "branch.0"} and "the worker was lost 2 times" in str(errors["tail"])
    assert "it is tried again" in caplog.text


@pytest.mark.usefixtures("ray_cluster")
def test_ray_observes_what_this_process_observes() -> None:
    assert_same(calibrated("ray", statistics_shards=2), calibrated(1, statistics_shards=2))
    with pytest.raises(PassError, match="no finite numbers"):
        run("ray", config=FAST.replace(statistics_shards=2), calibration=SPOILED)


class FakeRay:
    """Says what it was started with."""

    def __init__(self, address: str):
        self.util, self._address, self.given = self, address, {}

    def get_node_ip_address(self) -> str:
        return self._address

    def init(self, **given: Any) -> None:
        self.given = {**given, "switch": os.environ.get(CLUSTER_SWITCH)}


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7"])
def test_ray_listens_on_loopback_by_itself(address: str, caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeRay(address)
    cluster = _OwnCluster(fake)
    try:
        cluster.start({"num_cpus": 1})
        assert fake.given == {"address": "local", "_node_ip_address": "127.0.0.1", "num_cpus": 1, "switch": "0"}
        assert ("listens on 10.0.0.7" in caplog.text) == (address != "127.0.0.1")
    finally:
        cluster.close()
    assert CLUSTER_SWITCH not in os.environ
    caplog.clear()
    try:
        cluster.start({"_node_ip_address": address})
        assert fake.given == {"address": "local", "_node_ip_address": address, "switch": None} and not caplog.text
    finally:
        cluster.close()


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerError, match=r'pip install "fxprune\[ray\]"'):
        run("ray")
