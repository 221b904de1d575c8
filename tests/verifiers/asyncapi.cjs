// Says whether a file is a valid AsyncAPI description, by the parser that AsyncAPI publishes.
"use strict";

const { readFileSync } = require("node:fs");
const { Parser } = require("@asyncapi/parser");

(async () => {
  const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], "utf8"));
  // 0 is an error, 1 a warning; the rest is advice.
  const found = diagnostics.filter((one) => one.severity <= 1);
  for (const one of found) console.error(`${one.path.join("/")}: ${one.message}`);
  process.exitCode = document && found.length === 0 ? 0 : 1;
  if (document) console.log(`${document.version()}, ${document.allMessages().length} messages`);
})();
