"""The journal: a folder from which a search goes on after a kill at any moment, and ends in the same network.

    lock                          held while a search runs here
    run.json                      what is searched: configuration, environment, fingerprints of graph and weights
    baseline.json                 the score of the unpruned network
    statistics.safetensors        what calibration data said of it; curves.json: what each width of each group costs
    round-0001/candidate-003.json what came of a candidate; .safetensors beside it while it is the best of its round
    round-0001/round.json         the finished round; weights.safetensors and plan.json of what it chose
    removed.json                  the rounds whose weights were removed, where `keep_rounds` asks for that
    goals.json                    where the search went on: its budgets and numbers of rounds, the first to the last
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
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
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
    record_bytes,
    remove,
    write_bytes,
    write_json,
)
from fxprune.journal.goals import Asked, ask, earlier, read_goals
from fxprune.journal.own_files import remove_leftovers, taken
from fxprune.journal.records import Candidate, Identity, Round, candidate_to_dict, read_record, round_to_dict
from fxprune.journal.run_identity import adopted, check_same, details_of, identity_of
from fxprune.problem.search_problem import Problem
from fxprune.resources.models import MeasuredResource
from passes import PassError, Statistics
from passes.arguments import user_path

log = logging.getLogger(__name__)

_SAID_TWICE = "the round's record says it too, and a search that is resumed writes it again"


class Folder:
    """A search's memory in a folder; see the module. Made by `open_folder`."""

    keeps_untrained = True

    def __init__(self, folder: Path, identity: Identity, lock: Lock | None, goals: Sequence[Asked] = ()):
        self.folder, self.identity, self._lock, self._goals = folder, identity, lock, goals
        self.damage: list[str] = []
        self._run = _digest_of(identity)
        self._parent = identity["weights"]  # checksum of what the next round starts from

    def resumed(self, problem: Problem) -> Problem:
        """With the number of threads, the start and the earlier goals that were recorded: a measured resource would
        come out a little different today."""
        details = _details(self.folder)
        stored = details.get("start", problem.start)
        resources = tuple(
            r.calibrated(problem.start[r.name], stored[r.name])
            if isinstance(r, MeasuredResource) and stored[r.name] != problem.start[r.name]
            else r
            for r in problem.resources
        )
        threads = self.identity["threads"]
        return replace(problem, resources=resources, start=stored, threads=threads, earlier=earlier(self._goals))

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
        folder, found = self._round(round), self._record(round)
        if found is None:
            return None
        if found["parent"] != self._parent:
            self._found(f"{folder / 'round.json'}: the round does not continue the one before it; it is done again")
            return None
        record = found["round"]
        try:
            read_bytes(folder / "weights.safetensors", found["weights"])
        except Damaged as damage:
            if not self._gone_on_from(round):
                self._found(f"{damage}; round {round} is done again from its candidates")
                return None
        for path, content in self._damaged_beside(folder, found):
            write_bytes(path, content)
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

    def weights(self, round: int) -> bytes | None:
        folder, found = self._round(round), self._record(round)
        if found is None:
            raise JournalError(
                f"{folder}: the record of round {round} is missing or damaged; resume the search to mend it."
            )
        try:
            return read_bytes(folder / "weights.safetensors", found["weights"])
        except Damaged as damage:
            if round not in self._removed():
                raise JournalError(f"{damage}; resume the search to mend it.") from None
        if not self.identity["train"] and self.identity["calibration"] is None:
            return None  # nothing was trained: the unpruned network and the plan tell them
        kept = [n for n in range(1, self.finished + 1) if (self._round(n) / "weights.safetensors").exists()]
        raise JournalError(
            f"{self.folder}: the weights of round {round} were removed, as keep_rounds asked; kept are those of round "
            f"{', '.join(map(str, kept))}. Restore one of these, or search without keep_rounds in another workdir."
        )

    @property
    def finished(self) -> int:
        """How many rounds in a row have a record."""
        number = 0
        while (self._round(number + 1) / "round.json").is_file():
            number += 1
        return number

    def keep_weights(self, rounds: Collection[int]) -> None:
        present = [n for n in range(1, self.finished + 1) if (self._round(n) / "weights.safetensors").exists()]
        if superfluous := set(present).difference(rounds):
            self._check()
            self._write(self.folder / "removed.json", {"rounds": sorted(self._removed() | superfluous)})
            for number in superfluous:
                remove(self._round(number) / "weights.safetensors")

    def _removed(self) -> set[int]:
        found = self._read(self.folder / "removed.json", "rounds")
        return set() if found is None else found["rounds"]

    def _gone_on_from(self, round: int) -> bool:
        """Whether the weights of a round were removed, and a round that goes on from it has its own."""
        removed, record = self._removed(), self._record(round)
        while record is not None and round in removed:
            checksum, round = record["weights"], round + 1
            record = self._record(round)
            if record is None or record["parent"] != checksum:
                return False
            with suppress(Damaged):
                read_bytes(self._round(round) / "weights.safetensors", record["weights"])
                return True
        return False

    def _record(self, round: int) -> dict[str, Any] | None:
        return self._read(self._round(round) / "round.json", "round", "parent", "weights")

    def save_result(self, result: Mapping[str, object]) -> None:
        self._check()
        self._write(self.folder / "result.json", dict(result))
        self._check()

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def recorded_round(self, round: int) -> Round | None:
        """A round's record; plan and candidates beside it are compared with it, its weights are not looked at."""
        found = self._record(round)
        if found is None:
            return None
        self._damaged_beside(self._round(round), found)
        return found["round"]

    def recorded_candidates(self, round: int) -> tuple[Candidate, ...]:
        """The intact records of a round's finished candidates."""
        paths = sorted(self._round(round).glob("candidate-*.json"))
        found = [self._read(path, "candidate", "parent", "weights") for path in paths]
        return tuple(record["candidate"] for record in found if record is not None)

    def recorded_result(self) -> dict[str, Any] | None:
        return self._read(self.folder / "result.json", "accepted", "stopped", "met", "certificate")

    def _damaged_beside(self, folder: Path, found: Mapping[str, Any]) -> list[tuple[Path, bytes]]:
        """The files of a finished round that are not what its record says, each named, with what they have to hold."""
        record: Round = found["round"]
        damaged = []
        try:
            read_bytes(folder / "plan.json", hashlib.sha256(record.plan.encode()).hexdigest())
        except Damaged as damage:
            self._found(f"{damage}; {_SAID_TWICE}")
            damaged.append((folder / "plan.json", record.plan.encode()))
        for candidate in record.candidates:
            path = folder / _name_of(candidate.index)
            if path.exists() and self._read(path, "candidate", "parent", "weights", then=_SAID_TWICE) is None:
                content = {"candidate": candidate_to_dict(candidate), "parent": found["parent"], "weights": None}
                damaged.append((path, record_bytes({"run": self._run, **content})))
        return damaged

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
        return self._round(round) / _name_of(index)

    def _drop_losers(self, folder: Path) -> None:
        for path in folder.glob("candidate-*.safetensors"):
            remove(path)

    def _write(self, path: Path, payload: dict[str, object]) -> None:
        write_json(path, {"run": self._run, **payload})

    def _read(self, path: Path, *keys: str, then: str = "what it recorded is done again") -> dict[str, Any] | None:
        """A record of this run, with its entries `keys`; one that is damaged or of another is named in the log, and not
        used. then: what comes of it."""
        try:
            found = read_json(path)
            if found is not None and found.get("run") == self._run:
                return read_record(path, found, keys)
        except Damaged as damage:
            self._found(f"{damage}; {then}")
            return None
        if found is not None:
            self._found(f"{path}: the record is of another run; {then}")
        return None


def _name_of(index: int) -> str:
    return f"candidate-{index:03d}.json"


def open_folder(workdir: str | os.PathLike, problem: Problem, resume: bool | None) -> Folder:
    """Begin a journal in `workdir`, or go on with the one that is there.

    workdir: the folder, or its Lock, held already. resume: True goes on (or begins, where the run was killed before it
    wrote anything), False refuses a folder that holds a run, None does what is called for. A journal of another model,
    configuration or version is refused, with the difference named; with another budget or number of rounds the search
    goes on from its last round.
    """
    folder = user_path(workdir)
    lock = workdir if isinstance(workdir, Lock) else taken(folder)
    try:
        identity = identity_of(problem)
        path, now = folder / "run.json", Asked.of(identity)
        try:
            found = read_json(path)
        except Damaged as damage:
            log.warning("%s; it is written again, and only records of the same run are used", damage)
            found = None
        goals = _goals(folder, None if found is None else found["identity"])
        if found is not None:
            if resume is False:
                raise JournalError(
                    f"{folder}: a run is kept here already, and resume=False; choose another workdir, or resume it."
                )
            identity = adopted(identity, found["identity"])
            check_same(folder, found["identity"], identity)
            identity = found["identity"]
            log.info("%s: going on with the run of %s", folder, found["details"]["environment"]["begun"])
        else:
            if resume:
                log.info("%s: there is no run to resume; a new one begins", folder)
            identity = goals[0].put_into(identity) if goals else identity
            write_json(path, {"identity": identity, "details": details_of(problem)})
        remove_leftovers(folder)
        now = replace(now, after=Folder(folder, identity, None).finished)
        return Folder(folder, identity, lock, ask(folder, goals or (Asked.of(identity),), now))
    except BaseException:
        lock.release()
        raise


def _goals(folder: Path, identity: Identity | None) -> tuple[Asked, ...]:
    try:
        return read_goals(folder, identity)
    except Damaged as damage:
        log.warning("%s; it is written again with the goal of this search", damage)
        return ()


def same_proposal(known: Candidate, proposed: Candidate) -> bool:
    """Whether two records are of one proposal; predictions of a calibrated table may differ in their last digits.

    One that was screened may have gone on since, or been left out.
    """
    fields = ["index", "group", "widths", "feasible", "seed", "samples", "refined"]
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
