"""Where S3 is and who we are: endpoint, region and credentials, as the AWS command line finds them.

    endpoint     option · AWS_ENDPOINT_URL_S3 · AWS_ENDPOINT_URL · the profile's services and endpoint_url · AWS
    region       option · AWS_REGION · AWS_DEFAULT_REGION · the profile · us-east-1
    credentials  options · botocore's chain: environment, profile, files, SSO, roles, container, instance

Credentials are looked up at the first request and refreshed by botocore before they expire. While new ones cannot be
had those in use go on, until S3 refuses them: then they are looked up anew. Those of assumed roles are kept where the
AWS command line keeps them, if it does, so that a code for MFA that was given there does here as well.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

from s3backer.errors import AccessDenied, UsageError
from s3backer.s3.signing import Keys
from s3backer.stores.options import StoreOptions

_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
#: Where the AWS command line keeps the credentials of roles, and the providers that do so.
_CACHE = "~/.aws/cli/cache"
_CACHING = ("assume-role", "assume-role-with-web-identity", "sso")
#: Seconds between attempts to refresh credentials that cannot be had now.
_LOOK_AGAIN = 30.0
#: Seconds for which others wait for the one who looks for credentials.
_LOOKING = 60.0
#: Seconds for which credentials are new: many requests are told at once that the old ones are refused.
_JUST_NOW = 5.0
#: Seconds for which it holds that there are no new ones: each of many requests would wait for their source in turn.
_FAILED = 3.0

log = logging.getLogger(__name__)


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
        self._looking = threading.Lock()
        self._credentials: Any = None
        #: What was found last, and the earliest times at which to look again.
        self._last: Keys | None = None
        self._look_again_at = self._renewed_at = -math.inf
        #: What the last renewal has found: whether others, or why none.
        self._renewed: bool | AccessDenied = False
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
        last = self._last
        # Nobody waits for a refresh who has credentials.
        if not self._looking.acquire(blocking=last is None, timeout=-1 if last else _LOOKING):
            if last is None:
                raise _cannot_be_had(f"looking for them takes more than {_LOOKING:g} s")
            return last
        try:
            if self._last is None or time.monotonic() >= self._look_again_at:
                self._last = self._look()
        except AccessDenied as error:
            if self._last is None:
                raise
            self._look_again_at = time.monotonic() + _LOOK_AGAIN
            log.warning("%s; those in use go on", error.message)
        finally:
            self._looking.release()
        return self._last

    def renew(self) -> bool:
        """Look for credentials anew, because those in use are not valid any more; return whether others were found.

        AccessDenied if they cannot be had. What came of it holds for a moment: many requests ask at once.
        """
        if self._options.access_key is not None:
            return False
        if not self._looking.acquire(timeout=_LOOKING):
            # Who looks may still find some.
            raise _cannot_be_had(f"looking for them takes more than {_LOOKING:g} s")
        try:
            holds = _JUST_NOW if self._renewed is True else _FAILED
            if time.monotonic() >= self._renewed_at + holds:
                self._renewed = self._renew()
                self._renewed_at = time.monotonic()
            if isinstance(self._renewed, AccessDenied):
                raise AccessDenied(self._renewed.message, hint=self._renewed.hint)
            return self._renewed
        finally:
            self._looking.release()

    def _renew(self) -> bool | AccessDenied:
        before = self._last
        try:
            self._session = self._botocore.Session(profile=self._options.profile)
            self._credentials = None
            self._last = self._look() or before
        except AccessDenied as error:
            return error
        except self._errors.BotoCoreError as error:
            return _cannot_be_had(str(error))
        return self._last != before

    def _look(self) -> Keys | None:
        try:
            if self._credentials is None:
                self._credentials = self._find_credentials()
            if self._credentials is None:
                return None
            frozen = self._credentials.get_frozen_credentials()
        except (self._errors.BotoCoreError, self._errors.ClientError) as error:
            raise _cannot_be_had(str(error)) from None
        except EOFError:
            raise AccessDenied(
                "the profile asks for a code (MFA), and there is no terminal to ask for it",
                hint="Run 'aws sts get-caller-identity' with this profile first; what it is given is used here, too.",
            ) from None
        except Exception as error:
            # Whatever a provider meets in files, programs and answers that are not as it expects.
            raise _cannot_be_had(f"their source gives something else ({type(error).__name__}: {error})") from None
        return Keys(frozen.access_key, frozen.secret_key, frozen.token or "")

    def _find_credentials(self) -> Any:
        providers = self._session.get_component("credential_provider")
        if self._options.instance_role:
            return providers.get_provider("iam-role").load()
        path = os.path.expanduser(_CACHE)
        if os.access(path, os.R_OK | os.W_OK | os.X_OK):
            for name in _CACHING:
                providers.get_provider(name).cache = import_module("botocore.utils").JSONFileCache(path)
        return self._session.get_credentials()

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


def _cannot_be_had(why: str) -> AccessDenied:
    return AccessDenied(
        f"the AWS credentials cannot be had: {why}",
        hint="Check the profile, or log in again, for example with 'aws sso login'.",
    )


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
