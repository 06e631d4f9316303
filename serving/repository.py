"""The signed repository of releases, as a robot sees it: metadata verified by TUF, and the files that it describes.

Trust comes from TUF alone (python-tuf's client over plain HTTP files): whoever controls the network or the server can
delay an update, and nothing else. What the files mean is the updater's part.

What a person brought on a stick (import_release.py) lies in `<folder>/imported/`. While it is there it is looked at in
the place of the network, under the same checks; it is removed when all of it was taken, or any of it was refused.
"""

import contextlib
import datetime
import logging
import shutil
from pathlib import Path
from typing import Iterator, Optional, Tuple
from urllib.parse import unquote, urlsplit

import urllib3
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, TargetFile  # type: ignore[attr-defined]  # exported without __all__
from tuf.ngclient import FetcherInterface, UpdaterConfig  # type: ignore[attr-defined]
from tuf.ngclient import Updater as TufClient  # type: ignore[attr-defined]

from serving import files
from serving.config import RepositorySettings
from serving.errors import OperatorError, RejectedError
from serving.fetcher import Fetcher
from serving.fetcher_folder import FolderFetcher

IMPORTED = "imported"
KEPT = "kept"
_TIMESTAMP_BYTES = 16_384

log = logging.getLogger(__name__)


class Refused(RejectedError):
    """A release that this robot does not run, and what is known of it.

    Args:
        may_heal: the same signed metadata may lead to something better at the next look, such as a file that was
            damaged on the way.
    """

    def __init__(self, reason: str, release_id: str = "", engine_sha256: str = "", may_heal: bool = False) -> None:
        super().__init__(reason)
        self.release_id, self.engine_sha256, self.may_heal = release_id, engine_sha256, may_heal


class SignedRepository:
    """One repository. Its methods are called within `errors_translated()`.

    Args:
        settings: the table `[repository]` of robot.toml; its url may also be a file:// one, of a folder: what is taken
            from there is kept in `<folder>/kept/`.
        folder: for TUF's metadata and for downloads on their way; made if it is missing.

    Raises:
        OperatorError: root.json cannot be read.
    """

    def __init__(self, settings: RepositorySettings, folder: Path) -> None:
        self.url = settings.url.rstrip("/")
        self._folder = folder
        self._metadata = folder / "metadata"
        self._root = _read_root(Path(settings.root))
        self._imported = folder / IMPORTED
        self._fetcher = _fetcher(settings, folder)
        self._from_import = False
        self._client: Optional[TufClient] = None
        self._settled: Optional[Tuple[bytes, datetime.datetime]] = None  # timestamp.json with nothing left to do

    def nothing_new(self) -> bool:
        """One small request: the same timestamp.json as when it was settled, not expired, leads to the same files."""
        if self._settled is None or self._imported.is_dir():
            return False
        timestamp, expires = self._settled
        found = self._fetcher.download_bytes(f"{self.url}/metadata/timestamp.json", _TIMESTAMP_BYTES)
        return found == timestamp and datetime.datetime.now(datetime.timezone.utc) < expires

    def settle(self) -> None:
        """Remembers that what the verified timestamp.json leads to is done, until the first of its files expires."""
        metadata = [path for path in self._metadata.glob("*.json") if path.is_file()]
        expires = min(Metadata.from_file(str(path)).signed.expires for path in metadata)
        self._settled = ((self._metadata / "timestamp.json").read_bytes(), expires)
        if self._from_import:
            self._drop_import("was looked through")

    def refresh(self) -> None:
        """Brings and verifies the metadata: signatures, expiry, versions, the mix of files."""
        self._metadata.mkdir(parents=True, exist_ok=True)
        self._from_import = self._imported.is_dir()
        local = FolderFetcher(self._imported, self._folder)
        url = local.url if self._from_import else self.url
        with self._import_dropped_if_refused():
            self._client = TufClient(
                metadata_dir=str(self._metadata),
                metadata_base_url=f"{url}/metadata/",
                target_base_url=f"{url}/targets/",
                fetcher=local if self._from_import else self._fetcher,
                config=UpdaterConfig(max_root_rotations=64, max_delegations=8, targets_max_length=5_000_000),
                bootstrap=self._root,
            )
            self._client.refresh()

    def find(self, path: str) -> Optional[TargetFile]:
        """What the metadata says of a file: length and digests; None when it names no such file."""
        with self._import_dropped_if_refused():
            return self._refreshed().get_targetinfo(path)

    def read(self, info: TargetFile, max_bytes: int) -> bytes:
        """Content of a small file, verified; the last of its name is kept, and not brought again.

        Raises:
            Refused: it is larger than `max_bytes`.
        """
        if info.length > max_bytes:
            raise Refused(f"{info.path} has {info.length} bytes, {max_bytes} are allowed")
        place = self._folder / f"newest-{Path(info.path).name}"
        if not self._refreshed().find_cached_target(info, str(place)):
            self.download(info, place)
        return files.read_bounded(place, max_bytes)

    def download(self, info: TargetFile, place: Path) -> None:
        """Brings a file, verified; a large one goes on where an earlier attempt broke off."""
        with self._import_dropped_if_refused():
            self._refreshed().download_target(info, str(place))

    @contextlib.contextmanager
    def _import_dropped_if_refused(self) -> Iterator[None]:
        """What cannot be used is not looked at again: the network's turn comes next."""
        try:
            yield
        except (tuf_errors.RepositoryError, tuf_errors.DownloadError):
            if self._from_import:
                self._drop_import("cannot be used")
            raise

    def _drop_import(self, why: str) -> None:
        shutil.rmtree(self._imported)
        self._from_import = False
        log.info("what was imported %s: it is removed, the next look goes to %s", why, self.url)

    def _refreshed(self) -> TufClient:
        assert self._client is not None, "refresh() comes first"
        return self._client


@contextlib.contextmanager
def errors_translated() -> Iterator[None]:
    """TUF's errors, HTTP's and the disk's as ours.

    Raises:
        Refused: what the repository holds does not verify.
        OperatorError: repository or disk do not answer as they should.
    """
    try:
        yield
    except tuf_errors.ExpiredMetadataError as problem:
        now = datetime.datetime.now(datetime.timezone.utc)
        raise Refused(f"{problem}: the release service must renew it, unless this clock is wrong ({now:%F})") from None
    except (tuf_errors.RepositoryError, tuf_errors.DownloadLengthMismatchError) as problem:
        raise Refused(f"the repository does not verify: {type(problem).__name__}: {problem}") from None
    except (tuf_errors.DownloadError, urllib3.exceptions.HTTPError) as problem:
        cause = problem.__cause__ or problem
        reason = getattr(cause, "reason", None) or cause  # urllib3's MaxRetryError says it at length
        raise OperatorError(f"the release repository does not answer: {reason}") from None
    except OSError as problem:
        raise OperatorError(f"the disk does not take the release: {problem}; check the disk") from None


def _fetcher(settings: RepositorySettings, folder: Path) -> FetcherInterface:
    address = urlsplit(settings.url)
    if address.scheme == "file":
        return FolderFetcher(Path(unquote(address.path)), folder, keep=folder / KEPT)
    return Fetcher(settings.url, settings.timeout_s, folder)


def _read_root(path: Path) -> bytes:
    try:
        return files.read_bounded(path, 512_000)
    except (OSError, ValueError) as problem:
        raise OperatorError(
            f"repository.root: {path}: {problem}; copy root.json of the release service there"
        ) from None
