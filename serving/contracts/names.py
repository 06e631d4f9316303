"""Names that become parts of file paths, MQTT topics and URLs, so that none of them can escape its place."""

import msgspec
from typing_extensions import Annotated

# One topic level, one path part: no slash, no wildcard, no dot at the start.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}\Z"
SHA256_PATTERN = r"^[0-9a-f]{64}\Z"

Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN, description="letters, digits, dot, dash, underscore")]
Sha256 = Annotated[str, msgspec.Meta(pattern=SHA256_PATTERN, description="64 hexadecimal digits")]
