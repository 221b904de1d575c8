"""Receives Herald's callbacks with nothing but Python 3.9 or newer. What it knows is in an SQLite file.

    HERALD_SECRETS=whsec_… PORT=9000 python3 -u receiver.py
"""

import base64
import hashlib
import hmac
import json
import os
import re
import sqlite3
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SECRETS = os.environ["HERALD_SECRETS"].replace(",", " ").split()  # Several while one is being replaced.
KEYS = [base64.b64decode(s[6:]) if s.startswith("whsec_") else s.encode() for s in SECRETS]
SCHEME = os.environ.get("HERALD_SCHEME", "standard")  # "dojo" only if your endpoint has no webhook-signature.
DATABASE = os.environ.get("DATABASE", "receiver.sqlite")
MAX_BODY_BYTES = 65_536  # The largest event there is.
TOLERANCE_S = 300
if not KEYS or min(map(len, KEYS)) < 16:  # Anybody can sign with an empty key.
    raise SystemExit("HERALD_SECRETS: it has no secret, or one that is not whole")


def has_standard_signature(headers, body):
    """webhook-signature: base64 of HMAC-SHA256 over id.timestamp.body; one for each secret, with spaces between."""
    id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not re.fullmatch("[0-9]{1,12}", timestamp) or abs(time.time() - int(timestamp)) > TOLERANCE_S:
        return False
    macs = [hmac.new(key, f"{id}.{timestamp}.".encode() + body, hashlib.sha256).digest() for key in KEYS]
    # As bytes: compare_digest refuses texts with other characters than ASCII.
    given = headers.get("webhook-signature", "").encode().split(b" ")
    return any(hmac.compare_digest(one, b"v1," + base64.b64encode(mac)) for one in given for mac in macs)


def has_dojo_signature(headers, body):
    """dojo-signature: HMAC-SHA256 over the body alone, keyed with the secret's text, in upper case: sha256=0A-1B-…"""
    given = headers.get("dojo-signature", "").encode()
    macs = [hmac.new(secret.encode(), body, hashlib.sha256).digest() for secret in SECRETS]
    return any(hmac.compare_digest(given, f"sha256={mac.hex('-').upper()}".encode()) for mac in macs)


VERIFY = {"standard": has_standard_signature, "dojo": has_dojo_signature}[SCHEME]


def store(event, sequence):
    """Takes an event once, and keeps the newest status of its intent. One transaction: a crash leaves both or neither."""
    intent, status = event["data"]["paymentIntentId"], event["data"]["paymentStatus"]
    with closing(sqlite3.connect(DATABASE, timeout=10)) as db, db:
        if not db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (event["id"], int(time.time()))).rowcount:
            return "duplicate"
        changed = db.execute(
            "INSERT INTO intents VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET status = excluded.status, "
            "sequence = excluded.sequence WHERE excluded.sequence > intents.sequence",  # Compared as text.
            (intent, status, sequence),
        ).rowcount
        return "applied" if changed else "older"


class Receiver(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # Keeps connections open.
    timeout = 30  # Seconds that a silent sender may hold a thread.

    def do_POST(self):
        length = self.headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,9}", length) or int(length) > MAX_BODY_BYTES:
            self.close_connection = True  # The body is still on the line.
            return self.answer(413)
        body = self.rfile.read(int(length))  # The bytes as they came: verify them before you parse them.
        id, sequence = self.headers.get("webhook-id"), self.headers.get("herald-sequence")
        if not id or not sequence or not VERIFY(self.headers, body):
            return self.answer(400)
        event = json.loads(body)
        if event["id"] != id:  # Dojo's scheme signs no header: an old body with a new id would pass as new.
            return self.answer(400)
        result = store(event, sequence)
        self.answer(204)  # Now that it is stored. Whatever takes long comes after the answer, or in another process.
        data = event["data"]
        print(f"{id} {data['paymentIntentId']} {data['paymentStatus']} {result}\n", end="", flush=True)  # Whole lines.

    def answer(self, status):
        self.send_response(status)
        if status != 204:
            self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


with closing(sqlite3.connect(DATABASE)) as db, db:
    db.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at INTEGER NOT NULL)")
    db.execute("CREATE TABLE IF NOT EXISTS intents (id TEXT PRIMARY KEY, status TEXT NOT NULL, sequence TEXT NOT NULL)")
    db.execute("DELETE FROM seen WHERE at < ?", (time.time() - 40 * 86_400,))  # Once a day is enough; keep 36 days.
ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("PORT", "9000"))), Receiver).serve_forever()
