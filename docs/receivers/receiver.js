// Receives Herald's callbacks with nothing but Node.js 18 or newer.
//
//     HERALD_SECRETS=whsec_… PORT=9000 node receiver.js
"use strict";

const crypto = require("node:crypto");
const http = require("node:http");

const SECRETS = (process.env.HERALD_SECRETS ?? "").split(/[\s,]+/).filter(Boolean); // Several while one is being replaced.
const KEYS = SECRETS.map((one) => (one.startsWith("whsec_") ? Buffer.from(one.slice(6), "base64") : Buffer.from(one)));
const SCHEME = process.env.HERALD_SCHEME ?? "standard"; // "dojo" only if your endpoint has no webhook-signature.
const MAX_BODY_BYTES = 65_536; // The largest event there is.
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

// IN MEMORY ONLY, so that this file needs no package: a restart forgets it. Use two tables of your database, and change
// them in one transaction: seen(id primary key, at), kept for 36 days, and intents(id primary key, status, sequence).
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

function receive(headers, body) {
  const [id, sequence] = [headers["webhook-id"], headers["herald-sequence"]];
  if (!id || !sequence || !verify(headers, body)) return 400;
  const event = JSON.parse(body);
  if (event.id !== id) return 400; // Dojo's scheme signs no header: an old body with a new id would pass as new.
  const result = store(event, sequence);
  console.log(`${id} ${event.data.paymentIntentId} ${event.data.paymentStatus} ${result}`);
  return 204; // It is stored. Whatever takes long comes after the answer.
}

const server = http.createServer((request, response) => {
  const parts = [];
  let length = 0;
  const answer = (status) => response.writeHead(status).end();
  request.on("data", (part) => {
    length += part.length;
    if (length <= MAX_BODY_BYTES) parts.push(part); // Buffers: a text that is put together piece by piece breaks letters.
    else if (!response.headersSent) answer(413);
  });
  request.on("end", () => {
    if (length > MAX_BODY_BYTES) return;
    try {
      answer(receive(request.headers, Buffer.concat(parts)));
    } catch (error) {
      console.error(error);
      answer(500); // Herald sends it again.
    }
  });
});
server.listen(Number(process.env.PORT ?? 9000), "127.0.0.1");
