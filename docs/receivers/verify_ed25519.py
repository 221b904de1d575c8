"""Verifies a callback by the public half of a key pair, with PyNaCl (pip install pynacl). The body is read from stdin.

    HERALD_PUBLIC_KEYS=whpk_… python3 verify_ed25519.py WEBHOOK-ID WEBHOOK-TIMESTAMP WEBHOOK-SIGNATURE <body
"""

import base64
import binascii
import os
import re
import sys
import time

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

TOLERANCE_S = int(os.environ.get("TOLERANCE_S", "300"))
# Several while one is being replaced.
KEYS = [
    VerifyKey(base64.b64decode(key.removeprefix("whpk_")))
    for key in os.environ["HERALD_PUBLIC_KEYS"].replace(",", " ").split()
]


def is_signed(key, signature, message):
    try:
        key.verify(message, base64.b64decode(signature, validate=True))
    except (BadSignatureError, ValueError, binascii.Error):
        return False
    return True


def is_from_herald(id, timestamp, signatures, body):
    """Over the raw bytes: webhook-id, webhook-timestamp and the body, with full stops between."""
    if not re.fullmatch("[0-9]{1,12}", timestamp) or abs(time.time() - int(timestamp)) > TOLERANCE_S:
        return False
    message = f"{id}.{timestamp}.".encode() + body
    given = [one.removeprefix("v1a,") for one in signatures.split(" ") if one.startswith("v1a,")]
    return any(is_signed(key, signature, message) for signature in given for key in KEYS)


if __name__ == "__main__":
    sys.exit(0 if is_from_herald(*sys.argv[1:4], sys.stdin.buffer.read()) else "it is not from Herald")
