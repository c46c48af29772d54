// A peer: Node's ws. Each quote is sent to each of its clients, as the package's broadcast example
// does. Redis is read by ioredis.
import { readFileSync } from "node:fs";
import { createServer as createPlainServer } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { createRequire } from "node:module";
import { parseArgs } from "node:util";

// The packages are in the benchmark's environment, not beside this file.
const require = createRequire(process.env.BENCH_NODE_MODULES + "/");
const Redis = require("ioredis");
const { WebSocketServer } = require("ws");

const { values: given } = parseArgs({
  options: {
    port: { type: "string" },
    redis: { type: "string" },
    cert: { type: "string" },
    key: { type: "string" },
  },
});

const PREFIX_LENGTH = "quote.".length;
const BACKLOG = 1024;
const audiences = new Map(); // symbol -> Set of clients

const server = given.cert
  ? createTlsServer({ cert: readFileSync(given.cert), key: readFileSync(given.key) })
  : createPlainServer();
const sockets = new WebSocketServer({ server, perMessageDeflate: false });

sockets.on("connection", (client) => {
  let symbols = [];
  client.on("message", (text) => {
    symbols = text.toString().split(",");
    for (const symbol of symbols) {
      if (!audiences.has(symbol)) audiences.set(symbol, new Set());
      audiences.get(symbol).add(client);
    }
    client.send("subscribed");
  });
  client.on("close", () => {
    for (const symbol of symbols) audiences.get(symbol).delete(client);
  });
  client.on("error", () => client.terminate());
});

const asText = { binary: false };
const redis = new Redis(given.redis);
redis.on("pmessageBuffer", (pattern, channel, payload) => {
  const audience = audiences.get(channel.toString("latin1", PREFIX_LENGTH));
  if (audience) for (const client of audience) client.send(payload, asText);
});

server.listen({ port: Number(given.port), host: "127.0.0.1", backlog: BACKLOG }, async () => {
  await redis.psubscribe("quote.*");
  console.log("ready");
});
