//! Other programs that open the database: the sqlite3 shell and Debian's Python.
