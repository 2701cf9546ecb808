"""How to reach a store: everything about it that is not the volume's URL."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Settings of a store; None means what the AWS environment, profile and configuration files say.

    ``virtual_host`` None: the bucket is in the host name on AWS, unless it has a dot; elsewhere in the path.
    ``timeout``: seconds that connecting, sending and receiving may take, each, in one attempt.
    ``connections``: how many requests are on their way at once, at most.
    ``patience``: sum of the pauses between attempts, in seconds, after which an error is final. Writes, and requests
    to a service that has never answered, wait less (s3/engine.py).
    ``first_pause``: upper bound of the first of them, in seconds.
    ``acl``, ``storage_class``, ``encryption`` and ``encryption_key``: what is sent with every PUT.
    ``instance_role``: credentials come from the instance's metadata service and from nowhere else.
    ``upload_limit`` and ``download_limit``: bits per second of everything together, on average.
    ``type_of_service``: the IP header's byte of that name.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    access_key: str | None = None
    secret_key: str | None = None
    anonymous: bool = False
    virtual_host: bool | None = None
    ca_bundle: str | None = None
    verify_tls: bool = True
    timeout: float = 30.0
    connections: int = 64
    patience: float = 300.0
    first_pause: float = 0.2
    acl: str | None = None
    storage_class: str | None = None
    encryption: str | None = None
    encryption_key: str | None = None
    instance_role: bool = False
    upload_limit: int | None = None
    download_limit: int | None = None
    type_of_service: int | None = None

    def named(self) -> dict[str, str]:
        """Return what leads to the store, as options of a command line: flags, and values that are no secrets.

        "" is that of a flag without one. How long to wait, and who we are, is no part of it.
        """
        values = {
            # With a password in it no store is opened; nor is it told.
            "--endpoint-url": None if "@" in (self.endpoint_url or "") else self.endpoint_url,
            "--region": self.region,
            "--profile": self.profile,
            "--no-sign-request": "" if self.anonymous else None,
            "--ca-bundle": os.path.abspath(self.ca_bundle) if self.ca_bundle else None,
            "--no-verify-tls": None if self.verify_tls else "",
            "--virtual-host": "" if self.virtual_host else None,
            "--path-style": "" if self.virtual_host is False else None,
        }
        return {flag: value for flag, value in values.items() if value is not None}

    def __repr__(self) -> str:
        """Name the store without its keys: this text may end up in a log."""
        keys = "given" if self.secret_key else "none" if self.anonymous else "found"
        return f"StoreOptions(endpoint_url={self.endpoint_url!r}, region={self.region!r}, credentials {keys})"
