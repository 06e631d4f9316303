"""Which keys count: rotation, revocation, and root or targets signed anew before their year is over.

Root is a chain: each version is signed by enough keys of the one before and enough of its own, and all versions stay
published, so that a robot that was away for a year follows them one by one. Nothing here reads key files.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]

from pipelines.release import repository_state
from pipelines.release.keys import ONLINE, ROLES, Keys
from pipelines.release.repository import Repository
from pipelines.release.repository_state import LIFETIME, State
from serving.errors import OperatorError


@dataclass(frozen=True)
class Change:
    """What becomes of the keys of one role."""

    removed: Sequence[str] = ()  # key ids
    added: Sequence[CryptoSigner] = ()


def found(state: State, keyids: Iterable[str]) -> dict[str, list[str]]:
    """The keys that are meant: role -> whole ids.

    Args:
        keyids: ids, or the start of them, at least 8 digits.

    Raises:
        OperatorError: one names no key, or several.
    """
    meant: dict[str, list[str]] = {}
    for start in keyids:
        matches = [(role, known) for role in ROLES for known in state.role(role).keyids if known.startswith(start)]
        if len(start) < 8 or len({known for _, known in matches}) != 1:
            raise OperatorError(f"{start} is no key's id, nor the first 8 digits of one: `jetloop release keys list`")
        for role, known in matches:
            meant.setdefault(role, []).append(known)
    return meant


def change(
    repository: Repository,
    changes: Mapping[str, Change],
    offline: Keys,
    online: Keys,
    before_publishing: Callable[[], None] = lambda: None,
) -> None:
    """Replaces keys, and publishes metadata that says so.

    Args:
        changes: role -> its change.
        offline: offline keys at hand, old ones; enough of root, or of targets for a change of `releases`.
        online: all online keys until now that are at hand.
        before_publishing: called when all signatures are made; it keeps the new keys.

    Raises:
        OperatorError: too few signatures can be made; nothing was changed.
        OSError: the disk is full or the folder not writable.
    """
    state = repository.state
    added = Keys({role: one.added for role, one in changes.items()})
    removed = {keyid for one in changes.values() for keyid in one.removed}
    root = _changed_root(state, {role: one for role, one in changes.items() if role != "releases"})
    targets = _changed_targets(repository, changes.get("releases"), resign="targets" in changes)
    if root is not None:
        _sign_root(state, root, offline | added)
    new_state = replace(state, root=root or state.root, targets=targets or state.targets)
    if targets is not None:
        _sign_targets(state, new_state, offline | added)
    kept = {
        role: [
            signer
            for signer in (online | added).all().values()
            if signer.public_key.keyid in new_state.role(role).keyids and signer.public_key.keyid not in removed
        ]
        for role in ONLINE
    }
    trusted = repository_state.trusted(new_state, Keys(kept))
    before_publishing()
    repository.replace_keys(root, targets, trusted, before=online)


def renew(repository: Repository, role: str, offline: Keys, online: Keys) -> None:
    """Signs root or targets anew, for another year, with the same keys.

    Raises:
        OperatorError: too few signatures can be made; nothing was changed.
        OSError: the disk is full or the folder not writable.
    """
    state = repository.state
    root, targets = None, None
    if role == "root":
        root = _changed_root(state, {"root": Change()})
        assert root is not None
        _sign_root(state, root, offline)
    else:
        targets = _changed_targets(repository, None, resign=True)
        assert targets is not None
        _sign_targets(state, replace(state, targets=targets), offline)
    repository.replace_keys(root, targets, repository_state.trusted(state, online), before=online)


def _changed_root(state: State, changes: Mapping[str, Change]) -> Metadata[Root] | None:
    if not changes:
        return None
    root = deepcopy(state.root)
    root.signed.version += 1
    root.signed.expires = repository_state.now() + LIFETIME["root"]
    for role, one in changes.items():
        for keyid in one.removed:
            root.signed.revoke_key(keyid, role)
        for signer in one.added:
            root.signed.add_key(signer.public_key, role)
        _check_count(role, root.signed)
    return root


def _changed_targets(repository: Repository, releases: Change | None, resign: bool) -> Metadata[Targets] | None:
    if releases is None and not resign:
        return None
    targets = deepcopy(repository.state.targets)
    targets.signed.version = repository.next_version("targets")
    targets.signed.expires = repository_state.now() + LIFETIME["targets"]
    if releases is not None:
        for keyid in releases.removed:
            targets.signed.revoke_key(keyid, "releases")
        for signer in releases.added:
            targets.signed.add_key(signer.public_key, "releases")
        _check_count("releases", targets.signed)
    return targets


def _check_count(role: str, delegator: Root | Targets) -> None:
    left = delegator.get_delegated_role(role)
    if len(left.keyids) < left.threshold:
        raise OperatorError(
            f"{role} needs {left.threshold} keys and would have {len(left.keyids)}: replace the key instead"
        )


def _sign_root(state: State, root: Metadata[Root], offline: Keys) -> None:
    """By keys of the root before and of the new one: robots ask for enough of each."""
    wanted = {*state.role("root").keyids, *root.signed.roles["root"].keyids}
    repository_state.sign(root, [signer for keyid, signer in offline.all().items() if keyid in wanted])
    for delegator in (state.root.signed, root.signed):
        _verify("root", delegator, root)


def _sign_targets(before: State, after: State, offline: Keys) -> None:
    """By the new keys, and by the old ones that are here: until the new root is out robots go by the old one."""
    wanted = {*before.role("targets").keyids, *after.role("targets").keyids}
    repository_state.sign(after.targets, [signer for keyid, signer in offline.all().items() if keyid in wanted])
    _verify("targets", after.root.signed, after.targets)


def _verify(role: str, delegator: Root, metadata: Metadata[Root] | Metadata[Targets]) -> None:
    try:
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except UnsignedMetadataError:
        needed = delegator.get_delegated_role(role)
        here = len([keyid for keyid in metadata.signatures if keyid in needed.keyids])
        raise OperatorError(
            f"{role} must be signed by {needed.threshold} of its {len(needed.keyids)} keys, {here} are here: "
            "name the folders of the others with --offline"
        ) from None
