"""The HTTP proxy on the way to a host, as HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say.

To an https endpoint the proxy opens a tunnel, so that TLS is still with the endpoint; requests to an http endpoint it
passes on. What is on this computer is never asked for through a proxy, whose "localhost" is another one.
"""

from __future__ import annotations

import ipaddress
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

import urllib3

from s3backer.errors import UsageError


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where a proxy is. ``headers`` may hold a password."""

    host: str
    port: int
    headers: Mapping[str, str] = field(repr=False)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def find_proxy(scheme: str, host: str, port: int | None) -> Proxy | None:
    """Return the proxy for requests to a host, None if it is reached directly; UsageError for one that cannot be."""
    known = urllib.request.getproxies_environment()
    url = known.get(scheme) or known.get("all")
    if not url or _is_here(host):
        return None
    if urllib.request.proxy_bypass(host if port is None else f"{host}:{port}", known):
        return None
    variable = f"{scheme.upper()}_PROXY" if known.get(scheme) else "ALL_PROXY"
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        found, number = parts.hostname, parts.port or 80
    except ValueError:
        found, number = None, 0
    if not found:
        raise UsageError(f"{variable} names no proxy", hint="It looks like http://proxy.example.com:3128.")
    if parts.scheme != "http":
        raise UsageError(
            f"{variable} names a proxy that is reached by {parts.scheme}",
            hint="Only http:// is supported. What goes to an https endpoint is encrypted all the same.",
        )
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}" if parts.username else None
    headers = urllib3.make_headers(proxy_basic_auth=user)
    return Proxy(found, number, {"Proxy-Authorization": headers["proxy-authorization"]} if user else {})


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
