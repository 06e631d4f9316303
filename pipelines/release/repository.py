"""The signed repository that robots pull from: TUF metadata and targets as plain files in one folder.

    metadata/1.root.json, root.json     which keys count (offline key); robots start from a copy of it
    metadata/<n>.targets.json           delegates channels/* and releases/*/*/* to the role `releases` (offline key)
    metadata/<n>.releases.json          every file released, with its digest (online key)
    metadata/<n>.snapshot.json          which versions of these belong together (online key)
    metadata/timestamp.json             which snapshot is the newest (online key, good for a day)
    targets/<path>/<sha256>.<name>      the files themselves

A publication writes files first and timestamp.json last, each atomically: until that last rename nobody sees any of
it, so a service may be killed at any instruction. Nothing here knows of MLflow, gates or HTTP.
"""

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # exported without __all__
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from pipelines.release import durable
from pipelines.release.keys import Keys
from serving.contracts.releases import Channel, Passport, channel_path
from serving.errors import OperatorError

DELEGATED_PATHS = ["channels/*", "releases/*/*/*"]  # TUF's * does not match a slash
LIFETIME = {
    "root": datetime.timedelta(days=365),
    "targets": datetime.timedelta(days=365),
    "releases": datetime.timedelta(days=30),
    "snapshot": datetime.timedelta(days=7),
    "timestamp": datetime.timedelta(days=1),
}
_RENEWED_HERE = ("releases", "snapshot", "timestamp")


@dataclass(frozen=True)
class _State:
    """One consistent set of metadata: what timestamp.json leads to."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    releases: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]


class Repository:
    """A repository open for publishing. One writer at a time (the service holds a lock); readers in any thread."""

    def __init__(self, folder: Path, keys: Keys, state: _State) -> None:
        self._folder = folder
        self._keys = keys
        self._state = state  # replaced as a whole, after timestamp.json

    @classmethod
    def create(cls, folder: Path, keys: Keys) -> "Repository":
        """Makes an empty repository in `folder`, signed with all five keys.

        Raises:
            OperatorError: there is a repository already, or a key is missing.
        """
        if (folder / "metadata").exists():
            raise OperatorError(f"{folder} holds a repository already: it is not overwritten, choose another folder")
        (folder / "targets").mkdir(parents=True, exist_ok=True)
        now = _now()
        root = Metadata(Root(expires=now + LIFETIME["root"], consistent_snapshot=True))
        for role in ("root", "targets", "snapshot", "timestamp"):
            root.signed.add_key(keys.signer(role).public_key, role)
        root.sign(keys.signer("root"))
        targets = Metadata(Targets(expires=now + LIFETIME["targets"], delegations=_delegation(keys)))
        targets.sign(keys.signer("targets"))
        releases = Metadata(Targets(expires=now))
        snapshot = Metadata(Snapshot(expires=now, meta={"targets.json": _meta(1, _encode(targets))}))
        timestamp = Metadata(Timestamp(expires=now))
        timestamp.signed.version = 0  # the first commit makes it 1
        repository = cls(folder, keys, _State(root, targets, releases, snapshot, timestamp))
        repository._write("1.root.json", _encode(root))
        repository._write("1.targets.json", _encode(targets))
        repository._commit(deepcopy(releases))
        repository._write("root.json", _encode(root))
        return repository

    @classmethod
    def open(cls, folder: Path, keys: Keys) -> "Repository":
        """Opens what `create` made, checking every signature, so that nothing altered is ever signed again.

        Raises:
            OperatorError: there is no repository, it was altered or damaged, or the keys are not the ones it trusts.
        """
        if not (folder / "metadata" / "timestamp.json").exists():
            raise OperatorError(f"{folder} holds no release repository: make one with `jetloop release init`")
        try:
            state = _load(folder / "metadata")
        except (OSError, RepositoryError, DeserializationError, ValueError) as problem:
            raise OperatorError(
                f"{folder}/metadata is damaged or altered ({problem}): restore it from a copy"
            ) from None
        _check_keys(state, keys)
        return cls(folder, keys, state)

    # What is published

    def channel(self, name: str) -> Channel | None:
        """What a ring runs now; None before its first release.

        Raises:
            OperatorError: the file is missing or altered.
        """
        path = channel_path(name)
        return msgspec.json.decode(self.read(path), type=Channel) if path in self._files else None

    def channels(self) -> list[Channel]:
        """All channels that were ever published, by name."""
        names = sorted(Path(path).stem for path in self._files if path.startswith("channels/"))
        return [channel for name in names if (channel := self.channel(name))]

    def passport(self, path: str) -> Passport:
        """The passport at a target path, such as a channel names.

        Raises:
            OperatorError: it is not published, missing or altered.
        """
        return msgspec.json.decode(self.read(path), type=Passport)

    def passports(self, release_id: str) -> dict[str, str]:
        """Target -> path of the passport, for all targets that a release was built for; empty when never released."""
        found = (path.split("/") for path in self._files if path.startswith(f"releases/{release_id}/"))
        return {parts[2]: "/".join(parts) for parts in found if parts[3] == "passport.json"}

    def read(self, path: str) -> bytes:
        """Content of a published file, checked against its signed digest.

        Raises:
            OperatorError: it is not published, missing or altered.
        """
        if path not in self._files:
            raise OperatorError(f"{path} is not in the release repository {self._folder}")
        file = self.path_of(path)
        try:
            content = file.read_bytes()
            self._files[path].verify_length_and_hashes(content)
        except (OSError, RepositoryError) as problem:
            raise OperatorError(f"{file} is missing or altered ({problem}): restore it from a copy") from None
        return content

    def path_of(self, path: str) -> Path:
        """Where a published file lies: consistent snapshots put the digest before its name."""
        return self._folder / "targets" / self._files[path].get_prefixed_paths()[0]

    def expires(self) -> dict[str, datetime.datetime]:
        """When the metadata of each role ends (UTC)."""
        return {role: getattr(self._state, role).signed.expires for role in LIFETIME}

    @property
    def _files(self) -> dict[str, TargetFile]:
        return self._state.releases.signed.targets

    # Publishing

    def publish(self, files: Mapping[str, bytes | Path], channels: Sequence[Channel] = ()) -> None:
        """Adds files and moves channels in one publication: robots see all of it or nothing.

        Args:
            files: target path -> content, or a file to read it from.
            channels: what rings run from now on, each with a sequence above the published one.

        Raises:
            ValueError: a path is outside what this role may sign, a released file would change, or a sequence would
                not rise.
            OSError: the disk is full or the folder not writable; what was published before still stands.
        """
        releases = deepcopy(self._state.releases)
        for path, content in files.items():
            data = content if isinstance(content, bytes) else content.read_bytes()
            if path in self._files and self._files[path].hashes["sha256"] != hashlib.sha256(data).hexdigest():
                raise ValueError(f"{path} is released already and never changes")
            self._add(releases.signed, path, data)
        for channel in channels:
            before = self.channel(channel.channel)
            if before and channel.sequence <= before.sequence:
                raise ValueError(f"{channel.channel}: sequence {channel.sequence} is not above {before.sequence}")
            self._add(releases.signed, channel_path(channel.channel), msgspec.json.encode(channel))
        self._commit(releases)

    def renew(self, now: datetime.datetime | None = None) -> list[str]:
        """Signs anew the online roles that have used over half of their time.

        Returns:
            The roles whose half was over; empty when nothing was written.

        Raises:
            OSError: the disk is full or the folder not writable.
        """
        now = now or _now()
        due = [role for role in _RENEWED_HERE if self.expires()[role] - now < LIFETIME[role] / 2]
        if due:
            releases = deepcopy(self._state.releases) if "releases" in due else None
            self._commit(releases, with_snapshot="snapshot" in due, now=now)
        return due

    def sweep(self) -> None:
        """Removes the parts of files that a killed service left. Only for the process that holds the lock."""
        durable.remove_unfinished(self._folder)

    def _add(self, releases: Targets, path: str, data: bytes) -> None:
        role = self._state.targets.signed.get_delegated_role("releases")
        if not (isinstance(role, DelegatedRole) and role.is_delegated_path(path)):
            raise ValueError(f"{path} is none of {', '.join(DELEGATED_PATHS)}: robots would not look for it")
        target = TargetFile.from_data(path, data, ["sha256"])
        releases.targets[path] = target
        durable.write(self._folder / "targets" / target.get_prefixed_paths()[0], data)

    def _commit(
        self,
        releases: Metadata[Targets] | None,
        with_snapshot: bool = False,
        now: datetime.datetime | None = None,
    ) -> None:
        """Signs and writes what changed, in the order releases, snapshot, timestamp; the last makes it visible."""
        now = now or _now()
        state = self._state
        snapshot, timestamp = deepcopy(state.snapshot), deepcopy(state.timestamp)
        if releases is not None:
            data = self._sign_and_write("releases", releases, now)
            snapshot.signed.meta["releases.json"] = _meta(releases.signed.version, data)
        if releases is not None or with_snapshot:
            data = self._sign_and_write("snapshot", snapshot, now)
            timestamp.signed.snapshot_meta = _meta(snapshot.signed.version, data)
        timestamp.signed.version += 1
        timestamp.signed.expires = now + LIFETIME["timestamp"]
        timestamp.sign(self._keys.signer("timestamp"))
        self._write("timestamp.json", _encode(timestamp))
        self._state = _State(state.root, state.targets, releases or state.releases, snapshot, timestamp)

    def _sign_and_write(self, role: str, metadata: Metadata[Any], now: datetime.datetime) -> bytes:
        metadata.signed.version = self._next_version(role)
        metadata.signed.expires = now + LIFETIME[role]
        metadata.sign(self._keys.signer(role))
        data = _encode(metadata)
        self._write(f"{metadata.signed.version}.{role}.json", data)
        return data

    def _next_version(self, role: str) -> int:
        """One above every version ever written, also by a publication that was killed: no number is signed twice."""
        files = (self._folder / "metadata").glob(f"*.{role}.json")
        return max((int(file.name.split(".")[0]) for file in files if file.name.split(".")[0].isdigit()), default=0) + 1

    def _write(self, name: str, data: bytes) -> None:
        durable.write(self._folder / "metadata" / name, data)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def _encode(metadata: Metadata[Any]) -> bytes:
    return metadata.to_bytes(JSONSerializer(compact=False))


def _meta(version: int, data: bytes) -> MetaFile:
    return MetaFile.from_data(version, data, ["sha256"])


def _delegation(keys: Keys) -> Delegations:
    key = keys.signer("releases").public_key
    role = DelegatedRole("releases", [key.keyid], threshold=1, terminating=True, paths=list(DELEGATED_PATHS))
    return Delegations(keys={key.keyid: key}, roles={"releases": role})


def _load(metadata: Path) -> _State:
    """Follows timestamp.json down as a robot does, except that what has expired is read: the service renews it."""
    newest = max(int(file.name.split(".")[0]) for file in metadata.glob("[0-9]*.root.json"))
    root = Metadata[Root].from_file(str(metadata / f"{newest}.root.json"))
    root.signed.verify_delegate("root", root.signed_bytes, root.signatures)
    timestamp = Metadata[Timestamp].from_file(str(metadata / "timestamp.json"))
    root.signed.verify_delegate("timestamp", timestamp.signed_bytes, timestamp.signatures)
    snapshot = Metadata[Snapshot].from_bytes(_part(metadata, "snapshot", timestamp.signed.snapshot_meta))
    root.signed.verify_delegate("snapshot", snapshot.signed_bytes, snapshot.signatures)
    targets = Metadata[Targets].from_bytes(_part(metadata, "targets", snapshot.signed.meta["targets.json"]))
    root.signed.verify_delegate("targets", targets.signed_bytes, targets.signatures)
    releases = Metadata[Targets].from_bytes(_part(metadata, "releases", snapshot.signed.meta["releases.json"]))
    targets.signed.verify_delegate("releases", releases.signed_bytes, releases.signatures)
    return _State(root, targets, releases, snapshot, timestamp)


def _part(metadata: Path, role: str, meta: MetaFile) -> bytes:
    data = (metadata / f"{meta.version}.{role}.json").read_bytes()
    meta.verify_length_and_hashes(data)
    return data


def _check_keys(state: _State, keys: Keys) -> None:
    for role, delegator in (("releases", state.targets), ("snapshot", state.root), ("timestamp", state.root)):
        if role in keys and keys.signer(role).public_key.keyid not in delegator.signed.get_delegated_role(role).keyids:
            raise OperatorError(f"the key of `{role}` is not the one that this repository trusts: bring the right key")
