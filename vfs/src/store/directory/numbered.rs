//! Objects in a directory that can be overwritten: one file per write, named `<name>@<number, 16 hex digits>`.
//!
//! The file of the highest number is the object. A write that follows number `n` is a `link` to number `n + 1`, so of
//! several only one succeeds. Deleting is a write too, of a file that says so: the next write of the name goes on
//! counting. That file stays for good.
//!
//! | offset | type | field |
//! |---|---|---|
//! | 0 | 4 B | `SGO1` |
//! | 4 | u32 | 1: an object; 2: deleted here, the rest is empty |
//! | 8 | u64 | size of the content in bytes |
//! | 16 | u32 | CRC-32C of the content |
//! | 20 | u32 | `m`, size of the metadata in bytes, at most 64 KiB |
//! | 24 | m B | custom metadata, a JSON object of strings |
//! | 24 + m | | content |
//!
//! Integers are big-endian.
//!
//! Old numbers are removed, yet never one of the last [`KEPT`]. So a writer that was stopped for long between
//! its look at number `n` and its link, and then succeeds because `n + 1` was removed, finds the newest number that
//! far ahead; its file is then below the newest one, which nobody reads, and it is told that nothing is known.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::file::{Named, Place, bucket_time, refused, sync_folder};
use crate::store::{BucketTime, Condition, Entry, Generation, Meta, Object, StoreError, clip};

/// How many numbers of a name stay.
pub(super) const KEPT: u64 = 16;

const MAGIC: &[u8; 4] = b"SGO1";
const OBJECT: u32 = 1;
const DELETED: u32 = 2;
const HEAD: usize = 24;
const LONGEST_METADATA: usize = 64 * 1024;

/// The newest write of a name.
struct Newest {
    number: u64,
    file: File,
    meta: Meta,
    metadata: BTreeMap<String, String>,
    /// Where the content begins in the file.
    content: u64,
    deleted: bool,
}

/// Splits a file name into the last part of an object's name, and the number.
pub(super) fn parse(file_name: &str) -> Option<(&str, u64)> {
    let (name, digits) = file_name.rsplit_once('@')?;
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if name.is_empty() || super::is_plain(name) || digits.len() != 16 || !digits.bytes().all(digit) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok().filter(|number| *number > 0).map(|number| (name, number))
}

pub(super) fn get(place: &Place, name: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
    let newest = live(place, name)?.ok_or_else(|| StoreError::NotFound(name.to_owned()))?;
    let whole = range.is_none();
    let range = clip(name, range, newest.meta.size)?;
    let mut bytes = BytesMut::zeroed((range.end - range.start) as usize);
    newest
        .file
        .read_exact_at(&mut bytes, newest.content + range.start)
        .map_err(|e| place.unreadable(name, "reading", &e))?;
    if whole && newest.meta.crc32c != Some(crc32c::crc32c(&bytes)) {
        return Err(damaged(name, "CRC-32C of the content"));
    }
    Ok(Object { bytes: bytes.freeze(), meta: newest.meta, date: None })
}

pub(super) fn put(
    place: &Place,
    name: &str,
    body: &Bytes,
    metadata: &BTreeMap<String, String>,
    condition: Condition,
) -> Result<Meta, StoreError> {
    let json = serde_json::to_vec(metadata).map_err(|e| refused(name, format!("custom metadata: {e}")))?;
    if json.len() > LONGEST_METADATA {
        return Err(refused(name, format!("custom metadata of {} bytes is too long", json.len())));
    }
    append(place, name, OBJECT, body, &json, condition)
}

pub(super) fn delete(place: &Place, name: &str, generation: Generation) -> Result<(), StoreError> {
    if live(place, name)?.is_none() {
        return Err(StoreError::NotFound(name.to_owned()));
    }
    append(place, name, DELETED, &[], &[], Condition::Generation(generation)).map(|_| ())
}

pub(super) fn entry(place: &Place, name: &str) -> Result<Option<Entry>, StoreError> {
    let entry = |newest: Newest| Entry { name: name.to_owned(), meta: newest.meta, metadata: newest.metadata };
    live(place, name).map(|newest| newest.map(entry))
}

fn append(
    place: &Place,
    name: &str,
    kind: u32,
    body: &[u8],
    metadata: &[u8],
    condition: Condition,
) -> Result<Meta, StoreError> {
    let newest = newest(place, name)?;
    let found = newest.as_ref().filter(|newest| !newest.deleted).map(|newest| newest.number);
    let holds = match condition {
        Condition::Absent => found.is_none(),
        Condition::Generation(wanted) => found == Some(wanted.0),
    };
    let number = newest.as_ref().map_or(0, |newest| newest.number) + 1;
    let checksum = crc32c::crc32c(body);
    let mut head = Vec::with_capacity(HEAD + metadata.len());
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&kind.to_be_bytes());
    head.extend_from_slice(&(body.len() as u64).to_be_bytes());
    head.extend_from_slice(&checksum.to_be_bytes());
    head.extend_from_slice(&(metadata.len() as u32).to_be_bytes());
    head.extend_from_slice(metadata);
    if !holds {
        // Its writer may not have come so far as to sync it, and the caller may find that it is its own.
        if let Some(newest) = newest {
            let folder = place.path(name)?;
            let synced = newest.file.sync_all().and_then(|()| sync_folder(folder.parent().unwrap_or(place.base())));
            synced.map_err(|e| place.unreadable(name, "syncing", &e))?;
        }
        return Err(StoreError::Precondition(name.to_owned()));
    }
    publish(place, name, number, &[&head, body]).map(|created| Meta {
        generation: Generation(number),
        size: body.len() as u64,
        created,
        crc32c: Some(checksum),
    })
}

/// Writes the file of a number that follows the newest one seen, and removes numbers that are old by then.
pub(super) fn publish(
    place: &Place,
    name: &str,
    number: u64,
    parts: &[&[u8]],
) -> Result<Option<BucketTime>, StoreError> {
    let staged = place.stage(name, parts, None)?;
    let stat = match place.name(name, &staged, &numbered(place, name, number)?)? {
        Named::Ours(stat) => stat,
        Named::Taken => return Err(StoreError::Precondition(name.to_owned())),
    };
    let numbers = numbers(place, name)?;
    if numbers.iter().any(|other| *other >= number + KEPT) {
        let why = format!("number {number} is far behind the newest one");
        return Err(StoreError::Unknown { name: name.to_owned(), why });
    }
    for old in numbers.into_iter().filter(|old| old + KEPT <= number) {
        // Another writer may have removed it.
        let _ = fs::remove_file(numbered(place, name, old)?);
    }
    Ok(stat.modified().ok().map(bucket_time))
}

fn live(place: &Place, name: &str) -> Result<Option<Newest>, StoreError> {
    Ok(newest(place, name)?.filter(|newest| !newest.deleted))
}

fn newest(place: &Place, name: &str) -> Result<Option<Newest>, StoreError> {
    // The file can only be gone by the time it is opened if at least KEPT newer ones were written since.
    for _ in 0..10 {
        let Some(number) = numbers(place, name)?.into_iter().max() else { return Ok(None) };
        match File::open(numbered(place, name, number)?) {
            Ok(file) => return read_head(place, name, number, file).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(place.unreadable(name, "opening", &error)),
        }
    }
    Err(StoreError::Unavailable { name: name.to_owned(), why: "it is overwritten faster than it can be read".into() })
}

fn read_head(place: &Place, name: &str, number: u64, file: File) -> Result<Newest, StoreError> {
    let failed = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => damaged(name, "its file is too short"),
        _ => place.unreadable(name, "reading", &e),
    };
    let mut head = [0; HEAD];
    file.read_exact_at(&mut head, 0).map_err(failed)?;
    let u32_at = |at: usize| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let size = u64::from(u32_at(8)) << 32 | u64::from(u32_at(12));
    let (kind, metadata_bytes) = (u32_at(4), u32_at(20) as usize);
    let stat = file.metadata().map_err(failed)?;
    if &head[..4] != MAGIC || !matches!(kind, OBJECT | DELETED) || metadata_bytes > LONGEST_METADATA {
        return Err(damaged(name, "the head of its file"));
    }
    let content = (HEAD + metadata_bytes) as u64;
    if content.checked_add(size) != Some(stat.len()) {
        return Err(damaged(name, "the size of its file"));
    }
    let mut json = vec![0; metadata_bytes];
    file.read_exact_at(&mut json, HEAD as u64).map_err(failed)?;
    let metadata = match kind {
        DELETED => BTreeMap::new(),
        _ => serde_json::from_slice(&json).map_err(|_| damaged(name, "its custom metadata"))?,
    };
    let meta = Meta {
        generation: Generation(number),
        size,
        created: stat.modified().ok().map(bucket_time),
        crc32c: Some(u32_at(16)),
    };
    Ok(Newest { number, file, meta, metadata, content, deleted: kind == DELETED })
}

/// The numbers of a name that are there, in no order.
fn numbers(place: &Place, name: &str) -> Result<Vec<u64>, StoreError> {
    let path = place.path(name)?;
    let folder = path.parent().unwrap_or(place.base());
    let last = name.rsplit('/').next().unwrap_or(name);
    let failed = |e: &io::Error| place.unreadable(name, "listing", e);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => match failed(&error) {
            StoreError::NotFound(_) => return Ok(Vec::new()),
            error => return Err(error),
        },
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let file_name = entry.map_err(|e| failed(&e))?.file_name();
        if let Some((part, number)) = file_name.to_str().and_then(parse)
            && part == last
        {
            numbers.push(number);
        }
    }
    Ok(numbers)
}

fn numbered(place: &Place, name: &str, number: u64) -> Result<PathBuf, StoreError> {
    let mut path = place.path(name)?.into_os_string();
    path.push(format!("@{number:016x}"));
    Ok(Path::new(&path).to_owned())
}

fn damaged(name: &str, why: &str) -> StoreError {
    StoreError::Damaged { name: name.to_owned(), why: why.to_owned() }
}
