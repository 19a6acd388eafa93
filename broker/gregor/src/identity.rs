//! New ids, from the operating system's randomness: a cluster and a directory are told apart by them for ever.

use gregor_types::Uuid;

/// A new id for a cluster or a directory.
pub fn uuid() -> Uuid {
    Uuid::from_random(|| {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system has randomness");
        u128::from_be_bytes(bytes)
    })
}
