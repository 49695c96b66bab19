/*
** The drop-in libsqlite3.so.0: the whole of SQLite, built as Debian builds it, with the VFS inside.
**
** SQLite calls drop_in_init at the end of sqlite3_initialize, hence before anybody's first connection. It is handed the
** routines that a loadable extension gets, so that the engine in both libraries is the same code, bound the same way.
**
** What it leaves to others: which files are managed (SQLITE_GCS_PATHS, read by the VFS) and what is exported (sqlite3.map).
*/
#define SQLITE_EXTRA_INIT drop_in_init
#include "sqlite3.c"

int sqlite3_sqlitegcs_init(sqlite3 *db, char **message, const sqlite3_api_routines *routines);

int drop_in_init(const char *unused){
  char *message = 0;
  int rc;
  (void)unused;
  rc = sqlite3_sqlitegcs_init(0, &message, &sqlite3Apis);
  if( message ){
    /* There is no connection yet that could carry the text, and most programs would only say "cannot open". */
    fprintf(stderr, "%s\n", message);
    sqlite3_free(message);
  }
  return rc==SQLITE_OK_LOAD_PERMANENTLY ? SQLITE_OK : rc;
}
