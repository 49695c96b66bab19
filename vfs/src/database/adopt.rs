//! Taking over a plain SQLite file: it becomes the first delta, then the cache.
//!
//! Order, and what a crash after each step leaves:
//! 1. The whole file is frozen as TXID 1 in the outbox. A plain file is still there: the next open does it again.
//! 2. Presence and page map are made, and the state file is written. The same.
//! 3. The magic is masked, in place. From here on it is a cache, complete and with an unsent delta.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::open::{Opening, Ready, has_content};
use crate::cache::file::CacheFile;
use crate::capture::position::Position;
use crate::delta::{Encoder, Header};
use crate::error::{Error, ErrorKind, Result};
use crate::local::state::State;
use crate::local::suffixed;
use crate::log;
use crate::page::{PageCount, PageSize, Pgno, TxId};
use crate::replica::chain::Chain;
use crate::replica::page_map::PageMap;

impl Opening<'_> {
    /// Adopts the plain database that stands at the path.
    pub(super) fn adopt(&self, chain: Option<&Chain>) -> Result<Ready> {
        let path = self.layout.main();
        let refuse = |why: String| Err(Error::new(ErrorKind::Configuration, format!("{}: {why}", path.display())));
        if let Some(chain) = chain {
            return refuse(format!(
                "a plain SQLite database is here, and {} already holds one (head {}); move one of them away",
                self.replica.place(),
                chain.txid()
            ));
        }
        if has_content(&suffixed(path, "-journal")) {
            return refuse("it has a hot journal; open it once with plain sqlite3 to recover it".to_owned());
        }
        if has_content(&suffixed(path, "-wal")) {
            let how = "close it everywhere, or run PRAGMA wal_checkpoint(TRUNCATE) with plain sqlite3";
            return refuse(format!("it has a WAL with unwritten changes; {how}"));
        }
        let failed = |e: &std::io::Error| Error::local(format_args!("reading {}", path.display()), e);
        let file = File::open(path).map_err(|e| failed(&e))?;
        let mut header = [0; 100];
        file.read_exact_at(&mut header, 0).map_err(|e| failed(&e))?;
        let page_size = match u16::from_be_bytes([header[16], header[17]]) {
            1 => PageSize::new(65536),
            bytes => PageSize::new(bytes.into()),
        };
        let Some(page_size) = page_size else { return refuse("its header has no legal page size".to_owned()) };
        let size = file.metadata().map_err(|e| failed(&e))?.len();
        if size == 0
            || !size.is_multiple_of(page_size.bytes().into())
            || size / u64::from(page_size.bytes()) > u32::MAX.into()
        {
            return refuse(format!("its size of {size} bytes is not a whole number of pages of {page_size}"));
        }
        let pages = PageCount((size / u64::from(page_size.bytes())) as u32);
        log::info!("{}: adopting a plain database of {} pages", path.display(), pages.0);

        let state = self.fresh_state(page_size);
        let position = Position { pages, closed: true, serial: 1, ..Position::default() };
        let timestamp_ms = crate::upload::now_ms();
        for stale in self.outbox.list()? {
            self.outbox.remove(stale.id.txid)?;
        }
        let envelope = self.outbox.freeze(TxId(1), position, timestamp_ms, |out| {
            let refused =
                |e: crate::delta::EncodeError| Error::from(e).context(format_args!("adopting {}", path.display()));
            let header =
                Header { node_id: state.protocol.nonce.0, ..Header::level_0(page_size, pages, TxId(1), timestamp_ms) };
            let mut encoder = Encoder::new(out, header).map_err(refused)?;
            let mut page = vec![0; page_size.bytes() as usize];
            for pgno in (1..=pages.0).map(Pgno).filter(|pgno| *pgno != page_size.lock_page()) {
                file.read_exact_at(&mut page, pgno.offset(page_size)).map_err(|e| failed(&e))?;
                if pgno == Pgno::ONE {
                    as_wal_mode(&mut page);
                }
                encoder.page(pgno, &page).map_err(refused)?;
            }
            encoder.finish().map_err(refused)?;
            Ok(())
        })?;
        let mut first = vec![0; page_size.bytes() as usize];
        file.read_exact_at(&mut first, 0).map_err(|e| failed(&e))?;
        drop(file);
        as_wal_mode(&mut first);

        let map = PageMap::create(self.layout.dir(), page_size)?;
        map.rebuild(&[self.outbox.index(&envelope.id)?])?;
        let cache = CacheFile::adopt(self.layout.dir(), path, map, self.source())?;
        // The state's position is that of what is durable, and nothing is: who flushes or closes waits for the upload.
        let state = State { position: Position { serial: 0, ..position }, ..state };
        let ready = self.start(cache, state, false)?;
        ready.cache.put_page(Pgno::ONE, &first)?;
        Ok(ready)
    }
}

/// The header's two version bytes say WAL; nothing else of a file depends on the journal mode.
fn as_wal_mode(page: &mut [u8]) {
    page[18] = 2;
    page[19] = 2;
}
