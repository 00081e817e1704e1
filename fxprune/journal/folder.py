"""The journal: a folder from which a search goes on after a kill at any moment, and ends in the same network.

    lock                          held while a search runs here
    run.json                      what is searched: configuration, environment, fingerprints of graph and weights
    baseline.json                 the score of the unpruned network
    statistics.safetensors        what calibration data said of it; curves.json: what each width of each group costs
    round-0001/candidate-003.json what came of a candidate; .safetensors beside it while it is the best of its round
    round-0001/round.json         the finished round; weights.safetensors and plan.json of what it chose
    result.json                   how the search ended, with the certificate

Every record carries a checksum, the identity of its run, and for rounds the checksum of the weights that it started
from. What does not fit is named and done again; the seeds make it come out the same. Nothing that is read back is
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fxprune.criteria.curves import Curve
from fxprune.errors import JournalError
from fxprune.io.storage import (
    Damaged,
    Lock,
    file_sha256,
    read_bytes,
    read_json,
    remove,
    write_bytes,
    write_json,
)
from fxprune.journal.records import (
    Candidate,
    Round,
    candidate_from_dict,
    candidate_to_dict,
    round_from_dict,
    round_to_dict,
)
from fxprune.journal.run_identity import adopted, check_same, details_of, identity_of
from fxprune.problem.search_problem import Problem
from fxprune.resources.models import MeasuredResource
from passes import PassError, Statistics
from passes.documents.whole_files import TEMPORARY

log = logging.getLogger(__name__)


class Folder:
    """A search's memory in a folder; see the module. Made by `open_folder`."""

    keeps_untrained = True

    def __init__(self, folder: Path, identity: Mapping[str, Any], lock: Lock | None):
        self.folder, self.identity, self._lock = folder, dict(identity), lock
        self.damage: list[str] = []
        self._run = _digest_of(identity)
        self._parent = identity["weights"]  # checksum of what the next round starts from

    def resumed(self, problem: Problem) -> Problem:
        """With the number of threads, and the start, that was recorded: a measured resource would come out a little
        different today."""
        details = _details(self.folder)
        stored = details.get("start", problem.start)
        resources = tuple(
            r.calibrated(problem.start[r.name], stored[r.name])
            if isinstance(r, MeasuredResource) and stored[r.name] != problem.start[r.name]
            else r
            for r in problem.resources
        )
        return replace(problem, resources=resources, start=stored, threads=self.identity["threads"])

    def baseline(self) -> float | None:
        found = self._read(self.folder / "baseline.json", "score")
        return None if found is None else float(found["score"])

    def save_baseline(self, score: float) -> None:
        self._check()
        self._write(self.folder / "baseline.json", {"score": score})

    def observed(self) -> tuple[Statistics, dict[str, Curve]] | None:
        found = self._read(self.folder / "curves.json", "curves", "statistics")
        if found is None:
            return None
        path = self.folder / "statistics.safetensors"
        try:
            read_bytes(path, found["statistics"])
            return Statistics.load(path), found["curves"]
        except (Damaged, PassError) as damage:
            self._found(f"{damage}; the network is observed again")
            return None

    def save_observed(self, statistics: Statistics, curves: Mapping[str, Curve]) -> None:
        self._check()
        path = self.folder / "statistics.safetensors"
        statistics.save(path)
        plain = {name: curve.to_dict() for name, curve in curves.items()}
        self._write(self.folder / "curves.json", {"curves": plain, "statistics": file_sha256(path)})

    def recorded_curves(self) -> dict[str, Curve] | None:
        """The curves of the unpruned network; its statistics are not looked at."""
        found = self._read(self.folder / "curves.json", "curves", "statistics")
        return None if found is None else found["curves"]

    def candidate(self, round: int, proposed: Candidate) -> Candidate | None:
        path = self._candidate(round, proposed.index)
        found = self._read(path, "candidate", "parent", "weights")
        if found is None:
            return None
        known = found["candidate"]
        if not same_proposal(known, proposed) or found["parent"] != self._parent:
            self._found(f"{path}: the record is of another proposal; the candidate is trained again")
            return None
        return known

    def save_candidate(self, round: int, candidate: Candidate, weights: bytes | None) -> None:
        self._check()
        path = self._candidate(round, candidate.index)
        if weights is not None:
            write_bytes(path.with_suffix(".safetensors"), weights)
        self._write(
            path, {"candidate": candidate_to_dict(candidate), "parent": self._parent, "weights": _sha256(weights)}
        )

    def candidate_weights(self, round: int, index: int) -> bytes | None:
        path = self._candidate(round, index)
        found = self._read(path, "candidate", "parent", "weights")
        if found is None or found["weights"] is None:
            return None
        try:
            return read_bytes(path.with_suffix(".safetensors"), found["weights"])
        except Damaged as damage:
            self._found(str(damage))
            return None

    def drop_candidate_weights(self, round: int, index: int) -> None:
        remove(self._candidate(round, index).with_suffix(".safetensors"))

    def round(self, round: int) -> Round | None:
        folder = self._round(round)
        found = self._read(folder / "round.json", "round", "parent", "weights")
        if found is None:
            return None
        if found["parent"] != self._parent:
            self._found(f"{folder / 'round.json'}: the round does not continue the one before it; it is done again")
            return None
        record = found["round"]
        try:
            read_bytes(folder / "weights.safetensors", found["weights"])
        except Damaged as damage:
            self._found(f"{damage}; round {round} is done again from its candidates")
            return None
        try:
            read_bytes(folder / "plan.json", hashlib.sha256(record.plan.encode()).hexdigest())
        except Damaged as damage:
            self._found(f"{damage}; it is written again from the round's record")
            write_bytes(folder / "plan.json", record.plan.encode())
        self._parent = found["weights"]
        self._drop_losers(folder)
        return record

    def save_round(self, record: Round, weights: bytes | None) -> None:
        assert weights is not None, "a folder keeps the weights of every round"
        self._check()
        folder, checksum = self._round(record.round), hashlib.sha256(weights).hexdigest()
        write_bytes(folder / "plan.json", record.plan.encode())
        write_bytes(folder / "weights.safetensors", weights)
        self._write(
            folder / "round.json", {"round": round_to_dict(record), "parent": self._parent, "weights": checksum}
        )
        self._parent = checksum
        self._drop_losers(folder)

    def weights(self, round: int) -> bytes:
        folder = self._round(round)
        found = self._read(folder / "round.json", "round", "parent", "weights")
        if found is None:
            raise JournalError(
                f"{folder}: the record of round {round} is missing or damaged; resume the search to mend it."
            )
        try:
            return read_bytes(folder / "weights.safetensors", found["weights"])
        except Damaged as damage:
            raise JournalError(f"{damage}; resume the search to mend it.") from None

    def save_result(self, result: Mapping[str, object]) -> None:
        self._check()
        self._write(self.folder / "result.json", dict(result))
        self._check()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def recorded_round(self, round: int) -> Round | None:
        """A round's record alone; its weights are not looked at."""
        found = self._read(self._round(round) / "round.json", "round", "parent", "weights")
        return None if found is None else found["round"]

    def recorded_candidates(self, round: int) -> tuple[Candidate, ...]:
        """The intact records of a round's finished candidates."""
        paths = sorted(self._round(round).glob("candidate-*.json"))
        found = [self._read(path, "candidate", "parent", "weights") for path in paths]
        return tuple(record["candidate"] for record in found if record is not None)

    def recorded_result(self) -> dict[str, Any] | None:
        return self._read(self.folder / "result.json", "accepted", "stopped", "met", "certificate")

    def _check(self) -> None:
        """Refuse to write into a folder that is not the one the search began in, or has lost its run."""
        assert self._lock is not None, "only a search writes, and it holds the lock"
        self._lock.check()
        if not (self.folder / "run.json").is_file():
            raise JournalError(
                f"{self.folder / 'run.json'}: the record of the run was deleted while the search ran; start it again."
            )

    def _found(self, damage: str) -> None:
        log.warning("%s", damage)
        self.damage.append(damage)

    def _round(self, round: int) -> Path:
        return self.folder / f"round-{round:04d}"

    def _candidate(self, round: int, index: int) -> Path:
        return self._round(round) / f"candidate-{index:03d}.json"

    def _drop_losers(self, folder: Path) -> None:
        for path in folder.glob("candidate-*.safetensors"):
            remove(path)

    def _write(self, path: Path, payload: dict[str, object]) -> None:
        write_json(path, {"run": self._run, **payload})

    def _read(self, path: Path, *keys: str) -> dict[str, Any] | None:
        """A record of this run, with its entries `keys`; one that is damaged or of another is named in the log, and not
        used."""
        try:
            found = read_json(path)
            if found is not None and found.get("run") == self._run:
                return _understood(path, found, keys)
        except Damaged as damage:
            self._found(f"{damage}; what it recorded is done again")
            return None
        if found is not None:
            self._found(f"{path}: the record is of another run; what it recorded is done again")
        return None


def _result_of(accepted: object) -> int:
    if type(accepted) is not int or accepted < 0:
        raise ValueError(f"'accepted' is {accepted!r}, expected the number of a round")
    return accepted


def _flag_of(found: object) -> bool:
    if not isinstance(found, bool):
        raise ValueError(f"'met' is {found!r}, expected true or false")
    return found


def _certificate_of(found: object) -> dict[str, object]:
    if not isinstance(found, dict) or not isinstance(found.get("max_error"), int | float):
        raise ValueError("'certificate' has no largest error")
    return found


def _curves_of(found: object) -> dict[str, Curve]:
    if not isinstance(found, dict):
        raise ValueError("'curves' is no table of groups")
    return {str(name): Curve.from_dict(str(name), entry) for name, entry in found.items()}


_READERS: dict[str, Callable[[Any], Any]] = {
    "curves": _curves_of, "candidate": candidate_from_dict, "round": round_from_dict, "score": float,
    "accepted": _result_of, "certificate": _certificate_of, "met": _flag_of,
}  # fmt: skip


def _understood(path: Path, found: dict[str, object], keys: tuple[str, ...]) -> dict[str, object]:
    """The record with its candidate or round built. Raises Damaged where an entry is missing or of a wrong form."""
    try:
        return {**found, **{key: _READERS.get(key, _as_it_is)(found[key]) for key in keys}}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise Damaged(f"{path}: the record has not the form that this version writes ({error})") from None


def _as_it_is(value: object) -> object:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"expected text or null, got {value!r}")
    return value


def open_folder(workdir: str | os.PathLike, problem: Problem, resume: bool | None) -> Folder:
    """Begin a journal in `workdir`, or go on with the one that is there. The folder's Lock, held, stands for it.

    resume: True goes on (or begins, where the run was killed before it wrote anything), False refuses a folder that
    holds a run, None does what is called for. A journal of another model, configuration or version is refused, with
    the difference named.
    """
    folder = Path(workdir)
    lock = workdir if isinstance(workdir, Lock) else Lock(folder)
    try:
        identity = identity_of(problem)
        path = folder / "run.json"
        try:
            found = read_json(path)
        except Damaged as damage:
            log.warning("%s; it is written again, and only records of the same run are used", damage)
            found = None
        if found is not None:
            if resume is False:
                raise JournalError(
                    f"{folder}: a run is kept here already, and resume=False; choose another workdir, or resume it."
                )
            identity = adopted(identity, found["identity"])
            check_same(folder, found["identity"], identity)
            log.info("%s: going on with the run of %s", folder, found["details"]["environment"]["begun"])
        else:
            if resume:
                log.info("%s: there is no run to resume; a new one begins", folder)
            write_json(path, {"identity": identity, "details": details_of(problem)})
        for leftover in folder.rglob(f"*{TEMPORARY}"):
            remove(leftover)
        return Folder(folder, identity, lock)
    except BaseException:
        lock.release()
        raise


def same_proposal(known: Candidate, proposed: Candidate) -> bool:
    """Whether two records are of one proposal; predictions of a calibrated table may differ in their last digits.

    One that was screened may have gone on since, or been left out.
    """
    fields = ["index", "group", "widths", "feasible", "seed"]
    if known.screened is None:
        fields += ["trained", "steps"]
    return all(getattr(known, name) == getattr(proposed, name) for name in fields) and all(
        math.isclose(known.resources.get(name, math.nan), value, rel_tol=1e-9)
        for name, value in proposed.resources.items()
    )


def _details(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / "run.json")
    except Damaged:
        found = None
    return found["details"] if found else {}


def _digest_of(identity: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _sha256(data: bytes | None) -> str | None:
    return None if data is None else hashlib.sha256(data).hexdigest()
