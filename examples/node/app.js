// A guestbook on Node's http and better-sqlite3 whose SQLite database lives in a bucket.
//
//   node app.js
//
// better-sqlite3 does not read SQLite URIs, so the VFS is asked for through the environment:
//   SQLITE_GCS_PATHS      patterns of the files that live in the bucket, e.g. /tmp/guestbook-node/*.db; all others stay plain
//   SQLITE_GCS_BUCKET     gs://bucket/prefix or file:///folder
//   SQLITE_GCS_DURABILITY commit: COMMIT returns when the data is in the bucket
//   SQLITE_GCS_EXTENSION  path of libsqlite_gcs.so
//   GUESTBOOK_FILE        default /tmp/guestbook-node/guestbook.db
//   PORT                  default 8080
"use strict";
const fs = require("node:fs");
const http = require("node:http");
const path = require("node:path");
const Database = require("better-sqlite3");

const FILE = process.env.GUESTBOOK_FILE || "/tmp/guestbook-node/guestbook.db";

// Loading the extension once makes the VFS known to the whole process.
if (process.env.SQLITE_GCS_EXTENSION) {
  const loader = new Database(":memory:");
  loader.loadExtension(process.env.SQLITE_GCS_EXTENSION);
  loader.close();
}
fs.mkdirSync(path.dirname(FILE), { recursive: true });
const db = new Database(FILE, { timeout: 5000 });
db.pragma("journal_mode = wal");

const list = () => {
  try {
    return db.prepare("SELECT id, name, message FROM entry ORDER BY id DESC LIMIT 1000").all();
  } catch (error) {
    if (/no such table/.test(error.message)) return [];
    throw error;
  }
};
const store = db.transaction((name, message) => {
  db.exec("CREATE TABLE IF NOT EXISTS entry (id INTEGER PRIMARY KEY, name TEXT, message TEXT)");
  db.prepare("INSERT INTO entry (name, message) VALUES (?, ?)").run(name, message);
});

const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const page = () => `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Guestbook</title><h1>Guestbook</h1>
<form action="/entries" method="post"><p><label>Name <input name="name" required maxlength="60"></label>
<p><label>Message <textarea name="message" required maxlength="1000"></textarea></label><p><button>Sign the book</button></form>
${list().map((e) => `<p>${escaped(e.message)} &ndash; <strong>${escaped(e.name)}</strong>`).join("\n")}`;

async function answer(request, response) {
  const send = (status, type, text, headers = {}) => response.writeHead(status, { "content-type": type, ...headers }).end(text);
  const route = `${request.method} ${request.url.split("?")[0]}`;
  if (route === "GET /") return send(200, "text/html; charset=utf-8", page());
  if (route === "GET /entries.json") return send(200, "application/json", JSON.stringify({ entries: list() }));
  if (route === "GET /health") return db.prepare("SELECT count(*) FROM sqlite_schema").get() && send(200, "text/plain", "ready\n");
  if (route !== "POST /entries") return send(404, "text/plain", "There is nothing here.\n");
  let body = "";
  for await (const chunk of request) {
    body += chunk;
    if (body.length > 32768) return send(413, "text/plain", "Too long.\n");
  }
  const form = new URLSearchParams(body);
  const [name, message] = ["name", "message"].map((field) => (form.get(field) || "").trim());
  if (!name || name.length > 60 || !message || message.length > 1000) return send(422, "text/plain", "Name and message, please.\n");
  try {
    // better-sqlite3 blocks the event loop: while it waits for the bucket, nothing else is answered. That is its nature.
    store.immediate(name, message);
  } catch (error) {
    if (error.code && error.code.startsWith("SQLITE_BUSY")) {
      return send(503, "text/plain", "Another instance is writing just now.\n", { "retry-after": "2" });
    }
    throw error;
  }
  return send(303, "text/plain", "", { location: "/" });
}

const server = http.createServer((request, response) => {
  answer(request, response).catch((error) => {
    console.error(JSON.stringify({ severity: "ERROR", message: error.stack }));
    response.writeHead(500).end("The entry may not be stored.\n");
  });
});
server.listen(Number(process.env.PORT || 8080), process.env.HOST || "127.0.0.1", () => {
  console.log(JSON.stringify({ severity: "INFO", message: `listens on http://127.0.0.1:${server.address().port}` }));
});
for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, () => {
    server.close(() => {
      db.close(); // flushes, and gives the lease back
      process.exit(0);
    });
    server.closeIdleConnections();
  });
}
