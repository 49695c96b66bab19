//! What the tests across processes share. Each module stands for one real part that runs beside the
//! database under test; whatever one starts, it stops when it is dropped. All of it listens on 127.0.0.1
//! only, on free ports.
//!
//! A missing component is an error that names `make setup`, never a skipped test.

pub mod bed;
pub mod content;
pub mod emulator;
pub mod faulty_vfs;
pub mod host;
pub mod judge;
pub mod litestream;
pub mod machine;
pub mod peer;
pub mod proxy;
pub mod shell;
pub mod timeline;
pub mod web;

/// Asks again and again whether something has come true, until the limit; whether it did.
pub fn poll(limit: std::time::Duration, mut is_true: impl FnMut() -> bool) -> bool {
    let end = std::time::Instant::now() + limit;
    loop {
        if is_true() {
            return true;
        }
        if std::time::Instant::now() > end {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
