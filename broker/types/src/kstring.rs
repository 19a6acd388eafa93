//! Text from the wire: checked once, shared without a copy.

use std::{borrow::Borrow, fmt, ops::Deref};

use bytes::Bytes;

/// UTF-8 text over shared bytes. A clone costs a reference count; a string decoded from a frame keeps that frame alive,
/// so what lives longer than its request is made [`compact`](KString::compact) first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct KString(Bytes);

/// Bytes that should have been UTF-8 text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("text is not UTF-8: the first bad byte is at {0}")]
pub struct NotUtf8(pub usize);

impl KString {
    /// Text that is part of the program: no allocation.
    pub const fn from_static(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }

    /// Text over bytes from the wire, checked here and never again.
    pub fn from_utf8(bytes: Bytes) -> Result<Self, NotUtf8> {
        match std::str::from_utf8(&bytes) {
            Ok(_) => Ok(Self(bytes)),
            Err(error) => Err(NotUtf8(error.valid_up_to())),
        }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("checked when it was made")
    }

    /// The same text in memory of its own, so that it does not keep a whole frame alive.
    #[must_use]
    pub fn compact(&self) -> Self {
        Self(Bytes::copy_from_slice(&self.0))
    }
}

impl Deref for KString {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl AsRef<str> for KString {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Borrow<str> for KString {
    fn borrow(&self) -> &str {
        self
    }
}

impl std::hash::Hash for KString {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl From<&str> for KString {
    fn from(text: &str) -> Self {
        Self(Bytes::copy_from_slice(text.as_bytes()))
    }
}

impl From<String> for KString {
    fn from(text: String) -> Self {
        Self(Bytes::from(text.into_bytes()))
    }
}

impl From<KString> for String {
    fn from(text: KString) -> Self {
        text.as_str().to_owned()
    }
}

impl PartialEq<str> for KString {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for KString {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for KString {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.as_str(), formatter)
    }
}

impl fmt::Debug for KString {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), formatter)
    }
}
