//! Objects of the log that another host wrote, read whole for the follower.

use std::collections::VecDeque;

use bytes::Bytes;

use super::STORE_WAIT;
use crate::error::{Error, Result};
use crate::page::TxId;
use crate::protocol::ObjectId;
use crate::replica::names::{Listed, ObjectName, Replica};
use crate::runtime;
use crate::store::StoreError;

/// An object that was fetched.
pub(super) struct Fetched {
    pub(super) object: Listed,
    pub(super) id: ObjectId,
    pub(super) bytes: Bytes,
}

/// The delta of a TXID, and as many after it as `more` says, which are kept in `ahead`. `None`: there is none.
pub(super) fn delta(
    replica: &Replica,
    txid: TxId,
    more: u64,
    ahead: &mut VecDeque<Fetched>,
) -> Result<Option<Fetched>> {
    while let Some(known) = ahead.pop_front() {
        if known.id.txid == txid {
            return Ok(Some(known));
        }
    }
    let what = format!("reading {}", replica.ltx(&ObjectName::delta(txid)));
    let (replica, store) = (replica.clone(), replica.store().clone());
    let gets = async move {
        let get = |txid| {
            let (name, store) = (replica.ltx(&ObjectName::delta(TxId(txid))), store.clone());
            async move { store.get(&name, None).await }
        };
        futures::future::join_all((txid.0..txid.0 + more).map(get)).await
    };
    for (object, txid) in runtime::wait(&what, STORE_WAIT, gets)?.into_iter().zip(txid.0..) {
        match object {
            Ok(object) => {
                let bytes = object.bytes;
                let id = ObjectId { txid: TxId(txid), size: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) };
                let object = Listed { name: ObjectName::delta(TxId(txid)), meta: object.meta };
                ahead.push_back(Fetched { object, id, bytes });
            }
            Err(StoreError::NotFound(_)) => break,
            // What came before it is good.
            Err(_) if !ahead.is_empty() => break,
            Err(e) => return Err(Error::from(e).context(what)),
        }
    }
    Ok(ahead.pop_front())
}

/// An object of a listing.
pub(super) fn object(replica: &Replica, object: &Listed) -> Result<Fetched> {
    let (name, store) = (replica.ltx(&object.name), replica.store().clone());
    let what = format!("reading {name}");
    let got = runtime::wait(&what, STORE_WAIT, async move { store.get(&name, None).await })?;
    let bytes = got.map_err(|e| Error::from(e).context(what))?.bytes;
    let id = ObjectId { txid: object.name.max, size: bytes.len() as u64, crc32c: crc32c::crc32c(&bytes) };
    Ok(Fetched { object: object.clone(), id, bytes })
}
