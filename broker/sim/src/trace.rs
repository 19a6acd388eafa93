//! What happened, line by line: as a hash, which two runs of a seed must agree on, and as a story for whoever looks into one.

use std::fmt::{self, Write};

use gregor_raft::Nanos;

use crate::clock::MILLISECOND;

/// See the module's documentation.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    lines: u64,
    told: bool,
    now: Nanos,
    /// The line at hand: kept, so that none is allocated anew.
    line: String,
}

impl Trace {
    /// Nothing has happened. `told` prints each line as it happens.
    pub const fn new(told: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: 0, told, now: 0, line: String::new() }
    }

    /// Time passes.
    pub const fn at(&mut self, now: Nanos) {
        self.now = now;
    }

    /// Something happened.
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        self.line.clear();
        let (milliseconds, microseconds) = (self.now / MILLISECOND, self.now % MILLISECOND / 1_000);
        write!(self.line, "{milliseconds:>9}.{microseconds:03} {what}").expect("a string takes everything");
        self.hash = mixed(self.hash, self.line.as_bytes());
        self.lines += 1;
        if self.told {
            println!("{}", self.line);
        }
    }

    /// Something happened that does so all the time: `name` and `numbers` say what, and `what` tells it to who looks, if somebody does.
    pub fn note_often(&mut self, name: &str, numbers: [u64; 3], what: fmt::Arguments<'_>) {
        self.hash = mixed(self.hash, name.as_bytes());
        for number in [self.now].into_iter().chain(numbers) {
            self.hash = mixed(self.hash, &number.to_le_bytes());
        }
        self.lines += 1;
        if self.told {
            let (milliseconds, microseconds) = (self.now / MILLISECOND, self.now % MILLISECOND / 1_000);
            println!("{milliseconds:>9}.{microseconds:03} {what}");
        }
    }

    /// Tells more to who looks, which is no part of what happened.
    pub fn explain(&self, what: &dyn fmt::Display) {
        if self.told {
            println!("              {what}");
        }
    }

    /// The hash of all lines.
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// How many lines there were.
    pub const fn lines(&self) -> u64 {
        self.lines
    }
}

/// As FNV-1a, by eight bytes at a time: the same in every process.
fn mixed(hash: u64, bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(hash, |hash, bytes| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^ (hash >> 32)
    })
}
