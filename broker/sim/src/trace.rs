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
        // As FNV-1a, by eight bytes at a time: the same in every process.
        for bytes in self.line.as_bytes().chunks(8) {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            self.hash = (self.hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.hash ^= self.hash >> 32;
        }
        self.lines += 1;
        if self.told {
            println!("{}", self.line);
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
