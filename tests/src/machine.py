# One host's application, told what to do by one JSON object a line; it answers each with one or more of its own.
# `connect` comes from the preamble (see shell.rs).
import json, os, threading, time

_lines = threading.Lock()


def say(**what):
    with _lines:
        sys.stdout.write(json.dumps(what) + "\n")
        sys.stdout.flush()


def failure(error):
    return {"error": str(error), "code": getattr(error, "sqlite_errorcode", -1)}


def open_(uri, timeout):
    return connect(uri, timeout=timeout, isolation_level=None, check_same_thread=False, cached_statements=0)


class Host:
    def __init__(self):
        self.open = {}

    def do_open(self, db, uri, timeout):
        self.open[db] = open_(uri, timeout)
        return {}

    def do_sql(self, db, sql, args):
        return {"rows": self.open[db].execute(sql, args).fetchall()}

    def do_close(self, db):
        self.open.pop(db).close()
        return {}

    # The same in a thread of its own: says {"tag": tag, ...} when it is done.
    def do_later(self, tag, db, sql, args):
        def run():
            began = time.monotonic()
            try:
                answer = self.do_sql(db, sql, args)
            except Exception as error:
                answer = failure(error)
            say(tag=tag, ms=round((time.monotonic() - began) * 1000, 3), **answer)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return {}

    # Threads with a connection each insert the rows that fall to them, one a transaction, for so many seconds or until each has
    # `most` of them. Says {"ack": id} after each one; opens anew after an error that waiting does not mend.
    def do_write(self, uri, threads, first, seconds, most, timeout, pause, bytes):
        end = time.monotonic() + seconds

        def run(number):
            db, id = None, first + number
            for _ in range(most):
                if time.monotonic() > end:
                    break
                try:
                    if db is None:
                        db = open_(uri, timeout)
                    db.execute("INSERT INTO t VALUES (?, ?)", (id, "x" * bytes))
                    say(ack=id)
                except Exception as error:
                    say(failed=id, **failure(error))
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF != 5 and db is not None:
                        # All of this process's connections have to go before the database is opened anew.
                        if threads == 1:
                            db.close()
                            db = None
                        else:
                            break
                    time.sleep(0.02)
                id += threads
                if pause:
                    time.sleep(pause)
            if db is not None:
                db.close()

        began = time.monotonic()
        running = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(threads)]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()
        return {"done": True, "seconds": time.monotonic() - began}

    # All pages as SQLite reads them, into a file.
    def do_pages(self, db, file):
        with open(file, "wb") as out:
            out.write(self.open[db].serialize())
        return {}

    # Transactions of one connection, each of which keeps what `do_watch` checks. Returns [k, when it was committed] of each.
    def do_change(self, db, seconds, pause, rows, bytes):
        db, commits = self.open[db], []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            db.execute("BEGIN IMMEDIATE")
            k = db.execute("UPDATE state SET k = k + 1 RETURNING k").fetchall()[0][0]
            db.execute("UPDATE t SET n = n + ?1, b = randomblob(?2 + ?1 % 50) WHERE id % ?3 = ?1 % ?3", (k, bytes, rows))
            db.execute("INSERT INTO t(n, b) VALUES (?1, randomblob(300))", (k,))
            db.execute("DELETE FROM t WHERE id IN (SELECT id FROM t ORDER BY id LIMIT ?1 % 3)", (k,))
            db.execute("UPDATE state SET (total, bytes) = (SELECT sum(n), sum(length(b)) FROM t)")
            db.execute("COMMIT")
            commits.append([k, time.monotonic()])
            time.sleep(pause * (k % 5) / 2)
        return {"commits": commits}

    # Reads all of it, again and again, each time in one transaction. Returns [k, when it was first seen] in the order of the reads,
    # how many there were, the longest of them, and what was wrong.
    def do_watch(self, db, seconds):
        db, seen, wrong, reads, slowest = self.open[db], [], [], 0, 0
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            began = time.monotonic()
            try:
                db.execute("BEGIN")
                k, total, bytes = db.execute("SELECT k, total, bytes FROM state").fetchall()[0]
                sums = db.execute("SELECT sum(n), sum(length(b)) FROM t").fetchall()[0]
                again = db.execute("SELECT k FROM state").fetchall()[0][0]
                db.execute("COMMIT")
            except Exception as error:
                wrong.append(str(error))
                break
            now = time.monotonic()
            reads, slowest = reads + 1, max(slowest, now - began)
            if (total, bytes) != sums or again != k:
                wrong.append(f"state {k} is mixed with another: {total} {bytes} {sums} {again}")
            if not seen or seen[-1][0] != k:
                if seen and seen[-1][0] > k:
                    wrong.append(f"{k} after {seen[-1][0]}")
                seen.append([k, now])
            time.sleep(0.002)
        return {"seen": seen, "reads": reads, "slowest_ms": slowest * 1000, "wrong": wrong}

    def do_exit(self, code):
        os._exit(code)

    def do_fork(self, uri):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                db = open_(uri, 20)
                db.execute("INSERT INTO t VALUES (?, ?)", (os.getpid(), "child"))
                db.close()
                code = 0
            finally:
                os._exit(code)
        return {"child": child, "code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}


host = Host()
for line in sys.stdin:
    what = json.loads(line)
    try:
        say(**getattr(host, "do_" + what.pop("do"))(**what))
    except Exception as error:
        say(**failure(error))
for db in list(host.open.values()):
    db.close()
