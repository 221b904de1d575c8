// Receives Herald's callbacks with Express 4 or 5 (npm install express) on Node.js 18 or newer.
//
//     HERALD_SECRETS=whsec_… PORT=9000 node receiver_express.js
"use strict";

const crypto = require("node:crypto");
const express = require("express");

const SECRETS = (process.env.HERALD_SECRETS ?? "").split(/[\s,]+/).filter(Boolean); // Several while one is being replaced.
const KEYS = SECRETS.map((one) => (one.startsWith("whsec_") ? Buffer.from(one.slice(6), "base64") : Buffer.from(one)));
const SCHEME = process.env.HERALD_SCHEME ?? "standard"; // "dojo" only if your endpoint has no webhook-signature.
const TOLERANCE_S = 300;
// Anybody can sign with an empty key, and Buffer.from makes one of what is no base64.
if (!KEYS.length || KEYS.some((key) => key.length < 16)) throw new Error("HERALD_SECRETS: no secret, or not a whole one");

// timingSafeEqual throws if the lengths differ; the length is no secret.
const isSame = (one, other) => one.length === other.length && crypto.timingSafeEqual(one, other);
const hmac = (key, ...parts) => parts.reduce((mac, part) => mac.update(part), crypto.createHmac("sha256", key));

// webhook-signature: base64 of HMAC-SHA256 over id.timestamp.body; one for each secret, with spaces between.
function hasStandardSignature(headers, body) {
  const id = headers["webhook-id"] ?? "";
  const timestamp = headers["webhook-timestamp"] ?? "";
  if (!/^[0-9]{1,12}$/.test(timestamp) || Math.abs(Date.now() / 1000 - timestamp) > TOLERANCE_S) return false;
  const given = (headers["webhook-signature"] ?? "").split(" ").map((one) => Buffer.from(one));
  return KEYS.some((key) => {
    const expected = Buffer.from(`v1,${hmac(key, `${id}.${timestamp}.`, body).digest("base64")}`);
    return given.some((one) => isSame(one, expected));
  });
}

// dojo-signature: HMAC-SHA256 over the body alone, keyed with the secret's text, in upper case: sha256=0A-1B-…
function hasDojoSignature(headers, body) {
  const given = Buffer.from(headers["dojo-signature"] ?? "");
  return SECRETS.some((secret) => {
    const digits = hmac(secret, body).digest("hex").toUpperCase();
    return isSame(given, Buffer.from(`sha256=${digits.match(/../g).join("-")}`));
  });
}

const verify = { standard: hasStandardSignature, dojo: hasDojoSignature }[SCHEME];

// IN MEMORY ONLY, so that this file needs no database: a restart forgets it. Use two tables of yours, and change them in
// one transaction: seen(id primary key, at), kept for 36 days, and intents(id primary key, status, sequence).
const seen = new Set();
const intents = new Map();

// Takes an event once, and keeps the newest status of its intent.
function store(event, sequence) {
  if (seen.has(event.id)) return "duplicate";
  seen.add(event.id);
  const { paymentIntentId: intent, paymentStatus: status } = event.data;
  const known = intents.get(intent);
  if (known && !(sequence > known.sequence)) return "older"; // Compared as text: it is no number.
  intents.set(intent, { status, sequence });
  return "applied";
}

const app = express();
// The bytes as they came, in `request.body`. An `app.use(express.json())` above this line takes them away, and what
// JSON.stringify makes of the result has other bytes: put it below, or leave this path out of it.
app.use(express.raw({ type: () => true, limit: 65_536 })); // The largest event there is. More is answered with 413.

// Whatever the path: put here app.post("/the-one-that-you-registered", …).
app.use((request, response) => {
  const { body, headers } = request;
  const [id, sequence] = [headers["webhook-id"], headers["herald-sequence"]];
  if (!Buffer.isBuffer(body) || !id || !sequence || !verify(headers, body)) return response.sendStatus(400);
  const event = JSON.parse(body);
  // Dojo's scheme signs no header: an old body with a new id would pass as new.
  if (event.id !== id) return response.sendStatus(400);
  const result = store(event, sequence);
  response.sendStatus(204); // Now that it is stored. Whatever takes long comes after the answer.
  console.log(`${id} ${event.data.paymentIntentId} ${event.data.paymentStatus} ${result}`);
});

app.listen(Number(process.env.PORT ?? 9000), "127.0.0.1");
