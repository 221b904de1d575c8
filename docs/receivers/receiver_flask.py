"""Receives Herald's callbacks with Flask (pip install flask). What it knows is in an SQLite file.

    HERALD_SECRETS=whsec_… PORT=9000 python3 -u receiver_flask.py

`app.run` is Flask's development server. In production: waitress-serve --listen=127.0.0.1:9000 receiver_flask:app
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

from flask import Flask, abort, request

SECRETS = os.environ["HERALD_SECRETS"].replace(",", " ").split()  # Several while one is being replaced.
KEYS = [base64.b64decode(s[6:]) if s.startswith("whsec_") else s.encode() for s in SECRETS]
SCHEME = os.environ.get("HERALD_SCHEME", "standard")  # "dojo" only if your endpoint has no webhook-signature.
DATABASE = os.environ.get("DATABASE", "receiver.sqlite")
TOLERANCE_S = 300
if not KEYS or min(map(len, KEYS)) < 16:  # Anybody can sign with an empty key.
    raise SystemExit("HERALD_SECRETS: it has no secret, or one that is not whole")

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 65_536  # The largest event there is. More is answered with 413.


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


# Whatever the path: put here the one that you registered.
@app.post("/")
@app.post("/<path:path>")
def receive(path=""):
    # The bytes as they came. Not `request.json`, and not `request.form`, which takes them away.
    body = request.get_data()
    id, sequence = request.headers.get("webhook-id"), request.headers.get("herald-sequence")
    if not id or not sequence or not VERIFY(request.headers, body):
        abort(400)
    event = json.loads(body)
    if event["id"] != id:  # Dojo's scheme signs no header: an old body with a new id would pass as new.
        abort(400)
    result = store(event, sequence)
    data = event["data"]
    print(f"{id} {data['paymentIntentId']} {data['paymentStatus']} {result}\n", end="", flush=True)  # Whole lines.
    return "", 204  # It is stored. Whatever takes long belongs into a queue or another process.


with closing(sqlite3.connect(DATABASE)) as db, db:
    db.execute("CREATE TABLE IF NOT EXISTS seen (id TEXT PRIMARY KEY, at INTEGER NOT NULL)")
    db.execute("CREATE TABLE IF NOT EXISTS intents (id TEXT PRIMARY KEY, status TEXT NOT NULL, sequence TEXT NOT NULL)")
    db.execute("DELETE FROM seen WHERE at < ?", (time.time() - 40 * 86_400,))  # Once a day is enough; keep 36 days.

if __name__ == "__main__":
    app.run("127.0.0.1", int(os.environ.get("PORT", "9000")))
