"""Where S3 is and who we are: endpoint, region and credentials, as the AWS command line finds them.

    endpoint     option · AWS_ENDPOINT_URL_S3 · AWS_ENDPOINT_URL · the profile's services and endpoint_url · AWS
    region       option · AWS_REGION · AWS_DEFAULT_REGION · the profile · us-east-1
    credentials  options · botocore's chain: environment, profile, files, SSO, roles, container, instance

Credentials are looked up at the first request and refreshed by botocore before they expire.
"""

from __future__ import annotations

import ipaddress
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from s3backer.errors import AccessDenied, UsageError
from s3backer.s3.signing import Keys
from s3backer.stores.options import StoreOptions

_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A service: scheme, host and port as in its URL, and the path that comes before every bucket."""

    scheme: str
    host: str
    port: int | None
    path: str
    is_aws: bool

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc()}{self.path}"

    def netloc(self, bucket: str = "") -> str:
        """Return what the Host header says; with ``bucket`` for virtual-host style."""
        host = f"{bucket}.{self.host}" if bucket else self.host
        default = 443 if self.scheme == "https" else 80
        return host if self.port in (None, default) else f"{host}:{self.port}"

    @property
    def is_address(self) -> bool:
        """True if the host is an IP address, which no bucket can be put before."""
        try:
            ipaddress.ip_address(self.host.strip("[]"))
        except ValueError:
            return False
        return True


class Environment:
    """The AWS configuration of this process, read through a botocore session."""

    def __init__(self, options: StoreOptions, environ: Mapping[str, str] = os.environ) -> None:
        self._options = options
        self._environ = environ
        self._lock = threading.Lock()
        self._credentials: Any = None
        if (options.access_key is None) != (options.secret_key is None):
            raise UsageError("an access key and a secret key go together", hint="Give both of them, or neither.")
        # Imported here because it takes longer than everything else at start-up.
        self._botocore: Any = import_module("botocore.session")
        self._errors: Any = import_module("botocore.exceptions")
        try:
            self._session: Any = self._botocore.Session(profile=options.profile)
            self._profile: dict[str, Any] = self._session.get_scoped_config()
        except self._errors.BotoCoreError as error:
            raise UsageError(
                f"the AWS configuration cannot be used: {error}",
                hint="Check --profile, AWS_PROFILE and the files in ~/.aws.",
            ) from None
        found = options.region or environ.get("AWS_REGION") or self._session.get_config_variable("region")
        #: Whether anybody has said where the bucket is.
        self.region_given = bool(found)
        self.region = found or "us-east-1"
        if not is_region(self.region):
            raise UsageError(f"{self.region!r} is no region", hint="A region is a name such as eu-central-1.")

    @property
    def ca_bundle(self) -> str | None:
        """Path of the certificates to trust in place of the system's, if any."""
        found: str | None = self._options.ca_bundle or self._session.get_config_variable("ca_bundle")
        return found

    @property
    def spare_bundle(self) -> str:
        """Path of the authorities that come with botocore."""
        return os.path.join(os.path.dirname(self._botocore.__file__), "cacert.pem")

    def keys(self) -> Keys | None:
        """Return credentials that are valid now, None if there are none; AccessDenied if they cannot be had."""
        options = self._options
        if options.access_key is not None and options.secret_key is not None:
            return Keys(options.access_key, options.secret_key)
        try:
            with self._lock:
                if self._credentials is None:
                    self._credentials = self._find_credentials()
                credentials = self._credentials
            if credentials is None:
                return None
            frozen = credentials.get_frozen_credentials()
        except self._errors.BotoCoreError as error:
            raise AccessDenied(
                f"the AWS credentials cannot be had: {error}",
                hint="Check the profile, or log in again, for example with 'aws sso login'.",
            ) from None
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or "")

    def renew(self) -> bool:
        """Look for credentials anew, because those in use are not valid any more; return whether others were found."""
        if self._options.access_key is not None:
            return False
        before = self.keys()
        with self._lock:
            self._session = self._botocore.Session(profile=self._options.profile)
            self._credentials = None
        return self.keys() != before

    def _find_credentials(self) -> Any:
        if not self._options.instance_role:
            return self._session.get_credentials()
        return self._session.get_component("credential_provider").get_provider("iam-role").load()

    def endpoint_in(self, region: str) -> Endpoint:
        """Return where requests for a bucket in this region go."""
        url = self._options.endpoint_url or self._configured_endpoint()
        if url:
            return parse_endpoint(url)
        suffix = "amazonaws.com"
        for partition in self._session.get_data("endpoints")["partitions"]:
            if re.fullmatch(partition["regionRegex"], region):
                suffix = partition["dnsSuffix"]
        return Endpoint("https", f"s3.{region}.{suffix}", None, "", True)

    def _configured_endpoint(self) -> str | None:
        if self._session.get_config_variable("ignore_configured_endpoint_urls"):
            return None
        services = self._session.full_config.get("services", {}).get(self._profile.get("services"), {})
        service = services.get("s3", {})
        found: str | None = (
            self._environ.get("AWS_ENDPOINT_URL_S3")
            or self._environ.get("AWS_ENDPOINT_URL")
            or (service.get("endpoint_url") if isinstance(service, dict) else None)
            or self._profile.get("endpoint_url")
        )
        return found


def is_region(text: str) -> bool:
    """Return whether a text can be the name of a region."""
    return _REGION.fullmatch(text) is not None


def parse_endpoint(url: str) -> Endpoint:
    """Split an endpoint URL; UsageError if it is none."""
    bad = UsageError(
        f"{url!r} is no endpoint URL", hint="It looks like https://s3.example.com or http://127.0.0.1:9000."
    )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise bad from None
    host = parts.hostname or ""
    # A user or password in the URL would end up in messages.
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(bad.message if "@" not in parts.netloc else "an endpoint URL holds no user", hint=bad.hint)
    if not host.isascii() or any(c.isspace() or c in "/\\%" for c in host):
        raise bad
    host = f"[{host}]" if ":" in host else host
    is_aws = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return Endpoint(parts.scheme, host, port, parts.path.rstrip("/"), is_aws)
