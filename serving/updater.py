"""Brings what the robot's ring shall run: looks, verifies, downloads, hands over, commits.

Trust comes from TUF alone (python-tuf's client over plain HTTP files): whoever controls the network or the server can
delay an update, and nothing else. Loading and judging an engine is `activate`'s part, keeping it the slots'.
"""

import contextlib
import datetime
import logging
import random
import shutil
import tempfile
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Optional, Tuple, Type, TypeVar

import msgspec
import urllib3
from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, TargetFile  # type: ignore[attr-defined]  # exported without __all__
from tuf.ngclient import FetcherInterface, UpdaterConfig  # type: ignore[attr-defined]
from tuf.ngclient import Updater as TufClient  # type: ignore[attr-defined]

from serving import files
from serving.config import RepositorySettings
from serving.contracts.releases import Channel, Passport, channel_path, engine_name, file_path
from serving.errors import OperatorError, RejectedError
from serving.mqtt import backoff_s
from serving.preprocess import PREPROCESSING
from serving.slots import GOLDEN_FILE, MAX_PASSPORT_BYTES, PASSPORT_FILE, Candidate, Slots

MAX_CHANNEL_BYTES = 64 * 1024
MAX_GOLDEN_BYTES = 64 << 20
MAX_ENGINE_BYTES = 1 << 30
MIN_BYTES_PER_S = 10_000  # a server that drips slower than this is left
_DISK_RESERVE_BYTES = 32 << 20
_TIMESTAMP_BYTES = 16_384
_CHUNK_BYTES = 256 * 1024
_MIN_GAP_S = 0.1  # between two looks, however many wake-ups come
_BACKOFF_BASE_S = 1.0
_MAX_TOLD = 100

log = logging.getLogger(__name__)

T = TypeVar("T")


class _Refused(RejectedError):
    """A release that this robot does not run, and what is known of it.

    Args:
        may_heal: the same signed metadata may lead to something better at the next look, such as a file that was
            damaged on the way.
    """

    def __init__(self, reason: str, release_id: str = "", engine_sha256: str = "", may_heal: bool = False) -> None:
        super().__init__(reason)
        self.release_id, self.engine_sha256, self.may_heal = release_id, engine_sha256, may_heal


class Updater:
    """Keeps one robot on the release of its ring; one thread of its own.

    Args:
        repository: the table `[repository]` of robot.toml.
        target: the kind of engine that this machine runs, such as `cpu-ort-fp32`.
        ring: the channel to follow.
        slots: where candidates go; TUF's metadata is kept in their folder too, under `tuf/`.
        activate: blocks until the candidate drives. It raises RejectedError when this robot must not run it (that is
            remembered), OperatorError when it could not be tried (then it is tried again).
        refused: told once of each refusal: release_id and engine digest (empty where unknown), and why.

    Raises:
        OperatorError: root.json cannot be read.
    """

    def __init__(
        self,
        repository: RepositorySettings,
        target: str,
        ring: str,
        slots: Slots,
        activate: Callable[[Candidate], None],
        refused: Callable[[str, str, str], None],
    ) -> None:
        self._url = repository.url.rstrip("/")
        self._poll_s = repository.poll_s
        self._target, self._ring = target, ring
        self._slots = slots
        self._activate, self._refused = activate, refused
        self._root = _read_root(Path(repository.root))
        self._tuf = slots.folder / "tuf"
        self._fetcher = _Fetcher(repository.url, repository.timeout_s, self._tuf)
        self._settled: Optional[Tuple[bytes, datetime.datetime]] = None  # timestamp.json with nothing left to do
        self._uncommitted: Optional[Candidate] = None  # drives, but the disk did not take the pointer
        self._told: List[Tuple[str, str, str]] = []
        self._said: Dict[str, str] = {}
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="updater", daemon=True)

    def start(self) -> None:
        """Looks at once, then at every poll and wake-up."""
        self._thread.start()

    def wake(self) -> None:
        """Look now; from any thread, returns at once."""
        self._wake.set()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Ends the thread; a download under way is left, and begun again at the next start."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def check(self) -> bool:
        """Looks once, and brings what is new.

        Returns:
            Whether a new engine was activated. A refused release gives False: the running one stays.

        Raises:
            OperatorError: repository or disk do not answer as they should; try again later.
        """
        try:
            return self._check()
        except _Refused as refusal:
            self._tell(refusal)
            return False

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                self.check()
                self._say("repository", logging.INFO, f"{self._url} answers")
                failures, wait_s = 0, self._poll_s * random.uniform(0.8, 1.2)
            except OperatorError as problem:
                failures += 1
                wait_s = backoff_s(failures, _BACKOFF_BASE_S, max(self._poll_s, _BACKOFF_BASE_S))
                self._say("repository", logging.WARNING, f"{problem}; trying again, up to every {self._poll_s:g} s")
            except Exception:  # a fault of ours must not end the updates of this robot for good
                failures, wait_s = failures + 1, self._poll_s
                log.exception("the updater failed; trying again in %.0f s", wait_s)
            if not self._stopping.wait(_MIN_GAP_S):
                self._wake.wait(wait_s)

    def _check(self) -> bool:
        if self._uncommitted:
            self._commit(self._uncommitted)
        with _tuf_errors_translated():
            if self._nothing_new():
                return False
            client = self._refreshed_client()
            try:
                channel = self._channel(client)
                activated = channel is not None and self._follow(client, channel)
            except _Refused as refusal:
                if not refusal.may_heal:
                    self._settle()
                raise
            self._settle()
            return activated

    def _nothing_new(self) -> bool:
        """One small request: the same timestamp.json, not expired, leads to the same files."""
        if self._settled is None:
            return False
        timestamp, expires = self._settled
        found = self._fetcher.download_bytes(f"{self._url}/metadata/timestamp.json", _TIMESTAMP_BYTES)
        return found == timestamp and datetime.datetime.now(datetime.timezone.utc) < expires

    def _settle(self) -> None:
        """Remembers that what the verified timestamp.json leads to is done, until the first of its files expires."""
        metadata = [path for path in (self._tuf / "metadata").glob("*.json") if path.is_file()]
        expires = min(Metadata.from_file(str(path)).signed.expires for path in metadata)
        self._settled = ((self._tuf / "metadata" / "timestamp.json").read_bytes(), expires)

    def _refreshed_client(self) -> TufClient:
        """TUF's client with verified metadata: signatures, expiry, versions, the mix of files."""
        (self._tuf / "metadata").mkdir(parents=True, exist_ok=True)
        client = TufClient(
            metadata_dir=str(self._tuf / "metadata"),
            metadata_base_url=f"{self._url}/metadata/",
            target_base_url=f"{self._url}/targets/",
            fetcher=self._fetcher,
            config=UpdaterConfig(max_root_rotations=64, max_delegations=8, targets_max_length=5_000_000),
            bootstrap=self._root,
        )
        client.refresh()
        return client

    def _channel(self, client: TufClient) -> Optional[Channel]:
        info = client.get_targetinfo(channel_path(self._ring))
        if info is None:
            self._say("release", logging.INFO, f"nothing was released on channel {self._ring} yet")
            return None
        channel = _decode(self._small_file(client, info, MAX_CHANNEL_BYTES), Channel, info.path)
        if channel.channel != self._ring:
            raise _Refused(f"{info.path} is about channel {channel.channel}", channel.release_id)
        replay = self._slots.replayed(channel)
        if replay:
            raise _Refused(f"{info.path} is a replay: {replay}", channel.release_id)
        self._slots.saw(channel)
        return channel

    def _follow(self, client: TufClient, channel: Channel) -> bool:
        """Brings the channel's release, if it is not the one that runs."""
        running = self._slots.running
        if running and running.passport.release_id == channel.release_id:
            if running.channel.sequence != channel.sequence:
                self._commit(replace(running, channel=channel))
            return False
        raw, passport = self._passport(client, channel)
        sha256 = passport.engine.sha256
        before = self._slots.refused(sha256)
        if before:
            text = f"{channel.release_id} is left alone: its engine was refused here: {before}"
            self._say("release", logging.WARNING, text)
            return False
        try:
            candidate = self._download(client, channel, raw, passport)
        except (tuf_errors.LengthOrHashMismatchError, tuf_errors.DownloadLengthMismatchError, RejectedError) as problem:
            raise _Refused(f"download: {problem}", channel.release_id, sha256, may_heal=True) from None
        return self._hand_over(candidate)

    def _passport(self, client: TufClient, channel: Channel) -> Tuple[bytes, Passport]:
        release = channel.release_id
        path = channel.passports.get(self._target)
        if path is None:
            known = ", ".join(sorted(channel.passports)) or "nothing"
            raise _Refused(f"it was not built for {self._target}, only for {known}", release)
        info = client.get_targetinfo(path)
        if info is None or path != file_path(release, self._target, PASSPORT_FILE):
            raise _Refused(f"its passport {path} is not in the repository, or not its own", release)
        raw = self._small_file(client, info, MAX_PASSPORT_BYTES)
        passport = _decode(raw, Passport, path)
        problem = misfit(passport, release, self._target)
        if problem:
            raise _Refused(f"its passport does not fit this robot: {problem}", release, passport.engine.sha256)
        return raw, passport

    def _download(self, client: TufClient, channel: Channel, raw: bytes, passport: Passport) -> Candidate:
        wanted = ((passport.golden, GOLDEN_FILE), (passport.engine, engine_name(self._target)))
        infos = []
        for described, name in wanted:
            info = client.get_targetinfo(described.path)
            if info is None or (info.length, info.hashes.get("sha256")) != (described.bytes, described.sha256):
                raise RejectedError(f"{described.path} is not signed as the passport describes it")
            infos.append((info, name))
        self._check_space(sum(info.length for info, _ in infos))
        folder = self._slots.prepare()
        started = time.monotonic()
        (folder / PASSPORT_FILE).write_bytes(raw)
        for info, name in infos:
            client.download_target(info, str(folder / name))
        megabytes = sum(info.length for info, _ in infos) / 1e6
        log.info("%s: %.1f MB in %.1f s", channel.release_id, megabytes, time.monotonic() - started)
        return self._slots.candidate(folder, channel)

    def _hand_over(self, candidate: Candidate) -> bool:
        passport = candidate.passport
        try:
            self._activate(candidate)
        except RejectedError as problem:
            self._slots.refuse(passport.release_id, passport.engine.sha256, str(problem))
            raise _Refused(str(problem), passport.release_id, passport.engine.sha256) from None
        self._commit(candidate)
        return True

    def _commit(self, candidate: Candidate) -> None:
        """Makes what drives what the robot boots with; when the disk does not take it, it is tried at the next look."""
        self._uncommitted = candidate
        try:
            self._slots.commit(candidate)
        except RejectedError as problem:
            passport = candidate.passport
            self._uncommitted = None
            raise _Refused(str(problem), passport.release_id, passport.engine.sha256, may_heal=True) from None
        self._uncommitted = None

    def _small_file(self, client: TufClient, info: TargetFile, max_bytes: int) -> bytes:
        if info.length > max_bytes:
            raise _Refused(f"{info.path} has {info.length} bytes, {max_bytes} are allowed")
        place = self._tuf / f"newest-{Path(info.path).name}"
        if not client.find_cached_target(info, str(place)):
            client.download_target(info, str(place))
        return files.read_bounded(place, max_bytes)

    def _check_space(self, needed: int) -> None:
        """A download lies beside the slot for a moment, so twice its size is asked for.

        Raises:
            OperatorError: the disk has too little room.
        """
        needed = 2 * needed + _DISK_RESERVE_BYTES
        free = shutil.disk_usage(self._slots.folder).free
        if free < needed:
            raise OperatorError(
                f"{self._slots.folder}: a new release needs {needed / 1e6:.0f} MB, {free / 1e6:.0f} MB are free; "
                "remove files from this disk"
            )

    def _tell(self, refusal: _Refused) -> None:
        told = (refusal.release_id, refusal.engine_sha256, str(refusal))
        if told in self._told:
            return
        self._told = [*self._told, told][-_MAX_TOLD:]
        log.error("refused %s: %s; what runs stays", refusal.release_id or self._url, refusal)
        self._refused(*told)

    def _say(self, about: str, level: int, text: str) -> None:
        """Logs a change of state once, however often it is found."""
        if text != self._said.get(about):
            self._said[about] = text
            log.log(level, "%s", text)


def misfit(passport: Passport, release_id: str, target: str) -> str:
    """Why a passport does not fit a release and a machine; empty when it fits."""
    if passport.release_id != release_id:
        return f"it belongs to release {passport.release_id}"
    if passport.target != target:
        return f"its engine is for {passport.target}, this robot runs {target}"
    if passport.preprocessing != PREPROCESSING:
        return f"its network wants frames as {passport.preprocessing}, this robot makes {PREPROCESSING}"
    for described, name, limit in (
        (passport.engine, engine_name(target), MAX_ENGINE_BYTES),
        (passport.golden, GOLDEN_FILE, MAX_GOLDEN_BYTES),
    ):
        if described.path != file_path(release_id, target, name):
            return f"{described.path} is not {file_path(release_id, target, name)}"
        if described.bytes > limit:
            return f"{described.path} has {described.bytes} bytes, {limit} are allowed"
    return ""


class _Fetcher(FetcherInterface):
    """HTTP for TUF: no retries of its own, time limits on everything, temporary files on the robot's own disk."""

    def __init__(self, url: str, timeout_s: float, folder: Path) -> None:
        self._timeout_s = timeout_s
        self._folder = folder
        address = urllib3.util.parse_url(url)
        proxy = urllib.request.getproxies().get(address.scheme or "")
        options: Any = {
            "timeout": urllib3.Timeout(connect=timeout_s, read=timeout_s),
            "retries": urllib3.Retry(
                connect=0, read=0, status=0, other=0, redirect=3, respect_retry_after_header=False
            ),
        }
        if proxy and not urllib.request.proxy_bypass(address.host or ""):
            self._pool: urllib3.PoolManager = urllib3.ProxyManager(proxy, **options)
        else:
            self._pool = urllib3.PoolManager(**options)

    def _fetch(self, url: str) -> Iterator[bytes]:
        response = self._pool.request("GET", url, preload_content=False)
        if response.status != 200:
            response.release_conn()
            raise tuf_errors.DownloadHTTPError(f"{url}: HTTP status {response.status}", response.status)
        return self._chunks(response)

    @staticmethod
    def _chunks(response: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
        try:
            # read1 gives what is there, so that the caller's clock sees a server that drips.
            while data := response.read1(_CHUNK_BYTES, decode_content=False):
                yield data
        finally:
            response.close()

    @contextlib.contextmanager
    def download_file(self, url: str, max_length: int) -> Iterator[IO[bytes]]:
        """As the base class does, with a limit on the whole time too, and not in a /tmp that may be memory."""
        deadline = time.monotonic() + self._timeout_s + max_length / MIN_BYTES_PER_S
        self._folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder) as file:
            received = 0
            for chunk in self.fetch(url):
                received += len(chunk)
                if received > max_length:
                    raise tuf_errors.DownloadLengthMismatchError(f"{url} is longer than the {max_length} bytes allowed")
                if time.monotonic() > deadline:
                    raise tuf_errors.SlowRetrievalError(f"{url} comes slower than {MIN_BYTES_PER_S} bytes/s")
                file.write(chunk)
            file.seek(0)
            yield file


@contextlib.contextmanager
def _tuf_errors_translated() -> Iterator[None]:
    try:
        yield
    except tuf_errors.ExpiredMetadataError as problem:
        now = datetime.datetime.now(datetime.timezone.utc)
        raise _Refused(f"{problem}: the release service must renew it, unless this clock is wrong ({now:%F})") from None
    except (tuf_errors.RepositoryError, tuf_errors.DownloadLengthMismatchError) as problem:
        raise _Refused(f"the repository does not verify: {type(problem).__name__}: {problem}") from None
    except (tuf_errors.DownloadError, urllib3.exceptions.HTTPError) as problem:
        cause = problem.__cause__ or problem
        reason = getattr(cause, "reason", None) or cause  # urllib3's MaxRetryError says it at length
        raise OperatorError(f"the release repository does not answer: {reason}") from None
    except OSError as problem:
        raise OperatorError(f"the disk does not take the release: {problem}; check the disk") from None


def _decode(raw: bytes, into: Type[T], path: str) -> T:
    try:
        return msgspec.json.decode(raw, type=into)
    except (ValueError, RecursionError) as problem:  # msgspec's errors are ValueErrors
        raise _Refused(f"{path} cannot be read: {problem}") from None


def _read_root(path: Path) -> bytes:
    try:
        return files.read_bounded(path, 512_000)
    except (OSError, ValueError) as problem:
        raise OperatorError(
            f"repository.root: {path}: {problem}; copy root.json of the release service there"
        ) from None
