//! Java's properties format, as `server.properties` and `meta.properties` are written in.

use std::collections::BTreeMap;

/// The keys and values of a properties file; of a key given twice the last value counts, as in Java.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(BTreeMap<String, String>);

/// A text that is not a properties file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct PropertiesError {
    line: usize,
    what: &'static str,
}

impl Properties {
    /// Reads the format of `java.util.Properties`: `#` and `!` comments, `=`, `:` or a space between key and value, a
    /// backslash that continues a line or escapes a character.
    pub fn parse(text: &str) -> Result<Self, PropertiesError> {
        let mut entries = BTreeMap::new();
        let mut lines = text.lines().enumerate();
        while let Some((index, line)) = lines.next() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with(['#', '!']) {
                continue;
            }
            let mut logical = line.to_owned();
            while ends_with_odd_backslashes(&logical) {
                logical.pop();
                match lines.next() {
                    Some((_, next)) => logical.push_str(next.trim_start()),
                    None => break,
                }
            }
            let (key, value) = split_entry(&logical);
            let unescape = |part| unescape(part).ok_or(PropertiesError { line: index + 1, what: "a bad \\u escape" });
            entries.insert(unescape(key)?, unescape(value)?);
        }
        Ok(Self(entries))
    }

    /// The value of a key.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Sets a key, as a command line's `--override` does.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.0.insert(key.into(), value.into());
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

fn ends_with_odd_backslashes(line: &str) -> bool {
    line.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1
}

fn split_entry(line: &str) -> (&str, &str) {
    let mut escaped = false;
    for (index, character) in line.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '=' | ':' => return (&line[..index], line[index + 1..].trim_start()),
            ' ' | '\t' | '\x0c' => {
                let rest = line[index..].trim_start();
                let rest = rest.strip_prefix(['=', ':']).map_or(rest, str::trim_start);
                return (&line[..index], rest);
            }
            _ => {}
        }
    }
    (line, "")
}

fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('t') => out.push('\t'),
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('f') => out.push('\x0c'),
            Some('u') => {
                let digits: String = characters.by_ref().take(4).collect();
                out.push(char::from_u32(u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4)?)?);
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_java_reads() {
        let text = "# comment\n! too\n a = b\nc:d\ne f\ng\n h.i=j\\\n   k\nl\\ m=n\\u0041\\=o\na=last\n";
        let properties = Properties::parse(text).unwrap();
        let entries: Vec<_> = properties.iter().collect();
        assert_eq!(entries, [("a", "last"), ("c", "d"), ("e", "f"), ("g", ""), ("h.i", "jk"), ("l m", "nA=o")]);
        assert!(Properties::parse("a=\\u12").is_err());
    }
}
