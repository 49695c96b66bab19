//! What the tests across processes share. Each module stands for one real part that runs beside the
//! database under test; whatever one starts, it stops when it is dropped. All of it listens on 127.0.0.1
//! only, on free ports.
//!
//! A missing component is an error that names `make setup`, never a skipped test.

pub mod emulator;
pub mod litestream;
pub mod machine;
pub mod proxy;
pub mod shell;
