"""Checksums of files: of downloaded ones, given or in their names, and of what an analysis was made from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from vispeft.errors import ConfigError

# hosts whose names of files end in the first digits of a hash, and what ends so
_HASHED_HOSTS = {"dl.fbaipublicfiles.com", "download.pytorch.org"}
_HASHED_NAME = re.compile(r"[-_](?=[0-9a-f]*\d)([0-9a-f]{6,12})\.(?:pkl|pth|pt|bin|safetensors)$")
_FRAGMENT = re.compile(r"sha256=([0-9a-fA-F]{64})")


@dataclass(frozen=True)
class Checksum:
    """Hexadecimal digits with which a file's hash must begin.

    kinds: hashes that may begin so; names of files do not tell MD5, as in detectron2, from SHA-256, as in torch's hub
    """

    digits: str
    kinds: tuple[str, ...] = ("sha256",)

    def fits(self, path: Path) -> bool:
        """Return True where the file's content has the checksum."""
        hashes = [hashlib.new(kind, usedforsecurity=False) for kind in self.kinds]
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                for kind in hashes:
                    kind.update(block)
        return any(kind.hexdigest().startswith(self.digits) for kind in hashes)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sources_of(annotations: Path, results: Path) -> dict[str, str]:
    """Return the checksums of the two files that an analysis was made from."""
    return {"annotations": sha256_of(annotations), "results": sha256_of(results)}


def split_checksum(url: str) -> tuple[str, Checksum | None]:
    """Return an address without its fragment, and the checksum of `#sha256=...` or of the name of the file.

    Raises ConfigError for another fragment.
    """
    address, _, fragment = url.partition("#")
    if fragment:
        found = _FRAGMENT.fullmatch(fragment)
        if found is None:
            raise ConfigError(f"`{url}` must end in `#sha256=` and 64 hexadecimal digits, or without `#`.")
        return address, Checksum(found[1].lower())
    parts = urlsplit(address)
    named = _HASHED_NAME.search(parts.path) if parts.hostname in _HASHED_HOSTS else None
    return address, None if named is None else Checksum(named[1], ("md5", "sha256"))
