//! Which partition of an internal topic a group or transactional id belongs to: bit for bit as in Apache Kafka, as both brokers
//! must agree.

/// Java's `String.hashCode`: over UTF-16 code units.
pub fn java_hash(text: &str) -> i32 {
    text.encode_utf16().fold(0_i32, |hash, unit| hash.wrapping_mul(31).wrapping_add(i32::from(unit)))
}

/// The partition of an internal topic that keeps what belongs to `key`.
pub fn partition_for(key: &str, partitions: i32) -> i32 {
    // Kafka's `Utils.abs`: the one number without a positive counterpart becomes 0.
    java_hash(key).checked_abs().unwrap_or(0) % partitions.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_javas() {
        assert_eq!(java_hash(""), 0);
        assert_eq!(java_hash("my-group"), -1_906_497_762);
        assert_eq!(java_hash("Grüße 🦀"), 412_023_115);
        // A text whose hash is i32::MIN.
        assert_eq!(java_hash("polygenelubricants"), i32::MIN);
        assert_eq!(partition_for("polygenelubricants", 50), 0);
        assert_eq!(partition_for("my-group", 50), 12);
    }
}
