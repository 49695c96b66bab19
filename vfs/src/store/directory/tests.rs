//! The directory as a bucket: what the other stores have not.

#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::ErrorKind;
use std::time::{Duration, UNIX_EPOCH};

use super::numbered::KEPT;
use super::*;

const LTX: &str = "ltx/0/0000000000000001-0000000000000001.ltx";

fn open(root: &Path) -> DirectoryStore {
    let url: BucketUrl = format!("file://{}", root.display()).parse().unwrap();
    DirectoryStore::new(&url.join("app.db").unwrap(), Config::default())
}

fn stamped(text: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("litestream-timestamp".to_owned(), text.to_owned())])
}

async fn put(store: &DirectoryStore, name: &str, body: &str, condition: Condition) -> Result<Meta, StoreError> {
    store.put(name, Bytes::copy_from_slice(body.as_bytes()), &BTreeMap::new(), condition).await
}

#[tokio::test]
async fn the_log_lies_in_plain_files_that_carry_their_timestamp() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let body = Bytes::from_static(b"delta");
    store.put(LTX, body, &stamped("2026-01-02T03:04:05.678Z"), Condition::Absent).await.unwrap();
    let path = root.path().join("app.db").join(LTX);
    assert_eq!(fs::read(&path).unwrap(), b"delta");
    let modified = fs::metadata(&path).unwrap().modified().unwrap().duration_since(UNIX_EPOCH).unwrap();
    assert_eq!(modified.as_millis(), 1_767_323_045_678);
    let rows = store.list("ltx/", None).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].metadata, stamped("2026-01-02T03:04:05.678Z"));
}

#[tokio::test]
async fn a_plain_file_takes_no_overwrite_and_no_other_metadata() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let meta = put(&store, LTX, "a", Condition::Absent).await.unwrap();
    let error = put(&store, LTX, "b", Condition::Generation(meta.generation)).await.unwrap_err();
    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
    let other = BTreeMap::from([("key".to_owned(), "value".to_owned())]);
    let error = store.put("ltx/0/2.ltx", Bytes::new(), &other, Condition::Absent).await.unwrap_err();
    assert!(error.to_string().contains("litestream-timestamp only"), "{error}");
    let error = store.put("ltx/0/2.ltx", Bytes::new(), &stamped("noon"), Condition::Absent).await.unwrap_err();
    assert!(error.to_string().contains("noon"), "{error}");
}

#[tokio::test]
async fn a_recreated_file_of_the_same_timestamp_has_another_generation() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let metadata = stamped("2026-01-02T03:04:05Z");
    let mut seen = Vec::new();
    for _ in 0..20 {
        let meta = store.put(LTX, Bytes::new(), &metadata, Condition::Absent).await.unwrap();
        assert!(!seen.contains(&meta.generation));
        seen.push(meta.generation);
        assert_eq!(store.get(LTX, None).await.unwrap().meta.generation, meta.generation);
        store.delete(LTX, meta.generation).await.unwrap();
    }
}

#[tokio::test]
async fn files_of_killed_writers_are_no_objects_and_go_away() {
    let root = tempfile::tempdir().unwrap();
    let own = root.path().join("app.db").join(OWN_FOLDER);
    fs::create_dir_all(&own).unwrap();
    fs::write(own.join("tmp-1-killed"), "half").unwrap();
    fs::create_dir_all(root.path().join("app.db/ltx/0")).unwrap();
    fs::write(root.path().join("app.db/ltx/0/x.ltx.tmp"), "of somebody else").unwrap();
    let store = open(root.path());
    put(&store, "gcs/a", "x", Condition::Absent).await.unwrap();
    let names: Vec<_> = store.list("", None).await.unwrap().into_iter().map(|row| row.name).collect();
    assert_eq!(names, ["gcs/a"]);
    assert!(own.join("tmp-1-killed").exists(), "it may belong to a writer that is still at it");

    let mut place = Place::new(root.path().to_owned(), "app.db");
    place.stray_age = Duration::ZERO;
    numbered::put(&place, "gcs/b", &Bytes::new(), &BTreeMap::new(), Condition::Absent).unwrap();
    assert!(!own.join("tmp-1-killed").exists());
    assert_eq!(fs::read_dir(&own).unwrap().count(), 0, "writers that end leave nothing behind");
}

#[tokio::test]
async fn old_numbers_go_and_the_last_ones_stay() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let mut meta = put(&store, "gcs/lease", "0", Condition::Absent).await.unwrap();
    for n in 1..KEPT * 2 {
        meta = put(&store, "gcs/lease", &n.to_string(), Condition::Generation(meta.generation)).await.unwrap();
    }
    assert_eq!(meta.generation, Generation(KEPT * 2));
    assert_eq!(fs::read_dir(root.path().join("app.db/gcs")).unwrap().count() as u64, KEPT);
}

/// A writer looked at number 1 and was stopped; meanwhile number 2 came and was removed again. Its link to
/// number 2 succeeds then, and neither it nor any reader may take that for the newest write.
#[tokio::test]
async fn a_writer_that_slept_through_the_removal_of_its_number_is_not_told_that_it_won() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    let mut meta = put(&store, "gcs/lease", "1", Condition::Absent).await.unwrap();
    for n in 2..=KEPT + 2 {
        meta = put(&store, "gcs/lease", &n.to_string(), Condition::Generation(meta.generation)).await.unwrap();
    }
    let folder = root.path().join("app.db/gcs");
    assert!(!folder.join("lease@0000000000000002").exists());
    let place = Place::new(root.path().to_owned(), "app.db");
    let error = numbered::publish(&place, "gcs/lease", 2, &[b"stale"]).unwrap_err();
    assert!(matches!(error, StoreError::Unknown { .. }), "{error}");
    assert_eq!(store.get("gcs/lease", None).await.unwrap().bytes, (KEPT + 2).to_string());
}

#[tokio::test]
async fn a_bucket_directory_that_is_gone_is_refused_and_not_made_anew() {
    let root = tempfile::tempdir().unwrap();
    let bucket = root.path().join("bucket");
    fs::create_dir(&bucket).unwrap();
    let store = open(&bucket);
    let meta = put(&store, LTX, "x", Condition::Absent).await.unwrap();
    fs::remove_dir_all(&bucket).unwrap();
    let errors = [
        put(&store, "ltx/0/2.ltx", "x", Condition::Absent).await.unwrap_err(),
        put(&store, "gcs/lease", "x", Condition::Absent).await.unwrap_err(),
        store.get(LTX, None).await.unwrap_err(),
        store.list("", None).await.unwrap_err(),
        store.delete(LTX, meta.generation).await.unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(&format!("no directory {}", bucket.display())), "{error}");
    }
    assert!(!bucket.exists());
    // The same store goes on when it is back.
    fs::create_dir(&bucket).unwrap();
    put(&store, "ltx/0/2.ltx", "x", Condition::Absent).await.unwrap();
}

#[tokio::test]
async fn a_damaged_file_is_told_by_its_name_and_field() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    put(&store, "gcs/lease", "content", Condition::Absent).await.unwrap();
    let path = root.path().join("app.db/gcs/lease@0000000000000001");
    let good = fs::read(&path).unwrap();
    for (at, field) in [(0, "head"), (7, "head"), (15, "size"), (16, "CRC-32C"), (24, "metadata"), (26, "CRC-32C")] {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).unwrap();
        let error = store.get("gcs/lease", None).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{at}: {error}");
        assert!(error.to_string().contains(field) && error.to_string().contains("gcs/lease"), "{at}: {error}");
    }
    fs::write(&path, &good[..10]).unwrap();
    assert!(matches!(store.get("gcs/lease", None).await, Err(StoreError::Damaged { .. })));
}

#[tokio::test]
async fn what_the_file_system_forbids_is_refused() {
    let root = tempfile::tempdir().unwrap();
    let store = open(root.path());
    put(&store, LTX, "x", Condition::Absent).await.unwrap();
    let long = format!("gcs/{}", "n".repeat(250));
    for name in [long.as_str(), "gcs/.sqlite-gcs/x", "a//b", "../x", "a\0b", ".sqlite-gcs/clock"] {
        let error = put(&store, name, "x", Condition::Absent).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{name}: {error}");
    }
}

/// By errors made up: the tests may run as the superuser, who is forbidden nothing.
#[test]
fn errors_that_a_person_must_mend_are_refused_and_a_full_disk_is_not() {
    let root = tempfile::tempdir().unwrap();
    let place = Place::new(root.path().to_owned(), "app.db");
    for (kind, refused) in [
        (ErrorKind::PermissionDenied, true),
        (ErrorKind::ReadOnlyFilesystem, true),
        (ErrorKind::StorageFull, false),
        (ErrorKind::Other, false),
    ] {
        let error = place.unreadable("gcs/lease", "writing", &kind.into());
        assert_eq!(matches!(error, StoreError::Refused { .. }), refused, "{error}");
        assert_eq!(matches!(error, StoreError::Unavailable { .. }), !refused, "{error}");
        assert!(error.to_string().contains("writing in"), "{error}");
    }
}
