"""One consistent set of TUF metadata, as a value: made, read from a folder and verified, and the files it needs.

Nothing here writes; repository.py publishes, repository_keys.py changes which keys count.
"""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from pipelines.release.keys import OFFLINE, Keys
from serving.errors import OperatorError

DELEGATED_PATHS = ["channels/*", "releases/*/*/*"]  # TUF's * does not match a slash
LIFETIME = {
    "root": datetime.timedelta(days=365),
    "targets": datetime.timedelta(days=365),
    "releases": datetime.timedelta(days=30),
    "snapshot": datetime.timedelta(days=7),
    "timestamp": datetime.timedelta(days=1),
}


@dataclass(frozen=True)
class State:
    """What timestamp.json leads to, and the root that it is trusted by."""

    root: Metadata[Root]
    targets: Metadata[Targets]
    releases: Metadata[Targets]
    snapshot: Metadata[Snapshot]
    timestamp: Metadata[Timestamp]

    def delegator(self, role: str) -> Root | Targets:
        """What says which keys count for a role."""
        return self.targets.signed if role == "releases" else self.root.signed

    def role(self, role: str) -> Role:
        """Key ids and threshold of a role."""
        return self.delegator(role).get_delegated_role(role)

    def expires(self) -> dict[str, datetime.datetime]:
        """When the metadata of each role ends (UTC)."""
        return {role: getattr(self, role).signed.expires for role in LIFETIME}

    def roots(self) -> list[str]:
        """Names of the root files, oldest first: robots that were away follow them one by one."""
        return [f"{version}.root.json" for version in range(1, self.root.signed.version + 1)]

    def parts(self) -> list[str]:
        """Names of the metadata between root and timestamp, in the order in which they are published."""
        return [f"{getattr(self, role).signed.version}.{role}.json" for role in ("targets", "releases", "snapshot")]

    def files(self, paths: Iterable[str] | None = None) -> dict[str, str]:
        """Target path -> where it lies below `targets/`; of all files released, or of some."""
        targets = self.releases.signed.targets
        return {path: targets[path].get_prefixed_paths()[0] for path in (targets if paths is None else paths)}


def created(keys: Keys, thresholds: dict[str, int]) -> State:
    """The metadata of an empty repository; root and targets are signed, the others not yet.

    Raises:
        OperatorError: a key is missing.
        ValueError: a threshold is above the number of keys.
    """
    start = now()
    root = Metadata(Root(expires=start + LIFETIME["root"], consistent_snapshot=True))
    for role in ("root", "targets", "snapshot", "timestamp"):
        for signer in keys.signers(role):
            root.signed.add_key(signer.public_key, role)
        root.signed.roles[role].threshold = _threshold(role, keys, thresholds)
    sign(root, keys.signers("root"))
    public = {signer.public_key.keyid: signer.public_key for signer in keys.signers("releases")}
    delegated = DelegatedRole(
        "releases", list(public), _threshold("releases", keys, thresholds), terminating=True, paths=[*DELEGATED_PATHS]
    )
    delegations = Delegations(keys=dict(public), roles={"releases": delegated})
    targets = Metadata(Targets(expires=start + LIFETIME["targets"], delegations=delegations))
    sign(targets, keys.signers("targets"))
    snapshot = Metadata(Snapshot(expires=start, meta={"targets.json": meta(1, encode(targets))}))
    timestamp = Metadata(Timestamp(expires=start))
    timestamp.signed.version = 0  # the first commit makes it 1
    return State(root, targets, Metadata(Targets(expires=start)), snapshot, timestamp)


def load(folder: Path) -> State:
    """Follows timestamp.json down as a robot does, except that what has expired is read: the service renews it.

    Args:
        folder: of the repository.

    Raises:
        OperatorError: there is none, or it is altered or damaged.
    """
    if not (folder / "metadata" / "timestamp.json").exists():
        raise OperatorError(f"{folder} holds no release repository: make one with `jetloop release init`")
    try:
        return _load(folder / "metadata")
    except (OSError, RepositoryError, DeserializationError, ValueError, KeyError) as problem:
        raise OperatorError(f"{folder}/metadata is damaged or altered ({problem}): restore it from a copy") from None


def trusted(state: State, keys: Keys) -> Keys:
    """Of the keys at hand, those of the online roles that the repository trusts. One that was replaced and still lies
    there does no harm.

    Raises:
        OperatorError: a role has keys here, but too few that count.
    """
    chosen = {}
    for role in (role for role in LIFETIME if role in keys and role not in OFFLINE):
        needed = state.role(role)
        chosen[role] = [signer for signer in keys.signers(role) if signer.public_key.keyid in needed.keyids]
        if len(chosen[role]) < needed.threshold:
            raise OperatorError(f"the key of `{role}` is not the one that this repository trusts: bring the right key")
    return Keys(chosen, keys.files)


def now() -> datetime.datetime:
    """UTC, in whole seconds as TUF writes it."""
    return datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)


def encode(metadata: Metadata[Any]) -> bytes:
    """The bytes of a metadata file."""
    return metadata.to_bytes(JSONSerializer(compact=False))


def meta(version: int, data: bytes) -> MetaFile:
    """How one metadata file names another."""
    return MetaFile.from_data(version, data, ["sha256"])


def sign(metadata: Metadata[Any], signers: Iterable[CryptoSigner]) -> None:
    """Signs with all of the signers, in the place of any signatures before."""
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)


def _threshold(role: str, keys: Keys, thresholds: dict[str, int]) -> int:
    threshold, count = thresholds.get(role, 1), len(keys.signers(role))
    if not 1 <= threshold <= count:
        raise ValueError(f"{threshold} signatures of {role} cannot be asked for: it has {count} keys")
    return threshold


def _load(metadata: Path) -> State:
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
    return State(root, targets, releases, snapshot, timestamp)


def _part(metadata: Path, role: str, described: MetaFile) -> bytes:
    data = (metadata / f"{described.version}.{role}.json").read_bytes()
    described.verify_length_and_hashes(data)
    return data
