"""HTTP proxies: found as the environment says, tunnels for https, named in messages, their passwords in none."""

from __future__ import annotations

import base64

import pytest

from s3backer.errors import StoreUnreachable, UsageError
from s3backer.s3.proxies import find_proxy
from s3backer.stores.s3 import S3Store
from tests.support.http_proxy import HTTPProxy
from tests.support.nasty import NastyServer
from tests.support.servers import free_ports
from tests.support.talks import NOW, OK, options_for

#: An address that leads nowhere (RFC 5737).
FAR = "192.0.2.1"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("environment", "scheme", "host", "proxy"),
    [
        ({}, "https", "s3.test", "None"),
        ({"HTTPS_PROXY": "http://p:3128"}, "https", "s3.test", "p:3128"),
        ({"HTTPS_PROXY": "p:3128"}, "https", "s3.test", "p:3128"),
        ({"HTTPS_PROXY": "http://p"}, "https", "s3.test", "p:80"),
        ({"https_proxy": "http://p:3128"}, "http", "s3.test", "None"),
        ({"HTTP_PROXY": "http://p:1"}, "http", "s3.test", "p:1"),
        ({"ALL_PROXY": "http://p:1"}, "http", "s3.test", "p:1"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "other,s3.test"}, "https", "s3.test", "None"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": ".test"}, "https", "s3.test", "None"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "https", "s3.test", "None"),
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": "3.test"}, "https", "s3.test", "p:1"),
        ({"ALL_PROXY": "http://p:1"}, "http", "localhost", "None"),
        ({"ALL_PROXY": "http://p:1"}, "http", "bucket.localhost", "None"),
        ({"ALL_PROXY": "http://p:1"}, "http", "127.0.0.1", "None"),
        ({"ALL_PROXY": "http://p:1"}, "http", "[::1]", "None"),
    ],
)
def test_which_proxy(monkeypatch, environment, scheme, host, proxy):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(find_proxy(scheme, host, None)) == proxy


@pytest.mark.parametrize("url", ["https://p:443", "socks5://me:hidden@p", "http://", "http://me:hidden@p:port"])
def test_what_is_no_proxy(monkeypatch, url):
    monkeypatch.setenv("HTTPS_PROXY", url)
    with pytest.raises(UsageError, match="HTTPS_PROXY names") as caught:
        S3Store("bucket", options_for("https://s3.test"))
    assert "hidden" not in str(caught.value) + caught.value.hint
    assert "http://" in caught.value.hint


def port_of(server: NastyServer) -> int:
    return int(server.url.rpartition(":")[2])


def store_at(url: str, **options) -> S3Store:
    return S3Store("bucket", options_for(url, **options), clock=lambda: NOW)


def test_a_proxy_passes_on_what_is_not_encrypted(monkeypatch):
    with NastyServer(OK) as server, HTTPProxy(port_of(server)) as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://me:s%40crt@127.0.0.1:{proxy.port}")
        store = store_at(f"http://{FAR}:8333")
        assert store.get("key").body == b"a"
        assert store.get("key").body == b"a"
        store.close()
    assert len(proxy.heads) == 1
    lines = proxy.heads[0].split("\r\n")
    assert lines[0] == f"GET http://{FAR}:8333/bucket/key HTTP/1.1"
    assert f"Host: {FAR}:8333" in lines
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:s@crt').decode()}" in lines


def test_a_tunnel_keeps_secrets_from_the_proxy(monkeypatch, certificate):
    with NastyServer(OK, tls=certificate[0]) as server, HTTPProxy(port_of(server)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:secret@127.0.0.1:{proxy.port}")
        store = store_at(f"https://{FAR}", verify_tls=False)
        assert store.get("key").body == b"a"
        store.close()
        assert [request.target for request in server.requests] == ["/bucket/key"]
        assert "proxy-authorization" not in server.requests[0].headers
    lines = proxy.heads[0].split("\r\n")
    assert lines[0].startswith(f"CONNECT {FAR}:443 HTTP/1.")
    assert any(line.startswith("Proxy-Authorization: Basic ") for line in lines)
    assert "bucket" not in proxy.heads[0]


def test_the_certificate_behind_a_tunnel_is_that_of_the_endpoint(monkeypatch, certificate):
    with NastyServer(OK, tls=certificate[0]) as server, HTTPProxy(port_of(server)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        store = store_at(f"https://{FAR}", ca_bundle=str(certificate[1]))
        with pytest.raises(StoreUnreachable, match="certificate is not trusted"):
            store.get("key")
        store.close()
        assert server.requests == []


@pytest.mark.parametrize(("status", "attempts"), [("407 Proxy Authentication Required", 1), ("502 Bad Gateway", 2)])
def test_a_proxy_that_refuses_is_named(monkeypatch, status, attempts):
    with NastyServer(OK) as server, HTTPProxy(port_of(server), answer=f"HTTP/1.1 {status}\r\n\r\n".encode()) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:hidden@127.0.0.1:{proxy.port}")
        store = store_at(f"https://{FAR}", patience=0.01)
        with pytest.raises(StoreUnreachable) as caught:
            store.get("key")
        store.close()
        assert f"the proxy 127.0.0.1:{proxy.port} refuses a connection to it ({status})" in caught.value.message
        assert "hidden" not in str(caught.value) + caught.value.hint
        assert len(proxy.heads) == attempts


def test_a_proxy_that_is_not_there_is_named(monkeypatch):
    (port,) = free_ports(1)
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    store = store_at(f"https://{FAR}")
    with pytest.raises(StoreUnreachable, match=f"connection refused, at its proxy 127.0.0.1:{port}"):
        store.get("key")
    store.close()
