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
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, Root, TargetFile, Targets  # type: ignore[attr-defined]

from pipelines.release import durable, repository_state
from pipelines.release.keys import ONLINE, Keys
from pipelines.release.repository_state import DELEGATED_PATHS, LIFETIME, State, encode, meta, now
from serving.contracts.releases import Channel, Passport, channel_path
from serving.errors import OperatorError


class Mirror(Protocol):
    """Where else the repository is published, such as a bucket (publish_s3.py)."""

    def bring(self, folder: Path, state: State) -> None:
        """Brings the copy to the state of the folder; quick when it is there.

        Raises:
            OperatorError: it cannot be reached; the next call goes on.
        """


class Repository:
    """A repository open for publishing. One writer at a time (the service holds a lock); readers in any thread."""

    def __init__(self, folder: Path, keys: Keys, state: State, mirror: Mirror | None = None) -> None:
        self._folder = folder
        self._keys = keys
        self._state = state  # replaced as a whole, after timestamp.json
        self._mirror = mirror

    @classmethod
    def create(cls, folder: Path, keys: Keys, thresholds: dict[str, int] | None = None) -> "Repository":
        """Makes an empty repository in `folder`, signed with the keys of all five roles.

        Args:
            thresholds: role -> how many of its keys must sign; 1 where nothing is said.

        Raises:
            OperatorError: there is a repository already, or a key is missing.
            ValueError: a threshold is above the number of keys.
        """
        if (folder / "metadata").exists():
            raise OperatorError(f"{folder} holds a repository already: it is not overwritten, choose another folder")
        state = repository_state.created(keys, thresholds or {})
        (folder / "targets").mkdir(parents=True, exist_ok=True)
        repository = cls(folder, keys, state)
        repository._write("1.root.json", encode(state.root))
        repository._write("1.targets.json", encode(state.targets))
        repository._commit(deepcopy(state.releases))
        repository._write("root.json", encode(state.root))
        return repository

    @classmethod
    def open(cls, folder: Path, keys: Keys, mirror: Mirror | None = None) -> "Repository":
        """Opens what `create` made, checking every signature, so that nothing altered is ever signed again.

        Args:
            mirror: where each publication is brought too, before `publish` returns.

        Raises:
            OperatorError: there is no repository, it was altered or damaged, or the keys are not the ones it trusts.
        """
        state = repository_state.load(folder)
        return cls(folder, repository_state.trusted(state, keys), state, mirror)

    @property
    def state(self) -> State:
        """The metadata as it is published."""
        return self._state

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder

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
        return self._state.expires()

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
        self.bring()

    def renew(self, when: datetime.datetime | None = None) -> list[str]:
        """Signs anew the online roles that have used over half of their time, and brings the mirror up to date.

        Returns:
            The roles whose half was over; empty when nothing was signed.

        Raises:
            OSError: the disk is full or the folder not writable.
            OperatorError: the mirror cannot be reached.
        """
        self.bring()  # what a killed service published here alone comes first
        when = when or now()
        due = [role for role in ONLINE if self.expires()[role] - when < LIFETIME[role] / 2]
        if due:
            releases = deepcopy(self._state.releases) if "releases" in due else None
            self._commit(releases, with_snapshot="snapshot" in due, when=when)
            self.bring()
        return due

    def bring(self) -> None:
        """Brings the mirror, if there is one, to what is published here.

        Raises:
            OperatorError: it cannot be reached, or somebody else publishes there.
        """
        if self._mirror:
            self._mirror.bring(self._folder, self._state)

    def replace_keys(
        self, root: Metadata[Root] | None, targets: Metadata[Targets] | None, keys: Keys, before: Keys
    ) -> None:
        """Publishes other root or targets metadata, and all online roles signed anew (repository_keys.py makes it).

        Until the new root is there robots go by the old one. So all that they verify with root itself is signed by
        the keys of both, and it does not matter when a robot looks or where this is killed.

        Args:
            root: signed already; None keeps it.
            targets: signed already; None keeps it.
            keys: the online keys from now on.
            before: the online keys until now, as far as they are here.
        """
        self._keys = before | keys
        if targets is not None:
            self._write(f"{targets.signed.version}.targets.json", encode(targets))
        releases = deepcopy(self._state.releases)
        self._commit(releases, targets=targets)
        if root is not None:
            self._write(f"{root.signed.version}.root.json", encode(root))
            self._write("root.json", encode(root))
            self._state = replace(self._state, root=root)
        self._keys = keys

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
        when: datetime.datetime | None = None,
        targets: Metadata[Targets] | None = None,
    ) -> None:
        """Signs and writes what changed, in the order releases, snapshot, timestamp; the last makes it visible."""
        when = when or now()
        state = self._state
        snapshot, timestamp = deepcopy(state.snapshot), deepcopy(state.timestamp)
        if targets is not None:
            snapshot.signed.meta["targets.json"] = meta(targets.signed.version, encode(targets))
        if releases is not None:
            data = self._sign_and_write("releases", releases, when)
            snapshot.signed.meta["releases.json"] = meta(releases.signed.version, data)
        if releases is not None or with_snapshot:
            data = self._sign_and_write("snapshot", snapshot, when)
            timestamp.signed.snapshot_meta = meta(snapshot.signed.version, data)
        timestamp.signed.version += 1
        timestamp.signed.expires = when + LIFETIME["timestamp"]
        repository_state.sign(timestamp, self._keys.signers("timestamp"))
        self._write("timestamp.json", encode(timestamp))
        self._state = State(state.root, targets or state.targets, releases or state.releases, snapshot, timestamp)

    def _sign_and_write(self, role: str, metadata: Metadata[Any], when: datetime.datetime) -> bytes:
        metadata.signed.version = self.next_version(role)
        metadata.signed.expires = when + LIFETIME[role]
        repository_state.sign(metadata, self._keys.signers(role))
        data = encode(metadata)
        self._write(f"{metadata.signed.version}.{role}.json", data)
        return data

    def next_version(self, role: str) -> int:
        """One above every version ever written, also by a publication that was killed: no number is signed twice."""
        files = (self._folder / "metadata").glob(f"*.{role}.json")
        return max((int(file.name.split(".")[0]) for file in files if file.name.split(".")[0].isdigit()), default=0) + 1

    def _write(self, name: str, data: bytes) -> None:
        durable.write(self._folder / "metadata" / name, data)
