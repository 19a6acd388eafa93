//! What happened, line by line: as a hash, which two runs of a seed must agree on, and as a story for whoever looks into one.

use std::fmt;

use gregor_raft::Nanos;

use crate::clock::MILLISECOND;

/// See the module's documentation.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    lines: u64,
    told: bool,
    now: Nanos,
}

impl Trace {
    /// Nothing has happened. `told` prints each line as it happens.
    pub const fn new(told: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: 0, told, now: 0 }
    }

    /// Time passes.
    pub const fn at(&mut self, now: Nanos) {
        self.now = now;
    }

    /// Something happened.
    pub fn note(&mut self, what: fmt::Arguments<'_>) {
        let line = format!("{:>9}.{:03} {what}", self.now / MILLISECOND, self.now % MILLISECOND / 1_000);
        // FNV-1a: the same in every process.
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        self.lines += 1;
        if self.told {
            println!("{line}");
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
