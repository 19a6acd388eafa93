//! The APIs of Kafka: their numbers, names, versions, headers and the listeners that serve them.
//!
//! What Gregor advertises is not decided here: that is the table of the server, which takes a part of this one.

use std::{fmt, ops::RangeInclusive};

use crate::ApiKey;

/// The kind of listener that an API is served on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Listener {
    /// What clients and other brokers talk to.
    Broker,
    /// What the quorum and the brokers' side of the control plane talk to.
    Controller,
}

/// What the schema says about one API.
pub(crate) struct Facts {
    pub(crate) name: &'static str,
    pub(crate) versions: RangeInclusive<i16>,
    pub(crate) latest_unstable: bool,
    pub(crate) request_flexible: i16,
    pub(crate) response_flexible: i16,
    pub(crate) broker: bool,
    pub(crate) controller: bool,
}

/// Makes the enum from the generated table.
macro_rules! api_keys {
    ($($name:ident = $key:literal, $versions:expr, unstable $unstable:literal, flexible $request:literal $response:literal,
        broker $broker:literal, controller $controller:literal;)*) => {
        /// An API, by Kafka's name of it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(i16)]
        pub enum ApiKey {
            $($name = $key,)*
        }

        impl ApiKey {
            /// Every API, in the order of the numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The API of this number, if Kafka has one.
            pub const fn from_code(code: i16) -> Option<Self> {
                match code {
                    $($key => Some(Self::$name),)*
                    _ => None,
                }
            }

            const fn facts(self) -> crate::api_key::Facts {
                match self {
                    $(Self::$name => crate::api_key::Facts {
                        name: stringify!($name),
                        versions: $versions,
                        latest_unstable: $unstable,
                        request_flexible: $request,
                        response_flexible: $response,
                        broker: $broker,
                        controller: $controller,
                    },)*
                }
            }

            /// Kafka's name, such as `Metadata`.
            pub const fn name(self) -> &'static str {
                self.facts().name
            }

            /// The versions that have a schema, an unstable last one included.
            pub const fn versions(self) -> std::ops::RangeInclusive<i16> {
                self.facts().versions
            }

            /// Whether the last of [`versions`](Self::versions) may still change; Kafka then does not advertise it.
            pub const fn latest_version_is_unstable(self) -> bool {
                self.facts().latest_unstable
            }

            /// The header version of this version's request.
            pub const fn request_header_version(self, version: i16) -> i16 {
                if version >= self.facts().request_flexible { 2 } else { 1 }
            }

            /// The header version of this version's response. ApiVersions always answers with the oldest one, so that a
            /// client which does not know the version yet can read it.
            pub const fn response_header_version(self, version: i16) -> i16 {
                if version >= self.facts().response_flexible && !matches!(self, Self::ApiVersions) { 1 } else { 0 }
            }

            /// Whether Kafka serves the API on listeners of this kind.
            pub const fn is_served_on(self, listener: crate::Listener) -> bool {
                match listener {
                    crate::Listener::Broker => self.facts().broker,
                    crate::Listener::Controller => self.facts().controller,
                }
            }
        }
    };
}

pub(crate) use api_keys;

impl ApiKey {
    /// The number on the wire.
    pub const fn code(self) -> i16 {
        self as i16
    }

    /// The versions that Kafka itself advertises as stable.
    pub fn stable_versions(self) -> RangeInclusive<i16> {
        let versions = self.versions();
        let unstable = i16::from(self.latest_version_is_unstable());
        *versions.start()..=*versions.end() - unstable
    }
}

impl fmt::Display for ApiKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
