// SQLite whose durable home is a Cloud Storage bucket, for better-sqlite3 and node:sqlite. See README.md.
"use strict";
const path = require("node:path");

// The loadable extension, for whoever loads it in another way.
const library = path.join(__dirname, "libsqlite_gcs.so");

// Makes the VFS known to this process, for good, through a connection to any database; returns the connection. Settings
// become variables of this process; those that the VFS reads at the first load (paths) have to be given there.
function load(connection, settings = {}) {
  for (const [name, value] of Object.entries(settings)) {
    process.env[`SQLITE_GCS_${name.toUpperCase()}`] = String(value);
  }
  connection.loadExtension(library);
  return connection;
}

module.exports = { library, load };
