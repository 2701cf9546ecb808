"""The services that hand out AWS credentials, on 127.0.0.1: STS, the portal of SSO, a container's agent, IMDSv2.

Each answer has an access key of its own, ``NAME-1``, ``NAME-2`` and so on; ``lasting`` is for how many seconds the next
one is good, and ``broken`` a status that is answered instead.
"""

from __future__ import annotations

import datetime
import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

_TOKEN = "token-of-imds"


class AWSServices:
    """Serves from the beginning of its ``with`` block to the end."""

    def __init__(self) -> None:
        self.issued: Counter[str] = Counter()
        self.lasting = 3600
        self.broken = 0
        self.hold = threading.Event()
        self.hold.set()
        self.asked: list[dict[str, str]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(*outer.answer("GET", self.path, dict(self.headers.items()), ""))

            def do_PUT(self) -> None:
                self.reply(*outer.answer("PUT", self.path, dict(self.headers.items()), ""))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self.reply(*outer.answer("POST", self.path, dict(self.headers.items()), body))

            def reply(self, status: int, body: str) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    @property
    def url(self) -> str:
        """Where they are."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, target: str, headers: dict[str, str], body: str) -> tuple[int, str]:
        """Return status and body."""
        self.hold.wait()
        path = urlsplit(target).path
        form = {name: values[0] for name, values in parse_qs(body).items()}
        lower = {name.lower(): value for name, value in headers.items()}
        self.asked.append(form | lower)
        if self.broken:
            error = "<Error><Code>AccessDenied</Code><Message>not this role</Message></Error>"
            return self.broken, f"<ErrorResponse>{error}</ErrorResponse>" if method == "POST" else "{}"
        if method == "PUT":
            return 200, _TOKEN
        if path.startswith("/latest/") and lower.get("x-aws-ec2-metadata-token") != _TOKEN:
            return 401, ""
        if path.endswith("/security-credentials/"):
            return 200, "a-role"
        if method == "POST":
            action = form["Action"]
            facts = self._issue(action)
            xml = "".join(
                f"<{name}>{facts[name]}</{name}>" for name in ("AccessKeyId", "SecretAccessKey", "Expiration")
            )
            made = f"<Credentials>{xml}<SessionToken>{facts['Token']}</SessionToken></Credentials>"
            user = "<Arn>arn:aws:sts::1:assumed-role/r/s</Arn><AssumedRoleId>a:s</AssumedRoleId>"
            user = f"<AssumedRoleUser>{user}</AssumedRoleUser>"
            return 200, f"<{action}Response><{action}Result>{made}{user}</{action}Result></{action}Response>"
        if path == "/federation/credentials":
            facts = self._issue("SSO")
            expiration = int(datetime.datetime.fromisoformat(facts["Expiration"]).timestamp() * 1000)
            key = {"accessKeyId": facts["AccessKeyId"], "secretAccessKey": facts["SecretAccessKey"]}
            more = {"sessionToken": facts["Token"], "expiration": expiration}
            return 200, json.dumps({"roleCredentials": key | more})
        return 200, json.dumps(self._issue("IMDS" if path.startswith("/latest/") else "container"))

    def _issue(self, name: str) -> dict[str, str]:
        self.issued[name] += 1
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.lasting)
        return {
            "Code": "Success",
            "AccessKeyId": f"{name}-{self.issued[name]}",
            "SecretAccessKey": "secret",
            "Token": f"token-of-{name}",
            "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
