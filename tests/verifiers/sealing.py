"""Opens what Herald has sealed and seals what it must open, with libsodium and the words of docs/design.md alone.

Reads one JSON object a line and answers each with one: `open` or `seal`, `key` (hex), `place` (endpoint, account, field and
qualifier), and `value`, or `text` with `nonce` (hex).
"""

import base64
import hashlib
import hmac
import json
import struct
import sys

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt as decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt as encrypt,
)
from nacl.exceptions import CryptoError


def key_id(key):
    extracted = hmac.new(b"herald/key-id/v1", key, hashlib.sha256).digest()
    return hmac.new(extracted, b"\x01", hashlib.sha256).digest()[:6].hex()


def authenticated(key, place):
    parts = ["hs1", key_id(key), *place]
    return b"".join(struct.pack(">I", len(part.encode())) + part.encode() for part in parts)


def opened(key, place, value):
    form, found, text = value.split(".")
    if (form, found) != ("hs1", key_id(key)):
        return None
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    try:
        return decrypt(raw[24:], authenticated(key, place), raw[:24], key).decode()
    except CryptoError:
        return None


def sealed(key, place, text, nonce):
    raw = nonce + encrypt(text.encode(), authenticated(key, place), nonce, key)
    return f"hs1.{key_id(key)}." + base64.urlsafe_b64encode(raw).decode().rstrip("=")


for line in sys.stdin:
    asked = json.loads(line)
    key, place = bytes.fromhex(asked["key"]), asked["place"]
    if asked["do"] == "open":
        answer = opened(key, place, asked["value"])
    else:
        answer = sealed(key, place, asked["text"], bytes.fromhex(asked["nonce"]))
    print(json.dumps(answer), flush=True)
