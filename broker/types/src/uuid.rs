//! Kafka's 128-bit ids and their 22-character text form (`org.apache.kafka.common.Uuid`).

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

/// A 128-bit id: of a topic, of a log directory, of a process incarnation.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub u128);

/// A text that is not a [`Uuid`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id: expected 22 characters of URL-safe base64, such as \"uZ9tHTWSR9SSAv6t2EZdKw\"")]
pub struct ParseUuidError(String);

impl Uuid {
    /// No id: `AAAAAAAAAAAAAAAAAAAAAA`. As a replica's directory it means "migrating".
    pub const ZERO: Self = Self(0);
    /// The id of the topic `__cluster_metadata`. As a replica's directory it means "unassigned".
    pub const METADATA_TOPIC: Self = Self(1);
    /// As a replica's directory: the replica's directory failed and is not known any more (KIP-858).
    pub const DIRECTORY_LOST: Self = Self(2);
    /// As a replica's directory: not told to the controller yet (KIP-858).
    pub const DIRECTORY_UNASSIGNED: Self = Self(1);
    /// As a replica's directory: written before directories had ids (KIP-858).
    pub const DIRECTORY_MIGRATING: Self = Self(0);

    /// Kafka keeps the first hundred ids for itself.
    pub const fn is_reserved(self) -> bool {
        self.0 < 100
    }

    /// An id from 128 random bits, made a version 4 UUID as Java's is; never reserved, and never one whose text
    /// starts with a dash, which a command line would take for an option. `random` is asked again until one fits.
    pub fn from_random(mut random: impl FnMut() -> u128) -> Self {
        loop {
            let id = Self(random() & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62));
            if !id.is_reserved() && !id.to_string().starts_with('-') {
                return id;
            }
        }
    }

    /// The id's 16 bytes, big endian, as on the wire.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// An id from its 16 bytes on the wire.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 22];
        URL_SAFE_NO_PAD.encode_slice(self.to_bytes(), &mut text).map_err(|_| fmt::Error)?;
        formatter.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Uuid({self})")
    }
}

impl FromStr for Uuid {
    type Err = ParseUuidError;

    fn from_str(text: &str) -> Result<Self, ParseUuidError> {
        let mut bytes = [0; 16];
        match URL_SAFE_NO_PAD.decode_slice(text, &mut bytes) {
            Ok(16) => Ok(Self::from_bytes(bytes)),
            _ => Err(ParseUuidError(text.chars().take(64).collect())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_kafkas() {
        assert_eq!(Uuid(1).to_string(), "AAAAAAAAAAAAAAAAAAAAAQ");
        assert_eq!("AAAAAAAAAAAAAAAAAAAAAQ".parse(), Ok(Uuid::METADATA_TOPIC));
        assert!("too-short".parse::<Uuid>().is_err());
        assert!("AAAAAAAAAAAAAAAAAAAAAQAAAAAA".parse::<Uuid>().is_err());
    }

    #[test]
    fn random_ids_are_never_reserved_and_never_look_like_an_option() {
        let mut seeds = [u128::MAX, 0xf800 << 112, 0, 12345 << 64].into_iter();
        let id = Uuid::from_random(|| seeds.next().unwrap());
        assert!(!id.to_string().starts_with('-'), "{id}");
        assert_eq!(id.0 >> 76 & 0xf, 4);
    }
}
