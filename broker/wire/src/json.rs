//! Messages as JSON, with the shapes of Kafka's own converters: camel-case names, Base64 blobs, ids as text, record sets by their size.
//!
//! For dumps and golden tests; nothing on a request's path calls it.

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use gregor_types::{KString, Uuid};
use serde_json::{Map, Value};

use crate::Struct;

/// An object that is being filled.
#[derive(Debug, Default)]
pub struct JsonObject(Map<String, Value>);

/// A value that JSON can show without knowing a version.
pub trait Show {
    /// The value as JSON.
    fn json(&self) -> Value;
}

macro_rules! show_numbers {
    ($($type:ty),*) => {
        $(impl Show for $type {
            fn json(&self) -> Value {
                (*self).into()
            }
        })*
    };
}

show_numbers!(bool, i8, i16, i32, i64, u16, u32, f64);

impl Show for Uuid {
    fn json(&self) -> Value {
        self.to_string().into()
    }
}

impl Show for KString {
    fn json(&self) -> Value {
        self.as_str().into()
    }
}

impl Show for Bytes {
    fn json(&self) -> Value {
        STANDARD.encode(self).into()
    }
}

impl<T: Show> Show for Vec<T> {
    fn json(&self) -> Value {
        self.iter().map(Show::json).collect()
    }
}

impl<T: Show> Show for Option<T> {
    fn json(&self) -> Value {
        self.as_ref().map_or(Value::Null, Show::json)
    }
}

impl JsonObject {
    /// Adds a primitive, a list of primitives, or null.
    pub fn put(&mut self, name: &str, value: &impl Show) {
        self.0.insert(name.to_owned(), value.json());
    }

    /// Adds a record set: only its size is shown.
    pub fn put_records(&mut self, name: &str, records: Option<&Bytes>) {
        match records {
            Some(records) => self.0.insert(format!("{name}SizeInBytes"), records.len().into()),
            None => self.0.insert(name.to_owned(), Value::Null),
        };
    }

    /// Adds a struct or null.
    pub fn put_struct<T: Struct>(&mut self, name: &str, value: Option<&T>, version: i16) {
        self.0.insert(name.to_owned(), value.map_or(Value::Null, |value| object(value, version)));
    }

    /// Adds a list of structs or null.
    pub fn put_structs<T: Struct>(&mut self, name: &str, list: Option<&Vec<T>>, version: i16) {
        let value = list.map_or(Value::Null, |list| list.iter().map(|element| object(element, version)).collect());
        self.0.insert(name.to_owned(), value);
    }

    /// The filled object.
    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }
}

fn object<T: Struct>(value: &T, version: i16) -> Value {
    let mut json = JsonObject::default();
    value.show(&mut json, version);
    json.into_value()
}
