"""The number of this release, for whoever must not know the whole package."""

from __future__ import annotations

VERSION = "0.1.0"
