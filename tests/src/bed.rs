//! A bucket behind a fault proxy, and hosts that use it.

use std::time::Duration;

use crate::emulator::Emulator;
use crate::judge::Judge;
use crate::machine::{Host, Session};
use crate::poll;
use crate::proxy::{Class, Proxy};
use crate::shell::Scratch;

/// An emulator, the proxy in front of it, and a directory for the hosts. The judge asks the emulator itself.
#[derive(Debug)]
pub struct Bed {
    /// Says what the bucket holds.
    pub judge: Judge,
    /// Where the hosts' directories lie.
    pub scratch: Scratch,
    /// What the hosts talk to.
    pub proxy: Proxy,
    /// The bucket.
    pub emulator: Emulator,
}

impl Bed {
    /// A new one, with an empty bucket.
    pub fn new() -> Bed {
        let emulator = Emulator::start();
        let proxy = Proxy::start(&emulator.host());
        Bed { judge: Judge::of(&emulator), scratch: Scratch::new(), proxy, emulator }
    }

    /// A host of this name, with settings for its URI.
    pub fn host(&self, name: &str, settings: &str) -> Host {
        Host::new(self.scratch.join(name), &self.emulator.url(), Some(self.proxy.host()), settings)
    }

    /// A new host's application, with the database open and the table `t` made.
    pub fn with_table(&self, name: &str, settings: &str) -> Session {
        let mut session = self.host(name, settings).open();
        session.sql("CREATE TABLE t(id INTEGER, text TEXT)").expect("a table");
        session
    }

    /// Whether the lease is in this state: `held` or `released`.
    pub fn lease_is(&self, state: &str) -> bool {
        self.judge.lease().is_some_and(|lease| lease["state"] == state)
    }

    /// Waits until the lease is released, 10 s at most; whether it was.
    pub fn wait_for_release(&self) -> bool {
        poll(Duration::from_secs(10), || self.lease_is("released"))
    }

    /// Waits until the historian has come to rest, and the bucket with it.
    #[track_caller]
    pub fn rest(&self) {
        let mut before = 0;
        let rests = poll(Duration::from_secs(20), || {
            std::thread::sleep(Duration::from_millis(100));
            let requests = self.proxy.requests();
            std::mem::replace(&mut before, requests) == requests
        });
        assert!(rests, "the bucket does not come to rest");
    }

    /// Class A requests of the hosts so far.
    pub fn class_a(&self) -> u64 {
        self.proxy.count(Class::Put) + self.proxy.count(Class::List)
    }
}

impl Default for Bed {
    fn default() -> Bed {
        Bed::new()
    }
}
