//! The least and the largest page size, databases that grow and shrink, and deltas larger than a region of the wal-index.

use super::bed::{Bed, check_integrity, check_same, create, read_state};

#[test]
fn growing_shrinking_and_big_deltas_of_the_least_and_the_largest_page_size() {
    for page_size in [512, 65536] {
        let dir = tempfile::tempdir().expect("a directory");
        let a = Bed::prepare(&dir.path().join("a.db"), page_size);
        let b = Bed::prepare(&dir.path().join("b.db"), page_size);
        create(&a.db, 100);
        b.apply(&a.send(dir.path()));
        // More frames than two regions of the wal-index hold, where pages are small enough for that.
        let (rows, blob) = match page_size {
            512 => (9000, 480),
            _ => (300, 40_000),
        };
        let fill = format!(
            "BEGIN IMMEDIATE; CREATE TABLE big(id INTEGER PRIMARY KEY, b BLOB);
             WITH RECURSIVE ids(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM ids WHERE id < {rows})
             INSERT INTO big SELECT id, randomblob({blob}) FROM ids; COMMIT"
        );
        a.before_reset();
        a.db.execute_batch(&fill).expect("filled");
        let filled = b.apply(&a.send(dir.path()));
        println!("{page_size}: {filled:?}");
        assert!(page_size > 4096 || filled.frames > 4500, "only {} frames", filled.frames);
        b.check_index();
        check_integrity(&b.db);
        for k in 2..20 {
            a.write(k);
            b.apply(&a.send(dir.path()));
            assert_eq!(read_state(&b.db).expect("a state"), k);
        }
        a.before_reset();
        a.db.execute_batch("DROP TABLE big; VACUUM").expect("shrunk");
        let shrunk = b.apply(&a.send(dir.path()));
        assert!(shrunk.pages < filled.pages);
        check_integrity(&b.db);
        check_same(&a, &b);
        a.before_reset();
        a.db.execute_batch(&fill).expect("filled");
        let grown = b.apply(&a.send(dir.path()));
        assert!(grown.restarted, "everything was backfilled and nobody reads");
        check_same(&a, &b);
    }
}
