//! Chance that a seed repeats: xorshift64*, as small as it gets.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// A small generator: a whole run follows from its seed.
pub struct Chance(u64);

impl Chance {
    /// The seed that `GREGOR_COMPAT_SEED` gives; else always the same, or where another one each time is wanted, the clock's. It is
    /// printed, so that a run which failed can be repeated.
    pub fn from_environment(another_each_time: bool) -> Result<Self> {
        let seed: u64 = match std::env::var("GREGOR_COMPAT_SEED") {
            Ok(seed) => seed.parse().context("GREGOR_COMPAT_SEED is a number")?,
            Err(_) if another_each_time => SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos().into(),
            Err(_) => 1,
        };
        println!("GREGOR_COMPAT_SEED={seed}");
        Ok(Self(seed ^ 0x9e37_79b9_7f4a_7c15))
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    /// Whether a die with so many sides shows its first one.
    pub fn one_in(&mut self, sides: u64) -> bool {
        self.draw().is_multiple_of(sides)
    }

    /// One of them; there is one at least.
    pub fn pick<'a, T>(&mut self, choices: &'a [T]) -> &'a T {
        &choices[(self.draw() % choices.len() as u64) as usize]
    }
}
