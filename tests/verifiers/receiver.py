"""A receiver in Python: verifies what arrives with the published `standardwebhooks`, and `dojo-signature` with the
standard library alone, as Dojo's documentation says. Secrets come as one line of JSON on stdin, by name; the port goes
out as the first line on stdout, then one line of JSON for each request: what each secret makes of it, whole and altered,
and whether it is the newest of its intent so far.
"""

import hashlib
import hmac
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks import Webhook, WebhookVerificationError

SECRETS = json.loads(sys.stdin.readline())

# Each request has a thread, and `print` writes a line and its end one after the other.
SAYING = threading.Lock()

# The greatest `herald-sequence` of each intent at each path, as docs/merchants.md asks to keep it.
NEWEST = {}


def is_newer(path, body, headers):
    of = (path, json.loads(body)["data"]["paymentIntentId"])
    stored = NEWEST.get(of)
    if stored is None or headers["herald-sequence"] > stored:
        NEWEST[of] = headers["herald-sequence"]
        return True
    return False


def standard(secret, body, headers):
    try:
        Webhook(secret).verify(body, headers)
        return True
    except WebhookVerificationError:
        return False


def dojo(secret, body, headers):
    digest = hmac.new(secret.encode("utf-8"), body, hashlib.sha256).hexdigest().upper()
    expected = "sha256=" + "-".join(digest[at : at + 2] for at in range(0, len(digest), 2))
    return hmac.compare_digest(expected, headers.get("dojo-signature", ""))


def verdicts(body, headers):
    altered = body.replace(b"Captured", b"Refunded")
    assert altered != body
    return {
        scheme.__name__: {
            name: {"whole": scheme(secret, body, headers), "altered": scheme(secret, altered, headers)}
            for name, secret in SECRETS.items()
        }
        for scheme in (standard, dojo)
    }


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            said = {**verdicts(body, headers), "newer": is_newer(self.path, body, headers)}
        except Exception as error:  # A verifier that stumbles is a finding, not a refusal.
            said = {"error": repr(error)}
        with SAYING:
            print(json.dumps({"path": self.path, "id": headers.get("webhook-id"), **said}), flush=True)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
print(server.server_port, flush=True)
server.serve_forever()
