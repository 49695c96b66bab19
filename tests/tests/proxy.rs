//! The fault proxy measures and breaks what it says, and nothing else.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sqlite_gcs::store::{self, Condition, Config, SharedStore};
use sqlite_gcs_tests::emulator::Emulator;
use sqlite_gcs_tests::proxy::{Class, Proxy};

fn start() -> (Emulator, Proxy, SharedStore) {
    let emulator = Emulator::start();
    let proxy = Proxy::start(&emulator.host());
    let config = Config { endpoint: Some(proxy.endpoint()), ..Config::default() };
    let store = store::open(&emulator.url().parse().unwrap(), config);
    (emulator, proxy, store)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallel_requests_wait_out_the_delay_together_and_share_the_bandwidth() {
    let (_emulator, proxy, store) = start();
    let body = Bytes::from(vec![7u8; 1_000_000]);
    store.put("a", body.clone(), &BTreeMap::new(), Condition::Absent).await.unwrap();
    let read_eight = async || {
        let begun = Instant::now();
        let reads: Vec<_> = (0..8)
            .map(|_| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.get("a", None).await.unwrap().bytes })
            })
            .collect();
        for read in reads {
            assert!(read.await.unwrap() == body);
        }
        begun.elapsed()
    };
    read_eight().await;
    proxy.set_delay(Duration::from_millis(100));
    let delayed = read_eight().await;
    assert!(delayed >= Duration::from_millis(100), "{delayed:?}");
    assert!(delayed < Duration::from_secs(5), "{delayed:?}");
    proxy.set_delay(Duration::ZERO);
    proxy.set_bandwidth(Some(8_000_000));
    let throttled = read_eight().await;
    assert!(throttled >= Duration::from_millis(900), "{throttled:?}");
    assert!(throttled < Duration::from_secs(15), "{throttled:?}");
    assert_eq!((proxy.count(Class::Put), proxy.count(Class::Get)), (1, 24));
    assert_eq!(proxy.bytes().1 / 1_000_000, 24);
}
