//! Objects of the log in a directory: files of just their name and content, each written once.
//!
//! The modification time is the object's `litestream-timestamp`, because that is where Litestream looks for it. Its
//! part below a millisecond is random: with the inode and its birth time it tells a file from one of the same name
//! that was there before.
//!
//! The CRC-32C of the content stands in the extended attribute `user.crc32c`, as 8 hexadecimal digits, so that a listing
//! tells it. Where the file system has no such attributes, or the file came from elsewhere, a listing tells none.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::BytesMut;
use rustix::fs::XattrFlags;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::file::{Named, Place, refused};
use crate::store::{BucketTime, Condition, Entry, Generation, Meta, Object, StoreError, clip};

/// The one key of custom metadata that a plain file can carry.
const TIMESTAMP: &str = "litestream-timestamp";
/// The extended attribute for the content's CRC-32C.
const CHECKSUM: &str = "user.crc32c";

pub(super) fn get(place: &Place, name: &str, range: Option<Range<u64>>) -> Result<Object, StoreError> {
    let file = open(place, name)?;
    let failed = |e: std::io::Error| place.unreadable(name, "reading", &e);
    let stat = file.metadata().map_err(failed)?;
    let whole = range.is_none();
    let range = clip(name, range, stat.len())?;
    let mut bytes = BytesMut::zeroed((range.end - range.start) as usize);
    file.read_exact_at(&mut bytes, range.start).map_err(failed)?;
    let meta = Meta { crc32c: whole.then(|| crc32c::crc32c(&bytes)), ..meta(&stat) };
    Ok(Object { bytes: bytes.freeze(), meta, date: None })
}

/// Writes an object with what `write` writes and the CRC-32C of it.
pub(super) fn put(
    place: &Place,
    name: &str,
    crc32c: u32,
    write: impl FnOnce(&mut File) -> std::io::Result<()>,
    metadata: &BTreeMap<String, String>,
    condition: Condition,
) -> Result<Meta, StoreError> {
    let target = place.path(name)?;
    if condition != Condition::Absent {
        return Err(refused(name, "objects named *.ltx are written once".to_owned()));
    }
    let modified = modified(name, metadata)?;
    let staged = place.stage_with(name, write, Some(modified))?;
    // Without it a listing says less; nothing else hangs on it.
    let _ = rustix::fs::setxattr(&staged.path, CHECKSUM, format!("{crc32c:08x}").as_bytes(), XattrFlags::empty());
    match place.name(name, &staged, &target)? {
        Named::Ours(stat) => Ok(Meta { crc32c: Some(crc32c), ..meta(&stat) }),
        Named::Taken => Err(StoreError::Precondition(name.to_owned())),
    }
}

/// Takes the file off its name first and looks at it again then: a file that another process has put there
/// since the first look gets its name back.
pub(super) fn delete(place: &Place, name: &str, generation: Generation) -> Result<(), StoreError> {
    let failed = |e: std::io::Error| place.unreadable(name, "deleting", &e);
    let file = open(place, name)?;
    if meta(&file.metadata().map_err(failed)?).generation != generation {
        return Err(StoreError::Precondition(name.to_owned()));
    }
    let (path, aside) = (place.path(name)?, place.aside(name)?);
    fs::rename(&path, &aside).map_err(failed)?;
    let taken = fs::metadata(&aside).map_err(failed)?;
    if meta(&taken).generation != generation {
        fs::hard_link(&aside, &path).map_err(failed)?;
        fs::remove_file(&aside).map_err(failed)?;
        return Err(StoreError::Precondition(name.to_owned()));
    }
    let unknown = |e: std::io::Error| StoreError::Unknown { name: name.to_owned(), why: e.to_string() };
    fs::remove_file(&aside).map_err(unknown)?;
    super::file::sync_folder(path.parent().unwrap_or(place.base())).map_err(unknown)
}

pub(super) fn entry(place: &Place, name: &str) -> Result<Entry, StoreError> {
    let path = place.path(name)?;
    let stat = fs::symlink_metadata(&path).map_err(|e| place.unreadable(name, "listing", &e))?;
    let metadata = stat.modified().ok().and_then(timestamp).map(|text| (TIMESTAMP.to_owned(), text));
    let meta = Meta { crc32c: checksum(&path), ..meta(&stat) };
    Ok(Entry { name: name.to_owned(), meta, metadata: metadata.into_iter().collect() })
}

/// The checksum that a file's attribute tells.
fn checksum(path: &Path) -> Option<u32> {
    let mut digits = [0; 8];
    let length = rustix::fs::getxattr(path, CHECKSUM, &mut digits[..]).ok()?;
    let text = std::str::from_utf8(digits.get(..length)?).ok().filter(|text| text.len() == 8)?;
    u32::from_str_radix(text, 16).ok()
}

fn open(place: &Place, name: &str) -> Result<File, StoreError> {
    let opened = File::open(place.path(name)?).and_then(|file| file.metadata().map(|stat| (file, stat)));
    match opened {
        Ok((file, stat)) if stat.is_file() => Ok(file),
        Ok(_) => Err(StoreError::NotFound(name.to_owned())),
        Err(error) => Err(place.unreadable(name, "opening", &error)),
    }
}

fn meta(stat: &Metadata) -> Meta {
    let since = |time: std::io::Result<SystemTime>| {
        time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_nanos() as u64)
    };
    // Any mixing of the three will do that loses none of their bits.
    let mut hash = 0u64;
    for part in [stat.ino(), since(stat.created()), since(stat.modified())] {
        hash = (hash ^ part).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    Meta {
        generation: Generation((hash >> 1).max(1)),
        size: stat.len(),
        // Not before it got its name: an age drawn from this is never too great.
        created: Some(BucketTime(stat.ctime() * 1000 + stat.ctime_nsec() / 1_000_000)),
        crc32c: None,
    }
}

/// The modification time that stands for the metadata.
fn modified(name: &str, metadata: &BTreeMap<String, String>) -> Result<SystemTime, StoreError> {
    if let Some(other) = metadata.keys().find(|key| *key != TIMESTAMP) {
        return Err(refused(name, format!("a file named *.ltx can carry {TIMESTAMP} only, not {other}")));
    }
    let time = match metadata.get(TIMESTAMP) {
        None => SystemTime::now(),
        Some(text) => match OffsetDateTime::parse(text, &Rfc3339) {
            Ok(time) => time.into(),
            Err(error) => return Err(refused(name, format!("{TIMESTAMP} {text:?}: {error}"))),
        },
    };
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    Ok(UNIX_EPOCH + Duration::from_millis(millis) + Duration::from_nanos(fastrand::u64(0..1_000_000)))
}

/// The metadata that a modification time stands for, to the millisecond.
fn timestamp(modified: SystemTime) -> Option<String> {
    let time = OffsetDateTime::from(modified);
    let time = time.replace_millisecond(time.millisecond()).ok()?;
    let form = time::macros::format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    time.format(form).ok()
}
