// A receiver in JavaScript: verifies what arrives with the published `standardwebhooks`, and `dojo-signature` with Node's
// own library alone, as Dojo's documentation says. Secrets come as one line of JSON on stdin, by name; the port goes
// out as the first line on stdout, then one line of JSON for each request: what each secret makes of it, whole and altered,
// and whether it is the newest of its intent so far.
"use strict";

const assert = require("node:assert");
const crypto = require("node:crypto");
const http = require("node:http");
const readline = require("node:readline");
const { Webhook, WebhookVerificationError } = require("standardwebhooks");

function standard(secret, body, headers) {
  try {
    new Webhook(secret).verify(body.toString("utf8"), headers);
    return true;
  } catch (error) {
    if (error instanceof WebhookVerificationError) return false;
    throw error;
  }
}

function dojo(secret, body, headers) {
  const digest = crypto.createHmac("sha256", Buffer.from(secret, "utf8")).update(body).digest("hex").toUpperCase();
  const expected = Buffer.from(`sha256=${digest.match(/../g).join("-")}`);
  const given = Buffer.from(headers["dojo-signature"] ?? "");
  return expected.length === given.length && crypto.timingSafeEqual(expected, given);
}

function verdicts(secrets, body, headers) {
  const altered = Buffer.from(body.toString("utf8").replace("Captured", "Refunded"));
  assert(!altered.equals(body));
  const by = (scheme) =>
    Object.fromEntries(
      Object.entries(secrets).map(([name, secret]) => [
        name,
        { whole: scheme(secret, body, headers), altered: scheme(secret, altered, headers) },
      ]),
    );
  return { standard: by(standard), dojo: by(dojo) };
}

// The greatest `herald-sequence` of each intent at each path, as docs/merchants.md asks to keep it.
const newest = new Map();

function isNewer(path, body, headers) {
  const of = `${path} ${JSON.parse(body).data.paymentIntentId}`;
  const stored = newest.get(of);
  if (stored !== undefined && !(headers["herald-sequence"] > stored)) return false;
  newest.set(of, headers["herald-sequence"]);
  return true;
}

readline.createInterface({ input: process.stdin }).once("line", (line) => {
  const secrets = JSON.parse(line);
  const server = http.createServer((request, response) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => {
      let said;
      try {
        const body = Buffer.concat(parts);
        const newer = isNewer(request.url, body, request.headers);
        said = { ...verdicts(secrets, body, request.headers), newer };
      } catch (error) {
        // A verifier that stumbles is a finding, not a refusal.
        said = { error: String(error) };
      }
      console.log(JSON.stringify({ path: request.url, id: request.headers["webhook-id"], ...said }));
      response.end();
    });
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
});
