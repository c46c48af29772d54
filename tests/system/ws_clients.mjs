// Clients of Node's `ws` for test_fanout.py: argv is the directory that has node_modules, standard
// input is {url, ca, end, clients: [[symbol, ...], ...], extensions}, the last those that are to be
// agreed on, none where it is missing. Prints "subscribed" once every client is,
// and at the end {clients: [{quotes: [[symbol, n, payload], ...], merged}, ...]}.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";

const WebSocket = createRequire(`${process.argv[2]}/`)("ws");
const { url, ca, end, clients, extensions = "" } = JSON.parse(readFileSync(0, "utf8"));

let waiting = clients.length;

function run(symbols) {
  return new Promise((resolve, reject) => {
    const seen = { quotes: [], merged: 0 };
    const options = { ca: readFileSync(ca), perMessageDeflate: extensions !== "" };
    const socket = new WebSocket(url, ["quotepush.v1.json"], options);
    socket.on("open", () => {
      if (socket.extensions.split(";")[0] !== extensions) reject(new Error(socket.extensions));
    });
    socket.on("error", reject);
    socket.on("close", (code) => {
      if (code === 1000) resolve(seen);
      else reject(new Error(`closed with ${code}`));
    });
    socket.on("message", (data) => {
      for (const event of JSON.parse(data.toString())) {
        if (event.ev === "welcome") {
          socket.send(JSON.stringify({ op: "subscribe", symbols: [...symbols, end] }));
        } else if (event.ev === "subscribed") {
          waiting -= 1;
          if (waiting === 0) console.log("subscribed");
        } else if (event.ev === "heartbeat") {
          seen.merged += event.merged;
        } else if (event.ev !== "quote") {
          reject(new Error(`unexpected: ${JSON.stringify(event)}`));
        } else if (event.s === end) {
          socket.close(1000);
        } else {
          seen.quotes.push([event.s, event.n, event.d]);
        }
      }
    });
  });
}

const results = await Promise.all(clients.map(run));
console.log(JSON.stringify({ clients: results }));
