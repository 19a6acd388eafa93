//! Chance for the shell: ids of sessions and of renamed folders. Nothing here is a secret, and the pure crates never call it.

use std::{
    cell::Cell,
    hash::{BuildHasher, RandomState},
};

thread_local! {
    /// Each thread begins at a point that the standard library drew from the system.
    static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(std::thread::current().id()));
}

/// The next number of splitmix64 (Steele, Lea, Flood 2014).
pub(crate) fn u64() -> u64 {
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    })
}

/// 128 random bits.
pub(crate) fn u128() -> u128 {
    (u128::from(u64()) << 64) | u128::from(u64())
}

/// 32 random bits.
pub(crate) fn u32() -> u32 {
    (u64() >> 32) as u32
}
