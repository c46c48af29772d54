// Clients of quotepush.js in Node for test_restarts.py. argv is the directory that has node_modules
// and the path of quotepush.js. The first line of standard input has the clients:
// [{name, url, symbols, options, socket: "ws" or "own"}, ...]; then come commands, one a line:
//
//     {"has": {symbol: c, ...}}    until each client is open and has these numbers, or newer ones
//     {"end": true}                close, and report
//
// Answers each with a line.
import { createInterface } from "node:readline";
import { createRequire } from "node:module";
import { Recorder } from "../restart_recorder.mjs";

const { Quotepush } = await import(process.argv[3]);
const sockets = { ws: createRequire(`${process.argv[2]}/`)("ws"), own: globalThis.WebSocket };
const say = (what) => process.stdout.write(`${JSON.stringify(what)}\n`);

const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const next = async () => JSON.parse((await lines.next()).value);
const recorders = (await next()).map(({ socket, ...client }) => {
  if (!sockets[socket]) throw new Error(`no WebSocket called ${socket} here`);
  return new Recorder(Quotepush, { ...client, options: { ...client.options, WebSocket: sockets[socket] } });
});
for (;;) {
  const command = await next();
  if (command.end) break;
  while (!recorders.every((recorder) => recorder.has(command.has))) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  say(true);
}
say(recorders.map((recorder) => recorder.report()));
process.stdin.destroy(); // Node ends if nothing else is left, of a client that is closed
