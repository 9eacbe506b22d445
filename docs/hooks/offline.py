"""The hook that keeps the site whole without a network: what loads from elsewhere fails the build.

Links that a reader may follow are no concern of it; scripts, styles, images, fonts and frames are.
"""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final

_ELSEWHERE: Final = re.compile(r"^(?:https?:)?//", re.IGNORECASE)
_IN_STYLE: Final = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)
# Of a <link>, what a browser fetches by itself; canonical, prev, next and the like are not.
_FETCHED: Final = frozenset(
    {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "preconnect", "manifest"}
)

_log: Final = logging.getLogger("mkdocs.hooks.offline")


class _Resources(HTMLParser):
    """Collects the addresses that a browser would fetch to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        fetched = [attributes.get("src"), attributes.get("poster"), attributes.get("data")]
        if tag == "link" and _FETCHED & set((attributes.get("rel") or "").split()):
            fetched.append(attributes.get("href"))
        if tag in ("image", "use"):
            fetched += [attributes.get("href"), attributes.get("xlink:href")]
        fetched += [part.split()[0] for part in (attributes.get("srcset") or "").split(",") if part.strip()]
        self.found += [address for address in fetched if address]


def elsewhere(file: Path) -> list[str]:
    """Return the addresses of other hosts that a page, a style sheet or a picture would load."""
    text = file.read_text(encoding="utf-8")
    found = list(_IN_STYLE.findall(text))
    if file.suffix in (".html", ".svg"):
        resources = _Resources()
        resources.feed(text)
        found += resources.found
    return sorted({address for address in found if _ELSEWHERE.match(address)})


def on_post_build(config: Any, **_: object) -> None:  # noqa: ANN401  mkdocs's configuration
    """Warn, which ends a strict build, of every file that would load something from elsewhere."""
    site = Path(config["site_dir"])
    for file in sorted(site.rglob("*")):
        if file.suffix not in (".html", ".css", ".svg"):
            continue
        for address in elsewhere(file):
            _log.warning("%s would load %s", file.relative_to(site), address)
