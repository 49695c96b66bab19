//! `<replica>/gcs/hot`: what a cold open needs, in one object: the page map, the schema's pages and the interior B-tree pages, as
//! of a transaction. Derived: losing it costs time. Pure; who writes and reads it is the engine.
//!
//! Big-endian. Every length is checked before anything is allocated by it.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `gcs-hot` and the version |
//! | 4, 4, 8 | page size, size of the database in pages, transaction |
//! | 8, 4, 8 | size, CRC-32C and generation of that transaction's delta |
//! | 4 | number of objects, then for each: level (1), first and last transaction, size, generation (8 each) |
//! | 4 | number of blocks of the map, then for each: length, packed length (4 each), LZ4 block |
//! | 4 | number of pages, then for each: page number, packed length (4 each), LZ4 block |
//! | 4 | CRC-32C of all before |
//!
//! A block of the map has [`BLOCK`] pages (the last one fewer). Each page is the number of its object plus one as a varint, or 0 for a
//! page of zeros; then the distance from the offset of the page before, zigzag, and the length: about 4 bytes, 2 to 3 packed.
//! So 1 GB of 4096-byte pages takes 0.7 MB, and a cold open's one request brings it.

use crate::error::{Error, ErrorKind, Result};
use crate::page::{PageCount, PageSize, Pgno, TxId};
use crate::protocol::ObjectId;
use crate::replica::index_fetch::ObjectIndex;
use crate::replica::names::ObjectName;
use crate::replica::object_table::ObjectRef;
use crate::replica::page_map::PageMap;
use crate::store::Generation;

/// The object's name below `gcs/`. One name, so that it is asked for without a listing.
pub(crate) const NAME: &str = "hot";
/// At most so many bytes of pages are put in, unpacked.
pub(crate) const PAGES_BYTES: usize = 8 << 20;
/// A database of more pages than this gets none: its map is too long for one request.
pub(crate) const MOST_PAGES: u32 = 4 << 20;

const MAGIC: &[u8; 8] = b"gcs-hot\x01";
const BLOCK: usize = 8192;
/// The most bytes that the varints of one page take.
const PLACE_BYTES: usize = 25;

/// What the object says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HotIndex {
    pub(crate) page_size: PageSize,
    pub(crate) pages: PageCount,
    /// The delta that it is as of.
    pub(crate) head: ObjectId,
    pub(crate) generation: Generation,
    pub(crate) objects: Vec<ObjectRef>,
    /// For each page from 1: index in `objects`, offset, length; `None` for zeros.
    pub(crate) places: Vec<Option<(u32, u64, u32)>>,
    pub(crate) hot: Vec<(Pgno, Vec<u8>)>,
}

impl HotIndex {
    /// From the map, and from what it lacks up to `head`, oldest first. `None` where a page is not in the bucket.
    pub(crate) fn of(
        map: &PageMap,
        newer: &[ObjectIndex],
        head: ObjectId,
        generation: Generation,
        hot: Vec<(Pgno, Vec<u8>)>,
    ) -> Result<Option<HotIndex>> {
        let mut objects = Vec::new();
        let mut slots = std::collections::HashMap::new();
        let mut places = Vec::with_capacity(map.pages().0 as usize);
        for pgno in (1..=map.pages().0).map(Pgno) {
            let Some(place) = map.location(pgno) else {
                places.push(None);
                continue;
            };
            let index = match slots.get(&place.object) {
                Some(index) => *index,
                None => {
                    let Some((_, object)) = map.find(pgno)? else { return Ok(None) };
                    if object.generation.is_none() {
                        return Ok(None);
                    }
                    objects.push(object);
                    let index = objects.len() as u32 - 1;
                    slots.insert(place.object, index);
                    index
                }
            };
            places.push(Some((index, place.offset, place.len)));
        }
        for delta in newer {
            // A page beyond the end of some state comes back as zeros if at all.
            places.truncate(delta.commit.0 as usize);
            places.resize(delta.commit.0 as usize, None);
            objects.push(ObjectRef { name: delta.name, generation: delta.generation, size: delta.size });
            let index = objects.len() as u32 - 1;
            for page in &delta.pages {
                if let Some(place) = page.pgno.0.checked_sub(1).and_then(|at| places.get_mut(at as usize)) {
                    *place = Some((index, page.offset, page.len));
                }
            }
        }
        drop_unused(&mut objects, &mut places);
        let (page_size, pages) = (map.page_size(), PageCount(places.len() as u32));
        Ok(Some(HotIndex { page_size, pages, head, generation, objects, places, hot }))
    }

    /// Whether every page has a place: where one has none, the map may have been cut off by a checkpoint of something newer.
    pub(crate) fn is_whole(&self) -> bool {
        let lock_page = self.page_size.lock_page();
        self.places.iter().zip(1..).all(|(place, pgno)| place.is_some() || Pgno(pgno) == lock_page)
    }

    /// What the page map is built from: as if each object had only the pages that are still read from it.
    pub(crate) fn indexes(&self) -> Vec<ObjectIndex> {
        let blank = |object: &ObjectRef| ObjectIndex {
            name: object.name,
            generation: object.generation,
            size: object.size,
            page_size: self.page_size,
            commit: self.pages,
            pages: Vec::new(),
        };
        let mut indexes: Vec<ObjectIndex> = self.objects.iter().map(blank).collect();
        for (at, place) in self.places.iter().enumerate() {
            if let Some((object, offset, len)) = *place
                && let Some(index) = indexes.get_mut(object as usize)
            {
                let pgno = Pgno(at as u32 + 1);
                index.pages.push(crate::delta::IndexEntry { pgno, offset, len });
            }
        }
        indexes.sort_by_key(|index| index.name.max);
        // Last, so that the map is as of the head whatever that one holds.
        let (name, size) = (ObjectName::delta(self.head.txid), self.head.size);
        let head = ObjectRef { name, generation: Some(self.generation), size };
        indexes.push(blank(&head));
        indexes
    }

    /// Its bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let u32 = |out: &mut Vec<u8>, n: u32| out.extend_from_slice(&n.to_be_bytes());
        let u64 = |out: &mut Vec<u8>, n: u64| out.extend_from_slice(&n.to_be_bytes());
        u32(&mut out, self.page_size.bytes());
        u32(&mut out, self.pages.0);
        u64(&mut out, self.head.txid.0);
        u64(&mut out, self.head.size);
        u32(&mut out, self.head.crc32c);
        u64(&mut out, self.generation.0);
        u32(&mut out, self.objects.len() as u32);
        for object in &self.objects {
            out.push(object.name.level);
            let generation = object.generation.map_or(0, |generation| generation.0);
            for number in [object.name.min.0, object.name.max.0, object.size, generation] {
                u64(&mut out, number);
            }
        }
        u32(&mut out, self.places.len().div_ceil(BLOCK) as u32);
        for block in self.places.chunks(BLOCK) {
            let mut raw = Vec::with_capacity(block.len() * 5);
            let mut last = 0u64;
            for place in block {
                let Some((object, offset, len)) = *place else {
                    varint(&mut raw, 0);
                    continue;
                };
                varint(&mut raw, u64::from(object) + 1);
                let step = offset.wrapping_sub(last) as i64;
                varint(&mut raw, (step << 1 ^ step >> 63) as u64);
                varint(&mut raw, len.into());
                last = offset;
            }
            let packed = lz4_flex::block::compress(&raw);
            u32(&mut out, raw.len() as u32);
            u32(&mut out, packed.len() as u32);
            out.extend_from_slice(&packed);
        }
        u32(&mut out, self.hot.len() as u32);
        for (pgno, page) in &self.hot {
            let packed = lz4_flex::block::compress(page);
            u32(&mut out, pgno.0);
            u32(&mut out, packed.len() as u32);
            out.extend_from_slice(&packed);
        }
        let crc = crc32c::crc32c(&out);
        u32(&mut out, crc);
        out
    }

    /// Reads it back.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for bytes that are not a whole hot index of this version.
    pub(crate) fn decode(bytes: &[u8]) -> Result<HotIndex> {
        let bad = |what: &str| Error::new(ErrorKind::Corrupt, format!("the hot index: {what}"));
        let (content, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| bad("too short"))?;
        if !content.starts_with(MAGIC) {
            return Err(bad("another kind or version of object"));
        }
        if crc32c::crc32c(content) != u32::from_be_bytes(*crc) {
            return Err(bad("its checksum is wrong"));
        }
        parse(&mut Input(&content[MAGIC.len()..])).ok_or_else(|| bad("it contradicts itself"))
    }
}

/// Leaves out the objects that no page is read from any more.
fn drop_unused(objects: &mut Vec<ObjectRef>, places: &mut [Option<(u32, u64, u32)>]) {
    let mut is_used = vec![false; objects.len()];
    for (object, _, _) in places.iter().flatten() {
        is_used[*object as usize] = true;
    }
    let moved = is_used.iter().scan(0, |next, is_used| {
        let now = *next;
        *next += u32::from(*is_used);
        Some(now)
    });
    let moved: Vec<u32> = moved.collect();
    for (object, _, _) in places.iter_mut().flatten() {
        *object = moved[*object as usize];
    }
    let mut is_used = is_used.into_iter();
    objects.retain(|_| is_used.next().unwrap_or(false));
}

fn parse(input: &mut Input<'_>) -> Option<HotIndex> {
    let page_size = PageSize::new(input.u32()?)?;
    let pages = PageCount(input.u32()?);
    let txid = TxId(input.u64()?);
    let head = ObjectId { txid, size: input.u64()?, crc32c: input.u32()? };
    let generation = Generation(input.u64()?);
    let objects = (0..input.count(33)?)
        .map(|_| {
            let level = input.take(1)?[0];
            let name = ObjectName { level, min: TxId(input.u64()?), max: TxId(input.u64()?) };
            let (size, generation) = (input.u64()?, Some(Generation(input.u64()?)));
            (name.max <= txid).then_some(ObjectRef { name, generation, size })
        })
        .collect::<Option<Vec<_>>>()?;
    let mut places = Vec::new();
    for _ in 0..input.count(8)? {
        let (len, packed) = (input.u32()? as usize, input.u32()? as usize);
        if len > BLOCK * PLACE_BYTES {
            return None;
        }
        let raw = lz4_flex::block::decompress(input.take(packed)?, len).ok()?;
        let mut block = Input(&raw);
        let mut last = 0u64;
        while !block.0.is_empty() {
            let Some(object) = block.varint()?.checked_sub(1) else {
                places.push(None);
                continue;
            };
            let step = block.varint()?;
            let offset = last.wrapping_add((step >> 1) ^ (step & 1).wrapping_neg());
            let frame = u32::try_from(block.varint()?).ok()?;
            let size = objects.get(usize::try_from(object).ok()?)?.size;
            if offset >= size {
                return None;
            }
            places.push(Some((object as u32, offset, frame)));
            last = offset;
        }
    }
    if places.len() as u64 != u64::from(pages.0) {
        return None;
    }
    let hot = (0..input.count(8)?)
        .map(|_| {
            let (pgno, packed) = (Pgno(input.u32()?), input.u32()? as usize);
            let page = lz4_flex::block::decompress(input.take(packed)?, page_size.bytes() as usize).ok()?;
            (page.len() == page_size.bytes() as usize && pages.contains(pgno)).then_some((pgno, page))
        })
        .collect::<Option<Vec<_>>>()?;
    input.0.is_empty().then_some(HotIndex { page_size, pages, head, generation, objects, places, hot })
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.take(4)?.first_chunk()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_be_bytes(*self.take(8)?.first_chunk()?))
    }

    /// A number of items that take at least `least` bytes each.
    fn count(&mut self, least: usize) -> Option<u32> {
        let count = self.u32()?;
        (count as usize <= self.0.len() / least).then_some(count)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> HotIndex {
        let object = |max: u64, size: u64| ObjectRef {
            name: ObjectName { level: 0, min: TxId(max), max: TxId(max) },
            generation: Some(Generation(max + 100)),
            size,
        };
        let mut rng = fastrand::Rng::with_seed(5);
        let places = (0..20_000u64).map(|n| match n % 97 {
            0 => None,
            1 => Some((1, rng.u64(..9_000_000), 2000)),
            _ => Some((0, 100 + n * 1500, 1517)),
        });
        HotIndex {
            page_size: PageSize::DEFAULT,
            pages: PageCount(20_000),
            head: ObjectId { txid: TxId(9), size: 77, crc32c: 3 },
            generation: Generation(44),
            objects: vec![object(3, 40_000_000), object(9, 9_000_000)],
            places: places.collect(),
            hot: vec![(Pgno(1), vec![7; 4096]), (Pgno(19_999), crate::replica::bed::content(3, 1))],
        }
    }

    #[test]
    fn it_reads_back_as_it_was_written_and_takes_few_bytes_a_page() {
        let hot = sample();
        let bytes = hot.encode();
        assert!(HotIndex::decode(&bytes).expect("a hot index") == hot);
        assert!(bytes.len() < 20_000 * 5, "{}", bytes.len());
    }

    #[test]
    fn a_damaged_one_is_told_at_every_byte_and_never_panics_with_a_right_checksum() {
        let bytes = sample().encode();
        let mut rng = fastrand::Rng::with_seed(9);
        for _ in 0..400 {
            let mut bad = bytes.clone();
            let at = rng.usize(..bad.len());
            bad[at] ^= 1 << rng.u8(..8);
            assert!(HotIndex::decode(&bad).is_err(), "byte {at}");
            // A writer gone wrong checksums what it writes.
            let end = bad.len() - 4;
            let crc = crc32c::crc32c(&bad[..end]);
            bad[end..].copy_from_slice(&crc.to_be_bytes());
            let _ = HotIndex::decode(&bad);
            assert!(HotIndex::decode(&bytes[..rng.usize(..bytes.len())]).is_err());
        }
    }
}
